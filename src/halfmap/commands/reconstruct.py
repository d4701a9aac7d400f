"""The job `halfmap reconstruct`: a map from particles whose poses are known."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.commands import _halves, _inputs, _setup
from halfmap.commands._contrast import tell_contrast
from halfmap.commands._final_maps import (
    FinalMaps,
    final_maps,
    fsc_mask,
    in_own_mask,
    write_map_files,
)
from halfmap.commands._iterations import made_of
from halfmap.commands._job import open_job
from halfmap.commands._options import (
    Annotated,
    Contrast,
    Ctf,
    DataDir,
    Device,
    Diameter,
    GridBox,
    GridPixelSize,
    Mask,
    Memory,
    Option,
    Overwrite,
    ParticlesFile,
    Passthrough,
    Quiet,
    Resume,
    Seed,
    Symmetry,
    Threads,
    WienerConstant,
)
from halfmap.commands._results import RefinementResult, refinement_result
from halfmap.distributed import broadcast_object, only_first
from halfmap.engine.loop import sum_at_poses
from halfmap.engine.memory import JobSize
from halfmap.engine.problem import Problem
from halfmap.engine.residuals import initial_noise
from halfmap.engine.state import Poses
from halfmap.errors import InputError
from halfmap.methods.settings import Settings
from halfmap.options import command
from halfmap.pose_search.refinement import SearchSettings
from halfmap.projection import Sums
from halfmap.symmetries import point_group
from halfmap.workspace.earlier_job import CHECKPOINT
from halfmap.workspace.job import Job, read_job
from halfmap.workspace.progress import Progress

# names of files, where a map or a folder is expected
_NOT_A_FOLDER = (".mrcs", ".map", ".ccp4", ".st", ".gz", ".star", ".cs")


@command
def reconstruct(
    particles: ParticlesFile,
    out: Annotated[
        str | Path,
        Option(
            "Map to write (.mrc), or job folder to make", metavar="MAP|DIR", free_on_resume=True
        ),
    ],
    *,
    symmetry: Symmetry = "C1",
    halves: Annotated[
        bool, Option("Write the two half maps too, and the resolution between them")
    ] = False,
    wiener_constant: WienerConstant = None,
    ctf: Ctf = True,
    pixel_size_angstrom: GridPixelSize = None,
    box: GridBox = None,
    diameter_angstrom: Diameter = None,
    mask: Mask = None,
    data_dir: DataDir = None,
    passthrough: Passthrough = None,
    contrast: Contrast = None,
    seed: Seed = 1,
    device: Device = "auto",
    threads: Threads = None,
    memory: Memory = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    quiet: Quiet = False,
) -> RefinementResult:
    """Reconstruct a map from the poses in the particle file: `num / (k + den)`.

    `out` is a job folder, which gets `map.mrc`, `half1.mrc`, `half2.mrc`, `fsc.star` and pictures;
    or a map to write, `x.mrc`, beside which the half maps `x_half1.mrc` and `x_half2.mrc` and the
    curve `x_fsc.star` come with `halves` only, and the job's record in the folder `x_job`.

    Example: halfmap reconstruct --particles refined/particles.star --symmetry C4 --halves --out
    map.mrc

    Raises:
        InputError: any bad input, in one line; a file that would be written exists.
    """
    arguments = locals()
    folder, target = _places(Path(out), resume=resume)
    arguments["out"] = target or folder  # which the folder alone does not tell
    if target is not None and not (overwrite or resume):
        _refuse_existing(target, halves=halves)
    with open_job(reconstruct, arguments, folder=folder) as run:
        job, progress, where = run.job, run.progress, run.device
        data = _inputs.read_particles(
            particles,
            data_dir=data_dir,
            ctf=ctf,
            pixel_size_angstrom=pixel_size_angstrom,
            box=box,
            passthrough=passthrough,
            contrast=contrast,
        )
        _inputs.require_orientations(data, "reconstruct")
        radius_px = _inputs.particle_radius_px(diameter_angstrom, data, None)
        operators = len(point_group(symmetry))
        size = JobSize(data.box, 3, 1, operators=operators, images=len(data), iterates=False)
        _setup.batch_size(size, memory=memory, device=where)
        solvent = _inputs.solvent_mask(
            mask, data, radius_px, dimensions=3, device=where, progress=progress
        )
        data, half = _inputs.set_aside_bad_images(
            data, _halves.halves_at_known_poses(data, seed, progress), job, progress
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
            iterates=False,
        )
        job.update(estimated_memory_bytes=size.least_bytes(problem.batch_size))
        tell_contrast(problem, progress)
        settings = Settings(
            SearchSettings(problem.specimen),
            0.143,
            reference_mask=solvent,
            fsc_mask=solvent,
            wiener_constant=wiener_constant,
        )
        used = torch.nonzero(half >= 0)[:, 0]
        noise = broadcast_object(
            initial_noise(
                data,
                used,
                problem.plane,
                problem.n_groups,
                problem.images,
                batch_size=problem.batch_size,
            )
        )
        poses = _inputs.poses_of(data).in_one_class()
        sums = _summed(problem, poses, noise, job, progress)
        final = final_maps(problem, settings, sums, noise, fsc_mask(problem, settings, mask))
        if mask is None:
            progress.start_stage("mask", 0)
            final = in_own_mask(final, data.pixel_size_angstrom)
        words = made_of(job, len(used))
        _write(final, data.pixel_size_angstrom, job, target, halves=halves, words=words)
        job.update(resolution_angstrom=final.resolutions_angstrom[0], images=len(used))
        if target is not None:
            written = _written(target, halves=halves)
            job.update(files=[name for name in written if target.with_name(name).exists()])
        job.path(CHECKPOINT).unlink(missing_ok=True)  # large, and of no use beside the maps
    map_path = target or job.path("map.mrc")
    return refinement_result(problem, final, folder=folder, map_path=map_path)


def _places(out: Path, *, resume: bool) -> tuple[Path, Path | None]:
    """The job folder, and the map beside it where that is what was asked for."""
    if resume and out.is_dir():  # halfmap resume knows the folder only
        asked = Path(str(read_job(out)["parameters"].get("out") or out))
        return out, out.parent / asked.name if asked.suffix == ".mrc" else None
    if out.suffix == ".mrc":
        return out.with_name(f"{out.stem}_job"), out
    if out.suffix.lower() in _NOT_A_FOLDER:
        raise InputError(
            f"--out {out}: expected the name of a map to write, ending in .mrc, or of a job folder"
        )
    return out, None


def _written(target: Path, *, halves: bool) -> list[str]:
    """Names of the files beside the job's folder, the map first."""
    names = [target.name, f"{target.stem}.png"]
    if halves:
        names += [
            f"{target.stem}_{rest}"
            for rest in ("half1.mrc", "half2.mrc", "mask.mrc", "fsc.star", "fsc.png")
        ]
    return names


