"""`halfmap restore`: undo the CTF."""

from pathlib import Path
from typing import Annotated

import typer


def restore(
    particles: Annotated[Path, typer.Option(help="Particles with CTF parameters: STAR or .cs.")],
    method: Annotated[str, typer.Option(help="divide, flip, wiener (each image); wiener-stack, wiener-ssnr (one image from all).")],
    out: Annotated[Path, typer.Option(help="Job folder to write.")],
    constant: Annotated[float, typer.Option(help="The k of wiener and wiener-stack.")] = 0.1,
    class_number: Annotated[int | None, typer.Option("--class", help="Use the particles of this class only.")] = None,
    view_tolerance: Annotated[float, typer.Option(help="Views that differ by more degrees are not one view.")] = 3.0,
    data_dir: Annotated[Path | None, typer.Option(help="Further folder to look for the stacks in.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the split into halves.")] = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default all.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the job folder.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress line.")] = False,
) -> None:
    """Undo the CTF of particle images, one by one or from many images of one view.

    divide: X / C. flip: sgn(C) X. wiener: C X / (C^2 + k). wiener-stack: sum C X / (k + sum C^2).
    wiener-ssnr: the same with k = 1/SSNR in each shell, the spectral SNR measured from the images themselves.

    Example: halfmap restore --particles particles.star --method flip --out flipped
    """
    from halfmap.resolution import resolution_at
    from halfmap.restore import restore as job

    result = job(
        particles, method=method, out=out, constant=constant, class_number=class_number, view_tolerance=view_tolerance,
        data_dir=data_dir, seed=seed, threads=threads, overwrite=overwrite, quiet=quiet,
    )  # fmt: skip
    aside = f", {result.set_aside} set aside" if result.set_aside else ""
    typer.echo(f"{method}: {result.images} images{aside}, in {result.folder}")
    if result.curve is not None:
        at = [f"{resolution_at(result.curve, threshold):.2f} A at {threshold}" for threshold in (0.5, 0.143)]
        typer.echo(f"FRC of independent halves: {', '.join(at)}")
