"""M-step: the two sums -> class images or volumes.

`sum Gamma P^T S^-1 C X / sigma^2` and `sum Gamma P^T C^2 / sigma^2` come in on padded Fourier grids
(`projection.Sums`, mates added); every update is a quotient of them, shell by shell regularised,
and an inverse transform.
"""

from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.arrays import takes_arrays
from halfmap.gridding import PADDING, density_of_rows, pieces
from halfmap.projection import Sums

# of a shell's mean: the last bits of a sum depend on where it is cut
CELLS_COUNTED_AT_ONCE = 1 << 24


def grid_shells(sums: Sums, rows: slice = slice(None)) -> Int[Tensor, "Z y X"]:
    """round(|k|) in unpadded Fourier pixels for each cell of the grids, at most radius + 1; of all
    rows (along y), or some."""
    nz, ny, nx = sums.den.shape[1:]
    device = sums.den.device
    z = torch.arange(nz, device=device).float() - (nz - 1) // 2
    if sums.dimensions == 2:
        z = torch.zeros_like(z)
    y = torch.arange(ny, device=device)[rows].float() - (ny - 1) // 2
    x = torch.arange(nx, device=device).float()
    r = (z[:, None, None] ** 2 + (y**2)[:, None] + x**2).sqrt_().div_(PADDING).round_()
    return r.clamp_(max=sums.radius + 1).int()


def shell_weight(sums: Sums) -> Float[Tensor, "K S"]:
    """Mean of den over each shell 0..radius: how many (CTF^2 / sigma^2 weighted) observations a
    Fourier cell received.

    In 2D only the plane z = 0 is counted. Multiplicity of the cells that stand for a mate is
    neglected: it does not change a mean by shell.

    >>> from halfmap.projection import empty_sums
    >>> sums = empty_sums(1, 8, 2, 2)
    >>> sums.den[:] = 5.0
    >>> shell_weight(sums)
    tensor([[5., 5., 5.]])
    """
    planes = slice(None) if sums.dimensions == 3 else slice(0, 1)
    n, (nz, ny, nx) = sums.radius + 2, sums.den.shape[1:]  # the last collects what lies outside
    count = torch.zeros(n, dtype=torch.long, device=sums.den.device)
    totals = torch.zeros(len(sums.den), n, dtype=torch.float64, device=sums.den.device)
    for rows in pieces(ny, nz * nx, CELLS_COUNTED_AT_ONCE):
        index = grid_shells(sums, rows)[planes].reshape(-1)
        count += torch.bincount(index, minlength=n)
        for total, den in zip(totals, sums.den, strict=True):
            total += torch.bincount(index, weights=den[planes, rows].reshape(-1), minlength=n)
    return (totals / count.clamp(min=1))[:, :-1].to(sums.den.dtype)


@takes_arrays
def wiener_update(
    sums: Sums, constant: Float[Tensor, "K S"], *, box: int | None = None
) -> Float[Tensor, "K *box"]:
    """`A = num / (k(s) + den)` on every shell s up to the sums' radius, and zero beyond; one k(s)
    per class. On a coarser `box` than the images' the same densities are sampled more coarsely:
    nothing is lost where it holds every shell of the sums.

    >>> from halfmap.projection import empty_sums
    >>> sums = empty_sums(1, 16, 5, 3)
    >>> sums.num[:], sums.den[:] = 2.0, 3.0
    >>> k = torch.ones(1, 6)  # of one class, shells 0 to 5
    >>> torch.allclose(wiener_update(sums, 5 * k), wiener_update(sums, k) / 2)  # 2 / 8, 2 / 4
    True

    Lecture, "Image restoration when spectral SNR is known": with num and den carrying 1/sigma^2,
    `k(s)` is `1 / (sigma^2 SSNR)`, or any constant (`constant_regulariser`, `ssnr_regulariser`).
    """
    out = box or sums.box

    def rows_of(k: int, rows: slice) -> Tensor:
        # nothing is left beyond the radius
        table = torch.cat([constant[k].to(sums.den), sums.den.new_tensor([torch.inf])])
        shells = grid_shells(sums, rows)
        weight = table.index_select(0, shells.reshape(-1)).view(shells.shape)
        weight.add_(sums.den[k][:, rows])
        # an empty cell under k = 0 has num = 0 as well: leave it 0
        return sums.num[k][:, rows] / weight.clamp_(min=torch.finfo(weight.dtype).tiny)

    shape, scale = sums.den.shape[1:], (out / sums.box) ** sums.dimensions
    densities = sums.den.new_empty(len(sums.den), *([out] * sums.dimensions))
    for k in range(len(densities)):
        densities[k] = density_of_rows(
            partial(rows_of, k), shape, out, sums.dimensions, interpolated=sums.interpolated
        )
    return densities if scale == 1 else densities.mul_(scale)


def unregularised(sums: Sums, *, box: int | None = None) -> Float[Tensor, "K *box"]:
    """`num / den` with a floor of a thousandth of the shell's mean weight: half maps for the FSC,
    to be filtered by nobody yet.

    >>> from halfmap.projection import empty_sums
    >>> unregularised(empty_sums(1, 8, 2, 3)).shape
    torch.Size([1, 8, 8, 8])
    """
    floor = 1e-3 * shell_weight(sums) + torch.finfo(torch.float32).tiny
    return wiener_update(sums, floor, box=box)


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
