"""`halfmap project`: the images that a map would give at the poses of a particle file."""

from pathlib import Path
from typing import Annotated

import typer

from halfmap.cli import options


def project(
    map: Annotated[
        Path, typer.Argument(help="Map to project (MRC), same box and pixel size as the particles.")
    ],
    particles: options.ParticlesFile,
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="STACK", help="Stack to write (.mrcs); a STAR is written beside it."
        ),
    ],
    ctf: Annotated[
        bool, typer.Option("--ctf", help="Multiply the projections by each particle's CTF.")
    ] = False,
    data_dir: options.DataDir = None,
    threads: options.Threads = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Project a map at each particle's pose and shift, noise-free, to look at beside the particles.

    Example: halfmap project map.mrc --particles refined/particles.star --ctf --out projections.mrcs
    """
    from halfmap.commands.project import project as job

    count = job(
        map, particles, out, ctf=ctf, data_dir=data_dir, threads=threads, overwrite=overwrite
    )
    typer.echo(f"project: {count} projections in {out}, their poses in {out.with_suffix('.star')}")
