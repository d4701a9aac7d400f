r"""
7. The spectral signal-to-noise ratio
=====================================

The best :math:`k` is not a constant: it is the ratio of noise to signal on each ring,

.. math:: \tilde A = \frac{\sum_i^N C_i X_i}{\frac{1}{\mathrm{SSNR}(s)} + \sum_i^N C_i^2},
          \qquad k(s) = \frac{1}{\mathrm{SSNR}} = \frac{|N|^2}{|A|^2}.

It need not be known. Noise of different images is independent, so what two images have in common is
signal: ``measure_ssnr`` takes it from all pairs at once.
"""

import os
from dataclasses import replace

import matplotlib.pyplot as plt
import torch

from halfmap.fourier import fourier_transform, half_plane, inverse_fourier_transform, shell_mean
from halfmap.plots.panels import show_images
from halfmap.restoration import measure_ssnr, stack_sums, wiener_ssnr, wiener_stack
from halfmap.simulation.forward_model import Recipe, draw_truth
from halfmap.simulation.in_memory import simulate_images
from halfmap.simulation.phantom import phantom
from halfmap.transfer_function import CTFParameters, ctf

SMALL = os.environ.get("HALFMAP_GALLERY") == "small"
BOX, N = (64, 100) if SMALL else (128, 300)
PIXEL, SNR = 256 / BOX, 0.02
plane = half_plane(BOX, (BOX - 1) // 2)
volume = phantom(BOX, PIXEL)
recipe = Recipe(N, shift_rms_px=0.0, defocus_range_angstrom=(1e4, 3e4), particles_per_micrograph=1)
view = torch.tensor([[0.0, 90.0, 90.0]]).repeat(N, 1)
truth = replace(draw_truth(recipe), angles_deg=view)
data = simulate_images([volume], truth, pixel_size_angstrom=PIXEL, snr=SNR)
bare = replace(truth, ctf=CTFParameters(amplitude_contrast=1.0, spherical_aberration_mm=0.0))
object_ = simulate_images([volume], bare, pixel_size_angstrom=PIXEL, snr=float("inf")).images[0]

# %%
# Measured from the images, and known from the simulation.
c, x = ctf(truth.ctf, *plane.frequencies(PIXEL)), fourier_transform(data.images, plane)
sums = stack_sums(x, c)
measured = measure_ssnr(sums, plane)
a = fourier_transform(object_[None], plane)[0]
known = shell_mean(a.abs() ** 2, plane.shell, plane.radius + 1) / (BOX * data.noise_sd) ** 2
figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
k = torch.arange(plane.radius + 1) / (BOX * PIXEL)
axes.semilogy(k[1:], known[1:], label="known: $|A|^2 / |N|^2$")
axes.semilogy(k[1:], measured[1:].clamp(min=1e-5), ".", label=f"measured from {N} images")
axes.axhline(1 / N, color="grey", lw=0.5)
axes.text(0, 0.9 / N, "1 / N", va="top", fontsize=8)
axes.set(xlabel="spatial frequency (1/Å)", ylabel="SSNR of one image", ylim=(1e-4, None))
axes.legend()

# %%
# With a constant the noise of rings where there is hardly any signal gets in; with k(s) each ring
# is trusted as far as it deserves.
pictures, errors = [data.images[0]], {}
filters = {f"k = {k:g}": wiener_stack(sums, constant=k) for k in (1.0, 30.0)}
filters["k(s) = 1 / SSNR"] = wiener_ssnr(sums, measured, plane)
for name, samples in filters.items():
    (restored,) = inverse_fourier_transform(samples[None].to(torch.complex64), plane)
    errors[name] = float((restored - object_).square().mean() / object_.var())
    pictures.append(restored)
titles = [f"one image, SNR {SNR:g}", *errors, "object $A$"]
show_images([*pictures, object_], titles, pixel_size_angstrom=PIXEL)
plt.show()

print({name: round(error, 3) for name, error in errors.items()})
assert errors["k(s) = 1 / SSNR"] < min(errors["k = 1"], errors["k = 30"])
inner = slice(1, plane.radius // 3)
assert float((measured[inner] / known[inner] - 1).abs().mean()) < 0.3
