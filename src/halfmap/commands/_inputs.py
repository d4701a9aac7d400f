"""What goes into a job: particles and their faults, halves, starting references, radius and
masks."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.commands._summaries import counted
from halfmap.distributed import gather_objects, my_share
from halfmap.engine.preprocessing import EDGE_PX
from halfmap.engine.state import Poses, known_poses
from halfmap.errors import InputError
from halfmap.fourier import lowpass
from halfmap.image_grids import ImageGrid
from halfmap.io.mrc import open_stack, read_density, read_map, same_pixel_size
from halfmap.io.relion import SAME_PIXEL_SIZE
from halfmap.masks import inside_box, reaches_edge, read_mask, soft_sphere
from halfmap.particles import STACK_SUFFIXES, Contrast, Particles, load_particles
from halfmap.resampling import resample_volume
from halfmap.so3 import euler_to_matrix
from halfmap.workspace.job import SET_ASIDE, Job
from halfmap.workspace.progress import Progress

SYMMETRY_COPY = "halfmapSymmetryCopy"  # column of `expand`: which mate, from 1
_IMAGES_CHECKED_AT_ONCE = 1000
UNTOLD_PIXEL_ANGSTROM = 1.0  # of a header whose program knows no pixel size
# of a reference: its power over the noise's must be a number in single precision
LARGEST_GREY = 1e8
# A choice: of a reference, what exceeds a tenth of its maximum is held to be particle, above what a
# low-pass leaves around it; a margin of a tenth of the radius is for what is fainter.
HELD_DENSITY, RADIUS_MARGIN = 0.1, 1.1
# A choice, as shares of the box: without a reference 0.9 of it across; never so wide that the
# mask's edge has no room (a pixel or two)
UNKNOWN_RADIUS, LARGEST_RADIUS = 0.45, 0.47


def read_particles(
    path: str | Path,
    *,
    data_dir: str | Path | None,
    ctf: bool,
    pixel_size_angstrom: float | None = None,
    box: int | None = None,
    passthrough: str | Path | Sequence[str | Path] | None = None,
    contrast: Contrast | None = None,
) -> Particles:
    """The data set, with what it needs to be matched against references, on the grid asked for; of
    bare stacks `pixel_size_angstrom` is that of their images.

    Raises:
        InputError: as `load_particles`; or `ctf` is wanted and the file has none.
    """
    bare = Path(path).suffix.lower() in STACK_SUFFIXES
    if bare and pixel_size_angstrom is None and open_stack(path).pixel_size_angstrom <= 0:
        raise InputError(
            f"{path}: the header has no pixel size; give it with --pixel-size (halfmap class2d, "
            "abinitio), or write it into the header"
        )
    if bare and pixel_size_angstrom is not None:
        particles = Particles.from_stack(path, pixel_size_angstrom=pixel_size_angstrom)
        particles = particles.with_contrast(contrast).on_grid(box=box)
    else:
        particles = load_particles(
            path, data_dir=data_dir, use_ctf=ctf, passthrough=passthrough, contrast=contrast
        )
        particles = particles.on_grid(box=box, pixel_size_angstrom=pixel_size_angstrom)
    if ctf and not particles.has_ctf:
        raise InputError(
            f"{path}: no CTF columns (rlnDefocusU ...) found; add them, or say --no-ctf where "
            "images have no CTF, as class averages"
        )
    return particles


def require_orientations(particles: Particles, wanted_for: str) -> None:
    """Refuse a data set without orientations, in words for `wanted_for` ("--local").

    Raises:
        InputError: no poses, or in-plane ones: those of a 2D classification know no direction.
    """
    if particles.has_poses:
        return
    if particles.has_in_plane_poses:
        raise InputError(
            f"{particles.path}: {wanted_for} needs orientations; the poses here are in the plane, "
            "of a 2D classification, where rot and tilt are missing or 0 in every row; find "
            "orientations with halfmap refine (without --local) or abinitio"
        )
    raise InputError(
        f"{particles.path}: no poses (rlnAngleRot, rlnAngleTilt, rlnAnglePsi), which {wanted_for} "
        "needs; find them with halfmap refine (without --local) or abinitio"
    )


def examine_images(
    particles: Particles,
    half: Int[Tensor, " N"],
    progress: Progress,
    *,
    both_halves: bool = True,
) -> tuple[Particles, Int[Tensor, " N"], dict[int, str]]:
    """The data set with hot pixels mended as images are read; halves with -1 for images beyond
    repair, and the reason by row; the job goes on without them. Those that are -1 already are not
    looked at.

    Raises:
        InputError: no image is left in one of the halves, or there never was one; without
            `both_halves`, no image is left at all.
    """
    if both_halves and not (bool((half == 0).any()) and bool((half == 1).any())):
        raise _one_half_only(particles)
    bad: dict[int, str] = {}
    hot: dict[int, np.ndarray] = {}
    looked_at = torch.nonzero(half >= 0)[:, 0]
    for rows in my_share(looked_at).split(_IMAGES_CHECKED_AT_ONCE):
        examined = particles.examine_images(rows.numpy())
        bad |= examined.bad
        hot |= examined.hot
    for bad_there, hot_there in gather_objects((bad, hot)):
        bad |= bad_there
        hot |= hot_there
    if hot:
        progress.note(
            f"{counted(len(hot), 'image')} of {len(looked_at)} with hot pixels "
            f"({sum(len(pixels) for pixels in hot.values())}, for example row {min(hot) + 1}): "
            "mended from their neighbourhood"
        )
    half = half.clone()
    if bad:
        rows = sorted(bad)
        half[torch.tensor(rows)] = -1
        progress.note(
            f"{len(bad)} of {len(looked_at)} images set aside, for example row {rows[0] + 1}: "
            f"{bad[rows[0]]}"
        )
    if not both_halves and not bool((half >= 0).any()):
        raise InputError(
            f"{particles.path}: no usable image among {len(looked_at)}; the first: row "
            f"{rows[0] + 1}, {bad[rows[0]]}"
        )
    for value in (0, 1) if both_halves else ():
        if not bool((half == value).any()):
            first = f"the first: row {rows[0] + 1}, {bad[rows[0]]}"
            raise InputError(
                f"{particles.path}: no usable image in half {value + 1} among {len(particles)}; "
                f"{first}"
            )
    return particles.mended(hot), half, bad


def _one_half_only(particles: Particles) -> InputError:
    """What is to be said where all images are in one half."""
    column = "rlnRandomSubset"
    there = column in particles.table
    named = np.unique(particles.table.ints(column)) if there else np.empty(0, np.int64)
    images = np.stack([particles.image_file, particles.image_index])
    shown = len(np.unique(images, axis=1).T)
    if len(named) == 1 and named[0] > 0 and len(particles) > 1:
        return InputError(
            f"{particles.path}: column _{column} is {named[0]} in all {len(particles)} rows, "
            "expected 1 and 2; remove the column, and the halves are drawn at random"
        )
    if len(named) > 1 and shown > 1:
        return InputError(
            f"{particles.path}: every image of one half set is a copy of one in the other "
            f"({shown} images in {len(particles)} rows): halfmap select --unique takes copies out; "
            f"remove the column _{column}, and the halves are drawn at random"
        )
    copies = "" if shown == len(particles) else f" in {len(particles)} rows, the others are copies"
    return InputError(
        f"{particles.path}: no image in one of the halves: at least 2 images are needed, "
        f"{shown} found{copies}"
    )


def set_aside_bad_images(
    particles: Particles,
    half: Int[Tensor, " N"],
    job: Job,
    progress: Progress,
    *,
    both_halves: bool = True,
) -> tuple[Particles, Int[Tensor, " N"]]:
    """As `examine_images`, and those set aside are listed with the reason in the job's
    `set_aside.star`."""
    particles, half, bad = examine_images(particles, half, progress, both_halves=both_halves)
    if bad:
        rows = np.array(sorted(bad))
        reasons = np.array([bad[r].replace(" ", "_") for r in rows])
        particles.take(rows).with_results(extra={"halfmapSetAside": reasons}).write_star(
            job.path(SET_ASIDE)
        )
    return particles, half


def refuse_expanded(particles: Particles) -> None:
    """Refuse a search over all orientations of symmetry copies, which would give all copies of a
    particle one pose.

    Raises:
        InputError: the set was expanded by symmetry.
    """
    if SYMMETRY_COPY in particles.table:
        raise InputError(
            f"{particles.path}: is expanded by symmetry (column _{SYMMETRY_COPY}); a search over "
            "all orientations would find one pose for all copies: search locally, or give the "
            "particles before halfmap expand"
        )


def read_references(
    paths: Sequence[str | Path],
    particles: Particles,
    *,
    lowpass_angstrom: float,
    device: torch.device,
    progress: Progress,
) -> Float[Tensor, "K N N N"]:
    """Starting maps, low-passed; those of another box or pixel size (by more than 1 %) are brought
    to the images', and the user is told.

    Raises:
        InputError: a map of another box does not tell its pixel size, it is constant, or holds NaN.
    """
    volumes = []
    for path in paths:
        volume, pixel = read_density(path)
        if (largest := float(np.abs(volume).max())) > LARGEST_GREY:
            raise InputError(
                f"{path}: the map has values up to {largest:.3g}; as a reference it may have "
                f"{LARGEST_GREY:g} at most, else scores run out of single precision; scale it"
            )
        if not _on_grid_of(path, volume, pixel, particles, progress):
            if pixel <= 0:
                raise InputError(
                    f"{path}: the map's box is {volume.shape[0]}, the images' is {particles.box}, "
                    "and its header has no pixel size by which to resample it; write it there"
                )
            _tell_resampled(path, volume, pixel, particles, progress)
            volume = resample_volume(
                torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32)),
                pixel,
                box=particles.box,
                new_pixel_size_angstrom=particles.pixel_size_angstrom,
            ).numpy()
        volumes.append(torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32)).to(device))
    return lowpass(
        torch.stack(volumes), lowpass_angstrom, particles.pixel_size_angstrom, dimensions=3
    )


def _on_grid_of(
    path: str | Path, volume: np.ndarray, pixel: float, particles: Particles, progress: Progress
) -> bool:
    """Whether a map has the images' box and pixel size; a header that is not believed is told."""
    if volume.shape[0] != particles.box:
        return False
    if same_pixel_size(pixel, particles.pixel_size_angstrom):
        return True
    if header_is_untold(pixel):
        progress.note(not_believed(path, pixel, particles.pixel_size_angstrom))
        return True
    return False


