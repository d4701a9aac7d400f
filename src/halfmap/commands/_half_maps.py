"""What `mask`, `postprocess`, `localres` and `orientations` take: two half maps, or the job that
made them."""

import re
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from halfmap.commands._options import Sequence
from halfmap.errors import InputError
from halfmap.fsc_files import read_two_maps


@dataclass(frozen=True)
class HalfMaps:
    """Two half maps (N, N, N), neither filtered nor masked, their files, and the job they are
    of."""

    half1: Float[Tensor, "N N N"]
    half2: Float[Tensor, "N N N"]
    pixel_size_angstrom: float
    paths: tuple[Path, Path]
    job: Path | None = None

    @property
    def box(self) -> int:
        return self.half1.shape[-1]

    @property
    def average(self) -> Float[Tensor, "N N N"]:
        return (self.half1 + self.half2) / 2


def find_half_maps(source: str | Path | Sequence[str | Path]) -> tuple[Path, Path]:
    """The two files: those given, those of a job of halfmap (`half1.mrc`, `half2.mrc`), or the last
    unfiltered ones in a folder of RELION's.

    Raises:
        InputError: neither a folder that holds them nor two files.
    """
    given = [source] if isinstance(source, str | Path) else list(source)
    if len(given) == 2:
        return Path(given[0]), Path(given[1])
    if len(given) != 1:
        raise InputError(f"half maps: expected a job folder or two maps, got {len(given)} names")
    folder = Path(given[0])
    if not folder.is_dir():
        raise InputError(
            f"{folder}: expected a job folder, or two half maps; this is one "
            f"{'file' if folder.exists() else 'name, and nothing is there'}"
        )
    if (folder / "half1.mrc").exists():
        return folder / "half1.mrc", folder / "half2.mrc"
    of_relion = sorted(folder.glob("*half1_class001_unfil.mrc"))
    if of_relion:
        first = of_relion[-1]
        return first, first.with_name(re.sub(r"half1(?!.*half1)", "half2", first.name))
    several = sorted(folder.glob("class*_half1.mrc"))
    if several:
        raise InputError(
            f"{folder}: the job has {len(several)} classes; give the two half maps of one, such as "
            f"{several[0]} and {several[0].name.replace('half1', 'half2')}"
        )
    raise InputError(
        f"{folder}: no half1.mrc and half2.mrc there; give a finished refinement, or two half maps"
    )


def read_half_maps(source: str | Path | Sequence[str | Path]) -> HalfMaps:
    """The half maps, checked against each other.

    Raises:
        InputError: as `find_half_maps`; a file cannot be read; boxes or pixel sizes differ; both
            are the same map.
    """
    paths = find_half_maps(source)
    half1, half2, pixel = read_two_maps(*paths)
    if bool((half1 == half2).all()):
        raise InputError(
            f"{paths[1]}: is the same map as {paths[0]}, whose FSC with itself is 1 everywhere; "
            "expected the other half"
        )
    folder = paths[0].parent
    return HalfMaps(half1, half2, pixel, paths, folder if (folder / "job.json").exists() else None)
