r"""
25. What finding orientations costs, and where 19 CPU-years went
================================================================

.. math:: \text{operations} \approx
          \underbrace{\frac{\pi^3}{8} t^2 n^5 N}_{\text{finding orientations}} +
          \underbrace{\pi n^4 + N n^2}_{\text{reconstruction}}

To resolve what a box of :math:`n` pixels shows, angles must be :math:`2/n` apart:
:math:`8 \pi^2 / (2/n)^3 = \pi^2 n^3` orientations; times :math:`t^2` shifts; times the
:math:`\pi n^2 / 8` samples of half a disc: that is the first term. For :math:`N = 10^5`,
:math:`n = 128`, :math:`t = 7` it is :math:`6 \times 10^{17}`, 19 years of one CPU that does
:math:`10^9` a second. Here the same number is counted, and measured.
"""

import math
import os
import time

import matplotlib.pyplot as plt
import torch

from halfmap.fourier import half_plane, shift_phases
from halfmap.likelihood import LOG_LIKELIHOOD, cross_terms
from halfmap.pose_search.adaptive import prepare_search, search_globally
from halfmap.pose_search.refinement import SearchSettings
from halfmap.pose_search.sampling import shift_grid
from halfmap.projection import extract_slices, prepare_references
from halfmap.simulation.forward_model import Recipe, draw_truth
from halfmap.simulation.in_memory import simulate_images
from halfmap.simulation.phantom import phantom
from halfmap.so3 import random_rotations
from halfmap.symmetries import Specimen, point_group

SMALL = os.environ.get("HALFMAP_GALLERY") == "small"
BOXES, IMAGES, YEAR = (16, 24) if SMALL else (16, 24, 32, 48, 64), 8, 365.25 * 86400
N, LARGE, T = 1e5, 128, 7
torch.set_num_threads(1)


def orientation_cost(n, images):
    return math.pi**3 / 8 * T**2 * n**5 * images


# %%
# Measured for each box: a share of the exhaustive search (some slices at 7 x 7 shifts, one matrix
# product) and the engine's whole search of the same images, from the grid to refined poses.
exhaustive, engine, rates = {}, {}, []
for n in BOXES:
    plane, pixel = half_plane(n, n // 2 - 1), 192 / n
    volume = phantom(n, pixel, symmetry="C1")
    truth = draw_truth(Recipe(IMAGES, seed=1))
    terms = simulate_images([volume], truth, pixel_size_angstrom=pixel, snr=0.1).terms(plane)
    references = prepare_references(volume[None], plane.radius)
    some = random_rotations(1000, torch.Generator().manual_seed(0))
    slices = extract_slices(references, some, plane)
    phases = shift_phases(shift_grid(3.6, 1.0, device=torch.device("cpu")), plane)  # some 7 x 7
    cross_terms(terms, phases, slices, plane)
    began = time.process_time()
    cross_terms(terms, phases, slices, plane)
    seconds = time.process_time() - began
    done = IMAGES * len(phases) * len(slices) * len(plane)  # complex products
    rates.append(done / seconds)
    exhaustive[n] = orientation_cost(n, 1) / rates[-1]
    settings = SearchSettings(Specimen(point_group("C1"), 80 / pixel), score=LOG_LIKELIHOOD)
    search = prepare_search(references, settings, plane.radius)
    if n == BOXES[0]:  # what is compiled at first use is not counted
        search_globally(search, terms, torch.zeros(IMAGES, 2), plane, plane.radius)
    began = time.process_time()
    search_globally(search, terms, torch.zeros(IMAGES, 2), plane, plane.radius)
    engine[n] = (time.process_time() - began) / IMAGES

# %%
# Seconds for one image. The formula's line has a slope of 5.
figure, axes = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
lecture = [orientation_cost(n, 1) / 1e9 for n in BOXES]
axes.loglog(BOXES, lecture, "k:", label="formula, $10^9$ a second")
axes.loglog(BOXES, list(exhaustive.values()), "o-", label="exhaustive, as a matrix product")
axes.loglog(BOXES, list(engine.values()), "o-", label="coarse to fine, then refined")
axes.set(xlabel="box n (pixels)", ylabel="CPU seconds for an image")
axes.set_xticks(BOXES, [str(n) for n in BOXES])
axes.set_xticks([], minor=True)
axes.legend()
plt.show()

# %%
# Where the 19 years went, for 100,000 images of 128 x 128. The last line is held at the largest box
# measured times (128 / n)²: coarse cells do not depend on the box, samples of the refinement do.
naive = orientation_cost(LARGE, N)
rest = math.pi * LARGE**4 + N * LARGE**2
product = naive / rates[-1] / YEAR
hours = engine[BOXES[-1]] * (LARGE / BOXES[-1]) ** 2 * N / 3600
print(f"finding orientations {naive:.1e} operations, reconstruction {rest:.1e}")
print(f"at 1e9 a second: {naive / 1e9 / YEAR:.0f} years; as a matrix product: {product:.1f} years;")
print(f"coarse to fine: {hours:.0f} hours for one look everywhere (the lecture: about a day)")
assert 5e17 < naive < 7e17
assert 15 < naive / 1e9 / YEAR < 25
assert engine[BOXES[-1]] < lecture[-1]
