"""What every job does before its first iteration: device and threads, particles and their faults, halves, references, masks, memory."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.engine.images import ImageSettings, background
from halfmap.engine.local import Restraint
from halfmap.engine.loop import Problem
from halfmap.engine.search import SearchSettings
from halfmap.engine.state import Poses
from halfmap.errors import InputError
from halfmap.fourier import largest_radius, lowpass
from halfmap.io.mrc import open_stack, read_density, same_pixel_size
from halfmap.jobs import SET_ASIDE, Job
from halfmap.machine import use_threads
from halfmap.mask import read_mask, soft_sphere
from halfmap.particles import Particles, load_particles
from halfmap.progress import Progress
from halfmap.projection import PADDING, grid_shape
from halfmap.so3 import euler_to_matrix
from halfmap.symmetry import symmetry_matrices

MASK_EDGE_PX = 5.0
_IMAGES_CHECKED_AT_ONCE = 1000
_LARGEST_BATCH = 256
STACK_SUFFIXES = (".mrcs", ".mrc", ".st")


def use_device(name: str, threads: int | None) -> torch.device:
    """The torch device of `--device` (`auto`: CUDA, else CPU; MPS only by name: it has no float64), with torch's and numba's threads set.

    Raises:
        InputError: the device is not there, or threads is not positive.
    """
    use_threads(threads)
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = "cuda" if available["cuda"] else "cpu"
    if not available.get(name, False):
        raise InputError(
            f"--device {name}: expected one that this machine has ({', '.join(k for k, ok in available.items() if ok)}), or auto"
        )
    return torch.device(name)


def read_particles(path: str | Path, *, data_dir: str | Path | None, ctf: bool, pixel_size_angstrom: float | None = None) -> Particles:
    """The data set, with what it needs to be matched against references; `pixel_size_angstrom` is for bare stacks whose header has none.

    Raises:
        InputError: as `load_particles`; or `ctf` is wanted and the file has none.
    """
    bare = Path(path).suffix.lower() in STACK_SUFFIXES
    if bare and pixel_size_angstrom is None and open_stack(path).pixel_size_angstrom <= 0:
        raise InputError(f"{path}: the header has no pixel size; give it with --pixel-size (halfmap class2d), or write it into the header")
    if pixel_size_angstrom is not None:
        if Path(path).suffix.lower() in (".star", ".cs"):
            raise InputError(f"--pixel-size {pixel_size_angstrom:g}: is for bare stacks; {path} tells its own, correct it there")
        particles = Particles.from_stack(path, pixel_size_angstrom=pixel_size_angstrom)
    else:
        particles = load_particles(path, data_dir=data_dir, use_ctf=ctf)
    if ctf and not particles.has_ctf:
        raise InputError(
            f"{path}: no CTF columns (rlnDefocusU ...) found; add them, or say --no-ctf where images have no CTF, as class averages"
        )
    return particles


def find_bad_images(particles: Particles, half: Int[Tensor, " N"], progress: Progress) -> tuple[Int[Tensor, " N"], dict[int, str]]:
    """Halves with -1 for images that hold NaN, are constant or have wild pixels, and the reason by row; the job goes on without them.

    Raises:
        InputError: no image is left in one of the halves, or there never was one.
    """
    if not (bool((half == 0).any()) and bool((half == 1).any())):
        raise _one_half_only(particles, half)
    bad: dict[int, str] = {}
    for start in range(0, len(particles), _IMAGES_CHECKED_AT_ONCE):
        bad |= particles.find_bad_images(np.arange(start, min(start + _IMAGES_CHECKED_AT_ONCE, len(particles))))
    half = half.clone()
    if bad:
        rows = sorted(bad)
        half[torch.tensor(rows)] = -1
        progress.note(f"{len(bad)} of {len(particles)} images set aside, for example row {rows[0] + 1}: {bad[rows[0]]}")
    for value in (0, 1):
        if not bool((half == value).any()):
            first = f"the first: row {rows[0] + 1}, {bad[rows[0]]}"
            raise InputError(f"{particles.path}: no usable image in half {value + 1} among {len(particles)}; {first}")
    return half, bad


def _one_half_only(particles: Particles, half: Int[Tensor, " N"]) -> InputError:
    """What is to be said where all images are in one half."""
    if (particles.half_set > 0).all() and len(particles) > 1:
        return InputError(
            f"{particles.path}: column _rlnRandomSubset is {int(half[0]) + 1} in all {len(particles)} rows, expected 1 and 2; "
            "remove the column, and the halves are drawn at random"
        )
    return InputError(f"{particles.path}: no image in one of the halves: at least 2 images are needed, {len(particles)} found")


def set_aside_bad_images(particles: Particles, half: Int[Tensor, " N"], job: Job, progress: Progress) -> Int[Tensor, " N"]:
    """As `find_bad_images`, and those set aside are listed with the reason in the job's `set_aside.star`."""
    half, bad = find_bad_images(particles, half, progress)
    if bad:
        rows = np.array(sorted(bad))
        reasons = np.array([bad[r].replace(" ", "_") for r in rows])
        particles.take(rows).with_results(extra={"halfmapSetAside": reasons}).write_star(job.path(SET_ASIDE))
    return half


