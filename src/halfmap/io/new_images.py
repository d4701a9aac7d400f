"""Tables of a data set whose images were written anew: other stacks, another box or pixel size."""

from collections.abc import Mapping, Sequence

import numpy as np

from halfmap.io.dialects import relion31_blocks
from halfmap.io.relion import ParticleTables
from halfmap.io.table import Table

# Of the particle table, in files of RELION 3.0 and before or of other programs: the optics table
# has them now. A sign is in the images that were written.
_OF_THE_OLD_IMAGES = (
    "rlnImagePixelSize",
    "rlnImageSize",
    "rlnPixelSize",
    "rlnMagnification",
    "rlnDetectorPixelSize",
    "csBlobSign",
)


def blocks_of_new_images(
    tables: ParticleTables,
    image_names: Sequence[str],
    *,
    shift_angstrom: np.ndarray,
    pixel_size_angstrom: float,
    box: int,
    columns: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Table]:
    """Blocks `optics` and `particles` (RELION 3.1) that name the new images (`index@stack`, one a
    row) and their size; every other column as it was, `columns` added or replaced."""
    rows = len(image_names)
    blocks = relion31_blocks(
        tables,
        shift_angstrom=shift_angstrom,
        pixel_size_angstrom=np.full(rows, float(pixel_size_angstrom)),
        box=np.full(rows, box),
    )
    n = len(blocks["optics"])
    optics = blocks["optics"].with_columns(
        {"rlnImagePixelSize": [float(pixel_size_angstrom)] * n, "rlnImageSize": [box] * n}
    )
    particles = blocks["particles"].without(*_OF_THE_OLD_IMAGES)
    named = {"rlnImageName": np.array(image_names, object), **(columns or {})}
    return {
        "optics": optics.without("rlnMagnification", "rlnDetectorPixelSize", "rlnPixelSize"),
        "particles": particles.with_columns(named),
    }
