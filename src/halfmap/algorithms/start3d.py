"""First volumes for 3D classification from one: the directions in which the particles differ most, then k-means along them.

Random shares of the particles give K volumes that differ by noise alone, and an iteration started there rarely finds the kinds of
particle. At fixed poses the question is linear, and has one answer: with `X_i = C_i P_i (V_0 + z_i V_1) + N` and z_i ~ N(0, 1),
expectation-maximisation alternates

    z_i = g_i / (h_i + 1),   g_i = sum_j w Re(conj(d_i - p_i R_0) R_1),   h_i = sum_j w p_i |R_1|^2,   var_i = 1 / (h_i + 1)
    V_1 = sum_i P^T z_i (d_i - p_i R_0) / (sum_i P^T (z_i^2 + var_i) p_i + k)

with d = S^-1 C X / sigma^2, p = C^2 / sigma^2 and R the slices: probabilistic principal component analysis, one component after another.
Tipping and Bishop, J. R. Stat. Soc. B 61, 611 (1999); for cryo-EM Tagare et al., J. Struct. Biol. 191, 245 (2015).
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from halfmap.algorithms.settings import Settings
from halfmap.algorithms.update import wiener
from halfmap.engine.images import Batch, batches, load_batch
from halfmap.engine.loop import Method, Problem, iterate, sum_at_poses
from halfmap.engine.state import Poses, State
from halfmap.fourier import HalfPlane, half_plane, shift_phases
from halfmap.progress import Progress
from halfmap.projection import empty_sums, hermitian_mates, insert_slices, prepare_references, project
from halfmap.reconstruct import shell_weight, wiener_update

POSE_ITERATIONS = 4
COMPONENT_ITERATIONS = 60
SETTLED = 0.9995  # cosine between the coordinates of two iterations
_WIENER = 0.1  # share of a shell's mean weight that regularises a component


def split_start(problem: Problem, one: Problem, method: Method, settings: Settings, state: State, seed: int, progress: Progress) -> State:
    """K starting volumes from one: poses against it alone, K - 1 principal components at those poses, k-means of the coordinates.

    `one` and `method` are the problem and the method with a single class.
    """
    used, state = problem.half >= 0, method.start(state)
    for _ in range(POSE_ITERATIONS):
        progress.start_iteration(0, int(used.sum()), "one reference")
        state, _ = iterate(one, method, state, advance=progress.advance)
    progress.start_iteration(0, problem.n_classes - 1, "principal differences")
    coordinates = principal_coordinates(one, settings, state, problem.n_classes - 1, seed)
    classes = torch.zeros(len(problem.half), dtype=torch.long)
    classes[used] = cluster(coordinates[used], problem.n_classes, seed)
    poses = replace(state.poses, classes=classes)
    update = wiener(problem, settings, state, poses, sum_at_poses(problem, poses, state.noise_variance))
    return replace(
        state,
        iteration=0,
        history=(),
        references=update.references,
        poses=poses,
        radius=update.radius,
        curves=update.curves,
        modes=None,
        prior=None,
    )


def cluster(coordinates: Float[Tensor, "N q"], k: int, seed: int) -> Int[Tensor, " N"]:
    """k-means with k-means++ starts, the best of ten that leave no class empty; at random where none does."""
    from scipy.cluster.vq import ClusterError, kmeans2

    points = coordinates.double().numpy()
    best: tuple[float, np.ndarray] | None = None
    for attempt in range(10):
        try:
            with np.errstate(all="ignore"):
                centres, labels = kmeans2(points, k, minit="++", rng=np.random.default_rng([seed, 4, attempt]), missing="raise")
        except (ClusterError, ValueError):  # an empty cluster; fewer different points than clusters
            continue
        spread = float(((points - centres[labels]) ** 2).sum())
        if best is None or spread < best[0]:
            best = (spread, labels)
    labels = best[1] if best is not None else np.random.default_rng([seed, 5]).permutation(len(points)) % k
    return torch.from_numpy(labels.astype(np.int64))


def principal_coordinates(problem: Problem, settings: Settings, state: State, n_components: int, seed: int) -> Float[Tensor, "N q"]:
    """Coordinates of each particle along the strongest `n_components` directions of variation, on shells up to the state's radius."""
    inner = half_plane(problem.particles.box, state.radius, problem.images.device)
    generator = torch.Generator().manual_seed(seed)
    mean = state.references.mean(0)
    found: list[Tensor] = []
    coordinates: list[Tensor] = []
    for _ in range(n_components):
        z, variance = torch.randn(len(problem.half), generator=generator), torch.ones(len(problem.half))
        component = mean
        for _ in range(COMPONENT_ITERATIONS):
            before = z
            component = _component(problem, settings, state, [mean, *found], coordinates, z, variance, inner)
            z, variance = _coordinates(problem, state, [mean, *found], coordinates, component, inner)
            if float(torch.nn.functional.cosine_similarity(before, z, dim=0)) > SETTLED:
                break
        found.append(component)
        coordinates.append(z)
    return torch.stack(coordinates, 1)


