"""What the columns of a RELION particle table mean: the particle and optics tables, pixel size,
poses, CTF."""

from dataclasses import dataclass

import numpy as np

from halfmap.ctf_parameters import DEFOCUS, PER_GROUP, CTFParameters, quantities
from halfmap.errors import InputError
from halfmap.io.column_names import check_case
from halfmap.io.other_programs import of_other_program
from halfmap.io.star import StarFile
from halfmap.io.table import Table

ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
ORIGINS = ("rlnOriginXAngst", "rlnOriginYAngst")
OLD_ORIGINS = ("rlnOriginX", "rlnOriginY")  # pixels, RELION 3.0 and before
# of their share: what a size is known to, and text of several decimals may differ by
SAME_PIXEL_SIZE = 1e-3
# beyond, a cell is broken: no particle lies so far from the middle of its image, and angles that
# were added up have lost their decimals
LARGEST_SHIFT_ANGSTROM, LARGEST_ANGLE_DEG = 1e5, 1e6
LARGEST_PIXEL_ANGSTROM = 1e4
# microscopes distort by a few percent
LARGEST_DISTORTION = 0.4
# the places of third-order coma in rlnOddZernike, for which rlnBeamTiltX/Y stand where they are
# there: RELION 3.1.3 reads such files so (tests/commands/test_optics_groups.py)
_COMA = slice(3, 5)


@dataclass(frozen=True, eq=False)
class ParticleTables:
    """The particle table of a file, its optics table (None in RELION 3.0 and before), and the
    optics row of each particle."""

    path: str
    particles: Table
    optics: Table | None
    optics_group: np.ndarray  # (n,) 0-based rows of `optics`

    def has(self, name: str) -> bool:
        return name in self.particles or (self.optics is not None and name in self.optics)

    def floats(self, name: str, default: float | None = None, *, finite: bool = True) -> np.ndarray:
        """Values per particle, from the optics table if it has them, else from the particle table,
        else `default`. Columns that are only handed on need not be `finite`.

        Raises:
            InputError: absent without a default, not a number, or NaN or infinite where `finite`.
        """
        if self.optics is not None and name in self.optics:
            values = self.optics.floats(name)[self.optics_group]
        elif name in self.particles:
            values = self.particles.floats(name)
        elif default is None:
            raise InputError(
                f"{self.path}: column _{name} is missing (neither optics nor particle table has "
                "it); add it"
            )
        else:
            return np.full(len(self.particles), float(default))
        bad = np.flatnonzero(~np.isfinite(values))
        if finite and len(bad):
            raise InputError(
                f"{self.where(int(bad[0]), name)}: expected a finite number, found "
                f"{values[bad[0]]}; correct or remove the row"
            )
        return values

    def where(self, row: int, name: str) -> str:
        """Place of a particle's value (row from 0) for messages: the optics table's cell, if it was
        read from a file; else the particle's row."""
        if self.optics is not None and name in self.optics and self.optics.is_of_file(name):
            return self.optics.where(int(self.optics_group[row]), name)
        if name in self.particles:
            return self.particles.where(row, name)
        return f"{self.path}: row {row + 1}, column _{name}"

    def lists(self, name: str) -> np.ndarray:
        """Lists of numbers per particle `(n, Z)`, from the table that `floats` would take them of;
        Z is the longest list's length, 0 if the column is absent.

        Raises:
            InputError: a cell is no list of finite numbers such as [0.1,0,2].
        """
        in_optics = self.optics is not None and name in self.optics
        table = self.optics if in_optics else self.particles
        if table is None or name not in table:
            return np.zeros((len(self.particles), 0))
        cells, row_of = np.unique(table.strings(name), return_inverse=True)
        lists = [_numbers(cell) for cell in cells.tolist()]
        for i, one in enumerate(lists):
            if one is None:
                place = table.where(int(np.argmax(row_of == i)), name)
                raise InputError(
                    f"{place}: expected a list of numbers such as [0.1,0,2], found {cells[i]!r}; "
                    "correct the cell or remove the column"
                )
        values = np.zeros((len(lists), max(len(one or ()) for one in lists)))
        for i, one in enumerate(lists):
            values[i, : len(one or ())] = one
        rows = values[row_of.ravel()]
        return rows[self.optics_group] if in_optics else rows


