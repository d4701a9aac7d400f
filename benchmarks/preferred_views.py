"""Preferred views: what `halfmap orientations` says of maps of three shapes, from images."""

import numpy as np
import torch

import halfmap
from common import RUNS, Report, job_folder
from halfmap.io.mrc import write_map
from halfmap.workspace.job import read_job

SHAPES: dict[str, tuple[float, float, float]] = {
    "ball": (15, 15, 15),
    "rod": (10, 10, 24),
    "disc": (22, 22, 9),
}
PREFERRED = {"even": 0.0, "mild": 0.6, "severe": 0.9, "extreme": 0.98}
SHAPE_BOX, VIEWS, SEEDS_OF_VIEWS = 48, 1500, 2
FEW, SNR, NOISE_VARIANCE = 200, 0.05, 140.0  # 20 times the signal of the ball seen evenly


def orientations() -> Report:
    """cFAR of half maps reconstructed at true poses from images (`halfmap simulate`) of a ball, a
    rod along z and a disc of as many atoms, a share of the views within some 15 degrees of z, in the
    same noise: even,
    mild, severe, extreme. Means of two sets each, by the same
    functions as the commands. Goals: ranked, and by the shape within 10 %."""
    report = Report()
    median: dict[str, list[float]] = {}
    for name, share in PREFERRED.items():
        found = {shape: [_cfar(shape, share, k) for k in range(SEEDS_OF_VIEWS)] for shape in SHAPES}
        middle = {
            shape: float(np.median([c for c, _ in values])) for shape, values in found.items()
        }
        scf = float(np.median([s for values in found.values() for _, s in values]))
        median[name] = list(middle.values())
        spread = (max(median[name]) - min(median[name])) / max(median[name])
        words = ", ".join(f"{shape} {value:.2f}" for shape, value in middle.items())
        report.add(
            f"{name} ({share:.0%} near z): cFAR", words, f"apart by {spread:.0%}; SCF* {scf:.2f}"
        )
        report.numbers[name] = {"cfar": middle, "spread": spread, "scf_star": scf}
    ranked = all(
        min(median[a]) > max(median[b])
        for a, b in zip(list(PREFERRED)[:-1], list(PREFERRED)[1:], strict=True)
    )
    report.add("ranked, whatever the shape", "yes" if ranked else "no", "goal: yes")
    report.numbers["ranked"] = ranked
    return report


def _cfar(shape: str, share: float, seed: int) -> tuple[float, float]:
    folder = job_folder(f"finishing_views_{shape}")
    source, out = RUNS / f"finishing_{shape}.mrc", job_folder(f"finishing_views_{shape}_map")
    write_map(source, _atoms(SHAPES[shape], SHAPE_BOX).numpy(), 3.0)
    quiet = {"overwrite": True, "quiet": True}
    views = {"preferred_fraction": share, "seed": seed + 1, **quiet}
    halfmap.simulate(source, folder, n=FEW, snr=SNR, **views)
    # the same noise for every shape and share of views, whatever the variance of its images
    snr = read_job(folder)["results"]["signal_variance"] / NOISE_VARIANCE
    halfmap.simulate(source, folder, n=VIEWS, snr=snr, **views)
    halfmap.reconstruct(folder / "truth.star", out, **quiet)
    job = job_folder(f"finishing_cfar_{shape}")
    found = halfmap.orientations(out, job, particles=folder / "truth.star", **quiet)
    return found.cfar, float(found.scf_star or 0)


def _atoms(half_axes: tuple[float, float, float], box: int, n: int = 600) -> torch.Tensor:
    """Atoms drawn evenly inside an ellipsoid, half axes in pixels of a 64^3 box."""
    generator = torch.Generator().manual_seed(7)
    inside = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=1)
    inside = inside * torch.rand(n, 1, generator=generator) ** (1 / 3)
    places = inside * torch.tensor(half_axes) * box / 64
    axis = torch.arange(box) - box // 2
    volume = torch.zeros(box, box, box)
    for place in places:
        x, y, z = (torch.exp(-((axis - c) ** 2) / 2) for c in place)
        volume += z[:, None, None] * y[None, :, None] * x[None, None, :]
    return volume
