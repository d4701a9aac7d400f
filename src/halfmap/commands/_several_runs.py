"""Several runs of `halfmap abinitio` from different random starts: each in a folder of its own, the
likeliest kept, the others laid onto it and compared."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from halfmap.commands._frames import agreement
from halfmap.commands._initial_maps import AbInitioResult
from halfmap.commands._summaries import angstrom, map_name
from halfmap.distributed import only_first
from halfmap.io.mrc import read_map, write_map
from halfmap.io.star import read_star, write_star
from halfmap.plots.curves import save_fsc_plot
from halfmap.resolution import Curve
from halfmap.workspace.job import Job, read_job
from halfmap.workspace.progress import Progress, drawing


def best_of(
    single_run: Callable[..., AbInitioResult],
    runs: int,
    parameters: dict[str, Any],
    job: Job,
    progress: Progress,
) -> AbInitioResult:
    """Each run in a folder of its own inside the job's, with a seed of its own; the maps and
    particles of the likeliest are the job's. All maps are laid onto those, and their FSC is told.
    """
    folders = [job.folder / f"run{r + 1:03d}" for r in range(runs)]
    done: list[AbInitioResult] = []
    for r, folder in enumerate(folders):
        progress.note(f"run {r + 1} of {runs}")
        again = only_first(partial(_was_begun, folder))
        single = {**parameters, "runs": 1, "seed": parameters["seed"] + r}
        done.append(single_run(out=folder, overwrite=not again, resume=again, **single))
        job.save_checkpoint(
            {}, {"iteration": 0, "runs": r + 1}
        )  # from now on there is something to go on from
    return only_first(lambda: _keep_best(folders, done, parameters, job, progress))


def _was_begun(folder: Path) -> bool:
    """Whether a run is there to go on with; what a run left that was killed before is removed."""
    if (folder / "job.json").exists():
        return True
    shutil.rmtree(folder, ignore_errors=True)
    return False


def _keep_best(
    folders: list[Path],
    done: list[AbInitioResult],
    parameters: dict[str, Any],
    job: Job,
    progress: Progress,
) -> AbInitioResult:
    """The maps and particles of the likeliest run as the job's, and all maps laid onto them."""
    runs = len(done)
    likelihoods = tuple(run.log_likelihoods[0] for run in done)
    best = max(range(runs), key=lambda r: likelihoods[r])
    for path in [
        *sorted(folders[best].glob("*.mrc")),
        folders[best] / "particles.star",
    ]:
        shutil.copyfile(path, job.path(path.name))
    _write_table(folders[best] / "classes.star", job)
    for path in sorted((folders[best] / "pictures").glob("*.png")):
        shutil.copyfile(path, job.path(f"pictures/{path.name}"))
    progress.note(
        f"best of {runs} runs: {best + 1}, by mean log likelihood "
        f"({', '.join(f'{value:.1f}' for value in likelihoods)})"
    )
    agreed = _compare(done, best, parameters["diameter_angstrom"], job, progress)
    results = read_job(folders[best])["results"]
    job.update(**results, best_run=best + 1, log_likelihoods=likelihoods, agreement_angstrom=agreed)
    return replace(
        done[best], folder=job.folder, log_likelihoods=likelihoods, agreement_angstrom=agreed
    )


def _write_table(of_run: Path, job: Job) -> None:
    """The run's table of classes as the job's, with the names of the job's maps."""
    blocks = read_star(of_run).blocks
    table = blocks["model_classes"]
    names = [job.path(Path(one).name) for one in table.strings("rlnReferenceImage")]
    named = table.with_columns({"rlnReferenceImage": [str(one) for one in names]})
    write_star(job.path("classes.star"), {**blocks, "model_classes": named})


def _compare(
    done: list[AbInitioResult],
    best: int,
    diameter_angstrom: float | None,
    job: Job,
    progress: Progress,
) -> tuple[tuple[float, float], ...]:
    """Lay the maps of every run onto the best run's, write them, and tell where their FSC falls
    below 0.5 and 0.143, up to where images were scored: what maps show beyond, no image has
    confirmed."""
    classes = len(done[best].sizes)
    names = [map_name(k, classes) for k in range(classes)]
    agreed, curves = [], {}
    read = [[read_map(run.folder / f"{name}.mrc") for name in names] for run in done]
    pixel = read[best][0][1]
    box = read[best][0][0].shape[0]
    diameter_px = 0.9 * box if diameter_angstrom is None else diameter_angstrom / pixel
    for r in range(len(done)):
        told = [(done[best].scored_to_angstrom, done[best].scored_to_angstrom)]
        for k, name in enumerate(names if r != best else []):
            if not done[best].sizes[k]:
                continue
            found = agreement(
                torch.from_numpy(read[best][k][0]),
                [torch.from_numpy(volume) for volume, _ in read[r]],
                pixel_size_angstrom=pixel,
                radius=round(box * pixel / done[best].scored_to_angstrom),
                diameter_px=diameter_px,
            )
            told.append(found.resolutions_angstrom)
            label = (
                f"run {r + 1}" if classes == 1 else f"run {r + 1}, {names[found.other]} on {name}"
            )
            curves[label] = _up_to(found.curve, done[best].scored_to_angstrom)
            at_half, at_0143 = (
                f"{max(value, done[best].scored_to_angstrom):.1f} A" for value in told[-1]
            )
            hand = "its mirror image laid" if found.mirrored else "laid"
            progress.note(
                f"{label}: {hand} onto run {best + 1}: FSC 0.5 at {at_half}, 0.143 at {at_0143}"
            )
            write_map(
                job.path(f"run{r + 1:03d}.mrc" if classes == 1 else f"run{r + 1:03d}_{name}.mrc"),
                found.laid.numpy(),
                pixel,
            )
        agreed.append((max(a for a, _ in told), max(b for _, b in told)))
    with drawing("runs_fsc.png"):
        scored = angstrom(done[best].scored_to_angstrom)
        save_fsc_plot(
            job.path("pictures/runs_fsc.png"),
            curves,
            title=f"maps laid onto run {best + 1}, up to {scored}, as far as images were scored",
            reference=0.5,
        )
    return tuple(agreed)


def _up_to(curve: Curve, finest_angstrom: float) -> Curve:
    """The shells of a curve that images have been compared on: of the rest maps only repeat what
    they started from."""
    shells = round(curve.box * curve.pixel_size_angstrom / finest_angstrom) + 1
    return replace(curve, correlation=curve.correlation[: max(2, shells)])
