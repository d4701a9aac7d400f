r"""
24. 3D posteriors at iterations 1, 3 and 14
===========================================

In the first iteration of a 3D reconstruction the map shows little, so that no image knows where it
looks from; the posterior

.. math:: \Gamma_i^{(n)}(\phi) = P(\phi \mid X_i, V^{(n)})

spreads over the sphere. As the map gets better it contracts, and near convergence it is a point.
This is expectation-maximisation from a map at 80 Å, over all poses of a 15-degree grid.
"""

import os

import matplotlib.pyplot as plt
import torch

from halfmap.engine.accumulation import sums_of_images
from halfmap.engine.posterior_weights import assign_posterior
from halfmap.fourier import half_plane, lowpass
from halfmap.plots.panels import draw_directions, show_images
from halfmap.pose_search.direction_posterior import direction_posterior
from halfmap.pose_search.exhaustive import search_exhaustively
from halfmap.projection import prepare_references
from halfmap.reconstruction import shell_weight, wiener_update
from halfmap.simulation.forward_model import Recipe, draw_truth
from halfmap.simulation.in_memory import simulate_images
from halfmap.simulation.phantom import phantom
from halfmap.so3 import orientation_grid
from halfmap.symmetries import point_group

SMALL = os.environ.get("HALFMAP_GALLERY") == "small"
BOX, PIXEL, RADIUS, ORDER = 24, 8.0, 7, 2
N, SHOWN = (60, (1, 2, 3)) if SMALL else (250, (1, 3, 14))
plane, volume, c4 = half_plane(BOX, RADIUS), phantom(BOX, PIXEL), point_group("C4")
truth = draw_truth(Recipe(N, seed=1, shift_rms_px=0.0))
terms = simulate_images([volume], truth, pixel_size_angstrom=PIXEL, snr=0.1).terms(plane)
rotations = orientation_grid(ORDER, c4.rotations).rotations
IMAGES = torch.arange(3)

# %%
# After each of the iterations shown, the posterior over directions of three images against the map
# that the iteration started from.
v, maps, posteriors, spread = lowpass(volume, 80.0, PIXEL, dimensions=3), [], {}, []
for n in range(1, SHOWN[-1] + 1):
    references = prepare_references(v[None], RADIUS)
    if n in SHOWN:
        some = terms.select_images(IMAGES)
        posteriors[n] = direction_posterior(
            references, some, plane, radius=RADIUS, symmetry=c4.rotations, order=ORDER,
            shift_range_px=0.0,
        )  # fmt: skip
        maps.append(v)
    poses = search_exhaustively(references, terms, plane, rotations=rotations)
    gamma = torch.softmax(poses.log_weight, 1)
    spread.append(float(-torch.special.xlogy(gamma, gamma).sum(1).mean()))
    weights = assign_posterior(poses)
    sums = sums_of_images(terms, weights, plane, n_classes=1, dimensions=3, symmetry=c4)
    v = wiener_update(sums, 0.1 * shell_weight(sums))[0]
sphere = {"projection": "mollweide"}
figure, axes = plt.subplots(3, 3, figsize=(9, 5.2), layout="constrained", subplot_kw=sphere)
for column, n in enumerate(SHOWN):
    axes[0, column].set_title(f"iteration {n}")
    for row in IMAGES:
        axes[row, 0].set_ylabel(f"image {row + 1}")
        draw_directions(axes[row, column], posteriors[n][row], order=ORDER)
names = [*(f"map before {n}" for n in SHOWN), f"map after {SHOWN[-1]}", "truth"]
show_images([m.sum(1) for m in (*maps, v, volume)], names, pixel_size_angstrom=PIXEL)

# %%
# exp of the mean entropy: how many of the grid's poses share an image's probability. Each direction
# has three mates by the symmetry, hence four points.
figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
axes.semilogy(range(1, len(spread) + 1), torch.tensor(spread).exp(), "o-")
axes.set(xlabel="iteration", ylabel="poses that share\nthe probability")
plt.show()
print([f"{float(torch.tensor(s).exp()):.1f}" for s in spread])
assert spread[-1] < 0.7 * spread[0]
