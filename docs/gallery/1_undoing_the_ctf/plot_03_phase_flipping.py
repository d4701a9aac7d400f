r"""
3. Phase flipping
=================

Where :math:`C < 0`, dark has become bright. Turning the sign over there,

.. math:: \tilde A = \mathrm{sgn}(C)\, X = |C|\, A,

gives every frequency its right phase; amplitudes stay as the microscope left them, nothing at the
zeros and little at low frequency.
"""

import os
from dataclasses import replace

import matplotlib.pyplot as plt
import torch

from halfmap.fourier import fourier_transform, half_plane, inverse_fourier_transform
from halfmap.plots.panels import show_images
from halfmap.resolution import fourier_shell_correlation
from halfmap.simulation.forward_model import Recipe, draw_truth
from halfmap.simulation.in_memory import simulate_images
from halfmap.simulation.phantom import phantom
from halfmap.transfer_function import CTFParameters, ctf, phase_flip

BOX = 64 if os.environ.get("HALFMAP_GALLERY") == "small" else 128
PIXEL = 256 / BOX
plane = half_plane(BOX, (BOX - 1) // 2)
volume = phantom(BOX, PIXEL)

# %%
# One view without noise at three defoci, and its phases flipped.
recipe = Recipe(3, shift_rms_px=0.0)
views = torch.tensor([[0.0, 90.0, 90.0]]).repeat(3, 1)
defocus = torch.tensor([5e3, 1e4, 2e4])
optics = CTFParameters(defocus_u_angstrom=defocus, defocus_v_angstrom=defocus)
truth = replace(draw_truth(recipe), angles_deg=views, ctf=optics)
images = simulate_images([volume], truth, pixel_size_angstrom=PIXEL, snr=float("inf")).images
in_focus = replace(truth, ctf=CTFParameters(amplitude_contrast=1.0, spherical_aberration_mm=0.0))
object_ = simulate_images([volume], in_focus, pixel_size_angstrom=PIXEL, snr=float("inf")).images[0]

c = ctf(optics, *plane.frequencies(PIXEL))
flipped = inverse_fourier_transform(phase_flip(fourier_transform(images, plane), c), plane)
titles = ["object $A$"] + [f"$X$, {d / 1e4:g} µm" for d in defocus] + [""] + ["sgn$(C)\\,X$"] * 3
pictures = [object_, *images, None, *flipped]
show_images(pictures, titles, columns=4, pixel_size_angstrom=PIXEL)

# %%
# The correlation with the object, ring by ring: flipping turns every ring the right way up.
figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
for picture, name in ((images[2], "X, 2 µm"), (flipped[2], "sgn(C) X")):
    curve = fourier_shell_correlation(picture, object_, pixel_size_angstrom=PIXEL)
    axes.plot(curve.frequency_per_angstrom[:-1], curve.correlation[:-1], label=name)
axes.set(xlabel="spatial frequency (1/Å)", ylabel="correlation with A", ylim=(-1.05, 1.05))
axes.axhline(0, color="grey", lw=0.5)
axes.legend(ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
plt.show()

raw = fourier_shell_correlation(images[2], object_, pixel_size_angstrom=PIXEL).correlation
right = fourier_shell_correlation(flipped[2], object_, pixel_size_angstrom=PIXEL).correlation
print(f"lowest ring: {float(raw[1:-2].min()):.2f} before, {float(right[1:-2].min()):.2f} after")
assert float(raw[1:-2].min()) < -0.9
assert float(right[1:-2].min()) > 0
