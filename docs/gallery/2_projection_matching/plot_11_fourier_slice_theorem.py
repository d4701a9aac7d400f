r"""
11. The Fourier slice theorem: slices filling a volume
======================================================

The transform of a projection of :math:`V` is a central slice of the transform of :math:`V`,

.. math:: F_{P_\phi V}(k_x, k_y) = F_V\left(A^T (k_x, k_y, 0)\right),

with :math:`A` the rotation of the view. Knowing the orientations, each image puts one slice back
(:math:`P_\phi^T`), and what many slices have in common is the volume:
:math:`V = \sum P^T X \,/\, \sum P^T 1`.
"""

import os

import matplotlib.pyplot as plt
import torch

from halfmap.fourier import half_plane
from halfmap.plots.panels import show_images
from halfmap.projection import empty_sums, hermitian_mates, insert_slices
from halfmap.reconstruction import unregularised
from halfmap.resolution import fourier_shell_correlation, resolution_at
from halfmap.simulation.forward_model import exact_slices
from halfmap.simulation.phantom import phantom
from halfmap.so3 import random_rotations

SMALL = os.environ.get("HALFMAP_GALLERY") == "small"
BOX, NUMBERS = (32, (1, 3, 10, 100)) if SMALL else (64, (1, 3, 10, 30, 100, 1000))
PIXEL = 192 / BOX
plane = half_plane(BOX, BOX // 2 - 1)
volume = phantom(BOX, PIXEL)
rotations = random_rotations(NUMBERS[-1], torch.Generator().manual_seed(1))

# %%
# The slices in Fourier space: discs through the origin.
figure = plt.figure(figsize=(9, 3), layout="constrained")
angle, radius = torch.linspace(0, 2 * torch.pi, 40)[:, None], torch.tensor([0.0, 1.0])
disc = torch.stack([radius * angle.cos(), radius * angle.sin(), 0 * radius * angle], -1)
for n, count in enumerate((1, 3, 10, 30)):
    axes = figure.add_subplot(1, 4, n + 1, projection="3d")
    for a in rotations[:count]:
        x, y, z = (disc @ a).unbind(-1)  # A^T (kx, ky, 0)
        axes.plot_surface(x.numpy(), y.numpy(), z.numpy(), alpha=0.35)
    axes.set(title=f"{count} slice{'s' * (count > 1)}", xticks=[], yticks=[], zticks=[])
    axes.set_xlabel("$k_x$", labelpad=-15)
    axes.set_ylabel("$k_y$", labelpad=-15)
    axes.set_zlabel("$k_z$", labelpad=-15)
    axes.set_box_aspect((1, 1, 1), zoom=0.9)

# %%
# The volume that they make, seen from the side: projections with no noise, of poses that are known.
views = exact_slices(volume, rotations, plane.kx, plane.ky)  # P V
pictures, titles, resolution, filled = [], [], {}, {}
for n in NUMBERS:
    sums = empty_sums(1, BOX, plane.radius, 3)
    insert_slices(sums, views[:n], torch.ones(n, len(plane)), rotations[:n], plane)  # P^T
    made = unregularised(hermitian_mates(sums))[0]
    curve = fourier_shell_correlation(made, volume, pixel_size_angstrom=PIXEL)
    resolution[n] = resolution_at(curve, 0.5)
    filled[n] = float((sums.den[0] > 0).float().mean())
    pictures.append(made.sum(1))
    titles.append(f"{n}: {resolution[n]:.0f} Å")
pictures, titles = [*pictures, volume.sum(1)], [*titles, "truth"]
heading = "number of slices: where the FSC with the truth falls below 0.5"
show_images(pictures, titles, columns=4, title=heading, pixel_size_angstrom=PIXEL)

# %%
# Share of the Fourier cells that have been reached; a ball in a cube is pi / 6 of it at most.
figure, axes = plt.subplots(figsize=(5, 2.6), layout="constrained")
axes.semilogx(list(filled), list(filled.values()), "o-")
axes.axhline(torch.pi / 6, color="grey", lw=0.5)
axes.text(1, torch.pi / 6, "all of the ball", va="bottom", fontsize=8)
axes.set(xlabel="number of slices", ylabel="share of the cells", ylim=(0, 0.65))
plt.show()
print({n: f"{r:.1f} Å" for n, r in resolution.items()})
assert resolution[NUMBERS[-1]] < resolution[10] < resolution[1]
assert filled[NUMBERS[-1]] > filled[10] > filled[1]
