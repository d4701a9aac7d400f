"""A small scene whose truth is known: exact projections of the phantom, with CTFs, shifts and
noise, as the E-step sees them."""

from dataclasses import dataclass

import pytest
import torch

from halfmap.fourier import HalfPlane, half_plane, shift_phases
from halfmap.likelihood import ImageTerms, image_terms
from halfmap.simulation.forward_model import exact_slices
from halfmap.simulation.phantom import phantom
from halfmap.so3 import random_rotations, rotation_2d
from halfmap.transfer_function import CTFParameters, ctf

BOX, PIXEL = 32, 6.0


@dataclass(frozen=True)
class Scene:
    """Images `C S_t P_phi A + N` of volumes, noise white; `terms` leave out the mean."""

    volumes: torch.Tensor  # (K, N, N, N), or (K, N, N) in 2D
    rotations: torch.Tensor
    shift_px: torch.Tensor
    classes: torch.Tensor
    plane: HalfPlane
    terms: ImageTerms


def exact_turned_copies(
    image: torch.Tensor, rotations: torch.Tensor, plane: HalfPlane
) -> torch.Tensor:
    """Transforms of turned copies of an image, by the sum over its pixels."""
    k = torch.stack([plane.kx, plane.ky], -1).double()
    q = torch.einsum("ja,mai->mji", k, rotations[:, :2, :2].double()) * (-2 * torch.pi / len(image))
    n = (torch.arange(len(image)) - len(image) // 2).double()
    ex, ey = (torch.polar(torch.ones((), dtype=torch.float64), q[..., i, None] * n) for i in (0, 1))
    return torch.einsum("mjy,yx,mjx->mj", ey, image.to(torch.complex128), ex).to(torch.complex64)


def in_plane(psi_deg: torch.Tensor) -> torch.Tensor:
    rotations = torch.eye(3).repeat(len(psi_deg), 1, 1)
    rotations[:, :2, :2] = rotation_2d(psi_deg).float()
    return rotations


def make_scene(
    volumes: torch.Tensor,
    n: int,
    *,
    snr: float = float("inf"),
    seed: int = 0,
    use_ctf: bool = True,
    shift_rms_px: float = 1.5,
) -> Scene:
    """n images of classes in turn. snr: variance of the noise-free image over variance of the
    noise, over all pixels."""
    generator = torch.Generator().manual_seed(seed)
    plane = half_plane(BOX, 15)
    three = volumes.ndim == 4
    rotations = (
        random_rotations(n, generator)
        if three
        else in_plane(360 * torch.rand(n, generator=generator))
    )
    shift_px = torch.randn(n, 2, generator=generator) * shift_rms_px / 2**0.5
    classes = torch.arange(n) % len(volumes)
    transforms = torch.zeros(n, len(plane), dtype=torch.complex64)
    for k, volume in enumerate(volumes):
        mine = classes == k
        slices = (
            exact_slices(volume, rotations[mine], plane.kx, plane.ky)
            if three
            else exact_turned_copies(volume, rotations[mine], plane)
        )
        transforms[mine] = slices
    transforms = transforms * shift_phases(-shift_px, plane)
    one, zero = torch.ones(n), torch.zeros(n)
    defocus, astigmatism = (
        8000 + 14000 * torch.rand(n, generator=generator),
        1000 * torch.rand(n, generator=generator),
    )
    angle = 180 * torch.rand(n, generator=generator)
    parameters = CTFParameters(
        defocus + astigmatism / 2,
        defocus - astigmatism / 2,
        angle,
        300 * one,
        2.7 * one,
        0.1 * one,
        zero,
        zero,
        one,
        zero,
        zero,
    )
    transfer = ctf(parameters, *plane.frequencies(PIXEL)) if use_ctf else torch.ones(n, len(plane))
    transforms = transfer * transforms
    power = (plane.hermitian_weight[1:] * transforms[:, 1:].abs() ** 2).sum(
        1
    ).mean() / BOX**2  # of a coefficient, mean over the box
    sigma2 = power / min(snr, 1e6)
    noise = torch.complex(
        torch.randn(n, len(plane), generator=generator),
        torch.randn(n, len(plane), generator=generator),
    )
    if snr < 1e6:
        transforms = transforms + noise * (sigma2 / 2).sqrt()
    terms = image_terms(
        transforms, transfer, sigma2.expand(n, len(plane)), premultiplied=zero, with_mean=False
    )
    return Scene(volumes, rotations, shift_px, classes, plane, terms)


@pytest.fixture(scope="session")
def states() -> torch.Tensor:
    """The phantom's two conformations (C4), box 32, 6 A."""
    return torch.stack([phantom(BOX, PIXEL, state=k) for k in (0, 1)])


@pytest.fixture(scope="session")
def channel(states: torch.Tensor) -> torch.Tensor:
    return states[:1]


@pytest.fixture(scope="session")
def view(channel: torch.Tensor) -> torch.Tensor:
    """A projection of the phantom along a slant, (1, N, N): a class image with no symmetry."""
    from halfmap.fourier import inverse_fourier_transform

    plane = half_plane(BOX, 15)
    rotation = random_rotations(1, torch.Generator().manual_seed(5))
    return inverse_fourier_transform(exact_slices(channel[0], rotation, plane.kx, plane.ky), plane)


@pytest.fixture(scope="session")
def scene_of():
    """`make_scene`."""
    return make_scene
