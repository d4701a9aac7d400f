"""Preferred views: what `halfmap orientations` says of maps of several shapes, from images."""

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, radians

import numpy as np
import torch

import halfmap
from common import RUNS, Report, job_folder
from halfmap.fourier import shell_index
from halfmap.io.mrc import read_map, write_map
from halfmap.masks import read_mask, soft_sphere
from halfmap.orientation_diagnostics import (
    AXES,
    HALF_ANGLE_DEG,
    THRESHOLD,
    conical_fsc,
    fibonacci_hemisphere,
)
from halfmap.resolution import fourier_shell_correlation, ssnr_from_fsc
from halfmap.workspace.job import read_job

# half axes in pixels of a 64^3 box; of two more shapes, below, the power at low resolution differs
SHAPES: dict[str, tuple[float, float, float]] = {
    "ball": (15, 15, 15),
    "rod": (10, 10, 24),
    "disc": (22, 22, 9),
}
ATOMS = 600
PREFERRED = {"even": 0.0, "mild": 0.6, "severe": 0.9, "extreme": 0.98}
SHAPE_BOX, PIXEL, VIEWS, SEEDS_OF_VIEWS = 48, 3.0, 1500, 4
FEW, SNR, NOISE_VARIANCE = 200, 0.05, 140.0  # 20 times the signal of the ball seen evenly
Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class _Found:
    """cFAR by `halfmap orientations`, in a sphere, and of one spectrum; SCF* of the views."""

    cfar: float
    in_sphere: float
    of_one_spectrum: float
    scf_star: float


def orientations() -> Report:
    """cFAR of half maps reconstructed at true poses from images (`halfmap simulate`) of a ball, a
    rod along z and a disc across it of as many atoms, a share of the views within some 15 degrees
    of z, in the same noise: even, mild, severe, extreme; means of four sets each and the standard
    deviation of one, in the mask that the job makes of its half maps. Beside them an L of two
    square bars and a pair of small balls, whose power at low resolution is higher. What the shape
    does is taken apart: in one sphere for all instead of the map's own mask; and with one spectrum
    for all: the noise in each cone measured as before (of half the difference of the half maps, in
    the map's mask), the SSNR of each shell that of the ball seen evenly. Goals: ranked, and by the
    shape within 10 %."""
    report, found = Report(), {}
    shapes = _shapes()
    ssnr: torch.Tensor | None = None
    for name, share in PREFERRED.items():
        found[name] = {}
        for shape, atoms in shapes.items():
            values = []
            for seed in range(SEEDS_OF_VIEWS):
                halves, mask, said = _half_maps(shape, atoms, share, seed)
                if ssnr is None:  # of the first: the ball, even
                    curve = fourier_shell_correlation(*halves, pixel_size_angstrom=PIXEL, mask=mask)
                    ssnr = ssnr_from_fsc(curve.correlation)
                values.append(_measured(halves, mask, ssnr, said))
            found[name][shape] = values
        _tell(report, name, share, found[name])
    lowest, highest = (
        [pick(np.mean([v.cfar for v in one[s]]) for s in SHAPES) for one in found.values()]
        for pick in (min, max)
    )
    ranked = all(a > b for a, b in zip(lowest[:-1], highest[1:], strict=True))
    report.add("ranked, whatever the shape", "yes" if ranked else "no", "goal: yes")
    report.numbers["ranked"] = ranked
    return report


def _tell(report: Report, name: str, share: float, found: dict[str, list[_Found]]) -> None:
    def means(of: Callable[[_Found], float], shapes: list[str]) -> dict[str, float]:
        return {s: float(np.mean([of(one) for one in found[s]])) for s in shapes}

    all_shapes, three = list(found), list(SHAPES)
    cfar = means(lambda one: one.cfar, all_shapes)
    by_chance = np.mean([np.std([one.cfar for one in values], ddof=1) for values in found.values()])
    scf = float(np.mean([one.scf_star for values in found.values() for one in values]))
    asked = {shape: cfar[shape] for shape in three}
    words = ", ".join(f"{shape} {value:.2f}" for shape, value in asked.items())
    report.add(
        f"{name} ({share:.0%} near z): cFAR",
        words,
        f"apart by {_apart(asked):.0%}; one set by chance {by_chance:.3f}; SCF* {scf:.2f}",
    )
    others = ", ".join(f"{shape} {cfar[shape]:.2f}" for shape in all_shapes if shape not in SHAPES)
    sphere = means(lambda one: one.in_sphere, three)
    spectrum = means(lambda one: one.of_one_spectrum, all_shapes)
    report.add(
        f"{name}: two more shapes",
        f"{others}; all five apart by {_apart(cfar):.0%}",
        f"with one spectrum for all five {_apart(spectrum):.0%}; the first three in one sphere "
        f"{_apart(sphere):.0%}",
    )
    report.numbers[name] = {
        "cfar": asked,
        "spread": _apart(asked),
        "scf_star": scf,
        "by_chance": float(by_chance),
        "five": cfar,
        "five_spread": _apart(cfar),
        "one_spectrum_spread": _apart(spectrum),
        "sphere_spread": _apart(sphere),
    }


def _apart(values: dict[str, float]) -> float:
    return (max(values.values()) - min(values.values())) / max(values.values())


