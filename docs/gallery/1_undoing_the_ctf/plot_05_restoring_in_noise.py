r"""
5. Flipping and Wiener filtering in noise
=========================================

With :math:`X = C A + N` the filter decides between two errors: a small :math:`k` divides the noise
by little more than nothing, a large one leaves the object's power where the microscope put it.

.. math:: \tilde A = \frac{C X}{C^2 + k} = \frac{C^2}{C^2 + k} A + \frac{C}{C^2 + k} N
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
c = ctf(truth.ctf, *plane.frequencies(PIXEL))

# %%
# Three amounts of noise, from hardly any to that of a real image.
SHOWN, SNRS = (1.0, 0.1, 0.01), (10.0, 0.5, 0.05)
CONSTANTS = torch.logspace(-3, 2, 21).tolist()
pictures, errors = [], {}
for snr in SNRS:
    data = simulate_images([volume], truth, pixel_size_angstrom=PIXEL, snr=snr)
    x = fourier_transform(data.images, plane)
    filtered = [wiener_filter(x, c, constant=k) for k in (*SHOWN, *CONSTANTS)]
    restored = [inverse_fourier_transform(r, plane)[0] for r in (phase_flip(x, c), *filtered)]
    pictures += [data.images[0], *restored[: 1 + len(SHOWN)]]
    wrong = [float((r - object_).square().mean() / object_.var()) for r in restored[1:]]
    errors[snr] = wrong[len(SHOWN) :]
columns = ["sgn$(C)\\,X$", *(f"Wiener, k = {k:g}" for k in SHOWN)]
titles = [title for snr in SNRS for title in (f"$X$, SNR {snr:g}", *columns)]
show_images(pictures, titles, columns=5, pixel_size_angstrom=PIXEL)

# %%
# The squared error of the restored image against :math:`k`: the noisier the image, the larger the
# best :math:`k`. In the noisiest, nothing that one image can give is better than no image at all
# (an error of 1).
figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
best = {}
for snr, wrong in errors.items():
    (line,) = axes.loglog(CONSTANTS, wrong, label=f"SNR {snr:g}")
    best[snr] = CONSTANTS[wrong.index(min(wrong))]
    axes.plot(best[snr], min(wrong), "o", color=line.get_color())
axes.axhline(1, color="grey", lw=0.5)
axes.set(xlabel="k", ylabel="squared error / power of A")
axes.legend()
plt.show()

print({f"SNR {snr:g}": f"best k {k:.3g}" for snr, k in best.items()})
assert best[10.0] < best[0.5] < best[0.05]
