"""Symmetry that nearly holds: the mates of a pose, and whether a reference tells them apart."""

from dataclasses import replace

import torch

from halfmap.engine.state import Candidates
from halfmap.fourier import half_plane, shift_phases
from halfmap.projection import FourierReferences, extract_slices
from halfmap.so3 import random_rotations
from halfmap.symmetries import SymmetryOperators

# Of the power of slices, what differs between mates: interpolation alone leaves up to 1e-4 (48^3,
# T, O and I), a ligand of 5 % of the mass 1e-2
LEAST_DIFFERENCE = 1e-3
VIEWS_COMPARED = 32


def mates_of(candidates: Candidates, operators: SymmetryOperators) -> Candidates:
    """The first candidate of each image from the operators' other mates, A S for each S, moved by
    what a translation of the object takes with it."""
    first = candidates.select_poses(torch.zeros_like(candidates.classes[:, :1]))
    others = operators.to(first.rotations.device)
    rotations = first.rotations @ others.rotations[1:]
    moved = torch.einsum("bnij,gj->bgi", first.rotations, others.translations_px[1:])[..., :2]
    n = rotations.shape[1]
    everywhere = first.select_poses(torch.zeros_like(first.classes).expand(-1, n))
    return replace(everywhere, rotations=rotations, shift_px=everywhere.shift_px - moved)


def tells_mates_apart(references: FourierReferences, operators: SymmetryOperators) -> bool:
    """Whether references depart from the symmetry by more than interpolation does.

    `<|R_AS - <R_AS>_S|^2> > 1e-3 <|R_AS|^2>`, R_AS the slice at pose A S, moved by (A t)_xy as the
    translation t of S says; means are over random A and the operators S, without k = 0.
    """
    device = references.grid.device
    plane = half_plane(references.box, references.radius, device)
    operators = operators.to(device)
    views = random_rotations(VIEWS_COMPARED, torch.Generator().manual_seed(1)).to(device)
    moved_px = torch.einsum("nij,gj->gni", views, operators.translations_px)[..., :2]
    weight = plane.hermitian_weight.clone()
    weight[0] = 0
    apart = power = 0.0
    for k in range(len(references)):
        classes = torch.full((len(views),), k, device=device)
        mean = torch.zeros(len(views), len(plane), dtype=references.grid.dtype, device=device)
        squares = torch.zeros_like(mean.real)
        for rotation, shift_px in zip(operators.rotations, moved_px, strict=True):
            slices = extract_slices(references, views @ rotation, plane, classes=classes)
            mean += slices * shift_phases(shift_px, plane) / len(operators)
            squares += slices.abs().square() / len(operators)
        power += float((squares @ weight).sum())
        apart += float(((squares - mean.abs().square()) @ weight).sum())
    return apart > LEAST_DIFFERENCE * power
