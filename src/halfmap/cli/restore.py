"""`halfmap restore`: undo the CTF."""

from enum import StrEnum
from typing import Annotated

import typer

from halfmap.cli import options
from halfmap.cli.report import in_words


class Method(StrEnum):
    """Ways to undo the CTF."""

    divide = "divide"
    flip = "flip"
    wiener = "wiener"
    wiener_stack = "wiener-stack"
    wiener_ssnr = "wiener-ssnr"


def restore(
    particles: options.ParticlesFile,
    method: Annotated[
        Method,
        typer.Option(
            help="divide, flip, wiener: each image; wiener-stack, wiener-ssnr: one image from all."
        ),
    ],
    out: options.OutFolder,
    constant: Annotated[
        float, typer.Option(metavar="K", help="The k of wiener and wiener-stack.")
    ] = 0.1,
    class_number: Annotated[
        int | None,
        typer.Option("--class", metavar="N", help="Use the particles of this class only."),
    ] = None,
    view_tolerance: Annotated[
        float, typer.Option(metavar="DEG", help="Directions that differ by more are not one view.")
    ] = 3.0,
    data_dir: options.DataDir = None,
    seed: options.Seed = 1,
    threads: options.Threads = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Undo the CTF of particle images, one by one or from many images of one view.

    divide: X / C. flip: sgn(C) X. wiener: C X / (C^2 + k). wiener-stack: sum C X / (k + sum C^2).
    wiener-ssnr: the same with k = 1/SSNR in each shell, the spectral SNR measured from the images
    themselves.

    Example: halfmap restore --particles particles.star --method flip --out flipped
    """
    from halfmap.commands.restore import restore as job
    from halfmap.resolution import resolution_at

    result = job(
        particles,
        method.value,
        out,
        constant=constant,
        class_number=class_number,
        view_tolerance=view_tolerance,
        data_dir=data_dir,
        seed=seed,
        threads=threads,
        overwrite=overwrite,
        quiet=quiet,
    )
    aside = f", {result.set_aside} set aside" if result.set_aside else ""
    typer.echo(f"{method.value}: {result.images} images{aside}, in {result.folder}")
    if result.curve is not None:
        at = [
            f"at {threshold} {in_words(resolution_at(result.curve, threshold), threshold)}"
            for threshold in (0.5, 0.143)
        ]
        typer.echo(f"FRC of two halves ({result.halves}): {', '.join(at)}")
