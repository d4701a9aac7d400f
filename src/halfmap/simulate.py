"""Simulated particles whose truth is known: exact projections, shifts, CTFs, coloured noise, mixtures and junk.

Image model (lecture): X = C S_t P_phi A_k + N. P is exact: the volume's discrete Fourier transform is evaluated on every central slice by
a non-uniform FFT, so that no interpolation scheme that a reconstruction may use is favoured.
"""

import math

import finufft
import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor


def exact_slices(
    volume: Float[Tensor, "N N N"], rotations: Float[Tensor, "M 3 3"], kx: Tensor, ky: Tensor, *, threads: int = 1
) -> Complex[Tensor, "M J"]:
    """Central slices of a volume at any frequencies, without interpolation.

    F_m(k) = sum_r volume(r) exp(-2 pi i (A_m^T (kx, ky, 0)) . r / N),   r = x, y, z from the centre voxel N // 2

    volume `[z, y, x]`, float32 (relative accuracy about 1e-5) or float64 (1e-12); rotations take object to view coordinates; kx, ky `(J,)` in
    cycles per box (1/N px), integer or not. The grid's transform is periodic: |k| should stay within N / 2, beyond it are aliases.
    Each sample is a sum of its own and so the same for any number of threads, except for the threaded FFT: one thread gives the same bytes.
    Source: Barnett, Magland & af Klinteberg 2019 (FINUFFT), type 2.
    """
    box = volume.shape[0]
    view = torch.stack([kx, ky, torch.zeros_like(kx)], dim=-1).to(torch.float64)
    # rows q^T A = (A^T q)^T; the plan's axes follow the array's, hence z, y, x
    coordinates = (2 * math.pi / box) * (view @ rotations.detach().cpu().to(torch.float64))
    double = volume.dtype == torch.float64
    points = coordinates.reshape(-1, 3).numpy().astype(np.float64 if double else np.float32)
    x, y, z = (np.ascontiguousarray(points[:, axis]) for axis in range(3))
    grid = volume.detach().cpu().numpy().astype(np.complex128 if double else np.complex64)
    samples = finufft.nufft3d2(z, y, x, grid, eps=1e-12 if double else 1e-6, isign=-1, nthreads=threads)
    return torch.from_numpy(np.asarray(samples)).reshape(rotations.shape[0], kx.shape[0])
