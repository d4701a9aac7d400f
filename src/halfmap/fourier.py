"""Fourier half-planes, shells, low-pass filters: the grid on which images and references meet.

Transforms are unnormalised forward transforms of arrays whose centre is pixel N // 2:
`F(k) = sum_n f(n) exp(-2 pi i k.(n - N//2) / N)`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from halfmap.arrays import takes_arrays
from halfmap.errors import InputError


@dataclass(frozen=True)
class HalfPlane:
    """The J integer frequencies of one half of an N x N transform inside a radius, sorted by |k|;
    sample 0 is k = 0.

    A lower resolution is a prefix: `plane.size(r)` samples lie in shells 0..r, where shell =
    round(|k|). `hermitian_weight` is 1 for k = 0 and 2 elsewhere: the half-plane sum with it equals
    the sum over the whole plane.
    """

    box: int
    radius: int
    kx: Int[Tensor, " J"]
    ky: Int[Tensor, " J"]
    shell: Int[Tensor, " J"]
    hermitian_weight: Float[Tensor, " J"]
    shell_sizes: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.kx)

    def size(self, radius: int) -> int:
        """Number of samples in shells 0..radius."""
        return self.shell_sizes[min(radius, self.radius)]

    def frequencies(
        self, pixel_size_angstrom: float
    ) -> tuple[Float[Tensor, " J"], Float[Tensor, " J"]]:
        """(kx, ky) in 1/Angstrom."""
        scale = 1.0 / (self.box * pixel_size_angstrom)
        return self.kx * scale, self.ky * scale


def largest_radius(box: int) -> int:
    """Last shell whose every sample, and its neighbours on a padded grid, stay clear of Nyquist, as
    projections need: N // 2 - 1."""
    return box // 2 - 1


@lru_cache(maxsize=32)
def half_plane(box: int, radius: int, device: torch.device | str = "cpu") -> HalfPlane:
    """Frequencies with `kx > 0, or kx = 0 and ky >= 0`, and `round(|k|) <= radius <= (N - 1) // 2`,
    sorted by |k|.

    >>> plane = half_plane(32, 10)  # of a box of 32 pixels, up to shell 10
    >>> plane.radius, int(plane.shell[0]), int(plane.shell[-1])
    (10, 0, 10)
    """
    limit = (box - 1) // 2
    if not 1 <= radius <= limit:
        raise InputError(
            f"radius: expected 1 to {limit} Fourier pixels for a box of {box}, got {radius}"
        )
    axis = torch.arange(-radius, radius + 1)
    ky, kx = torch.meshgrid(axis, axis[radius:], indexing="ij")
    ky, kx = ky.reshape(-1), kx.reshape(-1)
    shell = torch.sqrt((kx**2 + ky**2).double()).round().long()
    keep = (shell <= radius) & ((kx > 0) | (ky >= 0))
    kx, ky, shell = kx[keep], ky[keep], shell[keep]
    # by shell, then by angle, so that a prefix is a disc and neighbours in memory are neighbours in
    # the plane
    order = torch.argsort(shell.double() * 10 + torch.atan2(ky.double(), kx.double()), stable=True)
    kx, ky, shell = kx[order], ky[order], shell[order]
    weight = torch.full((len(kx),), 2.0)
    weight[0] = 1.0
    sizes = torch.cumsum(torch.bincount(shell, minlength=radius + 1), 0)
    return HalfPlane(
        box,
        radius,
        kx.to(device),
        ky.to(device),
        shell.to(device),
        weight.to(device),
        tuple(int(s) for s in sizes),
    )


