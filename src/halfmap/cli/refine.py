"""`halfmap refine`: particles and a starting map in, half maps and a resolution out."""

from pathlib import Path
from typing import Annotated

import typer

from halfmap.cli import options
from halfmap.cli.report import say_done


def refine(
    particles: options.ParticlesFile,
    reference: Annotated[
        Path,
        typer.Option(
            metavar="MAP", help="Starting map (MRC), same box and pixel size as the images."
        ),
    ],
    out: options.OutFolder,
    method: Annotated[
        options.Method3D, typer.Option(help="How poses are found and used.")
    ] = options.Method3D.ml,
    search: options.SearchOption = options.Search.adaptive,
    symmetry: options.Symmetry = "C1",
    diameter: options.DiameterOfReference = None,
    initial_lowpass: options.InitialLowpass = None,
    mask: options.Mask = None,
    iterations: options.Iterations = None,
    angular_step: options.AngularStep = None,
    shift_range: options.ShiftRange = 5.0,
    shift_step: options.ShiftStep = 1.0,
    local: options.Local = False,
    local_range: options.LocalRange = None,
    tau_fudge: options.TauFudge = None,
    wiener_constant: options.WienerConstant = None,
    ctf: options.Ctf = True,
    data_dir: options.DataDir = None,
    seed: options.Seed = 1,
    device: options.DeviceOption = options.Device.auto,
    threads: options.Threads = None,
    memory: options.Memory = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Refine poses against a starting map, in two independent halves, and measure the resolution
    between them.

    Example: halfmap refine --particles p.star --reference start.mrc --symmetry C4 --out refined
    """
    from halfmap.commands.refine import refine as job

    result = job(
        particles,
        reference,
        out,
        method=method.value,
        search=search.value,
        symmetry=symmetry,
        diameter_angstrom=diameter,
        initial_lowpass_angstrom=initial_lowpass,
        mask=mask,
        iterations=iterations,
        angular_step_deg=angular_step,
        shift_range_px=shift_range,
        shift_step_px=shift_step,
        local=local,
        local_range_deg=local_range,
        tau_fudge=tau_fudge,
        wiener_constant=wiener_constant,
        ctf=ctf,
        data_dir=data_dir,
        seed=seed,
        device=device.value,
        threads=threads,
        memory=memory,
        overwrite=overwrite,
        quiet=quiet,
    )
    say_done("refine", result, out)
