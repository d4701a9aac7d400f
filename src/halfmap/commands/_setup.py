"""What every job does before its first iteration: device and threads, options checked, memory, the
engine's problem."""

import math
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from halfmap.commands import _halves, _inputs
from halfmap.distributed import size_on_host
from halfmap.engine.memory import JobSize
from halfmap.engine.preprocessing import ImageSettings, background
from halfmap.engine.problem import Problem
from halfmap.engine.ramps import have_ramps, remove_planes
from halfmap.errors import InputError
from halfmap.particles import Particles
from halfmap.pose_search.gauss_newton import Restraint
from halfmap.pose_search.refinement import SearchSettings
from halfmap.symmetries import Specimen, point_group
from halfmap.workspace.job import Job
from halfmap.workspace.machine import use_threads
from halfmap.workspace.memory import allowed_memory_bytes
from halfmap.workspace.progress import Progress

_LARGEST_BATCH = 256
# A choice: images are normalised if, in the median of a few hundred, their background's mean is
# within a fifth of 0 and its deviation within a quarter of 1.
NORMALISED_MEAN, NORMALISED_SPREAD, IMAGES_LOOKED_AT = 0.2, (0.8, 1.25), 300
# Choices: sets are joined that were normalised apart. So the median of each optics group of so many
# may be off by no more than a deviation, and a factor of 2; and of all images no more than a tenth,
# if nearly all that are not near 1 are off by as much: images without noise are in between
OF_A_GROUP, MEAN_OFF, FACTOR_OFF, SHARE_OFF, OF_A_SET = 5, 1.0, 2.0, 0.1, 0.8
# of the machine's memory, that a job with folds may need, and one without: folds are given up
# one by one as resolution grows
MOST_FOR_FOLDS, MOST_WITHOUT = 0.75, 0.5
# of images together: more of them in a batch save next to nothing
LARGEST_BATCH_BYTES = 1 << 30
ANGULAR_STEP_DEG = 7.5  # of the finer grid, if none is given


def use_device(name: str, threads: int | None) -> torch.device:
    """The torch device of `--device` (`auto`: CUDA, else CPU; MPS only by name: it has no float64),
    with torch's and numba's threads set.

    Raises:
        InputError: the device is not there, or threads is not positive.
    """
    use_threads(threads)
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = "cuda" if available["cuda"] else "cpu"
    if not available.get(name, False):
        raise InputError(
            f"--device {name}: expected one that this machine has "
            f"({', '.join(k for k, ok in available.items() if ok)}), or auto"
        )
    return torch.device(name)


def open_problem(
    particles: Particles,
    job: Job,
    progress: Progress,
    *,
    radius_px: float,
    symmetry: str,
    dimensions: Literal[2, 3],
    n_classes: int,
    matched_to: Literal["own", "other", "shared"],
    ctf: bool,
    learn_norm_and_scale: bool,
    memory: int | None,
    seed: int,
    device: torch.device,
    folds: int = 1,
    angular_step_deg: float = ANGULAR_STEP_DEG,
) -> Problem:
    """The engine's problem of a job: what needs no image is checked first, then bad images are set
    aside and halves made.

    Raises:
        InputError: more classes than half the images, too little memory, or no usable image in one
            of the halves.
    """
    if n_classes > 1:
        check_classes(n_classes, len(particles))
    size = JobSize(
        particles.box,
        dimensions,
        n_classes,
        folds,
        operators=len(point_group(symmetry)),
        makes_final_maps=matched_to != "shared",
        images=len(particles),
        radius_px=radius_px,
        angular_step_deg=angular_step_deg,
    )
    folds = affordable_folds(size, memory=memory, device=device, progress=progress)
    particles, half = _inputs.set_aside_bad_images(
        particles, _halves.divide_into_halves(particles, seed, progress=progress), job, progress
    )
    if n_classes > 1:
        check_classes(n_classes, int((half >= 0).sum()))
    return make_problem(
        particles,
        half,
        device=device,
        radius_px=radius_px,
        symmetry=symmetry,
        dimensions=dimensions,
        n_classes=n_classes,
        matched_to=matched_to,
        ctf=ctf,
        learn_norm_and_scale=learn_norm_and_scale,
        memory=memory,
        progress=progress,
        fold=_halves.divide_into_folds(particles, folds, seed) if folds > 1 else None,
        n_folds=folds,
        angular_step_deg=angular_step_deg,
    )