def _numbers(cell: str) -> list[float] | None:
    """The numbers of a cell such as [0.1,0,2]; None if it is something else."""
    words = [word for word in cell.strip().strip("[]").split(",") if word.strip()]
    try:
        values = [float(word) for word in words]
    except ValueError:
        return None
    return values if np.isfinite(values).all() else None


def particle_tables(star: StarFile) -> ParticleTables:
    """Find the table with image names, whatever its block is called, and its optics groups.

    Raises:
        InputError: no such table (the blocks found are named) or several; no rows; an optics group
            that is not in the optics table, or is there twice.
    """
    check_case(star)
    found = [name for name, table in star.blocks.items() if "rlnImageName" in table]
    if "particles" in found:
        found = ["particles"]
    if len(found) != 1:
        blocks = ", ".join(f"data_{name}" for name in star.blocks)
        what = f"{len(found)} tables have" if found else "no table has"
        raise InputError(
            f"{star.path}: expected one particle table, {what} the column _rlnImageName; blocks "
            f"found: {blocks}"
            + ("" if found else of_other_program(n for t in star.blocks.values() for n in t.names))
        )
    particles = star.blocks[found[0]]
    if not len(particles):
        raise InputError(
            f"{star.path}: the particle table data_{found[0]} has no rows; nothing to process"
        )
    optics = next(
        (
            t
            for n, t in star.blocks.items()
            if n != found[0] and "rlnOpticsGroup" in t and "rlnImageName" not in t
        ),
        None,
    )
    if optics is None:
        labels = (
            particles.ints("rlnOpticsGroup")
            if "rlnOpticsGroup" in particles
            else np.zeros(len(particles), np.int64)
        )
        return ParticleTables(star.path, particles, None, np.unique(labels, return_inverse=True)[1])
    numbers = optics.ints("rlnOpticsGroup").tolist()
    rows = {label: row for row, label in enumerate(numbers)}
    if len(rows) < len(numbers):
        twice = next(label for label in numbers if numbers.count(label) > 1)
        which = [row + 1 for row, label in enumerate(numbers) if label == twice]
        raise InputError(
            f"{star.path}: rows {', '.join(map(str, which))} of the optics table have the same "
            f"_rlnOpticsGroup {twice}; expected a number of its own for each group, which "
            "_rlnOpticsGroup of the particles names"
        )
    if "rlnOpticsGroup" not in particles:
        if len(optics) > 1:
            raise InputError(
                f"{star.path}: column _rlnOpticsGroup is missing from the particle table; "
                f"{len(optics)} groups exist"
            )
        return ParticleTables(star.path, particles, optics, np.zeros(len(particles), np.int64))
    labels, inverse = np.unique(particles.ints("rlnOpticsGroup"), return_inverse=True)
    for i, label in enumerate(labels.tolist()):
        if label not in rows:
            place = particles.where(int(np.argmax(inverse == i)), "rlnOpticsGroup")
            raise InputError(
                f"{place}: optics group {label} is not in the optics table, which has "
                f"{sorted(rows)}"
            )
    return ParticleTables(
        star.path, particles, optics, np.array([rows[label] for label in labels.tolist()])[inverse]
    )


def pixel_sizes(tables: ParticleTables) -> np.ndarray | None:
    """Pixel size of each particle in Angstrom: rlnImagePixelSize, or detector pixel size (um) x 1e4
    / magnification, or rlnPixelSize; None if no column. Sizes that differ by no more than
    `SAME_PIXEL_SIZE` are taken to be one, the first.

    Raises:
        InputError: not positive.
    """
    if tables.has("rlnImagePixelSize"):
        name, sizes = "rlnImagePixelSize", tables.floats("rlnImagePixelSize")
    elif tables.has("rlnDetectorPixelSize") and tables.has("rlnMagnification"):
        name, magnification = "rlnMagnification", tables.floats("rlnMagnification")
        if magnification.min() <= 0:
            row = int(magnification.argmin())
            raise InputError(
                f"{tables.path}: row {row + 1}, column _rlnMagnification: expected more than 0, "
                f"found {magnification[row]:g}"
            )
        sizes = tables.floats("rlnDetectorPixelSize") * 1e4 / magnification
    elif tables.has("rlnPixelSize"):
        name, sizes = "rlnPixelSize", tables.floats("rlnPixelSize")
    else:
        return None
    if sizes.min() <= 0:
        raise InputError(
            f"{tables.path}: row {int(sizes.argmin()) + 1}: pixel size {sizes.min():g} A (from "
            f"_{name}); expected more than 0"
        )
    _within(tables, name, sizes, LARGEST_PIXEL_ANGSTROM)
    return as_few_sizes(sizes)


