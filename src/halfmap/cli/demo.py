"""`halfmap demo`: the whole story on an embedded example."""

from pathlib import Path
from typing import Annotated, Any

import typer

from halfmap.cli import options

_PARTICLES, _BOX, _PIXEL_ANGSTROM, _SNR, _START_ANGSTROM = 1200, 56, 4.0, 0.1, 40.0


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the demo's jobs.")] = Path("demo"),
    n: Annotated[int, typer.Option("--n", min=100, help="Number of particles.")] = _PARTICLES,
    seed: options.Seed = 1,
    device: options.DeviceOption = options.Device.auto,
    threads: options.Threads = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Simulate particles of a made-up ion channel, classify them, refine a map from a blurred start, and show pictures.

    Takes about a minute on a laptop.

    Example: halfmap demo --out demo
    """
    from halfmap.algorithms.class2d import class2d
    from halfmap.algorithms.reconstruct3d import reconstruct
    from halfmap.algorithms.refine3d import refine
    from halfmap.algorithms.simulation import simulate

    simulated, classes, refined, again = (out / name for name in ("1_particles", "2_classes", "3_refined", "4_reconstructed.mrc"))
    star, truth = simulated / "particles.star", simulated / "truth_1.mrc"
    how: dict[str, Any] = {"seed": seed, "overwrite": overwrite, "quiet": quiet}
    where: dict[str, Any] = {"device": device.value, "threads": threads}

    _step(f"1. {n} noisy images ({_BOX} pixels of {_PIXEL_ANGSTROM:g} Angstrom, signal-to-noise {_SNR:g}) of a channel with C4 symmetry,")
    _step("   each from a random direction, off centre, and through the microscope's CTF.")
    simulate("phantom", simulated, n=n, snr=_SNR, box=_BOX, pixel_size_angstrom=_PIXEL_ANGSTROM, **how)
    _look(simulated)

    _step("2. Template matching sorts them into classes of one view each; averaging makes the particle visible.")
    class2d(star, classes, classes=12, iterations=10, **where, **how)
    _look(classes)

    _step(f"3. From the map blurred to {_START_ANGSTROM:g} Angstrom, projection matching finds every pose, in two independent halves.")
    refine(star, truth, refined, symmetry="C4", initial_lowpass_angstrom=_START_ANGSTROM, **where, **how)
    _look(refined)

    _step("4. The map once more, from the poses found.")
    reconstruct(refined / "particles.star", again, symmetry="C4", halves=True, **where, **how)
    _step("")
    _step(f"Look at the pictures; halfmap info {refined} tells the rest. Your own particles: halfmap refine --help")


def _step(text: str) -> None:
    typer.secho(text, bold=True)


def _look(folder: Path) -> None:
    for picture in sorted(folder.rglob("*.png")):
        typer.echo(f"   {picture}")
