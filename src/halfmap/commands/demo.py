"""The whole story on an embedded example."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from halfmap.commands._options import (
    Annotated,
    Device,
    Option,
    Overwrite,
    Quiet,
    Seed,
    Threads,
)
from halfmap.commands.abinitio import abinitio
from halfmap.commands.class2d import class2d
from halfmap.commands.class3d import class3d
from halfmap.commands.refine import refine
from halfmap.commands.select import best_resolved_classes, select_classes
from halfmap.commands.simulate import simulate
from halfmap.options import command
from halfmap.workspace.job import read_job

_BOX, _PIXEL_ANGSTROM, _SNR, _JUNK, _DIAMETER_ANGSTROM = 56, 4.0, 0.1, 0.12, 165.0
_STATES, _SHARES = ["phantom", "phantom:1"], (60.0, 40.0)
_LOWPASS_ANGSTROM = 30.0


@dataclass(frozen=True)
class DemoResult:
    """The folder of the demo's jobs."""

    folder: Path

    @property
    def summary(self) -> str:
        return "look at the pictures; your own particles: halfmap class2d --help"


@command
def demo(
    out: Annotated[
        str | Path,
        Option("Folder for the demo's jobs", metavar="DIR", recorded=False),
    ] = "demo",
    *,
    n: Annotated[int, Option("Number of particles", at_least=300)] = 1500,
    seed: Seed = 1,
    device: Device = "auto",
    threads: Threads = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> DemoResult:
    """Simulate particles of a made-up ion channel in two states, with junk among them, and find it
    all again: 2D classes, a selection, a starting map from nothing, 3D classes, and a refined map
    with its half maps. Pictures at each step; a few minutes on a laptop.

    Example: halfmap demo --out demo

    Raises:
        InputError: a folder in use.
    """
    folder = Path(out)
    simulated, classes, selected, initial, states, state, refined = (
        folder / name
        for name in (
            "1_particles",
            "2_classes",
            "3_selected.star",
            "4_initial",
            "5_states",
            "6_state.star",
            "7_refined",
        )
    )
    how: dict[str, Any] = {"seed": seed, "overwrite": overwrite, "quiet": quiet}
    job: dict[str, Any] = {
        "device": device,
        "threads": threads,
        "diameter_angstrom": _DIAMETER_ANGSTROM,
        **how,
    }
    _simulate_states(simulated, n, how)
    _step(
        "2. Maximum likelihood sorts them into classes of one view each; averaging makes the "
        "particle visible."
    )
    class2d(simulated / "particles.star", classes, classes=16, iterations=15, **job)
    _look(classes)
    _step("3. Classes that stay blurred hold junk: the others' particles are selected.")
    kept, _ = select_classes(classes, best_resolved_classes(classes), selected, overwrite=overwrite)
    _say(f"   {kept} of {n} particles are in {selected}")
    _step(
        "4. A map from nothing: stochastic gradient ascent from a random start, all particles "
        "taken for one state."
    )
    abinitio(selected, initial, symmetry="C4", **job)
    _look(initial)
    job |= {"symmetry": "C4", "initial_lowpass_angstrom": _LOWPASS_ANGSTROM}
    _step("5. From that map, two classes part along what differs most between the particles.")
    class3d(selected, initial / "map.mrc", states, classes=2, **job)
    _look(states)
    sizes = read_job(states)["results"]["sizes"]
    larger = 1 + sizes.index(max(sizes))
    _step(
        f"6. The particles of class {larger}, the larger, are refined in two independent halves: "
        "half maps, FSC and honest resolution."
    )
    select_classes(states, [larger], state, overwrite=overwrite)
    refine(state, states / f"class{larger:03d}.mrc", refined, **job)
    _look(refined)
    _step("")
    _step(
        f"{refined}/map_sharpened.mrc is the map to look at. halfmap info {refined} tells the rest."
    )
    return DemoResult(folder)


def _simulate_states(out: Path, n: int, how: dict[str, Any]) -> None:
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
        out,
        n=n,
        weights=_SHARES,
        snr=_SNR,
        box=_BOX,
        pixel_size_angstrom=_PIXEL_ANGSTROM,
        junk_fraction=_JUNK,
        **how,
    )
    _look(out)


def _step(text: str) -> None:
    Console().print(Text(text, style="bold"), soft_wrap=True)


def _say(text: str) -> None:
    Console().print(Text(text), soft_wrap=True)


def _look(folder: Path) -> None:
    for picture in sorted(folder.rglob("*.png")):
        _say(f"   {picture}")
