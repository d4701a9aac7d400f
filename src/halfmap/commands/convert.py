"""Particle files from one program's dialect to another's."""

from dataclasses import dataclass
from pathlib import Path

from halfmap.commands._beside import leave_record
from halfmap.commands._options import (
    Annotated,
    Contrast,
    DataDir,
    Literal,
    Option,
    OverwriteFile,
    Passthrough,
)
from halfmap.errors import InputError
from halfmap.io.convert import convert as convert_file
from halfmap.options import command


@dataclass(frozen=True)
class Converted:
    """The file written, and what is to be said about it."""

    path: Path
    notes: tuple[str, ...]

    @property
    def summary(self) -> str:
        return f"wrote {self.path}"


@command
def convert(
    source: Annotated[
        str | Path,
        Option(
            "STAR of any RELION version, or cryoSPARC .cs (its passthrough is found beside it)",
            positional=True,
            metavar="IN",
        ),
    ],
    out: Annotated[
        str | Path, Option("File to write, .star or .cs", positional=True, metavar="OUT")
    ],
    *,
    passthrough: Passthrough = None,
    contrast: Contrast = None,
    relion: Annotated[
        Literal["3.1", "3.0"] | None,
        Option("STAR to write: optics groups as in RELION 3.1 to 5, or one table", unset="3.1"),
    ] = None,
    data_dir: DataDir = None,
    overwrite: OverwriteFile = False,
) -> Converted:
    """Convert a particle file: any STAR dialect or .cs in, STAR of RELION 3.1 (or 3.0) or .cs out.

    The suffixes say from what to what; images need not be there.

    Example: halfmap convert cryosparc_P1_J20_particles.cs particles.star

    Raises:
        InputError: unknown suffix, bad input, no pixel size, or `out` exists; for `.cs` also no
            image size (no column, and no stack to look at).
    """
    arguments = locals()
    if Path(out).exists() and not overwrite:
        raise InputError(f"{out}: the file exists; choose another name, or --overwrite it")
    if relion is not None and Path(out).suffix.lower() == ".cs":
        raise InputError(f"--relion {relion}: is for STAR files; {out} is a .cs, leave it out")
    notes = convert_file(
        source, out, passthrough, relion=relion or "3.1", data_dir=data_dir, contrast=contrast
    )
    leave_record(convert, arguments, Path(out))
    return Converted(Path(out), notes)
