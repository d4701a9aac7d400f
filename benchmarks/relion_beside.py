"""RELION on this very machine, in the same run: the anchor between the recorded figures and
ours."""

import numpy as np

import iterations
import relion
import truth
from classes2d import CLASSES, SAMPLING
from common import HALFMAP, Cost, Report, Skip, events, job_folder, run, simulated
from datasets import first_images

MANY, FEW, ITERATIONS = 400, 100, 4


def relion_beside() -> Report:
    """2D classes of the first images of `ribo_mix` by Debian's RELION 3.1 and by halfmap on the
    same machine, in the same run, one thread each: K = 20, 4 iterations, the sampling of
    `ribo_mix_2d`. RELION 3.1 has no vectorised path; version 5's recorded cost on another machine
    stands beside. Marginal: slope between 400 and 100 images. Few images and iterations: the spread
    of views says little here."""
    if not relion.version("relion_refine"):
        raise Skip("relion_refine is not installed")
    report = Report()
    folder = simulated("ribo_mix")
    true = truth.read_poses(folder / "truth.star")
    stars = {n: first_images(folder / "particles.star", n) for n in (MANY, FEW)}
    theirs, ours = {}, {}
    for n, star in stars.items():
        data, theirs[n] = relion.class2d(
            report,
            star,
            f"relion_beside_{n}",
            classes=CLASSES,
            iterations=ITERATIONS,
            diameter="270",
        )
        out = job_folder(f"relion_beside_halfmap_{n}")
        command = [
            HALFMAP,
            "class2d",
            "--particles",
            star,
            "--classes",
            f"{CLASSES}",
            "--iterations",
            f"{ITERATIONS}",
        ]
        ours[n] = run(
            report,
            [
                *command,
                *SAMPLING,
                "--diameter",
                "270",
                "--threads",
                "1",
                "--out",
                out,
                "--overwrite",
                "--quiet",
            ],
            log=out.name,
        )
        if n == MANY:
            spreads = [spread(data, true), spread(out / "particles.star", true)]
        if len(events(out)) != ITERATIONS:
            raise RuntimeError(f"{out} did {len(events(out))} iterations in place of {ITERATIONS}")

    def both(what: str, unit: str, function) -> tuple[float, float]:
        mine, peer = function(ours), function(theirs)
        report.add(
            what,
            f"{mine:.2f} {unit}",
            f"{peer:.2f} {unit}, RELION {relion.version('relion_refine')}; {peer / mine:.1f} "
            "times halfmap's",
        )
        return mine, peer

    def marginal(costs: dict[int, Cost]) -> float:
        return iterations.marginal_ms(
            (costs[MANY], MANY, ITERATIONS), (costs[FEW], FEW, ITERATIONS)
        )

    whole = both(
        "CPU ms per image and iteration, whole job of 400",
        "ms",
        lambda costs: 1e3 * costs[MANY].cpu_s / (MANY * ITERATIONS),
    )
    slope = both("CPU ms per image and iteration, marginal", "ms", marginal)
    report.add(
        "RELION 5 per image and iteration, 3,000 images, K = 20",
        "",
        f"{relion.CLASS2D_MS} ms ({relion.RECORDED})",
    )
    report.add(
        "spread of the true views inside a class, median",
        f"{spreads[1]:.1f} deg",
        f"{spreads[0]:.1f} deg, RELION, same run",
    )
    report.numbers = {"whole_ms": whole, "marginal_ms": slope, "spread_deg": spreads[::-1]}
    return report


def spread(data, true: truth.Poses) -> float:
    found = truth.read_poses(data)
    return float(
        np.median(truth.view_spread_deg(true.only(found.numbers).rotations, found.classes))
    )
