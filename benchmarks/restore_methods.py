"""Undoing the CTF by each of the lecture's methods, judged by the Fourier ring correlation with the
truth.

    python benchmarks/restore_methods.py [--shared-data DIR] [--out docs/figures]

Simulated: one view of the embedded phantom, its CTFs exact, white noise at a stated SNR (signal
power over noise power in the box). Real: the seven EMPIAR-10076 images of the third-party data,
skipped where those are absent.
"""

import argparse
import math
import os
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from halfmap.commands._corrected_images import restore_images
from halfmap.fourier import (
    fourier_transform,
    half_plane,
    inverse_fourier_transform,
    largest_radius,
    lowpass,
)
from halfmap.particles import load_particles
from halfmap.resolution import fourier_shell_correlation, resolution_at
from halfmap.restoration import (
    divide,
    measure_ssnr,
    stack_sums,
    wiener_filter,
    wiener_ssnr,
    wiener_stack,
)
from halfmap.simulation.forward_model import exact_slices
from halfmap.simulation.phantom import phantom
from halfmap.so3 import euler_to_matrix
from halfmap.transfer_function import CTFParameters, ctf, phase_flip

BOX, PIXEL_ANGSTROM, SNR, IMAGES, CONSTANT = 128, 1.8, 0.05, 100, 0.1
DEFOCUS_ANGSTROM, DEFOCUS_RANGE_ANGSTROM = 20000.0, (10000.0, 30000.0)
PLANE = half_plane(BOX, largest_radius(BOX))
COLOURS = {
    "divide": "#d62728",
    "flip": "#ff7f0e",
    "wiener": "#2ca02c",
    "wiener-stack": "#1f77b4",
    "wiener-ssnr": "#111111",
}
DASHES = {"wiener-ssnr": (0, (4, 2))}  # it often lies on wiener-stack


def image(samples: torch.Tensor) -> torch.Tensor:
    return inverse_fourier_transform(samples[None], PLANE)[0]


def save_small(figure: Figure, path: Path, *, dpi: int, colours: int) -> None:
    """PNG of few colours: pictures of noise do not compress otherwise, and the repository keeps
    them."""
    figure.savefig(path, dpi=dpi)
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(colours).save(path, optimize=True)


