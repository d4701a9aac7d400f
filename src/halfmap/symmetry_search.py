"""Which point group a map has, and where its axes lie.

A group is a set of rotations S with `V'(S x) = V'(x)`, where `V'(x) = V(Q x + t)` is the map laid
on the group's axes. First every axis of every order is looked for by itself: a direction and the
turn by 360 degrees / n about it. Groups of several axes are then built on the best of them, turned
about it, and climbed. Each group is judged by its operators one by one: all must bring the map onto
itself as well as the best symmetry there is, or the group is only nearly one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.alignment import (
    Alignment,
    Score,
    centre_of_mass_px,
    climb,
    moved_slices,
    slice_correlation,
    slice_directions,
)
from halfmap.arrays import takes_arrays
from halfmap.errors import InputError
from halfmap.fourier import HalfPlane, filter_shells, half_plane
from halfmap.masks import soft_sphere
from halfmap.projection import FourierReferences, prepare_references
from halfmap.resolution import shell_power
from halfmap.so3 import compose, radius_of_step, random_rotations
from halfmap.symmetries import symmetry_matrices

HIGHEST_ORDER = 12  # of the axes looked for
# Axes 5 degrees apart lie within 3.6 degrees of any other, and a half turn doubles that: what a
# grid of orientations 15 degrees apart leaves too.
_AXIS_STEP_DEG, _ORIENTATION_STEP_DEG = 5.0, 15.0
_FEWEST_SHELLS = 4  # on which axes are first compared, however small the box
_AXES_CLIMBED, _AXES_KEPT = 8, 3  # of each order
_COARSE_STEPS_DEG, _FINE_STEP_DEG = (4.0, 1.0), 2.0  # of the climb: first and last, first
_APART_DEG = 15.0  # axes nearer to each other than this are one peak
_TURNS_CLIMBED = 3  # of a group about its main axis
_MATES = 6  # of a group that are compared while it is climbed, at most
_TURNS_AT_RANDOM = 32
_JUDGED_PLANES = 64  # slices on which operators are judged in the end
# True operators are equal but for noise. A group with an axis of an order whose best axis is below
# this share of the best of all, or of what the noise allows, is not tried.
_WORTH_TRYING = 0.7
# Operators of one group are equal but for interpolation (a hundredth or two) and noise, whose
# standard error over the slices counts thrice.
_INTERPOLATION, _STANDARD_ERRORS = 0.02, 3.0
# The weakest signal that is symmetry at all, as share of what the map's noise allows
LEAST_SHARE = 0.8
_EMPTY = 1e-6  # of the strongest shell's power: rounding and interpolation are as strong
_MOST_SHELLS = 32  # 3,000 samples a slice
_SLICES_AT_ONCE = 40_000


@dataclass(frozen=True)
class GroupScore:
    """How well a group fits: where its axes are, the mean correlation of the map with its mates
    (`placed.correlation`), the lowest among its operators, and the standard error of that."""

    group: str
    placed: Alignment
    weakest: float
    standard_error: float

    @property
    def mean(self) -> float:
        return self.placed.correlation


@dataclass(frozen=True)
class FoundSymmetry:
    """The group found, `C1` if none, and all that were tried, best first; `expected` is the
    correlation that a symmetric map of this noise has with its mates, `by_chance` what turns at
    random give. `nearly` is a larger group that a part of the map does not follow
    (`asymmetry.held_symmetry`)."""

    group: str
    scores: tuple[GroupScore, ...]
    expected: float
    by_chance: float
    nearly: GroupScore | None = None

    @property
    def best(self) -> GroupScore | None:
        """The score of the group found; None for C1."""
        return next((one for one in self.scores if one.group == self.group), None)

    @property
    def runner_up(self) -> GroupScore | None:
        """The best group that is not part of the one found."""
        inside = subgroups(self.group)
        return next((one for one in self.scores if one.group not in inside), None)


def candidate_groups(highest_order: int = HIGHEST_ORDER) -> tuple[str, ...]:
    """C2, D2 up to the highest order, T, O and I."""
    orders = range(2, highest_order + 1)
    return (*(f"C{n}" for n in orders), *(f"D{n}" for n in orders), "T", "O", "I")


def subgroups(group: str) -> frozenset[str]:
    """Names of the candidate groups that every map of this group has as well, itself included."""
    kind, n = group[0], int(group[1:] or 1) if group[0] in "CD" else 0
    if kind in "CD":
        divisors = [m for m in range(2, n + 1) if n % m == 0]
        names = {f"C{m}" for m in divisors} | ({"C1"} if n == 1 else set())
        if kind == "D":
            names |= {f"D{m}" for m in divisors} | {"C2"}
        return frozenset(names)
    within = {"T": ("C2", "C3", "D2", "T"), "O": ("C2", "C3", "C4", "D2", "D3", "D4", "T", "O")}
    icosahedral = ("C2", "C3", "C5", "D2", "D3", "D5", "T", "I", "I1", "I2", "I3", "I4")
    return frozenset(within.get(group, icosahedral))


@takes_arrays
def find_symmetry(
    volume: Float[Tensor, "N N N"],
    *,
    radius: int,
    diameter_px: float,
    groups: Sequence[str] | None = None,
    asked: str | None = None,
    expected: float = 1.0,
) -> FoundSymmetry:
    """The point group of a map, of any frame, and where its axes are.

    Of the groups whose every operator agrees as well as the best group does (within interpolation
    and noise), the largest is the map's; none is, if even the best reaches less than `LEAST_SHARE`
    of what the noise allows. A group asked for by name is tried alone, and has to reach that
    share.

    Args:
        volume: the map. radius: Fourier shells compared. diameter_px: of the sphere around the
            centre of mass that holds the particle. groups: those to be tried, by name; all of
            `candidate_groups` if None. asked: the name of one group. expected: what a symmetric
            map with this map's noise correlates with its mates, see `expected_by_shell`.

    Raises:
        InputError: the name of no group.
    """
    search = _Search(volume.cpu(), radius, diameter_px)
    names = (asked,) if asked is not None else tuple(groups or candidate_groups())
    orders = sorted({n for name in names for n in _orders(name)})
    axes = {n: search.axes(n) for n in orders}
    highest = max(found[0].correlation for found in axes.values())
    scores = []
    for name in names:
        starts = axes[_orders(name)[0]]
        lowest = min(axes[n][0].correlation for n in _orders(name))
        worth_trying = lowest > _WORTH_TRYING * max(highest, expected)
        if len(_orders(name)) == 1 or worth_trying or asked is not None:
            near = [one for one in starts if one.correlation > _WORTH_TRYING * highest]
            scores.append(search.score(name, near or starts[:1]))
    scores.sort(key=lambda one: one.mean, reverse=True)
    level = LEAST_SHARE * expected if asked is not None else None
    return FoundSymmetry(
        _decided(scores, expected, level), tuple(scores), expected, search.by_chance()
    )


def _decided(scores: Sequence[GroupScore], expected: float, level: float | None) -> str:
    """The largest group all of whose operators reach the level; without one, that of the best."""
    best = max(one.mean for one in scores)
    if best < LEAST_SHARE * expected:
        return "C1"
    least = best * (1 - _INTERPOLATION) if level is None else level
    fit = [one for one in scores if one.weakest >= least - _STANDARD_ERRORS * one.standard_error]
    if not fit:
        return "C1"
    return max(fit, key=lambda one: (len(symmetry_matrices(one.group)), one.mean)).group


@takes_arrays
def expected_by_shell(volume: Float[Tensor, "N N N"], *, diameter_px: float) -> Float[Tensor, " S"]:
    """Correlation by shell that a symmetric map with this map's noise has with its mates: `1 -
    noise / power` inside the sphere of the particle.

    The noise is what the corners of the box hold, beyond the sphere that touches its faces; a map
    that is empty there counts as free of noise. Shells that a filter has emptied count as noise.
    """
    box = volume.shape[-1]
    inside = soft_sphere(box, radius_px=diameter_px / 2, edge_px=2)
    outside = 1 - soft_sphere(box, radius_px=0.48 * box, edge_px=0.02 * box)
    density = volume.cpu() - (volume.cpu() * outside).sum() / outside.sum()
    power = shell_power(torch.stack([density * inside, density * outside]))
    noise = power[1] * inside.square().sum() / outside.square().sum()
    correlation = (1 - noise / power[0].clamp(min=1e-30)).clamp(0, 1)
    return torch.where(power[0] > _EMPTY * power[0, 1:].max(), correlation, 0.0)


@takes_arrays
def usable_radius(expected: Float[Tensor, " S"], box: int) -> int:
    """How many shells are worth comparing: those before signal first falls below noise (an expected
    correlation of 0.5), as far as maps are interpolated well (a third of the box), and as many as
    tell groups apart."""
    most = min(box // 3, _MOST_SHELLS)
    below = torch.nonzero(expected[1 : most + 1] < 0.5)
    return max(_FEWEST_SHELLS, int(below[0]) if len(below) else most)


@takes_arrays
def mean_over_slices(by_shell: Float[Tensor, " S"], radius: int) -> float:
    """Mean over shells 1..radius, each by the number of samples that a slice has in it."""
    size = torch.arange(radius + 1, dtype=by_shell.dtype)
    return float((by_shell[: radius + 1] * size).sum() / size.sum())


# --- the search -----------------------------------------------------------------------------------


class _Search:
    """One map, prepared to be sliced, and the search for its axes."""

    def __init__(self, volume: Float[Tensor, "N N N"], radius: int, diameter_px: float) -> None:
        box = volume.shape[-1]
        few = max(_FEWEST_SHELLS, radius_of_step(_ORIENTATION_STEP_DEG, box, diameter_px / 2))
        self.coarse, self.fine = half_plane(box, min(few, radius)), half_plane(box, radius)
        # noise has no centre of mass: what is left at low resolution has
        self.middle = centre_of_mass_px(
            filter_shells(volume, torch.ones(self.coarse.radius + 1), dimensions=3)
        )
        centre = tuple(float(c) + box // 2 for c in self.middle)
        sphere = soft_sphere(box, radius_px=diameter_px / 2, edge_px=2, centre_px=centre)
        self.moving: FourierReferences = prepare_references((volume * sphere)[None], radius)

    def axes(self, order: int) -> list[Alignment]:
        """The best axes of an order, well apart, best first: Q lays each along z."""
        mates = symmetry_matrices(f"C{order}")[1:2].float()
        grid = _laid_along_z(_hemisphere(_AXIS_STEP_DEG))
        values = self._in_parts(self._by_mates(mates, self.coarse), grid)
        starts = grid[_peaks(grid[:, :, 2], values, _AXES_CLIMBED)]
        found = self._climbed(self._by_mates(mates, self.coarse), starts)
        kept = _peaks(found[0][:, :, 2], found[2], _AXES_KEPT)
        fine = self._by_mates(mates, self.fine)
        q, t, value = self._climbed(fine, found[0][kept], found[1][kept])
        ranked = torch.argsort(value, descending=True)
        return [Alignment(q[i], t[i], False, float(value[i])) for i in ranked.tolist()]

    def score(self, group: str, starts: Sequence[Alignment]) -> GroupScore:
        """The group laid best on the map, from main axes that were found, judged operator by
        operator."""
        search, onto = ("I4", _i4_to(group)) if group.startswith("I") else (group, torch.eye(3))
        matrices = symmetry_matrices(search).float()
        placed = starts[0]
        if not search.startswith("C"):
            placed = self._turned(matrices, _turn_period(search), starts)
        # judged on its own operators, laid as the group asked for has its axes
        placed = replace(placed, rotation=compose(placed.rotation, onto))
        return self._judged(group, placed)

    def by_chance(self) -> float:
        """The mean correlation of the map with itself in turns at random."""
        turns = random_rotations(_TURNS_AT_RANDOM, torch.Generator().manual_seed(1))
        score = self._by_mates(turns, self.fine)
        return float(score(torch.eye(3)[None], self.middle[None])[0])

    def _turned(
        self, matrices: Tensor, period_deg: float, starts: Sequence[Alignment]
    ) -> Alignment:
        """The group about each main axis in every turn, the best of them climbed."""
        turns = torch.arange(0.0, period_deg, _AXIS_STEP_DEG).deg2rad()
        about_z = _about_z(turns)
        q = torch.cat([compose(one.rotation, about_z) for one in starts])
        t = torch.cat([one.shift_px.expand(len(about_z), 3) for one in starts])
        mates = _some(_distinct(matrices))
        coarse, fine = self._by_mates(mates, self.coarse), self._by_mates(mates, self.fine)
        best = torch.topk(coarse(q, t), min(_TURNS_CLIMBED, len(q))).indices
        q, t, _ = self._climbed(coarse, q[best])
        q, t, value = self._climbed(fine, q, t)
        winner = int(value.argmax())
        return Alignment(q[winner], t[winner], False, float(value[winner]))

    def _judged(self, group: str, placed: Alignment) -> GroupScore:
        """Mean and lowest correlation of the map with its mates under each operator."""
        directions = slice_directions(_JUDGED_PLANES)
        q, t = placed.rotation[None], placed.shift_px[None]
        own = moved_slices(self.moving, q, t, directions, self.fine)[0][:, None]
        each = []
        for mate in _distinct(symmetry_matrices(group).float()):
            turned = compose(directions, mate)
            shown = moved_slices(self.moving, q, t, turned, self.fine)[0][:, None]
            each.append(slice_correlation(shown, own, self.fine))  # of each slice
        values = torch.stack(each)
        by_operator = values.mean(1)
        weakest = int(by_operator.argmin())
        error = float(values[weakest].std() / _JUDGED_PLANES**0.5)
        placed = replace(placed, correlation=float(by_operator.mean()))
        return GroupScore(group, placed, float(by_operator[weakest]), error)

    def _by_mates(self, mates: Float[Tensor, "g 3 3"], plane: HalfPlane) -> Score:
        """The mean correlation with symmetry mates, of each Q and t."""
        directions = slice_directions()

        def score(q: Tensor, t: Tensor) -> Tensor:
            own = moved_slices(self.moving, q, t, directions, plane)
            return torch.stack(
                [
                    slice_correlation(
                        moved_slices(self.moving, q, t, compose(directions, mate), plane),
                        own,
                        plane,
                    )
                    for mate in mates
                ]
            ).mean(0)

        return score

    def _in_parts(self, score: Score, grid: Tensor) -> Tensor:
        size = max(1, _SLICES_AT_ONCE // len(slice_directions()))
        middle = self.middle
        return torch.cat([score(q, middle.expand(len(q), 3)) for q in grid.split(size)])

    def _climbed(
        self, score: Score, q: Tensor, t: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """From the centre of mass in steps for few shells; from the shifts t in finer ones."""
        step_px = self.coarse.box / (8 * self.coarse.radius)
        if t is None:
            middle = self.middle.expand(len(q), 3)
            first, last = _COARSE_STEPS_DEG
            return climb(score, q, middle, step_deg=first, step_px=step_px, least_step_deg=last)
        return climb(score, q, t, step_deg=_FINE_STEP_DEG, step_px=step_px / 2)


def _orders(group: str) -> tuple[int, ...]:
    """Orders of the axes that the group has; the first is of the axis laid along z in the
    search."""
    if group[0] in "CD":
        n = int(group[1:])
        return (n,) if group[0] == "C" else (n, 2)
    orders = {"T": (3, 2), "O": (4, 3, 2), "I": (5, 3, 2)}
    if group[0] not in orders:
        raise InputError(f"group {group}: expected C or D and an order from 2, T, O or I")
    return orders[group[0]]


def _turn_period(group: str) -> float:
    """After which turn about z, in degrees, a group of several axes is the same again."""
    n = _orders(group)[0]
    return 180.0 / n if group[0] == "D" else 360.0 / n


def _i4_to(group: str) -> Float[Tensor, "3 3"]:
    """The rotation R with which `R S R^T` are the operators of another icosahedral setting for the
    operators S of I4."""
    angle = math.atan(2 / (1 + 5**0.5))  # between a 5-fold and the nearest 2-fold axis
    half, quarter = _about_z(torch.tensor([math.pi, math.pi / 2]))
    tilt = torch.tensor(
        [
            [math.cos(angle), 0.0, -math.sin(angle)],
            [0.0, 1.0, 0.0],
            [math.sin(angle), 0.0, math.cos(angle)],
        ]
    )
    turns = {"I4": torch.eye(3), "I3": half, "I2": tilt, "I1": quarter @ tilt}
    return turns["I2" if group == "I" else group].T


def _about_z(angle_rad: Float[Tensor, " n"]) -> Float[Tensor, "n 3 3"]:
    cos, sin, zero = torch.cos(angle_rad), torch.sin(angle_rad), torch.zeros_like(angle_rad)
    rows = [cos, -sin, zero, sin, cos, zero, zero, zero, zero + 1]
    return torch.stack(rows, -1).reshape(-1, 3, 3)


def _hemisphere(step_deg: float) -> Float[Tensor, "n 3"]:
    """Directions about `step_deg` apart on the upper half sphere, a golden-angle spiral."""
    n = round(2 * math.pi / math.radians(step_deg) ** 2)
    i = torch.arange(n, dtype=torch.float32)
    z = 1 - (i + 0.5) / n
    longitude, radius = i * math.pi * (3 - 5**0.5), torch.sqrt(1 - z**2)
    return torch.stack([radius * torch.cos(longitude), radius * torch.sin(longitude), z], 1)


def _laid_along_z(axes: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3 3"]:
    """Rotations Q with `Q z = axis`."""
    helper = torch.where(
        axes[:, :1].abs() < 0.9, torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    )
    x = torch.nn.functional.normalize(helper - (helper * axes).sum(1, keepdim=True) * axes, dim=1)
    return torch.stack([x, torch.linalg.cross(axes, x), axes], dim=2)


def _peaks(axes: Float[Tensor, "n 3"], values: Float[Tensor, " n"], most: int) -> list[int]:
    """Indices of the highest values whose axes lie `_APART_DEG` from every higher one."""
    kept: list[int] = []
    for i in torch.argsort(values, descending=True).tolist():
        near = (axes[kept] @ axes[i]).abs() > math.cos(math.radians(_APART_DEG))
        if not bool(near.any()):
            kept.append(i)
        if len(kept) == most:
            break
    return kept


def _distinct(matrices: Float[Tensor, "G 3 3"]) -> Float[Tensor, "g 3 3"]:
    """The operators but the identity, one of each pair S and S^-1, which say the same."""
    kept: list[Tensor] = []
    for one in matrices[1:]:
        if not any(torch.allclose(one.T, other, atol=1e-4) for other in kept):
            kept.append(one)
    return torch.stack(kept)


def _some(mates: Float[Tensor, "g 3 3"]) -> Float[Tensor, "s 3 3"]:
    """At most `_MATES` of them, spread over the group."""
    if len(mates) <= _MATES:
        return mates
    return mates[torch.randperm(len(mates), generator=torch.Generator().manual_seed(0))[:_MATES]]
