"""Names of columns that are nearly those that are read."""

from halfmap.ctf_parameters import quantities
from halfmap.errors import InputError
from halfmap.io.star import StarFile

# what changes results where it is there, beside the CTF's columns
_READ = (
    "rlnImageName",
    "rlnMicrographName",
    "rlnAngleRot",
    "rlnAngleTilt",
    "rlnAnglePsi",
    "rlnOriginX",
    "rlnOriginY",
    "rlnOriginXAngst",
    "rlnOriginYAngst",
    "rlnClassNumber",
    "rlnRandomSubset",
    "rlnOpticsGroup",
    "rlnOpticsGroupName",
    "rlnImagePixelSize",
    "rlnImageSize",
    "rlnPixelSize",
    "rlnDetectorPixelSize",
    "rlnMagnification",
    "rlnGroupScaleCorrection",
)


def check_case(star: StarFile) -> None:
    """Refuse columns that differ from one that is read in upper and lower case only: they would be
    passed over in silence, and so be data without their CTF, poses or half sets.

    Raises:
        InputError: naming the table, the column and how it is written.
    """
    written = {name.lower(): name for name in (*_READ, *(one.relion for one in quantities()))}
    for block, table in star.blocks.items():
        for name in table.names:
            known = written.get(name.lower())
            if known is not None and known != name and known not in table:
                raise InputError(
                    f"{star.path}: column _{name} of data_{block}: RELION writes it _{known}, and "
                    "upper and lower case count; rename the column"
                )
