"""How well `halfmap symmetry` tells point groups, on phantoms whose group and axes are known and on
third-party maps."""

import time

import torch

from common import HALFMAP, RUNS, Report, Skip, run, third_party
from halfmap.alignment import Alignment, symmetrised
from halfmap.asymmetry import (
    CORNERS_UNDERSTATE,
    Departure,
    departure_from,
    held_symmetry,
    noise_like_corners,
)
from halfmap.so3 import random_rotations
from halfmap.symmetries import symmetry_matrices
from halfmap.symmetry_search import (
    candidate_groups,
    expected_by_shell,
    find_symmetry,
    mean_over_slices,
    usable_radius,
)

BOX, DIAMETER_PX, MOST_SHELLS, HIGHEST_ORDER = 40, 34.0, 8, 7
GROUPS = (*(f"C{n}" for n in range(1, 8)), *(f"D{n}" for n in range(2, 8)), "T", "O", "I")
# group that nearly holds, group that holds, extra mass at the places of the second
NEARLY = (("C4", "C2", 0.06), ("C4", "C2", 0.02), ("D2", "C2", 0.06), ("C4", "C1", 0.06))
MAPS = (("trpv1_96_2.5A.mrc", "C4"), ("bgal_100_3.54A.mrc", "D2"), ("ribosome70S_64_5A.mrc", "C1"))


def symmetry_found() -> Report:
    """The point group of maps in random frames, off centre by 1.5 pixels, with white noise half as
    strong as the map, and of maps that are only nearly symmetric."""
    report = Report()
    right = 0
    for group in GROUPS:
        found, laid, seconds = _phantom(group, group, 0.0)
        right += found.group == group
        best = "" if found.best is None else f"{found.best.mean:.3f}, axes {laid:.3f}"
        report.add(f"{group}: found, correlation, after laying", f"{found.group} {best}", seconds)
    report.add("groups told right", f"{right} of {len(GROUPS)}")
    for nearly, truly, mass in NEARLY:
        found, _, seconds = _phantom(nearly, truly, mass)
        score = {one.group: one.mean for one in found.scores}
        told = f"{found.group} ({nearly} {score[nearly]:.3f}, best {found.scores[0].mean:.3f})"
        report.add(f"{truly}, {nearly} but for {100 * mass:g} % of the mass", told, seconds)
    return report


def symmetry_departure() -> Report:
    """Maps of C4 and D2, laid on their axes to half a degree, in white noise of 0.05, 0.5 and 1.5 of their
    standard deviation (two draws each): of how many a part is said not to follow the group, and of
    how many it is so much that the map is not taken to have the group, when all follow it, and when
    a part of 2 % or 6 % of the mass does not. Half maps tell the noise, or the corners of the box."""
    report = Report()
    for share in (0.0, 0.02, 0.06):
        told = [
            _departs(group, share, level, seed)
            for group in ("C4", "D2")
            for level in (0.05, 0.5, 1.5)
            for seed in range(2)
        ]
        halves, corners = zip(*told, strict=True)
        by_halves, by_corners = (sum(one.sure for one in way) for way in (halves, corners))
        breaks = [sum(one.breaks for one in way) for way in (halves, corners)]
        goal = "0" if share == 0 else "all"
        report.add(
            f"a part of {share:.0%} of the mass: told" if share else "no part: told",
            f"{by_halves} of {len(told)} by half maps, {by_corners} by the corners",
            f"goal: {goal}",
        )
        report.add(
            f"{share:.0%} of the mass: group not taken" if share else "no part: group not taken",
            f"{breaks[0]} of {len(told)} by half maps, {breaks[1]} by the corners",
            "" if share else "goal: 0",
        )
        report.numbers[f"{share:g}"] = {
            "breaks": breaks,
            "maps": len(told),
            "by_halves": by_halves,
            "by_corners": by_corners,
        }
    return report