def _refuse_existing(target: Path, *, halves: bool) -> None:
    """Refuse to replace a file that the job would write."""
    for name in _written(target, halves=halves):
        if target.with_name(name).exists():
            raise InputError(
                f"{target.with_name(name)}: the file exists; choose another name with --out, or "
                "--overwrite it"
            )


def _summed(
    problem: Problem, poses: Poses, noise: Float[Tensor, "G S"], job: Job, progress: Progress
) -> list[Sums]:
    """The sums of both halves, from the checkpoint on, which is saved after each half."""
    progress.start_stage("final maps", int((problem.half >= 0).sum()))
    plane, sums = problem.plane, []
    if (saved := only_first(job.load_checkpoint)) is not None:
        arrays, meta = saved
        for h in range(int(meta["iteration"])):
            num, den = (
                torch.from_numpy(arrays[f"half{h + 1}_{name}"]).to(noise.device)
                for name in ("num", "den")
            )
            sums.append(Sums(num, den, problem.particles.box, plane.radius, problem.dimensions))
            progress.advance(int((problem.half == h).sum()))
        progress.note(f"going on after half {len(sums)}")
    for h in range(len(sums), 2):
        sums += sum_at_poses(problem, poses, noise, only_half=h, advance=progress.advance)
        job.event(iteration=h + 1, half=h + 1, images=int((problem.half == h).sum()))
        arrays = {
            f"half{i}_{name}": getattr(half, name).cpu().numpy()
            for i, half in enumerate(sums, start=1)
            for name in ("num", "den")
        }
        job.save_checkpoint(arrays, {"iteration": h + 1})
    return sums


def _write(
    final: FinalMaps,
    pixel_size_angstrom: float,
    job: Job,
    target: Path | None,
    *,
    halves: bool,
    words: str,
) -> None:
    """The maps, half maps, curve and pictures, in the job folder or beside it."""
    if target is not None:
        stem = str(target.with_suffix(""))
        write_map_files(
            final,
            0,
            pixel_size_angstrom,
            map_path=target,
            prefix=f"{stem}_",
            pictures=f"{target.parent}/",
            words=words,
            with_halves=halves,
        )
        return
    write_map_files(
        final,
        0,
        pixel_size_angstrom,
        map_path=job.path("map.mrc"),
        prefix=f"{job.folder}/",
        pictures=f"{job.path('pictures/map.png').parent}/",
        words=words,
    )
