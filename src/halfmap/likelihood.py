"""E-step: images and references -> scores, as a matrix product.

Rows are (image, shift), columns are (class, orientation); the sum runs over the J samples of a
Fourier half-plane:

    a = sum_j w_j Re(conj(S_t^-1 C X / sigma^2) R)_j       b = sum_j w_j (C^2 / sigma^2)_j |R|^2_j

with w the half-plane weights. Everything that any method asks of an image and a reference is a
function of a and b.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from halfmap.arrays import takes_arrays
from halfmap.fourier import HalfPlane


@dataclass(frozen=True)
class ImageTerms:
    """What the scores need of a batch of images: `data = C X / sigma^2` and `power = C^2 / sigma^2`
    on a half-plane.

    `sigma^2` is the noise variance E|N(k)|^2 of a Fourier coefficient.
    """

    data: Complex[Tensor, "B J"]
    power: Float[Tensor, "B J"]

    def __len__(self) -> int:
        return len(self.data)

    def select_images(self, index: Tensor) -> "ImageTerms":
        return ImageTerms(self.data[index], self.power[index])

    def weakened(self, share: float) -> "ImageTerms":
        """Terms whose log likelihoods are `share` of what they were: those of images with 1 / share
        times the noise variance."""
        return ImageTerms(share * self.data, share * self.power)


@takes_arrays
def image_terms(
    transforms: Complex[Tensor, "B J"],
    ctf: Float[Tensor, "B J"],
    sigma2: Float[Tensor, "B J"],
    *,
    premultiplied: Float[Tensor, " B"],
    with_mean: bool,
) -> ImageTerms:
    """`C X / sigma^2` and `C^2 / sigma^2`; where an image is stored as C X already (`premultiplied`
    1), it is not multiplied again.

    sigma2 is the noise of the image before any premultiplication. `with_mean` keeps k = 0: the mean
    grey value belongs into a map, but carries no pose, so that the E-step leaves it out.

    >>> ctf, sigma2 = torch.tensor([[0.5, -1.0]]), torch.tensor([[2.0, 2.0]])
    >>> x = torch.tensor([[4 + 0j, 2 + 0j]])
    >>> terms = image_terms(x, ctf, sigma2, premultiplied=torch.zeros(1), with_mean=True)
    >>> terms.data.real, terms.power
    (tensor([[ 1., -1.]]), tensor([[0.1250, 0.5000]]))
    """
    once = premultiplied[:, None]
    data = transforms * ((1 - once) * ctf + once) / sigma2
    power = ctf**2 / sigma2
    if not with_mean:
        data[:, 0], power[:, 0] = 0, 0
    return ImageTerms(data, power)


@takes_arrays
def cross_terms(
    terms: ImageTerms,
    phases: Complex[Tensor, "T J"],
    slices: Complex[Tensor, "M J"],
    plane: HalfPlane,
) -> Float[Tensor, "B T M"]:
    """a for every image, shift and shared slice: one real matrix product, (B T) x 2J times 2J x
    M.

    >>> from halfmap.fourier import half_plane
    >>> plane = half_plane(8, 1)
    >>> x = torch.full((2, len(plane)), 3.0, dtype=torch.complex64)  # two images, no CTF, sigma^2 1
    >>> terms = ImageTerms(x, torch.ones(2, len(plane)))
    >>> unmoved, slices = torch.ones(1, len(plane), dtype=torch.complex64), x[:1] / 3
    >>> cross_terms(terms, unmoved, slices, plane).shape  # images, shifts, slices
    torch.Size([2, 1, 1])
    """
    shifted = (terms.data * plane.hermitian_weight)[:, None] * phases
    product = (
        torch.view_as_real(shifted).flatten(-2).flatten(0, 1)
        @ torch.view_as_real(slices).flatten(-2).T
    )
    return product.view(len(terms), len(phases), len(slices))


@takes_arrays
def slice_power(
    terms: ImageTerms, squared: Float[Tensor, "J M"], plane: HalfPlane
) -> Float[Tensor, "B M"]:
    """b for every image and shared slice, given |R|^2 with samples first: B x J times J x M.

    >>> from halfmap.fourier import half_plane
    >>> plane = half_plane(8, 1)
    >>> x = torch.full((2, len(plane)), 3.0, dtype=torch.complex64)  # two images, no CTF, sigma^2 1
    >>> terms = ImageTerms(x, torch.ones(2, len(plane)))
    >>> slices = torch.full((3, len(plane)), 2.0, dtype=torch.complex64)
    >>> slice_power(terms, squared_modulus(slices).T.contiguous(), plane).shape  # images, slices
    torch.Size([2, 3])
    """
    return (terms.power * plane.hermitian_weight) @ squared


@takes_arrays
def cross_terms_own(
    terms: ImageTerms,
    phases: Complex[Tensor, "T J"],
    slices: Complex[Tensor, "B M J"],
    plane: HalfPlane,
) -> Float[Tensor, "B T M"]:
    """a where each image has slices of its own: a batch of small matrix products."""
    shifted = (terms.data * plane.hermitian_weight)[:, None] * phases
    return torch.bmm(
        torch.view_as_real(shifted).flatten(-2), torch.view_as_real(slices).flatten(-2).mT
    )


@takes_arrays
def slice_power_own(
    terms: ImageTerms, squared: Float[Tensor, "B M J"], plane: HalfPlane
) -> Float[Tensor, "B M"]:
    """b where each image has slices of its own, given |R|^2."""
    return torch.bmm(squared, (terms.power * plane.hermitian_weight)[..., None])[..., 0]


@takes_arrays
def squared_modulus(slices: Complex[Tensor, "*M J"]) -> Float[Tensor, "*M J"]:
    """|R|^2.

    >>> squared_modulus(torch.tensor([3 + 4j]))
    tensor([25.])
    """
    return torch.view_as_real(slices).square().sum(-1)


@takes_arrays
def correlation_score(a: Float[Tensor, "..."], b: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """`a / sqrt(b) = |X / sigma| CC`: the lecture's `CC = X.R / (|X| |R|)` of whitened images,
    times a constant per image.

    >>> x, r = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 6.0])
    >>> round(float(correlation_score((x * r).sum(), r.square().sum()) / x.norm()), 5)  # CC
    1.0
    """
    return a / b.clamp(min=1e-20).sqrt()


@takes_arrays
def log_likelihood_score(a: Float[Tensor, "..."], b: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """`a - b / 2 = -|X - C S_t R|^2 / (2 sigma^2)` up to a constant per image.

    >>> x, r = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])  # in units of sigma
    >>> score = log_likelihood_score((x * r).sum(), r.square().sum())
    >>> float(score) == float((x.square().sum() - (x - r).square().sum()) / 2)
    True
    """
    return a - b / 2


@dataclass(frozen=True)
class Score:
    """What a pose is judged by: `value(a, b)` is compared between poses of an image, and
    `log_evidence(value)` is the log likelihood that it stands for, up to a constant per image.

    `free_scale` tells that the value is that of the reference's best scale s = a / b in the image,
    so that references may be on any grey scale; else s is 1.
    """

    name: str
    value: Callable[[Tensor, Tensor], Tensor]
    log_evidence: Callable[[Tensor], Tensor]
    free_scale: bool

    def __call__(self, a: Float[Tensor, "..."], b: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return self.value(a, b)


def evidence_at_best_scale(correlation: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """`a^2 / 2b` with the sign of a: the log likelihood at the best scale, from `a / sqrt(b)`."""
    return correlation * correlation.abs() / 2


def _itself(value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return value


CORRELATION = Score(
    "correlation coefficient", correlation_score, evidence_at_best_scale, free_scale=True
)
LOG_LIKELIHOOD = Score("log likelihood", log_likelihood_score, _itself, free_scale=False)
