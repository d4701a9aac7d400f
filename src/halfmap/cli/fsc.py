"""`halfmap fsc`: how far two maps agree."""

import math
from pathlib import Path
from typing import Annotated

import typer

from halfmap.cli import options


def fsc(
    map1: Annotated[Path, typer.Argument(help="First map (MRC), for example half1.mrc.")],
    map2: Annotated[Path, typer.Argument(help="Second map, same box and pixel size.")],
    mask: options.Mask = None,
    diameter: Annotated[
        float | None,
        typer.Option(metavar="A", help="Diameter of a soft sphere in place of --mask, Angstrom."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="STAR file of the curves; a plot (.png) is written beside it."),
    ] = None,
    seed: options.Seed = 1,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the files if they exist.")
    ] = False,
) -> None:
    """Fourier shell correlation of two maps, with its resolution at 0.5 and 0.143.

    With a mask the curve is corrected for what the mask itself contributes, by phase randomisation.

    Example: halfmap fsc half1.mrc half2.mrc --diameter 180 --out fsc.star
    """
    from halfmap.errors import InputError
    from halfmap.resolution import compare_maps, resolution_at, write_fsc_star

    if out is not None:
        if out.suffix != ".star":
            raise InputError(f"--out {out}: expected the name of a table to write, ending in .star")
        for file in (out, out.with_suffix(".png")):
            if file.exists() and not overwrite:
                raise InputError(
                    f"{file}: the file exists; choose another name with --out, or --overwrite it"
                )
    curves = compare_maps(map1, map2, mask=mask, diameter_angstrom=diameter, seed=seed)
    named = {
        "unmasked": curves.unmasked,
        "masked": curves.masked,
        "corrected for the mask": curves.corrected,
    }
    given = {name: curve for name, curve in named.items() if curve is not None}
    typer.echo(f"{'resolution (Angstrom)':24}{'at 0.5':>10}{'at 0.143':>10}")
    for name, curve in given.items():
        found = [resolution_at(curve, threshold) for threshold in (0.5, 0.143)]
        typer.echo(
            f"{name:24}"
            + "".join(f"{one:10.2f}" if math.isfinite(one) else f"{'none':>10}" for one in found)
        )
    if out is not None:
        from halfmap.plots.curves import save_fsc_plot

        out.parent.mkdir(parents=True, exist_ok=True)
        write_fsc_star(out, curves)
        save_fsc_plot(out.with_suffix(".png"), given, title=f"{map1.name} and {map2.name}")
        typer.echo(f"wrote {out} and {out.with_suffix('.png')}")
