"""From candidate poses to Gamma, the weight of each pose of each image."""

from dataclasses import replace

import torch

from halfmap.engine.state import Candidates, Poses, PosteriorWeights

# share of an image's posterior that the poses kept hold at least (RELION's adaptive fraction)
SIGNIFICANCE = 0.999


def assign_hard(candidates: Candidates) -> PosteriorWeights:
    """`Gamma = 1` at the best pose of each image and 0 elsewhere (lecture: template matching,
    FREALIGN).

    >>> from halfmap.engine.state import as_candidates, known_poses
    >>> poses = known_poses(torch.eye(3).repeat(2, 1, 1), torch.zeros(2, 2), torch.tensor([0, 1]))
    >>> assign_hard(as_candidates(poses)).classes
    tensor([0, 1])
    """
    best = candidates.best(1)
    n = len(best.score)
    index = torch.arange(n, device=best.score.device)
    return PosteriorWeights(
        index,
        index,
        best.shift_px[:, 0],
        torch.ones_like(best.score[:, 0]),
        best.rotations[:, 0],
        best.classes[:, 0],
    )


def assign_posterior(
    candidates: Candidates, *, significance: float = SIGNIFICANCE
) -> PosteriorWeights:
    """`PosteriorWeights(phi) = P(X | phi) P(phi) / sum P(X | phi) P(phi)`, the softmax of the log
    weights (lecture: the probability function Gamma).

    Of each image the fewest poses that hold the share `significance` of it are kept, and scaled to
    a sum of 1. Poses in one cell of a grid share a slice.

    >>> from halfmap.engine.state import as_candidates, known_poses
    >>> poses = known_poses(torch.eye(3).repeat(2, 1, 1), torch.zeros(2, 2), torch.tensor([0, 0]))
    >>> assign_posterior(as_candidates(poses)).weight  # one pose each: it is certain
    tensor([1., 1.])
    """
    ordered = candidates.best(candidates.score.shape[1])
    weight = torch.softmax(ordered.log_weight, dim=1)
    before = torch.cumsum(weight, dim=1) - weight
    kept = (before < significance) & (weight > 0)
    weight = weight * kept
    weight = weight / weight.sum(1, keepdim=True)
    image = torch.nonzero(kept)[:, 0]
    shift_px, rotations, classes, cell = (
        ordered.shift_px[kept],
        ordered.rotations[kept],
        ordered.classes[kept],
        ordered.cell[kept],
    )
    if bool((cell < 0).any()):  # continuous poses: a slice each
        return PosteriorWeights(
            image,
            torch.arange(len(image), device=image.device),
            shift_px,
            weight[kept],
            rotations,
            classes,
        )
    slices, reference = torch.unique(cell * (int(classes.max()) + 1) + classes, return_inverse=True)
    member = torch.empty_like(slices).scatter_(
        0, reference, torch.arange(len(reference), device=image.device)
    )  # one entry of each slice
    return PosteriorWeights(
        image, reference, shift_px, weight[kept], rotations[member], classes[member]
    )


def assign_sample(n: int, candidates: Candidates) -> PosteriorWeights:
    """`assign_posterior` of n poses drawn from each image's posterior, evenly spaced in its
    cumulative distribution (systematic sampling).

    The sums are as right in the mean, and an image with a diffuse posterior costs no more than n
    slices. Poses come in order of weight; the pose at each quantile (i + 1/2) / n is taken, so that
    nothing is left to a random generator.

    >>> nothing = torch.zeros(1, 3)
    >>> poses = Candidates(
    ...     torch.eye(3).expand(1, 3, 3, 3), torch.zeros(1, 3, 2), nothing.long(), nothing,
    ...     torch.tensor([[0.5, 0.3, 0.2]]).log(), nothing.long(), torch.zeros(1, 3, 2),
    ... )
    >>> assign_sample(2, poses).weight  # quantiles 1/4 and 3/4
    tensor([0.5000, 0.5000])
    """
    ordered = candidates.best(candidates.score.shape[1])
    total = torch.cumsum(torch.softmax(ordered.log_weight, dim=1), dim=1)
    quantile = (
        ((torch.arange(n, device=total.device) + 0.5) / n).expand(len(total), -1).contiguous()
    )
    drawn = torch.searchsorted(total, quantile).clamp(max=total.shape[1] - 1)
    times = torch.zeros_like(total).scatter_add_(1, drawn, torch.ones_like(quantile))
    return assign_posterior(replace(ordered, log_weight=times.log()))


def best_poses(candidates: Candidates, gamma: PosteriorWeights) -> Poses:
    """The best pose of each image, and how sure its assignment is."""
    best = candidates.best(1)
    largest = gamma.weight.new_zeros(len(best.score)).scatter_reduce_(
        0, gamma.image, gamma.weight, "amax"
    )
    significant = torch.bincount(gamma.image, minlength=len(best.score))
    total = torch.logsumexp(candidates.log_weight, dim=1)
    rotations, shift_px, classes, score, _, _, accuracy = (field[:, 0] for field in best.fields())
    return Poses(rotations, shift_px, classes, score, largest, significant, total, accuracy)


def weights_of_class(weights: PosteriorWeights, k: int) -> PosteriorWeights:
    """The entries and slices of class k alone, which becomes class 0."""
    kept = weights.classes == k
    entries = kept[weights.reference]
    place = torch.cumsum(kept, 0) - 1
    return PosteriorWeights(
        image=weights.image[entries],
        reference=place[weights.reference[entries]],
        shift_px=weights.shift_px[entries],
        weight=weights.weight[entries],
        rotations=weights.rotations[kept],
        classes=torch.zeros_like(weights.classes[kept]),
    )
