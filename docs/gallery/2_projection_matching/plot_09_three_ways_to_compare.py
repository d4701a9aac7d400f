r"""
9. Three ways to compare images, and where each fails
=====================================================

A reference is the true image under the CTF, :math:`R = C A`. How well does an image :math:`X` fit?

.. math:: \|X - R\|^2 = \|X\|^2 - 2 X \cdot R + \|R\|^2, \qquad
          \mathrm{Cor} = X \cdot R, \qquad \mathrm{CC} = \frac{X \cdot R}{|X| |R|}

All three are made of :math:`a = X \cdot R` and :math:`b = |R|^2`: the squared difference as the log
likelihood (``log_likelihood_score``, :math:`a - b/2`), the coefficient as FREALIGN's score
(``correlation_score``, :math:`a / \sqrt{b}`). Of three references R1 is the right one. Bars: scores
above the lowest; the winner is blue where it is R1, and hatched orange where it is wrong.
"""

import os
from dataclasses import replace

import matplotlib.pyplot as plt
import torch

from halfmap.likelihood import correlation_score, log_likelihood_score
from halfmap.plots.panels import show_images
from halfmap.simulation.forward_model import Recipe, draw_truth
from halfmap.simulation.in_memory import simulate_images
from halfmap.simulation.phantom import phantom
from halfmap.transfer_function import CTFParameters

BOX = 80 if os.environ.get("HALFMAP_GALLERY") == "small" else 96
PIXEL = 192 / BOX

# The image shows the first of three views, in noise.
views = torch.tensor([[0.0, 90.0, 0.0], [0.0, 70.0, 20.0], [0.0, 0.0, 0.0]])
recipe = Recipe(3, seed=2, shift_rms_px=0.0, defocus_range_angstrom=(2e4, 2e4))
truth = replace(draw_truth(recipe), angles_deg=views)
in_focus = replace(truth, ctf=CTFParameters(amplitude_contrast=1.0, spherical_aberration_mm=0.0))
volume = phantom(BOX, PIXEL)
data = simulate_images([volume], truth, pixel_size_angstrom=PIXEL, snr=0.3)
x = data.images[0] / data.noise_sd  # on the scale of the noise
right = simulate_images([volume], truth, pixel_size_angstrom=PIXEL).images / data.noise_sd
bare = simulate_images([volume], in_focus, pixel_size_angstrom=PIXEL).images / data.noise_sd

# %%
# What may be wrong: one reference on another grey scale, an offset of the image and of a reference,
# the CTF left out.
bright1, bright2, offset = torch.tensor([[5, 0.5, 0.5], [0.5, 8, 0.5], [0, 0, 4]])[..., None, None]
situations = {
    "nothing wrong": (x, right),
    "R1 five times too bright": (x, right * bright1),
    "R2 eight times too bright": (x, right * bright2),
    "offset of X and of R3": (x + 2, right + offset),
    "no CTF in R": (x, bare),
}
names = ["$X$", "$R_1$", "$R_2$", "$R_3$", "", "$R_1$, no CTF", "$R_2$, no CTF", "$R_3$, no CTF"]
show_images([x, *right, None, *bare], names, columns=4, pixel_size_angstrom=PIXEL)
figure, table = plt.subplots(3, 5, figsize=(9.5, 4.2), layout="constrained")
won, lost, winners = {"facecolor": "tab:blue"}, {"facecolor": "tab:orange", "hatch": "//"}, {}
for column, (situation, (image, references)) in enumerate(situations.items()):
    a = (image * references).sum((-2, -1))  # X . R
    b = references.square().sum((-2, -1))  # |R|^2
    difference = log_likelihood_score(a, b) - image.square().sum() / 2
    scores = {"-|X - R|²": difference, "X · R": a, "CC": correlation_score(a, b) / image.norm()}
    table[0, column].set_title(situation, fontsize=9)
    for axes, (name, values) in zip(table[:, column], scores.items(), strict=True):
        winners[name, situation] = best = int(values.argmax())
        bars = axes.bar(["R1", "R2", "R3"], (values - values.min()).numpy(), color="lightgrey")
        bars[best].set(**(won if best == 0 else lost))
        axes.set(yticks=[], ylabel=name if column == 0 else "")
plt.show()

# %%
# The coefficient does not mind scales and minds offsets: images are brought to a background of 0.
# Without its CTF the right reference still wins here, by less.
print({f"{name}, {situation}": f"R{w + 1}" for (name, situation), w in winners.items()})
assert all(winners[name, "nothing wrong"] == 0 for name in ("-|X - R|²", "X · R", "CC"))
assert winners["-|X - R|²", "R1 five times too bright"] != 0
assert winners["X · R", "R2 eight times too bright"] != 0
assert winners["CC", "R1 five times too bright"] == winners["CC", "R2 eight times too bright"] == 0
assert winners["CC", "offset of X and of R3"] != 0
