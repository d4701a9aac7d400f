"""Plain torch versions of the kernels: what they compute, on any device."""

import torch
from torch import Tensor

_SAMPLES_AT_ONCE = 16_000_000  # of entries: they take about 40 bytes each on the way


def _corners(
    grid: Tensor, rotations: Tensor, kx: Tensor, ky: Tensor, padding: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Flat index (M, J) of the lower corner, its three trilinear fractions (M, J, 3), and where x
    was negative (M, J)."""
    view = torch.stack([kx, ky], -1).to(rotations.dtype)
    position = padding * torch.einsum(
        "ja,mai->mji", view, rotations[:, :2]
    )  # A^T (kx, ky, 0), components x, y, z
    flipped = position[..., 0] < 0
    position = torch.where(flipped[..., None], -position, position)
    lower = position.floor()
    _, nz, ny, nx = grid.shape[:4]
    ix, iy, iz = lower.long().unbind(-1)
    index = ((iz + (nz - 1) // 2) * ny + iy + (ny - 1) // 2) * nx + ix
    return index, position - lower, flipped


def _strides(grid: Tensor) -> list[tuple[int, int, int, int]]:
    """(dx, dy, dz, flat offset) of the eight corners."""
    _, _, ny, nx = grid.shape[:4]
    return [
        (dx, dy, dz, (dz * ny + dy) * nx + dx) for dz in (0, 1) for dy in (0, 1) for dx in (0, 1)
    ]


def _weight(fraction: Tensor, dx: int, dy: int, dz: int) -> Tensor:
    x, y, z = (
        fraction[..., axis] if upper else 1 - fraction[..., axis]
        for axis, upper in enumerate((dx, dy, dz))
    )
    return x * y * z


def slices(
    grid: Tensor, rotations: Tensor, classes: Tensor, kx: Tensor, ky: Tensor, padding: float
) -> Tensor:
    """Trilinear values (M, J) of complex grid[classes[m]] at `padding * rotations[m]^T (kx_j, ky_j,
    0)`."""
    index, fraction, flipped = _corners(grid, rotations, kx, ky, padding)
    flat = grid.reshape(-1)
    base = classes[:, None] * grid[0].numel()
    value = sum(
        (
            _weight(fraction, x, y, z) * flat[base + index + step]
            for x, y, z, step in _strides(grid)
        ),
        torch.zeros_like(flat[:1]),
    )
    return torch.where(flipped, value.conj(), value)


def insert(
    num: Tensor,
    den: Tensor,
    values: Tensor,
    weights: Tensor,
    rotations: Tensor,
    classes: Tensor,
    kx: Tensor,
    ky: Tensor,
    padding: float,
) -> None:
    """Adjoint of `slices`, in place: num (complex) and den gather values and weights with the
    trilinear weights."""
    index, fraction, flipped = _corners(num, rotations, kx, ky, padding)
    values = torch.where(flipped, values.conj(), values)
    index = index + classes[:, None] * num[0].numel()
    for x, y, z, step in _strides(num):
        corner = _weight(fraction, x, y, z)
        num.view(-1).index_add_(0, (index + step).reshape(-1), (corner * values).reshape(-1))
        den.view(-1).index_add_(0, (index + step).reshape(-1), (corner * weights).reshape(-1))


def symmetrised(
    grid: Tensor, rotations: Tensor, shifts: Tensor, turn: float, reach: float, z: Tensor
) -> Tensor:
    """Planes z of `sum_g exp(i turn S_g k . t_g) grid(S_g k)`, k within `reach`, the grid's values
    trilinear between its cells; real grids have no phases."""
    _, nz, ny, nx = grid.shape
    axes = z, torch.arange(ny, device=z.device) - (ny - 1) // 2, torch.arange(nx, device=z.device)
    kz, ky, kx = torch.meshgrid(*axes, indexing="ij")
    k = torch.stack([kx, ky, kz], -1).to(rotations.dtype)
    inside = k.square().sum(-1) <= reach**2
    k, flat = k[inside], grid.flatten(1)
    total = flat.new_zeros(len(grid), len(k))
    for s, t in zip(rotations, shifts, strict=True):
        position = k @ s.T
        flipped = position[:, 0] < 0
        upright = torch.where(flipped[:, None], -position, position)
        lower = upright.floor()
        ix, iy, iz = lower.long().unbind(-1)
        index = ((iz + (nz - 1) // 2) * ny + iy + (ny - 1) // 2) * nx + ix
        value = sum(
            (
                _weight(upright - lower, dx, dy, dz) * flat[:, index + step]
                for dx, dy, dz, step in _strides(grid)
            ),
            torch.zeros_like(flat[:, :1]),
        )
        if grid.is_complex():
            value = torch.where(flipped, value.conj(), value)
            angle = turn * (position @ t)
            value = value * torch.polar(torch.ones_like(angle), angle)
        total = total + value
    out = grid.new_zeros(len(grid), *inside.shape)
    out[:, inside] = total
    return out


def gather(
    data: Tensor,
    power: Tensor,
    images: Tensor,
    shifts: Tensor,
    entry_weights: Tensor,
    starts: Tensor,
    kx: Tensor,
    ky: Tensor,
    box: int,
) -> tuple[Tensor, Tensor]:
    """Values (R, J) `sum_e w_e S_t^-1 data[images[e]]` and weights (R, J) `sum_e w_e
    power[images[e]]` over the entries e of each r, which are starts[r]:starts[r + 1]; `S_t^-1`
    multiplies by `exp(-2 pi i k.t / N)`."""
    target = torch.repeat_interleave(
        torch.arange(len(starts) - 1, device=data.device), starts.diff()
    )
    values = data.new_zeros(len(starts) - 1, data.shape[1])
    weights = power.new_zeros(len(starts) - 1, power.shape[1])
    for part in torch.arange(len(images), device=data.device).split(
        max(1, _SAMPLES_AT_ONCE // len(kx))
    ):
        weight, own = entry_weights[part, None], images[part]
        angle = shifts[part] @ torch.stack([kx, ky]) * (-2 * torch.pi / box)
        values.index_add_(0, target[part], torch.polar(weight.expand_as(angle), angle) * data[own])
        weights.index_add_(0, target[part], weight * power[own])
    return values, weights


def pose_scores(
    grid: Tensor,
    rotations: Tensor,
    shifts: Tensor,
    classes: Tensor,
    data: Tensor,
    power: Tensor,
    kx: Tensor,
    ky: Tensor,
    weight: Tensor,
    box: int,
    padding: float,
) -> Tensor:
    """a and b of `pose_equations` (M, 2), from the slices alone."""
    value = slices(grid, rotations, classes, kx, ky, padding)
    centred = weight * data * _shift_phases(shifts, kx, ky, box)
    return torch.stack(
        [
            (centred.conj() * value).real.sum(-1),
            (weight * power * value.abs() ** 2).sum(-1),
        ],
        -1,
    )


def _shift_phases(shifts: Tensor, kx: Tensor, ky: Tensor, box: int) -> Tensor:
    """exp(-2 pi i k.t / N) of each shift, by which an image is centred."""
    angle = -2 * torch.pi / box * (shifts[:, :1] * kx + shifts[:, 1:] * ky)
    return torch.polar(torch.ones_like(angle), angle)


def pose_equations(
    grid: Tensor,
    rotations: Tensor,
    shifts: Tensor,
    classes: Tensor,
    data: Tensor,
    power: Tensor,
    kx: Tensor,
    ky: Tensor,
    weight: Tensor,
    box: int,
    padding: float,
) -> Tensor:
    """Sums (M, 27) of a Gauss-Newton step for poses m; data `d = C X / sigma^2` and power `p = C^2
    / sigma^2` are each pose's own rows.

    With R the slice, D_a its derivative by parameter a (rotation vector in the view frame, radians:
    x, y, z; shift in pixels: x, y), `d'` the data centred by the shift, and w the half-plane
    weights:

        [0]     a    = sum w Re(conj(d') R)          [1]     b    = sum w p |R|^2
        [2:7]   u_a  = sum w Re(conj(d') D_a)        [7:12]  h_a  = sum w p Re(conj(R) D_a)
        [12:27] G_ab = sum w p Re(conj(D_a) D_b),  a <= b, row by row
    """
    index, fraction, flipped = _corners(grid, rotations, kx, ky, padding)
    flat = grid.reshape(-1)
    base = classes[:, None] * grid[0].numel()
    value = torch.zeros_like(index, dtype=grid.dtype)
    gradient = torch.zeros(*index.shape, 3, dtype=grid.dtype, device=grid.device)
    for x, y, z, step in _strides(grid):
        corner = flat[base + index + step]
        value = value + _weight(fraction, x, y, z) * corner
        along = [(x, 0), (y, 1), (z, 2)]
        for upper, axis in along:  # the weight of the other two axes
            others = [
                fraction[..., other] if up else 1 - fraction[..., other]
                for up, other in along
                if other != axis
            ]
            gradient[..., axis] += (1 if upper else -1) * others[0] * others[1] * corner
    value = torch.where(flipped, value.conj(), value)
    gradient = torch.where(flipped[..., None], -gradient.conj(), gradient)
    view = padding * torch.einsum("mai,mji->mja", rotations.to(grid.dtype), gradient)
    turn = 2 * torch.pi / box
    derivative = torch.stack(
        [
            -ky * view[..., 2],
            kx * view[..., 2],
            ky * view[..., 0] - kx * view[..., 1],
            1j * turn * kx * value,
            1j * turn * ky * value,
        ],
        1,
    )
    if grid.shape[1] == 2:  # a class image does not turn out of its plane
        derivative[:, :2] = 0
    centred = weight * data * _shift_phases(shifts, kx, ky, box)
    weighted = weight * power
    triangle = torch.triu_indices(5, 5, device=grid.device)
    gram = torch.einsum(
        "mj,maj,mbj->mab", weighted.to(grid.dtype), derivative.conj(), derivative
    ).real
    return torch.cat(
        [
            (centred.conj() * value).real.sum(-1, keepdim=True),
            (weighted * value.abs() ** 2).sum(-1, keepdim=True),
            torch.einsum("mj,maj->ma", centred.conj(), derivative).real,
            torch.einsum("mj,maj->ma", (weighted * value.conj()), derivative).real,
            gram[:, triangle[0], triangle[1]],
        ],
        -1,
    )
