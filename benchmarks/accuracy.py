"""How well angles are known: the error of the poses found against signal-to-noise ratio and
resolution, and what the job says of it."""

from dataclasses import replace

import numpy as np
import torch

import truth
from common import FIGURES, Report
from datasets import phantom_map, phantom_particles
from halfmap.engine.image_model import NoiseSpectra, NormAndScale
from halfmap.fourier import lowpass
from halfmap.plots.posterior import save_accuracy_plot
from inside import on_true_maps, open_job, shells_of, step

BOX, IMAGES, PIXEL = 64, 200, 3.5
SNRS, RESOLUTIONS = (0.02, 0.05, 0.1, 0.2, 0.5), (40.0, 28.0, 20.0, 15.0, 12.0, 10.0, 8.5, 7.3)
# of a Gaussian in three dimensions, the median length over the root of the summed variances
MEDIAN_OF_RMS = 0.888


def accuracy() -> Report:
    """Angular accuracy against SNR and resolution, the lecture's picture: 200 images of the
    embedded phantom (C1, 64^2, 3.5 A) at each SNR, searched everywhere by maximum likelihood
    against the true map low-passed to and scored to each resolution, no pose given. Solid: the 50th
    percentile of the true error; dashed: what the job says (`accuracy_deg`, the curvature of the
    posterior around each image's best pose; its median, times 0.89 to make a root mean square a
    median). The estimate knows nothing of images that went to a wrong place."""
    report = Report()
    true_map = torch.from_numpy(truth.read_volume(phantom_map(BOX))[0])
    curves, estimates = {}, {}
    for snr in SNRS:
        folder = phantom_particles(f"accuracy_{snr:g}", n=IMAGES, box=BOX, snr=snr, seed=81)
        opened = open_job(
            folder / "particles.star",
            [phantom_map(BOX)],
            diameter_angstrom=170,
            lowpass_angstrom=20,
        )
        first = step(opened, opened.state).after
        again = step(
            opened, on_true_maps(opened, first, true_map[None], opened.problem.plane.radius)
        ).after
        strength = replace(first.find(NormAndScale), norm=again.find(NormAndScale).norm)
        # the noise, but none of the poses
        first = first.keeping(again.find(NoiseSpectra), strength)
        true = torch.from_numpy(truth.read_poses(folder / "truth.star").rotations)
        errors, told = [], []
        for resolution in RESOLUTIONS:
            reference = lowpass(true_map, resolution, PIXEL, dimensions=3)[None]
            found = step(
                opened, on_true_maps(opened, first, reference, shells_of(BOX, PIXEL, resolution))
            ).after.poses
            errors.append(
                float(np.median(truth.angle_of((found.rotations.double() @ true.mT).numpy())))
            )
            told.append(MEDIAN_OF_RMS * float(found.accuracy[:, 0].nanmedian()))
        known = np.isfinite(told)
        curves[f"SNR {snr:g}"] = RESOLUTIONS, errors
        if known.any():
            estimates[f"SNR {snr:g}"] = np.array(RESOLUTIONS)[known], np.array(told)[known]
        report.add(
            f"SNR {snr:g}: true error, 50th percentile, deg", " ".join(f"{e:.2f}" for e in errors)
        )
        report.add(
            f"SNR {snr:g}: estimated, deg",
            " ".join(f"{t:.2f}" if np.isfinite(t) else "-" for t in told),
        )
        report.numbers[f"{snr:g}"] = {
            "resolutions": RESOLUTIONS,
            "error_deg": errors,
            "estimated_deg": [t if np.isfinite(t) else None for t in told],
        }
    report.add("at resolutions of, A", " ".join(f"{r:g}" for r in RESOLUTIONS))
    save_accuracy_plot(
        FIGURES / "benchmark_accuracy.png",
        curves,
        estimated=estimates,
        title="Angular accuracy, embedded phantom",
    )
    report.pictures.append("benchmark_accuracy.png")
    return report
