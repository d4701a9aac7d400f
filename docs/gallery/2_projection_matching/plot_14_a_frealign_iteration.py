r"""
14. A FREALIGN iteration, and its iterations from a poor start
==============================================================

1. For each image find the projection :math:`R_i = C_i P_{\phi_i} V^{(n)}` of largest
   :math:`\mathrm{CC} = X_i \cdot R_i / (|X_i| |R_i|)`.
2. Knowing the best :math:`\phi_i` of each image, update

.. math:: V^{(n+1)} = \frac{\sum_i^N P_{\phi_i}^T C_i X_i}{k + \sum_i^N P_{\phi_i}^T C_i^2}.

Four calls of the engine, and a loop around them. The first map is the phantom at 60 Å.
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
from halfmap.resolution import fourier_shell_correlation, resolution_at
from halfmap.simulation.forward_model import Recipe, draw_truth
from halfmap.simulation.in_memory import simulate_images
from halfmap.simulation.phantom import phantom
from halfmap.so3 import angular_distance_deg, euler_to_matrix
from halfmap.symmetries import Specimen, point_group

SMALL = os.environ.get("HALFMAP_GALLERY") == "small"
BOX, PIXEL, N, ITERATIONS = (32, 6.0, 150, 3) if SMALL else (40, 4.8, 300, 6)
plane = half_plane(BOX, BOX // 2 - 1)
volume, c4 = phantom(BOX, PIXEL), point_group("C4")
truth = draw_truth(Recipe(N, seed=1))
terms = simulate_images([volume], truth, pixel_size_angstrom=PIXEL, snr=0.1).terms(plane)
specimen = Specimen(c4, radius_px=80 / PIXEL)
settings = SearchSettings(specimen, score=CORRELATION, shift_range_px=3.0)
sphere = soft_sphere(BOX, radius_px=80 / PIXEL, edge_px=3)

# %%
# Each iteration is scored as far as the map may be trusted: here a little farther every time.
v = lowpass(volume, 60.0, PIXEL, dimensions=3)
maps, errors = [v], []
true = euler_to_matrix(truth.angles_deg).float()
for n in range(ITERATIONS):
    radius = min(plane.radius, round(BOX * PIXEL / 40 + 2 * n))
    search = prepare_search(prepare_references(v[None], radius), settings, radius)
    best = assign_hard(search_globally(search, terms, torch.zeros(N, 2), plane, radius))  # step 1
    sums = sums_of_images(terms, best, plane, n_classes=1, dimensions=3, symmetry=c4)
    v = wiener_update(sums, 0.1 * shell_weight(sums))[0] * sphere  # step 2
    maps.append(v)
    errors.append(angular_distance_deg(best.rotations, true, symmetry=c4.rotations).median())
curves = [fourier_shell_correlation(v, volume, pixel_size_angstrom=PIXEL) for v in maps]
shown = [0, 1, 2, *range(4, ITERATIONS + 1, 2)]
names = ["start, 60 Å", *(f"iteration {n}" for n in range(1, ITERATIONS + 1))]
pictures = [*(maps[n].sum(1) for n in shown), volume.sum(1)]
titles = [*(names[n] for n in shown), "truth"]
show_images(pictures, titles, columns=3, pixel_size_angstrom=PIXEL)

# %%
# How far each map agrees with the truth.
figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
for n in shown:
    colour, s = plt.cm.viridis(0.9 * n / ITERATIONS), curves[n].frequency_per_angstrom
    axes.plot(s, curves[n].correlation, color=colour, label=names[n])
axes.set(xlabel="spatial frequency (1/Å)", ylabel="FSC with the truth", ylim=(-0.1, 1.05))
axes.legend(fontsize=8)
plt.show()
resolution = [resolution_at(curve, 0.5) for curve in curves]
print("FSC 0.5:", [f"{r:.0f} Å" for r in resolution])
print("median error of the poses:", [f"{e:.1f}°" for e in errors])
assert resolution[-1] < 0.5 * resolution[0]
assert errors[-1] < errors[0]