def header_is_untold(pixel_size_angstrom: float) -> bool:
    """Whether the pixel size of a map of the images' box is what programs write that know none: 0,
    or 1 A."""
    untold = abs(pixel_size_angstrom - UNTOLD_PIXEL_ANGSTROM) <= SAME_PIXEL_SIZE
    return untold or pixel_size_angstrom <= 0


def not_believed(path: str | Path, pixel: float, images_pixel: float) -> str:
    """What is said of a map whose header is untold."""
    return (
        f"{path}: has the images' box, and a header of {pixel:g} A, which programs write that know "
        f"none: taken to be {images_pixel:.4g} A as the images are; if it is not, resample it with "
        "halfmap volume"
    )


def _tell_resampled(
    path: str | Path, volume: np.ndarray, pixel: float, particles: Particles, progress: Progress
) -> None:
    progress.note(
        f"{path}: {ImageGrid(volume.shape[0], pixel)}, resampled to the images' {particles.grid}"
    )


def read_job_mask(
    path: str | Path,
    particles: Particles,
    progress: Progress,
    *,
    moved: Callable[[Float[Tensor, "N N N"]], Float[Tensor, "N N N"]] | None = None,
) -> Float[Tensor, "N N N"]:
    """A mask file on the images' grid; of another box or pixel size, it is interpolated linearly,
    which keeps it between 0 and 1; `moved` lays it where it belongs; where the box cuts it then, it
    ends softly inside, for a hard edge correlates half maps by itself. The user is told.

    Raises:
        InputError: as `read_mask`, or nothing of it is left inside.
    """
    mask = _mask_on_grid(path, particles, progress)
    mask = mask if moved is None else moved(mask)
    if not reaches_edge(mask):
        return mask
    inside = inside_box(mask)
    if not bool((inside > 0).any()):
        raise InputError(
            f"mask {path}: lies on the faces of the box, where no particle is; make one around the "
            "particle"
        )
    progress.note(f"mask {path}: is cut by the box, where it now ends softly")
    return inside


