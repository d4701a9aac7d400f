"""First volumes for 3D classification from one: the directions in which the particles differ most,
then k-means along them.

Random shares of the particles give K volumes that differ by noise alone, and an iteration started
there rarely finds the kinds of particle. At fixed poses the question is linear, and has one answer
(`principal_components`).
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.distributed import broadcast_object
from halfmap.engine.image_model import NoiseSpectra, NormAndScale, noise_variance
from halfmap.engine.loop import Advance, iterate, sum_at_significant_poses
from halfmap.engine.method import Method
from halfmap.engine.posterior_weights import assign_hard
from halfmap.engine.problem import Problem
from halfmap.engine.state import State
from halfmap.methods.principal_components import principal_loadings
from halfmap.methods.reference_update import update_references
from halfmap.methods.settings import Settings

POSE_ITERATIONS = 4

Announce = Callable[[str, int], None]


def split_start(
    problem: Problem,
    one: Problem,
    method: Method,
    settings: Settings,
    state: State,
    seed: int,
    *,
    announce: Announce = lambda stage, total: None,
    advance: Advance = lambda n: None,
) -> State:
    """K starting volumes from one: poses against it alone, K - 1 principal components at those
    poses, k-means of the loadings.

    `one` and `method` are the problem and the method with a single class; `announce` is told each
    stage and how many steps it has.
    """
    used, state = problem.half >= 0, method.start(state)
    for _ in range(POSE_ITERATIONS):
        announce("one reference", int(used.sum()))
        state, _ = iterate(one, method, state, advance=advance)
    announce("principal differences", problem.n_classes - 1)
    loadings = principal_loadings(one, settings, state, problem.n_classes - 1, seed)
    classes = torch.zeros(len(problem.half), dtype=torch.long)
    classes[used] = broadcast_object(cluster(loadings[used], problem.n_classes, seed))
    kept = [state.find(NoiseSpectra), state.find(NormAndScale)]
    start = State(
        iteration=0,
        references=state.references,
        poses=replace(state.poses, classes=classes),
        radius=state.radius,
        curves=state.curves,
        statistics=tuple(one for one in kept if one is not None),
    )
    plane = problem.plane_for(state.radius)
    sums = sum_at_significant_poses(problem, assign_hard, start, plane=plane)
    variance = noise_variance(start)
    whole = replace(problem, fold=None, n_folds=1)  # the start of all folds of a half is one
    update = update_references(whole, settings, variance, start.poses, sums)
    return replace(
        start,
        references=update.references.cpu().repeat_interleave(problem.n_folds, 0),
        radius=update.radius,
        curves=update.curves,
    )


def cluster(coordinates: Float[Tensor, "N q"], k: int, seed: int) -> Int[Tensor, " N"]:
    """k-means with k-means++ starts, the best of ten that leave no class empty; at random where
    none does."""
    from scipy.cluster.vq import ClusterError, kmeans2

    points = coordinates.double().numpy()
    best: tuple[float, np.ndarray] | None = None
    for attempt in range(10):
        try:
            with np.errstate(all="ignore"):
                centres, labels = kmeans2(
                    points,
                    k,
                    minit="++",
                    rng=np.random.default_rng([seed, 4, attempt]),
                    missing="raise",
                )
        except (ClusterError, ValueError):  # an empty cluster; fewer different points than clusters
            continue
        spread = float(((points - centres[labels]) ** 2).sum())
        if best is None or spread < best[0]:
            best = (spread, labels)
    labels = (
        best[1]
        if best is not None
        else np.random.default_rng([seed, 5]).permutation(len(points)) % k
    )
    return torch.from_numpy(labels.astype(np.int64))
