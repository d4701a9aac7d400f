"""Signal outside a mask removed from particles, and the way back."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.alignment import Alignment, centre_of_mass_px
from halfmap.commands._beside import leave_record
from halfmap.commands._maps import (
    diameter_px,
    map_of,
    read_map_with_size,
    refuse_existing,
    refuse_own_images,
)
from halfmap.commands._options import (
    Annotated,
    Contrast,
    Ctf,
    DataDir,
    Option,
    OverwriteFile,
    Passthrough,
    Setting,
    Threads,
)
from halfmap.commands._summaries import counted, where
from halfmap.engine.batching import in_halves
from halfmap.engine.preprocessing import background
from halfmap.errors import InputError
from halfmap.io.mrc import same_pixel_size, write_map
from halfmap.io.new_images import blocks_of_new_images
from halfmap.io.paths import ImageNames, rename_images, resolve_all, split_image_names
from halfmap.io.relion import ParticleTables
from halfmap.io.stack_writer import StackWriter
from halfmap.io.star import write_star
from halfmap.io.subtracted import (
    ORIGINAL_NAME,
    reverted_tables,
    subtracted_columns,
    with_original_box,
)
from halfmap.masks import read_mask
from halfmap.options import command
from halfmap.particles import Particles, load_particles
from halfmap.resizing import crop_or_pad
from halfmap.signal_subtraction import (
    Views,
    fit_scale,
    recentred_shift,
    shells_of_scale,
    subtract_views,
    views_of,
    windows,
)
from halfmap.so3 import euler_to_matrix
from halfmap.workspace.machine import use_threads

_BATCH_BYTES = 1 << 26  # of images in memory at a time; transforms take a few times that
_SCALE = "rlnGroupScaleCorrection"


@dataclass(frozen=True)
class Subtracted:
    """The STAR written, its stack, the scale of the map in the images by optics group, and the map
    and mask moved with the images."""

    path: Path
    count: int
    stack: Path | None
    scales: tuple[float, ...] = ()
    map_path: Path | None = None

    @property
    def summary(self) -> str:
        if self.stack is None or self.map_path is None:
            count = counted(self.count, "particle")
            return f"{count} with their images from before: {where(self.path)}"
        scales = ", ".join(f"{s:.3f}" for s in self.scales)
        return (
            f"{counted(self.count, 'image')} in {where(self.stack)} (scale of the map {scales}), "
            f"map of the part {where(self.map_path)}: {where(self.path)}"
        )


@command
def subtract(
    source: Annotated[
        str | Path,
        Option(
            "Job folder of a refinement, or particles with poses (STAR) and --reference",
            positional=True,
            metavar="JOB|STAR",
        ),
    ],
    out: Annotated[
        str | Path,
        Option("STAR to write; its stack (.mrcs) beside it", metavar="STAR", recorded=False),
    ],
    *,
    mask: Annotated[
        str | Path | None,
        Option(
            "Mask of the part that stays, values 0 to 1",
            metavar="MAP",
            unset="for --revert",
            idle_beside=(Setting("revert"),),
        ),
    ] = None,
    reference: Annotated[
        str | Path | None,
        Option("Refined map", metavar="MAP", unset="the job's", idle_beside=(Setting("revert"),)),
    ] = None,
    box: Annotated[
        int | None,
        Option(
            "Cut the images to this box",
            unit="px",
            at_least=16,
            unset="as it is",
            idle_beside=(Setting("revert"),),
        ),
    ] = None,
    recentre: Annotated[
        bool,
        Option(
            "Move the mask's centre of mass to the images' centre",
            idle_beside=(Setting("revert"),),
        ),
    ] = False,
    diameter_angstrom: Annotated[
        float | None,
        Option(
            "Diameter of the particle, beyond which is background",
            unit="A",
            above=0,
            unset="measured in the map",
            idle_beside=(Setting("revert"),),
        ),
    ] = None,
    ctf: Ctf = True,
    revert: Annotated[
        bool, Option("Go back to the images from before, at the poses that particles have now")
    ] = False,
    data_dir: DataDir = None,
    passthrough: Passthrough = None,
    contrast: Contrast = None,
    threads: Threads = None,
    overwrite: OverwriteFile = False,
) -> Subtracted:
    """Take off particle images what a refined map shows outside a mask, at each particle's pose,
    shift, CTF and scale; cut and recentre the images on the part that stays, if asked for.

    The scale of the map in the images is fitted for each optics group, and follows
    `rlnGroupScaleCorrection` where the file has it; it is smaller in shells where the map is less
    damped than on the whole. Map and mask of the part, moved and cut as the
    images, are written beside the stack. `--revert` undoes it all.

    Example: halfmap subtract refined --mask part.mrc --recentre --box 96 --out part.star

    Raises:
        InputError: no poses, no CTF with `ctf`, no mask, one that leaves nothing to subtract or
            does not fit, sizes that differ, or `out` exists.
    """
    arguments, path = locals(), Path(out)
    if path.suffix.lower() != ".star":
        raise InputError(f"--out {out}: expected the name of a STAR file, ending in .star")
    use_threads(threads)
    star = Path(source) / "particles.star" if Path(source).is_dir() else Path(source)
    if revert:
        refuse_existing([path], overwrite=overwrite)
        undone = _reverted(star, path, data_dir)
        leave_record(subtract, arguments, path, particles=undone.count, summary=undone.summary)
        return undone
    read = partial(
        load_particles,
        star,
        use_ctf=ctf,
        data_dir=data_dir,
        passthrough=passthrough,
        contrast=contrast,
    )
    task = _task(source, read, mask, reference, box, diameter_angstrom, ctf=ctf)
    stack, part = path.with_suffix(".mrcs"), path.with_name(f"{path.stem}_map.mrc")
    outputs = [path, stack, part, path.with_name(f"{path.stem}_mask.mrc")]
    refuse_existing(outputs, overwrite=overwrite)
    refuse_own_images(task.data, [stack])
    centre = centre_of_mass_px(task.mask) if recentre else torch.zeros(3)
    scales, by_shell = task.scales()
    moved, left = task.moves(centre)
    _write_images(task, stack, scales, by_shell, moved)
    _write_table(task, path, stack, moved.numpy(), left.numpy(), centre)
    laid = Alignment(torch.eye(3), centre, False, 1.0)
    for density, file in ((task.map * task.mask, outputs[2]), (task.mask, outputs[3])):
        placed = crop_or_pad(laid.apply_to_map(density), task.box, dimensions=3)
        placed = placed.clamp(0, 1) if density is task.mask else placed
        write_map(file, placed.numpy(), task.data.pixel_size_angstrom)
    group = task.data.optics_group
    shown = tuple(float(scales[group == g].mean()) for g in np.unique(group))
    done = Subtracted(path, len(task.data), stack, shown, part)
    kept = {"images": done.count, "summary": done.summary}
    leave_record(subtract, arguments, path, outputs[1:], **kept)
    return done


@dataclass(frozen=True)
class _Task:
    """Particles, the map and the mask of the part that stays, the new box, the radius beyond which
    is background."""

    data: Particles
    map: Float[Tensor, "N N N"]
    mask: Float[Tensor, "N N N"]
    box: int
    radius_px: float
    ctf: bool

    def batches(self) -> Iterator[np.ndarray]:
        size = max(1, _BATCH_BYTES // (4 * self.data.box**2))
        for first in range(0, len(self.data), size):
            yield np.arange(first, min(first + size, len(self.data)))

    def relative_scale(self) -> np.ndarray:
        """The scale that the file tells of each particle, 1 where it does not."""
        table = self.data.table
        return table.floats(_SCALE) if _SCALE in table else np.ones(len(self.data))

    def normalised(self, rows: np.ndarray) -> tuple[Float[Tensor, "B N N"], Float[Tensor, " B"]]:
        """Images, and the standard deviation of their background."""
        images = torch.from_numpy(self.data.images(rows))
        return images, background(images, self.radius_px)[1]

    def scales(self) -> tuple[np.ndarray, Float[Tensor, " shells"]]:
        """Scale of the whole map in each image, in deviations of its background: fitted by optics
        group, times what the file tells; and the share of it that holds in each shell."""
        views = views_of(self.map, use_ctf=self.ctf)
        relative, group = self.relative_scale(), self.data.optics_group
        sums = torch.zeros(2, int(group.max()) + 1, views.plane.radius + 1, dtype=torch.float64)

        def fit(rows: np.ndarray) -> tuple[Tensor, Tensor]:
            images, deviation = self.normalised(rows)
            shown = views.of(self.data, rows) * torch.from_numpy(relative[rows]).float()[:, None]
            return fit_scale(images / deviation[:, None, None], shown, views.plane)

        for batch in self.batches():
            for rows, found in in_halves(batch, fit):
                of_group = torch.from_numpy(group[rows]).long()
                for total, one in zip(sums, found, strict=True):
                    total.index_add_(0, of_group, one.double())
        cross, power = sums
        fitted = (cross.sum(1) / power.sum(1).clamp_min(1e-30)).numpy()
        if (fitted[np.unique(group)] <= 0).any():
            raise InputError(
                f"{self.data.path}: the map does not correlate with the images at these poses; "
                "expected the map that the poses are of, and images of its contrast"
            )
        by_shell = shells_of_scale(cross, power, torch.from_numpy(fitted))
        return fitted[group] * relative, by_shell.float()

    def moves(
        self, centre: Float[Tensor, " 3"]
    ) -> tuple[Float[Tensor, "n 2"], Float[Tensor, "n 2"]]:
        """Whole pixels by which images move, and origins that are left, in pixels."""
        data = self.data
        shift_px = torch.from_numpy(data.shift_angstrom / data.pixel_size_angstrom)
        if not bool(centre.any()) and self.box == data.box:
            return torch.zeros_like(shift_px), shift_px
        rotations = euler_to_matrix(torch.from_numpy(data.rotations_deg))
        return recentred_shift(shift_px, rotations, centre.double())


def _task(
    source: str | Path,
    read: Callable[[], Particles],
    mask: str | Path | None,
    reference: str | Path | None,
    box: int | None,
    diameter_angstrom: float | None,
    *,
    ctf: bool,
) -> _Task:
    if mask is None:
        raise InputError("--mask: expected the mask of the part that stays; only --revert has none")
    if reference is None and not Path(source).is_dir():
        raise InputError(f"{source}: is no job folder; give the refined map with --reference")
    map_path = map_of(source if reference is None else reference)
    volume, voxel = read_map_with_size(map_path)
    data = read()
    star = data.path
    if not data.has_poses:
        raise InputError(f"{star}: no poses (rlnAngleRot ...); give the result of a refinement")
    if ctf and not data.has_ctf:
        raise InputError(f"{star}: no CTF columns (rlnDefocusU ...); add them, or say --no-ctf")
    if volume.shape[-1] != data.box or not same_pixel_size(voxel, data.pixel_size_angstrom):
        raise InputError(
            f"{map_path}: {volume.shape[-1]} voxels of {voxel:.4g} A, images have {data.box} of "
            f"{data.pixel_size_angstrom:.4g} A; resample the map"
        )
    if len(data.grids) > 1:
        raise InputError(
            f"{star}: optics groups are stored on several grids; bring them onto one first, with "
            "halfmap stack"
        )
    kept = read_mask(mask, data.box, data.pixel_size_angstrom)
    outside = volume * (1 - kept)
    if float(outside.square().sum()) <= 1e-6 * float(volume.square().sum()):
        raise InputError(f"mask {mask}: holds all of the map; nothing is outside to be subtracted")
    if box is not None and box > data.box:
        raise InputError(f"--box {box}: expected at most {data.box}, the images' box")
    across = diameter_px(diameter_angstrom, volume, data.pixel_size_angstrom)
    return _Task(data, volume, kept, box or data.box, across / 2, ctf)


def _write_images(
    task: _Task,
    stack: Path,
    scales: np.ndarray,
    by_shell: Float[Tensor, " shells"],
    moved: Float[Tensor, "n 2"],
) -> None:
    """The stack, batch by batch."""
    views: Views = views_of(task.map * (1 - task.mask), use_ctf=task.ctf)
    whole = task.box == task.data.box and not bool(moved.any())

    def subtracted(rows: np.ndarray) -> Float[Tensor, "B M M"]:
        images, deviation = task.normalised(rows)
        strength = deviation * torch.from_numpy(scales[rows]).float()
        shown = views.of(task.data, rows) * by_shell[views.plane.shell]
        images = subtract_views(images, shown, views.plane, strength)
        return images if whole else windows(images, moved[rows], task.box)

    with StackWriter(stack, task.data.pixel_size_angstrom) as writer:
        for batch in task.batches():
            for _, images in in_halves(batch, subtracted):
                writer.append(images.numpy())


def _write_table(
    task: _Task,
    path: Path,
    stack: Path,
    moved_px: np.ndarray,
    left_px: np.ndarray,
    centre_px: Float[Tensor, " 3"],
) -> None:
    data, pixel = task.data.stored_as_read(), task.data.pixel_size_angstrom
    names = ImageNames(data.files, data.image_file, data.image_index)
    before = data.star_blocks(path)  # with names as they will be found from there
    columns, table = subtracted_columns(
        before["particles"], moved_px, centre_px.double().numpy() * pixel
    )
    if moved_px.any() or centre_px.any():
        left = left_px * pixel
        columns |= {"rlnOriginXAngst": left[:, 0], "rlnOriginYAngst": left[:, 1]}
    tables = ParticleTables(data.path, table, before["optics"], data.optics_group)
    optics = before["optics"]
    original = optics.ints("rlnImageSize") if "rlnImageSize" in optics else [data.box] * len(optics)
    blocks = blocks_of_new_images(
        tables,
        [f"{i + 1:06d}@{stack}" for i in range(len(names.index))],
        shift_angstrom=data.shift_angstrom,
        pixel_size_angstrom=pixel,
        box=task.box,
        columns=columns,
    )
    blocks["optics"] = with_original_box(blocks["optics"], np.asarray(original))
    write_star(path, blocks)


def _reverted(star: Path, path: Path, data_dir: str | Path | None) -> Subtracted:
    """The particles with their images from before."""
    data = load_particles(star, data_dir=data_dir, check_images=False, use_ctf=False)
    if ORIGINAL_NAME not in data.table or data.optics is None:
        raise InputError(
            f"{star}: column _{ORIGINAL_NAME} is missing; --revert takes what halfmap subtract "
            "wrote, or a refinement of it"
        )
    rotations = euler_to_matrix(torch.from_numpy(data.rotations_deg)).numpy()
    blocks = reverted_tables(
        data.table, data.optics, rotations, data.shift_angstrom, data.pixel_size_angstrom
    )
    names = split_image_names(blocks["particles"].strings("rlnImageName").tolist(), str(star))
    found = resolve_all(names.files, star, data_dir)
    blocks["particles"] = rename_images(blocks["particles"], names, found, path)
    write_star(path, blocks)
    return Subtracted(path, len(data), None)
