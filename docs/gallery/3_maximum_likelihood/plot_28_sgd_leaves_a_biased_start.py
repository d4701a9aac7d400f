r"""
28. Stochastic gradients leave a biased start that E-M keeps
============================================================

Images show one particle from three sides, and someone began three classes with the wrong guess: two
hold the same side, and the third is the mean of the other two. E-M climbs from there to the nearest
maximum of the likelihood, and stays. SGD takes a few images at a time, draws one pose and class of
each from its posterior, and goes a step along the gradient (over the curvature),

.. math:: A_k \leftarrow A_k + \mu \left(\frac{\mathrm{num}_k}{\mathrm{den}_k + k_w} - A_k\right),

with :math:`\mu` from 0.8 to 0.16: early steps nearly forget what was there, late ones remember what
many batches agree on. E-M with all images ends it, as in ``halfmap abinitio``.
"""

import os
from dataclasses import replace

import matplotlib.pyplot as plt
import torch

from halfmap.engine.accumulation import sums_of_images
from halfmap.engine.posterior_weights import assign_posterior, assign_sample
from halfmap.fourier import half_plane, inverse_fourier_transform
from halfmap.plots.panels import show_images
from halfmap.pose_search.exhaustive import log_likelihood, search_exhaustively
from halfmap.projection import extract_slices, prepare_references
from halfmap.reconstruction import shell_weight, wiener_update
from halfmap.simulation.forward_model import Recipe, draw_truth
from halfmap.simulation.in_memory import simulate_images
from halfmap.simulation.phantom import phantom
from halfmap.so3 import euler_to_matrix

SEED = int(os.environ.get("HALFMAP_GALLERY_SEED", "1"))
BOX, PIXEL, RADIUS, N, BATCH, STEPS = 32, 6.0, 9, 200, 12, 60
plane, volume, only_psi = half_plane(BOX, RADIUS), phantom(BOX, PIXEL), torch.tensor([0, 0, 1.0])
turns = euler_to_matrix(torch.arange(0, 360, 10.0)[:, None] * only_psi)
sides, side = torch.tensor([[0.0, 0, 0], [10, 90, 0], [30, 45, 0]]), torch.arange(N) % 3
slices = extract_slices(prepare_references(volume[None], RADIUS), euler_to_matrix(sides), plane)
right = inverse_fourier_transform(slices, plane)


def ascend(classes, data, steps):
    """After steps of (images, assignment, mu): classes, log likelihoods, images with their side."""
    climb = []
    for some, assign, mu in steps:
        references = prepare_references(classes, RADIUS)
        poses = search_exhaustively(references, data, plane, rotations=turns)
        climb.append(float(log_likelihood(poses).mean()))
        images, weights = data.select_images(some), assign(poses.select_images(some))
        sums = sums_of_images(images, weights, plane, n_classes=3, dimensions=2)
        classes = classes + mu * (wiener_update(sums, 0.1 * shell_weight(sums) + 1e-12) - classes)
    table = torch.bincount(3 * poses.best(1).classes[:, 0] + side, minlength=9).view(3, 3)
    return classes, climb, float(table.amax(1).sum()) / N


drawn = draw_truth(Recipe(N, seed=SEED, shift_rms_px=0.0))
truth = replace(drawn, angles_deg=sides[side] + drawn.angles_deg * only_psi)
data = simulate_images([volume], truth, pixel_size_angstrom=PIXEL, snr=0.1).terms(plane)
start = torch.stack([right[0], 0.98 * right[0], (right[1] + right[2]) / 2])
whole, draw = (torch.arange(N), assign_posterior, 1.0), lambda poses: assign_sample(1, poses)
falling, g = 0.8 * 0.2 ** (torch.arange(STEPS) / STEPS), torch.Generator().manual_seed(SEED)
steps = [(torch.randperm(N, generator=g)[:BATCH], draw, mu) for mu in falling]
em, climb, stuck = ascend(start, data, 25 * [whole])
sgd, walk, free = ascend(start, data, steps + 10 * [whole])
best = ascend(right, data, 10 * [whole])[1][-1]
figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
axes.plot(climb, "o-", ms=3, label="E-M")
seen = [n * BATCH / N for n in range(STEPS)] + [STEPS * BATCH / N + n for n in range(10)]
axes.plot(seen, walk, label="SGD, then E-M")
axes.axhline(best, color="k", ls=":", lw=1, label="E-M from the truth")
axes.legend()
axes.set(xlabel="times that the data set has been seen", ylabel="mean log likelihood\nof an image")
names = [f"{who}, class {k}" for who in ("start", "E-M", "SGD, then E-M") for k in (1, 2, 3)]
show_images([*start, *em, *sgd], names, columns=3, pixel_size_angstrom=PIXEL)
plt.show()
print(f"{climb[-1]:.1f}, {walk[-1]:.1f}, {best:.1f}; {stuck:.0%}, {free:.0%} with their side")
assert climb[-1] < 0.9 * best < 0.97 * best < walk[-1]
assert stuck < 0.7 < 0.95 < free