def _component(
    problem: Problem,
    settings: Settings,
    state: State,
    known: list[Tensor],
    coordinates: list[Tensor],
    z: Float[Tensor, " N"],
    variance: Float[Tensor, " N"],
    inner: HalfPlane,
) -> Float[Tensor, "1 box box box"]:
    """M-step: the volume that, times z_i, best explains what the known volumes leave over."""
    sums = empty_sums(1, problem.particles.box, inner.radius, 3, device=problem.images.device)
    for batch, poses, residual in _residuals(problem, state, known, coordinates, inner):
        here, spread = z[batch.index.cpu()].to(residual.device)[:, None], variance[batch.index.cpu()].to(residual.device)[:, None]
        power = batch.whole.power[:, : len(inner)]
        insert_slices(sums, here * residual, (here**2 + spread) * power, poses.rotations, inner, symmetry=problem.symmetry)
    total = hermitian_mates(sums)
    return wiener_update(total, _WIENER * shell_weight(total)) * settings.solvent_mask


def _coordinates(
    problem: Problem, state: State, known: list[Tensor], coordinates: list[Tensor], component: Tensor, inner: HalfPlane
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """E-step: posterior mean and variance of each particle's coordinate."""
    n = len(problem.half)
    z, variance = torch.zeros(n), torch.ones(n)
    references = prepare_references(component, inner.radius)
    weight = inner.hermitian_weight
    for batch, poses, residual in _residuals(problem, state, known, coordinates, inner):
        slices = project(references, poses.rotations, inner)
        g = (weight * (residual.conj() * slices).real).sum(1)
        h = (weight * batch.whole.power[:, : len(inner)] * (slices.real**2 + slices.imag**2)).sum(1)
        z[batch.index.cpu()], variance[batch.index.cpu()] = (g / (h + 1)).cpu(), (1 / (h + 1)).cpu()
    return z, variance


def _residuals(
    problem: Problem, state: State, known: list[Tensor], coordinates: list[Tensor], inner: HalfPlane
) -> Iterator[tuple[Batch, Poses, Complex[Tensor, "B J"]]]:
    """Batches, their poses, and `d_i - p_i (R_0 + sum_c z_ic R_c)`: what the known volumes leave over, centred, on the inner shells."""
    references = [prepare_references(volume, inner.radius) for volume in known]
    used = torch.nonzero(problem.half >= 0)[:, 0]  # every process needs every coordinate
    for index in batches(used, problem.batch_size):
        poses = state.poses.take(index).to(problem.images.device)
        batch: Batch = load_batch(problem.particles, index, problem.plane, state.noise_variance, poses.shift_px, problem.images)
        model: Complex[Tensor, "B J"] = project(references[0], poses.rotations, inner)
        for volume, z in zip(references[1:], coordinates, strict=True):
            model = model + z[index].to(model.device)[:, None] * project(volume, poses.rotations, inner)
        n = len(inner)
        yield batch, poses, batch.scored.data[:, :n] * shift_phases(poses.shift_px, inner) - batch.scored.power[:, :n] * model
