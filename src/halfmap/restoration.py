"""The mathematics of undoing the CTF (lecture, part 1): one image at a time, or many images of one
object together.

The image model is ``X = C A + N`` in Fourier space. The functions act sample by sample, so any
layout of samples (a half-plane, a whole transform) will do. Restoring from many images needs only
two sums, ``sum C X`` and ``sum C^2``, kept with three more in :class:`StackSums`: sums add, so a
stack of any length streams through in batches, and two halves give the whole.
"""

from dataclasses import dataclass, fields

import finufft
import numpy as np
import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from halfmap.errors import InputError
from halfmap.fourier import HalfPlane, fourier_transform, shift_phases

# ------------------------------------------------------------------ one image


def divide(samples: Complex[Tensor, "*b J"], ctf: Float[Tensor, "*b J"]) -> Complex[Tensor, "*b J"]:
    """Plain division ``A~ = X / C`` (lecture: "can we do the deconvolution?").

    Where C is exactly 0 the result is 0; near zeros of C the noise is amplified without limit,
    which is what the lecture shows it for.

    >>> divide(torch.tensor([2 + 0j, 1 + 0j]), torch.tensor([0.5, 0.0]))
    tensor([4.+0.j, 0.+0.j])
    """
    return torch.where(ctf == 0, 0, samples / ctf)


def wiener_filter(
    samples: Complex[Tensor, "*b J"], ctf: Float[Tensor, "*b J"], *, constant: float
) -> Complex[Tensor, "*b J"]:
    """Wiener filter ``A~ = C X / (C^2 + k)`` of a single image, k > 0 constant (lecture, method
    2).

    >>> wiener_filter(torch.tensor([2 + 0j, 1 + 0j]), torch.tensor([1.0, 0.0]), constant=1.0)
    tensor([1.+0.j, 0.+0.j])
    """
    _check_constant(constant)
    return ctf * samples / (ctf.square() + constant)


# ------------------------------------------------------------------ many images of one object


@dataclass(frozen=True)
class StackSums:
    """Sums over the images i of one object, for each of J samples; ``a + b`` is the sums of both
    stacks."""

    cx: Complex[Tensor, " J"]  # sum C_i X_i
    c2: Float[Tensor, " J"]  # sum C_i^2
    c2x2: Float[Tensor, " J"]  # sum |C_i X_i|^2
    c4: Float[Tensor, " J"]  # sum C_i^4
    images: int

    def __add__(self, other: "StackSums") -> "StackSums":
        return StackSums(
            *(getattr(self, field.name) + getattr(other, field.name) for field in fields(self))
        )

    @staticmethod
    def zero(size: int, device: torch.device | str = "cpu") -> "StackSums":
        real = torch.zeros(size, dtype=torch.float64, device=device)
        return StackSums(
            torch.zeros(size, dtype=torch.complex128, device=device), real, real, real, 0
        )


def stack_sums(
    samples: Complex[Tensor, "B J"],
    ctf: Float[Tensor, "B J"],
    premultiplied: Bool[Tensor, " B"] | None = None,
) -> StackSums:
    """The sums of a batch of aligned images; where ``premultiplied`` the samples are C X already.
    Sums are in float64.

    >>> images, ctf = torch.tensor([[1.0 + 0j], [-1.0 + 0j]]), torch.tensor([[1.0], [-1.0]])
    >>> complex(wiener_stack(stack_sums(images, ctf), constant=1e-9)[0])
    (0.9999999995+0j)
    """
    cx = ctf * samples
    if premultiplied is not None:
        cx = torch.where(premultiplied[:, None], samples, cx)
    c2 = ctf.double().square()
    power = cx.real.double().square() + cx.imag.double().square()
    return StackSums(
        cx.sum(0, dtype=torch.complex128), c2.sum(0), power.sum(0), c2.square().sum(0), len(samples)
    )


def wiener_stack(sums: StackSums, *, constant: float) -> Complex[Tensor, " J"]:
    """Wiener filter from many images ``A~ = sum C_i X_i / (k + sum C_i^2)``, k > 0 constant
    (lecture, method 3).

    Different defoci have their zeros at different frequencies, so the denominator has none.

    >>> images, ctf = torch.tensor([[1.0 + 0j], [-1.0 + 0j]]), torch.tensor([[1.0], [-1.0]])
    >>> complex(wiener_stack(stack_sums(images, ctf), constant=2.0)[0])  # 2 / (2 + 2)
    (0.5+0j)
    """
    _check_constant(constant)
    return sums.cx / (constant + sums.c2)


def wiener_ssnr(
    sums: StackSums, ssnr: Float[Tensor, " shells"], plane: HalfPlane
) -> Complex[Tensor, " J"]:
    """Wiener filter from many images with known spectral SNR: ``A~ = sum C_i X_i / (1/SSNR + sum
    C_i^2)`` (lecture, "k(s) = 1/SNR").

    ``SSNR(s) = |A|^2 / |N|^2`` of one image before its CTF, per shell of ``plane``. Written as
    ``SSNR sum C X / (1 + SSNR sum C^2)``, so that a shell without signal gives 0 and not 1/0.

    >>> from halfmap.fourier import half_plane
    >>> plane = half_plane(8, 1)
    >>> sums = stack_sums(torch.full((4, len(plane)), 2 + 0j), torch.ones(4, len(plane)))
    >>> wiener_ssnr(sums, torch.tensor([1.0, 1.0]), plane)[0].real  # 4 * 2 / (1 / 1 + 4)
    tensor(1.6000, dtype=torch.float64)
    """
    snr = ssnr.to(sums.c2)[plane.shell]
    return snr * sums.cx / (1 + snr * sums.c2)


