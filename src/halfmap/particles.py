"""The data set: metadata columns in plain arrays, images read lazily from the stacks on disk."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from halfmap.ctf_parameters import DEFOCUS, QUANTITY, CTFParameters, quantities
from halfmap.errors import InputError
from halfmap.io.cryosparc import cs_to_star
from halfmap.io.cs_files import Passthrough, read_cs
from halfmap.io.dialects import relion31_blocks
from halfmap.io.image_faults import Examined, examine, mend
from halfmap.io.mrc import open_stack
from halfmap.io.paths import ImageNames, not_found, rename_images, resolve_all, split_image_names
from halfmap.io.relion import (
    ANGLES,
    OLD_ORIGINS,
    ORIGINS,
    ParticleTables,
    ctf_columns,
    ctf_parameters,
    particle_tables,
    pixel_size,
    poses,
    write_transfer,
)
from halfmap.io.stacks import OpenStacks, check_stacks
from halfmap.io.star import StarFile, read_star, write_star
from halfmap.io.table import Table

if TYPE_CHECKING:
    from halfmap.transfer_function import Transfer

_CHECK_BATCH = 256


Contrast = Literal["dark", "white"]
CONTRAST = "csBlobSign"  # -1: stored dark on light, as cryoSPARC's blob/sign
STACK_SUFFIXES = (".mrcs", ".mrc", ".st")  # what `load_particles` takes for a bare stack


@dataclass(frozen=True, eq=False, repr=False)
class Particles:
    """n particles: one row per image in every array, RELION's conventions, Angstrom and degrees.

    `take`, `with_results` and `with_transfer` return new data sets; nothing is changed in place.
    Images are read by `images` only.
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
        names = [f"{i + 1:06d}@{Path(path).absolute()}" for i in range(len(stack))]
        columns: dict[str, list] = {"rlnImageName": names}
        if pixel_size_angstrom is not None:
            columns["rlnImagePixelSize"] = [float(pixel_size_angstrom)] * len(names)
        table = Table.from_columns(columns, path=str(path))
        return _from_star(StarFile(str(path), {"particles": table}), None, True, True)

    def images(self, indices: ArrayLike) -> np.ndarray:
        """Images float32 `(b, N, N)` of the particles at `indices` `(b,)`, in that order.

        Raises:
            InputError: a stack is missing, or shorter than a row says.
        """
        indices = np.asarray(indices)
        indices = np.flatnonzero(indices) if indices.dtype == bool else indices.astype(np.int64)
        out = np.empty((len(indices), self.box, self.box), np.float32)
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

    def take(self, indices: ArrayLike) -> "Particles":
        """The particles at `indices` (integers in any order, or a boolean mask); stacks stay
        shared."""
        indices = np.asarray(indices)
        indices = np.flatnonzero(indices) if indices.dtype == bool else indices.astype(np.int64)
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
            columns |= dict(zip(ORIGINS, np.asarray(shift_angstrom).T, strict=True))
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
        for one in quantities():
            before, now = getattr(self.transfer, one.name), getattr(new, one.name)
            same = before.astype(np.float32) == now.astype(np.float32)
            changed[one.name] = np.where(same, before, now)
            unread = not self.has_ctf and (one.required or tables.has(one.relion))
            if same.all() and not unread:
                del columns[one.relion]
        table, optics = write_transfer(tables, columns)
        rest = {name: values for name, values in self.new_columns.items() if name not in columns}
        return replace(
            self,
            transfer=replace(new, **changed),
            has_ctf=True,
            table=table,
            optics=optics,
            new_columns=rest,
        )

    def _without_transfer(self) -> "Particles":
        gone = (*DEFOCUS, QUANTITY["premultiplied"].relion)
        return replace(
            self,
            transfer=CTFParameters().arrays(len(self)),
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
        from halfmap.transfer_function import evaluate, rfft2_frequencies

        if not self.has_ctf:
            raise InputError(
                f"{self.path}: no CTF columns (rlnDefocusU ...) found, or the file was read "
                "without them"
            )
        if not -len(self) <= index < len(self):
            raise InputError(f"{self.path}: expected an image of 0 to {len(self) - 1}, got {index}")
        parameters = self.transfer.take(np.array([index]))
        return evaluate(parameters, *rfft2_frequencies(self.box, self.pixel_size_angstrom))

    def write_star(self, path: str | os.PathLike[str]) -> None:
        """Write a RELION 3.1 style STAR (optics and particle blocks) with every input column,
        atomically.

        Shifts in pixels (RELION 3.0 and before) become Angstrom; image names that the new place
        would break become absolute paths, see `halfmap.io.paths.rename_images`.
        """
        table = self.table.without(*OLD_ORIGINS) if ORIGINS[0] in self.new_columns else self.table
        table = table.with_columns(self.new_columns)
        table = rename_images(
            table, ImageNames(self.files, self.image_file, self.image_index), self.stack_paths, path
        )
        tables = ParticleTables(self.path, table, self.optics, self.optics_group)
        pixel, box = self.pixel_size_angstrom, self.box or None
        write_star(
            path,
            relion31_blocks(
                tables, shift_angstrom=self.shift_angstrom, pixel_size_angstrom=pixel, box=box
            ),
        )

    def examine_images(self, indices: np.ndarray) -> Examined:
        """Faults of the images at `indices`, by row: those beyond repair, and hot pixels that can
        be mended (`halfmap.io.image_faults.examine`)."""
        found = Examined()
        indices = np.asarray(indices, np.int64)
        for first in range(0, len(indices), _CHECK_BATCH):
            rows = indices[first : first + _CHECK_BATCH]
            for row, image in zip(rows.tolist(), self.images(rows), strict=True):
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


def load_particles(
    path: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    check_images: bool = True,
    use_ctf: bool = True,
    passthrough: Passthrough | None = None,
    contrast: Contrast | None = None,
) -> Particles:
    """Read a RELION STAR of any version, a cryoSPARC `.cs` (with its `passthrough` file, see
    `read_cs`), or a bare MRC stack.

    `data_dir` is a further folder in which stacks are looked for. `check_images=False` opens no
    stack (one, if it is there and the STAR has no image size or pixel size; `box` is 0 if neither
    tells): a missing stack is then found out when its images are read. `use_ctf=False` (--no-ctf)
    leaves the CTF columns alone, complete or not. `contrast`: particles are stored white or dark,
    whatever the file says (see `Particles.with_contrast`).

    Raises:
        InputError: anything wrong in the table or the stacks, in one line with file, row and
            column.
    """
    path = Path(path)
    if path.suffix.lower() in STACK_SUFFIXES:
        return Particles.from_stack(path).with_contrast(contrast)
    if path.suffix.lower() == ".cs":
        data, notes = read_cs(path, passthrough=passthrough)
        particles = _from_star(cs_to_star(data, str(path))[0], data_dir, check_images, use_ctf)
        return replace(particles, notes=particles.notes + notes).with_contrast(contrast)
    if passthrough is not None:
        raise InputError(
            f"--passthrough {passthrough}: only a .cs file has passthrough files; {path} is none"
        )
    return _from_star(read_star(path), data_dir, check_images, use_ctf).with_contrast(contrast)


def _from_star(
    star: StarFile, data_dir: str | os.PathLike[str] | None, check_images: bool, use_ctf: bool
) -> Particles:
    tables = particle_tables(star)
    particles = tables.particles
    names = split_image_names(particles.strings("rlnImageName").tolist(), star.path)
    found = resolve_all(names.files, star.path, data_dir)
    size, notes = pixel_size(tables), []
    need_header = (size is None or not tables.has("rlnImageSize")) and found[0] is not None
    box, header_size = 0, 0.0
    stacks = OpenStacks()
    if check_images or need_header:
        box, header_size = check_stacks(
            star.path, names, found, data_dir, stacks, first_only=not check_images
        )
    if tables.has("rlnImageSize"):
        sizes = tables.floats("rlnImageSize")
        differs = np.flatnonzero(sizes != (box or sizes[0]))
        if len(differs):
            row = int(differs[0])
            raise InputError(
                f"{star.path}: row {row + 1}: optics group {tables.optics_group[row] + 1} says "
                f"_rlnImageSize {sizes[row]:g}, "
                f"{'the stack has' if box else 'row 1 says'} {box or sizes[0]:g} pixels; images "
                "of one size are needed"
            )
        box = box or int(sizes[0])
    if size is None:
        if header_size <= 0:
            raise InputError(
                f"{star.path}: no pixel size: no column _rlnImagePixelSize (or "
                "_rlnDetectorPixelSize with _rlnMagnification), and the MRC "
                "header has none; add the column"
            )
        size = header_size
        notes.append(
            f"{star.path} has no pixel size column; {size:.4f} A was taken from the MRC header"
        )
    rotations, shifts, has_poses = poses(tables, size)
    transfer, has_ctf = ctf_parameters(tables, use_ctf=use_ctf)
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
        pd.factorize(particles.strings("rlnMicrographName"))[0]
        if "rlnMicrographName" in particles
        else np.zeros(n, np.int64)
    )
    return Particles(
        path=star.path,
        table=particles,
        optics=tables.optics,
        box=box,
        pixel_size_angstrom=size,
        has_poses=has_poses,
        has_ctf=has_ctf,
        notes=tuple(notes),
        rotations_deg=rotations,
        shift_angstrom=shifts,
        class_number=particles.ints("rlnClassNumber")
        if "rlnClassNumber" in particles
        else np.ones(n, np.int64),
        half_set=half_set,
        optics_group=tables.optics_group,
        micrograph=micrograph.astype(np.int64),
        transfer=transfer,
        image_sign=np.where(tables.floats(CONTRAST, 1.0) < 0, -1, 1),
        image_file=names.file,
        image_index=names.index,
        files=names.files,
        stack_paths=found,
        _stacks=stacks,
    )