def simulate(
    defocus_angstrom: np.ndarray, truth: torch.Tensor, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples X = C A + N and their CTFs, (n, J) each."""
    n = len(defocus_angstrom)
    u = torch.as_tensor(defocus_angstrom, dtype=torch.float32)
    columns = [torch.full((n,), value) for value in (0.0, 300.0, 2.7, 0.1, 0.0, 0.0, 1.0, 0.0, 0.0)]
    values = ctf(
        CTFParameters(u, u, *columns), *(k.double() for k in PLANE.frequencies(PIXEL_ANGSTROM))
    )
    signal = values * truth
    power = inverse_fourier_transform(signal, PLANE).var()
    noise = torch.randn(
        n, BOX, BOX, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return signal + math.sqrt(power / SNR) * fourier_transform(noise, PLANE), values


def by_each_method(samples: torch.Tensor, values: torch.Tensor) -> dict[str, torch.Tensor]:
    """One restored object by each method; the per-image methods are averaged over the images."""
    estimates = {
        "divide": divide(samples, values).mean(0),
        "flip": phase_flip(samples, values).mean(0),
        "wiener": wiener_filter(samples, values, constant=CONSTANT).mean(0),
    }
    if len(samples) > 1:
        sums = stack_sums(samples, values)
        estimates["wiener-stack"] = wiener_stack(sums, constant=CONSTANT)
        estimates["wiener-ssnr"] = wiener_ssnr(sums, measure_ssnr(sums, PLANE), PLANE)
    return estimates


def simulated(out: Path) -> None:
    volume = torch.as_tensor(phantom(BOX, PIXEL_ANGSTROM), dtype=torch.float64)
    view = euler_to_matrix(torch.tensor([[20.0, 75.0, 10.0]], dtype=torch.float64))
    truth = exact_slices(volume, view, PLANE.kx.double(), PLANE.ky.double())[0]
    rng = np.random.default_rng(0)
    sets = {
        "one image": np.array([DEFOCUS_ANGSTROM]),
        f"{IMAGES} images, one defocus": np.full(IMAGES, DEFOCUS_ANGSTROM),
        f"{IMAGES} images, many defoci": rng.uniform(*DEFOCUS_RANGE_ANGSTROM, IMAGES),
    }
    figure = Figure(figsize=(13, 6.8), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.9, 1))
    panels = upper.subplots(1, 3, sharey=True)
    print(f"{BOX}^2, {PIXEL_ANGSTROM} A, SNR {SNR}, k = {CONSTANT}; against the truth")
    print(
        f"{'images':28}{'method':14}{'FRC 0.5 (A)':>12}{'FRC mean':>10}{'correlation':>13}{'error':>10}"
    )
    pictures: dict[str, torch.Tensor] = {}
    for panel, (name, defocus) in zip(panels, sets.items(), strict=True):
        samples, values = simulate(defocus, truth, seed=1)
        for method, estimate in by_each_method(samples, values).items():
            curve = fourier_shell_correlation(
                image(estimate), image(truth), pixel_size_angstrom=PIXEL_ANGSTROM
            )
            panel.plot(
                curve.frequency_per_angstrom[1:-1],
                curve.correlation[1:-1],
                color=COLOURS[method],
                label=method,
                lw=1.4,
                ls=DASHES.get(method, "-"),
            )
            similarity = torch.corrcoef(
                torch.stack([image(estimate).flatten(), image(truth).flatten()])
            )[0, 1].item()
            error = (
                (image(estimate) - image(truth)).square().sum() / image(truth).square().sum()
            ).item()
            mean = curve.correlation[1:-1].mean().item()
            print(
                f"{name:28}{method:14}{resolution_at(curve, 0.5):12.2f}{mean:10.3f}{similarity:13.3f}{error:10.2e}"
            )
            pictures[f"{method}\ncorrelation {similarity:.2f}"] = image(estimate)
        if len(samples) > 1:
            halves = [stack_sums(samples[i::2], values[i::2]) for i in (0, 1)]
            pair = [image(wiener_ssnr(half, measure_ssnr(half, PLANE), PLANE)) for half in halves]
            between = fourier_shell_correlation(*pair, pixel_size_angstrom=PIXEL_ANGSTROM)
            panel.plot(
                between.frequency_per_angstrom[1:-1],
                between.correlation[1:-1],
                "k:",
                lw=1,
                label="wiener-ssnr, between halves",
            )
        panel.axhline(0.5, color="0.8", lw=0.8, zorder=0)
        panel.axhline(0, color="0.6", lw=0.8, zorder=0)
        panel.set(title=name, xlabel="spatial frequency (1/A)")
        pictures = {"truth": image(truth), f"one image\nSNR {SNR}": image(samples[0])} | dict(
            list(pictures.items())[-5:]
        )
    panels[0].set_ylabel("FRC with the truth")
    panels[0].legend(*panels[2].get_legend_handles_labels(), fontsize=8)
    for panel, (title, picture) in zip(
        lower.subplots(1, len(pictures)), pictures.items(), strict=True
    ):
        panel.imshow(
            picture,
            cmap="gray",
            vmin=picture.quantile(0.005),
            vmax=picture.quantile(0.995),
            origin="lower",
        )
        panel.set_title(title, fontsize=9)
        panel.axis("off")
    lower.suptitle(name, fontsize=10)
    save_small(figure, out / "restore_frc.png", dpi=90, colours=160)


def real(star: Path, out: Path) -> None:
    """Raw, flipped and Wiener-filtered images side by side, low-passed; and how far the particle
    stands out of the background."""
    data = load_particles(star)
    rows = np.arange(len(data))
    raw = torch.from_numpy(data.images(rows))

    def restored(method: str, constant: float, resolution_angstrom: float) -> torch.Tensor:
        images = raw if method == "raw" else restore_images(data, rows, method, constant)
        return lowpass(images, resolution_angstrom, data.pixel_size_angstrom, dimensions=2)

    stages = {
        "raw": raw,
        "raw, 15 A": restored("raw", 0, 15),
        "flip, 15 A": restored("flip", 0, 15),
        "Wiener k 0.1, 15 A": restored("wiener", 0.1, 15),
        "Wiener k 0.01, 15 A": restored("wiener", 0.01, 15),
        "Wiener k 0.01, 30 A": restored("wiener", 0.01, 30),
    }
    axis = (torch.arange(data.box) - data.box // 2) * data.pixel_size_angstrom
    radius = torch.hypot(axis[:, None], axis[None, :])
    inside, outside = radius < 80, radius > 160
    print(
        f"\n{star.name}: (mean within 80 A - mean beyond 160 A) / standard deviation beyond 160 "
        f"A, mean of {len(data)} images"
    )
    figure = Figure(figsize=(1.3 * len(data), 1.3 * len(stages)), facecolor="white")
    close = {"wspace": 0.03, "hspace": 0.03, "left": 0.03, "right": 1, "bottom": 0, "top": 1}
    panels = figure.subplots(len(stages), len(data), gridspec_kw=close)
    for row, (label, images) in zip(panels, stages.items(), strict=True):
        contrast = (images[:, inside].mean(1) - images[:, outside].mean(1)) / images[
            :, outside
        ].std(1)
        print(f"{label:24}{contrast.mean().item():8.2f}")
        small = torch.nn.functional.avg_pool2d(images[:, None], 4)[
            :, 0
        ]  # third-party pixels: no more of them than the eye needs
        for panel, picture in zip(row, small, strict=True):
            panel.imshow(
                picture,
                cmap="gray",
                vmin=picture.quantile(0.005),
                vmax=picture.quantile(0.995),
                origin="lower",
            )
            panel.set(xticks=[], yticks=[])
        row[0].set_ylabel(label, fontsize=7)
    save_small(figure, out / "restore_empiar10076.png", dpi=70, colours=16)


def main() -> None:
    root = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shared-data",
        type=Path,
        default=Path(os.environ.get("HALFMAP_SHARED_DATA", root.parent / "shared" / "data")),
    )
    parser.add_argument("--out", type=Path, default=root / "docs" / "figures")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    simulated(options.out)
    star = options.shared_data / "images" / "empiar_10076_7.star"
    if star.is_file():
        real(star, options.out)
    else:
        print(f"no third-party data at {options.shared_data}: the EMPIAR-10076 picture is skipped")


if __name__ == "__main__":
    main()
