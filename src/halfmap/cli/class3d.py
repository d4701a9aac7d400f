"""`halfmap class3d`: sort particles into K maps."""

from pathlib import Path
from typing import Annotated

import typer

from halfmap.cli import options
from halfmap.cli.report import say_done


def class3d(
    particles: options.ParticlesFile,
    reference: Annotated[
        list[Path],
        typer.Option(
            metavar="MAP",
            help="Starting map (MRC): one for all classes, or give it once per class.",
        ),
    ],
    classes: Annotated[int, typer.Option(min=1, help="Number of classes K.")],
    out: options.OutFolder,
    method: Annotated[
        options.Method3D, typer.Option(help="How poses and classes are found.")
    ] = options.Method3D.ml,
    search: options.SearchOption = options.Search.adaptive,
    symmetry: options.Symmetry = "C1",
    diameter: options.DiameterOfReference = None,
    initial_lowpass: options.InitialLowpass = None,
    mask: options.Mask = None,
    iterations: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Iterations at most; fewer where nothing improves any more. Default: 25.",
        ),
    ] = None,
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
    """Classify particles into K maps, poses and classes found together.

    Example: halfmap class3d --particles p.star --reference a.mrc --reference b.mrc --classes 2
    --out states
    """
    from halfmap.commands.class3d import class3d as job

    result = job(
        particles,
        reference,
        out,
        classes=classes,
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
    say_done("class3d", result, out)
