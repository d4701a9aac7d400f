"""Whether images tell their classes, asked on split noise: the classes of maximum likelihood,
checked.

Where classification ended, maps and labels may hold each other up by noise. From there
expectation-maximisation goes on at the poses found, for classes only, with the noise of each image
split anew in each iteration (`engine.split_noise`): labels P_ik = P(k | X_1i), maps from X_2. As
nothing of X_1's noise is in X_2, the mean of X_2 given the labels is `C P sum_k P_ik A_k`, unsure
labels and all, and the maps follow by least squares: along the principal directions of

    S_kl = sum_i P_ik P_il / sqrt(n_k n_l) = sum_m lambda_m u_mk u_ml,    n_k = sum_i P_ik,
    a_m = num_m / (lambda_m den + k_m),    num_m = sum_k W_mk num_k,    W_mk = u_mk / sqrt(n_k / n),
    A_k = sum_m W_mk a_m,

num_k and den the two sums (one map a_m, of lambda = 1, is the mean of all images; in two equal
classes the other is half of their difference, and lambda the mean of (P_1 - P_2)^2). k_m is the
Wiener filter's, from the correlation of a_m between half sets, whose noises are independent
whatever the labels; a direction in which they agree by chance only is 0 from there on, and images
tell no classes along it. An image meets maps without its own part of the data. At the end each
whole image is compared with the maps of the last draws together.
"""

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.distributed import all_sum
from halfmap.engine.class_posterior import ClassProbability, ClassProbabilityStatistic
from halfmap.engine.image_model import ReferenceVariance, load_images, noise_variance
from halfmap.engine.loop import Advance, iterate
from halfmap.engine.method import Iteration, Method, Update, WeighedBatch
from halfmap.engine.pose_prior import PosePrior, PosePriorStatistic
from halfmap.engine.posterior_weights import assign_posterior, best_poses
from halfmap.engine.preprocessing import Batch
from halfmap.engine.problem import Problem
from halfmap.engine.reference_variance import unknown_power
from halfmap.engine.significant_poses import (
    MOST_POSES,
    SignificantPoses,
    SignificantPosesStatistic,
    significant_poses,
)
from halfmap.engine.split_noise import SplitNoise
from halfmap.engine.state import Candidates, Poses, State
from halfmap.masks import resampled
from halfmap.methods.class_differences import smoothed_ssnr
from halfmap.methods.maximum_likelihood import maximum_likelihood
from halfmap.methods.reference_update import (
    chance_correlation,
    compared_sums,
    half_curves,
    half_maps,
    regularised,
)
from halfmap.methods.settings import Settings
from halfmap.projection import Sums

CHECK_ITERATIONS = 8  # in which what noise had told is forgotten
CHECK_FOLDS = 2  # of each half: maps without an image's own fold hold three quarters of all images
# what a draw's sums still weigh in the next: three draws are averaged, (1 + r) / (1 - r), and the
# noise of the maps' images falls from 1 + 1 / g^2 to 1 + 1 / 3 g^2, least with that of labels,
# 1 + g^2, at g^2 = 1 / sqrt(3)
REMEMBERED = 0.5
SPLIT_G = 3**-0.25
# of an image's mean probability, for want of what splitting takes away: 0.03 to 0.08 where whole
# images were right as often as they said (docs/maximum_likelihood.md)
SPLITTING_COSTS = 0.1
# Standard deviations of chance by which half sets must agree, on the shells up to the one where
# they do most
SIGNIFICANT = 3.0
MORE_SHELLS = 3  # than those up to which they agree best: what is beyond may come out yet
LEAST_SHARE = 1e-4  # of images in a class, and lambda of labels that tell anything


@dataclass(frozen=True)
class Drawn:
    """The sums of the draws so far, the last counting most; by shell, what their maps do not know;
    and whether half sets agree on any difference of classes."""

    parts: list[Sums]
    variance: Float[Tensor, " S"]
    differ: bool


@dataclass(frozen=True)
class CheckedClasses:
    """The state after the check; the mean probability of images' classes that they said before, and
    what of it is borne out; whether half sets agree on any difference of classes; and the memory
    that was needed."""

    state: State
    said: float
    borne_out: float
    differ: bool
    needed_bytes: int