def _half_maps(
    shape: str, atoms: torch.Tensor, share: float, seed: int
) -> tuple[Pair, torch.Tensor, tuple[float, float]]:
    """Half maps of a set, the mask their job made of them, and cFAR and SCF* of the command."""
    folder = job_folder(f"finishing_views_{shape}")
    source, out = RUNS / f"finishing_{shape}.mrc", job_folder(f"finishing_views_{shape}_map")
    write_map(source, atoms.numpy(), PIXEL)
    quiet = {"overwrite": True, "quiet": True}
    views = {"preferred_fraction": share, "seed": seed + 1, **quiet}
    halfmap.simulate(source, folder, n=FEW, snr=SNR, **views)
    # the same noise for every shape and share of views, whatever the variance of its images
    snr = read_job(folder)["results"]["signal_variance"] / NOISE_VARIANCE
    halfmap.simulate(source, folder, n=VIEWS, snr=snr, **views)
    halfmap.reconstruct(folder / "truth.star", out, **quiet)
    job = job_folder(f"finishing_cfar_{shape}")
    said = halfmap.orientations(out, job, particles=folder / "truth.star", **quiet)
    one, other = (torch.from_numpy(read_map(out / f"half{h}.mrc")[0]) for h in (1, 2))
    mask = read_mask(out / "mask.mrc", SHAPE_BOX, PIXEL)
    return (one, other), mask, (said.cfar, float(said.scf_star or 0))


def _measured(
    halves: Pair, mask: torch.Tensor, ssnr: torch.Tensor, said: tuple[float, float]
) -> _Found:
    sphere = soft_sphere(SHAPE_BOX, radius_px=SHAPE_BOX / 2 - 6, edge_px=5)
    in_sphere = conical_fsc(*halves, pixel_size_angstrom=PIXEL, mask=sphere).cfar
    noise = _noise_in_cones((halves[0] - halves[1]) * mask)
    curves = ssnr / (ssnr + noise.clamp_min(1e-30))
    above = (curves[:, 1:] > THRESHOLD).long().cumprod(1)
    areas = (curves[:, 1:] * above).sum(1)
    return _Found(said[0], in_sphere, float(areas.min() / areas.max()), said[1])


def _noise_in_cones(noise: torch.Tensor) -> torch.Tensor:
    """Noise power in each cone and shell, over the mean of the shell; of shells with its two
    neighbours, as the first of a cone are few coefficients."""
    box = noise.shape[-1]
    line = torch.fft.fftfreq(box, 1 / box)
    places = torch.stack(
        torch.meshgrid(line, line, torch.arange(box // 2 + 1).float(), indexing="ij")[::-1], -1
    )
    unit = torch.nn.functional.normalize(places.reshape(-1, 3), dim=1)
    inside = (unit @ fibonacci_hemisphere(AXES).float().T).abs() >= cos(radians(HALF_ANGLE_DEG))
    power = torch.fft.rfftn(noise).abs().square().flatten()
    shells = shell_index(box, 3).flatten()
    sums = torch.zeros(2, AXES + 1, box // 2 + 1)
    every = torch.cat([inside, torch.ones_like(inside[:, :1])], 1).float()
    for shell in range(1, box // 2 + 1):
        near = (shells >= max(1, shell - 1)) & (shells <= shell + 1)
        sums[0, :, shell] = power[near] @ every[near]
        sums[1, :, shell] = every[near].sum(0)
    mean = sums[0] / sums[1].clamp_min(1)
    return mean[:-1] / mean[-1].clamp_min(1e-30)


# --- shapes ---------------------------------------------------------------------------------------


def _shapes() -> dict[str, torch.Tensor]:
    """Densities of as many atoms each."""
    generator = torch.Generator().manual_seed(7)
    first = (torch.arange(ATOMS) % 2 == 0)[:, None]
    cube = torch.rand(ATOMS, 3, generator=generator)
    lying = (cube - torch.tensor([0.5, 0.5, 1.8])) * torch.tensor([36.0, 10.0, 10.0])
    standing = (cube - torch.tensor([1.8, 0.5, 0.5])) * torch.tensor([10.0, 10.0, 36.0])
    sides = torch.where(first, torch.tensor([10.0, 4, 8]), torch.tensor([-10.0, -4, -8]))
    places = {shape: _in_ellipsoid(axes) for shape, axes in SHAPES.items()}
    places["L"] = torch.where(first, lying, standing)
    places["pair"] = _in_ellipsoid((9, 9, 9)) + sides
    return {shape: _density(atoms * SHAPE_BOX / 64) for shape, atoms in places.items()}


def _in_ellipsoid(half_axes: tuple[float, float, float]) -> torch.Tensor:
    """Atoms drawn evenly inside, (n, 3)."""
    generator = torch.Generator().manual_seed(7)
    inside = torch.nn.functional.normalize(torch.randn(ATOMS, 3, generator=generator), dim=1)
    inside = inside * torch.rand(ATOMS, 1, generator=generator) ** (1 / 3)
    return inside * torch.tensor(half_axes)


def _density(atoms_px: torch.Tensor) -> torch.Tensor:
    """Gaussians at places from the centre, x, y, z."""
    axis = torch.arange(SHAPE_BOX) - SHAPE_BOX // 2
    volume = torch.zeros(SHAPE_BOX, SHAPE_BOX, SHAPE_BOX)
    for place in atoms_px:
        x, y, z = (torch.exp(-((axis - c) ** 2) / 2) for c in place)
        volume += z[:, None, None] * y[None, :, None] * x[None, None, :]
    return volume
