"""The data set: metadata columns in plain arrays, images read lazily from the stacks on disk."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike

from halfmap.ctf_parameters import DEFOCUS, QUANTITY, CTFParameters, quantities
from halfmap.errors import InputError
from halfmap.image_grids import ImageGrid, asked_grid, distinct_grids
from halfmap.io.cryosparc import cs_to_star
from halfmap.io.cs_files import Passthrough, read_cs
from halfmap.io.dialects import relion31_blocks
from halfmap.io.image_faults import Examined, examine, mend
from halfmap.io.mrc import open_stack
from halfmap.io.other_programs import refuse_other_files
from halfmap.io.paths import ImageNames, not_found, rename_images
from halfmap.io.relion import (
    ANGLES,
    OLD_ORIGINS,
    ORIGINS,
    ParticleTables,
    ctf_columns,
    write_transfer,
)
from halfmap.io.stacks import CheckImages, OpenStacks
from halfmap.io.star import StarFile, read_star, write_star
from halfmap.io.table import Table
from halfmap.particle_fields import CONTRAST, fields_of_star, grid_notes

if TYPE_CHECKING:
    from torch import Tensor

    from halfmap.transfer_function import Transfer

_CHECK_BATCH = 256


Contrast = Literal["dark", "white"]
# what else than a CTF may be left in images, and is not where the CTF is not
ABERRATIONS = ("beam_tilt_x_mrad", "beam_tilt_y_mrad", "odd_zernike", "even_zernike")
# columns that tell on which grid images are stored
_OF_GRIDS = (
    "rlnImagePixelSize",
    "rlnImageSize",
    "rlnPixelSize",
    "rlnDetectorPixelSize",
    "rlnMagnification",
    *(one.relion for one in quantities() if one.geometry),
)
STACK_SUFFIXES = (".mrcs", ".mrc", ".st")  # what `load_particles` takes for a bare stack


@dataclass(frozen=True, eq=False, repr=False)
class Particles:
    """n particles: one row per image in every array, RELION's conventions, Angstrom and degrees.

    `take`, `with_results` and `with_transfer` return new data sets; nothing is changed in place.
    Images are read by `images` only, on the grid of `box` and `pixel_size_angstrom` whatever grid
    they are stored on (`grids`), and without anisotropic magnification; shifts are as in those.

    >>> import tempfile
    >>> import halfmap
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     made = halfmap.simulate(
    ...         "phantom", folder, n=3, snr=1, box=32, pixel_size_angstrom=6, overwrite=True
    ...     )
    ...     particles = halfmap.load_particles(f"{folder}/particles.star")
    >>> len(particles), particles.box, particles.take([0, 2]).shift_angstrom.shape
    (3, 32, (2, 2))
    """

    path: str
    table: Table  # all input columns, as text
    optics: Table | None
    box: int
    pixel_size_angstrom: float
    has_poses: bool
    has_ctf: bool
    notes: tuple[str, ...]  # things that a user should be told
    rotations_deg: np.ndarray  # (n, 3) rot, tilt, psi
    shift_angstrom: np.ndarray  # (n, 2) the shift that centres the image
    class_number: np.ndarray  # (n,) from 1
    half_set: np.ndarray  # (n,) 1 or 2; 0 where the file has none
    optics_group: np.ndarray  # (n,) from 0: row of `optics`
    micrograph: np.ndarray  # (n,) from 0
    transfer: CTFParameters  # what the microscope did, arrays (n,); defaults where has_ctf is False
    image_sign: (
        np.ndarray
    )  # (n,) +1, or -1 where cryoSPARC says that the stored contrast is inverted
    image_file: np.ndarray  # (n,) index into `files`
    image_index: np.ndarray  # (n,) from 0, inside the file
    files: tuple[str, ...]  # stack names as the table has them
    stack_paths: tuple[Path | None, ...]  # where they were found
    stored: np.ndarray  # (n,) index into `grids`
    grids: tuple[ImageGrid, ...]  # those on which images are stored
    new_columns: Mapping[str, np.ndarray] = field(default_factory=dict)  # results to be written
    # those to be mended, by number of the file and place of the image in it
    hot_pixels: Mapping[tuple[int, int], np.ndarray] = field(default_factory=dict)
    _stacks: OpenStacks = field(default_factory=OpenStacks, repr=False)

    def __len__(self) -> int:
        return len(self.image_file)

    def __repr__(self) -> str:
        poses = "poses" if self.has_poses else "no poses"
        poses = "poses in the plane" if self.has_in_plane_poses else poses
        found = ["CTF" if self.has_ctf else "no CTF", poses]
        return (
            f"Particles({len(self):,} images of {self.box} pixels, {self.pixel_size_angstrom:.4g} "
            f"A, {', '.join(found)}: {self.path})"
        )

    @property
    def has_in_plane_poses(self) -> bool:
        """Whether there are angles in the plane and no orientations: of a 2D classification."""
        known = "rlnAnglePsi" in self.new_columns or "rlnAnglePsi" in self.table
        return not self.has_poses and known and bool(self.rotations_deg[:, 2].any())

    def optics_group_number(self, group: int) -> str:
        """The number by which the file names an optics group (from 0)."""
        named = None if self.optics is None else self.optics.strings("rlnOpticsGroup")
        return str(group + 1) if named is None else str(named[group])

    @classmethod
    def from_stack(
        cls, path: str | os.PathLike[str], *, pixel_size_angstrom: float | None = None
    ) -> "Particles":
        """Data set of a bare MRC stack: no poses, no CTF.

        Raises:
            InputError: unreadable stack, images not square, or no pixel size given and none in the
                header.
        """
        stack = open_stack(path)
        if stack.is_volume and Path(path).suffix.lower() == ".mrc":
            raise InputError(
                f"{path}: is a map of {stack.shape[2]} voxels a side (ISPG 1 in its header), an "
                "image stack was expected; if it is one, give it a name that ends in .mrcs"
            )
        names = [f"{i + 1:06d}@{Path(path).absolute()}" for i in range(len(stack))]
        columns: dict[str, list] = {"rlnImageName": names}
        if pixel_size_angstrom is not None:
            columns["rlnImagePixelSize"] = [float(pixel_size_angstrom)] * len(names)
        table = Table.from_columns(columns, path=str(path))
        return cls(**fields_of_star(StarFile(str(path), {"particles": table})))

    @property
    def grid(self) -> ImageGrid:
        """The grid on which images are read."""
        return ImageGrid(self.box, self.pixel_size_angstrom)

    def on_grid(
        self, *, box: int | None = None, pixel_size_angstrom: float | None = None
    ) -> "Particles":
        """The same particles, read on another grid; the extent stays where only one of both is
        given.

        Raises:
            InputError: no such grid can be.
        """
        grid = asked_grid(self.grid, box=box, pixel_size_angstrom=pixel_size_angstrom)
        told = grid_notes(self.path, self.grids, self.stored, self.grid)
        notes = (
            *(note for note in self.notes if note not in told),
            *grid_notes(self.path, self.grids, self.stored, grid),
        )
        return replace(
            self, box=grid.box, pixel_size_angstrom=grid.pixel_size_angstrom, notes=notes
        )

    def images(self, indices: ArrayLike) -> np.ndarray:
        """Images float32 `(b, N, N)` of the particles at `indices` `(b,)`, in that order, on the
        grid of the data set.

        Raises:
            InputError: a stack is missing, or shorter than a row says.
        """
        indices = _as_rows(indices)
        if self.grids == (self.grid,):
            return self._read(indices, self.box)
        out = np.empty((len(indices), self.box, self.box), np.float32)
        for rows, stored, images in self.stored_images(indices):
            out[rows] = stored.bring(images, self.grid)
        return out

    def stored_images(
        self, indices: ArrayLike
    ) -> Iterator[tuple[np.ndarray, ImageGrid, np.ndarray]]:
        """Images as they are stored, grid by grid: which of `indices` (their places in it), their
        grid, and the images `(b, n, n)`."""
        indices = _as_rows(indices)
        for number in np.unique(self.stored[indices]):
            rows = np.flatnonzero(self.stored[indices] == number)
            yield rows, self.grids[number], self._read(indices[rows], self.grids[number].box)

    def _read(self, indices: np.ndarray, box: int) -> np.ndarray:
        """Images of one box, as they are stored."""
        out = np.empty((len(indices), box, box), np.float32)
        file = self.image_file[indices]
        for number in np.unique(file):
            rows = np.flatnonzero(file == number)
            rows = rows[
                np.argsort(self.image_index[indices[rows]], kind="stable")
            ]  # the disk is read forwards
            path = self.stack_paths[number]
            if path is None:
                raise not_found(self.files[number], int(indices[rows[0]]), self.path)
            out[rows] = self._stacks.get(path).read(self.image_index[indices[rows]])
        for row in np.flatnonzero(self.is_mended(indices)):
            index = indices[row]
            mend(out[row], self.hot_pixels[self.image_file[index], self.image_index[index]])
        if (self.image_sign[indices] < 0).any():
            out *= self.image_sign[indices].astype(np.float32)[:, None, None]
        return out

    def stored_apart(self, indices: np.ndarray) -> np.ndarray:
        """Whether each image is stored at other frequencies than the data set's grid has, `(b,)`:
        it is resampled when it is read."""
        apart = np.array([not stored.shares_frequencies(self.grid) for stored in self.grids])
        return apart[self.stored[indices]]

    def coverage(self, indices: np.ndarray) -> np.ndarray | None:
        """The share of the grid on which each image shows anything, `(b,)`; None where all of it
        is (`ImageGrid.covers`)."""
        shares = np.array([stored.covers(self.grid) for stored in self.grids])
        return None if (shares == 1).all() else shares[self.stored[indices]]

    def noise_kept(self, indices: np.ndarray) -> np.ndarray | None:
        """The deviation of white noise on the data set's grid, if it is 1 in the stored images,
        `(b,)`; None where that is 1."""
        sizes = np.array([stored.pixel_size_angstrom for stored in self.grids])
        kept = np.minimum(1.0, sizes / self.pixel_size_angstrom)
        return None if (kept == 1).all() else kept[self.stored[indices]]

    def transfer_at(
        self,
        indices: np.ndarray,
        kx_per_angstrom: "Tensor",
        ky_per_angstrom: "Tensor",
        *,
        use_ctf: bool = True,
    ) -> "Transfer":
        """The transfer function of images at frequencies `(J,)` (1/A), 0 beyond what they
        reach; without the CTF, 1 where they show anything."""
        import torch

        from halfmap.transfer_function import evaluate, no_transfer, seen_samples

        parameters, limit = self.transfer.take(indices).to(kx_per_angstrom.device), None
        if not all(stored.holds_all_of(self.grid) for stored in self.grids):
            reach = np.array([stored.reach_per_angstrom for stored in self.grids])
            limit = torch.from_numpy(reach[self.stored[indices]]).float().to(kx_per_angstrom)
        at = (kx_per_angstrom, ky_per_angstrom)
        if use_ctf:
            return evaluate(parameters, *at, reach_per_angstrom=limit)
        shape = torch.zeros(len(indices), len(kx_per_angstrom), dtype=torch.complex64)
        seen = None if limit is None else seen_samples(parameters, *at, limit)
        return no_transfer(shape.to(kx_per_angstrom.device), seen)

    def stored_as_read(self) -> "Particles":
        """The data set whose stored images are what `images` gives: on one grid, and without
        anisotropic magnification, which `write_star` will say."""
        if self.grids == (self.grid,):
            return self
        table, optics = self.table.without(*_OF_GRIDS), self.optics
        columns = {"rlnImagePixelSize": self.pixel_size_angstrom, "rlnImageSize": self.box}
        if optics is None:
            table = table.with_columns({k: [v] * len(table) for k, v in columns.items()})
        else:
            optics = optics.without(*_OF_GRIDS)
            optics = optics.with_columns({k: [v] * len(optics) for k, v in columns.items()})
        unity = {one.name: one.default for one in quantities() if one.geometry}
        shift = dict(zip(ORIGINS, self.shift_angstrom.T, strict=True))
        return replace(
            self,
            table=table,
            optics=optics,
            transfer=replace(self.transfer, **unity).arrays(len(self)),
            new_columns={**self.new_columns, **shift},
            stored=np.zeros_like(self.stored),
            grids=(self.grid,),
        )

    def stored_shift_angstrom(self, shift_angstrom: np.ndarray) -> np.ndarray:
        """Shifts as they are in the stored images, for files."""
        shift = np.array(shift_angstrom, np.float64)
        for number, stored in enumerate(self.grids):
            rows = self.stored == number
            shift[rows] = stored.stored_shift(shift[rows])
        return shift

    def take(self, indices: ArrayLike) -> "Particles":
        """The particles at `indices` (integers in any order, or a boolean mask); stacks stay
        shared."""
        indices = _as_rows(indices)
        rows = {
            f.name: getattr(self, f.name)[indices]
            for f in fields(self)
            if isinstance(getattr(self, f.name), np.ndarray)
        }
        new_columns = {name: values[indices] for name, values in self.new_columns.items()}
        return replace(
            self,
            table=self.table.take(indices),
            new_columns=new_columns,
            transfer=self.transfer.take(indices),
            **rows,
        )

    def with_results(
        self,
        *,
        rotations_deg: np.ndarray | None = None,
        psi_deg: np.ndarray | None = None,
        shift_angstrom: np.ndarray | None = None,
        class_number: np.ndarray | None = None,
        half_set: np.ndarray | None = None,
        extra: Mapping[str, np.ndarray] | None = None,
    ) -> "Particles":
        """Data set with new poses, classes, half sets or further RELION columns (`extra`), which
        `write_star` will write; the CTF's columns are `with_transfer`'s. `psi_deg` are angles in
        the plane, which know no direction: rlnAngleRot and rlnAngleTilt are left out then, so that
        no program takes them for orientations.

        Raises:
            InputError: an array has not one row per particle, or a column is the CTF's.
        """
        columns = dict(extra or {})
        for one in quantities():
            if one.relion in columns:
                raise InputError(
                    f"column {one.relion}: expected a result, this is a parameter of the CTF; "
                    "change it by with_transfer"
                )
        changed: dict[str, object] = {}
        if rotations_deg is not None:
            changed["rotations_deg"], changed["has_poses"] = (
                np.array(rotations_deg, np.float64),
                True,
            )
            columns |= dict(zip(ANGLES, np.asarray(rotations_deg).T, strict=True))
        if psi_deg is not None:
            psi = columns[ANGLES[2]] = np.array(psi_deg, np.float64)
            flat = np.zeros_like(psi)
            changed["rotations_deg"] = np.stack([flat, flat, psi], axis=1)
            changed["has_poses"], changed["table"] = False, self.table.without(*ANGLES)
        if shift_angstrom is not None:
            changed["shift_angstrom"] = np.array(shift_angstrom, np.float64)
            stored = self.stored_shift_angstrom(shift_angstrom)
            columns |= dict(zip(ORIGINS, stored.T, strict=True))
        if class_number is not None:
            changed["class_number"] = columns["rlnClassNumber"] = np.array(class_number, np.int64)
        if half_set is not None:
            changed["half_set"] = columns["rlnRandomSubset"] = np.array(half_set, np.int64)
        for name, values in columns.items():
            if np.shape(values) != (len(self),):
                raise InputError(
                    f"column {name}: expected one value for each of {len(self)} particles, shape "
                    f"{np.shape(values)} arrived"
                )
        kept = {
            name: values
            for name, values in self.new_columns.items()
            if psi_deg is None or name not in ANGLES
        }
        return replace(self, new_columns={**kept, **columns}, **changed)  # type: ignore[arg-type]

    def with_contrast(self, contrast: Contrast | None) -> "Particles":
        """Data set whose images are stored with white particles, or dark ones, which `images` gives
        white; None: as the file says. Files written from now on say so (csBlobSign)."""
        if contrast is None:
            return self
        sign = np.full(len(self), -1 if contrast == "dark" else 1)
        said = self.table if self.optics is None or CONTRAST not in self.optics else self.optics
        if (self.image_sign == sign).all() and (contrast == "white" or CONTRAST in said):
            return self
        optics = None if self.optics is None else self.optics.without(CONTRAST)
        columns = {**self.new_columns, CONTRAST: sign}
        return replace(self, image_sign=sign, optics=optics, new_columns=columns)

    def with_transfer(self, transfer: CTFParameters | None) -> "Particles":
        """Data set with other CTF parameters, which `write_star` will write; None: images without
        a CTF, and no defocus columns.

        Plain numbers serve all particles. What does not differ in float32, in which batches are
        evaluated, keeps its text in the file. Columns go where RELION keeps them: voltage,
        aberrations and beam tilt into the optics table, if each optics group has one value.

        Raises:
            InputError: another number of images, or a value that cannot be, named by its row.
        """
        if transfer is None:
            return self._without_transfer()
        new = transfer.arrays(len(self))
        new.check(lambda row, name: f"{self.path}: row {row + 1}, column _{name}")
        tables = ParticleTables(self.path, self.table, self.optics, self.optics_group)
        changed, columns = {}, ctf_columns(new, per_group=False) | ctf_columns(new, per_group=True)
        kept: set[str] = set()
        for one in quantities():
            before, now = _alike(getattr(self.transfer, one.name), getattr(new, one.name))
            same = before.astype(np.float32) == now.astype(np.float32)
            changed[one.name] = np.where(same, before, now)
            unread = not self.has_ctf and (one.required or tables.has(one.relion))
            if same.all() and not unread:
                kept.add(one.relion)
        matrix = {one.relion for one in quantities() if one.geometry}
        if not matrix <= kept:  # a file has all four of its elements, or none
            kept -= {name for name in matrix if not tables.has(name)}
        columns = {name: values for name, values in columns.items() if name not in kept}
        table, optics = write_transfer(tables, columns)
        rest = {name: values for name, values in self.new_columns.items() if name not in columns}
        magnified = replace(new, **changed).magnification
        boxes = np.array([grid.box for grid in self.grids])[self.stored]
        sizes = np.array([grid.pixel_size_angstrom for grid in self.grids])[self.stored]
        grids, stored = distinct_grids(boxes, sizes, magnified)
        return replace(
            self,
            grids=grids,
            stored=stored,
            transfer=replace(new, **changed),
            has_ctf=True,
            table=table,
            optics=optics,
            new_columns=rest,
        )

    def _without_transfer(self) -> "Particles":
        kept = {one.name: getattr(self.transfer, one.name) for one in quantities() if one.geometry}
        gone = (
            *DEFOCUS,
            *(QUANTITY[name].relion for name in ("premultiplied", *ABERRATIONS)),
        )
        return replace(
            self,
            transfer=replace(CTFParameters().arrays(len(self)), **kept),
            has_ctf=False,
            table=self.table.without(*gone),
            optics=None if self.optics is None else self.optics.without(*gone),
            new_columns={k: v for k, v in self.new_columns.items() if k not in gone},
        )

    def ctf(self, index: int) -> np.ndarray:
        """The CTF of image `index`, float32 `(N, N // 2 + 1)` on the layout of `numpy.fft.rfft2`
        (its parameters: `transfer.take([index])`).

        Raises:
            InputError: the data set has no CTF, or no such image.
        """
        return self._transfer(index).ctf[0].reshape(self.box, -1).numpy()

    def corrected(self, index: int) -> np.ndarray:
        """Image `index`, float32 `(N, N)`, with its phases right: those flipped where the CTF is
        negative, and the phase error of a beam tilt taken off; amplitudes are as they were.

        Raises:
            InputError: the data set has no CTF, or no such image.
        """
        import torch

        from halfmap.transfer_function import phase_flip

        transfer = self._transfer(index)
        samples = torch.fft.rfft2(torch.from_numpy(self.images(np.array([index]))))
        right = phase_flip(transfer.correct_phases(samples.flatten(1)), transfer.amplitude)
        return torch.fft.irfft2(right.unflatten(1, samples.shape[1:]), s=(self.box, self.box))[
            0
        ].numpy()

    def _transfer(self, index: int) -> "Transfer":
        """The transfer function of one image on the layout of rfft2."""
        from halfmap.transfer_function import rfft2_frequencies

        if not self.has_ctf:
            raise InputError(
                f"{self.path}: no CTF columns (rlnDefocusU ...) found, or the file was read "
                "without them"
            )
        if not -len(self) <= index < len(self):
            raise InputError(f"{self.path}: expected an image of 0 to {len(self) - 1}, got {index}")
        frequencies = rfft2_frequencies(self.box, self.pixel_size_angstrom)
        return self.transfer_at(np.array([index]), *frequencies)

    def write_star(self, path: str | os.PathLike[str]) -> None:
        """Write a RELION 3.1 style STAR (optics and particle blocks) with every input column,
        atomically.

        Shifts in pixels (RELION 3.0 and before) become Angstrom; image names that the new place
        would break become absolute paths, see `halfmap.io.paths.rename_images`.
        """
        write_star(path, self.star_blocks(path))

    def star_blocks(self, path: str | os.PathLike[str]) -> dict[str, Table]:
        """The blocks `optics` and `particles` that `write_star` writes to a path."""
        table = self.table.without(*OLD_ORIGINS) if ORIGINS[0] in self.new_columns else self.table
        table = table.with_columns(self.new_columns)
        table = rename_images(
            table, ImageNames(self.files, self.image_file, self.image_index), self.stack_paths, path
        )
        tables = ParticleTables(self.path, table, self.optics, self.optics_group)
        pixel = np.array([grid.pixel_size_angstrom for grid in self.grids])[self.stored]
        box = np.array([grid.box for grid in self.grids])[self.stored]
        return relion31_blocks(
            tables,
            shift_angstrom=self.stored_shift_angstrom(self.shift_angstrom),
            pixel_size_angstrom=pixel,
            box=box if box.all() else None,
        )

    def examine_images(self, indices: np.ndarray) -> Examined:
        """Faults of the images at `indices`, by row: those beyond repair, and hot pixels that can
        be mended (`halfmap.io.image_faults.examine`)."""
        found = Examined()
        indices = np.asarray(indices, np.int64)
        for first in range(0, len(indices), _CHECK_BATCH):
            rows = indices[first : first + _CHECK_BATCH]
            for places, _, images in self.stored_images(rows):
                for row, image in zip(rows[places].tolist(), images, strict=True):
                    reason, hot = examine(image)
                    if reason:
                        found.bad[row] = reason
                    elif len(hot):
                        found.hot[row] = hot
        return found

    def find_bad_images(self, indices: np.ndarray) -> dict[int, str]:
        """Particles whose image is beyond repair, with the reason: NaN or infinite pixels, a
        constant image, more hot pixels than can be mended."""
        return self.examine_images(indices).bad

    def mended(self, hot: Mapping[int, np.ndarray]) -> "Particles":
        """Data set whose `images` have these hot pixels, by row, mended as they are read."""
        key = zip(self.image_file.tolist(), self.image_index.tolist(), strict=True)
        names = list(key) if hot else []
        return replace(
            self, hot_pixels={**self.hot_pixels, **{names[row]: hot[row] for row in hot}}
        )

    def is_mended(self, indices: np.ndarray) -> np.ndarray:
        """Whether hot pixels of each image at `indices` are mended, bool `(b,)`."""
        if not self.hot_pixels:
            return np.zeros(len(indices), bool)
        names = zip(self.image_file[indices].tolist(), self.image_index[indices], strict=True)
        return np.array([name in self.hot_pixels for name in names])


def _as_rows(indices: ArrayLike) -> np.ndarray:
    """Integers; of a boolean mask, the places where it is true."""
    indices = np.asarray(indices)
    return np.flatnonzero(indices) if indices.dtype == bool else indices.astype(np.int64)


def _alike(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both arrays, the shorter lists of coefficients filled up with 0."""
    if one.ndim == 1:
        return one, other
    length = max(one.shape[1], other.shape[1])
    filled = [np.pad(a, ((0, 0), (0, length - a.shape[1]))) for a in (one, other)]
    return filled[0], filled[1]


