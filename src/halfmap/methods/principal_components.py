"""The directions in which particles at known poses differ most: probabilistic principal component
analysis, an expectation-maximisation like any other.

With `X_i = C_i P_i (V_0 + z_i V_1) + N` and z_i ~ N(0, 1), the E-step finds the loadings z_i given
V_1, and the M-step V_1 given the loadings,

    z_i = g_i / (h_i + 1),   var_i = 1 / (h_i + 1),
    g_i = sum_j w Re(conj(d_i - p_i R_0) R_1),   h_i = sum_j w p_i |R_1|^2
    V_1 = sum_i P^T z_i (d_i - p_i R_0) / (sum_i P^T (z_i^2 + var_i) p_i + k)

with d = S^-1 C X / sigma^2, p = C^2 / sigma^2 and R the slices; one component after another, each
of what those before it leave over. Tipping and Bishop, J. R. Stat. Soc. B 61, 611 (1999); for
cryo-EM Tagare et al., J. Struct. Biol. 191, 245 (2015).

To the engine it is a method that searches no pose: its one reference is V_1, a batch holds what is
left over of its images, and the loadings are a statistic.
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.distributed import all_sum
from halfmap.engine.image_model import load_images
from halfmap.engine.loop import iterate, run
from halfmap.engine.method import Iteration, Method, Update, WeighedBatch
from halfmap.engine.posterior_weights import assign_hard
from halfmap.engine.preprocessing import Batch
from halfmap.engine.problem import Problem
from halfmap.engine.state import Poses, State
from halfmap.fourier import half_plane, shift_phases
from halfmap.likelihood import ImageTerms
from halfmap.masks import resampled
from halfmap.methods.search_schedule import at_present_poses
from halfmap.methods.settings import Settings
from halfmap.projection import FourierReferences, Sums, extract_slices, prepare_references
from halfmap.reconstruction import shell_weight, wiener_update

COMPONENT_ITERATIONS = 60
SETTLED = 0.9995  # cosine between the loadings of two iterations
REMEMBERED_BYTES = 1 << 30  # of particles from which components are found
_WIENER = 0.1  # share of a shell's mean weight that regularises a component


@dataclass(frozen=True)
class Loadings:
    """Posterior mean and variance of each particle's loading of a component, and the cosine of the
    means with those of the iteration before."""

    mean: Float[Tensor, " N"]
    variance: Float[Tensor, " N"]
    cosine: float = 0.0


@dataclass(frozen=True)
class Component:
    """The volume that the present loadings belong to."""

    volume: Float[Tensor, "1 N N N"]


@dataclass(frozen=True)
class KnownPart:
    """What is taken off the images: the state with the mean volumes, poses and image model, the
    components found before, and each particle's loadings of them."""

    state: State
    volumes: tuple[Float[Tensor, "1 N N N"], ...]
    loadings: tuple[Float[Tensor, " images"], ...]


def principal_loadings(
    problem: Problem, settings: Settings, state: State, n_components: int, seed: int
) -> Float[Tensor, "N q"]:
    """Loadings of each particle on the strongest `n_components` directions of variation, on shells
    up to the state's radius; the poses are the state's.

    Components are found on as many particles, drawn at random, as `REMEMBERED_BYTES` hold; loadings
    of them are given to all.
    """
    problem = replace(problem, matched_to="shared", n_classes=1, fold=None, n_folds=1)
    some = _few_particles(problem, state, seed)
    generator = torch.Generator().manual_seed(seed)
    known = KnownPart(state, (state.references.mean(0),), ())
    for _ in range(n_components):
        start = torch.randn(len(problem.half), generator=generator)
        method = principal_component(problem, settings, known, some)
        last = _first_state(state, start)
        for new, _ in run(problem, method, last, iterations=COMPONENT_ITERATIONS + 1):
            last = new
        component, found = last.method, last.find(Loadings)
        if int((some >= 0).sum()) < len(problem.used):
            method = principal_component(problem, settings, known, problem.half)
            at_component = replace(last, references=component.volume[None])
            found = iterate(problem, method, at_component)[0].find(Loadings)
        assert found is not None
        volumes, loadings = (*known.volumes, component.volume), (*known.loadings, found.mean)
        known = KnownPart(state, volumes, loadings)
    return torch.stack(known.loadings, 1)


def principal_component(
    problem: Problem, settings: Settings, known: KnownPart, half: Int[Tensor, " N"]
) -> Method:
    """The method as the engine runs it, on the particles whose `half` is not -1."""
    volumes = [volume.to(problem.device) for volume in known.volumes]
    box = problem.particles.box
    taken_off = [prepare_references(volume, known.state.radius, box=box) for volume in volumes]
    remembered: dict[tuple[int, int], Batch] = {}

    def load(iteration: Iteration, index: Int[Tensor, " B"]) -> Batch:
        which = int(index[0]), len(index)  # the same in every iteration, or halves of them
        if which not in remembered:
            remembered[which] = _what_is_left(known, taken_off, iteration, index)
        return remembered[which]

    return Method(
        prepare=at_present_poses,
        assign=assign_hard,
        update=partial(_update, settings),
        converged=_converged,
        select=lambda state, all_halves: half,
        plane=lambda problem, radius: half_plane(problem.particles.box, radius, problem.device),
        load=load,
        terms=_loaded_terms,
        statistics=(LoadingsStatistic(),),
    )


