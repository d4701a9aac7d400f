r"""
15. K maps by FREALIGN
======================

An image may come from any of :math:`K` particles. The references are
:math:`R_{ik} = C_i P_{\phi_i} V_k`; each image goes to the class :math:`k_i` and the pose
:math:`\phi_i` of the highest correlation coefficient, and

.. math:: V_k^{(n+1)} = \frac{\sum_{k_i = k} P_{\phi_i}^T C_i X_i}
          {k_w + \sum_{k_i = k} P_{\phi_i}^T C_i^2}.

Nothing in the engine changes: the class is one more variable of the search.
"""

import os

import matplotlib.pyplot as plt
import torch

from halfmap.engine.accumulation import sums_of_images
from halfmap.engine.posterior_weights import assign_hard
from halfmap.fourier import half_plane, lowpass
from halfmap.likelihood import CORRELATION
from halfmap.masks import soft_sphere
from halfmap.plots.panels import show_images
from halfmap.pose_search.adaptive import prepare_search, search_globally
from halfmap.pose_search.refinement import SearchSettings
from halfmap.projection import prepare_references
from halfmap.reconstruction import shell_weight, wiener_update
from halfmap.simulation.forward_model import Recipe, draw_truth
from halfmap.simulation.in_memory import simulate_images
from halfmap.simulation.phantom import phantom
from halfmap.symmetries import Specimen, point_group

SMALL = os.environ.get("HALFMAP_GALLERY") == "small"
BOX, PIXEL, N, ITERATIONS, K = 32, 6.0, 150 if SMALL else 400, 3 if SMALL else 8, 2
plane = half_plane(BOX, BOX // 2 - 1)
volumes, c4 = torch.stack([phantom(BOX, PIXEL, state=k) for k in range(K)]), point_group("C4")
truth = draw_truth(Recipe(N, seed=1, weights=(0.6, 0.4), particles_per_micrograph=1))
data = simulate_images(list(volumes), truth, pixel_size_angstrom=PIXEL, snr=0.5)
terms = data.terms(plane)
# A narrower search than that of jobs, for speed: fewer cells go on, and two poses are refined.
settings = SearchSettings(
    Specimen(c4, radius_px=80 / PIXEL), score=CORRELATION, shift_range_px=3.0,
    largest_cell_share=1 / 48, largest_child_share=1 / 256, n_refined=2,
)  # fmt: skip
sphere = soft_sphere(BOX, radius_px=80 / PIXEL, edge_px=3)

# %%
# Both start from the mean of the two states at 40 Å, one with a little noise added.
start = lowpass(volumes.mean(0), 40.0, PIXEL, dimensions=3).repeat(K, 1, 1, 1)
noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(1))
maps = start + 1.0 * start.std() * lowpass(noise, 40.0, PIXEL, dimensions=3) * sphere
table = []
for n in range(ITERATIONS):
    radius = min(plane.radius, 6 + n)
    search = prepare_search(prepare_references(maps, radius), settings, radius)
    best = assign_hard(search_globally(search, terms, torch.zeros(N, 2), plane, radius))
    sums = sums_of_images(terms, best, plane, n_classes=K, dimensions=3, symmetry=c4)
    maps = wiener_update(sums, 0.1 * shell_weight(sums) + 1e-9) * sphere
    table.append(torch.bincount(K * truth.state + best.classes, minlength=K * K).view(K, K))
if table[-1].trace() < table[-1].fliplr().trace():  # classes have no order
    maps, table = maps.flip(0), [counts.fliplr() for counts in table]
titles = ["start", "class 1", "class 2", "state 1", "state 2"]
show_images([start[0].sum(1), *maps.sum(2), *volumes.sum(2)], titles, pixel_size_angstrom=PIXEL)

# %%
# Where the images of each state went, iteration by iteration.
figure, axes = plt.subplots(figsize=(6, 2.8), layout="constrained")
for k in range(K):
    axes.plot([float(t[k, k] / t[k].sum()) for t in table], "o-", label=f"images of state {k + 1}")
axes.set(xlabel="iteration", ylabel="share in their own class", ylim=(0, 1.02))
axes.legend()
plt.show()
right = [float(t.trace() / N) for t in table]
print([f"{r:.0%} right" for r in right])
assert right[-1] > (0.7 if SMALL else 0.85)
