"""The two sums against one insertion per image, pose and symmetry mate."""

from dataclasses import replace

import pytest
import torch

from halfmap.engine.accumulation import accumulate, slice_terms
from halfmap.engine.pose_prior import prior_sums, uniform_prior
from halfmap.engine.state import PosteriorWeights
from halfmap.fourier import half_plane, shift_phases
from halfmap.gridding import PADDING
from halfmap.kernels import reference as torch_kernels
from halfmap.likelihood import ImageTerms
from halfmap.projection import Sums, empty_sums, hermitian_mates
from halfmap.reconstruction import grid_shells
from halfmap.so3 import (
    direction_pixels,
    euler_to_matrix,
    random_rotations,
    rotation_vector_to_matrix,
)
from halfmap.symmetries import rotations_alone, symmetry_matrices
from halfmap.symmetrisation import symmetrised

PLANE = half_plane(16, 6)


def _terms(n: int) -> ImageTerms:
    g = torch.Generator().manual_seed(1)
    data = torch.complex(
        torch.randn(n, len(PLANE), generator=g), torch.randn(n, len(PLANE), generator=g)
    )
    return ImageTerms(data, torch.rand(n, len(PLANE), generator=g))


def _rotations(n: int, dimensions: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(2)
    if dimensions == 3:
        return random_rotations(n, g)
    vector = torch.zeros(n, 3)
    vector[:, 2] = 6 * torch.rand(n, generator=g)
    return rotation_vector_to_matrix(vector)


def _explicit(
    terms: ImageTerms,
    gamma: PosteriorWeights,
    n_classes: int,
    dimensions: int,
    symmetry: torch.Tensor,
):
    """One insertion for each entry of Gamma and each mate, by the plain torch kernel."""
    sums = empty_sums(n_classes, 16, 6, dimensions)
    for e in range(len(gamma.image)):
        i, r = gamma.image[e], gamma.reference[e]
        half = PLANE.hermitian_weight / 2
        values = gamma.weight[e] * terms.data[i] * shift_phases(gamma.shift_px[e], PLANE) * half
        weights = gamma.weight[e] * terms.power[i] * half
        for mate in symmetry.float():
            torch_kernels.insert(
                sums.num,
                sums.den,
                values[None],
                weights[None],
                (gamma.rotations[r] @ mate)[None],
                gamma.classes[r][None],
                PLANE.kx.float(),
                PLANE.ky.float(),
                PADDING,
            )
    return sums


def _add(sums: Sums, terms: ImageTerms, gamma: PosteriorWeights) -> None:
    accumulate(sums, slice_terms(terms, gamma, PLANE), gamma, PLANE)


def _assert_same(ours, theirs) -> None:
    torch.testing.assert_close(ours.num, theirs.num, rtol=1e-3, atol=2e-4)
    torch.testing.assert_close(ours.den, theirs.den, rtol=1e-3, atol=2e-4)
    assert theirs.den.abs().sum() > 0


def _assert_symmetrised(ours, symmetry, explicit) -> None:
    """What `ours` becomes, against all mates inserted, on the cells nearest to shells up to the
    radius (what insertion leaves beyond them no map is made of)."""
    ours = symmetrised(hermitian_mates(ours), rotations_alone(symmetry))
    explicit = hermitian_mates(explicit)
    inside = grid_shells(explicit) <= explicit.radius
    parts = (replace(s, num=s.num * inside, den=s.den * inside) for s in (ours, explicit))
    _assert_same(*parts)


@pytest.mark.parametrize(("dimensions", "group"), [(2, "C1"), (3, "C1"), (3, "D2"), (3, "O")])
def test_one_pose_per_image(dimensions, group):
    n, g = 5, torch.Generator().manual_seed(0)
    rows = torch.arange(n)
    gamma = PosteriorWeights(
        rows,
        rows,
        torch.randn(n, 2, generator=g),
        torch.ones(n),
        _rotations(n, dimensions),
        torch.tensor([0, 1, 1, 0, 2]),
    )
    symmetry = symmetry_matrices(group).float()
    sums = empty_sums(3, 16, 6, dimensions)
    _add(sums, _terms(n), gamma)
    _assert_symmetrised(sums, symmetry, _explicit(_terms(n), gamma, 3, dimensions, symmetry))


@pytest.mark.parametrize(("dimensions", "group"), [(2, "C1"), (3, "C4")])
def test_many_weighted_entries_on_shared_slices(dimensions, group):
    """Images in any order, slices seen by several images or by none, entries of one image on one
    slice at several shifts."""
    g = torch.Generator().manual_seed(0)
    image = torch.tensor([2, 0, 1, 0, 2, 2, 1])
    reference = torch.tensor([0, 0, 3, 1, 3, 3, 0])
    weight = torch.tensor([0.5, 0.7, 0.9, 0.3, 0.3, 0.2, 0.1])
    gamma = PosteriorWeights(
        image,
        reference,
        torch.randn(7, 2, generator=g),
        weight,
        _rotations(4, dimensions),
        torch.tensor([0, 1, 1, 0]),
    )
    symmetry = symmetry_matrices(group).float()
    sums = empty_sums(2, 16, 6, dimensions)
    _add(sums, _terms(3), gamma)
    _assert_symmetrised(sums, symmetry, _explicit(_terms(3), gamma, 2, dimensions, symmetry))


def test_as_many_entries_as_slices_in_another_order():
    """The short cut for one slice per entry must not take this for it."""
    g = torch.Generator().manual_seed(0)
    gamma = PosteriorWeights(
        torch.arange(3),
        torch.tensor([2, 0, 0]),
        torch.randn(3, 2, generator=g),
        torch.ones(3),
        _rotations(3, 3),
        torch.tensor([0, 0, 0]),
    )
    symmetry = torch.eye(3)[None]
    sums = empty_sums(1, 16, 6, 3)
    _add(sums, _terms(3), gamma)
    _assert_same(sums, _explicit(_terms(3), gamma, 1, 3, symmetry))


def test_batches_add_up_and_terms_are_left_alone():
    terms, rotations = _terms(4), _rotations(4, 3)
    kept = terms.data.clone(), terms.power.clone()

    def gamma_of(index: torch.Tensor) -> PosteriorWeights:
        rows = torch.arange(len(index))
        return PosteriorWeights(
            rows,
            rows,
            torch.zeros(len(index), 2),
            torch.ones(len(index)),
            rotations[index],
            torch.zeros(len(index), dtype=torch.long),
        )

    whole, parts = empty_sums(1, 16, 6, 3), empty_sums(1, 16, 6, 3)
    _add(whole, terms, gamma_of(torch.arange(4)))
    for index in (torch.tensor([0]), torch.tensor([1, 2, 3])):
        _add(parts, terms.select_images(index), gamma_of(index))
    _assert_same(parts, whole)
    assert torch.equal(terms.data, kept[0])
    assert torch.equal(terms.power, kept[1])


def test_a_direction_counts_for_all_of_its_mates():
    """One pose of C4: a quarter of its weight at each of the four directions, and the squared
    length of its shift."""
    prior = uniform_prior(1, 3, order=2, shift_sigma_px=1.0, device=torch.device("cpu"))
    rotation = euler_to_matrix(torch.tensor([[20.0, 60.0, 10.0]]))
    row = torch.zeros(1, dtype=torch.long)
    gamma = PosteriorWeights(
        row, row, torch.tensor([[3.0, 4.0]]), torch.tensor([0.8]), rotation, row
    )
    sums = prior_sums(prior, gamma, symmetry_matrices("C4").float())
    expected = torch.zeros(192)
    for turn in (0.0, 90.0, 180.0, 270.0):
        mate = euler_to_matrix(torch.tensor([[20.0 + turn, 60.0, 10.0]]))
        expected[direction_pixels(mate, 2)] += 0.2
    assert (expected > 0).sum() == 4
    torch.testing.assert_close(sums[:-2], expected)
    torch.testing.assert_close(sums[-2:], torch.tensor([0.8, 0.8 * 25]))
