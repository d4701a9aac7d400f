"""The micrograph of a particle, small, and where its particles lie in it.

What is read is what the STAR names, as for images: an MRC file of one frame, of which the page gets
a picture and never the file.
"""

import base64
import io
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from halfmap.commands._copies import micrograph_pixel_angstrom
from halfmap.errors import InputError
from halfmap.io.mrc import open_stack
from halfmap.io.paths import resolve
from halfmap.pages.pictures import to_grey
from halfmap.particles import Particles, load_particles
from halfmap.workspace.records import load_record

_SHOWN = 720  # pixels of the longer side of the picture
_MOST_PIXELS = 150_000_000  # of a micrograph: larger than any camera's
_MOST_BOXES = 1500  # particles that are marked beside the one
_SUFFIXES = (".mrc", ".mrcs", ".map", ".rec")
_COORDINATES = ("rlnCoordinateX", "rlnCoordinateY")


def particle_micrograph(folder: str, index: int) -> dict[str, Any]:
    """A picture of the particle's micrograph and the places of its particles, in its pixels; or
    only a `note` that says why there is none.

    Raises:
        InputError: no such particle.
    """
    place = Path(folder)
    star = place if place.is_file() else place / "particles.star"
    particles = load_particles(star, check_images=False)
    if not 0 <= index < len(particles):
        raise InputError(f"particle {index + 1}: there are {len(particles)}")
    if "rlnMicrographName" not in particles.table:
        return {"note": "The file names no micrographs."}
    name = str(particles.table.take(np.array([index])).strings("rlnMicrographName")[0])
    path = _found(name, star, place)
    if path is None:
        return {"name": name, "note": f"The micrograph {name} is not on this machine's disk."}
    try:
        picture, (height, width) = _picture(str(path), path.stat().st_mtime)
    except (InputError, OSError, ValueError) as error:
        return {"name": name, "note": f"The micrograph cannot be shown: {error}"}
    told = {"name": name, "picture": picture, "width": width, "height": height}
    return told | _boxes(particles, index)


def _found(name: str, star: Path, place: Path) -> Path | None:
    """Where the micrograph lies, if it does: looked for as images are, and from the directory in
    which the job was started."""
    parameters: dict[str, Any] = {}
    started: list[Path] = []
    if place.is_dir():
        record = load_record(place)
        parameters = record["parameters"]
        started = [Path(str(record.get("working_directory", "."))) / name]
    found = resolve(name, star, parameters.get("data_dir"))
    for one in [*([found] if found else []), *started]:
        if one.suffix.lower() in _SUFFIXES and one.is_file():
            return one
    return None


@lru_cache(maxsize=4)
def _picture(path: str, stamp: float) -> tuple[str, tuple[int, int]]:
    """The micrograph as the address of a small picture, and its height and width in pixels."""
    frames = open_stack(path)
    count, height, width = frames.shape
    if count != 1:
        raise InputError(f"{path}: one image was expected, it holds {count}")
    if height * width > _MOST_PIXELS:
        raise InputError(f"{path}: {width} x {height} pixels are too many to be shown")
    small = averaged(frames.read(np.array([0]))[0], _SHOWN)
    out = io.BytesIO()
    Image.fromarray(to_grey(small)).save(out, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}", (height, width)


def averaged(image: Float[np.ndarray, "y x"], longest: int) -> Float[np.ndarray, "Y X"]:
    """The image with blocks of pixels averaged, its longer side no more than `longest`: what is
    left over of a block at the far edges goes."""
    factor = max(1, -(-max(image.shape) // longest))
    y, x = (n // factor * factor for n in image.shape)
    blocks = image[:y, :x].reshape(y // factor, factor, x // factor, factor)
    return blocks.mean((1, 3))


def _boxes(particles: Particles, index: int) -> dict[str, Any]:
    """Centres of the micrograph's particles and the side of their boxes, in its pixels."""
    table = particles.table
    pixel = float(micrograph_pixel_angstrom(particles)[index])
    told: dict[str, Any] = {"pixel_angstrom": pixel}
    if not all(name in table for name in _COORDINATES):
        return {**told, "note": "The file has no coordinates, so its place is not marked."}
    rows = np.flatnonzero(particles.micrograph == particles.micrograph[index])
    others = rows[rows != index][:_MOST_BOXES]
    chosen = np.concatenate([[index], others])
    x, y = (table.floats(name)[chosen] for name in _COORDINATES)
    centres = [[int(i), float(a), float(b)] for i, a, b in zip(chosen, x, y, strict=True)]
    side = particles.box * particles.pixel_size_angstrom / pixel
    return {**told, "boxes": centres, "side": side, "of": len(rows)}
