"""Files and columns of programs that are not read: how they are told, and the way to what is."""

import os
from collections.abc import Iterable
from pathlib import Path

from halfmap.errors import InputError


def of_other_program(columns: Iterable[str]) -> str:
    """In words, what to do with a table whose columns are another program's; empty if they are
    not."""
    for name in columns:
        for start, (program, way) in _OTHERS.items():
            if name.startswith(start):
                return f"; its columns are {program}'s: {way}"
    return ""


_OTHERS = {
    "cisTEM": ("cisTEM", "export the refinement package to RELION's format there"),
    "itemId": ("Xmipp", "convert it to RELION's STAR in Scipion or with xmipp_metadata_utilities"),
    "image": ("Xmipp", "convert it to RELION's STAR in Scipion or with xmipp_metadata_utilities"),
    "wrn": ("Warp", "export particles from Warp as RELION's STAR"),
}
# files of other programs that hold particles, by the ends of their names
OTHER_FILES = {
    ".par": "FREALIGN's parameters: import them with cisTEM and export RELION's STAR there",
    ".lst": "a list of EMAN2: write RELION's STAR with e2refinetorelion.py",
    ".hdf": "a stack of EMAN2: write it as .mrcs with e2proc2d.py",
    ".tbl": "a table of Dynamo: write RELION's STAR with dynamo2relion",
    ".xmd": "Xmipp's metadata: export RELION's STAR in Scipion",
    ".csg": "a group of cryoSPARC's files: give the .cs files that it names",
    ".stk": "a stack of SPIDER: write it as .mrcs",
    ".img": "a stack of IMAGIC: write it as .mrcs",
    ".hed": "a stack of IMAGIC: write it as .mrcs",
    ".tif": "TIFF: write images as .mrcs",
    ".tiff": "TIFF: write images as .mrcs",
    ".eer": "a movie: particles are extracted from it by other programs",
}


def as_told(path: str | os.PathLike[str]) -> str:
    """What a file of this name is, and the way to what is read; empty if its name tells nothing."""
    return OTHER_FILES.get(Path(path).suffix.lower(), "")


def refuse_other_files(path: str | os.PathLike[str]) -> None:
    """Refuse a file whose name says that it is another program's, with the way to what is read.

    Raises:
        InputError: by the end of its name.
    """
    if told := as_told(path):
        raise InputError(f"{path}: RELION's STAR or cryoSPARC's .cs was expected, this is {told}")
