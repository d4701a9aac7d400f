r"""
23. 2D classes at iterations 0, 1, 2, 4, 6 and 25
=================================================

Each image belongs to every class and lies at every angle and shift, with the probability
:math:`\Gamma_i(\phi, k)`:

.. math:: A_k^{(n+1)} = \frac{\sum_i^N \int \Gamma_i(\phi, k)\, P_\phi^T C_i X_i\, d\phi}
          {\frac{1}{\mathrm{SSNR}} + \sum_i^N \int \Gamma_i(\phi, k)\, P_\phi^T C_i^2\, d\phi}.

At first the classes hardly differ, and neither do the probabilities; then both get sharp together.
"""

import os
from dataclasses import replace

import matplotlib.pyplot as plt
import torch

from halfmap.engine.accumulation import sums_of_images
from halfmap.engine.posterior_weights import assign_posterior
from halfmap.fourier import half_plane, lowpass
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
BOX, PIXEL, RADIUS, SNR, K = 32, 6.0, 10, 0.05, 3 if SMALL else 5
N, SHOWN = (60, (0, 1, 2, 4)) if SMALL else (300, (0, 1, 2, 4, 6, 25))
plane = half_plane(BOX, RADIUS)

# %%
# Four views of one particle, turned and moved in the plane.
views = torch.tensor([[0.0, 0.0], [10.0, 90.0], [45.0, 55.0], [0.0, 130.0]])
drawn, which = draw_truth(Recipe(N, seed=3, shift_rms_px=1.0)), torch.arange(N) % len(views)
truth = replace(drawn, angles_deg=torch.cat([views[which], drawn.angles_deg[:, 2:].float()], 1))
data = simulate_images([phantom(BOX, PIXEL)], truth, pixel_size_angstrom=PIXEL, snr=SNR)
terms = data.terms(plane)
psi = torch.arange(0, 360, 12.0)
rotations = euler_to_matrix(torch.stack([0 * psi, 0 * psi, psi], -1))
shifts = shift_grid(1.5, 1.0, device=torch.device("cpu"))

# %%
# The classes begin as averages of images as they lie.
classes = torch.stack([data.images[k::K].mean(0) for k in range(K)])
classes = lowpass(classes, 40.0, PIXEL, dimensions=2)
history, largest = [classes], []
for _ in range(SHOWN[-1]):
    references = prepare_references(classes, RADIUS)
    poses = search_exhaustively(references, terms, plane, rotations=rotations, shifts_px=shifts)
    gamma = torch.softmax(poses.log_weight, 1)
    largest.append(gamma.amax(1))
    weights = assign_posterior(poses)
    sums = sums_of_images(terms, weights, plane, n_classes=K, dimensions=2)
    classes = wiener_update(sums, 0.1 * shell_weight(sums) + 1e-9)
    history.append(classes)
titles = [f"iteration {n}" for n in SHOWN]
pictures = [history[n][k] for k in range(K) for n in SHOWN]
show_images(pictures, titles, columns=len(SHOWN), pixel_size_angstrom=PIXEL)

# %%
# How sure the images are: the largest of each image's probabilities.
figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
axes.plot(range(1, len(largest) + 1), [float(p.mean()) for p in largest], "o-")
axes.set(xlabel="iteration", ylabel="mean largest $\\Gamma$", ylim=(0, 1))
plt.show()

best = poses.best(1).classes[:, 0]
counts = torch.zeros(K, len(views)).index_put_((best, which), torch.ones(N), accumulate=True)
print(f"images of each view in each class: {counts.int().tolist()}")
assert float(largest[-1].mean()) > float(largest[0].mean())
assert SMALL or float(counts.amax(1).sum()) / N > 0.6
