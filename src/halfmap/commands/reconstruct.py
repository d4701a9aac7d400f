"""The job `halfmap reconstruct`: a map from particles whose poses are known."""

from pathlib import Path

import torch

from halfmap.commands import _inputs, _setup
from halfmap.commands._results import (
    RefinementResult,
    final_maps,
    refinement_result,
    write_map_files,
)
from halfmap.engine.loop import sum_at_poses
from halfmap.engine.preprocessing import initial_noise
from halfmap.errors import InputError
from halfmap.methods.settings import Settings
from halfmap.pose_search.refinement import SearchSettings
from halfmap.workspace.progress import Progress


def reconstruct(
    particles: str | Path,
    out: str | Path,
    *,
    symmetry: str = "C1",
    halves: bool = False,
    wiener_constant: float | None = None,
    ctf: bool = True,
    diameter_angstrom: float | None = None,
    mask: str | Path | None = None,
    data_dir: str | Path | None = None,
    seed: int = 1,
    device: str = "auto",
    threads: int | None = None,
    memory: int | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> RefinementResult:
    """Reconstruct `num / (k + den)` from the poses in the particle file into the map `out`; with
    `halves` the half maps and FSC beside it.

    Args:
        particles: STAR or .cs file with poses.
        out: map to write, `x.mrc`; half maps are `x_half1.mrc` and `x_half2.mrc`, the curve is
            `x_fsc.star`.
        wiener_constant: constant k; 1/SSNR from the half maps' FSC inside the mask if None.
        diameter_angstrom: of the soft sphere in which the FSC is taken, 0.9 of the box if None; or
            a `mask` file.

    Raises:
        InputError: any bad input, in one line; a file that would be written exists.
    """
    target = Path(out)
    _setup.check_positive(wiener_constant=wiener_constant)
    _setup.check_search(None, 0.0, seed, symmetry=symmetry)
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
            intensity=False,
            memory=memory,
            progress=progress,
        )
        settings = Settings(
            SearchSettings(problem.symmetry, radius_px),
            0.143,
            solvent,
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
        progress.start_stage("final maps", int((problem.half >= 0).sum()))
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
    return refinement_result(problem, final, folder=target, map_path=target, mask=mask)


def _written(target: Path, *, halves: bool) -> list[Path]:
    """The files that the job writes."""
    names = [target.name, f"{target.stem}.png"]
    if halves:
        names += [
            f"{target.stem}_{rest}" for rest in ("half1.mrc", "half2.mrc", "fsc.star", "fsc.png")
        ]
    return [target.with_name(name) for name in names]