def divide_into_halves(particles: Particles, seed: int, *, anew: bool = False) -> Int[Tensor, " N"]:
    """0 or 1 per particle: the file's rlnRandomSubset where every row has it and it is not to be drawn `anew`, else at random.

    Images of one physical particle (tilts, named in rlnTomoParticleName) stay together.
    """
    if (particles.half_set > 0).all() and not anew:
        return torch.from_numpy(particles.half_set.astype(np.int64)) - 1
    rng = np.random.default_rng([seed, 1])
    unit = np.arange(len(particles))
    if "rlnTomoParticleName" in particles.table:
        unit = np.unique(particles.table.strings("rlnTomoParticleName"), return_inverse=True)[1]
    order = rng.permutation(int(unit.max()) + 1)
    return torch.from_numpy(order[unit] % 2)


def make_problem(
    particles: Particles,
    half: Int[Tensor, " N"],
    *,
    device: torch.device,
    radius_px: float,
    symmetry: str,
    dimensions: int,
    n_classes: int,
    independent_halves: bool,
    ctf: bool,
    memory: int | None,
    progress: Progress,
) -> Problem:
    """The engine's problem, with the batch size that the memory allows; tells what the job will need, and the data set's notes."""
    for note in particles.notes:
        progress.note(note)
    matrices = symmetry_matrices(symmetry).float().to(device) if dimensions == 3 else torch.eye(3, device=device)[None]
    fixed, per_image = memory_needed(particles.box, dimensions, n_classes, independent_halves=independent_halves)
    batch = batch_size(
        particles.box, dimensions=dimensions, n_classes=n_classes, independent_halves=independent_halves, memory=memory, device=device
    )
    progress.note(
        f"{len(particles)} images of {particles.box} pixels ({particles.pixel_size_angstrom:.3g} A) on {device}; "
        f"needs about {_gb(fixed + batch * per_image)} of memory, batches of {batch}"
    )
    settings = ImageSettings(radius_px, ctf, needs_normalising(particles, half, radius_px, progress), device)
    return Problem(particles, settings, half, independent_halves, matrices, dimensions, n_classes, batch)


