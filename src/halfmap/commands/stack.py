"""Particle images written anew: smaller, cropped, normalised, in fewer bytes, in one stack or
several."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.commands._beside import leave_record
from halfmap.commands._maps import refuse_existing, refuse_own_images
from halfmap.commands._options import (
    Annotated,
    Contrast,
    DataDir,
    Option,
    OverwriteFile,
    ParticlesFile,
    Passthrough,
    Setting,
    Threads,
)
from halfmap.commands._summaries import counted, where
from halfmap.engine.batching import in_halves
from halfmap.engine.preprocessing import normalise as normalise_images
from halfmap.errors import InputError
from halfmap.io.new_images import blocks_of_new_images
from halfmap.io.relion import ParticleTables
from halfmap.io.stack_writer import StackWriter
from halfmap.io.star import write_star
from halfmap.options import command
from halfmap.particles import Particles, load_particles
from halfmap.resizing import crop_or_pad, fourier_resize
from halfmap.workspace.machine import use_threads

_BATCH_BYTES = 1 << 27  # of images in memory at a time
# RELION's default radius of the background circle, as a share of the box
_BACKGROUND_SHARE = 0.75


@dataclass(frozen=True)
class StackWritten:
    """The STAR written, its stacks, what the images are now, and the rows (from 1) of those that
    hold NaN or infinite pixels."""

    path: Path
    stacks: tuple[Path, ...]
    count: int
    box: int
    pixel_size_angstrom: float
    broken: tuple[int, ...] = ()

    @property
    def summary(self) -> str:
        stacks = where(self.stacks[0])
        if len(self.stacks) > 1:
            stacks += f" ... {self.stacks[-1].name} ({len(self.stacks)} stacks)"
        broken = ""
        if self.broken:
            broken = (
                f" ({counted(len(self.broken), 'image')} with NaN or infinite pixels, for example "
                f"row {self.broken[0]})"
            )
        return (
            f"{counted(self.count, 'image')} of {self.box} pixels, "
            f"{self.pixel_size_angstrom:.4g} A, in {stacks}{broken}: {where(self.path)}"
        )


@dataclass(frozen=True)
class _Change:
    """What is done to images: cropped or padded to `cropped` pixels, then Fourier-cropped to
    `box`; the radius outside which they are normalised, in final pixels, None for not at all."""

    cropped: int
    box: int
    background_px: float | None

    def __call__(self, images: Float[Tensor, "B N N"]) -> Float[Tensor, "B M M"]:
        images = crop_or_pad(images, self.cropped, dimensions=2)
        images = fourier_resize(images, self.box, dimensions=2)
        if self.background_px is None:
            return images
        return normalise_images(images, self.background_px, spread=True)


@command
def stack(
    particles: ParticlesFile,
    out: Annotated[
        str | Path,
        Option(
            "STAR to write; the stack (.mrcs) is written beside it", metavar="STAR", recorded=False
        ),
    ],
    *,
    box: Annotated[
        int | None,
        Option(
            "Crop or pad the images to this box first", unit="px", at_least=8, unset="as they are"
        ),
    ] = None,
    downsample: Annotated[
        int | None,
        Option("Fourier-crop to this box, of the same width", unit="px", at_least=8, unset="no"),
    ] = None,
    pixel_size_angstrom: Annotated[
        float | None,
        Option(
            "Fourier-crop to the even box whose pixels come nearest to this size",
            unit="A",
            above=0,
            metavar="ANGSTROM",
            unset="no",
        ),
    ] = None,
    normalise: Annotated[
        bool, Option("Background mean 0 and standard deviation 1 in each image")
    ] = False,
    diameter_angstrom: Annotated[
        float | None,
        Option(
            "Diameter beyond which is background",
            unit="A",
            above=0,
            unset="three quarters of the box",
            needs=(Setting("normalise"),),
        ),
    ] = None,
    float16: Annotated[
        bool, Option("Two bytes a pixel (MRC mode 12; RELION reads it from version 4)")
    ] = False,
    split: Annotated[
        int | None,
        Option("Images in each stack", at_least=1, metavar="N", unset="all in one"),
    ] = None,
    data_dir: DataDir = None,
    passthrough: Passthrough = None,
    contrast: Contrast = None,
    threads: Threads = None,
    overwrite: OverwriteFile = False,
) -> StackWritten:
    """Write the images of a particle file anew: cropped or padded, downsampled, normalised, as
    float16; all in one stack, however many they came in, or split. The STAR keeps every column,
    with pixel size and box of the new images.

    Example: halfmap stack --particles particles.star --downsample 128 --normalise --out small.star

    Raises:
        InputError: unreadable files, a box larger than the images to downsample to, a diameter
            wider than the box, or `out` exists.
    """
    arguments, path = locals(), Path(out)
    if path.suffix.lower() != ".star":
        raise InputError(f"--out {out}: expected the name of a STAR file, ending in .star")
    use_threads(threads)
    data = load_particles(particles, data_dir=data_dir, passthrough=passthrough, contrast=contrast)
    change = _change(data, box, downsample, pixel_size_angstrom)
    pixel = data.pixel_size_angstrom * change.cropped / change.box
    if normalise:
        across = diameter_angstrom or _BACKGROUND_SHARE * change.box * pixel
        if across >= change.box * pixel:
            raise InputError(
                f"--diameter {across:g}: expected less than the box, {change.box * pixel:.4g} A"
            )
        change = _Change(change.cropped, change.box, across / 2 / pixel)
    stacks = _names(path, len(data), split)
    refuse_existing([path, *stacks], overwrite=overwrite)
    refuse_own_images(data, stacks)
    size = split or len(data)
    names: list[str] = []

    broken: list[int] = []

    def changed(rows: np.ndarray) -> Tensor:
        return change(torch.from_numpy(data.images(rows)))

    for number, file in enumerate(stacks):
        rows = np.arange(number * size, min((number + 1) * size, len(data)))
        with StackWriter(file, pixel, half_precision=float16) as writer:
            for batch in _batches(rows, data.box):
                for some, images in in_halves(batch, changed):
                    writer.append(images.numpy())
                    broken += some[~torch.isfinite(images).all(dim=(1, 2)).numpy()].tolist()
        names += [f"{i + 1:06d}@{file}" for i in range(len(rows))]
    seen = data.stored_as_read()  # optics groups on several grids are on one now
    table = seen.table.with_columns(seen.new_columns)
    tables = ParticleTables(seen.path, table, seen.optics, seen.optics_group)
    blocks = blocks_of_new_images(
        tables,
        names,
        shift_angstrom=data.shift_angstrom,
        pixel_size_angstrom=pixel,
        box=change.box,
    )
    write_star(path, blocks)
    done = StackWritten(
        path, tuple(stacks), len(data), change.box, pixel, tuple(row + 1 for row in broken)
    )
    leave_record(stack, arguments, path, stacks, images=len(data), summary=done.summary)
    return done


def _change(
    data: Particles, box: int | None, downsample: int | None, pixel_size_angstrom: float | None
) -> _Change:
    cropped = box or data.box
    if downsample is not None and pixel_size_angstrom is not None:
        raise InputError("--downsample and --pixel-size: expected one of them")
    final = downsample or cropped
    if pixel_size_angstrom is not None:
        final = 2 * round(cropped * data.pixel_size_angstrom / pixel_size_angstrom / 2)
    if not 8 <= final <= cropped:
        raise InputError(
            f"--downsample, --pixel-size: {final} pixels of the {cropped} that images have; "
            f"expected 8 to {cropped}, pixels of {data.pixel_size_angstrom:.4g} A or more"
        )
    return _Change(cropped, final, None)


def _names(star: Path, count: int, split: int | None) -> list[Path]:
    """Stacks beside the STAR: one of its name, or numbered ones."""
    if split is None or split >= count:
        return [star.with_suffix(".mrcs")]
    number = -(-count // split)
    digits = max(3, len(str(number)))
    return [star.with_name(f"{star.stem}_{i + 1:0{digits}d}.mrcs") for i in range(number)]


def _batches(rows: np.ndarray, box: int) -> Iterator[np.ndarray]:
    size = max(1, _BATCH_BYTES // (4 * box * box))
    for first in range(0, len(rows), size):
        yield rows[first : first + size]
