"""M-step: the two sums -> class images or volumes.

`sum Gamma P^T S^-1 C X / sigma^2` and `sum Gamma P^T C^2 / sigma^2` come in on padded Fourier grids (`projection.Sums`, mates added); every
update is a quotient of them, shell by shell regularised, and an inverse transform.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.projection import PADDING, Sums, grid_to_density


def grid_shells(sums: Sums) -> Int[Tensor, "Z Y X"]:
    """round(|k|) in unpadded Fourier pixels for each cell of the grids."""
    _, nz, ny, nx = sums.den.shape
    device = sums.den.device
    z = torch.arange(nz, device=device) - (nz - 1) // 2 if sums.dimensions == 3 else torch.full((nz,), 0, device=device)
    y, x = torch.arange(ny, device=device) - (ny - 1) // 2, torch.arange(nx, device=device)
    r2 = z[:, None, None].float() ** 2 + y[None, :, None].float() ** 2 + x[None, None, :].float() ** 2
    return (r2.sqrt() / PADDING).round().long()


def shell_weight(sums: Sums) -> Float[Tensor, "K S"]:
    """Mean of den over each shell 0..radius: how many (CTF^2 / sigma^2 weighted) observations a Fourier cell received.

    In 2D only the plane z = 0 is counted. Multiplicity of the cells that stand for a mate is neglected: it does not change a mean by shell.
    """
    shells = grid_shells(sums)
    den = sums.den
    if sums.dimensions == 2:
        shells, den = shells[:1], den[:, :1]
    inside = (shells <= sums.radius).reshape(-1)
    index = shells.reshape(-1)[inside]
    values = den.reshape(len(den), -1)[:, inside]
    n = sums.radius + 1
    total = values.new_zeros(len(den), n).index_add_(1, index, values)
    count = values.new_zeros(n).index_add_(0, index, torch.ones_like(index, dtype=values.dtype))
    return total / count.clamp(min=1)


def wiener_update(sums: Sums, constant: Float[Tensor, "K S"]) -> Float[Tensor, "K *box"]:
    """`A = num / (k(s) + den)` on every shell s up to the sums' radius, and zero beyond; one k(s) per class.

    Lecture, "Image restoration when spectral SNR is known": with num and den carrying 1/sigma^2, `k(s)` is `1 / (sigma^2 SSNR)`, or any
    constant (`constant_regulariser`, `ssnr_regulariser`).
    """
    shells = grid_shells(sums)
    outside = shells > sums.radius
    volumes = []
    for k in range(len(sums.den)):
        table = torch.cat([constant[k].to(sums.den.dtype), sums.den.new_ones(1)])
        weight = sums.den[k] + table[shells.clamp(max=sums.radius + 1)]
        # an empty cell under k = 0 has num = 0 as well: leave it 0
        grid = torch.where(outside | (weight <= 0), 0, sums.num[k] / weight.clamp(min=torch.finfo(weight.dtype).tiny))
        volumes.append(grid_to_density(grid, sums.box, sums.dimensions))
    return torch.stack(volumes)


def unregularised(sums: Sums) -> Float[Tensor, "K *box"]:
    """`num / den` with a floor of a thousandth of the shell's mean weight: half maps for the FSC, to be filtered by nobody yet."""
    return wiener_update(sums, 1e-3 * shell_weight(sums) + torch.finfo(torch.float32).tiny)


def ssnr_regulariser(sums: Sums, ssnr: Float[Tensor, "K S"]) -> Float[Tensor, "K S"]:
    """`k(s) = <den>(s) / SSNR(s)`, with SSNR that of the reconstruction made from these sums.

    A cell of mean weight is multiplied by SSNR / (1 + SSNR), the Wiener filter; a cell seen less often is trusted less.
    """
    return shell_weight(sums) / ssnr.clamp(min=1e-6)


def constant_regulariser(sums: Sums, constant: float, inverse_noise: Float[Tensor, " S"]) -> Float[Tensor, "K S"]:
    """The lecture's constant k of `num / (k + sum C^2)`: `k <1/sigma^2>(s)`, since num and den carry 1/sigma^2."""
    return (constant * inverse_noise).expand(len(sums.den), -1)