def _first_state(state: State, loadings: Float[Tensor, " N"]) -> State:
    """No component yet, random loadings; images are centred when they are loaded."""
    return State(
        iteration=0,
        references=torch.zeros_like(state.references[:1]),
        poses=replace(state.poses, shift_px=torch.zeros_like(state.poses.shift_px)),
        radius=state.radius,
        curves=state.curves,
        statistics=(Loadings(loadings, torch.ones_like(loadings)),),
    )


def _few_particles(problem: Problem, state: State, seed: int) -> Int[Tensor, " N"]:
    """The halves of as many particles as `REMEMBERED_BYTES` hold, -1 for the others."""
    used = problem.used
    samples = len(half_plane(problem.particles.box, state.radius, problem.device))
    some = used[: REMEMBERED_BYTES // (12 * samples)]
    if len(some) < len(used):
        chosen = np.random.default_rng([seed, 6]).choice(len(used), len(some), replace=False)
        some = used[torch.from_numpy(np.sort(chosen))]
    half = torch.full_like(problem.half, -1)
    half[some] = problem.half[some]
    return half


def _what_is_left(
    known: KnownPart,
    taken_off: list[FourierReferences],
    iteration: Iteration,
    index: Int[Tensor, " B"],
) -> Batch:
    """Images without what is known: `d_i - p_i (R_0 + sum_c z_ic R_c)`, centred, and p_i."""
    problem, plane = iteration.problem, iteration.plane
    batch = load_images(problem, known.state, index, plane)
    poses = known.state.poses.select_images(index).to(problem.device)
    strengths = (torch.ones(len(index)), *(z[index] for z in known.loadings))
    model = torch.zeros_like(batch.scored.data)
    for n, (references, z) in enumerate(zip(taken_off, strengths, strict=True)):
        slices = extract_slices(references, poses.rotations, plane)
        model = slices if n == 0 else model + z.to(problem.device)[:, None] * slices
    centred = batch.scored.data * shift_phases(poses.shift_px, plane)
    left = ImageTerms(centred - batch.scored.power * model, batch.scored.power)
    no_transforms = batch.transforms[:, :0].clone()  # a view would keep all of them
    return replace(batch, scored=left, whole=left, transforms=no_transforms)


def posterior_loadings(weighed: WeighedBatch) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """E-step: mean and variance of the batch's loadings; those given in the first iteration."""
    state, left = weighed.iteration.state, weighed.batch.scored
    if state.iteration == 0:
        given, index = state.find(Loadings), weighed.batch.index.cpu()
        assert given is not None
        device = left.data.device
        return given.mean[index].to(device), given.variance[index].to(device)
    plane = weighed.iteration.plane
    slices = extract_slices(weighed.references, weighed.weights.rotations, plane)
    weight = plane.hermitian_weight
    g = (weight * (left.data.conj() * slices).real).sum(1)
    h = (weight * left.power * (slices.real**2 + slices.imag**2)).sum(1)
    return g / (h + 1), 1 / (h + 1)


def _loaded_terms(weighed: WeighedBatch) -> ImageTerms:
    """What each image adds: `z (d - p R_0)` and `(z^2 + var) p`."""
    z, variance = (value[:, None] for value in weighed.once(posterior_loadings))
    left = weighed.batch.scored
    return ImageTerms(z * left.data, (z**2 + variance) * left.power)


class LoadingsStatistic:
    """Keeps the loadings of all particles; 0, of variance 1, where a particle took no part."""

    name = "loadings"

    def empty(self, iteration: Iteration) -> Float[Tensor, "2 N"]:
        return torch.zeros(2, len(iteration.half))

    def add(self, partial: Float[Tensor, "2 N"], weighed: WeighedBatch) -> Float[Tensor, "2 N"]:
        loadings = torch.stack(weighed.once(posterior_loadings)).cpu()
        partial[:, weighed.batch.index.cpu()] = loadings
        return partial

    def reduce(self, partial: Float[Tensor, "2 N"]) -> Float[Tensor, "2 N"]:
        return all_sum(partial)

    def finish(
        self, partial: Float[Tensor, "2 N"], iteration: Iteration, update: Update, state: State
    ) -> State:
        used, before = iteration.half >= 0, iteration.state.find(Loadings)
        assert before is not None
        mean, variance = partial[0], torch.where(used, partial[1], 1.0)
        cosine = 0.0
        if iteration.state.iteration > 0:
            old, new = before.mean[used], mean[used]
            cosine = float(torch.nn.functional.cosine_similarity(old, new, dim=0))
        return state.keeping(Loadings(mean, variance, cosine))


def _update(settings: Settings, iteration: Iteration, poses: Poses, halves: list[Sums]) -> Update:
    """M-step: the volume that, times z_i, best explains what the known volumes leave over; the one
    that the loadings were found with is kept."""
    total = halves[0] + halves[1]
    box = iteration.state.references.shape[-1]
    mask = resampled(settings.reference_mask, box)
    volume = wiener_update(total, _WIENER * shell_weight(total), box=box) * mask
    if settings.focus_mask is not None:
        volume = volume * resampled(settings.focus_mask, box).to(volume)
    return Update(
        references=volume[None],
        curves=iteration.state.curves,
        radius=iteration.state.radius,
        kept=Component(iteration.state.references[0]),
    )


def _converged(state: State) -> bool:
    loadings = state.find(Loadings)
    return loadings is not None and loadings.cosine > SETTLED
