"""The job `halfmap reconstruct`: a map from particles whose poses are known."""

from pathlib import Path

import torch

from halfmap.commands import _inputs, _setup
from halfmap.commands._options import (
    Annotated,
    Ctf,
    DataDir,
    Device,
    Diameter,
    Mask,
    Memory,
    Option,
    Overwrite,
    ParticlesFile,
    Quiet,
    Seed,
    Symmetry,
    Threads,
    WienerConstant,
)
from halfmap.commands._results import RefinementResult, final_maps, write_map_files
from halfmap.engine.loop import sum_at_poses
from halfmap.engine.residuals import initial_noise
from halfmap.errors import InputError
from halfmap.methods.settings import Settings
from halfmap.options import command
from halfmap.pose_search.refinement import SearchSettings
from halfmap.workspace.progress import Progress


@command
def reconstruct(
    particles: ParticlesFile,
    out: Annotated[str | Path, Option("Map to write (MRC)", metavar="MAP", recorded=False)],
    *,
    symmetry: Symmetry = "C1",
    halves: Annotated[
        bool, Option("Write the two half maps too, and the resolution between them")
    ] = False,
    wiener_constant: WienerConstant = None,
    ctf: Ctf = True,
    diameter_angstrom: Diameter = None,
    mask: Mask = None,
    data_dir: DataDir = None,
    seed: Seed = 1,
    device: Device = "auto",
    threads: Threads = None,
    memory: Memory = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> RefinementResult:
    """Reconstruct a map from the poses in the particle file.

    The map is `num / (k + den)`. Half maps of `x.mrc` are `x_half1.mrc` and `x_half2.mrc`, their
    curve is `x_fsc.star`, taken in a soft sphere or a mask file.

    Example: halfmap reconstruct --particles refined/particles.star --symmetry C4 --halves --out
    map.mrc

    Raises:
        InputError: any bad input, in one line; a file that would be written exists.
    """
    target = Path(out)
    if target.suffix != ".mrc":
        raise InputError(f"--out {out}: expected the name of a map to write, ending in .mrc")
    for name in _written(target, halves=halves):
        if name.exists() and not overwrite:
            raise InputError(
                f"{name}: the file exists; choose another name with --out, or --overwrite it"
            )
    where = _setup.use_device(device, threads)
    with Progress("reconstruct", quiet=quiet) as progress:
        data = _inputs.read_particles(particles, data_dir=data_dir, ctf=ctf)
        if not data.has_poses:
            raise InputError(
                f"{particles}: no poses (rlnAngleRot, rlnAngleTilt, rlnAnglePsi) to reconstruct "
                "from; find them with halfmap refine"
            )
        radius_px = _inputs.particle_radius_px(diameter_angstrom, data, None)
        _setup.batch_size(data.box, dimensions=3, n_classes=1, memory=memory, device=where)
        solvent = _inputs.solvent_mask(mask, data, radius_px, dimensions=3, device=where)
        alone = len(data) > 1 and set(data.half_set.tolist()) in ({1}, {2})
        if alone:  # one half of a refined data set by itself
            progress.note(
                f"{particles}: column _rlnRandomSubset is {data.half_set[0]} in every row; the "
                "halves are drawn at random"
            )
        half, _ = _inputs.find_bad_images(
            data, _inputs.divide_into_halves(data, seed, anew=alone), progress
        )
        problem = _setup.make_problem(
            data,
            half,
            device=where,
            radius_px=radius_px,
            symmetry=symmetry,
            dimensions=3,
            n_classes=1,
            matched_to="own",
            ctf=ctf,
            learn_norm_and_scale=False,
            memory=memory,
            progress=progress,
        )
        settings = Settings(
            SearchSettings(problem.specimen),
            0.143,
            reference_mask=solvent,
            fsc_mask=solvent,
            wiener_constant=wiener_constant,
        )
        used = torch.nonzero(half >= 0)[:, 0]
        noise = initial_noise(
            data,
            used,
            problem.plane,
            problem.n_groups,
            problem.images,
            batch_size=problem.batch_size,
        )
        poses = _inputs.poses_of(data).in_one_class()
        progress.start_iteration(0, int((problem.half >= 0).sum()), "final maps")
        final = final_maps(
            problem, settings, sum_at_poses(problem, poses, noise, advance=progress.advance), noise
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        stem = str(target.with_suffix(""))
        write_map_files(
            final,
            0,
            data.pixel_size_angstrom,
            map_path=target,
            prefix=f"{stem}_",
            pictures=f"{target.parent}/",
            with_halves=halves,
        )
    return RefinementResult(target, final.resolutions_angstrom[0], final.resolutions_angstrom)


def _written(target: Path, *, halves: bool) -> list[Path]:
    """The files that the job writes."""
    names = [target.name, f"{target.stem}.png"]
    if halves:
        names += [
            f"{target.stem}_{rest}" for rest in ("half1.mrc", "half2.mrc", "fsc.star", "fsc.png")
        ]
    return [target.with_name(name) for name in names]
