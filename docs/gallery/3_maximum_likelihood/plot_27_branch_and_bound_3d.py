r"""
27. Branch and bound in 3D: cells left per level
================================================

cryoSPARC's second idea, over orientations, shifts and classes: score all cells on few shells, take
out those whose bound

.. math:: s(\phi) \le s_L(c) + \frac{q + 7}{2} + z \sqrt{q + 7}

lies below a pose that has been found, score the rest on more shells, and so on. Here :math:`q` also
counts what a pose may lose by not lying at the centre :math:`c` of its cell. What is left depends
on the noise: an image that knows little about its pose keeps nearly everything.
"""

import os

import matplotlib.pyplot as plt
import torch

from halfmap.fourier import half_plane
from halfmap.likelihood import LOG_LIKELIHOOD
from halfmap.plots.panels import draw_directions
from halfmap.pose_search.branch_and_bound import prepare_bounded
from halfmap.pose_search.pruning import bound_cells
from halfmap.pose_search.refinement import SearchSettings
from halfmap.projection import prepare_references
from halfmap.simulation.forward_model import Recipe, draw_truth
from halfmap.simulation.in_memory import simulate_images
from halfmap.simulation.phantom import phantom
from halfmap.so3 import direction_pixels, euler_to_matrix
from halfmap.symmetries import Specimen, point_group

SMALL = os.environ.get("HALFMAP_GALLERY") == "small"
BOX, PIXEL, N, STEP, ORDER = 32, 6.0, 4 if SMALL else 16, 15.0 if SMALL else 7.5, 3
SNRS = (1.0, 0.02) if SMALL else (1.0, 0.2, 0.05, 0.02)
plane, volume = half_plane(BOX, BOX // 2 - 1), phantom(BOX, PIXEL, symmetry="C1")
specimen = Specimen(point_group("C1"), 80 / PIXEL)
settings = SearchSettings(specimen, score=LOG_LIKELIHOOD, shift_range_px=2.0, angular_step_deg=STEP)
search = prepare_bounded(prepare_references(volume[None], plane.radius), settings, plane.radius)
truth = draw_truth(Recipe(N, seed=2, shift_rms_px=1.0))
cells = len(search.classes)

# %%
# Below: where the cells of the first image lie that are left after the second level.
figure, axes = plt.subplots(
    1, len(SNRS), figsize=(9.5, 2), layout="constrained", subplot_kw={"projection": "mollweide"}
)
left = {}
for panel, snr in zip(axes, SNRS, strict=True):
    terms = simulate_images([volume], truth, pixel_size_angstrom=PIXEL, snr=snr).terms(plane)
    bounded = bound_cells(search, terms, torch.zeros(N, 2), plane, plane.radius)
    left[snr] = [cells, *(float(level.counts.float().mean()) for level in bounded.levels)]
    last = bounded.levels[1]
    there = last.cells[0][torch.isfinite(last.log_weight[0])]
    pixels = direction_pixels(search.rotations[there], ORDER)
    share = torch.bincount(pixels, minlength=12 * 4**ORDER).float()
    draw_directions(panel, share / share.sum(), order=ORDER)
    x, y, z = euler_to_matrix(truth.angles_deg[0])[2]
    panel.plot(torch.atan2(y, x), torch.asin(z), "o", mfc="none", color="c", ms=12)
    panel.set_title(f"SNR {snr:g}: {len(there)} cells", fontsize=9)

# %%
# On average over the images.
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
shells = [level.plane.radius for level in search.levels]
names = ["all", *(f"on {r} shells" for r in shells)]
for snr, counts in left.items():
    axes.semilogy(names, counts, "o-", label=f"SNR {snr:g}")
axes.set(ylabel="cells left", xlim=(-0.2, len(names) - 0.7))
axes.legend()
plt.show()
print({snr: [f"{c:.0f}" for c in counts] for snr, counts in left.items()})
assert left[1.0][2] < 0.1 * cells
assert left[1.0][2] < left[0.02][2]
