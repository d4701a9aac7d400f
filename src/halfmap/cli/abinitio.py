"""`halfmap abinitio`: particles in, starting maps out, without any reference."""

from typing import Annotated

import typer

from halfmap.cli import options
from halfmap.cli.report import say_done


def abinitio(
    particles: options.ParticlesFile,
    out: options.OutFolder,
    classes: Annotated[int, typer.Option(metavar="K", min=1, help="Number of maps.")] = 1,
    symmetry: options.Symmetry = "C1",
    early_symmetry: Annotated[
        bool,
        typer.Option(
            "--early-symmetry",
            help="Apply it from the first iteration on, not when the map's axes have been found: faster.",
        ),
    ] = False,
    runs: Annotated[
        int,
        typer.Option(
            metavar="R", min=1, help="Runs from different random starts; the likeliest is kept."
        ),
    ] = 1,
    flip_hand: Annotated[
        bool,
        typer.Option(
            "--flip-hand", help="Write the mirror image: both hands fit the images equally."
        ),
    ] = False,
    iterations: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Iterations on mini-batches; some with all particles follow. Default: 60.",
        ),
    ] = None,
    initial_lowpass: Annotated[
        float | None,
        typer.Option(
            metavar="A",
            help="Resolution of the first mini-batch, Angstrom. Default: 1/6 of the diameter.",
        ),
    ] = None,
    final_lowpass: Annotated[
        float | None,
        typer.Option(
            metavar="A",
            help="Resolution of the last mini-batch, Angstrom. Default: 1/9.5 of the diameter.",
        ),
    ] = None,
    diameter: options.Diameter = None,
    mask: options.Mask = None,
    allow_negative: Annotated[
        bool,
        typer.Option(
            "--allow-negative",
            help="Density may be lower than the solvent's; else what is negative is set to 0.",
        ),
    ] = False,
    shift_range: Annotated[
        float | None,
        typer.Option(metavar="PX", min=0, help="Largest shift searched, pixels. Default: 25 A."),
    ] = None,
    ctf: options.Ctf = True,
    pixel_size: options.StackPixelSize = None,
    data_dir: options.DataDir = None,
    seed: options.Seed = 1,
    device: options.DeviceOption = options.Device.auto,
    threads: options.Threads = None,
    memory: options.Memory = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Make maps from random starts, at a resolution to start refine or class3d from.

    Example: halfmap abinitio --particles p.star --diameter 170 --symmetry C4 --out initial
    """
    from halfmap.commands.abinitio import abinitio as job

    result = job(
        particles,
        out,
        classes=classes,
        symmetry=symmetry,
        early_symmetry=early_symmetry,
        runs=runs,
        flip_hand=flip_hand,
        iterations=iterations,
        initial_lowpass_angstrom=initial_lowpass,
        final_lowpass_angstrom=final_lowpass,
        diameter_angstrom=diameter,
        mask=mask,
        allow_negative=allow_negative,
        shift_range_px=shift_range,
        ctf=ctf,
        pixel_size_angstrom=pixel_size,
        data_dir=data_dir,
        seed=seed,
        device=device.value,
        threads=threads,
        memory=memory,
        overwrite=overwrite,
        quiet=quiet,
    )
    say_done("abinitio", result, out)
