"""`halfmap class2d`: sort images into K class averages."""

from typing import Annotated

import typer

from halfmap.cli import options
from halfmap.cli.report import say_done


def class2d(
    particles: options.ParticlesFile,
    classes: Annotated[int, typer.Option(min=1, help="Number of classes K.")],
    out: options.OutFolder,
    method: Annotated[
        options.Method2D, typer.Option(help="How images are matched to classes.")
    ] = options.Method2D.ml,
    start: Annotated[
        options.Start,
        typer.Option(help="First class images: chosen far apart, or averages of random subsets."),
    ] = options.Start.kmeans,
    iterations: Annotated[int, typer.Option(min=1, help="Iterations at most.")] = 25,
    diameter: options.Diameter = None,
    angular_step: Annotated[
        float | None,
        typer.Option(
            metavar="DEG",
            help="Step of the finer grid of in-plane angles, 3 to 30 degrees. Default: 6.",
        ),
    ] = None,
    shift_range: options.ShiftRange = 5.0,
    shift_step: options.ShiftStep = 1.0,
    tau_fudge: options.TauFudge = None,
    wiener_constant: options.WienerConstant = None,
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
    """Classify images into K class averages, sorted by size, with a gallery to look at.

    Example: halfmap class2d --particles p.star --classes 50 --out classes
    """
    from halfmap.commands.class2d import class2d as job

    result = job(
        particles,
        out,
        classes=classes,
        method=method.value,
        start=start.value,
        iterations=iterations,
        diameter_angstrom=diameter,
        angular_step_deg=angular_step,
        shift_range_px=shift_range,
        shift_step_px=shift_step,
        tau_fudge=tau_fudge,
        wiener_constant=wiener_constant,
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
    say_done("class2d", result, out)