@takes_arrays
def fourier_transform(images: Float[Tensor, "B N N"], plane: HalfPlane) -> Complex[Tensor, "B J"]:
    """Samples of each image's centred transform on a half-plane.

    >>> images = torch.rand(5, 32, 32)
    >>> samples = fourier_transform(images, half_plane(32, 10))
    >>> torch.allclose(samples[:, 0].real, images.sum((1, 2)))  # sample 0 is k = 0
    True
    """
    if images.shape[-1] != plane.box:
        raise InputError(f"images: expected a box of {plane.box} pixels, got {images.shape[-1]}")
    transform = torch.fft.rfft2(images)
    samples = transform.flatten(1).index_select(
        1, (plane.ky % plane.box) * transform.shape[-1] + plane.kx
    )
    # the centre is brought to 0 by a phase on J samples: less work than moving N^2 pixels
    angle = ((plane.kx + plane.ky) * (plane.box // 2) % plane.box) * (2 * torch.pi / plane.box)
    return samples.mul_(torch.polar(torch.ones_like(angle), angle))


@takes_arrays
def inverse_fourier_transform(
    samples: Complex[Tensor, "B J"], plane: HalfPlane
) -> Float[Tensor, "B N N"]:
    """Images whose transform is `samples` on the half-plane (and its conjugate mates) and zero
    elsewhere.

    >>> plane = half_plane(32, 10)
    >>> images = inverse_fourier_transform(fourier_transform(torch.rand(5, 32, 32), plane), plane)
    >>> images.shape  # band-limited now: once more changes nothing
    torch.Size([5, 32, 32])
    >>> again = inverse_fourier_transform(fourier_transform(images, plane), plane)
    >>> torch.allclose(again, images, atol=1e-5)
    True
    """
    n = plane.box
    transform = samples.new_zeros(len(samples), n, n // 2 + 1)
    transform[:, plane.ky % n, plane.kx] = samples
    on_axis = plane.kx == 0  # irfft2 reads both halves of the column kx = 0
    transform[:, (-plane.ky[on_axis]) % n, 0] = samples[:, on_axis].conj()
    return torch.fft.fftshift(torch.fft.irfft2(transform, s=(n, n)), dim=(-2, -1))


@takes_arrays
def shift_phases(shift_px: Float[Tensor, "*T 2"], plane: HalfPlane) -> Complex[Tensor, "*T J"]:
    """`exp(-2 pi i k.t / N)`: multiplying a transform by it moves the image by t = (x, y)
    pixels.

    >>> plane = half_plane(32, 15)
    >>> spot = torch.zeros(1, 32, 32)
    >>> spot[0, 16, 16] = 1
    >>> moved = fourier_transform(spot, plane) * shift_phases(torch.tensor([[3.0, -2.0]]), plane)
    >>> divmod(int(inverse_fourier_transform(moved, plane).argmax()), 32)  # y, x
    (14, 19)
    """
    k = torch.stack([plane.kx, plane.ky]).to(shift_px.dtype)
    angle = shift_px @ k * (-2 * torch.pi / plane.box)
    return torch.polar(torch.ones_like(angle), angle)


def shell_index(
    box: int, dimensions: int, device: torch.device | str = "cpu"
) -> Int[Tensor, "..."]:
    """round(|k|) on the rfftn layout of an N^d box."""
    return torch.cat([shells for _, shells in shell_planes(box, dimensions, device=device)])


def shell_planes(
    box: int, dimensions: int, device: torch.device | str = "cpu"
) -> Iterator[tuple[slice, Int[Tensor, "rows ..."]]]:
    """`shell_index` plane by plane of a volume, with the place of the plane along the first axis;
    of an image all at once."""
    shell = _lengths(box, dimensions, device).round().long()
    for rows, square in _squared_lengths(box, dimensions, device):
        yield rows, shell[square]


def _squared_lengths(
    box: int, dimensions: int, device: torch.device | str
) -> Iterator[tuple[slice, Int[Tensor, "rows ..."]]]:
    """|k|^2, whole numbers, on the rfftn layout, plane by plane of a volume."""
    full = torch.fft.fftfreq(box, 1.0 / box, device=device).round().long().square()
    plane = full[:, None] + torch.arange(box // 2 + 1, device=device).square()
    if dimensions == 2:
        yield slice(None), plane
        return
    for z, square in enumerate(full):
        yield slice(z, z + 1), square + plane[None]


def _lengths(box: int, dimensions: int, device: torch.device | str) -> Float[Tensor, " squares"]:
    """|k| by its square, to be looked up."""
    largest = dimensions * (box // 2) ** 2
    return torch.arange(largest + 1, dtype=torch.float64, device=device).sqrt()


@takes_arrays
def shell_mean(
    values: Float[Tensor, "... J"], shell: Int[Tensor, " J"], n_shells: int
) -> Float[Tensor, "... S"]:
    """Mean over the samples of each shell; shells without samples get 0.

    >>> shell = torch.tensor([0, 1, 1, 3])
    >>> shell_mean(torch.tensor([1.0, 2.0, 4.0, 5.0]), shell, 4)
    tensor([1., 3., 0., 5.])
    """
    total = values.new_zeros(*values.shape[:-1], n_shells).index_add_(-1, shell, values)
    count = values.new_zeros(n_shells).index_add_(
        0, shell, torch.ones_like(shell, dtype=values.dtype)
    )
    return total / count.clamp(min=1)


@takes_arrays
def filter_shells(
    density: Float[Tensor, "*b N N"] | Float[Tensor, "*b N N N"],
    gain: Float[Tensor, " S"],
    *,
    dimensions: int,
) -> Float[Tensor, "..."]:
    """Multiply the transform by a radial gain given per shell, interpolated linearly in |k|; beyond
    the last shell it is 0."""
    n = density.shape[-1]
    axes = tuple(range(-dimensions, 0))
    radius = _lengths(n, dimensions, density.device)
    table = torch.cat([gain.double(), gain.new_zeros(2).double()])
    low = radius.floor().clamp(max=len(gain)).long()
    fraction = (radius - low).clamp(max=1.0)
    factor = (table[low] * (1 - fraction) + table[low + 1] * fraction).to(density.dtype)
    transform = torch.fft.rfftn(density, dim=axes)
    for rows, square in _squared_lengths(n, dimensions, density.device):
        transform.narrow(-dimensions, rows.start or 0, len(square)).mul_(factor[square])
    return torch.fft.irfftn(transform, s=density.shape[-dimensions:], dim=axes)


@takes_arrays
def lowpass(
    density: Float[Tensor, "..."],
    resolution_angstrom: float,
    pixel_size_angstrom: float,
    *,
    dimensions: int,
) -> Float[Tensor, "..."]:
    """Low-pass filter at a resolution, with a raised-cosine edge two Fourier pixels to each side of
    it.

    >>> volume = torch.rand(32, 32, 32)
    >>> blurred = lowpass(volume, 40.0, 4.0, dimensions=3)  # at 40 A, of 4 A pixels
    >>> bool(blurred.std() < volume.std()), torch.allclose(blurred.mean(), volume.mean())
    (True, True)
    """
    n = density.shape[-1]
    cut = n * pixel_size_angstrom / resolution_angstrom
    radius = torch.arange(n // 2 + 1, dtype=torch.float64, device=density.device)
    edge = ((radius - cut) / 2).clamp(-1, 1)
    return filter_shells(
        density,
        (0.5 - 0.5 * torch.sin(edge * torch.pi / 2)).to(density.dtype),
        dimensions=dimensions,
    )