def measure_ssnr(sums: StackSums, plane: HalfPlane) -> Float[Tensor, " shells"]:
    """Spectral SNR ``|A|^2 / |N|^2`` per shell, from the images themselves: from the covariance
    between images.

    Noise of different images is independent, so products of *different* images hold signal alone.
    Over all pairs i != j at once (sums over the samples k of a shell)

        |A|^2 = sum_k ( |sum_i C_i X_i|^2 - sum_i |C_i X_i|^2 ) / sum_k ( (sum_i C_i^2)^2 - sum_i
        C_i^4 ) |N|^2 = sum_k ( sum_i |C_i X_i|^2 - |A|^2 sum_i C_i^4 ) / sum_k sum_i C_i^2

    Both are unbiased at any CTF. The FRC of two halves estimates the same number from half of the
    pairs and depends on how the images were split; FRC/(1 - FRC) also holds the CTFs' squares,
    which here are divided out. A shell whose signal comes out negative gets 0.

    >>> from halfmap.fourier import half_plane
    >>> plane = half_plane(32, 8)
    >>> g = torch.Generator().manual_seed(1)
    >>> noise = torch.randn(100, len(plane), dtype=torch.complex64, generator=g)  # |N|^2 is 1
    >>> ssnr = measure_ssnr(stack_sums(2 + noise, torch.ones(100, len(plane))), plane)  # |A|^2 is 4
    >>> bool((ssnr[2:] - 4).abs().max() < 1)
    True

    Returns:
        (plane.radius + 1,) float64; finite, 0 or more (at most 1e6, for noise-free images).

    Raises:
        InputError: fewer than two images.
    """
    if sums.images < 2:
        raise InputError(
            "wiener-ssnr: the spectral SNR needs at least 2 images of the object in each half, "
            f"got {sums.images}"
        )

    def over_shells(values: Tensor) -> Tensor:
        return values.new_zeros(plane.radius + 1).index_add_(
            0, plane.shell, values * plane.hermitian_weight
        )

    tiny = torch.finfo(torch.float64).tiny
    square = sums.cx.real.square() + sums.cx.imag.square()
    signal = over_shells(square - sums.c2x2) / over_shells(sums.c2.square() - sums.c4).clamp_min(
        tiny
    )
    signal = signal.clamp_min(0)
    noise = (over_shells(sums.c2x2) - signal * over_shells(sums.c4)) / over_shells(
        sums.c2
    ).clamp_min(tiny)
    return torch.where(signal > 0, signal / torch.maximum(noise, 1e-6 * signal).clamp_min(tiny), 0)


def _check_constant(constant: float) -> None:
    if not constant > 0:
        raise InputError(
            f"constant: expected k > 0, got {constant}; --method divide is the filter without k"
        )


# ------------------------------------------------------------------ bringing the images of one view


def in_plane_angles(
    rotation_matrices: Float[Tensor, "B 3 3"], reference: Float[Tensor, "3 3"]
) -> tuple[Tensor, Tensor]:
    """How each view differs from a reference view: in-plane angle and angle between the viewing
    directions, degrees, (B,) each.

    ``A_i A_ref^T`` is about ``Rz(psi)``, with ``Rz = [[cos, sin], [-sin, cos]]`` in RELION's
    convention.
    """
    relative = rotation_matrices.double() @ reference.double().T
    psi = torch.atan2(relative[:, 0, 1] - relative[:, 1, 0], relative[:, 0, 0] + relative[:, 1, 1])
    # of the direction's component across the axis: acos of its component along the axis is blind
    # near 0
    across = torch.hypot(relative[:, 2, 0], relative[:, 2, 1])
    return torch.rad2deg(psi), torch.rad2deg(torch.atan2(across, relative[:, 2, 2]))


def aligned_transform(
    images: Float[Tensor, "B N N"],
    plane: HalfPlane,
    *,
    psi_deg: Float[Tensor, " B"],
    shift_px: Float[Tensor, "B 2"],
) -> Complex[Tensor, "B J"]:
    """Half-plane samples of images after centring them and turning them back by their in-plane
    angle.

    ``Y(q) = X(Rz q) exp(-2 pi i (Rz q).t / N)``: the image's own transform, evaluated exactly
    between its grid points by a non-uniform FFT (the image is taken as periodic), so that nothing
    is interpolated and white noise stays white.
    """
    if not psi_deg.any():
        return fourier_transform(images, plane) * shift_phases(shift_px.to(images), plane)
    box = plane.box
    kx, ky = plane.kx.double().cpu(), plane.ky.double().cpu()
    double = images.dtype == torch.float64
    rows = []
    for image, angle, shift in zip(
        images.cpu(),
        torch.deg2rad(psi_deg.double()).tolist(),
        shift_px.double().tolist(),
        strict=True,
    ):
        cos, sin = np.cos(angle), np.sin(angle)
        turned_x, turned_y = cos * kx + sin * ky, -sin * kx + cos * ky
        points = [
            np.ascontiguousarray(
                (2 * np.pi / box * k).numpy(), dtype=np.float64 if double else np.float32
            )
            for k in (turned_y, turned_x)
        ]
        grid = image.numpy().astype(np.complex128 if double else np.complex64)
        row = finufft.nufft2d2(*points, grid, eps=1e-12 if double else 1e-6, isign=-1, nthreads=1)
        phase = (turned_x * shift[0] + turned_y * shift[1]) * (-2 * np.pi / box)
        rows.append(torch.from_numpy(row) * torch.polar(torch.ones_like(phase), phase))
    return torch.stack(rows).to(
        device=images.device, dtype=torch.complex128 if double else torch.complex64
    )
