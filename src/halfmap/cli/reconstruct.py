"""`halfmap reconstruct`: a map from particles whose poses are known."""

from pathlib import Path
from typing import Annotated

import typer

from halfmap.cli import options
from halfmap.cli.report import say_done


def reconstruct(
    particles: options.ParticlesFile,
    out: Annotated[Path, typer.Option("--out", metavar="MAP", help="Map to write (MRC).")],
    symmetry: options.Symmetry = "C1",
    halves: Annotated[
        bool,
        typer.Option(
            "--halves", help="Write the two half maps too, and the resolution between them."
        ),
    ] = False,
    wiener_constant: options.WienerConstant = None,
    ctf: options.Ctf = True,
    diameter: options.Diameter = None,
    mask: options.Mask = None,
    data_dir: options.DataDir = None,
    seed: options.Seed = 1,
    device: options.DeviceOption = options.Device.auto,
    threads: options.Threads = None,
    memory: options.Memory = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Reconstruct a map from the poses in the particle file.

    Example: halfmap reconstruct --particles refined/particles.star --symmetry C4 --halves --out
    map.mrc
    """
    from halfmap.commands.reconstruct import reconstruct as job

    result = job(
        particles,
        out,
        symmetry=symmetry,
        halves=halves,
        wiener_constant=wiener_constant,
        ctf=ctf,
        diameter_angstrom=diameter,
        mask=mask,
        data_dir=data_dir,
        seed=seed,
        device=device.value,
        threads=threads,
        memory=memory,
        overwrite=overwrite,
        quiet=quiet,
    )
    say_done("reconstruct", result, out)
