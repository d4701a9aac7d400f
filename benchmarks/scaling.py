"""What an iteration costs as the problem grows, and what the lecture's yardstick would cost."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import truth
from common import DATA, FIGURES, Report
from datasets import first_images, phantom_map, phantom_particles, save_map
from halfmap.engine.loop import sum_at_significant_poses
from halfmap.engine.state import State
from inside import OpenedVolumes, cpu_seconds, on_true_maps, open_job, searching, settled, step

YARDSTICK_IMAGES, YARDSTICK_BOX, GOAL_HOURS = 100_000, 128, 3.0
MANY, FEW = 600, 200
BOXES, NUMBERS, CLASSES, STEPS = (
    (32, 48, 64, 96, 128),
    (100, 200, 400, 800),
    (1, 2, 4, 8),
    (15.0, 7.5, 3.75),
)
GROWTH_IMAGES = 300
SNR, DIAMETER, LOWPASS = 0.1, 170.0, 40.0


def yardstick() -> Report:
    """The lecture's yardstick: CPU time of a full refinement of N = 100,000 images of n = 128,
    extrapolated. `refine --method ml` runs to convergence on 600 images of the embedded phantom
    without symmetry (C1, 128^2, 1.75 A, SNR 0.1), one thread. Every iteration is done a second time
    from the same state on the first 200 of them; the slope is its marginal cost, the rest its fixed
    cost. The total is the sum over iterations, and over start and end, of fixed cost + 100,000
    times marginal cost: as many images would take the same iterations at the same cost. Since
    100,000 images reach Nyquist sooner, a second total charges every iteration after the first at
    the marginal cost that one of its kind, everywhere or around known poses, has when it is scored
    to Nyquist against the true map. Goal: under 3 CPU-hours; the lecture says 19 CPU-years for the
    naive program and about 1 CPU-day for efficient ones."""
    report = Report()
    star = (
        phantom_particles("yardstick", n=MANY, box=YARDSTICK_BOX, snr=SNR, seed=61)
        / "particles.star"
    )
    report.commands.append(
        "halfmap simulate phantom --symmetry C1 --box 128 --pixel-size 1.75 --n 600 --snr 0.1 "
        "--seed 61 --out ..."
    )
    open_yardstick(first_images(star, FEW))  # compiles kernels
    start = [
        cpu_seconds(lambda p=path: open_yardstick(p)) for path in (first_images(star, FEW), star)
    ]
    opened = start[1][1]
    step(opened, opened.state, images=20)
    state, pairs = opened.state, []
    while state.iteration < 20 and not opened.method.converged(state):
        pairs.append((step(opened, state, images=FEW), step(opened, state)))
        state = pairs[-1][1].after
    few_problem = opened.subset(FEW)
    end = [
        cpu_seconds(lambda p=problem: sum_at_significant_poses(p, opened.method.assign, state))[0]
        for problem in (few_problem, opened.problem)
    ]
    marginal = [slope(few.cpu_s, many.cpu_s) for few, many in pairs]
    fixed = [
        max(0.0, few.cpu_s - FEW * cost) for (few, _), cost in zip(pairs, marginal, strict=True)
    ]
    outside = YARDSTICK_IMAGES * (slope(*end) + slope(start[0][0], start[1][0]))
    total = start[0][0] + end[0] + sum(fixed) + YARDSTICK_IMAGES * sum(marginal) + outside
    at_nyquist = nyquist_costs(opened, state)
    kinds = [many.everywhere for _, many in pairs]
    charged = marginal[0] + sum(
        max(cost, at_nyquist[kind]) for cost, kind in zip(marginal[1:], kinds[1:], strict=True)
    )
    upper = start[0][0] + end[0] + sum(fixed) + YARDSTICK_IMAGES * charged + outside
    lines = ["iteration  everywhere  shells  fixed CPU s  marginal CPU ms  poses"]
    for n, ((_, many), cost, rest) in enumerate(zip(pairs, marginal, fixed, strict=True)):
        record = many.after.history[-1]
        kind = "yes" if many.everywhere else "no"
        lines.append(
            f"{n + 1:9}  {kind:>10}  {record.radius:6}  {rest:11.2f}  {1e3 * cost:15.2f}  "
            f"{record.mean_significant:5.1f}"
        )
    report.numbers["printed"] = "\n".join(lines)
    hours = total / 3600, upper / 3600
    report.add(
        "iterations everywhere / around known poses", f"{sum(kinds)} / {len(kinds) - sum(kinds)}"
    )
    report.add(
        "marginal CPU ms per image, everywhere / around known",
        f"{mean_ms(marginal, kinds, True)} / {mean_ms(marginal, kinds, False)}",
    )
    report.add(
        "the same, scored to Nyquist",
        f"{1e3 * at_nyquist[True]:.2f} / {1e3 * at_nyquist[False]:.2f}",
    )
    report.add("start and end, CPU ms per image", f"{1e3 * outside / YARDSTICK_IMAGES:.2f}")
    report.add(
        "N = 100,000, n = 128, the iterations as measured",
        f"{hours[0]:.2f} CPU-hours",
        "19 CPU-years naive, 1 CPU-day efficient (lecture)",
    )
    report.add(
        "N = 100,000, n = 128, all after the first to Nyquist",
        f"{hours[1]:.2f} CPU-hours",
        f"asked: under {GOAL_HOURS:g}",
    )
    report.add(
        f"goal: under {GOAL_HOURS:g} CPU-hours, to Nyquist",
        "met" if hours[1] < GOAL_HOURS else "NOT met",
    )
    report.add(
        "resolution of the measured run",
        f"{state.history[-1].resolution_angstrom:.1f} A",
        "Nyquist 3.5 A",
    )
    report.numbers |= {
        "marginal_s": marginal,
        "fixed_s": fixed,
        "everywhere": kinds,
        "start_s": [s for s, _ in start],
        "end_s": end,
        "hours": hours,
        "nyquist_marginal_s": [at_nyquist[True], at_nyquist[False]],
    }
    return report


def open_yardstick(star: Path) -> OpenedVolumes:
    return open_job(
        star, [phantom_map(YARDSTICK_BOX)], diameter_angstrom=DIAMETER, lowpass_angstrom=LOWPASS
    )


def slope(few_s: float, many_s: float) -> float:
    """CPU seconds per image."""
    return max(0.0, many_s - few_s) / (MANY - FEW)


def mean_ms(marginal: list[float], kinds: list[bool], kind: bool) -> str:
    costs = [cost for cost, here in zip(marginal, kinds, strict=True) if here == kind]
    return f"{1e3 * np.mean(costs):.2f}" if costs else "none"


def nyquist_costs(opened: OpenedVolumes, state: State) -> dict[bool, float]:
    """Marginal CPU seconds per image of an iteration everywhere (True) and around known poses
    (False), scored to the last shell against the true map on the images' scale, as 100,000 images
    would have it; poses are those found at Nyquist before."""
    true_map = torch.from_numpy(truth.read_volume(phantom_map(YARDSTICK_BOX))[0])[None]
    state = on_true_maps(opened, state, true_map, opened.problem.plane.radius)
    state = replace(state, poses=step(opened, settled(state)).after.poses)
    costs = {}
    for everywhere, before in ((True, searching(opened.settings, state)), (False, settled(state))):
        few, many = (step(opened, before, images=n) for n in (FEW, MANY))
        assert many.everywhere == everywhere
        costs[everywhere] = slope(few.cpu_s, many.cpu_s)
    return costs


def cost_growth() -> Report:
    """CPU time of one maximum-likelihood iteration as the box n, the number of images N, the number
    of classes K and the angular step change: one that looks everywhere (log likelihood, posterior,
    M-step) and one around the poses it found. Embedded phantom, C1, field of view 224 A, the same
    dose at every box (SNR 0.1 at 64^2, falling as 1 / n^2), scored to Nyquist against the true maps
    (each class lacks another part), 300 images where nothing else is said, one thread. Dashed: the
    lecture's pi^3/8 t^2 n^5 N + pi n^4 + N n^2, scaled to the first point; it grows with K, and
    with the inverse cube of the step, as the grid does."""
    report, panels = Report(), {}
    cost(32, 20)  # compiles kernels
    panels[f"box n ({GROWTH_IMAGES} images)"] = (
        {box: cost(box) for box in BOXES},
        lambda n: lecture(n) / lecture(BOXES[0]),
    )
    at_number = {n: cost(64, n) for n in NUMBERS}
    panels["images N (64^2)"] = at_number, lambda n: lecture(64, n) / lecture(64, NUMBERS[0])
    panels["classes K (64^2)"] = {k: cost(64, classes=k) for k in CLASSES}, lambda k: k
    panels["angular step, degrees (64^2)"] = (
        {s: cost(64, step_deg=s) for s in STEPS},
        lambda s: (STEPS[0] / s) ** 3,
    )
    for kind, name in enumerate(("everywhere", "around known poses")):
        per_image, fixed = np.polyfit(NUMBERS, [at_number[n][kind] for n in NUMBERS], 1)
        report.add(
            f"64^2, {name}: CPU ms per image, and what does not depend on N",
            f"{1e3 * per_image:.2f} ms, {fixed:.2f} s",
        )
    for title, (costs, growth) in panels.items():
        points = list(costs)
        report.add(f"{title}", " ".join(f"{p:g}" for p in points))
        formula = [growth(p) for p in points]
        report.add(
            "CPU s, everywhere",
            " ".join(f"{costs[p][0]:.2f}" for p in points),
            "lecture x" + " x".join(f"{g:.3g}" for g in formula),
        )
        report.add("CPU s, around known poses", " ".join(f"{costs[p][1]:.2f}" for p in points))
        powers = [exponent(points, [costs[p][kind] for p in points]) for kind in (0, 1)]
        theirs = exponent(points, formula)
        report.add(
            "grows as the power",
            f"{powers[0]:.2f} everywhere, {powers[1]:.2f} around",
            f"lecture {theirs:.2f}",
        )
        report.numbers[title] = {
            "points": points,
            "cpu_s": [costs[p] for p in points],
            "powers": powers,
        }
    plot(panels, FIGURES / "benchmark_cost_growth.png")
    report.pictures.append("benchmark_cost_growth.png")
    return report


def cost(
    box: int, images: int | None = None, *, classes: int = 1, step_deg: float = 7.5
) -> tuple[float, float]:
    """CPU seconds of one iteration everywhere and of one around the poses found."""
    images = images or GROWTH_IMAGES
    n = max(NUMBERS) if box == 64 else GROWTH_IMAGES
    star = (
        phantom_particles(f"growth_{box}", n=n, box=box, snr=SNR * (64 / box) ** 2, seed=71)
        / "particles.star"
    )
    paths = [phantom_map(box)] if classes == 1 else [lacking(box, k) for k in range(classes)]
    opened = open_job(
        star, paths, diameter_angstrom=DIAMETER, lowpass_angstrom=LOWPASS, step_deg=step_deg
    )
    first = step(
        opened, opened.state, images=images
    ).after  # brings the references to the images' grey scale
    maps = torch.stack([torch.from_numpy(truth.read_volume(path)[0]) for path in paths])
    radius = opened.problem.plane.radius
    everywhere = step(opened, on_true_maps(opened, first, maps, radius), images=images)
    near = step(
        opened, settled(on_true_maps(opened, everywhere.after, maps, radius)), images=images
    )
    assert (everywhere.everywhere, near.everywhere) == (True, False)
    print(
        f"    n {box}, N {images}, K {classes}, step {step_deg:g}: {everywhere.cpu_s:.2f} and "
        f"{near.cpu_s:.2f} CPU s",
        flush=True,
    )
    return everywhere.cpu_s, near.cpu_s


def lacking(box: int, k: int) -> Path:
    """The phantom without what lies around one of eight points, 45 A from its axis."""
    path = DATA / "maps" / f"phantom_lacking{k}_{box}.mrc"
    if not path.exists():
        volume, pixel = truth.read_volume(phantom_map(box))
        axis = (np.arange(box) - box // 2) * pixel
        turn = 2 * math.pi * k / 8
        centre = (20.0 * (-1) ** k, 45 * math.sin(turn), 45 * math.cos(turn))
        distance2 = sum(
            (a - c) ** 2
            for a, c in zip(np.meshgrid(axis, axis, axis, indexing="ij"), centre, strict=True)
        )
        save_map(path, volume * (1 - np.exp(-distance2 / (2 * 12.0**2))), pixel)
    return path


def lecture(n: int, images: int = 300, shifts: int = 11) -> float:
    """Operations of one iteration by the lecture: `pi^3/8 t^2 n^5 N + pi n^4 + N n^2`, t shifts
    along each axis."""
    return math.pi**3 / 8 * shifts**2 * n**5 * images + math.pi * n**4 + images * n**2


def exponent(points: list[float], values: list[float]) -> float:
    """Slope of the logarithms."""
    return float(np.polyfit(np.log(points), np.log(values), 1)[0])


def plot(
    panels: dict[str, tuple[dict[float, tuple[float, float]], Callable[[float], float]]], path: Path
) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.5), facecolor="white", layout="constrained")
    for axes, (title, (costs, growth)) in zip(
        figure.subplots(2, 2).flat, panels.items(), strict=True
    ):
        points = list(costs)
        axes.loglog(points, [costs[p][0] for p in points], "o-", label="everywhere")
        axes.loglog(points, [costs[p][1] for p in points], "s-", label="around known poses")
        axes.loglog(
            points,
            [costs[points[0]][0] * growth(p) for p in points],
            "k--",
            linewidth=1,
            label="lecture's formula, scaled",
        )
        axes.set(xlabel=title, ylabel="CPU s an iteration")
        axes.set_xticks(points, [f"{p:g}" for p in points], minor=False)
        axes.minorticks_off()
        axes.grid(color="0.9")
    figure.axes[0].legend(frameon=False, fontsize=8.5)
    figure.savefig(path, dpi=90)
