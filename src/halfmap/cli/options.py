"""Options that several commands share: one name, one meaning, one help line."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Device(StrEnum):
    """Where arrays live."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Method3D(StrEnum):
    """Ways to refine and classify in 3D."""

    ml = "ml"
    projection_matching = "projection-matching"


class Search(StrEnum):
    """Ways to search all orientations."""

    adaptive = "adaptive"
    branch_and_bound = "branch-and-bound"


class Method2D(StrEnum):
    """Ways to classify in 2D."""

    ml = "ml"
    template = "template"


class Start(StrEnum):
    """Where 2D classes come from."""

    kmeans = "kmeans++"
    random = "random"


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
        raise typer.BadParameter(f"expected a size such as 8GB or 500MB, got '{text}'")
    return int(size)


ParticlesFile = Annotated[
    Path,
    typer.Option(
        "--particles",
        metavar="STAR",
        help="Particles: RELION STAR of any version, or cryoSPARC .cs.",
    ),
]
OutFolder = Annotated[Path, typer.Option("--out", metavar="DIR", help="Job folder to make.")]
Symmetry = Annotated[str, typer.Option(metavar="G", help="Point group: C1, C4, D2, T, O, I ...")]
Diameter = Annotated[
    float | None,
    typer.Option(
        metavar="A",
        help="Diameter of the particle, Angstrom, for the soft mask. Default: 0.9 of the box.",
    ),
]
DiameterOfReference = Annotated[
    float | None,
    typer.Option(
        "--diameter",
        metavar="A",
        help="Diameter of the particle, Angstrom, for the soft mask. Default: from the reference.",
    ),
]
InitialLowpass = Annotated[
    float | None,
    typer.Option(metavar="A", help="Low-pass of the starting map, Angstrom. Default: 60."),
]
Mask = Annotated[
    Path | None, typer.Option(metavar="MAP", help="Mask (MRC, values 0 to 1) in place of a sphere.")
]
Iterations = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Iterations at most; fewer where resolution and poses stop improving. Default: 20.",
    ),
]
AngularStep = Annotated[
    float | None,
    typer.Option(
        metavar="DEG", help="Angular step of the finer search grid, 3 to 30 degrees. Default: 7.5."
    ),
]
ShiftRange = Annotated[
    float, typer.Option(metavar="PX", min=0, help="Largest shift searched, pixels.")
]
ShiftStep = Annotated[float, typer.Option(metavar="PX", help="Step of the shift search, pixels.")]
SearchOption = Annotated[
    Search,
    typer.Option(
        "--search",
        help="How all orientations are searched: the best cells, or every cell that a bound cannot exclude (slower).",
    ),
]
Local = Annotated[
    bool, typer.Option("--local", help="Search only around the poses in the particle file.")
]
LocalRange = Annotated[
    float | None, typer.Option(metavar="DEG", help="Range of a local search, degrees.")
]
StackPixelSize = Annotated[
    float | None,
    typer.Option(
        "--pixel-size",
        metavar="ANGSTROM",
        help="Pixel size of a bare stack (no STAR) whose header has none.",
    ),
]
WienerConstant = Annotated[
    float | None,
    typer.Option(
        metavar="K", help="Constant k of the Wiener update num / (k + den). Default: from the FSC."
    ),
]
TauFudge = Annotated[
    float | None,
    typer.Option(
        metavar="T",
        help="T of the MAP update: 1 is what the half maps tell; more keeps more noise. Default: 1.",
    ),
]
Ctf = Annotated[
    bool,
    typer.Option(
        "--ctf/--no-ctf",
        help="Correct for the CTF in the particle file, or take images as they are.",
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Further folder in which image stacks are looked for."),
]
Seed = Annotated[
    int,
    typer.Option(
        metavar="N", help="Seed of everything random: the same seed gives the same result."
    ),
]
DeviceOption = Annotated[
    Device,
    typer.Option(
        "--device", help="Where to compute; auto takes CUDA if there is one, else the CPU."
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="CPU threads, up to the processors. Default: all."),
]
Memory = Annotated[
    int | None,
    typer.Option(
        parser=parse_memory,
        metavar="SIZE",
        help="Memory to stay below, for example 8GB. Default: half of the machine's.",
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an earlier job in the folder.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]
