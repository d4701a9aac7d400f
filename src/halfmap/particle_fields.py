"""What a data set's table says, as arrays: one row per image, each checked where it is read."""

import os
from typing import Any

import numpy as np

from halfmap.ctf_parameters import CTFParameters
from halfmap.errors import InputError
from halfmap.image_grids import ImageGrid, distinct_grids, finest_grid
from halfmap.io.paths import resolve_all, split_image_names
from halfmap.io.relion import (
    ParticleTables,
    as_few_sizes,
    ctf_parameters,
    particle_tables,
    pixel_sizes,
    poses,
)
from halfmap.io.stacks import CheckImages, OpenStacks, notes_on_faults, read_headers
from halfmap.io.star import StarFile

SAME_SIZE = 0.05  # of their share: calibrations change a pixel size by less
# A, below which no micrograph is taken; phase plates are used near 5,000
LEAST_DEFOCUS_ANGSTROM = 20.0
# so many angles, and so different, would go beyond 2 pi if they were degrees
FEWEST_ANGLES, LEAST_SPREAD_RAD = 20, 0.7
WORTH_TELLING = 1.1  # times less memory
CONTRAST = "csBlobSign"  # -1: stored dark on light, as cryoSPARC's blob/sign


def fields_of_star(
    star: StarFile,
    data_dir: str | os.PathLike[str] | None = None,
    check_images: CheckImages = True,
    use_ctf: bool = True,
) -> dict[str, Any]:
    """The fields of `Particles`, as `load_particles` is asked for them."""
    tables = particle_tables(star)
    particles = tables.particles
    names = split_image_names(particles.strings("rlnImageName").tolist(), star.path)
    found = resolve_all(names.files, star.path, data_dir)
    sizes, stacks = pixel_sizes(tables), OpenStacks()
    notes: list[str] = []
    expected = tables.floats("rlnImageSize") if tables.has("rlnImageSize") else None
    asked = check_images or sizes is None or expected is None
    headers = read_headers(
        star.path,
        names,
        found if asked else (),
        data_dir,
        stacks,
        expected_box=expected,
        first_only=not check_images,
    )
    if check_images is True and headers.faults:
        raise headers.faults[0].error
    if check_images == "told":
        notes += notes_on_faults(star.path, names, headers.faults)
    box = headers.box_of(names) if expected is None else expected.astype(np.int64)
    if sizes is None:
        sizes = as_few_sizes(headers.pixel_size_of(names))
        notes.append(_sizes_of_headers(star.path, sizes))
    notes += _other_header_size(star.path, sizes, headers.pixel_sizes_angstrom[names.file])
    rotations, shifts, has_poses = poses(tables, sizes)
    transfer, has_ctf = ctf_parameters(tables, use_ctf=use_ctf)
    notes += _doubts_of_units(star.path, transfer if has_ctf else None, rotations)
    grids, stored = distinct_grids(box, sizes, transfer.magnification)
    grid = finest_grid(grids)
    for number, one in enumerate(grids):
        shifts[stored == number] = one.true_shift(shifts[stored == number])
    notes += grid_notes(star.path, grids, stored, grid)
    notes += _outside_of_images(star.path, shifts, grids, stored)
    optics_group = _groups_of_one_grid(tables, stored, grids)
    n = len(particles)
    half_set = (
        particles.ints("rlnRandomSubset")
        if "rlnRandomSubset" in particles
        else np.zeros(n, np.int64)
    )
    wrong = np.flatnonzero((half_set < 0) | (half_set > 2))
    if len(wrong):
        raise InputError(
            f"{particles.where(int(wrong[0]), 'rlnRandomSubset')}: expected half set 1 or 2, "
            f"found {half_set[wrong[0]]}"
        )
    micrograph = (
        _numbered(particles.strings("rlnMicrographName"))
        if "rlnMicrographName" in particles
        else np.zeros(n, np.int64)
    )
    return dict(
        path=star.path,
        table=particles,
        optics=tables.optics,
        box=grid.box,
        pixel_size_angstrom=grid.pixel_size_angstrom,
        has_poses=has_poses,
        has_ctf=has_ctf,
        notes=tuple(notes),
        rotations_deg=rotations,
        shift_angstrom=shifts,
        class_number=particles.ints("rlnClassNumber")
        if "rlnClassNumber" in particles
        else np.ones(n, np.int64),
        half_set=half_set,
        optics_group=optics_group,
        micrograph=micrograph.astype(np.int64),
        transfer=transfer,
        image_sign=np.where(tables.floats(CONTRAST, 1.0) < 0, -1, 1),
        image_file=names.file,
        image_index=names.index,
        files=names.files,
        stack_paths=found,
        stored=stored,
        grids=grids,
        _stacks=stacks,
    )


