r"""
Projection matching, E-M and SGD, built from parts
==================================================

This page builds the three methods of the lecture from halfmap's functions, in some twenty lines
each, and ends with the job that does it in earnest. It is a script: run it, change it.

All methods answer one question: which map :math:`V` made these images,

.. math:: X_i = C_i S_{t_i} P_{\phi_i} V + N_i,

when neither :math:`V` nor the poses :math:`\phi_i` are known?
"""

import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import halfmap
from halfmap.engine.accumulation import sums_of_images
from halfmap.engine.posterior_weights import assign_hard, assign_posterior
from halfmap.fourier import half_plane, lowpass
from halfmap.likelihood import CORRELATION, LOG_LIKELIHOOD
from halfmap.plots.panels import show_images
from halfmap.pose_search.exhaustive import log_likelihood, search_exhaustively
from halfmap.projection import prepare_references
from halfmap.reconstruction import shell_weight, wiener_update
from halfmap.resolution import fourier_shell_correlation
from halfmap.simulation.forward_model import Recipe, draw_truth
from halfmap.simulation.in_memory import simulate_images
from halfmap.simulation.phantom import phantom
from halfmap.so3 import orientation_grid
from halfmap.symmetries import point_group

SMALL = os.environ.get("HALFMAP_GALLERY") == "small"
BOX, PIXEL_ANGSTROM, RADIUS = 24, 8.0, 6
N, ITERATIONS = (60, 2) if SMALL else (200, 8)

# %%
# The images
# ----------
#
# A membrane channel with four-fold symmetry, seen from everywhere, under a CTF and in noise.
# ``terms`` is all that any method will ask of the images: :math:`C X / \sigma^2` and
# :math:`C^2 / \sigma^2` on half of the Fourier plane, up to shell 6 (32 Å).
volume, c4 = phantom(BOX, PIXEL_ANGSTROM), point_group("C4")
truth = draw_truth(Recipe(N, seed=1, shift_rms_px=0.0))
data = simulate_images([volume], truth, pixel_size_angstrom=PIXEL_ANGSTROM, snr=0.05)
plane = half_plane(BOX, RADIUS)
terms = data.terms(plane)
title = "six of the images, SNR 0.05"
show_images([*data.images[:6]], columns=3, title=title, pixel_size_angstrom=PIXEL_ANGSTROM)

# %%
# The start, and the poses that are tried: a map at 80 Å; orientations 15 degrees apart in the
# asymmetric unit.
start = lowpass(volume, 80.0, PIXEL_ANGSTROM, dimensions=3)
rotations = orientation_grid(2, c4.rotations).rotations
no_shift = torch.zeros(1, 2)
print(f"{len(terms)} images, {len(plane)} Fourier samples each, {len(rotations)} orientations")


def agreement(v):
    """Mean FSC with the truth on the shells that are used."""
    curve = fourier_shell_correlation(v, volume, pixel_size_angstrom=PIXEL_ANGSTROM)
    return float(curve.correlation[1 : RADIUS + 1].mean())


# %%
# 1. Projection matching
# ----------------------
#
# Compare every image with every projection of the map, keep the best, and put the images back
# there: :math:`V \leftarrow \sum P^T C X / (k + \sum P^T C^2)`.
def projection_matching(v):
    references = prepare_references(v[None], RADIUS)  # the map's transform, ready to be sliced
    poses = search_exhaustively(
        references, terms, plane, rotations=rotations, shifts_px=no_shift, score=CORRELATION
    )
    best = assign_hard(poses)  # Gamma = 1 at the best pose
    sums = sums_of_images(terms, best, plane, n_classes=1, dimensions=3, symmetry=c4)
    k = 0.1 * shell_weight(sums)  # a tenth of what a cell of the shell received
    return wiener_update(sums, k)[0]


curves, maps = {}, {}
v, curves["projection matching"] = start, []
for _ in range(ITERATIONS):
    v = projection_matching(v)
    curves["projection matching"].append(agreement(v))
maps["projection matching"] = v