def load_particles(
    path: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    check_images: CheckImages = True,
    use_ctf: bool = True,
    passthrough: Passthrough | None = None,
    contrast: Contrast | None = None,
) -> Particles:
    """Read a RELION STAR of any version, a cryoSPARC `.cs` (with its `passthrough` file, see
    `read_cs`), or a bare MRC stack.

    `data_dir` is a further folder in which stacks are looked for. `check_images=False` opens no
    stack (one, if it is there and the STAR has no image size or pixel size; `box` is 0 if neither
    tells): a missing stack is then found out when its images are read. `check_images="told"` opens
    all, and what is wrong with them is in `notes`. `use_ctf=False` (--no-ctf) leaves the CTF
    columns alone, complete or not. `contrast`: particles are stored white or dark, whatever the
    file says (see `Particles.with_contrast`).

    >>> import tempfile
    >>> import halfmap
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     made = halfmap.simulate(
    ...         "phantom", folder, n=3, snr=1, box=32, pixel_size_angstrom=6, overwrite=True
    ...     )
    ...     particles = load_particles(f"{folder}/particles.star")
    ...     particles.images([0, 2]).shape, particles.pixel_size_angstrom
    ((2, 32, 32), 6.0)

    Raises:
        InputError: anything wrong in the table or the stacks, in one line with file, row and
            column.
    """
    path = Path(path)
    if path.suffix.lower() in STACK_SUFFIXES:
        return Particles.from_stack(path).with_contrast(contrast)
    if path.suffix.lower() == ".cs":
        data, notes = read_cs(path, passthrough=passthrough)
        star, asked = cs_to_star(data, str(path))[0], (data_dir, check_images, use_ctf)
        particles = Particles(**fields_of_star(star, *asked))
        return replace(particles, notes=particles.notes + notes).with_contrast(contrast)
    if passthrough is not None:
        given = [passthrough] if isinstance(passthrough, str | os.PathLike) else passthrough
        raise InputError(
            f"--passthrough {', '.join(map(str, given))}: only a .cs file has passthrough files; "
            f"{path} is none"
        )
    refuse_other_files(path)
    columns = fields_of_star(read_star(path), data_dir, check_images, use_ctf)
    return Particles(**columns).with_contrast(contrast)
