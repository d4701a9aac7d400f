"""First volumes for 3D classification from one: the directions in which the particles differ most,
then k-means along them.

Random shares of the particles give K volumes that differ by noise alone, and an iteration started
there rarely finds the kinds of particle. At fixed poses the question is linear, and has one answer:
with `X_i = C_i P_i (V_0 + z_i V_1) + N` and z_i ~ N(0, 1), expectation-maximisation alternates

    z_i = g_i / (h_i + 1),   var_i = 1 / (h_i + 1),
    g_i = sum_j w Re(conj(d_i - p_i R_0) R_1),   h_i = sum_j w p_i |R_1|^2
    V_1 = sum_i P^T z_i (d_i - p_i R_0) / (sum_i P^T (z_i^2 + var_i) p_i + k)

with d = S^-1 C X / sigma^2, p = C^2 / sigma^2 and R the slices: probabilistic principal component
analysis, one component after another. Tipping and Bishop, J. R. Stat. Soc. B 61, 611 (1999); for
cryo-EM Tagare et al., J. Struct. Biol. 191, 245 (2015).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from halfmap.engine.loop import Method, Problem, iterate, sum_at_poses
from halfmap.engine.norm_and_scale import norm_and_scale_of
from halfmap.engine.preprocessing import batches, load_batch
from halfmap.engine.state import State
from halfmap.fourier import HalfPlane, half_plane, shift_phases
from halfmap.methods.reference_update import update_references
from halfmap.methods.settings import Settings
from halfmap.projection import (
    empty_sums,
    extract_slices,
    hermitian_mates,
    insert_slices,
    prepare_references,
)
from halfmap.reconstruction import shell_weight, wiener_update
from halfmap.workspace.progress import Progress

POSE_ITERATIONS = 4
COMPONENT_ITERATIONS = 60
SETTLED = 0.9995  # cosine between the coordinates of two iterations
REMEMBERED_BYTES = 1 << 30  # of particles from which components are found
_WIENER = 0.1  # share of a shell's mean weight that regularises a component


def split_start(
    problem: Problem,
    one: Problem,
    method: Method,
    settings: Settings,
    state: State,
    seed: int,
    progress: Progress,
) -> State:
    """K starting volumes from one: poses against it alone, K - 1 principal components at those
    poses, k-means of the coordinates.

    `one` and `method` are the problem and the method with a single class.
    """
    used, state = problem.half >= 0, method.start(state)
    for _ in range(POSE_ITERATIONS):
        progress.start_stage("one reference", int(used.sum()))
        state, _ = iterate(one, method, state, advance=progress.advance)
    progress.start_stage("principal differences", problem.n_classes - 1)
    coordinates = principal_coordinates(one, settings, state, problem.n_classes - 1, seed)
    classes = torch.zeros(len(problem.half), dtype=torch.long)
    classes[used] = cluster(coordinates[used], problem.n_classes, seed)
    poses = replace(state.poses, classes=classes)
    update = update_references(
        problem,
        settings,
        state,
        poses,
        sum_at_poses(problem, poses, state.noise_variance, norm=state.norm, scale=state.scale),
    )
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


def principal_coordinates(
    problem: Problem, settings: Settings, state: State, n_components: int, seed: int
) -> Float[Tensor, "N q"]:
    """Coordinates of each particle along the strongest `n_components` directions of variation, on
    shells up to the state's radius.

    Components are found on as many particles, drawn at random, as `REMEMBERED_BYTES` hold;
    coordinates along them are given to all.
    """
    inner = half_plane(problem.particles.box, state.radius, problem.images.device)
    used = torch.nonzero(problem.half >= 0)[:, 0]
    some = used[: REMEMBERED_BYTES // (12 * len(inner))]
    if len(some) < len(used):
        chosen = np.random.default_rng([seed, 6]).choice(len(used), len(some), replace=False)
        some = used[torch.from_numpy(np.sort(chosen))]
    generator = torch.Generator().manual_seed(seed)
    volumes = [state.references.mean(0)]
    coordinates: list[Tensor] = []
    for _ in range(n_components):
        rest = list(_residuals(problem, state, volumes, coordinates, inner, some))
        z, variance = (
            torch.randn(len(problem.half), generator=generator),
            torch.ones(len(problem.half)),
        )
        for _ in range(COMPONENT_ITERATIONS):
            before = z
            component = _component(problem, settings, rest, z, variance, inner)
            z, variance = _coordinates(rest, component, inner, len(problem.half))
            if float(torch.nn.functional.cosine_similarity(before[some], z[some], dim=0)) > SETTLED:
                break
        if len(some) < len(used):
            z, _ = _coordinates(
                _residuals(problem, state, volumes, coordinates, inner, used),
                component,
                inner,
                len(problem.half),
            )
        volumes.append(component)
        coordinates.append(z)
    return torch.stack(coordinates, 1)


@dataclass(frozen=True)
class _Rest:
    """What the known volumes leave over of some particles: `d_i - p_i (R_0 + sum_c z_ic R_c)`,
    centred, and their weights p_i."""

    index: Int[Tensor, " B"]
    rotations: Float[Tensor, "B 3 3"]
    data: Complex[Tensor, "B J"]
    power: Float[Tensor, "B J"]


def _component(
    problem: Problem,
    settings: Settings,
    rest: Iterable[_Rest],
    z: Float[Tensor, " N"],
    variance: Float[Tensor, " N"],
    inner: HalfPlane,
) -> Float[Tensor, "1 box box box"]:
    """M-step: the volume that, times z_i, best explains what the known volumes leave over."""
    sums = empty_sums(1, problem.particles.box, inner.radius, 3, device=problem.images.device)
    for part in rest:
        here, spread = (
            values[part.index].to(part.data.device)[:, None] for values in (z, variance)
        )
        insert_slices(
            sums,
            here * part.data,
            (here**2 + spread) * part.power,
            part.rotations,
            inner,
            symmetry=problem.symmetry,
        )
    total = hermitian_mates(sums)
    return wiener_update(total, _WIENER * shell_weight(total)) * settings.solvent_mask


def _coordinates(
    rest: Iterable[_Rest], component: Tensor, inner: HalfPlane, n: int
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """E-step: posterior mean and variance of each particle's coordinate; 0 and 1 for those that are
    not among them."""
    z, variance = torch.zeros(n), torch.ones(n)
    references = prepare_references(component, inner.radius)
    weight = inner.hermitian_weight
    for part in rest:
        slices = extract_slices(references, part.rotations, inner)
        g = (weight * (part.data.conj() * slices).real).sum(1)
        h = (weight * part.power * (slices.real**2 + slices.imag**2)).sum(1)
        z[part.index], variance[part.index] = (g / (h + 1)).cpu(), (1 / (h + 1)).cpu()
    return z, variance


def _residuals(
    problem: Problem,
    state: State,
    volumes: list[Tensor],
    coordinates: list[Tensor],
    inner: HalfPlane,
    index: Int[Tensor, " M"],
) -> Iterator[_Rest]:
    """What the mean volume and the components found so far leave over, batch by batch."""
    references = [prepare_references(volume, inner.radius) for volume in volumes]
    for piece in batches(index, problem.batch_size):  # every process needs every coordinate
        poses = state.poses.take(piece).to(problem.images.device)
        norm, scale = norm_and_scale_of(state.norm, state.scale, problem.scale_group, piece)
        batch = load_batch(
            problem.particles,
            piece,
            inner,
            state.noise_variance,
            poses.shift_px,
            problem.images,
            norm=norm,
            scale=scale,
        )
        model: Complex[Tensor, "B J"] = extract_slices(references[0], poses.rotations, inner)
        for volume, z in zip(references[1:], coordinates, strict=True):
            model = model + z[piece].to(model.device)[:, None] * extract_slices(
                volume, poses.rotations, inner
            )
        left = batch.scored.data * shift_phases(poses.shift_px, inner) - batch.scored.power * model
        yield _Rest(piece, poses.rotations, left, batch.scored.power)