def as_few_sizes(sizes_angstrom: np.ndarray) -> np.ndarray:
    """Pixel sizes `(n,)` of which those that differ by no more than `SAME_PIXEL_SIZE` are one, the
    first."""
    sizes, found = sizes_angstrom.copy(), np.unique(sizes_angstrom)
    while len(found):
        first = sizes[np.argmax(np.isin(sizes, found))]
        near = np.abs(sizes - first) <= SAME_PIXEL_SIZE * first
        sizes[near] = first
        found = found[np.abs(found - first) > SAME_PIXEL_SIZE * first]
    return sizes


def poses(
    tables: ParticleTables, pixel_size_angstrom: float | np.ndarray
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Angles `(n, 3)` in degrees, shifts `(n, 2)` in Angstrom of the stored image (zeros where
    absent), and whether the angles are orientations: all three are there, and rot and tilt are not
    0 throughout, as they are in the plane (`in_plane`).

    Raises:
        InputError: one shift column without the other, or a value beyond what can be.
    """
    angles = [_within(tables, name, tables.floats(name, 0.0), LARGEST_ANGLE_DEG) for name in ANGLES]
    shifts = []
    for new, old in zip(ORIGINS, OLD_ORIGINS, strict=True):
        name = new if tables.has(new) else old
        shift = tables.floats(name, 0.0) * (1.0 if name == new else pixel_size_angstrom)
        shifts.append(_within(tables, name, shift, LARGEST_SHIFT_ANGSTROM))
    for names in (ORIGINS, OLD_ORIGINS):
        missing = [name for name in names if not tables.has(name)]
        if len(missing) == 1 and not all(tables.has(name) for name in ORIGINS):
            (there,) = set(names) - set(missing)
            raise InputError(
                f"{tables.path}: column _{missing[0]} is missing, beside _{there}; add it, or "
                "remove both"
            )
    angles_deg = np.stack(angles, axis=1)
    orientations = all(tables.has(name) for name in ANGLES) and not in_plane(angles_deg)
    return angles_deg, np.stack(shifts, axis=1), orientations


def _within(tables: ParticleTables, name: str, values: np.ndarray, largest: float) -> np.ndarray:
    """The values, if none is beyond what can be.

    Raises:
        InputError: naming row and column.
    """
    wrong = np.flatnonzero(np.abs(values) > largest)
    if len(wrong):
        raise InputError(
            f"{tables.path}: row {wrong[0] + 1}, column _{name}: expected {-largest:,.0f} to "
            f"{largest:,.0f}, found {values[wrong[0]]:g}; correct or remove the row"
        )
    return values


def in_plane(angles_deg: np.ndarray) -> bool:
    """Whether angles `(n, 3)` are those of a 2D classification, which turns images in their plane
    and knows no direction: rot and tilt 0 in every row, psi not the same in all."""
    psi = angles_deg[:, 2]
    return not angles_deg[:, :2].any() and bool((psi != psi[:1]).any())


def ctf_parameters(tables: ParticleTables, *, use_ctf: bool = True) -> tuple[CTFParameters, bool]:
    """CTF parameters of all particles, arrays of float64, and whether the file has a CTF at all
    (`use_ctf=False`: defaults, no matter what it has; whether images are premultiplied and how they
    are magnified is read).

    Raises:
        InputError: some CTF columns are there and others are missing, or a value cannot be.
    """
    has_ctf = use_ctf and any(tables.has(name) for name in DEFOCUS)
    required = [one.relion for one in quantities() if one.required]
    missing = [name for name in required if not tables.has(name)]
    if has_ctf and missing:
        names = ", ".join(f"_{name}" for name in missing)
        way = "add the column"
        if tables.optics is None and "rlnOpticsGroup" in tables.particles:
            way = (
                "they belong into the optics table (data_optics), which is not there: bring it back"
            )
        raise InputError(
            f"{tables.path}: the CTF is incomplete: missing {names}; {way}, or run with --no-ctf"
        )
    matrix = [one.relion for one in quantities() if one.geometry]
    if 0 < sum(tables.has(name) for name in matrix) < len(matrix):
        absent = ", ".join(f"_{name}" for name in matrix if not tables.has(name))
        raise InputError(
            f"{tables.path}: the magnification matrix is incomplete: missing {absent}; add the "
            "column, or remove all four"
        )
    columns = {
        one.name: tables.lists(one.relion)
        if one.coefficients
        else tables.floats(one.relion, one.default)
        for one in quantities()
        if use_ctf or one.geometry or one.name == "premultiplied"
    }
    columns["premultiplied"] = columns["premultiplied"] != 0
    if use_ctf and (tables.has("rlnBeamTiltX") or tables.has("rlnBeamTiltY")):
        columns["odd_zernike"][:, _COMA] = 0
    parameters = CTFParameters(**columns).arrays(len(tables.particles))
    if has_ctf:
        parameters.check(lambda row, name: f"{tables.path}: row {row + 1}, column _{name}")
        if not np.any(parameters.scale):
            raise InputError(
                f"{tables.path}: column _rlnCtfScalefactor is 0 in all rows, which leaves nothing "
                "of the images; expected 1, or remove the column"
            )
    _check_magnification(parameters.magnification, tables.path)
    return parameters, has_ctf


def _check_magnification(matrices: np.ndarray | None, path: str) -> None:
    """Refuse what no microscope does: a matrix far from 1 is a mistake, and one without an inverse
    shows nothing."""
    if matrices is None:
        return
    wrong = np.flatnonzero(np.abs(matrices - np.eye(2)).max(axis=(1, 2)) > LARGEST_DISTORTION)
    if len(wrong):
        row = int(wrong[0])
        raise InputError(
            f"{path}: row {row + 1}, columns _rlnMagMat00, 01, 10, 11: expected a matrix within "
            f"{LARGEST_DISTORTION} of 1, 0, 0, 1, found "
            f"{', '.join(f'{value:g}' for value in matrices[row].ravel())}"
        )


def ctf_columns(parameters: CTFParameters, *, per_group: bool) -> dict[str, np.ndarray]:
    """RELION's columns of the fields that are arrays or tensors, float64 in the order of the
    fields: those of the optics table, or all others. Plain numbers are left out."""
    columns = {}
    for one in quantities():
        value = getattr(parameters, one.name)
        if one.per_group == per_group and np.ndim(value):
            values = np.asarray(value, np.float64)
            if one.coefficients:
                if values.shape[1]:
                    columns[one.relion] = np.array(
                        [_list_cell(row) for row in values.tolist()], dtype=object
                    )
                continue
            columns[one.relion] = values.astype(np.int64) if one.name == "premultiplied" else values
    return columns


def _list_cell(values: list[float]) -> str:
    """RELION's text of a list of numbers."""
    return f"[{','.join(f'{value:.9g}' for value in values)}]"


def write_transfer(
    tables: ParticleTables, columns: dict[str, np.ndarray]
) -> tuple[Table, Table | None]:
    """The particle and the optics table with CTF columns (RELION's names, `(n,)`) added or
    replaced.

    What RELION keeps per optics group goes into the optics table where it is one value in each
    group; else into the particle table, which `ParticleTables.floats` then reads.
    """
    particles, optics = tables.particles, tables.optics
    group = tables.optics_group
    for name, values in columns.items():
        if optics is not None and (name in optics or (name in PER_GROUP and name not in particles)):
            first = np.unique(group, return_index=True)
            per_group = np.full(len(optics), values[0], dtype=values.dtype)
            if name in optics and values.dtype == object:
                per_group = optics.strings(name).astype(object)
            elif name in optics:
                per_group = optics.floats(name).astype(values.dtype)
            per_group[first[0]] = values[first[1]]
            if np.array_equal(per_group[group], values):
                optics = optics.with_columns({name: per_group})
                continue
            optics = optics.without(name)
        particles = particles.with_columns({name: values})
    return particles, optics