def _departs(group: str, share: float, level: float, seed: int) -> tuple[Departure, Departure]:
    volume = symmetrised(_blobs(seed + 10), symmetry_matrices(group))
    volume = volume + share * _blobs(seed + 50, n=6, spread=1.5)
    draw = torch.Generator().manual_seed(seed)
    sigma = level * float(volume.std())
    # independent, as the mean of two half maps and half their difference are
    average, noise = [
        base + sigma * torch.randn(volume.shape, generator=draw) for base in (volume, 0 * volume)
    ]
    half = torch.tensor(0.5).deg2rad()
    tilt = torch.tensor([[1, 0, 0], [0, half.cos(), -half.sin()], [0, half.sin(), half.cos()]])
    placed = Alignment(tilt, torch.zeros(3), False, 1.0)
    corners = noise_like_corners(average)
    assert corners is not None
    reached = {"radius": MOST_SHELLS, "diameter_px": DIAMETER_PX}
    return (
        departure_from(average, noise, placed, group, **reached),
        departure_from(average, CORNERS_UNDERSTATE * corners, placed, group, **reached),
    )


def symmetry_of_molecules() -> Report:
    """The point group of third-party maps, as they are, found by the command."""
    report = Report()
    for name, group in MAPS:
        try:
            path = third_party("maps") / name
        except Skip as reason:
            report.add(name, "skipped", str(reason))
            continue
        cost = run(report, [HALFMAP, "symmetry", path], log=f"symmetry_{path.stem}")
        told = (RUNS / f"symmetry_{path.stem}.log").read_text().splitlines()[-1]
        report.add(f"{name} ({group})", told.split(";")[0].removeprefix("symmetry: "), str(cost))
    return report


def _phantom(nearly: str, truly: str, mass: float):
    """What is found in a map of one group with extra mass of another; how the clean map, laid,
    correlates with its mean over the group found; and CPU seconds."""
    volume = symmetrised(_blobs(1), symmetry_matrices(nearly))
    volume = volume + mass * symmetrised(_blobs(5, n=6, spread=1.5), symmetry_matrices(truly))
    generator = torch.Generator().manual_seed(2)
    turn, shift = random_rotations(1, generator)[0], 1.5 * torch.randn(3, generator=generator)
    clean = Alignment(turn, shift, False, 1.0).apply_to_map(volume)
    noisy = clean + 0.5 * clean.std() * torch.randn(clean.shape, generator=generator)
    start = time.process_time()
    by_shell = expected_by_shell(noisy, diameter_px=DIAMETER_PX)
    radius = min(MOST_SHELLS, usable_radius(by_shell, BOX))
    found = find_symmetry(
        noisy,
        radius=radius,
        diameter_px=DIAMETER_PX,
        groups=candidate_groups(HIGHEST_ORDER),
        expected=mean_over_slices(by_shell, radius),
    )
    noise = CORNERS_UNDERSTATE * noise_like_corners(noisy)
    reached = {"radius": radius, "diameter_px": DIAMETER_PX}
    found, _ = held_symmetry(
        found, lambda one: departure_from(noisy, noise, one.placed, one.group, **reached)
    )
    seconds = f"{time.process_time() - start:.1f} CPU s"
    if found.best is None:
        return found, 0.0, seconds
    laid = found.best.placed.apply_to_map(clean)
    whole = symmetrised(laid, symmetry_matrices(found.group))
    both = torch.stack([laid.flatten(), whole.flatten()])
    return found, float(torch.corrcoef(both)[0, 1]), seconds


def _blobs(seed: int, *, n: int = 30, spread: float = 2.8, away: float = 7.0):
    """Atoms around a point off the centre, of mass 1 together."""
    generator = torch.Generator().manual_seed(seed)
    middle = torch.nn.functional.normalize(torch.randn(3, generator=generator), dim=0) * away
    axis = torch.arange(BOX) - BOX // 2
    volume = torch.zeros(BOX, BOX, BOX)
    for place in middle + spread * torch.randn(n, 3, generator=generator):
        x, y, z = (torch.exp(-((axis - c) ** 2) / (2 * 1.3**2)) for c in place)
        volume += z[:, None, None] * y[None, :, None] * x[None, None, :]
    return volume / volume.sum()