def make_problem(
    particles: Particles,
    half: Int[Tensor, " N"],
    *,
    device: torch.device,
    radius_px: float,
    symmetry: str,
    dimensions: int,
    n_classes: int,
    matched_to: Literal["own", "other", "shared"],
    ctf: bool,
    learn_norm_and_scale: bool,
    memory: int | None,
    progress: Progress,
    fold: Int[Tensor, " N"] | None = None,
    n_folds: int = 1,
    angular_step_deg: float = ANGULAR_STEP_DEG,
    iterates: bool = True,
) -> Problem:
    """The engine's problem, with the batch size that the memory allows; tells what the job will
    need, and the data set's notes."""
    for note in particles.notes:
        progress.note(note)
    specimen = Specimen(point_group(symmetry).to(device), radius_px)
    size = JobSize(
        particles.box,
        dimensions,
        n_classes,
        n_folds,
        operators=len(specimen.symmetry),
        makes_final_maps=matched_to != "shared",
        images=int((half >= 0).sum()),
        radius_px=radius_px,
        angular_step_deg=angular_step_deg,
        iterates=iterates,
    )
    batch = batch_size(size, memory=memory, device=device)
    least, most = size.least_bytes(batch), size.least_bytes(batch, size.largest_radius)
    finest = particles.box * particles.pixel_size_angstrom / size.largest_radius
    later = f", {gigabytes(most)} when it is scored to {finest:.3g} A" if most > 1.1 * least else ""
    progress.note(
        f"{len(particles)} images of {particles.box} pixels ({particles.pixel_size_angstrom:.3g} "
        f"A) on {device}; needs about {gigabytes(least)} of memory{later}, batches of {batch}"
    )
    if learn_norm_and_scale and bool(
        particles.transfer.premultiplied[torch.nonzero(half >= 0)[:, 0].numpy()].any()
    ):
        learn_norm_and_scale = (
            False  # what their makers weighted by dose and tilt, scales would weight again
        )
        progress.note("CTF-premultiplied images: norm corrections and group scales are not learnt")
    settings = image_settings(particles, half, radius_px, progress, ctf=ctf, device=device)
    return Problem(
        particles,
        settings,
        half,
        matched_to,
        specimen,
        dimensions,
        n_classes,
        batch,
        learn_norm_and_scale,
        fold=fold,
        n_folds=n_folds,
        memory_bytes=_budget(memory, device, n_folds),
        angular_step_deg=angular_step_deg,
    )