def checked_classes(
    problem: Problem,
    settings: Settings,
    state: State,
    fold: Int[Tensor, " N"],
    seed: int,
    *,
    advance: Advance = lambda n: None,
) -> CheckedClasses:
    """The state after a classification, where split noise bears it out: where its images are surer
    by no more than `SPLITTING_COSTS`. Else with the classes, significant poses and probabilities
    that they tell on split noise, all else as it was.

    `fold` numbers are below `CHECK_FOLDS`; where the memory is not enough for two of them, the last
    posteriors are those of X_1, whose noise is in no map.
    """
    n_folds, memory = CHECK_FOLDS, problem.memory_bytes
    while n_folds > 1 and memory is not None and check_bytes(problem, state, n_folds) > memory:
        n_folds //= 2
    needed = check_bytes(problem, state, n_folds)
    problem = replace(
        problem, matched_to="shared", fold=fold % n_folds, n_folds=n_folds, memory_bytes=None
    )
    settings = replace(settings, poses_known=True)
    mean = state.references.mean(0, keepdim=True)
    checked = replace(state, references=mean.expand(problem.n_reference_sets, *mean.shape[1:]))
    for n in range(CHECK_ITERATIONS):
        method = classes_at_poses(problem, settings, SplitNoise(seed + n, SPLIT_G))
        checked, _ = iterate(problem, method, checked, advance=advance)
        if not checked.method.differ:
            break
    split = None if n_folds > 1 else SplitNoise(seed + CHECK_ITERATIONS, SPLIT_G)
    last = replace(classes_at_poses(problem, settings, split), update=_as_before, terms=None)
    differ = checked.method.differ
    told, _ = iterate(problem, last, replace(checked, method=None), advance=advance)
    said, borne_out = (class_certainty(problem, one) for one in (state, told))
    if differ and said - borne_out <= SPLITTING_COSTS:
        return CheckedClasses(state, said, said, differ, needed)
    return CheckedClasses(with_classes(state, told), said, borne_out, differ, needed)


def check_bytes(problem: Problem, state: State, n_folds: int) -> int:
    """Memory of the check with so many folds of each half."""
    return problem.job_size.with_folds(n_folds).check_bytes(state.radius, problem.batch_size)


def class_certainty(problem: Problem, state: State) -> float:
    """The mean probability of the images' classes."""
    known = state.find(ClassProbability)
    assert known is not None  # every state of several classes keeps it
    return float(known.probability[problem.used].mean())


def classes_at_poses(problem: Problem, settings: Settings, split: SplitNoise | None) -> Method:
    """Expectation-maximisation of classes alone: E-step on X_1, M-step on X_2; on whole images
    without `split`."""

    def load(iteration: Iteration, index: Int[Tensor, " B"]) -> Batch:
        problem, plane, radius = iteration.problem, iteration.plane, iteration.scored.radius
        return load_images(problem, iteration.state, index, plane, radius=radius, split=split)

    return replace(
        maximum_likelihood(problem, settings),
        update=partial(_update, settings),
        load=load,
        statistics=(
            PosePriorStatistic(),
            SignificantPosesStatistic(),
            ClassProbabilityStatistic(),
            ClassOverlapStatistic(),
        ),
    )


class ClassOverlapStatistic:
    """Adds up `P_ik P_il`; what the M-step does not know of its maps is kept."""

    name = "class overlap"

    def empty(self, iteration: Iteration) -> Float[Tensor, "K K"]:
        n = iteration.problem.n_classes
        return torch.zeros(n, n, dtype=torch.float64, device=iteration.problem.device)

    def add(self, partial: Float[Tensor, "K K"], weighed: WeighedBatch) -> Float[Tensor, "K K"]:
        weight = class_weights(weighed.candidates, len(partial)).exp().to(partial)
        return partial + weight.T @ weight

    def reduce(self, partial: Float[Tensor, "K K"]) -> Float[Tensor, "K K"]:
        return all_sum(partial)

    def finish(
        self, partial: Float[Tensor, "K K"], iteration: Iteration, update: Update, state: State
    ) -> State:
        drawn, prior = update.kept, state.find(PosePrior)
        if not isinstance(drawn, Drawn):
            return state
        if prior is not None and not drawn.differ:  # then nothing tells how large classes are
            alike = torch.full_like(prior.classes, -math.log(len(partial)))
            prior = replace(prior, classes=alike)
        return state.keeping(prior, ReferenceVariance(drawn.variance))


def directions(products: Float[Tensor, "K K"]) -> tuple[Float[Tensor, " K"], Float[Tensor, "K K"]]:
    """lambda_m and W_mk of the class weights' products, the mean of all images last.

    >>> share, along = directions(torch.tensor([[0.4, 0.1], [0.1, 0.4]]))
    >>> share  # of labels that are right in (1 + 0.6^0.5) / 2, were all alike
    tensor([0.6000, 1.0000])
    >>> torch.allclose(along.abs(), torch.ones(2, 2))
    True
    """
    products = products / products.sum()
    sizes = products.sum(1).clamp(min=LEAST_SHARE)
    share, along = torch.linalg.eigh(products / (sizes[:, None] * sizes).sqrt())
    return share.clamp(min=LEAST_SHARE), along.T / sizes.sqrt()


def along_directions(sums: Sums, share: Float[Tensor, " K"], along: Float[Tensor, "K K"]) -> Sums:
    """`num_m` and `lambda_m den` in the places of the classes' sums."""
    num = torch.tensordot(along.to(sums.num), sums.num, dims=1)
    den = share.to(sums.den)[:, None, None, None] * sums.den.sum(0)
    return replace(sums, num=num, den=den)


