r"""
2. Can we divide by C?
======================

If :math:`X = C A`, then :math:`\tilde A = X / C`. Without noise that works, but for the zeros of
:math:`C`. With noise, :math:`X = C A + N`, it gives

.. math:: \tilde A = A + N / C,

and near each zero the noise is multiplied by something without limit.
"""

import os
from dataclasses import replace

import matplotlib.pyplot as plt
import torch

from halfmap.fourier import fourier_transform, half_plane, inverse_fourier_transform
from halfmap.plots.panels import show_images
from halfmap.restoration import divide
from halfmap.simulation.forward_model import Recipe, draw_truth
from halfmap.simulation.in_memory import simulate_images
from halfmap.simulation.phantom import phantom
from halfmap.transfer_function import CTFParameters, ctf

BOX = 64 if os.environ.get("HALFMAP_GALLERY") == "small" else 128
PIXEL = 256 / BOX
plane = half_plane(BOX, (BOX - 1) // 2)
volume = phantom(BOX, PIXEL)

# %%
# One view of the embedded phantom, a membrane channel, at 2 µm of defocus. The object itself is the
# same view with :math:`C = 1`: nothing but amplitude contrast, in focus.
recipe = Recipe(1, shift_rms_px=0.0, defocus_range_angstrom=(2e4, 2e4), astigmatism_angstrom=0.0)
truth = replace(draw_truth(recipe), angles_deg=torch.tensor([[0.0, 90.0, 90.0]]))
in_focus = CTFParameters(amplitude_contrast=1.0, spherical_aberration_mm=0.0)
bare = replace(truth, ctf=in_focus)
(object_,) = simulate_images([volume], bare, pixel_size_angstrom=PIXEL, snr=float("inf")).images

# %%
# The same image in more and more noise, above; divided by :math:`C`, below.
c = ctf(truth.ctf, *plane.frequencies(PIXEL))
images, restored, correlation = [], [], {}
for snr in (float("inf"), 100.0, 1.0, 0.05):
    data = simulate_images([volume], truth, pixel_size_angstrom=PIXEL, snr=snr)
    divided = divide(fourier_transform(data.images, plane), c)  # X / C
    restored += [inverse_fourier_transform(divided, plane)[0]]
    images += [data.images[0]]
    both = torch.stack([restored[-1].flatten(), object_.flatten()])
    correlation[snr] = float(torch.corrcoef(both)[0, 1])
above = ["object $A$", "$X$, no noise"] + [f"$X$, SNR {s:g}" for s in list(correlation)[1:]]
below = [""] + ["$X / C$"] * 4
pictures = [object_, *images, None, *restored]
show_images(pictures, above + below, columns=5, pixel_size_angstrom=PIXEL)

# %%
# What division multiplies the noise by.
figure, (curve, gain) = plt.subplots(2, 1, figsize=(7, 3.6), sharex=True, layout="constrained")
k = torch.linspace(0, 0.5 / PIXEL, 600)
along = ctf(truth.ctf, k, torch.zeros_like(k))[0]
curve.plot(k, along)
curve.axhline(0, color="grey", lw=0.5)
curve.set(ylabel="C")
gain.semilogy(k, 1 / along.abs())
gain.set(xlabel="spatial frequency (1/Å)", ylabel="1 / |C|")
plt.show()

# %%
# The correlation of :math:`X / C` with the object: a hundred times more signal than noise is not
# enough.
print({f"SNR {snr:g}": round(value, 3) for snr, value in correlation.items()})
assert correlation[float("inf")] > 0.9 > correlation[100.0] > correlation[0.05]
