"""Options that several commands share: one name, one meaning, one help line.

Light on purpose: the command line reads a command's signature with the names of this file alone,
without importing what the command computes with.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from halfmap.options import Option, Setting

__all__ = ["Annotated", "Literal", "Option", "Path", "Sequence", "Setting"]

# settings without which, or beside which, options have no effect
_LOCAL = Setting("local")
_POSES_KEPT = Setting("alignment", values=(False,))
_PARTICLES = (Setting("particles"),)

Method3D = Literal["ml", "projection-matching"]
Method2D = Literal["ml", "template"]
Search = Literal["adaptive", "branch-and-bound"]
Start = Literal["kmeans++", "random"]
DeviceName = Literal["auto", "cpu", "cuda", "mps"]


def parse_memory(text: str) -> int:
    """Bytes of `8GB`, `500 MB`, `1.5T` or a plain number."""
    units = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
    trimmed = text.strip().upper().removesuffix("B").removesuffix("I").strip()
    number, unit = (
        (trimmed[:-1], trimmed[-1]) if trimmed[-1:] in units and trimmed else (trimmed, "")
    )
    try:
        size = float(number) * units[unit]
    except ValueError:
        size = 0
    if not 0 < size < 1e18:
        raise ValueError("a size such as 8GB or 500MB")
    return int(size)


def parse_classes(text: str) -> list[int]:
    """Class numbers of `1,4,7` or `1-3,8`."""
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if (
            not first.isdecimal()
            or not (last or "1").isdecimal()
            or not 1 <= int(first) <= int(last or first)
        ):
            raise ValueError(f"class numbers from 1 such as 1,4,7 or 1-5, found '{part.strip()}'")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def parse_length(text: str) -> tuple[float, str]:
    """A length and its unit, of `6px` or `8A`."""
    trimmed = text.strip()
    for unit, words in (("px", ("px", "pixels")), ("A", ("A", "Å", "angstrom"))):
        for word in words:
            number = trimmed.removesuffix(word).strip()
            if number != trimmed:
                try:
                    value = float(number)
                except ValueError:
                    break
                if math.isfinite(value):
                    return value, unit
    raise ValueError("a length in pixels or Angstrom, such as 6px or 8A")


def check_length(text: str) -> None:
    """Refuse what is no length."""
    parse_length(text)


def check_folder(name: str | Path) -> None:
    """Refuse what is no folder."""
    if not Path(name).is_dir():
        raise ValueError(f"a folder, there is {'a file' if Path(name).exists() else 'none'}")


def check_star_name(name: str | Path) -> None:
    """Refuse the name of another kind of file for a STAR."""
    if Path(name).suffix.lower() in (".cs", ".mrc", ".mrcs", ".map", ".gz"):
        raise ValueError("the name of a STAR file, ending in .star (halfmap convert makes a .cs)")


def check_positive_length(text: str) -> None:
    """Refuse what is no length, or a negative one."""
    if parse_length(text)[0] < 0:
        raise ValueError("a length of 0 or more, such as 6px or 8A")


def parse_numbers(text: str) -> list[float]:
    """The numbers of `2,1,1`."""
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise ValueError("numbers with commas between, such as 2,1,1") from None


def check_symmetry(name: str) -> None:
    """Refuse what is no point group.

    Raises:
        InputError: which ones there are.
    """
    from halfmap.symmetries import symmetry_matrices

    symmetry_matrices(name)


ParticlesFile = Annotated[
    str | Path,
    Option(
        "Particles: RELION STAR of any version, or cryoSPARC .cs",
        flag="--particles",
        metavar="STAR",
    ),
]
OutFolder = Annotated[str | Path, Option("Job folder to make", metavar="DIR", recorded=False)]
Symmetry = Annotated[
    str,
    Option(
        "Point group in RELION's orientation, such as C1, C4, D2, T, O or I",
        metavar="G",
        check=check_symmetry,
    ),
]
Diameter = Annotated[
    float | None,
    Option(
        "Diameter of the particle, for the soft mask", unit="A", above=0, unset="0.9 of the box"
    ),
]
DiameterOfReference = Annotated[
    float | None,
    Option(
        "Diameter of the particle, for the soft mask",
        unit="A",
        above=0,
        unset="from the reference",
    ),
]
InitialLowpass = Annotated[
    float | None, Option("Low-pass of the starting map", unit="A", above=0, unset="60 A")
]
Mask = Annotated[
    str | Path | None, Option("Mask (MRC, values 0 to 1) in place of a sphere", metavar="MAP")
]
HalvesOrJob = Annotated[
    str | Path | Sequence[str | Path],
    Option(
        "Job folder of a refinement or reconstruction, or its two half maps (MRC)",
        positional=True,
        metavar="JOB|HALF1 HALF2...",
    ),
]
HalvesMask = Annotated[
    str | Path | None,
    Option("Mask (MRC, values 0 to 1)", metavar="MAP", unset="the job's, or made of the half maps"),
]
AngularStep = Annotated[
    float | None,
    Option(
        "Angular step of the finer search grid",
        unit="deg",
        at_least=3,
        at_most=30,
        unset="7.5 degrees",
        hint="poses are refined continuously from there",
        idle_beside=(_POSES_KEPT,),
    ),
]
ShiftRange = Annotated[
    float, Option("Largest shift searched", unit="px", at_least=0, idle_beside=(_POSES_KEPT,))
]
ShiftStep = Annotated[
    float, Option("Step of the shift search", unit="px", above=0, idle_beside=(_POSES_KEPT,))
]
SearchOption = Annotated[
    Search,
    Option(
        "How all orientations are searched: the best cells, or every cell that a bound cannot "
        "exclude (slower; an image's best pose is missed with a stated probability only)",
        idle_beside=(_LOCAL, _POSES_KEPT),
    ),
]
Local = Annotated[
    bool,
    Option(
        "Search only around the poses in the particle file, held near them by a Gaussian prior",
        idle_beside=(_POSES_KEPT,),
    ),
]
LocalRange = Annotated[
    float | None,
    Option(
        "Range of a local search, three standard deviations of the rotation; the shift may move "
        "as far as that moves the particle's rim",
        unit="deg",
        above=0,
        unset="5 degrees",
        needs=(_LOCAL,),
    ),
]
SigmaRotation = Annotated[
    float | None,
    Option(
        "Standard deviation of the prior around the given orientations; with --local, in place of "
        "--local-range",
        unit="deg",
        above=0,
        unset="a third of --local-range",
        needs=(_LOCAL,),
        idle_beside=(Setting("local_range_deg"),),
    ),
]
SigmaShift = Annotated[
    float | None,
    Option(
        "Standard deviation of the prior around the given shifts, x and y alike; with --local",
        unit="A",
        above=0,
        unset="what --sigma-rotation moves the particle's rim by",
        needs=(_LOCAL,),
    ),
]
GridPixelSize = Annotated[
    float | None,
    Option(
        "Pixel size to work at: images, maps and masks are brought to it; of a bare stack (no "
        "STAR) whose header has none, its own",
        unit="A",
        above=0,
        metavar="ANGSTROM",
        unset="the finest optics group's",
    ),
]
GridBox = Annotated[
    int | None,
    Option(
        "Box to work in, at the same extent if --pixel-size is not given",
        unit="px",
        at_least=8,
        unset="the finest optics group's",
    ),
]
WienerConstant = Annotated[
    float | None,
    Option(
        "Constant k of the Wiener update num / (k + den)",
        above=0,
        metavar="K",
        unset="1/SSNR from the half maps' FSC",
        needs=(Setting("method", values=("projection-matching", "template")),),
    ),
]
TauFudge = Annotated[
    float | None,
    Option(
        "T of the MAP update: 1 is what the half maps tell; more keeps more noise",
        above=0,
        metavar="T",
        unset="1",
        needs=(Setting("method", values=("ml",)),),
    ),
]
Folds = Annotated[
    int,
    Option(
        "Parts of each half; images are compared with a map of the others, so that none meets its "
        "own noise and posteriors mean what they say; 1: with all of their half, as RELION does",
        at_least=1,
        metavar="N",
    ),
]
Ctf = Annotated[
    bool, Option("Correct for the CTF in the particle file, or take images as they are")
]
DataDir = Annotated[
    str | Path | None,
    Option(
        "Further folder in which image stacks are looked for",
        metavar="DIR",
        free_on_resume=True,
        needs=_PARTICLES,
        check=check_folder,
    ),
]
Passthrough = Annotated[
    str | Path | Sequence[str | Path] | None,
    Option(
        "Passthrough file of a cryoSPARC .cs; give it again for a further one",
        metavar="CS",
        unset="found beside the .cs by name",
        needs=_PARTICLES,
    ),
]
Contrast = Annotated[
    Literal["dark", "white"] | None,
    Option(
        "How particles are stored: dark (contrast not inverted at extraction) or white",
        unset="as the file says; white if it does not",
    ),
]
Seed = Annotated[
    int,
    Option(
        "Seed of everything random: the same seed gives the same result", at_least=0, metavar="N"
    ),
]
Device = Annotated[
    DeviceName,
    Option("Where to compute; auto takes CUDA if there is one, else the CPU", free_on_resume=True),
]
Threads = Annotated[
    int | None,
    Option(
        "CPU threads, up to the processors",
        at_least=1,
        metavar="N",
        unset="all",
        free_on_resume=True,
    ),
]
# the annotation is what the function gets; who calls it may give text such as 8GB too
Memory = Annotated[
    int | None,
    Option(
        "Memory to stay below, for example 8GB",
        above=0,
        metavar="SIZE",
        unset="half of the machine's",
        parse=parse_memory,
        free_on_resume=True,
    ),
]
Overwrite = Annotated[bool, Option("Replace an earlier job in the folder", recorded=False)]
OverwriteFile = Annotated[bool, Option("Replace the file if it exists", recorded=False)]
Resume = Annotated[
    bool, Option("Go on with the job in the folder", python_only=True, recorded=False)
]
Quiet = Annotated[bool, Option("No progress bar", free_on_resume=True)]