def _numbered(names: np.ndarray) -> np.ndarray:
    """Each name's number, from 0 in the order in which they come first."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)


def _doubts_of_units(
    path: str, transfer: CTFParameters | None, rotations_deg: np.ndarray
) -> list[str]:
    """What looks as if it were in other units, or of another sign: told where it can be so.

    Raises:
        InputError: all defoci are less than any lens is set to.
    """
    notes = []
    if transfer is not None:
        defocus = (transfer.defocus_u_angstrom + transfer.defocus_v_angstrom) / 2
        largest = float(np.abs(defocus).max())
        if 0 < largest < LEAST_DEFOCUS_ANGSTROM:
            raise InputError(
                f"{path}: _rlnDefocusU and _rlnDefocusV: expected Angstrom, the largest found is "
                f"{largest:.3g}, as of micrometres; multiply both columns by 10,000"
            )
        small = np.abs(defocus) < LEAST_DEFOCUS_ANGSTROM
        if some := int(small.sum()):
            row = int(np.argmax(small))
            notes.append(
                f"{path}: {some:,} of {len(defocus):,} images have a defocus of less than "
                f"{LEAST_DEFOCUS_ANGSTROM:g} A, for example row {row + 1}: {defocus[row]:.3g}; not "
                "found, or in micrometres?"
            )
        if over := int((defocus < 0).sum()):
            notes.append(
                f"{path}: {over:,} of {len(defocus):,} images have a negative defocus, which is "
                "overfocus here; of images below focus it is positive"
            )
    radians = {"angle": _look_like_radians(rotations_deg)}
    if transfer is not None:
        astigmatic = transfer.defocus_u_angstrom != transfer.defocus_v_angstrom
        directions = np.unique(transfer.defocus_angle_deg[astigmatic])
        radians["_rlnDefocusAngle"] = _look_like_radians(directions[:, None])
        shifts = np.abs(transfer.phase_shift_deg)  # plates shift by 20 degrees or more
        radians["_rlnPhaseShift"] = bool(shifts.min() > 0 and shifts.max() <= np.pi)
    return notes + [
        f"{path}: no {name} exceeds 2 pi: degrees are expected, these look like radians"
        for name, they_do in radians.items()
        if they_do
    ]


def _look_like_radians(angles: np.ndarray) -> bool:
    """Whether so many angles (n, d) that differ as much are all within 2 pi."""
    if len(angles) < FEWEST_ANGLES:
        return False
    spread, largest = angles.std(axis=0).max(), np.abs(angles).max()
    return bool(spread > LEAST_SPREAD_RAD and largest <= 2 * np.pi)


def _sizes_of_headers(path: str, sizes: np.ndarray) -> str:
    """What is said where pixel sizes are those of the stacks' headers.

    Raises:
        InputError: they tell none.
    """
    if sizes.min() <= 0:
        raise InputError(
            f"{path}: no pixel size: no column _rlnImagePixelSize (or _rlnDetectorPixelSize with "
            "_rlnMagnification), and the MRC header has none; add the column"
        )
    found = ", ".join(f"{size:.4f} A" for size in dict.fromkeys(sizes.tolist()))
    return f"{path} has no pixel size column; {found} was taken from the MRC header"


def _other_header_size(path: str, sizes: np.ndarray, of_headers: np.ndarray) -> list[str]:
    """Pixel sizes that the headers of stacks contradict; 0 and 1 are what programs write that know
    none."""
    says = (of_headers > 0) & (np.abs(of_headers - 1) >= SAME_SIZE)
    differs = np.flatnonzero(says & (np.abs(sizes / np.where(says, of_headers, 1) - 1) > SAME_SIZE))
    if not len(differs):
        return []
    row = int(differs[0])
    return [
        f"{path}: pixels of {len(differs):,} of {len(sizes):,} images are {sizes[row]:.4g} A by "
        f"the columns, which count, and {of_headers[row]:.4g} A by the header of their stack (row "
        f"{row + 1}): binning may have been forgotten in one of them"
    ]


def _outside_of_images(
    path: str, shift_angstrom: np.ndarray, grids: tuple[ImageGrid, ...], stored: np.ndarray
) -> list[str]:
    """Particles whose images show nothing of them."""
    wide = np.array([one.extent_angstrom for one in grids])[stored]
    out = np.flatnonzero(np.abs(shift_angstrom).max(axis=1) > wide / 2)
    if not len(out):
        return []
    far = np.abs(shift_angstrom[out[0]]).max()
    return [
        f"{path}: {len(out):,} of {len(wide):,} particles have an origin outside of their image, "
        f"for example row {out[0] + 1}: {far:.4g} A from the middle of {wide[out[0]]:.4g} A"
    ]


def _groups_of_one_grid(
    tables: ParticleTables, stored: np.ndarray, grids: tuple[ImageGrid, ...]
) -> np.ndarray:
    """Optics group of each particle, from 0; in a file without optics table, images of different
    grids are in groups of their own.

    Raises:
        InputError: an optics group has images of several grids.
    """
    group = tables.optics_group
    pairs, new = np.unique(np.stack([group, stored], axis=1), axis=0, return_inverse=True)
    if tables.optics is None:
        return new.ravel() if len(pairs) > len(np.unique(group)) else group
    several = np.flatnonzero(pairs[1:, 0] == pairs[:-1, 0])
    if len(several):
        number, other = pairs[several[0]], pairs[several[0] + 1]
        row = int(np.flatnonzero((group == other[0]) & (stored == other[1]))[0])
        label = tables.optics.strings("rlnOpticsGroup")[number[0]]
        raise InputError(
            f"{tables.path}: row {row + 1}: optics group {label} has images of "
            f"{grids[number[1]]} and of {grids[other[1]]}; give each an optics group of its own"
        )
    return group


def grid_notes(
    path: str, grids: tuple[ImageGrid, ...], stored: np.ndarray, grid: ImageGrid
) -> list[str]:
    """What a user should know of images that are not read as they are stored; `stored` (n,) tells
    the grid of each."""
    notes = []
    counts: dict[tuple[int, float], int] = {}
    for one, count in zip(grids, np.bincount(stored, minlength=len(grids)), strict=True):
        key = (one.box, one.pixel_size_angstrom)
        counts[key] = counts.get(key, 0) + int(count)
    if list(counts) != [(grid.box, grid.pixel_size_angstrom)]:
        found = ", ".join(
            f"{n:,} {'image' if n == 1 else 'images'} of {ImageGrid(*one)}"
            for one, n in sorted(counts.items())
        )
        notes.append(f"{path}: {found} are brought to {grid}{_of_coarser(counts, grid)}")
    if any(one.magnification for one in grids):
        notes.append(
            f"{path}: anisotropic magnification (rlnMagMat00, 01, 10, 11) is taken out of the "
            "images"
        )
    return notes


def _of_coarser(counts: dict[tuple[int, float], int], grid: ImageGrid) -> str:
    """Where a few fine images make a job large: what the grid of most images would save."""
    most = ImageGrid(*max(counts, key=lambda one: (counts[one], -one[1])))
    pixel = most.pixel_size_angstrom
    if pixel <= grid.pixel_size_angstrom or len(counts) < 2:
        return ""
    less = (pixel / grid.pixel_size_angstrom) ** 3
    if less < WORTH_TELLING:
        return ", the finest"
    return f", the finest; --pixel-size {pixel:.4g} would take {less:.1f} times less memory"