# %%
# 2. Expectation-maximisation
# ---------------------------
#
# Two words change. The score is the log likelihood, and an image goes to *all* its poses, each with
# the probability :math:`\Gamma_i(\phi)` that it has. The likelihood is a by-product, and climbs.
def expectation_maximisation(v):
    references = prepare_references(v[None], RADIUS)
    poses = search_exhaustively(
        references, terms, plane, rotations=rotations, shifts_px=no_shift, score=LOG_LIKELIHOOD
    )
    gamma = assign_posterior(poses)  # E: the softmax of the scores
    sums = sums_of_images(terms, gamma, plane, n_classes=1, dimensions=3, symmetry=c4)
    return wiener_update(sums, 0.1 * shell_weight(sums))[0], log_likelihood(poses).sum()  # M


v, curves["E-M"], likelihoods = start, [], []
for _ in range(ITERATIONS):
    v, likelihood = expectation_maximisation(v)
    curves["E-M"].append(agreement(v))
    likelihoods.append(float(likelihood))
maps["E-M"] = v
print("log likelihood:", [round(value) for value in likelihoods])


# %%
# 3. Stochastic gradient ascent
# -----------------------------
#
# The same two sums are the gradient of the log likelihood, :math:`\mathrm{num} - \mathrm{den}\, V`.
# SGD takes some of the images and goes a step along it; divided by its curvature, the step leads
# towards the map that these images alone would make.
def stochastic_gradient(v, n):
    batch = torch.randperm(N, generator=torch.Generator().manual_seed(n))[: N // 3]
    some = terms.select_images(batch)
    references = prepare_references(v[None], RADIUS)
    poses = search_exhaustively(
        references, some, plane, rotations=rotations, shifts_px=no_shift, score=LOG_LIKELIHOOD
    )
    gamma = assign_posterior(poses)
    sums = sums_of_images(some, gamma, plane, n_classes=1, dimensions=3, symmetry=c4)
    step = wiener_update(sums, 0.1 * shell_weight(sums))[0] - v  # (num - (den + k) V) / (den + k)
    return (v + 0.4 * step).clamp(min=0)  # density is not negative


v, curves["SGD"] = start, []
for n in range(ITERATIONS):
    v = stochastic_gradient(v, n)
    curves["SGD"].append(agreement(v))
maps["SGD"] = v

# %%
# The three beside each other, projected from the side.
limited = lowpass(volume, BOX * PIXEL_ANGSTROM / RADIUS, PIXEL_ANGSTROM, dimensions=3)
shown = [m.sum(1) for m in (start, *maps.values(), limited)]
show_images(shown, ["start", *maps, "truth"], pixel_size_angstrom=PIXEL_ANGSTROM)
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for name, values in curves.items():
    axes.plot(range(1, ITERATIONS + 1), values, "o-", label=name)
axes.set(xlabel="iteration", ylabel="mean FSC with the truth")
axes.legend()
plt.show()
assert SMALL or all(values[-1] > agreement(start) for values in curves.values())
assert likelihoods[-1] > likelihoods[0]

# %%
# 4. The job
# ----------
#
# What is missing: shifts, poses between the grid's, noise that is learnt, halves that never meet,
# resolution. All of that is ``halfmap.refine``, on files, with the same engine; in a shell it is
# ``halfmap refine --particles ... --reference ...``.
with tempfile.TemporaryDirectory() as folder:
    sim, out = Path(folder, "sim"), Path(folder, "refined")
    halfmap.simulate(
        "phantom", sim, n=150 if SMALL else 500, snr=0.2, box=32, pixel_size_angstrom=6.0,
        symmetry="C4", quiet=True,
    )  # fmt: skip
    halfmap.write_map(Path(folder, "start.mrc"), phantom(32, 6.0).numpy(), 6.0)
    halfmap.refine(
        sim / "particles.star", Path(folder, "start.mrc"), out, symmetry="C4",
        diameter_angstrom=160, initial_lowpass_angstrom=40, iterations=2 if SMALL else 8,
        threads=1, quiet=True,
    )  # fmt: skip
    refined, pixel = halfmap.read_map(out / "map.mrc")
refined = torch.from_numpy(refined)
curve = fourier_shell_correlation(refined, phantom(32, 6.0), pixel_size_angstrom=pixel)
found = halfmap.resolution_at(curve, 0.5)
show_images([phantom(32, 6.0).sum(1), refined.sum(1)], ["truth", f"refined: {found:.0f} Å"])
plt.show()
print(f"FSC with the truth falls below 0.5 at {found:.1f} Å")
assert found < 40 if SMALL else found < 20
