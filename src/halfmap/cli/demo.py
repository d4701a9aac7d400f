"""`halfmap demo`: the whole story on an embedded example."""

from pathlib import Path
from typing import Annotated, Any

import typer

from halfmap.cli import options

_PARTICLES, _BOX, _PIXEL_ANGSTROM, _SNR, _JUNK, _DIAMETER_ANGSTROM = 1500, 56, 4.0, 0.1, 0.12, 165.0
_STATES, _SHARES = ["phantom", "phantom:1"], (60.0, 40.0)


def demo(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for the demo's jobs.")
    ] = Path("demo"),
    n: Annotated[int, typer.Option("--n", min=300, help="Number of particles.")] = _PARTICLES,
    seed: options.Seed = 1,
    device: options.DeviceOption = options.Device.auto,
    threads: options.Threads = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Simulate particles of a made-up ion channel in two states, with junk among them, and find it
    all again: 2D classes, a selection, a starting map from nothing, 3D classes, and a refined map
    with its half maps. Pictures at each step.

    Takes a few minutes on a laptop.

    Example: halfmap demo --out demo
    """
    from halfmap.commands.abinitio import abinitio
    from halfmap.commands.class2d import class2d
    from halfmap.commands.class3d import class3d
    from halfmap.commands.refine import refine
    from halfmap.commands.select import best_resolved_classes, select_classes
    from halfmap.commands.simulate import simulate
    from halfmap.workspace.job import read_job

    names = (
        "1_particles",
        "2_classes",
        "3_selected.star",
        "4_initial",
        "5_states",
        "6_state.star",
        "7_refined",
    )
    simulated, classes, selected, initial, states, state, refined = (out / name for name in names)
    star = simulated / "particles.star"
    how: dict[str, Any] = {"seed": seed, "overwrite": overwrite, "quiet": quiet}
    job: dict[str, Any] = {
        "device": device.value,
        "threads": threads,
        "diameter_angstrom": _DIAMETER_ANGSTROM,
        **how,
    }

    _step(
        f"1. {n} noisy images ({_BOX} pixels of {_PIXEL_ANGSTROM:g} Angstrom, signal-to-noise "
        f"{_SNR:g}) of a channel with C4 symmetry in"
    )
    _step(
        f"   two states, {_JUNK:.0%} of them junk; from any direction, off centre, and through "
        "the microscope's CTF."
    )
    simulate(
        _STATES,
        simulated,
        n=n,
        weights=_SHARES,
        snr=_SNR,
        box=_BOX,
        pixel_size_angstrom=_PIXEL_ANGSTROM,
        junk_fraction=_JUNK,
        **how,
    )
    _look(simulated)

    _step(
        "2. Maximum likelihood sorts them into classes of one view each; averaging makes the "
        "particle visible."
    )
    class2d(star, classes, classes=16, iterations=15, **job)
    _look(classes)

    _step("3. Classes that stay blurred hold junk: the others' particles are selected.")
    kept, _ = select_classes(classes, best_resolved_classes(classes), selected, overwrite=overwrite)
    typer.echo(f"   {kept} of {n} particles are in {selected}")

    _step(
        "4. A map from nothing: stochastic gradient ascent from a random start, all particles "
        "taken for one state."
    )
    abinitio(selected, initial, symmetry="C4", **job)
    _look(initial)

    _step("5. From that map, two classes part along what differs most between the particles.")
    class3d(
        selected,
        initial / "map.mrc",
        states,
        classes=2,
        symmetry="C4",
        initial_lowpass_angstrom=30.0,
        **job,
    )
    _look(states)

    sizes = read_job(states)["results"]["sizes"]
    larger = 1 + sizes.index(max(sizes))
    _step(
        f"6. The particles of class {larger}, the larger, are refined in two independent halves: "
        "half maps, FSC and honest resolution."
    )
    select_classes(states, [larger], state, overwrite=overwrite)
    refine(
        state,
        states / f"class{larger:03d}.mrc",
        refined,
        symmetry="C4",
        initial_lowpass_angstrom=30.0,
        **job,
    )
    _look(refined)
    _step("")
    _step(
        f"{refined}/half1.mrc and half2.mrc are ready for postprocessing. halfmap info {refined} "
        "tells the rest."
    )
    _step("Look at the pictures. Your own particles: halfmap class2d --help")


def _step(text: str) -> None:
    typer.secho(text, bold=True)


def _look(folder: Path) -> None:
    for picture in sorted(folder.rglob("*.png")):
        typer.echo(f"   {picture}")