def _update(settings: Settings, iteration: Iteration, poses: Poses, parts: list[Sums]) -> Update:
    """M-step along the directions of the labels; from the first on, shells are scored up to those
    where half sets agree on a difference."""
    problem, state = iteration.problem, iteration.state
    share, along = directions(iteration.summed[ClassOverlapStatistic.name].cpu())
    drawn = state.method if isinstance(state.method, Drawn) else None
    if drawn is not None and drawn.parts[0].radius == parts[0].radius:
        for new, old in zip(parts, drawn.parts, strict=True):
            new.num.add_(old.num, alpha=REMEMBERED)  # in place: no room for a third set
            new.den.add_(old.den, alpha=REMEMBERED)
    turned = [along_directions(part, share, along) for part in parts]
    box, variance = problem.reference_box(parts[0].radius), noise_variance(state)
    ssnr, shell = _ssnr(problem, settings, turned, share, box)
    ssnr = problem.share_compared * ssnr
    sets = [
        regularised(one, settings, variance[:, : ssnr.shape[1]].to(ssnr), ssnr, box=box)
        for one in compared_sums(problem, turned, None, problem.n_folds)
    ]
    seen = (ssnr > 0).any(1)
    made = torch.stack(sets) * seen[:, None, None, None] * resampled(settings.reference_mask, box)
    if settings.focus_mask is not None:
        made[:, :-1] *= resampled(settings.focus_mask, box)
    unknown = unknown_power(problem, made[0], ssnr)  # of each direction
    beyond = problem.plane.radius + 1 - unknown.shape[1]
    beside = (along.to(unknown).T ** 2 @ unknown).mean(0).float()
    return Update(
        references=torch.einsum("mk,hm...->hk...", along.to(made), made),
        curves=state.curves,
        radius=state.radius if drawn else min(state.radius, shell + MORE_SHELLS),
        kept=Drawn(
            parts, torch.nn.functional.pad(beside, (0, beyond)).cpu(), bool(seen[:-1].any())
        ),
    )


def _ssnr(
    problem: Problem, settings: Settings, turned: list[Sums], share: Float[Tensor, " K"], box: int
) -> tuple[Float[Tensor, "K S"], int]:
    """SSNR of all images' sums along each direction, 0 where half sets agree by chance only; and
    the last shell up to which they agree best in one of them."""
    halves, radius = half_maps(problem, turned, box), turned[0].radius
    focus = settings.fsc_mask if settings.focus_mask is None else settings.focus_mask
    inside = replace(settings, fsc_mask=focus)
    curves = half_curves(problem, inside, (halves[0][:-1], halves[1][:-1]), radius)
    curves += half_curves(problem, settings, (halves[0][-1:], halves[1][-1:]), radius)
    fsc = torch.stack([curve.correlation for curve in curves]).to(turned[0].den)[:, : radius + 1]
    chance = chance_correlation(
        radius + 1,
        dimensions=3,
        share=1.0 if focus is None else float(focus.double().mean()),
        operators=len(problem.symmetry),
    ).to(fsc)
    known = chance**-2 / 3  # a single shell's
    known[0] = 0
    up_to = known.cumsum(0)[1:]  # low shells may be all that differ
    evidence, place = ((known * fsc).cumsum(1)[:, 1:] / up_to.sqrt()).max(1)
    evidence[-1] = torch.inf  # the mean of all images is there
    seen = (evidence > SIGNIFICANT) & (share.to(evidence) > LEAST_SHARE)
    shells = torch.where(seen, place + 1, 0)[:-1]
    return torch.where(seen[:, None], smoothed_ssnr(fsc, of_sum=True), 0), int(shells.max())


def _as_before(iteration: Iteration, poses: Poses, parts: list[Sums]) -> Update:
    state = iteration.state
    return Update(references=state.references, curves=state.curves, radius=state.radius)


def with_classes(state: State, told: State) -> State:
    """The state whose images weigh classes as those of `told` do, and in each class their poses as
    before; in a class that they had no pose in, they have the pose of `told`."""
    before, after = significant_poses(state), significant_poses(told)
    n_classes = state.references.shape[1]
    old, new = (class_weights(one, n_classes) for one in (before, after))
    share = (new - old).gather(1, before.classes)
    weight = (torch.log_softmax(before.log_weight, 1) + share).round(decimals=4)
    kept = replace(before, log_weight=weight)  # rounded: in a tie the class is what it was
    unseen = old.gather(1, after.classes).isinf()
    added = torch.where(unseen, torch.log_softmax(after.log_weight, 1), -torch.inf)
    both = kept.append(replace(after, log_weight=added)).best(MOST_POSES)
    best = best_poses(both, assign_posterior(both))
    poses = replace(best, log_likelihood=state.poses.log_likelihood)
    return replace(state, poses=poses).keeping(
        SignificantPoses(both), told.find(ClassProbability), told.find(PosePrior)
    )


def class_weights(candidates: Candidates, n_classes: int) -> Float[Tensor, "N K"]:
    """`ln sum_phi P(k, phi)` of each class, -inf where an image has no pose in it."""
    weight = torch.softmax(candidates.log_weight, 1)
    none = weight.new_zeros(len(weight), n_classes)
    return none.scatter_add(1, candidates.classes, weight).log()
