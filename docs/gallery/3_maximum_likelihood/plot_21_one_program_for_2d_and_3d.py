r"""
21. One program for 2D and 3D
=============================

.. math:: V_k^{(n+1)} = \frac{\sum_i \int \Gamma_i(\phi, k)\, P_\phi^T C_i X_i\, d\phi}
          {\frac{\sigma^2}{T \tau^2} + \sum_i \int \Gamma_i(\phi, k)\, P_\phi^T C_i^2\, d\phi}

======================  ==============================  ==================================
quantity                3D                              2D
======================  ==============================  ==================================
:math:`V_k`             volume of a class               image of a class
:math:`\phi`            3 angles and 2 shifts           1 angle and 2 shifts
:math:`P_\phi`          projection 3D to 2D             rotation and shift
:math:`P_\phi^T`        back projection                 shift and rotation back
======================  ==============================  ==================================

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
plane, volume = half_plane(BOX, RADIUS), phantom(BOX, PIXEL)
still = torch.zeros(1, 2)


def iteration(v, terms, rotations, symmetry=None):
    """The formula above; v is (K, N, N) or (K, N, N, N)."""
    references = prepare_references(v, RADIUS)
    poses = search_exhaustively(references, terms, plane, rotations=rotations, shifts_px=still)
    gamma = assign_posterior(poses)
    k, dimensions = len(v), v.ndim - 1
    sums = sums_of_images(
        terms, gamma, plane, n_classes=k, dimensions=dimensions, symmetry=symmetry
    )
    return wiener_update(sums, 0.05 * shell_weight(sums)), float(log_likelihood(poses).sum())


# %%
# In 3D: images from everywhere, a map at 80 Å. In 2D: the same particle from two sides, and two
# averages of unaligned images.
drawn = draw_truth(Recipe(N, seed=1, shift_rms_px=0.0))
sides = torch.tensor([[0.0, 0.0], [10.0, 90.0]])[torch.arange(N) % 2]
two_views = replace(drawn, angles_deg=torch.cat([sides, drawn.angles_deg[:, 2:].float()], 1))
c4, psi = point_group("C4"), torch.arange(0, 360, 10.0)
in_plane = euler_to_matrix(torch.stack([0 * psi, 0 * psi, psi], -1))
everywhere = orientation_grid(2, c4.rotations).rotations
figure, axes = plt.subplots(figsize=(6, 2.8), layout="constrained")
climbs, pictures, titles = {}, [], []
for name, truth, rotations, symmetry in (
    ("3D", drawn, everywhere, c4),
    ("2D", two_views, in_plane, None),
):
    data = simulate_images([volume], truth, pixel_size_angstrom=PIXEL, snr=0.2)
    average = lowpass(
        torch.stack([data.images[k::2][:10].mean(0) for k in (0, 1)]), 40.0, PIXEL, dimensions=2
    )
    v = lowpass(volume, 80.0, PIXEL, dimensions=3)[None] if name == "3D" else average
    climbs[name], start = [], v
    for _ in range(ITERATIONS):
        v, likelihood = iteration(v, data.terms(plane), rotations, symmetry)
        climbs[name].append(likelihood)
    axes.plot(climbs[name], "o-", label=name)
    flat = [m.sum(1) if m.ndim == 3 else m for m in (*start, *v)]
    pictures += flat
    titles += [
        f"{name}: {when}" + f", class {k + 1}" * (len(v) > 1)
        for when in ("start", "at last")
        for k in range(len(v))
    ]
axes.set(xlabel="iteration", ylabel="log likelihood", xticks=range(ITERATIONS))
axes.legend()
pictures.insert(2, volume.sum(1))
titles.insert(2, "3D: truth")
pictures.insert(3, None)
titles.insert(3, "")
show_images(pictures, titles, columns=4, pixel_size_angstrom=PIXEL)
plt.show()
print(climbs)
assert all(values[-1] > values[0] for values in climbs.values())
