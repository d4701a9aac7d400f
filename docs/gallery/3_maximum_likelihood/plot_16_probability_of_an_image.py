r"""
16. The probability of a pixel, and of an image
===============================================

:math:`X = R + N` with Gaussian noise: the probability of the value of pixel :math:`j`, and of the
whole image, is

.. math:: P(X_j \mid R_j) = \frac{1}{\sqrt{2 \pi \sigma^2}} e^{-(X_j - R_j)^2 / 2 \sigma^2}, \qquad
          P(X \mid R) = \prod_j P(X_j \mid R_j) = c\, e^{-\|X - R\|^2 / 2 \sigma^2}.

No pixel says much; thousands of them together are nearly certain. In Fourier space the same number
is a sum over coefficients, which is what the engine computes as :math:`a - b / 2`.
"""

import os
from dataclasses import replace

import matplotlib.pyplot as plt
import torch

from halfmap.fourier import half_plane
from halfmap.likelihood import cross_terms, log_likelihood_score, slice_power, squared_modulus
from halfmap.plots.panels import show_images
from halfmap.projection import extract_slices, prepare_references
from halfmap.simulation.forward_model import Recipe, draw_truth
from halfmap.simulation.in_memory import simulate_images
from halfmap.simulation.phantom import phantom
from halfmap.so3 import euler_to_matrix

BOX = 32 if os.environ.get("HALFMAP_GALLERY") == "small" else 64
PIXEL, SNR = 192 / BOX, 0.05
volume, plane = phantom(BOX, PIXEL), half_plane(BOX, BOX // 2 - 1)
truth = draw_truth(Recipe(1, seed=4, shift_rms_px=0.0))
right = simulate_images([volume], truth, pixel_size_angstrom=PIXEL, snr=float("inf")).images[0]
data = simulate_images([volume], truth, pixel_size_angstrom=PIXEL, snr=SNR)
x, sigma = data.images[0], data.noise_sd
turned = replace(truth, angles_deg=truth.angles_deg + torch.tensor([[0.0, 0.0, 40.0]]))
wrong = simulate_images([volume], turned, pixel_size_angstrom=PIXEL, snr=float("inf")).images[0]
show_images(
    [right, wrong, x],
    ["right reference $R$", "turned by 40°", f"image $X$, SNR {SNR}"],
    pixel_size_angstrom=PIXEL,
)

# %%
# Each pixel's log probability under the right and the wrong reference differs by next to nothing;
# summed up over the pixels it grows.
per_pixel = ((x - wrong) ** 2 - (x - right) ** 2).flatten() / (2 * sigma**2)
figure, (left, middle) = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
left.hist(per_pixel.numpy(), bins=60)
left.set(
    xlabel="$\\ln P(X_j |\\ \\mathrm{right}) - \\ln P(X_j |\\ \\mathrm{turned})$", ylabel="pixels"
)
order = torch.randperm(len(per_pixel), generator=torch.Generator().manual_seed(0))
middle.plot(per_pixel[order].cumsum(0))
middle.axhline(0, color="grey", lw=0.5)
middle.set(xlabel="pixels, in any order", ylabel="sum of the differences")

# %%
# The log probability of the whole image against the angle in the plane, from the engine.
psi = torch.arange(-180.0, 180.0, 2.0)
angles = truth.angles_deg.float().repeat(len(psi), 1)
angles[:, 2] += psi
references = prepare_references(volume[None], plane.radius)
slices = extract_slices(references, euler_to_matrix(angles), plane)
terms = data.terms(plane)
a = cross_terms(terms, torch.ones(1, len(plane), dtype=torch.complex64), slices, plane)[0, 0]
b = slice_power(terms, squared_modulus(slices).T.contiguous(), plane)[0]
log_p = log_likelihood_score(a, b)  # -|X - R|^2 / (2 sigma^2) + |X|^2 / (2 sigma^2)
figure, axes = plt.subplots(figsize=(8, 2.8), layout="constrained")
axes.plot(psi, log_p - log_p.max())
axes.set(xlabel="angle from the truth (°)", ylabel="$\\ln P(X | R)$, below the largest")
plt.show()

at_40 = float(log_p[psi == 0] - log_p[psi == 40])
print(f"pixels: {float(per_pixel.sum()):.1f}; Fourier coefficients: {at_40:.1f}")
print(f"of a pixel: {float(per_pixel.mean()):.4f} on average, ± {float(per_pixel.std()):.2f}")
assert abs(at_40 - float(per_pixel.sum())) < 0.1 * at_40 + 2
assert int(log_p.argmax()) in range(len(psi) // 2 - 3, len(psi) // 2 + 4)
