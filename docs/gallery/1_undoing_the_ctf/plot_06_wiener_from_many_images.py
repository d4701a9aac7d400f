r"""
6. Wiener filter from many images
=================================

Many images of one object in one view, each under a CTF of its own:

.. math:: \tilde A = \frac{\sum_i^N C_i X_i}{k + \sum_i^N C_i^2}

With one defocus, the zeros of :math:`C` stay zeros however many images are summed. With many, each
fills the zeros of the others: the denominator has none left.
"""

import os
from dataclasses import replace

import matplotlib.pyplot as plt
import torch

from halfmap.fourier import fourier_transform, half_plane, inverse_fourier_transform, shell_mean
from halfmap.plots.panels import show_images
from halfmap.restoration import stack_sums, wiener_stack
from halfmap.simulation.forward_model import Recipe, draw_truth
from halfmap.simulation.in_memory import simulate_images
from halfmap.simulation.phantom import phantom
from halfmap.transfer_function import CTFParameters, ctf

SMALL = os.environ.get("HALFMAP_GALLERY") == "small"
BOX = 64 if SMALL else 128
PIXEL, SNR, K = 256 / BOX, 0.05, 1.0
NUMBERS = (1, 10, 100) if SMALL else (1, 10, 100, 400)
plane = half_plane(BOX, (BOX - 1) // 2)
volume = phantom(BOX, PIXEL)

# %%
# One view, under one defocus and under many.
pictures, titles, error, visible = [], [], {}, {}
for defoci in ((2e4, 2e4), (1e4, 3e4)):
    recipe = Recipe(
        NUMBERS[-1],
        shift_rms_px=0.0,
        defocus_range_angstrom=defoci,
        particles_per_micrograph=1,
        defocus_spread_angstrom=0.0,
        astigmatism_angstrom=0.0,
    )
    drawn = draw_truth(recipe)
    truth = replace(drawn, angles_deg=torch.tensor([[0.0, 90.0, 90.0]]).repeat(recipe.n, 1))
    images = simulate_images([volume], truth, pixel_size_angstrom=PIXEL, snr=SNR).images
    c, x = ctf(truth.ctf, *plane.frequencies(PIXEL)), fourier_transform(images, plane)
    bare = replace(truth, ctf=CTFParameters(amplitude_contrast=1.0, spherical_aberration_mm=0.0))
    object_ = simulate_images([volume], bare, pixel_size_angstrom=PIXEL, snr=float("inf")).images[0]
    name = "one defocus" if defoci[0] == defoci[1] else "many defoci"
    for n in NUMBERS:
        sums = stack_sums(x[:n], c[:n])  # sum C X, sum C^2
        average = wiener_stack(sums, constant=K)[None].to(torch.complex64)
        (restored,) = inverse_fourier_transform(average, plane)
        error[name, n] = float((restored - object_).square().mean() / object_.var())
        pictures.append(restored)
        titles.append(f"N = {n}, {name}")
    visible[name] = shell_mean((c**2).mean(0), plane.shell, plane.radius + 1)
    pictures.append(object_)
    titles.append("object $A$")
show_images(pictures, titles, columns=len(NUMBERS) + 1, pixel_size_angstrom=PIXEL)

# %%
# What the microscope shows of each ring, :math:`\langle C^2 \rangle`, per image.
figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
for name, curve in visible.items():
    axes.plot(torch.arange(len(curve)) / (BOX * PIXEL), curve, label=name)
axes.set(xlabel="spatial frequency (1/Å)", ylabel="$\\langle C^2 \\rangle$", ylim=(0, 1))
axes.legend(ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
plt.show()

print({f"{name}, N = {n}": round(value, 3) for (name, n), value in error.items()})
assert error["many defoci", NUMBERS[-1]] < 0.8 * error["one defocus", NUMBERS[-1]]
assert error["many defoci", NUMBERS[-1]] < error["many defoci", 10] < error["many defoci", 1]
