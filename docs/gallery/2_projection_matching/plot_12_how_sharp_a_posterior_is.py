r"""
12. The probability of orientations P(phi | X, V) is remarkably sharp
=====================================================================

One image, a map, and how probable each pose is:

.. math:: P(\phi \mid X, V) \propto e^{-\|X - C P_\phi V\|^2 / 2 \sigma^2}, \qquad
          \phi = \{\alpha, \beta, \gamma, t_x, t_y\}.

The image is one of TRPV1's (EMPIAR-10005), where the files are there, else a simulated one. The
map may be on any grey scale, so each pose is judged at its best scale (``CORRELATION``).
"""

import os
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from halfmap import load_particles, read_map
from halfmap.fourier import fourier_transform, half_plane, inverse_fourier_transform, shift_phases
from halfmap.io.mrc import open_stack
from halfmap.likelihood import CORRELATION, image_terms
from halfmap.plots.panels import show_images
from halfmap.pose_search.exhaustive import search_exhaustively
from halfmap.projection import extract_slices, prepare_references
from halfmap.simulation.forward_model import Recipe, draw_truth
from halfmap.simulation.in_memory import simulate_images
from halfmap.simulation.phantom import phantom
from halfmap.so3 import euler_to_matrix
from halfmap.transfer_function import evaluate

# The image, its CTF, the map, and a pose to start from: the one deposited, or the true one.
named = Path(os.environ.get("HALFMAP_SHARED_DATA", "."))
folders = [f / "images" for f in (named, *(up / "shared/data" for up in Path.cwd().parents))]
folder = next((f for f in folders if (f / "trpv1_small_stack.mrcs").exists()), None)
if folder:
    particle = load_particles(folder / "trpv1_trpv1_small_stack.star", check_images=False).take([2])
    stack = open_stack(folder / "trpv1_small_stack.mrcs")
    image, optics = torch.from_numpy(stack.read(particle.image_index)), particle.transfer
    pose = torch.tensor([*particle.rotations_deg[0], *particle.shift_angstrom[0]]).float()
    volume, pixel = read_map(folder / "trpv1_volume.mrc")
else:
    volume, pixel, truth = phantom(48, 4.88), 4.88, draw_truth(Recipe(1, seed=5))
    image = simulate_images([volume], truth, pixel_size_angstrom=pixel, snr=0.1).images
    optics, pose = truth.ctf, torch.cat([truth.angles_deg[0], pixel * truth.shift_px[0]]).float()
plane = half_plane(48, 22)
ctf, samples = evaluate(optics, *plane.frequencies(pixel)).ctf, fourier_transform(image, plane)
sigma2 = samples[:, plane.shell > 16].abs().square().mean() * torch.ones_like(ctf)
terms = image_terms(samples, ctf, sigma2, premultiplied=torch.zeros(1), with_mean=False)
references = prepare_references(torch.as_tensor(volume)[None], plane.radius)

# %%
# One of the five variables at a time, the others held at the best pose so far; then the image and
# its best reference.
away, widths = 0.5 * torch.arange(-40, 41), torch.zeros(5)  # degrees or Å
names = ("$\\alpha$ (°)", "$\\beta$ (°)", "$\\gamma$ (°)", "$t_x$ (Å)", "$t_y$ (Å)")
figure, panels = plt.subplots(1, 5, figsize=(10, 2.2), layout="constrained")
for n in 4 * [0, 1, 2, 3, 4]:
    poses = pose.repeat(len(away), 1)
    poses[:, n] += away
    turned, moved = (poses, pose[None]) if n < 3 else (pose[None], poses)
    rotations, shifts = euler_to_matrix(turned[:, :3]), moved[:, 3:] / pixel
    scored = search_exhaustively(
        references, terms, plane, rotations=rotations, shifts_px=shifts, score=CORRELATION
    )
    probability = torch.softmax(scored.log_weight[0], 0)  # P(phi | X, V)
    pose[n], widths[n] = poses[probability.argmax(), n], (probability @ away**2).sqrt()
    panels[n].clear()
    panels[n].fill_between(away, probability)
    panels[n].set(xlabel=f"{names[n]} from the best", yticks=[], title=f"± {widths[n]:.2g}")
slices = extract_slices(references, euler_to_matrix(pose[None, :3]), plane)
best = ctf * slices * shift_phases(-pose[None, 3:] / pixel, plane)
pictures = [image[0], inverse_fourier_transform(best, plane)[0]]
show_images(pictures, ["$X$", "$R = C P_\\phi V$"], pixel_size_angstrom=pixel)
plt.show()
print("TRPV1, real" if folder else "simulated", [f"{w:.2f}" for w in widths])
assert widths.max() < 10
