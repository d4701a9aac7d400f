r"""
4. The Wiener filter and its k
==============================

Division without the disaster at the zeros:

.. math:: \tilde A = \frac{C X}{C^2 + k} = \frac{C^2}{C^2 + k} A.

Where :math:`C^2 \gg k` it divides; where :math:`C^2 \ll k` it gives up. A small :math:`k` restores
the low frequencies, which the microscope shows faintly, and with them the look of the object; a
large one hardly differs from multiplying by :math:`C`.
"""

import os
from dataclasses import replace

import matplotlib.pyplot as plt
import torch

from halfmap.fourier import fourier_transform, half_plane, inverse_fourier_transform
from halfmap.plots.panels import show_images
from halfmap.restoration import wiener_filter
from halfmap.simulation.forward_model import Recipe, draw_truth
from halfmap.simulation.in_memory import simulate_images
from halfmap.simulation.phantom import phantom
from halfmap.transfer_function import CTFParameters, ctf, phase_flip

BOX = 64 if os.environ.get("HALFMAP_GALLERY") == "small" else 128
PIXEL = 256 / BOX
plane = half_plane(BOX, (BOX - 1) // 2)
volume = phantom(BOX, PIXEL)
recipe = Recipe(1, shift_rms_px=0.0, defocus_range_angstrom=(2e4, 2e4), astigmatism_angstrom=0.0)
truth = replace(draw_truth(recipe), angles_deg=torch.tensor([[0.0, 90.0, 90.0]]))
bare = replace(truth, ctf=CTFParameters(amplitude_contrast=1.0, spherical_aberration_mm=0.0))
(object_,) = simulate_images([volume], bare, pixel_size_angstrom=PIXEL, snr=float("inf")).images
image = simulate_images([volume], truth, pixel_size_angstrom=PIXEL, snr=float("inf")).images

# %%
# Without noise: the smaller k, the nearer to the object.
c = ctf(truth.ctf, *plane.frequencies(PIXEL))
x = fourier_transform(image, plane)
CONSTANTS = (1.0, 0.1, 0.01, 0.001)
restored = {k: wiener_filter(x, c, constant=k) for k in CONSTANTS}  # C X / (C^2 + k)
pictures = [inverse_fourier_transform(r, plane)[0] for r in restored.values()]
(flipped,) = inverse_fourier_transform(phase_flip(x, c), plane)
titles = ["object $A$", "$X$, 2 µm", "sgn$(C)\\,X$", ""] + [f"Wiener, k = {k:g}" for k in CONSTANTS]
show_images(
    [object_, image[0], flipped, None, *pictures], titles, columns=4, pixel_size_angstrom=PIXEL
)

# %%
# What the filter lets through of :math:`A`.
figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
frequency = torch.linspace(0, 0.5 / PIXEL, 600)
along = ctf(truth.ctf, frequency, torch.zeros_like(frequency))[0]
for k in CONSTANTS:
    axes.plot(frequency, along**2 / (along**2 + k), label=f"k = {k:g}")
axes.plot(frequency, along.abs(), "k:", label="|C|: phase flipping")
axes.set(xlabel="spatial frequency (1/Å)", ylabel="share of A")
axes.legend(fontsize=8, ncols=5, loc="upper center", bbox_to_anchor=(0.5, 1.25))
plt.show()

# %%
# The squared error, as a share of the object's power.
error = {
    k: float((p - object_).square().mean() / object_.var())
    for k, p in zip(CONSTANTS, pictures, strict=True)
}
print({f"k = {k:g}": round(e, 3) for k, e in error.items()})
assert error[0.001] < error[0.01] < error[0.1] < error[1.0]