def image_settings(
    particles: Particles,
    half: Int[Tensor, " N"],
    radius_px: float,
    progress: Progress,
    *,
    ctf: bool,
    device: torch.device,
) -> ImageSettings:
    """How images are prepared, by what a few hundred of them look like; the user is told."""
    used = torch.nonzero(half >= 0)[:, 0].numpy()
    sample = used[:: max(1, len(used) // IMAGES_LOOKED_AT)]
    images = torch.from_numpy(particles.images(sample))
    if (kept := particles.noise_kept(sample)) is not None:  # on a coarser grid, there is less
        images = images / torch.from_numpy(kept).float()[:, None, None]
    ramps = have_ramps(images, radius_px)
    if ramps:
        images = remove_planes(images, radius_px)
        progress.note(
            "images have ramps: a plane fitted outside the particle is taken off each of them"
        )
    scaled = needs_normalising(particles, sample, images, radius_px, progress)
    return ImageSettings(radius_px, ctf, scaled, device, remove_ramps=ramps)


def needs_normalising(
    particles: Particles,
    sample: np.ndarray,
    images: Float[Tensor, "B N N"],
    radius_px: float,
    progress: Progress,
) -> bool:
    """Whether each image must be divided by its background's standard deviation: not where that is
    1 already in the `images` looked at, those of the rows `sample`, and not in CTF-premultiplied
    stacks, where it depends on the image's own CTF. The user is told."""
    mean, spread = background(images, radius_px)
    group = torch.from_numpy(particles.optics_group[sample])
    groups = [
        group == one
        for one, n in zip(*group.unique(return_counts=True), strict=True)
        if n >= OF_A_GROUP
    ]
    in_the_middle = bool(_near_normalised(mean.abs().median(), spread.median()))
    apart = any(_off(mean[of_it].median(), spread[of_it].median()) for of_it in groups)
    if in_the_middle and not apart and not _hold_a_set_apart(mean, spread):
        return False
    if particles.transfer.premultiplied.any():
        progress.note(
            "images are not normalised, but CTF-premultiplied: their scale is kept, only the "
            "background's mean is removed"
        )
        return False
    which, found = "images", f"mean {mean.median():.3g}, deviation {spread.median():.3g}"
    if in_the_middle:
        which, found = "some images", f"deviation {spread.min():.3g} to {spread.max():.3g}"
    progress.note(f"{which} are not normalised (background {found}): each is brought to 0 and 1")
    return True


def _near_normalised(mean: Float[Tensor, "*B"], spread: Float[Tensor, "*B"]) -> Bool[Tensor, "*B"]:
    low, high = NORMALISED_SPREAD
    return (mean.abs() < NORMALISED_MEAN) & (low < spread) & (spread < high)


def _off(mean: Float[Tensor, "*B"], spread: Float[Tensor, "*B"]) -> Bool[Tensor, "*B"]:
    return (mean.abs() > MEAN_OFF) | (spread > FACTOR_OFF) | (spread < 1 / FACTOR_OFF)


def _hold_a_set_apart(mean: Float[Tensor, " B"], spread: Float[Tensor, " B"]) -> bool:
    """Whether of the images some are off, and hardly any between those and the others."""
    off, near = _off(mean, spread), _near_normalised(mean, spread)
    return int(off.sum()) > max(SHARE_OFF * len(off), OF_A_SET * int((~near).sum()))


def affordable_folds(
    size: JobSize, *, memory: int | None, device: torch.device, progress: Progress
) -> int:
    """As many folds as asked for, or half as many, and so on, until the memory is enough; the user
    is told.

    Raises:
        InputError: not even one image fits without folds.
    """
    folds = fewer = size.folds
    while fewer > 1:
        if size.with_folds(fewer).least_bytes(1) <= _budget(memory, device, fewer):
            break
        fewer //= 2
    batch_size(size.with_folds(max(fewer, 1)), memory=memory, device=device)
    if fewer < folds:
        progress.note(
            f"the memory is enough for {fewer} of {folds} folds; --memory gives more"
            if fewer > 1
            else f"the memory is not enough for {folds} folds: images meet themselves in the "
            "references, and the largest weights in particles.star are too large"
        )
    return max(fewer, 1)


def batch_size(size: JobSize, *, memory: int | None, device: torch.device) -> int:
    """Images per batch that `memory` (bytes; half of the machine's if None) allows. Needs no image:
    ask before they are read.

    Raises:
        InputError: not even one image fits.
    """
    budget, needed = _budget(memory, device, size.folds), size.least_bytes(1)
    if needed > budget:
        raise InputError(_too_little(size, needed, budget, memory, device))
    largest = min(_LARGEST_BATCH, LARGEST_BATCH_BYTES // size.image_bytes(size.largest_radius))
    return next(n for n in range(max(1, largest), 0, -1) if size.least_bytes(n) <= budget)


def _too_little(
    size: JobSize, needed: int, budget: int, memory: int | None, device: torch.device
) -> str:
    """What is asked, what there is, and what to change."""
    box = smaller = size.box
    while smaller > 2 and replace(size, box=smaller).least_bytes(1) > budget:
        smaller -= 2
    given = (
        "--memory allows"
        if memory is not None
        else f"half of this machine's {gigabytes(_machine_memory(device))} is"
    )
    classes = f" with {size.n_classes} classes" if size.n_classes > 1 else ""
    return (
        f"--memory: images of {box} pixels{classes} need at least {gigabytes(needed)}, {given} "
        f"{gigabytes(budget)}; give --memory {math.ceil(needed / 1e8) / 10:g}GB if the machine has "
        f"that much free, work on a coarser grid with --box {smaller}"
        + (", or ask for fewer classes" if size.n_classes > 1 else "")
    )


def _budget(memory: int | None, device: torch.device, folds: int) -> int:
    """What was asked for; else half of the machine's memory, or with folds `MOST_FOR_FOLDS`."""
    if memory is not None:
        return memory
    return int((MOST_FOR_FOLDS if folds > 1 else MOST_WITHOUT) * _machine_memory(device))


def _machine_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return allowed_memory_bytes() // size_on_host()


def gigabytes(size: float) -> str:
    """In words."""
    return f"{size / 1e9:.1f} GB"


def search_settings(
    problem: Problem,
    angular_step_deg: float,
    shift_range_px: float,
    shift_step_px: float,
    *,
    local_range_deg: float | None,
) -> SearchSettings:
    """What a search covers; with `local_range_deg` poses are held near those given by a Gaussian
    prior.

    The range is three standard deviations of the rotation (RELION's convention for local searches);
    the shift is allowed as much as that rotation moves the particle's rim, and not more than the
    shift range.
    """
    radius_px, held = problem.specimen.radius_px, None
    if local_range_deg is not None:
        held = Restraint(
            local_range_deg / 3,
            max(0.01, min(shift_range_px, math.radians(local_range_deg) * radius_px)) / 3,
        )
    return SearchSettings(
        problem.specimen,
        angular_step_deg=angular_step_deg,
        shift_range_px=shift_range_px,
        shift_step_px=shift_step_px,
        restraint=held,
    )


def check_classes(classes: int, n_images: int) -> None:
    """Refuse more classes than half the images.

    Raises:
        InputError: naming the option.
    """
    if 2 * classes > n_images:
        raise InputError(
            f"--classes {classes}: expected at most half the number of usable images, "
            f"{n_images // 2}"
        )
