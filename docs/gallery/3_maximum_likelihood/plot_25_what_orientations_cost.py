r"""
25. What finding orientations costs, and where 19 CPU-years went
================================================================

.. math:: \text{operations} \approx
          \underbrace{\frac{\pi^3}{8} t^2 n^5 N}_{\text{finding orientations}} +
          \underbrace{\pi n^4 + N n^2}_{\text{reconstruction}}

Angles :math:`2/n` apart resolve what a box of :math:`n` pixels shows: these are
:math:`8 \pi^2 / (2/n)^3 = \pi^2 n^3` orientations, times :math:`t^2` shifts, times the
:math:`\pi n^2 / 8` samples of half a disc. For :math:`N = 10^5`, :math:`n = 128`, :math:`t = 7`
that is :math:`6 \times 10^{17}`: 19 years of one CPU that does :math:`10^9` a second.
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


def cpu_s(call, *arguments):
    call(*arguments)  # what is compiled at first use is not counted
    began = time.process_time()
    call(*arguments)
    return time.process_time() - began


# Each box: a share of the exhaustive search (one matrix product), and the engine's whole search.
operations = {n: math.pi**3 / 8 * T**2 * n**5 for n in (*BOXES, LARGE)}  # for one image
exhaustive, engine = [], []
for n in BOXES:
    plane, pixel = half_plane(n, n // 2 - 1), 192 / n
    volume, truth = phantom(n, pixel, symmetry="C1"), draw_truth(Recipe(IMAGES, seed=1))
    terms = simulate_images([volume], truth, pixel_size_angstrom=pixel, snr=0.1).terms(plane)
    references = prepare_references(volume[None], plane.radius)
    slices = extract_slices(references, random_rotations(1000, torch.Generator()), plane)
    phases = shift_phases(shift_grid(3.6, 1.0, device=torch.device("cpu")), plane)  # some 7 x 7
    rate = IMAGES * len(phases) * slices.numel() / cpu_s(cross_terms, terms, phases, slices, plane)
    exhaustive.append(operations[n] / rate)
    settings = SearchSettings(Specimen(point_group("C1"), 80 / pixel), score=LOG_LIKELIHOOD)
    search, centred = prepare_search(references, settings, plane.radius), torch.zeros(IMAGES, 2)
    engine.append(cpu_s(search_globally, search, terms, centred, plane, plane.radius) / IMAGES)
# Seconds for one image. The formula's line has a slope of 5.
figure, axes = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
axes.loglog(BOXES, [operations[n] / 1e9 for n in BOXES], "k:", label="formula, $10^9$ a second")
axes.loglog(BOXES, exhaustive, "o-", label="exhaustive, as a matrix product")
axes.loglog(BOXES, engine, "o-", label="coarse to fine, then refined")
axes.set(xlabel="box n (pixels)", ylabel="CPU seconds for an image")
axes.set_xticks(BOXES, BOXES, minor=True)
axes.legend()
plt.show()

# %%
# Where the 19 years went, for 100,000 images of 128 x 128: coarse to fine ("about a day") goes as
# n², for its cells do not depend on the box, and samples of the refinement do.
naive, rest = operations[LARGE] * N, math.pi * LARGE**4 + N * LARGE**2
hours = engine[-1] * (LARGE / BOXES[-1]) ** 2 * N / 3600
print(f"finding orientations {naive:.1e} operations, reconstruction {rest:.1e}")
print(f"{naive / 1e9 / YEAR:.0f} years; as a matrix product {naive / rate / YEAR:.1f} years;")
print(f"coarse to fine: {hours:.0f} hours for one look everywhere")
assert engine[-1] < operations[BOXES[-1]] / 1e9
