r"""
10. Two-dimensional template matching, iteration by iteration
=============================================================

:math:`X_i = C_i P_{\phi_i} A_{k_i} + N_i` with :math:`\phi = \{\psi, t_x, t_y\}`. Given the class
images of the last iteration, find for each image the pose and class of largest

.. math:: \mathrm{CC} = \frac{X_i \cdot R_i}{|X_i| |R_i|}, \qquad R_i = C_i P_{\phi_i} A_{k_i},

and knowing them, update

.. math:: A_k^{(n+1)} = \frac{\sum_{i: k_i = k} P_{\phi_i}^T C_i X_i}
          {k_w + \sum_{i: k_i = k} P_{\phi_i}^T C_i^2}.
"""

import os
from dataclasses import replace

import matplotlib.pyplot as plt
import torch

from halfmap.engine.accumulation import sums_of_images
from halfmap.engine.posterior_weights import assign_hard
from halfmap.fourier import half_plane, lowpass
from halfmap.likelihood import CORRELATION
from halfmap.plots.panels import show_images
from halfmap.pose_search.exhaustive import search_exhaustively
from halfmap.pose_search.sampling import shift_grid
from halfmap.projection import prepare_references
from halfmap.reconstruction import shell_weight, wiener_update
from halfmap.simulation.forward_model import Recipe, draw_truth
from halfmap.simulation.in_memory import simulate_images
from halfmap.simulation.phantom import phantom
from halfmap.so3 import euler_to_matrix

SMALL = os.environ.get("HALFMAP_GALLERY") == "small"
BOX, PIXEL, K, N, SNR = 40, 5.0, 4, 120 if SMALL else 400, 0.2
plane = half_plane(BOX, 14)

# %%
# Images of three views of the phantom at random angles in the plane.
views = torch.tensor([[0.0, 0.0], [10.0, 90.0], [45.0, 55.0]])
drawn = draw_truth(Recipe(N, seed=3, shift_rms_px=1.0, particles_per_micrograph=1))
which = torch.arange(N) % len(views)
truth = replace(drawn, angles_deg=torch.cat([views[which], drawn.angles_deg[:, 2:]], 1).double())
data = simulate_images([phantom(BOX, PIXEL)], truth, pixel_size_angstrom=PIXEL, snr=SNR)
terms = data.terms(plane)
show_images([*data.images[:8]], columns=4, title="eight of the images", pixel_size_angstrom=PIXEL)

# %%
# Templates to start with: a few images each, as they lie.
starts = torch.stack([data.images[k::K][:8].mean(0) for k in range(K)])
classes = lowpass(starts, 30.0, PIXEL, dimensions=2)
rotations = euler_to_matrix(torch.arange(0, 360, 10.0)[:, None] * torch.tensor([0, 0, 1.0]))
shifts = shift_grid(3.0, 1.0, device=torch.device("cpu"))
history, scores = [classes], []
for _ in range(8):
    references = prepare_references(classes, plane.radius)
    poses = search_exhaustively(
        references, terms, plane, rotations=rotations, shifts_px=shifts, score=CORRELATION
    )
    best = assign_hard(poses)  # the largest CC
    sums = sums_of_images(terms, best, plane, n_classes=K, dimensions=2)
    classes = wiener_update(sums, 0.3 * shell_weight(sums) + 1e-12)  # sum CX / (k + sum C^2)
    history.append(classes)
    scores.append(float(poses.score.amax(1).mean()))
shown = (0, 1, 2, 8)
titles = [f"iteration {n}, class {k + 1}" for k in range(K) for n in shown]
show_images([history[n][k] for k in range(K) for n in shown], titles, columns=len(shown))
plt.show()

# %%
# Images of each view in each class. A class that begins badly is left with hardly an image.
counts = torch.bincount(len(views) * best.classes + which, minlength=K * len(views)).view(K, -1)
purity = float(counts.amax(1).sum()) / N
print(f"mean |X| CC: {[round(s, 1) for s in scores]}; purity {purity:.2f}\n{counts.tolist()}")
assert scores[-1] > scores[0]
assert purity > 0.6
