"""How far two maps agree."""

import math
from dataclasses import dataclass
from pathlib import Path

from halfmap.commands._beside import leave_record
from halfmap.commands._options import Annotated, Mask, Option, OverwriteFile
from halfmap.errors import InputError
from halfmap.fsc_files import compare_maps, write_fsc_star
from halfmap.options import command
from halfmap.plots.curves import save_fsc_plot
from halfmap.resolution import Curve, HalfMapCurves, resolution_at

THRESHOLDS = (0.5, 0.143)


@dataclass(frozen=True)
class Agreement:
    """The curves of two maps, and where they were written, if they were."""

    curves: HalfMapCurves
    path: Path | None

    @property
    def named_curves(self) -> dict[str, Curve]:
        """Those there are, by what was done about the mask."""
        named = {
            "unmasked": self.curves.unmasked,
            "masked": self.curves.masked,
            "corrected for the mask": self.curves.corrected,
        }
        return {name: curve for name, curve in named.items() if curve is not None}

    @property
    def lines(self) -> tuple[str, ...]:
        """The table of resolutions."""
        head = f"{'resolution (Angstrom)':24}{'at 0.5':>10}{'at 0.143':>10}"
        rows = [
            f"{name:24}" + "".join(_cell(resolution_at(curve, one)) for one in THRESHOLDS)
            for name, curve in self.named_curves.items()
        ]
        same = bool((self.curves.unmasked.correlation > 1 - _ALIKE).all())
        return head, *rows, *([_SAME] if same else [])

    @property
    def summary(self) -> str:
        if self.path is None:
            return ""
        return f"wrote {self.path} and {self.path.with_suffix('.png')}"


_ALIKE = 1e-6  # of two maps that are one, but for rounding
_SAME = "the FSC is 1 everywhere: both maps are the same, but for a factor"


def _cell(resolution_angstrom: float) -> str:
    finite = math.isfinite(resolution_angstrom)
    return f"{resolution_angstrom:10.2f}" if finite else f"{'none':>10}"


@command
def fsc(
    map1: Annotated[
        str | Path,
        Option("First map (MRC), for example half1.mrc", positional=True, metavar="MAP1"),
    ],
    map2: Annotated[
        str | Path, Option("Second map, same box and pixel size", positional=True, metavar="MAP2")
    ],
    *,
    mask: Mask = None,
    diameter_angstrom: Annotated[
        float | None,
        Option(
            "Diameter of a soft sphere in place of --mask", unit="A", above=0, unset="no sphere"
        ),
    ] = None,
    out: Annotated[
        str | Path | None,
        Option(
            "STAR file of the curves; a plot (.png) is written beside it",
            metavar="STAR",
            recorded=False,
        ),
    ] = None,
    overwrite: OverwriteFile = False,
) -> Agreement:
    """Fourier shell correlation of two maps, with its resolution at 0.5 and 0.143; with a mask it
    is corrected for what the mask itself contributes, by phase randomisation.

    Example: halfmap fsc half1.mrc half2.mrc --diameter 180 --out fsc.star

    Raises:
        InputError: a file cannot be read, boxes or pixel sizes differ, no pixel size, a map
            constant or not finite, both or wrong masks, or `out` exists.
    """
    arguments, path = locals(), None if out is None else Path(out)
    if path is not None:
        if path.suffix != ".star":
            raise InputError(f"--out {out}: expected the name of a table to write, ending in .star")
        for file in (path, path.with_suffix(".png")):
            if file.exists() and not overwrite:
                raise InputError(
                    f"{file}: the file exists; choose another name with --out, or --overwrite it"
                )
    curves = compare_maps(map1, map2, mask=mask, diameter_angstrom=diameter_angstrom)
    found = Agreement(curves, path)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_fsc_star(path, curves)
        title = f"{Path(map1).name} and {Path(map2).name}"
        if mask is not None:
            title += f", mask {Path(mask).name}"
        elif diameter_angstrom is not None:
            title += f", sphere of {diameter_angstrom:g} Å"
        save_fsc_plot(path.with_suffix(".png"), found.named_curves, title=title)
        reached = {"resolution_angstrom": resolution_at(curves.final, 0.143)}
        leave_record(fsc, arguments, path, [path.with_suffix(".png")], **reached)
    return found
