"""Columns of subtracted particles, and the way back from them.

RELION's `rlnImageOriginalName` names the image that signal was taken off. How the image was moved
and cut stands in columns of our own, so that it can be undone, from refined poses too.
"""

import numpy as np

from halfmap.errors import InputError
from halfmap.io.relion import ORIGINS
from halfmap.io.table import Table

ORIGINAL_NAME = "rlnImageOriginalName"
_MOVED = ("halfmapMovedXPx", "halfmapMovedYPx")  # whole pixels
_CENTRE = ("halfmapCentreXAngst", "halfmapCentreYAngst", "halfmapCentreZAngst")
_ORIGINAL_ORIGINS = ("halfmapOriginalOriginXAngst", "halfmapOriginalOriginYAngst")
_SIGN, _ORIGINAL_SIGN = "csBlobSign", "halfmapOriginalBlobSign"  # the new images have it in them
_ORIGINAL_BOX = "halfmapOriginalImageSize"  # of the optics table
_WRITTEN_ANGSTROM = 2e-6  # two roundings to the six decimals of a STAR


def subtracted_columns(
    before: Table, moved_px: np.ndarray, centre_angstrom: np.ndarray
) -> tuple[dict[str, np.ndarray], Table]:
    """Columns that tell how images were moved, and the table with the old names and origins kept
    beside where the new ones will be; `before` names images as they will be found."""
    n = len(before)
    kept = {ORIGINAL_NAME: before.cells("rlnImageName")}
    origins = zip(ORIGINS, _ORIGINAL_ORIGINS, strict=True)
    for old, place in (*origins, (_SIGN, _ORIGINAL_SIGN)):
        if old in before:
            kept[place] = before.cells(old)
    columns = dict(zip(_MOVED, moved_px.round().astype(np.int64).T, strict=True))
    columns |= {name: np.full(n, c) for name, c in zip(_CENTRE, centre_angstrom, strict=True)}
    return columns, before.with_cells(kept)


def with_original_box(optics: Table, box: np.ndarray) -> Table:
    """The optics table with the box of the images before."""
    return optics.with_columns({_ORIGINAL_BOX: box})


def reverted_tables(
    particles: Table,
    optics: Table,
    rotations: np.ndarray,
    shift_angstrom: np.ndarray,
    pixel_size_angstrom: float,
) -> dict[str, Table]:
    """The blocks of the particles before, at the poses that they have now: `t + moved + (A c)_xy`.
    Poses that nothing has changed get their old cells to the letter.

    Args:
        particles, optics: tables of subtracted particles. rotations: (n, 3, 3). shift_angstrom:
            (n, 2) now. pixel_size_angstrom: of the images.

    Raises:
        InputError: these are no subtracted particles of this program's.
    """
    missing = [n for n in (ORIGINAL_NAME, *_MOVED, *_CENTRE) if n not in particles]
    if missing or _ORIGINAL_BOX not in optics:
        raise InputError(
            f"{particles.path}: column _{(missing or [_ORIGINAL_BOX])[0]} is missing; --revert "
            "takes what halfmap subtract wrote"
        )
    moved = np.stack([particles.floats(name) for name in _MOVED], axis=1) * pixel_size_angstrom
    centre = np.stack([particles.floats(name) for name in _CENTRE], axis=1)
    away = np.einsum("nij,nj->ni", rotations, centre)[:, :2]
    back = shift_angstrom + moved + away
    table = particles.with_cells({"rlnImageName": particles.cells(ORIGINAL_NAME)})
    table = table.with_columns(dict(zip(ORIGINS, back.T, strict=True)))
    if all(name in particles for name in _ORIGINAL_ORIGINS):
        old = np.stack([particles.floats(name) for name in _ORIGINAL_ORIGINS], axis=1)
        if np.abs(old - back).max() <= _WRITTEN_ANGSTROM:
            cells = {o: particles.cells(k) for o, k in zip(ORIGINS, _ORIGINAL_ORIGINS, strict=True)}
            table = table.with_cells(cells)
    elif np.abs(back).max() <= _WRITTEN_ANGSTROM:
        table = table.without(*ORIGINS)
    if _ORIGINAL_SIGN in particles:
        table = table.with_cells({_SIGN: particles.cells(_ORIGINAL_SIGN)}).without(_ORIGINAL_SIGN)
    table = table.without(ORIGINAL_NAME, *_MOVED, *_CENTRE, *_ORIGINAL_ORIGINS)
    optics = optics.with_cells({"rlnImageSize": optics.cells(_ORIGINAL_BOX)})
    return {"optics": optics.without(_ORIGINAL_BOX), "particles": table}