def needs_normalising(particles: Particles, half: Int[Tensor, " N"], radius_px: float, progress: Progress) -> bool:
    """Whether each image must be divided by its background's standard deviation: not where that is 1 already (a few hundred are looked at),
    and not in CTF-premultiplied stacks, where it depends on the image's own CTF. The user is told."""
    used = torch.nonzero(half >= 0)[:, 0].numpy()
    sample = used[:: max(1, len(used) // 300)]
    mean, spread = background(torch.from_numpy(particles.images(sample)), radius_px)
    if float(mean.abs().median()) < 0.2 and 0.8 < float(spread.median()) < 1.25:
        return False
    if particles.ctf_premultiplied[used].any():
        progress.note("images are not normalised, but CTF-premultiplied: their scale is kept, only the background's mean is removed")
        return False
    progress.note(
        f"images are not normalised (background mean {mean.median():.3g}, deviation {spread.median():.3g}): each is brought to 0 and 1"
    )
    return True


def memory_needed(box: int, dimensions: int, n_classes: int, *, independent_halves: bool) -> tuple[int, int]:
    """(fixed bytes, bytes per image of a batch): the grids of sums and references, transforms in the making, search tables."""
    grid = int(np.prod(grid_shape(largest_radius(box), dimensions)))
    sums = 2 * n_classes * grid * 12 * 2  # num and den of both halves, and once more while mates are added
    references = n_classes * grid * 8
    transforms = 4 * (PADDING * box) ** dimensions * 8
    density = 4 * n_classes * (2 if independent_halves else 1) * box**dimensions * 4
    return sums + references + transforms + density + (2 << 30) // (1 if dimensions == 3 else 8), 200 * box * box


def batch_size(box: int, *, dimensions: int, n_classes: int, independent_halves: bool, memory: int | None, device: torch.device) -> int:
    """Images per batch that `memory` (bytes; half of the machine's if None) allows. Needs no image: ask before they are read.

    Raises:
        InputError: not even one image fits.
    """
    fixed, per_image = memory_needed(box, dimensions, n_classes, independent_halves=independent_halves)
    budget = memory if memory is not None else _machine_memory(device) // 2
    if fixed + per_image > budget:
        raise InputError(f"--memory: a box of {box} with {n_classes} class(es) needs at least {_gb(fixed + per_image)}, got {_gb(budget)}")
    return int(min(_LARGEST_BATCH, (budget - fixed) // per_image))


def _machine_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def read_references(
    paths: Sequence[str | Path], particles: Particles, *, lowpass_angstrom: float, device: torch.device
) -> Float[Tensor, "K N N N"]:
    """Starting maps, low-passed.

    Raises:
        InputError: a map's box or pixel size (by more than 1 %) differs from the images', it is constant, or holds NaN.
    """
    volumes = []
    for path in paths:
        volume, pixel = read_density(path)
        box, expected = particles.box, particles.pixel_size_angstrom
        if volume.shape[0] != box:
            raise InputError(
                f"{path}: the map's box is {volume.shape[0]}, the images' is {box}; crop or pad the map, or resample it to {box} pixels"
            )
        if not same_pixel_size(pixel, expected):
            raise InputError(
                f"{path}: the map's pixel size is {pixel:.4g} A, the images' is {expected:.4g} A; resample the map or mend its header"
            )
        volumes.append(torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32)).to(device))
    return lowpass(torch.stack(volumes), lowpass_angstrom, particles.pixel_size_angstrom, dimensions=3)


def particle_radius_px(diameter_angstrom: float | None, particles: Particles, reference: Float[Tensor, "N N N"] | None) -> float:
    """Radius of the particle mask in pixels: half the diameter given; else what holds the reference, else 0.9 of the box.

    The reference is held where its density, low-passed, exceeds a tenth of its maximum; a tenth of the radius is added.

    Raises:
        InputError: the diameter does not fit into the box.
    """
    box, pixel = particles.box, particles.pixel_size_angstrom
    largest = box / 2 - 1
    if diameter_angstrom is not None:
        radius = diameter_angstrom / 2 / pixel
        if not 2 <= radius <= box / 2:
            raise InputError(f"--diameter {diameter_angstrom:g}: expected {4 * pixel:.3g} to {box * pixel:.4g} A, the width of the images")
        return min(radius, largest)
    if reference is None:
        return 0.45 * box
    axis = torch.arange(box, device=reference.device) - box // 2
    distance = (axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2).float().sqrt()
    reference = reference - reference.median()
    held = reference > 0.1 * reference.max()
    return float(min(1.1 * distance[held].max(), torch.tensor(0.47 * box)))


def solvent_mask(
    mask: str | Path | None, particles: Particles, radius_px: float, *, dimensions: Literal[2, 3], device: torch.device
) -> Float[Tensor, "*box"]:
    """The mask file given, or a soft sphere (circle) of the particle's radius."""
    if mask is not None:
        return read_mask(mask, particles.box, particles.pixel_size_angstrom).to(device)
    edge = min(MASK_EDGE_PX, max(1.0, particles.box / 2 - radius_px))
    return soft_sphere(particles.box, radius_px=radius_px, edge_px=edge, dimensions=dimensions).to(device)


def poses_of(particles: Particles) -> Poses:
    """The data set's poses; identity and zero where it has none."""
    n, pixel = len(particles), particles.pixel_size_angstrom
    rotations = euler_to_matrix(torch.from_numpy(particles.rotations_deg)).float()
    shifts = torch.from_numpy(particles.shift_angstrom / pixel).float()
    classes = torch.from_numpy(particles.class_number.astype(np.int64)) - 1
    return Poses(rotations, shifts, classes, torch.zeros(n))


def search_settings(
    problem: Problem, angular_step_deg: float, shift_range_px: float, shift_step_px: float, *, local_range_deg: float | None
) -> SearchSettings:
    """What a search covers; with `local_range_deg` poses are held near those given by a Gaussian prior.

    The range is three standard deviations of the rotation (RELION's convention for local searches); the shift is allowed as much as that
    rotation moves the particle's rim, and not more than the shift range.
    """
    radius_px, held = problem.images.particle_radius_px, None
    if local_range_deg is not None:
        held = Restraint(local_range_deg / 3, max(0.01, min(shift_range_px, math.radians(local_range_deg) * radius_px)) / 3)
    return SearchSettings(
        problem.symmetry,
        radius_px,
        angular_step_deg=angular_step_deg,
        shift_range_px=shift_range_px,
        shift_step_px=shift_step_px,
        restraint=held,
    )


def check_search(angular_step_deg: float | None, shift_range_px: float, seed: int, *, symmetry: str | None = None) -> None:
    """Refuse a search that cannot be made, before anything is read.

    Raises:
        InputError: naming the option.
    """
    if angular_step_deg is not None and not 3 <= angular_step_deg <= 30:
        raise InputError(f"--angular-step {angular_step_deg:g}: expected 3 to 30 degrees; poses are refined continuously from there")
    if not 0 <= shift_range_px < math.inf:
        raise InputError(f"--shift-range {shift_range_px:g}: expected 0 or more pixels")
    if seed < 0:
        raise InputError(f"--seed {seed}: expected 0 or more")
    if symmetry is not None:
        symmetry_matrices(symmetry)


def check_classes(classes: int, n_images: int) -> None:
    """Refuse more classes than half the images.

    Raises:
        InputError: naming the option.
    """
    if 2 * classes > n_images:
        raise InputError(f"--classes {classes}: expected at most half the number of usable images, {n_images // 2}")


def check_positive(**values: float | None) -> None:
    """Refuse options that must be positive numbers and are not.

    Raises:
        InputError: naming the option.
    """
    for name, value in values.items():
        if value is not None and not (np.isfinite(value) and value > 0):
            raise InputError(f"--{name.replace('_', '-')} {value}: expected a positive number")
