"""First class images for 2D classification: averages of random subsets, or single images chosen far from each other (k-means++)."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.algorithms.settings import Settings
from halfmap.engine.images import batches, load_batch
from halfmap.engine.loop import Problem, sum_at_poses
from halfmap.engine.search import coarse_scores, prepare_search
from halfmap.engine.state import as_they_lie
from halfmap.fourier import filter_shells
from halfmap.projection import prepare_references
from halfmap.reconstruct import constant_regulariser, wiener_update

STARTS = ("kmeans++", "random")
_CANDIDATES_PER_CLASS = 20
_LEAST_CANDIDATES = 1000
_WIENER_CONSTANT = 1.0  # of a single noisy image


def starting_classes(
    problem: Problem, settings: Settings, noise_variance: Float[Tensor, "G S"], radius: int, *, how: str, seed: int
) -> Float[Tensor, "K box box"]:
    """K first class images on shells up to `radius`, masked.

    "random": averages of K random subsets as the images lie, all much alike at first. "kmeans++": CTF-corrected single images, each drawn
    with a probability proportional to `1 - CC^2` with the nearest of those drawn before, CC at the best rotation and shift
    (Arthur and Vassilvitskii, SODA 2007), from a random part of a large data set.
    """
    rng = np.random.default_rng([seed, 2])
    used = torch.nonzero(problem.half >= 0)[:, 0].numpy()
    if how == "random":
        classes = torch.full((len(problem.half),), 0)
        classes[torch.from_numpy(used)] = torch.from_numpy(rng.permutation(len(used)) % problem.n_classes)
        return _average(problem, settings, noise_variance, radius, problem.half, classes, problem.n_classes)
    wanted = max(_LEAST_CANDIDATES, _CANDIDATES_PER_CLASS * problem.n_classes)
    pool = torch.from_numpy(np.sort(rng.permutation(used)[:wanted]))
    distance = np.ones(len(pool))
    chosen: list[Tensor] = []
    for _ in range(problem.n_classes):
        pick = rng.choice(len(pool), p=distance / distance.sum() if distance.sum() > 0 else None)
        alone = torch.full_like(problem.half, -1)
        alone[pool[pick]] = 0
        image = _average(problem, settings, noise_variance, radius, alone, torch.zeros_like(alone), 1)
        chosen.append(image)
        similar = similarity(problem, settings, noise_variance, radius, image, pool)
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
    first, second = sum_at_poses(part, as_they_lie(classes), noise_variance)
    total = first + second
    constant = constant_regulariser(total, _WIENER_CONSTANT, (1 / noise_variance).mean(0)[: total.radius + 1])
    shells = torch.arange(problem.particles.box // 2 + 1, device=noise_variance.device)
    return filter_shells(wiener_update(total, constant), (shells <= radius).float(), dimensions=2) * settings.solvent_mask


def similarity(
    problem: Problem,
    settings: Settings,
    noise_variance: Float[Tensor, "G S"],
    radius: int,
    image: Float[Tensor, "1 box box"],
    pool: Int[Tensor, " M"],
) -> Float[Tensor, " M"]:
    """Correlation coefficient of each image of the pool with one class image, at the best coarse rotation and shift."""
    search = prepare_search(prepare_references(image, radius), settings.search, radius)
    plane, level = problem.plane, search.planes[0]
    found = []
    for index in batches(pool, problem.batch_size):
        zero = torch.zeros(len(index), 2, device=noise_variance.device)
        batch = load_batch(problem.particles, index, plane, noise_variance, zero, problem.images)
        score = torch.cat([s.amax(1) for s in coarse_scores(search, batch.scored, zero, plane)])
        inner = batch.transforms[:, 1 : len(level)]
        sigma2 = noise_variance[batch.group][:, level.shell[1:]]
        norm = (level.hermitian_weight[1:] * (inner.real**2 + inner.imag**2) / sigma2).sum(1).sqrt()
        found.append((score / norm.clamp(min=1e-20)).cpu())
    return torch.cat(found)
