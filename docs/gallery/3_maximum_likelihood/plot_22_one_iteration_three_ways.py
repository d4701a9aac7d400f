r"""
22. The same iteration three ways, on the same images
=====================================================

FREALIGN, RELION and cryoSPARC differ in three small choices:

========== ======================== ================== ===========================================
method     score                    assignment         update
========== ======================== ================== ===========================================
FREALIGN   correlation coefficient  the best pose      num / (k + den)
RELION     log likelihood           posterior          num / (1 / (T tau²) + den)
SGD        log likelihood, a batch  posterior          a step along num - (den + 1 / tau²) V
========== ======================== ================== ===========================================

with the same two sums,

.. math:: \mathrm{num} = \sum_i \sum_\phi \Gamma_i P_\phi^T C_i X_i / \sigma^2, \qquad
          \mathrm{den} = \sum_i \sum_\phi \Gamma_i P_\phi^T C_i^2 / \sigma^2.
"""

import os

import matplotlib.pyplot as plt
import torch

from halfmap.engine.accumulation import sums_of_images
from halfmap.engine.posterior_weights import assign_hard, assign_posterior
from halfmap.fourier import half_plane, lowpass
from halfmap.likelihood import CORRELATION, LOG_LIKELIHOOD
from halfmap.plots.panels import show_images
from halfmap.pose_search.exhaustive import search_exhaustively
from halfmap.projection import prepare_references
from halfmap.reconstruction import shell_weight, wiener_update
from halfmap.resolution import fourier_shell_correlation
from halfmap.simulation.forward_model import Recipe, draw_truth
from halfmap.simulation.in_memory import simulate_images
from halfmap.simulation.phantom import phantom
from halfmap.so3 import orientation_grid
from halfmap.symmetries import point_group

SMALL = os.environ.get("HALFMAP_GALLERY") == "small"
BOX, PIXEL, RADIUS, N, ITERATIONS = 24, 8.0, 6, 60 if SMALL else 200, 2 if SMALL else 8
plane, volume, c4 = half_plane(BOX, RADIUS), phantom(BOX, PIXEL), point_group("C4")
truth = draw_truth(Recipe(N, seed=1, shift_rms_px=0.0))
terms = simulate_images([volume], truth, pixel_size_angstrom=PIXEL, snr=0.05).terms(plane)
rotations = orientation_grid(2, c4.rotations).rotations

# %%
# The quotient of the two sums less V is the gradient over the curvature: FREALIGN and RELION go all
# the way to it, SGD a share of the way, with few images at a time.
methods = {
    "FREALIGN": (CORRELATION, assign_hard, N, 1.0),
    "RELION": (LOG_LIKELIHOOD, assign_posterior, N, 1.0),
    "SGD": (LOG_LIKELIHOOD, assign_posterior, N // 3, 0.4),
}
start = lowpass(volume, 80.0, PIXEL, dimensions=3)
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
maps, agreement = [start], {}
for name, (score, assign, batch, share) in methods.items():
    v, agreement[name] = start, []
    for n in range(ITERATIONS):
        chosen = torch.randperm(N, generator=torch.Generator().manual_seed(n))[:batch]
        some, references = terms.select_images(chosen), prepare_references(v[None], RADIUS)
        poses = search_exhaustively(references, some, plane, rotations=rotations, score=score)
        gamma = assign(poses)
        sums = sums_of_images(some, gamma, plane, n_classes=1, dimensions=3, symmetry=c4)
        v = v + share * (wiener_update(sums, 0.1 * shell_weight(sums))[0] - v)
        curve = fourier_shell_correlation(v, volume, pixel_size_angstrom=PIXEL)
        agreement[name].append(float(curve.correlation[1 : RADIUS + 1].mean()))
    maps.append(v)
    axes.plot(range(1, ITERATIONS + 1), agreement[name], "o-", label=name)
axes.set(xlabel="iteration", ylabel=f"mean FSC with the truth to {BOX * PIXEL / RADIUS:.0f} Å")
axes.legend()
pictures = [v.sum(1) for v in (*maps, lowpass(volume, 32.0, PIXEL, dimensions=3))]
show_images(pictures, ["start, 80 Å", *agreement, "truth"], pixel_size_angstrom=PIXEL)
plt.show()
print({name: [round(a, 3) for a in values] for name, values in agreement.items()})
assert all(values[-1] > (0.55 if SMALL else 0.7) for values in agreement.values())
