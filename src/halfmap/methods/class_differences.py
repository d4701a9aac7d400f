"""What the maps of classes do not share, weighed by how well the half maps agree on it.

Classes of one molecule have most of their density in common, and it is known well: it was made of
all images. What a class has of its own is little, and made of few images. A prior that knows only
the power of whole maps takes the noise in these differences for signal; every image then finds one
class likelier for reasons of noise, and says so with certainty. With the mean over the classes and
the difference each with a prior of its own,

    A_k = M + D_k,    R_k = M + w (A_k - M),    w = SSNR_k / (1 + SSNR_k)

SSNR_k by shell from the correlation of the half maps' differences: the posterior mean of a map
whose classes differ as much as they are seen to. The errors of M and of A_k - M are independent
where each class's noise goes with one over its size, so that the two are filtered one by one.
Where halves agree on no difference, the classes are the same map, and images tell no class.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.fourier import filter_shells
from halfmap.resolution import fourier_shell_correlation, ssnr_from_fsc

SMOOTHED_SHELLS = 3  # a single shell of a weak difference is mostly chance


def class_mean(
    maps: Float[Tensor, "*b K N N N"], sizes: Int[Tensor, " K"]
) -> Float[Tensor, "*b 1 N N N"]:
    """`M = sum_k n_k A_k / n`, classes weighed by their particles."""
    share = (sizes.double() / sizes.sum().clamp(min=1)).to(maps)
    return (maps * share[:, None, None, None]).sum(-4, keepdim=True)


def difference_ssnr(
    halves: tuple[Float[Tensor, "K N N N"], Float[Tensor, "K N N N"]],
    sizes: Int[Tensor, " K"],
    mask: Float[Tensor, "N N N"] | None,
) -> Float[Tensor, "K S"]:
    """SSNR of each class's difference from the mean in one half, from the correlation of the half
    maps' differences inside the mask, averaged over three shells."""
    first, second = (class_mean(half, sizes)[0] for half in halves)
    fsc = [
        fourier_shell_correlation(
            a - first, b - second, pixel_size_angstrom=1.0, mask=mask
        ).correlation
        for a, b in zip(*halves, strict=True)
    ]
    return smoothed_ssnr(torch.stack(fsc), of_sum=False)


def smoothed_ssnr(fsc: Float[Tensor, "K S"], *, of_sum: bool) -> Float[Tensor, "K S"]:
    """SSNR from curves averaged over three shells."""
    smooth = torch.nn.functional.avg_pool1d(
        fsc[:, None],
        SMOOTHED_SHELLS,
        stride=1,
        padding=SMOOTHED_SHELLS // 2,
        count_include_pad=False,
    )[:, 0]
    return ssnr_from_fsc(smooth.clamp(min=0), of_sum=of_sum)


def shrunk_differences(
    references: Float[Tensor, "K N N N"],
    sizes: Int[Tensor, " K"],
    ssnr: Float[Tensor, "K S"],
) -> Float[Tensor, "K N N N"]:
    """`M + w (A_k - M)` with `w = SSNR_k / (1 + SSNR_k)` by shell.

    >>> maps = torch.randn(2, 8, 8, 8)
    >>> sizes, nothing = torch.tensor([3, 1]), torch.zeros(2, 5)
    >>> one, other = shrunk_differences(maps, sizes, nothing)
    >>> torch.allclose(one, other)  # halves agree on no difference
    True
    """
    mean = class_mean(references, sizes)
    weight = 1 - 1 / (1 + ssnr)  # 1 where nothing is to be shrunk
    shrunk = torch.empty_like(references)
    for k, w in enumerate(weight.to(references)):
        shrunk[k] = mean[0] + filter_shells(references[k] - mean[0], w, dimensions=3)
    return shrunk
