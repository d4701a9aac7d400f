r"""
13. Angle accuracy against the signal-to-noise ratio
====================================================

How well can an image's orientation be found at all? The map is the true one; for each image the
engine looks everywhere and refines the best poses,

.. math:: \hat\phi_i = \arg\max_\phi \; \ln P(X_i \mid V, \phi).

The median (50th percentile) of the error falls with the noise until there are images that are lost
altogether: then it is the share of these that matters.
"""

import os

import matplotlib.pyplot as plt
import torch

from halfmap.fourier import half_plane
from halfmap.likelihood import LOG_LIKELIHOOD
from halfmap.plots.panels import show_images
from halfmap.pose_search.adaptive import prepare_search, search_globally
from halfmap.pose_search.refinement import SearchSettings
from halfmap.projection import prepare_references
from halfmap.simulation.forward_model import Recipe, draw_truth
from halfmap.simulation.in_memory import simulate_images
from halfmap.simulation.phantom import phantom
from halfmap.so3 import angular_distance_deg, euler_to_matrix
from halfmap.symmetries import Specimen, point_group

SMALL = os.environ.get("HALFMAP_GALLERY") == "small"
BOX, PIXEL, N = 48, 4.0, 30 if SMALL else 80
SNRS = (0.3, 0.01) if SMALL else (1.0, 0.3, 0.1, 0.03, 0.01)
plane = half_plane(BOX, BOX // 2 - 1)
volume, c4 = phantom(BOX, PIXEL), point_group("C4")
truth = draw_truth(Recipe(N, seed=1))
true = euler_to_matrix(truth.angles_deg).float()

# %%
# The same particles in more and more noise.
specimen = Specimen(c4, radius_px=80 / PIXEL)
settings = SearchSettings(specimen, score=LOG_LIKELIHOOD, n_refined=6)
search = prepare_search(prepare_references(volume[None], plane.radius), settings, plane.radius)
examples, errors = [], {}
for snr in SNRS:
    data = simulate_images([volume], truth, pixel_size_angstrom=PIXEL, snr=snr)
    found = search_globally(search, data.terms(plane), torch.zeros(N, 2), plane, plane.radius).best(
        1
    )
    errors[snr] = angular_distance_deg(found.rotations[:, 0], true, symmetry=c4.rotations)
    examples.append(data.images[0])
clean = simulate_images([volume], truth, pixel_size_angstrom=PIXEL, snr=float("inf")).images[0]
names = ["no noise", *(f"SNR {snr:g}" for snr in SNRS)]
show_images([clean, *examples], names, columns=3, pixel_size_angstrom=PIXEL)

# %%
# The error of the angles; a pose at random is wrong by some 90 degrees (modulo C4).
figure, (median, lost) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
half = [float(e.median()) for e in errors.values()]
median.loglog(SNRS, half, "o-", label="50th percentile")
median.loglog(SNRS, [float(e.quantile(0.9)) for e in errors.values()], "o:", label="90th")
median.set(xlabel="SNR", ylabel="error of the orientation (°)")
median.legend()
share = [float((e > 10).float().mean()) for e in errors.values()]
lost.semilogx(SNRS, share, "o-")
lost.set(xlabel="SNR", ylabel="share of images more than 10° off", ylim=(0, 1))
plt.show()
print(f"SNR {SNRS}: median {[f'{h:.2f}°' for h in half]}, lost {[f'{s:.0%}' for s in share]}")
assert half[0] < 2.0 < half[-1]
