r"""
18. Maximum likelihood is asymptotically unbiased; hard assignment is not
=========================================================================

"If the size of the data set grows without bounds, and the number of parameters does not, maximum
likelihood converges to the right answer." Hard assignment gives each image to its *best* pose, the
one where its noise fits too: the average is then

.. math:: \hat A = A + \text{noise, where the template is bright},

with any number of images. Both start at the truth here; the error left at large N is bias.
"""

import os
from dataclasses import replace

import matplotlib.pyplot as plt
import torch

from halfmap.engine.accumulation import sums_of_images
from halfmap.engine.posterior_weights import assign_hard, assign_posterior
from halfmap.fourier import half_plane
from halfmap.plots.panels import show_images
from halfmap.pose_search.exhaustive import search_exhaustively
from halfmap.projection import prepare_references
from halfmap.reconstruction import unregularised
from halfmap.simulation.forward_model import Recipe, draw_truth
from halfmap.simulation.in_memory import simulate_images
from halfmap.simulation.phantom import phantom
from halfmap.so3 import euler_to_matrix
from halfmap.transfer_function import CTFParameters

SMALL = os.environ.get("HALFMAP_GALLERY") == "small"
BOX, PIXEL, SNR, STEP_DEG, ITERATIONS = 24, 8.0, 0.02, 15.0, 3 if SMALL else 6
NUMBERS = (100, 1600) if SMALL else (100, 400, 1600, 4800)
N, plane, volume = NUMBERS[-1], half_plane(BOX, 8), phantom(BOX, PIXEL)
# Images of one view at angles of a grid in the plane, in focus: nothing but the angle is unknown.
grid = torch.arange(0, 360, STEP_DEG)[:, None] * torch.tensor([0, 0, 1.0])
chosen = torch.randint(len(grid), (N,), generator=torch.Generator().manual_seed(2))
in_focus = CTFParameters(amplitude_contrast=1.0, spherical_aberration_mm=torch.zeros(N))
angles = torch.tensor([10.0, 70.0, 0.0]) + grid[chosen]
truth = replace(draw_truth(Recipe(N, shift_rms_px=0.0)), angles_deg=angles, ctf=in_focus)
data = simulate_images([volume], truth, pixel_size_angstrom=PIXEL, snr=SNR)


def iteration(average, terms, assign):
    references = prepare_references(average[None], plane.radius)
    poses = search_exhaustively(references, terms, plane, rotations=euler_to_matrix(grid))
    return unregularised(sums_of_images(terms, assign(poses), plane, n_classes=1, dimensions=2))[0]


# The right answer: what the same sums make of the same images without noise, whose best pose is the
# true one. Both ways begin with it.
clean = simulate_images([volume], truth, pixel_size_angstrom=PIXEL)
right = iteration(clean.images[chosen == 0][0], clean.terms(plane, sigma2=1.0), assign_hard)
averages, errors = [], {"hard assignment": [], "maximum likelihood": []}
for name, assign in zip(errors, (assign_hard, assign_posterior), strict=True):
    for n in NUMBERS:
        some, a = data.terms(plane).select_images(torch.arange(n)), right
        for _ in range(ITERATIONS):
            a = iteration(a, some, assign)
        errors[name].append(float((a - right).square().sum() / right.square().sum()))
    averages.append(a)
titles = ["one image", "right answer", "hard assignment", "maximum likelihood"]
show_images([data.images[0], right, *averages], titles, pixel_size_angstrom=PIXEL)

# %%
# The squared error of the average against the number of images. The dotted line falls as 1 / N.
figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
for name, values in errors.items():
    axes.loglog(NUMBERS, values, "o-", label=name)
axes.loglog(NUMBERS, [values[0] * NUMBERS[0] / n for n in NUMBERS], "k:", label="1 / N")
axes.set(xlabel="images N", ylabel="squared error / power of A")
axes.legend()
plt.show()
print({name: [f"{v:.3f}" for v in values] for name, values in errors.items()})
hard, soft = errors.values()
assert soft[-1] < (0.9 if SMALL else 0.7) * hard[-1]
assert soft[-1] < 0.5 * soft[0]
