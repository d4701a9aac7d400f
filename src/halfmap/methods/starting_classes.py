"""First class images for 2D classification: averages of random subsets, or single images chosen far
from each other (k-means++)."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.distributed import broadcast_object
from halfmap.engine.batching import in_batches
from halfmap.engine.loop import sum_at_poses
from halfmap.engine.preprocessing import load_batch
from halfmap.engine.problem import Problem
from halfmap.engine.state import identity_poses
from halfmap.fourier import filter_shells, half_plane
from halfmap.likelihood import ImageTerms, squared_modulus
from halfmap.methods.settings import Settings
from halfmap.pose_search.adaptive import prepare_search
from halfmap.pose_search.coarse_to_fine import coarse_scores
from halfmap.pose_search.sampling import coarse_radius
from halfmap.projection import prepare_references
from halfmap.reconstruction import constant_regulariser, wiener_update

STARTS = ("kmeans++", "random")
_CANDIDATES_PER_CLASS = 20
_LEAST_CANDIDATES = 1000
_WIENER_CONSTANT = 1.0  # of a single noisy image


def starting_classes(
    problem: Problem,
    settings: Settings,
    noise_variance: Float[Tensor, "G S"],
    radius: int,
    *,
    how: str,
    seed: int,
) -> Float[Tensor, "K box box"]:
    """K first class images on shells up to `radius`, masked.

    "random": averages of K random subsets as the images lie, all much alike at first. "kmeans++":
    CTF-corrected single images, each drawn with a probability proportional to `1 - CC^2` with the
    nearest of those drawn before, CC at the best rotation and shift (Arthur and Vassilvitskii, SODA
    2007), from a random part of a large data set.
    """
    rng = np.random.default_rng([seed, 2])
    used = torch.nonzero(problem.half >= 0)[:, 0].numpy()
    if how == "random":
        classes = torch.full((len(problem.half),), 0)
        classes[torch.from_numpy(used)] = torch.from_numpy(
            rng.permutation(len(used)) % problem.n_classes
        )
        return _average(
            problem, settings, noise_variance, radius, problem.half, classes, problem.n_classes
        )
    wanted = max(_LEAST_CANDIDATES, _CANDIDATES_PER_CLASS * problem.n_classes)
    pool = torch.from_numpy(np.sort(rng.permutation(used)[:wanted]))
    terms, norms = load_pool(problem, settings, noise_variance, radius, pool)
    distance = np.ones(len(pool))
    chosen: list[Tensor] = []
    for _ in range(problem.n_classes):
        likely = distance / distance.sum() if distance.sum() > 0 else None
        pick = broadcast_object(int(rng.choice(len(pool), p=likely)))
        alone = torch.full_like(problem.half, -1)
        alone[pool[pick]] = 0
        image = _average(
            problem, settings, noise_variance, radius, alone, torch.zeros_like(alone), 1
        )
        chosen.append(image)
        similar = similarity(settings, radius, image, terms, norms)
        distance = np.minimum(distance, np.clip(1 - similar.double().numpy() ** 2, 0, 1))
        distance[pick] = 0
    return torch.cat(chosen)


def _average(
    problem: Problem,
    settings: Settings,
    noise_variance: Float[Tensor, "G S"],
    radius: int,
    half: Int[Tensor, " N"],
    classes: Int[Tensor, " N"],
    n_classes: int,
) -> Float[Tensor, "K box box"]:
    """Wiener averages of the images of each class as they lie, low-passed and masked."""
    part = replace(problem, half=half, n_classes=n_classes)
    first, second = sum_at_poses(part, identity_poses(classes), noise_variance)
    total = first + second
    constant = constant_regulariser(
        total, _WIENER_CONSTANT, (1 / noise_variance).mean(0)[: total.radius + 1]
    )
    shells = torch.arange(problem.particles.box // 2 + 1, device=noise_variance.device)
    return (
        filter_shells(wiener_update(total, constant), (shells <= radius).float(), dimensions=2)
        * settings.reference_mask
    )


def load_pool(
    problem: Problem,
    settings: Settings,
    noise_variance: Float[Tensor, "G S"],
    radius: int,
    pool: Int[Tensor, " M"],
) -> tuple[list[ImageTerms], Float[Tensor, " M"]]:
    """The pool's images on the shells of the coarse search, read once for all classes, and `|X /
    sigma|` of each there."""
    inner = half_plane(
        problem.particles.box,
        coarse_radius(settings.search, problem.particles.box, radius, 2),
        noise_variance.device,
    )
    terms: list[ImageTerms] = []
    norms: list[Tensor] = []

    def load(index: Int[Tensor, " B"]) -> tuple[ImageTerms, Tensor]:
        zero = torch.zeros(len(index), 2, device=noise_variance.device)
        batch = load_batch(problem.particles, index, inner, noise_variance, zero, problem.images)
        power = squared_modulus(batch.transforms) / batch.sigma2[batch.group]
        return batch.scored, (inner.hermitian_weight[1:] * power[:, 1:]).sum(1).sqrt()

    def keep(loaded: tuple[ImageTerms, Tensor]) -> None:
        terms.append(loaded[0])
        norms.append(loaded[1])

    in_batches(pool, problem.batch_size, load, [keep])
    return terms, torch.cat(norms)


def similarity(
    settings: Settings,
    radius: int,
    image: Float[Tensor, "1 box box"],
    terms: list[ImageTerms],
    norms: Float[Tensor, " M"],
) -> Float[Tensor, " M"]:
    """Correlation coefficient of each image of the pool with one class image, at the best coarse
    rotation and shift."""
    search = prepare_search(prepare_references(image, radius), settings.search, radius)
    found = []
    for part in terms:
        zero = torch.zeros(len(part), 2, device=norms.device)
        found += [score.amax(1) for score in coarse_scores(search, part, zero, search.planes[0])]
    return (torch.cat(found) / norms.clamp(min=1e-20)).cpu()
