"""How far two independent maps or images agree: Fourier ring and shell correlation, SSNR and
resolution.

The lecture's judge: ``FSC(s) = Re sum_s A conj(B) / sqrt(sum_s |A|^2  sum_s |B|^2)``,
sums over the Fourier coefficients of shell s.
A shell is the coefficients whose radius ``|k|`` in Fourier pixels rounds to s, from 0 to N // 2,
as in RELION.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from halfmap.arrays import takes_arrays
from halfmap.errors import InputError
from halfmap.fourier import shell_index, shell_planes

RANDOMISED = "masked, phases randomised"  # a curve's name, which has no resolution of its own


@dataclass(frozen=True)
class Curve:
    """Correlation per Fourier shell: ``correlation[s]`` belongs to the frequency ``s / (box *
    pixel_size)``."""

    box: int
    pixel_size_angstrom: float
    correlation: Float[Tensor, "shells"]

    @property
    def frequency_per_angstrom(self) -> Float[Tensor, "shells"]:
        """Spatial frequency of each shell, 1/Angstrom."""
        return torch.arange(len(self.correlation), dtype=torch.float64) / (
            self.box * self.pixel_size_angstrom
        )

    @property
    def resolution_angstrom(self) -> Float[Tensor, "shells"]:
        """Resolution of each shell, Angstrom; infinite at shell 0."""
        return 1 / self.frequency_per_angstrom


@dataclass(frozen=True)
class HalfMapCurves:
    """The curves that two half maps give; those that need a mask are None without one.

    ``corrected`` is the masked curve freed of what the mask itself put in (Chen et al. 2013),
    ``randomised`` the masked FSC of maps whose phases were randomised from shell
    ``randomised_from`` on; ``mask_name`` is the mask's file.
    """

    unmasked: Curve
    masked: Curve | None = None
    randomised: Curve | None = None
    corrected: Curve | None = None
    randomised_from: int | None = None
    mask_name: str | None = None

    @property
    def named(self) -> dict[str, Curve]:
        """Those there are, by what was done about the mask."""
        every = {
            "unmasked": self.unmasked,
            "masked": self.masked,
            RANDOMISED: self.randomised,
            "corrected for the mask": self.corrected,
        }
        return {name: curve for name, curve in every.items() if curve is not None}

    @property
    def final(self) -> Curve:
        """The curve that resolution is quoted from: corrected, else masked, else unmasked."""
        return self.corrected or self.masked or self.unmasked


def coefficient_weights(box: int, device: torch.device | str = "cpu") -> Float[Tensor, " half"]:
    """How many coefficients of the full transform each column kx of an rfftn stands for.

    The half that rfftn leaves out is the conjugate of the half it keeps, so a kept coefficient
    counts twice; the columns kx = 0 and, for even N, kx = N / 2 hold their own conjugates and count
    once.
    """
    weights = torch.full((box // 2 + 1,), 2.0, dtype=torch.float64, device=device)
    weights[0] = 1
    if box % 2 == 0:
        weights[-1] = 1
    return weights


def _shell_sums(
    of: Callable[..., Float[Tensor, "Q batch *half"]], *transforms: Tensor
) -> Float[Tensor, "Q batch shells"]:
    """Sums over the full transform's shells of Q real values made of arrays (batch, *half) in the
    rfftn layout, whose last axis is N // 2 + 1 long; in float64.

    The values of a volume are made and summed plane by plane: as whole boxes they would be the
    largest arrays of a job, and most of the time would go into having memory for them.
    """
    batch, box, *_, n_shells = transforms[0].shape
    device, weights = transforms[0].device, coefficient_weights(box, transforms[0].device)
    sums = None
    for rows, shells in shell_planes(box, transforms[0].ndim - 1, device=device):
        values = of(*(one[:, rows] for one in transforms)).double() * weights
        if sums is None:
            sums = values.new_zeros(len(values), batch, n_shells + 1)
        # the corners: one more bin, dropped
        sums.index_add_(2, shells.clamp_max(n_shells).flatten(), values.flatten(2))
    assert sums is not None
    return sums[..., :n_shells]


def _square(a: Complex[Tensor, "..."]) -> Float[Tensor, "..."]:
    return a.real.square() + a.imag.square()


def _products(a: Complex[Tensor, "..."], b: Complex[Tensor, "..."]) -> Float[Tensor, "3 ..."]:
    """Of two transforms Re(A conj B), |A|^2 and |B|^2."""
    return torch.stack([a.real * b.real + a.imag * b.imag, _square(a), _square(b)])


def _correlation(
    cross: Float[Tensor, "*batch S"], power_a: Float[Tensor, "*batch S"], power_b: Tensor
) -> Float[Tensor, "*batch S"]:
    """`cross / sqrt(power_a power_b)`, 0 where there is no power, 1 in shell 0."""
    norm = (power_a * power_b).clamp_min(0).sqrt()
    correlation = torch.where(
        norm > 0, cross / norm.clamp_min(torch.finfo(torch.float64).tiny), 0.0
    ).clamp(-1, 1)
    correlation[..., 0] = 1
    return correlation


@takes_arrays
def shell_power(a: Float[Tensor, "batch *box"]) -> Float[Tensor, "batch shells"]:
    """Mean of ``|A(k)|^2`` over each Fourier shell of a batch of images (B, N, N) or volumes (B, N,
    N, N); unnormalised transform."""
    return shell_means(_square, torch.fft.rfftn(a, dim=tuple(range(1, a.ndim))))


def shell_means(
    of: Callable[[Complex[Tensor, "..."]], Float[Tensor, "..."]],
    transform: Complex[Tensor, "batch *half"],
) -> Float[Tensor, "batch shells"]:
    """Mean over each Fourier shell of a real value of the coefficients (rfftn layout)."""
    total = _shell_sums(lambda one: of(one)[None], transform)[0]
    return total / _shell_sums(lambda one: torch.ones_like(one.real)[None], transform[:1])[0]


@takes_arrays
def shell_correlations(
    a: Float[Tensor, "..."], b: Float[Tensor, "..."]
) -> Float[Tensor, "batch shells"]:
    """FRC of each pair in two batches of images (B, N, N), or FSC of volumes (B, N, N, N).

    Every coefficient of the full transform counts once; sums are in float64. Shell 0 is one real
    number, whose correlation with another says nothing: it is 1 by definition, as in RELION. A
    shell without power in either map gives 0.

    Returns:
        (B, N // 2 + 1) float64.
    """
    if a.shape != b.shape:
        raise InputError(
            f"FSC: the two maps must have one shape, got {tuple(a.shape[1:])} and "
            f"{tuple(b.shape[1:])}"
        )
    if len(set(a.shape[1:])) != 1:
        raise InputError(
            f"FSC: expected sides of equal length, got {tuple(a.shape[1:])}; pad or crop the map "
            "first"
        )
    axes = tuple(range(1, a.ndim))
    return transform_correlations(torch.fft.rfftn(a, dim=axes), torch.fft.rfftn(b, dim=axes))


@takes_arrays
def transform_correlations(
    a: Complex[Tensor, "batch *half"], b: Complex[Tensor, "batch *half"]
) -> Float[Tensor, "batch shells"]:
    """:func:`shell_correlations` of arrays that are already transformed by ``torch.fft.rfftn`` over
    all but the batch axis."""
    return _correlation(*_shell_sums(_products, a, b))


@takes_arrays
def fourier_shell_correlation(
    a: Float[Tensor, "..."],
    b: Float[Tensor, "..."],
    *,
    pixel_size_angstrom: float,
    mask: Float[Tensor, "..."] | None = None,
) -> Curve:
    """Fourier shell correlation of two volumes (N, N, N), or Fourier ring correlation of two images
    (N, N).

    ``FSC(s) = Re sum_s A conj(B) / sqrt(sum_s |A|^2 sum_s |B|^2)``; a mask multiplies both maps
    first. See :func:`shell_correlations`.

    >>> volume = torch.rand(24, 24, 24)
    >>> curve = fourier_shell_correlation(volume, 3 * volume, pixel_size_angstrom=2.0)
    >>> bool((curve.correlation > 0.999).all())
    True

    Raises:
        InputError: shapes differ, sides differ, or the mask does not fit.

    Source: Harauz and van Heel 1986; lecture, "Estimate the resolution with Fourier ring
    correlation".
    """
    if mask is not None:
        if mask.shape != a.shape:
            raise InputError(
                f"FSC: the mask's shape {tuple(mask.shape)} is not the map's {tuple(a.shape)}"
            )
        a, b = a * mask, b * mask
    correlation = shell_correlations(a.unsqueeze(0), b.unsqueeze(0))[0]
    return Curve(
        box=a.shape[-1], pixel_size_angstrom=pixel_size_angstrom, correlation=correlation.cpu()
    )


def resolution_at(curve: Curve, threshold: float) -> float:
    """Resolution, Angstrom, where the curve first falls below a threshold.

    The crossing is interpolated linearly between the last shell at or above the threshold and the
    first below it. A curve that never falls below gives its last shell (Nyquist for an even box);
    one that is below at shell 1 gives infinity. The *first* crossing counts: what comes back later
    is noise or an artefact until shown otherwise.

    >>> from halfmap.fourier import lowpass
    >>> volume = torch.rand(32, 32, 32)
    >>> noise = torch.rand(32, 32, 32)
    >>> filtered = lowpass(volume, 20.0, 2.0, dimensions=3) + 0.01 * noise
    >>> curve = fourier_shell_correlation(volume, filtered, pixel_size_angstrom=2.0)
    >>> 12 < resolution_at(curve, 0.5) < 22
    True
    """
    below = (curve.correlation[1:] < threshold).nonzero()
    if len(below) == 0:
        return curve.box * curve.pixel_size_angstrom / (len(curve.correlation) - 1)
    first = int(below[0]) + 1
    if first == 1:
        return float("inf")
    above, under = curve.correlation[first - 1].item(), curve.correlation[first].item()
    shell = first - 1 + (above - threshold) / (above - under)
    return curve.box * curve.pixel_size_angstrom / shell


@takes_arrays
def ssnr_from_fsc(
    fsc: Float[Tensor, "*shells"], *, of_sum: bool = False, largest: float = 1e4
) -> Float[Tensor, "*shells"]:
    """Spectral signal-to-noise ratio from the FSC of two halves.

    ``SSNR = FSC / (1 - FSC)`` is that of **one half** (FSC = SSNR / (1 + SSNR) for signal plus
    independent noise of equal power); the sum of the halves holds half the noise power, so
    ``of_sum`` gives ``2 FSC / (1 - FSC)``. RELION uses the first for tau^2. A negative FSC gives 0;
    an FSC near 1 is held at ``largest``, because noise-free halves would give infinity.

    Source: Rosenthal and Henderson 2003; Scheres 2012.
    """
    positive = fsc.clamp(0, 1)
    ssnr = positive / (1 - positive).clamp_min(torch.finfo(fsc.dtype).tiny)
    return (2 * ssnr if of_sum else ssnr).clamp_max(largest)


@takes_arrays
def phase_randomise(
    volume: Float[Tensor, "*box"], beyond_shell: int, generator: torch.Generator
) -> Float[Tensor, "*box"]:
    """The same amplitudes with random phases in all coefficients of ``round(|k|) >= beyond_shell``;
    an image or a volume.

    The phases are those of a white-noise array, so the result is exactly real.
    """
    shells = shell_index(volume.shape[-1], volume.ndim, device=volume.device)
    noise = torch.randn(
        volume.shape, generator=generator, dtype=volume.dtype, device=generator.device
    ).to(volume.device)
    noise_ft, volume_ft = torch.fft.rfftn(noise), torch.fft.rfftn(volume)
    scrambled = volume_ft.abs() * torch.exp(1j * noise_ft.angle())
    return torch.fft.irfftn(
        torch.where(shells >= beyond_shell, scrambled, volume_ft), s=volume.shape
    )


@takes_arrays
def half_map_curves(
    half1: Float[Tensor, "..."],
    half2: Float[Tensor, "..."],
    *,
    pixel_size_angstrom: float,
    mask: Float[Tensor, "..."] | None = None,
    randomise_below: float = 0.8,
) -> HalfMapCurves:
    """All curves of two half maps: unmasked and, given a mask, masked and corrected for the mask by
    phase randomisation.

    A mask correlates the two halves by itself. Phases of both maps are randomised from the shell
    where the unmasked FSC first falls below ``randomise_below``; what the mask then still shows,
    ``FSC_n``, is not signal: ``FSC_true = (FSC_masked - FSC_n) / (1 - FSC_n)`` from two shells
    after that, ``FSC_masked`` before. ``FSC_n`` is that of the mean over all phases, see
    :func:`phase_randomised_fsc`; one draw differs from it by chance, in a small box by 0.03.

    Raises:
        InputError: shapes do not fit.

    Source: Chen et al. 2013, Ultramicroscopy 135, 24; the two-shell margin is RELION's.
    """
    unmasked = fourier_shell_correlation(half1, half2, pixel_size_angstrom=pixel_size_angstrom)
    if mask is None:
        return HalfMapCurves(unmasked=unmasked)
    masked = fourier_shell_correlation(
        half1, half2, pixel_size_angstrom=pixel_size_angstrom, mask=mask
    )
    n_shells = len(unmasked.correlation)
    below = (unmasked.correlation[1:] < randomise_below).nonzero()
    start = int(below[0]) + 1 if len(below) else n_shells
    randomised = replace(masked, correlation=phase_randomised_fsc(half1, half2, mask, start))
    # below 0 it is chance: the mask takes nothing away, so that no corrected curve is above its
    # masked one
    by_mask = randomised.correlation.clamp_min(0)
    freed = (masked.correlation - by_mask) / (1 - by_mask).clamp_min(1e-6)
    corrected = torch.where(torch.arange(n_shells) >= start + 2, freed, masked.correlation).clamp(
        -1, 1
    )
    return HalfMapCurves(
        unmasked=unmasked,
        masked=masked,
        randomised=randomised,
        corrected=Curve(
            box=unmasked.box, pixel_size_angstrom=pixel_size_angstrom, correlation=corrected
        ),
        randomised_from=start if start < n_shells else None,
    )


@takes_arrays
def phase_randomised_fsc(
    half1: Float[Tensor, "*box"],
    half2: Float[Tensor, "*box"],
    mask: Float[Tensor, "*box"],
    beyond_shell: int,
) -> Float[Tensor, " shells"]:
    """The masked FSC of two maps whose phases are random from a shell on, of sums that are means
    over all such phases instead of one draw.

    Of a map `A = L + H`, with L below that shell and H of random phases, masking leaves on average
    `<|M * A|^2> = |M * L|^2 + |M|^2 * |H|^2` (`*` a convolution), and of two maps `Re (M * L_1)
    conj(M * L_2)`: what the shells before leak through the mask. The second term is the transform
    of the product of two autocorrelations, of the mask and of H.
    """
    size, numel = half1.shape, half1.numel()
    unrandomised = shell_index(size[-1], half1.ndim, device=half1.device) < beyond_shell
    of_mask = torch.fft.irfftn(torch.fft.rfftn(mask).abs().square(), s=size) / numel
    leaked, powers = [], []
    for half in (half1, half2):
        transform = torch.fft.rfftn(half)
        low = torch.fft.irfftn(torch.where(unrandomised, transform, 0), s=size)
        high = torch.where(unrandomised, 0.0, _square(transform))
        spread = torch.fft.rfftn(torch.fft.irfftn(high, s=size) * of_mask).real
        leaked.append(torch.fft.rfftn(low * mask)[None])
        powers.append(_shell_sums(lambda a, b: (_square(a) + b)[None], leaked[-1], spread[None]))
    cross = _shell_sums(lambda a, b: (a.real * b.real + a.imag * b.imag)[None], *leaked)
    return _correlation(*(sums[0, 0] for sums in (cross, *powers))).cpu()
