"""Between densities and their transforms on padded grids: the box twice as wide, and the transform
of the (bi-, tri-)linear kernel, by which grids are read and written, divided out.

One axis at a time, each padded just before and cropped just after its own transform: far less work
than a transform of the padded box. A few planes at a time: what is held beside input and result is
one array, padded in no direction.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from halfmap.arrays import takes_arrays

PADDING = 2
# complex, 32 MB: what a transform along one axis takes, and again each of its few copies
CELLS_AT_ONCE = 1 << 22


def _kernel_transform(box: int, device: torch.device | str) -> Float[Tensor, " N"]:
    return torch.sinc((torch.arange(box, device=device) - box // 2) / (PADDING * box)) ** 2


def gridding_correction(
    box: int, dimensions: int, *, device: torch.device | str = "cpu"
) -> Float[Tensor, "..."]:
    """Transform of the (bi-, tri-)linear kernel, `prod_axes sinc^2(n / (padding N))`, on the box in
    real space."""
    axis = _kernel_transform(box, device)
    product = axis
    for _ in range(dimensions - 1):
        product = product[..., None] * axis
    return product


def padded_transform(
    density: Float[Tensor, "*box"], reach: int, *, out: Complex[Tensor, "*grid"]
) -> None:
    """Transform of a density over the kernel's transform, its centre N // 2 at the origin, in a box
    padded `PADDING` times: frequencies -reach..reach (0..reach along x) written into `out`."""
    box, n = density.shape[-1], 2 * reach + 1
    size, middle = PADDING * box, box // 2
    axis = _kernel_transform(box, density.device)

    def along_x_and_y(rows: Tensor, outer: Tensor) -> Tensor:
        corrected = rows / (outer * (axis[:, None] * axis))
        x = torch.fft.rfft(_spread(corrected, -1, middle, size), dim=-1)[..., : reach + 1]
        return _gather(torch.fft.fft(_spread(x, -2, middle, size), dim=-2), -2, reach, n)

    if density.ndim == 2:
        out.copy_(along_x_and_y(density, axis.new_ones(())))
        return
    planes = out.new_empty(box, n, reach + 1)
    for z in pieces(box, size * box):
        planes[z] = along_x_and_y(density[z], axis[z, None, None])
    for y in pieces(n, size * (reach + 1)):
        along_z = torch.fft.fft(_spread(planes[:, y], 0, middle, size), dim=0)
        out[:, y] = _gather(along_z, 0, reach, n)


@takes_arrays
def grid_to_density(
    grid: Complex[Tensor, "Z Y X"], box: int, dimensions: int, *, interpolated: float = 0.0
) -> Float[Tensor, "*box"]:
    """Inverse transform of one padded half-grid, cropped to the box, the interpolation kernel's
    transform divided out; of the share `interpolated`, once more."""
    return density_of_rows(
        lambda rows: grid[:, rows], grid.shape, box, dimensions, interpolated=interpolated
    )


def density_of_rows(
    rows_of: Callable[[slice], Complex[Tensor, "Z y X"]],
    shape: tuple[int, int, int] | torch.Size,
    box: int,
    dimensions: int,
    *,
    interpolated: float = 0.0,
) -> Float[Tensor, "*box"]:
    """`grid_to_density` of a grid of which `rows_of` gives a few rows (along y) at a time."""
    size = PADDING * box
    centre, reach = (shape[1] - 1) // 2, min(shape[2] - 1, (size - 1) // 2)
    first, n = centre - reach, 2 * reach + 1
    inner = slice(first, first + n)

    def along_y_and_x(rows: Tensor) -> Tensor:
        y = torch.fft.ifft(_spread(rows, -2, reach, size), dim=-2)
        y = _gather(y, -2, box // 2, box)
        return _gather(torch.fft.irfft(y, n=size, dim=-1), -1, box // 2, box)

    if dimensions == 2:
        density = along_y_and_x(rows_of(inner)[0, :, : reach + 1])
        once = gridding_correction(box, 2, device=density.device)
        return density / _correction(once, interpolated)
    planes: Tensor | None = None
    for y in pieces(n, size * (reach + 1)):
        rows = rows_of(slice(first + y.start, first + y.stop))[inner, :, : reach + 1]
        if planes is None:
            planes = rows.new_empty(box, n, reach + 1)
        along_z = torch.fft.ifft(_spread(rows, 0, reach, size), dim=0)
        planes[:, y] = _gather(along_z, 0, box // 2, box)
    assert planes is not None
    axis = _kernel_transform(box, planes.device)
    density = planes.real.new_empty(box, box, box)
    for z in pieces(box, size * (reach + 1)):
        once = axis[z, None, None] * axis[:, None] * axis
        torch.div(along_y_and_x(planes[z]), _correction(once, interpolated), out=density[z])
    return density


def _correction(once: Tensor, interpolated: float) -> Tensor:
    return once * (1 - interpolated + interpolated * once) if interpolated else once


def pieces(n: int, cells_each: int, at_once: int = CELLS_AT_ONCE) -> Iterator[slice]:
    """Consecutive parts of n planes that hold no more cells than may be held `at_once`."""
    step = max(1, at_once // max(1, cells_each))
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def _spread(array: Tensor, axis: int, centre: int, size: int) -> Tensor:
    """The array along one axis of `size` zeros, its element `centre` at 0 and those before it at
    the end, as FFTs order things."""
    axis %= array.ndim
    n = array.shape[axis]
    out = array.new_zeros([size if a == axis else m for a, m in enumerate(array.shape)])
    out.narrow(axis, 0, n - centre).copy_(array.narrow(axis, centre, n - centre))
    out.narrow(axis, size - centre, centre).copy_(array.narrow(axis, 0, centre))
    return out


def _gather(array: Tensor, axis: int, centre: int, n: int) -> Tensor:
    """The inverse of `_spread`: n elements of which `centre` is the array's element 0."""
    axis %= array.ndim
    return torch.cat(
        [array.narrow(axis, array.shape[axis] - centre, centre), array.narrow(axis, 0, n - centre)],
        axis,
    )
