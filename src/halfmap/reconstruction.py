"""M-step: the two sums -> class images or volumes.

`sum Gamma P^T S^-1 C X / sigma^2` and `sum Gamma P^T C^2 / sigma^2` come in on padded Fourier grids
(`projection.Sums`, mates added); every update is a quotient of them, shell by shell regularised,
and an inverse transform.
"""

from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.arrays import takes_arrays
from halfmap.projection import PADDING, Sums, grid_to_density


def grid_shells(sums: Sums) -> Int[Tensor, "Z Y X"]:
    """round(|k|) in unpadded Fourier pixels for each cell of the grids, at most radius + 1."""
    return _grid_shells(tuple(sums.den.shape[1:]), sums.dimensions, sums.radius, sums.den.device)


@lru_cache(maxsize=2)
def _grid_shells(
    shape: tuple[int, int, int], dimensions: int, radius: int, device: torch.device
) -> Int[Tensor, "Z Y X"]:
    nz, ny, nx = shape
    z = (
        (torch.arange(nz, device=device) - (nz - 1) // 2).float()
        if dimensions == 3
        else torch.zeros(nz, device=device)
    )
    y, x = (
        (torch.arange(ny, device=device) - (ny - 1) // 2).float(),
        torch.arange(nx, device=device).float(),
    )
    r = (z[:, None, None] ** 2 + (y**2)[:, None] + x**2).sqrt_().div_(PADDING).round_()
    return r.clamp_(max=radius + 1).int()


def shell_weight(sums: Sums) -> Float[Tensor, "K S"]:
    """Mean of den over each shell 0..radius: how many (CTF^2 / sigma^2 weighted) observations a
    Fourier cell received.

    In 2D only the plane z = 0 is counted. Multiplicity of the cells that stand for a mate is
    neglected: it does not change a mean by shell.
    """
    planes = slice(None) if sums.dimensions == 3 else slice(0, 1)
    index = grid_shells(sums)[planes].reshape(-1)
    n = sums.radius + 2  # the last collects what lies outside
    count = torch.bincount(index, minlength=n).clamp(min=1)
    totals = [
        torch.bincount(index, weights=den[planes].reshape(-1), minlength=n) for den in sums.den
    ]
    return (torch.stack(totals) / count)[:, :-1].to(sums.den.dtype)


@takes_arrays
def wiener_update(sums: Sums, constant: Float[Tensor, "K S"]) -> Float[Tensor, "K *box"]:
    """`A = num / (k(s) + den)` on every shell s up to the sums' radius, and zero beyond; one k(s)
    per class.

    Lecture, "Image restoration when spectral SNR is known": with num and den carrying 1/sigma^2,
    `k(s)` is `1 / (sigma^2 SSNR)`, or any constant (`constant_regulariser`, `ssnr_regulariser`).
    """
    shells = grid_shells(sums)
    volumes = []
    for k in range(len(sums.den)):
        table = torch.cat(
            [constant[k].to(sums.den), sums.den.new_tensor([torch.inf])]
        )  # nothing is left beyond the radius
        weight = table.index_select(0, shells.reshape(-1)).view(shells.shape).add_(sums.den[k])
        # an empty cell under k = 0 has num = 0 as well: leave it 0
        volumes.append(
            grid_to_density(
                sums.num[k] / weight.clamp_(min=torch.finfo(weight.dtype).tiny),
                sums.box,
                sums.dimensions,
            )
        )
    return torch.stack(volumes)


def unregularised(sums: Sums) -> Float[Tensor, "K *box"]:
    """`num / den` with a floor of a thousandth of the shell's mean weight: half maps for the FSC,
    to be filtered by nobody yet."""
    return wiener_update(sums, 1e-3 * shell_weight(sums) + torch.finfo(torch.float32).tiny)


@takes_arrays
def ssnr_regulariser(sums: Sums, ssnr: Float[Tensor, "K S"]) -> Float[Tensor, "K S"]:
    """`k(s) = <den>(s) / SSNR(s)`, with SSNR that of the reconstruction made from these sums.

    A cell of mean weight is multiplied by SSNR / (1 + SSNR), the Wiener filter; a cell seen less
    often is trusted less.
    """
    return shell_weight(sums) / ssnr.to(sums.den.device).clamp(min=1e-6)


@takes_arrays
def constant_regulariser(
    sums: Sums, constant: float, inverse_noise: Float[Tensor, " S"]
) -> Float[Tensor, "K S"]:
    """The lecture's constant k of `num / (k + sum C^2)`: `k <1/sigma^2>(s)`, since num and den
    carry 1/sigma^2."""
    return (constant * inverse_noise).expand(len(sums.den), -1)