def _mask_on_grid(
    path: str | Path, particles: Particles, progress: Progress
) -> Float[Tensor, "N N N"]:
    data, pixel = read_map(path)
    if pixel <= 0:
        return read_mask(path, particles.box, particles.pixel_size_angstrom)
    values = read_mask(path, data.shape[0], pixel)
    if _on_grid_of(path, data, pixel, particles, progress):
        return values
    mask = values.numpy()
    _tell_resampled(path, data, pixel, particles, progress)
    from scipy.ndimage import affine_transform

    ratio, box = particles.pixel_size_angstrom / pixel, particles.box
    first = data.shape[0] // 2 - ratio * (box // 2)
    return torch.from_numpy(
        affine_transform(mask, np.full(3, ratio), first, (box,) * 3, order=1).clip(0, 1)
    )


def particle_radius_px(
    diameter_angstrom: float | None, particles: Particles, reference: Float[Tensor, "N N N"] | None
) -> float:
    """Radius of the particle mask in pixels: half the diameter given; else what holds the
    reference, else 0.9 of the box.

    The reference is held where its density, low-passed, exceeds a tenth of its maximum; a tenth of
    the radius is added.

    Raises:
        InputError: the diameter does not fit into the box.
    """
    box, pixel = particles.box, particles.pixel_size_angstrom
    largest = box / 2 - 1
    if diameter_angstrom is not None:
        radius = diameter_angstrom / 2 / pixel
        if not 2 <= radius <= box / 2:
            raise InputError(
                f"--diameter {diameter_angstrom:g}: expected {4 * pixel:.3g} to {box * pixel:.4g} "
                "A, the width of the images"
            )
        return min(radius, largest)
    if reference is None:
        return UNKNOWN_RADIUS * box
    axis = torch.arange(box, device=reference.device) - box // 2
    distance = (
        (axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2)
        .float()
        .sqrt()
    )
    reference = reference - reference.median()
    held = reference > HELD_DENSITY * reference.max()
    return float(min(RADIUS_MARGIN * distance[held].max(), torch.tensor(LARGEST_RADIUS * box)))


def solvent_mask(
    mask: str | Path | None,
    particles: Particles,
    radius_px: float,
    *,
    dimensions: Literal[2, 3],
    device: torch.device,
    progress: Progress,
    moved: Callable[[Float[Tensor, "N N N"]], Float[Tensor, "N N N"]] | None = None,
) -> Float[Tensor, "*box"]:
    """The mask file given (`read_job_mask`), or a soft sphere (circle) of the particle's radius."""
    if mask is not None:
        return read_job_mask(mask, particles, progress, moved=moved).to(device)
    edge = min(EDGE_PX, max(1.0, particles.box / 2 - radius_px))
    return soft_sphere(particles.box, radius_px=radius_px, edge_px=edge, dimensions=dimensions).to(
        device
    )


def poses_of(particles: Particles) -> Poses:
    """The data set's poses; identity and zero where it has none."""
    pixel = particles.pixel_size_angstrom
    rotations = euler_to_matrix(torch.from_numpy(particles.rotations_deg)).float()
    shifts = torch.from_numpy(particles.shift_angstrom / pixel).float()
    classes = torch.from_numpy(particles.class_number.astype(np.int64)) - 1
    return known_poses(rotations, shifts, classes)
