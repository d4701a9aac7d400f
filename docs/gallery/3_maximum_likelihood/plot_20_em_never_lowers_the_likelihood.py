r"""
20. E-M never lowers L, and which bound it climbs
=================================================

For any weights :math:`\Gamma_i(\phi)` that sum to 1 over the M poses,

.. math:: L(V) \ge B(V, \Gamma) = \sum_i \sum_\phi \Gamma_i(\phi)
          \ln \frac{P(X_i \mid V, \phi)}{M\, \Gamma_i(\phi)},

and with :math:`\Gamma_i = P(\phi \mid X_i, V)` both are equal: the E-step lifts the bound until it
touches. The M-step finds the :math:`V` that maximises the bound, a quadratic function of
:math:`V`: the quotient of the two sums. L is above the bound, so it has climbed too.
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
from halfmap.so3 import euler_to_matrix

SMALL = os.environ.get("HALFMAP_GALLERY") == "small"
BOX, PIXEL, N, K, ITERATIONS = 32, 6.0, 40 if SMALL else 150, 2, 5 if SMALL else 10
plane = half_plane(BOX, 10)
# Two views, each turned in the plane; two class images that begin as random averages.
views, which = torch.tensor([[0.0, 0.0], [10.0, 90.0]]), torch.arange(N) % 2
drawn = draw_truth(Recipe(N, seed=3, shift_rms_px=0.0))
truth = replace(drawn, angles_deg=torch.cat([views[which], drawn.angles_deg[:, 2:].float()], 1))
data = simulate_images([phantom(BOX, PIXEL)], truth, pixel_size_angstrom=PIXEL, snr=0.05)
terms = data.terms(plane)
rotations = euler_to_matrix(torch.arange(0, 360, 10.0)[:, None] * torch.tensor([0, 0, 1.0]))


def bound(poses, gamma):
    """B(V, Gamma) for the scores of a map and any Gamma over the same poses."""
    m = gamma.shape[1]
    return float((gamma * poses.log_weight.double() - torch.special.xlogy(gamma, m * gamma)).sum())


# %%
# After each E-step the bound equals L; after each M-step L has climbed farther than the bound.
starts = torch.stack([data.images[k::4][:15].mean(0) for k in range(K)])
begun = classes = lowpass(starts, 30.0, PIXEL, dimensions=2)
likelihoods, bounds, gamma = [], [], None
for n in range(ITERATIONS):
    references = prepare_references(classes, plane.radius)
    poses = search_exhaustively(references, terms, plane, rotations=rotations)
    bounds += [(n, bound(poses, gamma))] if n else []
    likelihoods.append(float(log_likelihood(poses).sum()))
    gamma = torch.softmax(poses.log_weight.double(), 1)  # E
    bounds.append((n, bound(poses, gamma)))
    weights = assign_posterior(poses, significance=1.0)
    sums = sums_of_images(terms, weights, plane, n_classes=K, dimensions=2)
    classes = wiener_update(sums, 1e-3 * shell_weight(sums))  # M
titles = [f"{when}, class {k}" for when in ("start", "at last") for k in (1, 2)]
show_images([*begun, *classes], titles, pixel_size_angstrom=PIXEL)
figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
axes.plot(likelihoods, "o-", label="L(V)")
axes.plot(*zip(*bounds, strict=True), "C1-", lw=1, label="the bound: up to L (E), along it (M)")
axes.set(xlabel="iteration", ylabel="log likelihood", xlim=(-0.2, 5.2))
axes.legend()
plt.show()
climb, met = torch.tensor(likelihoods), torch.tensor([b for _, b in bounds])
slack = 1e-3 * abs(likelihoods[-1])
print([f"{gain:.2f}" for gain in climb.diff()])
assert climb.diff().min() > -slack
assert (met[::2] - climb).abs().max() < slack  # after E
assert (met[1::2] <= climb[1:] + slack).all()  # after M
