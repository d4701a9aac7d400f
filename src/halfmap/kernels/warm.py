"""Compiles the numba kernels into numba's cache, by one small call of each."""

import torch

from halfmap import kernels


def compile_all() -> None:
    """Call every kernel once, on arrays of the types that the program has."""
    one, two = torch.zeros(1, dtype=torch.long), torch.tensor([0, 1])
    grid, den = torch.zeros(1, 9, 9, 5, dtype=torch.complex64), torch.zeros(1, 9, 9, 5)
    rotations, shift_px, k = torch.eye(3)[None], torch.zeros(1, 2), torch.zeros(1)
    data, power, weight = torch.zeros(1, 1, dtype=torch.complex64), torch.zeros(1, 1), torch.ones(1)
    kernels.slices(grid, rotations, one, k, k, padding=1)
    kernels.insert(grid, den, data, power, rotations, one, k, k, padding=1)
    for sums in (grid, den):
        kernels.symmetrised(sums, rotations, torch.zeros(1, 3), turn=0.0, reach=1.0)
    kernels.gather(data, power, one, shift_px, weight, two, k, k, box=4)
    poses = grid, rotations, shift_px, one, one, data, power, k, k, weight
    for derivatives in (False, True):
        kernels.pose_equations(*poses, n_samples=1, box=4, padding=1, derivatives=derivatives)
