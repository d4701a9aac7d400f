r"""
21. One program for 2D and 3D
=============================

.. math:: V_k^{(n+1)} = \frac{\sum_i \int \Gamma_i(\phi, k)\, P_\phi^T C_i X_i\, d\phi}
          {\frac{\sigma^2}{T \tau^2} + \sum_i \int \Gamma_i(\phi, k)\, P_\phi^T C_i^2\, d\phi}

==============================  ============================  ================================
quantity                        3D                            2D
==============================  ============================  ================================
:math:`V_k`                     volume of a class             image of a class
:math:`\phi`                    3 angles and 2 shifts         1 angle and 2 shifts
:math:`P_\phi, P_\phi^T`        projection, back projection   rotation and shift, and back
==============================  ============================  ================================

``iteration`` below is run on both; all that differs is the shape of ``v`` and the grid of poses.
"""

import os
from dataclasses import replace

import matplotlib.pyplot as plt
import torch

from halfmap.engine.accumulation import sums_of_images
from halfmap.engine.posterior_weights import assign_posterior
from halfmap.fourier import half_plane, lowpass
from halfmap.plots.panels import show_images
from halfmap.pose_search.exhaustive import log_likelihood, search_exhaustively
from halfmap.projection import prepare_references
from halfmap.reconstruction import shell_weight, wiener_update
from halfmap.simulation.forward_model import Recipe, draw_truth
from halfmap.simulation.in_memory import simulate_images
from halfmap.simulation.phantom import phantom
from halfmap.so3 import euler_to_matrix, orientation_grid
from halfmap.symmetries import point_group

SMALL = os.environ.get("HALFMAP_GALLERY") == "small"
BOX, PIXEL, RADIUS, N, ITERATIONS = 24, 8.0, 6, 50 if SMALL else 200, 2 if SMALL else 5
plane, volume, c4 = half_plane(BOX, RADIUS), phantom(BOX, PIXEL), point_group("C4")


def iteration(v, terms, rotations, symmetry=None):
    """The formula above; v is (K, N, N) or (K, N, N, N)."""
    references = prepare_references(v, RADIUS)
    poses = search_exhaustively(references, terms, plane, rotations=rotations)
    shape = {"n_classes": len(v), "dimensions": v.ndim - 1}
    sums = sums_of_images(terms, assign_posterior(poses), plane, **shape, symmetry=symmetry)
    return wiener_update(sums, 0.05 * shell_weight(sums)), float(log_likelihood(poses).sum())


# In 3D: views from everywhere, a map at 80 Å. In 2D: two sides, two averages of unaligned images.
drawn = draw_truth(Recipe(N, seed=1, shift_rms_px=0.0))
sides = torch.tensor([[0.0, 0.0], [10.0, 90.0]])[torch.arange(N) % 2]
two_views = replace(drawn, angles_deg=torch.cat([sides, drawn.angles_deg[:, 2:].float()], 1))
everywhere = simulate_images([volume], drawn, pixel_size_angstrom=PIXEL, snr=0.2)
two_sides = simulate_images([volume], two_views, pixel_size_angstrom=PIXEL, snr=0.2)
blurred = lowpass(volume, 80.0, PIXEL, dimensions=3)[None]
averages = lowpass(two_sides.images[:20].view(10, 2, BOX, BOX).mean(0), 40.0, PIXEL, dimensions=2)
in_plane = euler_to_matrix(torch.arange(0, 360, 10.0)[:, None] * torch.tensor([0, 0, 1.0]))
figure, axes = plt.subplots(figsize=(6, 2.8), layout="constrained")
last = {}
for name, v, data, rotations, symmetry in (
    ("3D", blurred, everywhere, orientation_grid(2, c4.rotations).rotations, c4),
    ("2D", averages, two_sides, in_plane, None),
):
    climb = []
    for _ in range(ITERATIONS):
        v, likelihood = iteration(v, data.terms(plane), rotations, symmetry)
        climb.append(likelihood)
    last[name] = v
    axes.plot(climb, "o-", label=name)
    assert climb[-1] > climb[0]
axes.set(xlabel="iteration", ylabel="log likelihood", xticks=range(ITERATIONS))
axes.legend()
maps = [blurred[0].sum(1), last["3D"][0].sum(1), volume.sum(1), None]
titles = ["3D: start", "at last", "truth", "", *2 * ["2D: start"], *2 * ["2D: at last"]]
show_images([*maps, *averages, *last["2D"]], titles, columns=4, pixel_size_angstrom=PIXEL)
plt.show()
