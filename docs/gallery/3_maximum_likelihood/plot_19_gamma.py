r"""
19. The probability function Gamma
==================================

To maximise the likelihood one needs, for each image, how probable every pose is:

.. math:: \Gamma_i(\phi) = P(\phi \mid X_i, V) =
          \frac{P(X_i \mid V, \phi)}{\int P(X_i \mid V, \phi)\, d\phi}.

Here it is drawn over all viewing directions, with in-plane angles and shifts summed out, for one
particle in three amounts of noise: a diffuse cloud becomes a point.
"""

import os

import matplotlib.pyplot as plt
import torch

from halfmap.fourier import half_plane
from halfmap.plots.panels import draw_directions
from halfmap.pose_search.direction_posterior import direction_posterior
from halfmap.projection import prepare_references
from halfmap.simulation.forward_model import Recipe, draw_truth
from halfmap.simulation.in_memory import simulate_images
from halfmap.simulation.phantom import phantom
from halfmap.so3 import direction_pixels, euler_to_matrix
from halfmap.symmetries import point_group

SMALL = os.environ.get("HALFMAP_GALLERY") == "small"
BOX, PIXEL, ORDER, IMAGES = 32, 6.0, 2 if SMALL else 3, 1 if SMALL else 2
RADIUS = 6 if SMALL else 10
plane = half_plane(BOX, RADIUS)
volume = phantom(BOX, PIXEL, symmetry="C1")
references = prepare_references(volume[None], RADIUS)
truth = draw_truth(Recipe(IMAGES, seed=2, shift_rms_px=1.0))
SNRS = (1.0, 0.1, 0.02)

# %%
# One row an image, one column an SNR; the circle is the true direction, brightness the root of the
# probability. The number of directions that share the probability is exp of the entropy.
figure, axes = plt.subplots(
    IMAGES, len(SNRS), figsize=(10, 2.3 * IMAGES), squeeze=False, layout="constrained",
    subplot_kw={"projection": "mollweide"},
)  # fmt: skip
spread = {}
for column, snr in enumerate(SNRS):
    data = simulate_images([volume], truth, pixel_size_angstrom=PIXEL, snr=snr)
    gamma = direction_posterior(
        references,
        data.terms(plane),
        plane,
        radius=RADIUS,
        symmetry=point_group("C1").rotations,
        order=ORDER,
        shift_range_px=2.0,
    )
    entropy = -torch.special.xlogy(gamma, gamma).sum(1)
    spread[snr] = float(entropy.exp().mean())
    for row in range(IMAGES):
        panel = axes[row, column]
        draw_directions(panel, gamma[row], order=ORDER)
        x, y, z = euler_to_matrix(truth.angles_deg[row])[2]
        panel.plot(torch.atan2(y, x), torch.asin(z), "o", mfc="none", color="w", ms=12)
        share = f"shared by {float(entropy[row].exp()):.0f} cells"
        panel.set_title(f"image {row + 1}, SNR {snr:g}: {share}", fontsize=10)
plt.show()

pixel = direction_pixels(euler_to_matrix(truth.angles_deg), ORDER)
print({snr: f"{n:.1f} of {12 * 4**ORDER} directions" for snr, n in spread.items()}, pixel.tolist())
assert spread[1.0] < spread[0.1] < spread[0.02]
