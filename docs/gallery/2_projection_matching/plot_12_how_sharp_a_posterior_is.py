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
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from halfmap import load_particles, read_map
from halfmap.fourier import fourier_transform, half_plane, inverse_fourier_transform, shift_phases
from halfmap.likelihood import CORRELATION, image_terms
from halfmap.plots.panels import show_images
from halfmap.pose_search.exhaustive import search_exhaustively
from halfmap.projection import extract_slices, prepare_references
from halfmap.simulation.forward_model import Recipe, draw_truth
from halfmap.simulation.in_memory import simulate_images
from halfmap.simulation.phantom import phantom
from halfmap.so3 import euler_to_matrix
from halfmap.transfer_function import evaluate

# %%
# The image, its CTF, the map, and a pose to start from: the one deposited, or the true one.
shared = [Path(os.environ.get("HALFMAP_SHARED_DATA", "-")), *Path.cwd().parents]
tried = [folder / sub for folder in shared for sub in ("images", "shared/data/images")]
found = next((f for f in tried if (f / "trpv1_small_stack.mrcs").exists()), None)
if found:
    with tempfile.TemporaryDirectory() as folder:  # the STAR knows the stack by another name
        link = Path(folder, "batch_0_restacked.mrc")
        link.symlink_to(found / "trpv1_small_stack.mrcs")
        particles = load_particles(found / "trpv1_trpv1_small_stack.star", data_dir=folder)
        image = torch.from_numpy(particles.images([2]))
    array, pixel = read_map(found / "trpv1_volume.mrc")
    volume, optics = torch.from_numpy(array), particles.transfer.take([2])
    angles = torch.tensor(particles.rotations_deg[2])
    shift = torch.tensor(particles.shift_angstrom[2]) / pixel
else:
    pixel, volume = 4.88, phantom(48, 4.88)
    truth = draw_truth(Recipe(1, seed=5))
    image = simulate_images([volume], truth, pixel_size_angstrom=pixel, snr=0.1).images
    optics, angles, shift = truth.ctf, truth.angles_deg[0], truth.shift_px[0]
box = image.shape[-1]
plane = half_plane(box, box // 2 - 2)
ctf = evaluate(optics, *plane.frequencies(pixel)).ctf.float()
samples = fourier_transform(image, plane)
sigma2 = samples[:, plane.shell > box // 3].abs().square().mean() * torch.ones_like(ctf)
terms = image_terms(samples, ctf, sigma2, premultiplied=torch.zeros(1), with_mean=False)
references = prepare_references(volume[None], plane.radius)

# %%
# One of the five variables at a time, the others held at the best pose so far.
pose = torch.cat([angles, shift]).float()
steps, away = torch.tensor([0.5, 0.5, 0.5, 0.1, 0.1]), torch.arange(-40, 41)
for _ in range(4):
    curves = []
    for n in range(5):
        poses = pose.repeat(len(away), 1)
        poses[:, n] += away * steps[n]
        turned, moved = (poses, poses[:1]) if n < 3 else (poses[:1], poses)
        rotations, shifts = euler_to_matrix(turned[:, :3]), moved[:, 3:]
        scored = search_exhaustively(
            references, terms, plane, rotations=rotations, shifts_px=shifts, score=CORRELATION
        )
        curves.append(torch.softmax(scored.log_weight[0], 0))  # P(phi | X, V)
        pose[n] = poses[int(curves[-1].argmax()), n]
names = ("$\\alpha$ (°)", "$\\beta$ (°)", "$\\gamma$ (°)", "$t_x$ (Å)", "$t_y$ (Å)")
figure, panels = plt.subplots(1, 5, figsize=(10, 2.2), layout="constrained")
widths = []
steps *= torch.tensor([1, 1, 1, pixel, pixel])
for axes, curve, step, name in zip(panels, curves, steps, names, strict=True):
    axes.fill_between(away * step, curve)
    widths.append(float((curve * (away - (curve * away).sum()) ** 2).sum().sqrt() * step))
    axes.set(xlabel=f"{name} from the best", yticks=[], title=f"± {widths[-1]:.2g} {name[-2]}")

# %%
# The image, and its best reference.
best = extract_slices(references, euler_to_matrix(pose[None, :3]), plane)
moved = ctf * best * shift_phases(-pose[None, 3:], plane)
show_images(
    [image[0], inverse_fourier_transform(moved, plane)[0]],
    ["$X$", "$R = C P_\\phi V$"],
    pixel_size_angstrom=pixel,
)
plt.show()
print("TRPV1, real" if found else "simulated", [f"{w:.2f}" for w in widths])
assert max(widths) < 10
