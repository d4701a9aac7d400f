r"""
17. The likelihood of a data set, as the map changes
====================================================

How well does a map :math:`V` explain a stack of images? Nobody knows their poses, so these are
integrated out:

.. math:: L(V) = \ln P(\mathbf{X} \mid V) = \sum_i^N \ln \int P(X_i \mid V, \phi)\, d\phi, \qquad
          P(X \mid V, \phi) = c\, e^{-\|X - C P_\phi V\|^2 / 2 \sigma^2}.

Here the map is taken away from the truth along four paths, and :math:`L` is computed from all poses
of a grid. It is relative to no particle at all; images of the right map gain by it.
"""

import os

import matplotlib.pyplot as plt
import torch

from halfmap.alignment import mirror
from halfmap.fourier import half_plane, lowpass
from halfmap.plots.panels import show_images
from halfmap.pose_search.exhaustive import log_likelihood, search_exhaustively
from halfmap.projection import prepare_references
from halfmap.simulation.forward_model import Recipe, draw_truth
from halfmap.simulation.in_memory import simulate_images
from halfmap.simulation.phantom import phantom
from halfmap.so3 import orientation_grid
from halfmap.symmetries import point_group

SMALL = os.environ.get("HALFMAP_GALLERY") == "small"
BOX, PIXEL, RADIUS, N = 32, 6.0, 5, 30 if SMALL else 150
plane = half_plane(BOX, RADIUS)  # what a grid of 15 degrees resolves
volume = phantom(BOX, PIXEL)
truth = draw_truth(Recipe(N, seed=1, shift_rms_px=0.0))
terms = simulate_images([volume], truth, pixel_size_angstrom=PIXEL, snr=0.05).terms(plane)
rotations = orientation_grid(2, point_group("C4").rotations).rotations


def likelihood(v):
    references = prepare_references(v[None], RADIUS)
    poses = search_exhaustively(references, terms, plane, rotations=rotations)
    return float(log_likelihood(poses).sum())


# %%
# Four ways to be wrong: the grey scale, blur, the other state, noise; and the last map of each.
noise = torch.randn(volume.shape, generator=torch.Generator().manual_seed(1))
noise = lowpass(noise, 30.0, PIXEL, dimensions=3)
noise *= volume.std() / noise.std()
other, blurred = phantom(BOX, PIXEL, state=1), lowpass(volume, 80.0, PIXEL, dimensions=3)
grey, share = torch.linspace(0, 2, 9), torch.linspace(0, 1, 6)
paths = {
    "grey scale": (grey, [s * volume for s in grey]),
    "share of a map at 80 Å": (share, [(1 - s) * volume + s * blurred for s in share]),
    "share of the other state": (share, [(1 - s) * volume + s * other for s in share]),
    "noise added (σ of the map)": (share, [volume + s * noise for s in share]),
}
figure, panels = plt.subplots(1, 4, figsize=(9.5, 2.8), sharey=True, layout="constrained")
curves = {}
for axes, (name, (at, maps)) in zip(panels, paths.items(), strict=True):
    curves[name] = [likelihood(v) for v in maps]
    axes.plot(at, curves[name], "o-")
    axes.set(xlabel=name)
panels[0].set_ylabel("log likelihood L")
pictures = [volume.sum(1), *(v[-1].sum(1) for _, v in paths.values())]
titles = ["truth", "twice as bright", "at 80 Å", "other state", "with noise"]
show_images(pictures, titles, pixel_size_angstrom=PIXEL)
plt.show()

# %%
# It cannot tell the hands apart: the mirror image explains the same projections as well.
hands = likelihood(volume), likelihood(mirror(volume))
print(f"L {hands[0]:.0f}; of the mirror image {hands[1]:.0f}")
best = float(grey[curves["grey scale"].index(max(curves["grey scale"]))])
print(f"best grey scale {best}")
assert 0.5 <= best <= 1.5
assert all(c[0] == max(c) for n, c in curves.items() if n != "grey scale")
assert abs(hands[0] - hands[1]) < 0.1 * abs(hands[0])
