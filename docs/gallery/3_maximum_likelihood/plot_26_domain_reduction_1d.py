r"""
26. Domain reduction: branch and bound in one dimension
=======================================================

Evaluating :math:`\Gamma` at full resolution everywhere is expensive. Scores on a few Fourier shells
are cheap and smooth, and what the other shells can still add is bounded:

.. math:: s(\phi) \le s_L(\phi) + \frac{q + 7}{2} + z \sqrt{q + 7},

with :math:`q` the power of the reference beyond shell L, in units of the noise. A pose whose bound
lies below a score that some pose has reached is out. **Move the slider**: L grows, the bound comes
down, and the part of the domain that is left shrinks to the peak.
"""

import os

import matplotlib.pyplot as plt
import torch

from halfmap.fourier import half_plane
from halfmap.likelihood import ImageTerms
from halfmap.plots.panels import Slider
from halfmap.pose_search.bounds import deviations, shell_visibility, slice_shell_power, upper_bound
from halfmap.pose_search.exhaustive import search_exhaustively
from halfmap.projection import extract_slices, prepare_references
from halfmap.simulation.forward_model import Recipe, draw_truth
from halfmap.simulation.in_memory import simulate_images
from halfmap.simulation.phantom import phantom
from halfmap.so3 import euler_to_matrix

SMALL = os.environ.get("HALFMAP_GALLERY") == "small"
BOX, PIXEL, SNR = 48, 4.0, 0.03
LEVELS = (3, 8, 23) if SMALL else (2, 3, 4, 5, 6, 8, 10, 12, 15, 19, 23)
plane, volume = half_plane(BOX, BOX // 2 - 1), phantom(BOX, PIXEL, symmetry="C1")
truth = draw_truth(Recipe(1, seed=6, shift_rms_px=0.0))
terms = simulate_images([volume], truth, pixel_size_angstrom=PIXEL, snr=SNR).terms(plane)
# One of the five variables: the angle in the plane.
psi = torch.arange(-180.0, 180.0, 1.0)
angles = truth.angles_deg.float().repeat(len(psi), 1)
angles[:, 2] += psi
references, rotations = prepare_references(volume[None], plane.radius), euler_to_matrix(angles)
power = slice_shell_power(extract_slices(references, rotations, plane), plane)
power = power * shell_visibility(terms, plane)  # (poses, shells), in units of sigma^2


def score(radius):
    """s_L: the log likelihood of every angle on shells up to L."""
    level = half_plane(BOX, radius)
    inside = ImageTerms(terms.data[:, : len(level)], terms.power[:, : len(level)])
    return search_exhaustively(references, inside, level, rotations=rotations).score[0]


# %%
# Every level, and what survives it. To beat: the score, on all shells, of what is best so far.
whole, z = score(plane.radius), deviations(len(LEVELS))
figures, left, survives = [], {}, torch.ones(len(psi), dtype=torch.bool)
for radius in LEVELS:
    low = score(radius)
    bound = upper_bound(low[None], power[:, radius + 1 :].sum(1)[None], deviations=z)[0]
    cutoff = whole[low.masked_fill(~survives, -torch.inf).argmax()]
    survives = survives & (bound >= cutoff)
    left[radius] = float(survives.float().mean())
    figure, axes = plt.subplots(figsize=(7.5, 3.4), layout="constrained")
    axes.fill_between(psi, 0, 1, where=survives, color="#fe9", transform=axes.get_xaxis_transform())
    axes.plot(psi, whole, color="lightgrey", label="score on all shells (not known yet)")
    axes.plot(psi, low, label=f"score on shells up to L = {radius}")
    axes.plot(psi, bound, color="C1", lw=1, label="its upper bound")
    axes.axhline(cutoff, color="C3", lw=1, ls="--", label="to beat")
    limits = float(whole.min()) - 20, float(whole.max()) + 150
    axes.set(xlim=(-180, 180), xticks=range(-180, 181, 60), ylim=limits)
    axes.set(xlabel="angle from the truth (°)", ylabel="log likelihood")
    axes.set_title(f"L = {radius}, {BOX * PIXEL / radius:.0f} Å: {left[radius]:.0%} left (yellow)")
    axes.legend(fontsize=7, loc="upper right", ncols=2)
    figures.append(figure)
print({radius: f"{share:.0%}" for radius, share in left.items()})
assert bool(survives[whole.argmax()])
assert left[LEVELS[-1]] < 0.1 < left[LEVELS[0]]
Slider(figures, [f"L = {radius}" for radius in LEVELS])
