r"""
18. Maximum likelihood is asymptotically unbiased; hard assignment is not
=========================================================================

"If the size of the data set grows without bounds, and the number of parameters does not, maximum
likelihood converges to the right answer." Hard assignment gives each image to its *best* pose,
the one where its noise fits too: the average is then

.. math:: \hat A = A + \text{noise, where the template is bright},

and that does not go away, however many images there are. Both start at the truth here and are
iterated; the error that is left at large N is bias.
"""

import os
from dataclasses import replace

import matplotlib.pyplot as plt
import torch

from halfmap.engine.accumulation import sums_of_images
from halfmap.engine.posterior_weights import assign_hard, assign_posterior
from halfmap.engine.state import as_candidates, known_poses
from halfmap.fourier import half_plane
from halfmap.likelihood import LOG_LIKELIHOOD
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

# %%
# Images of one view at angles of a grid in the plane, in focus: nothing but the angle is unknown.
N, plane, psi = NUMBERS[-1], half_plane(BOX, 8), torch.arange(0, 360, STEP_DEG)


def images(psi_deg, snr):
    n = len(psi_deg)
    in_focus = CTFParameters(amplitude_contrast=1.0, spherical_aberration_mm=torch.zeros(n))
    view = torch.stack([10 + 0 * psi_deg, 70 + 0 * psi_deg, psi_deg], -1)
    truth = replace(draw_truth(Recipe(n, shift_rms_px=0.0)), angles_deg=view, ctf=in_focus)
    return simulate_images([phantom(BOX, PIXEL)], truth, pixel_size_angstrom=PIXEL, snr=snr)


chosen = torch.randint(len(psi), (N,), generator=torch.Generator().manual_seed(2))
data = images(psi[chosen], SNR)
terms = data.terms(plane)
rotations = euler_to_matrix(torch.stack([0 * psi, 0 * psi, psi], -1))

# %%
# The right answer: what the same sums make of every angle once, without noise and at known poses.
clean = images(psi, float("inf")).terms(plane, sigma2=1.0)
none, first = torch.zeros(len(psi), 2), torch.zeros(len(psi), dtype=torch.long)
known = assign_hard(as_candidates(known_poses(rotations, none, first)))
object_ = unregularised(sums_of_images(clean, known, plane, n_classes=1, dimensions=2))[0]

# %%
# Both begin with the truth.
averages, errors = [], {"hard assignment": [], "maximum likelihood": []}
for name, assign in zip(errors, (assign_hard, assign_posterior), strict=True):
    for n in NUMBERS:
        some, a = terms.select_images(torch.arange(n)), object_
        for _ in range(ITERATIONS):
            poses = search_exhaustively(
                prepare_references(a[None], plane.radius), some, plane,
                rotations=rotations, shifts_px=torch.zeros(1, 2), score=LOG_LIKELIHOOD,
            )  # fmt: skip
            sums = sums_of_images(some, assign(poses), plane, n_classes=1, dimensions=2)
            a = unregularised(sums)[0]
        errors[name].append(float((a - object_).square().sum() / object_.square().sum()))
    averages.append(a)
titles = ["one image", "right answer", "hard assignment", "maximum likelihood"]
show_images([data.images[0], object_, *averages], titles, pixel_size_angstrom=PIXEL)

# %%
# The squared error of the average against the number of images. The line falls as 1 / N.
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
