r"""
8. Fourier ring correlation as the judge
========================================

Who knows how good a restored image is, if the object is not known? Two halves of the images,
restored each for itself, and compared ring by ring:

.. math:: \mathrm{FRC}(s) = \frac{\mathrm{Re} \sum_s F_1 F_2^*}
          {\sqrt{\sum_s |F_1|^2 \sum_s |F_2|^2}}.

Where the halves correlate by 0.143, the whole correlates by 0.5 with the truth (if noise is all
that differs): hence the two thresholds.
"""

import os
from dataclasses import replace

import matplotlib.pyplot as plt
import torch

from halfmap.fourier import fourier_transform, half_plane, inverse_fourier_transform
from halfmap.plots.panels import show_images
from halfmap.resolution import fourier_shell_correlation, resolution_at
from halfmap.restoration import measure_ssnr, stack_sums, wiener_ssnr
from halfmap.simulation.forward_model import Recipe, draw_truth
from halfmap.simulation.in_memory import simulate_images
from halfmap.simulation.phantom import phantom
from halfmap.transfer_function import CTFParameters, ctf

SMALL = os.environ.get("HALFMAP_GALLERY") == "small"
BOX, N = (64, 200) if SMALL else (128, 200)
PIXEL, SNR = 256 / BOX, 0.01
plane = half_plane(BOX, (BOX - 1) // 2)
volume = phantom(BOX, PIXEL)


def restored(samples, c):
    sums = stack_sums(samples, c)
    filtered = wiener_ssnr(sums, measure_ssnr(sums, plane), plane)
    return inverse_fourier_transform(filtered[None].to(torch.complex64), plane)[0]


# %%
# One defocus and many; the halves with each other (lines) and the whole with the truth (dots).
figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
pictures, resolution = [], {}
for defoci, name in (((2e4, 2e4), "one defocus"), ((1e4, 3e4), "many defoci")):
    recipe = Recipe(
        N, shift_rms_px=0.0, defocus_range_angstrom=defoci, particles_per_micrograph=1,
        defocus_spread_angstrom=0.0, astigmatism_angstrom=0.0,
    )  # fmt: skip
    truth = replace(draw_truth(recipe), angles_deg=torch.tensor([[0.0, 90.0, 90.0]]).repeat(N, 1))
    images = simulate_images([volume], truth, pixel_size_angstrom=PIXEL, snr=SNR).images
    c, x = ctf(truth.ctf, *plane.frequencies(PIXEL)), fourier_transform(images, plane)
    first, second, whole = restored(x[::2], c[::2]), restored(x[1::2], c[1::2]), restored(x, c)
    bare = replace(truth, ctf=CTFParameters(amplitude_contrast=1.0, spherical_aberration_mm=0.0))
    ideal = simulate_images([volume], bare, pixel_size_angstrom=PIXEL).images
    halves = fourier_shell_correlation(first, second, pixel_size_angstrom=PIXEL)
    known = fourier_shell_correlation(whole, ideal[0], pixel_size_angstrom=PIXEL)
    s = halves.frequency_per_angstrom
    (line,) = axes.plot(s, halves.correlation, label=f"{name}: half 1 with half 2")
    axes.plot(s, known.correlation, ".", color=line.get_color(), label=f"{name}: whole with $A$")
    resolution[name] = resolution_at(halves, 0.143), resolution_at(known, 0.5)
    pictures += [first, second, whole] + [ideal[0]] * (name == "one defocus")
for level in (0.143, 0.5):
    axes.axhline(level, color="grey", lw=0.5)
    axes.text(0, level, f"{level:g}", va="bottom", fontsize=8)
axes.set(xlabel="spatial frequency (1/Å)", ylabel="FRC", ylim=(-0.3, 1.05))
axes.legend(fontsize=8)
titles = [f"{t}, {name}" for name in resolution for t in ("half 1", "half 2", "whole")]
titles.insert(3, "object $A$")
show_images(pictures, titles, columns=4, pixel_size_angstrom=PIXEL)
plt.show()

# %%
# With one defocus the curve falls at every zero of C and comes back: the *first* fall below the
# threshold counts.
print({n: f"halves {h:.1f} Å at 0.143, truth {t:.1f} Å at 0.5" for n, (h, t) in resolution.items()})
assert resolution["many defoci"][0] < resolution["one defocus"][0]
