"""A ligand that breaks the symmetry of its carrier: each particle finds which of its symmetry mates
it is."""

from pathlib import Path

import numpy as np
import pytest
import torch

import halfmap
from halfmap.engine.state import as_candidates, known_poses
from halfmap.errors import InputError
from halfmap.io.mrc import write_map
from halfmap.methods.relaxed_symmetry import mates_of, tells_mates_apart
from halfmap.particles import load_particles
from halfmap.projection import prepare_references
from halfmap.so3 import random_rotations
from halfmap.symmetries import SymmetryOperators, point_group, symmetry_matrices

N, BOX, PIXEL = 160, 32, 6.0


def _blob(centre: np.ndarray, sigma: float) -> np.ndarray:
    z, y, x = np.indices((BOX, BOX, BOX)) - BOX // 2
    squared = (np.stack([x, y, z], -1) - centre) ** 2
    return np.exp(-squared.sum(-1) / (2 * sigma**2))


@pytest.fixture(scope="module", params=["C4", "D2"])
def scene(request, tmp_path_factory) -> tuple[Path, str]:
    """A carrier of the group, its particles with a ligand, at poses that are right up to the
    group."""
    group, folder = request.param, tmp_path_factory.mktemp("relaxed")
    mates, draw = symmetry_matrices(group), np.random.default_rng(3)
    carrier = np.zeros((BOX, BOX, BOX))
    for centre in 7 * draw.standard_normal((6, 3)) / 3**0.5:
        carrier += sum(_blob(mate.numpy() @ centre, 1.6) for mate in mates)
    ligand = carrier.max() * _blob(np.array([6.0, 2.0, 6.0]), 2)
    write_map(folder / "carrier.mrc", carrier.astype(np.float32), PIXEL)
    write_map(folder / "holo.mrc", (carrier + ligand).astype(np.float32), PIXEL)
    halfmap.simulate([folder / "holo.mrc"], folder / "sim", n=N, snr=0.5, seed=2, quiet=True)
    truth = load_particles(folder / "sim/truth.star")
    rotations = halfmap.euler_to_matrix(torch.from_numpy(truth.rotations_deg))
    drawn = mates[torch.from_numpy(draw.integers(0, len(mates), N))]
    mixed = truth.with_results(rotations_deg=halfmap.matrix_to_euler(rotations @ drawn).numpy())
    mixed.write_star(folder / "mixed.star")
    return folder, group


def _right(folder: Path, group: str, found: Path) -> float:
    """Share of particles at one and the same mate of their true pose, whichever it is."""
    poses = [
        halfmap.euler_to_matrix(torch.from_numpy(load_particles(path).rotations_deg))
        for path in (folder / "sim/truth.star", found)
    ]
    shares = []
    for mate in symmetry_matrices(group):
        turn = (poses[0] @ mate).mT @ poses[1]
        cosine = (turn.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2
        shares.append(float((cosine > np.cos(np.radians(15))).double().mean()))
    return max(shares)


def _refine(folder: Path, out: str, start: str = "carrier.mrc", **options):
    return halfmap.refine(
        folder / "mixed.star",
        folder / start,
        folder / out,
        initial_lowpass_angstrom=25,
        local=True,
        folds=1,
        threads=1,
        quiet=True,
        **options,
    )


def test_mates_are_found_from_a_symmetric_start(scene):
    folder, group = scene
    assert _right(folder, group, folder / "mixed.star") < 0.5
    relaxed = _refine(folder, "relaxed", relax_symmetry=group)
    assert _right(folder, group, relaxed.folder / "particles.star") > 0.85
    kept = _refine(folder, "kept", iterations=2)
    assert _right(folder, group, kept.folder / "particles.star") < 0.5


def test_a_start_with_the_ligand_is_used_before_it_is_averaged_over_the_mates(scene):
    """One iteration from it finds the mates; from the carrier all are alike, and none is looked
    for."""
    folder, group = scene
    first = _refine(folder, "first", "holo.mrc", relax_symmetry=group, iterations=1)
    assert _right(folder, group, first.folder / "particles.star") > 0.85
    none = _refine(folder, "none", relax_symmetry=group, iterations=1)
    assert _right(folder, group, none.folder / "particles.star") < 0.5


@pytest.mark.parametrize("box", [32, 41])
@pytest.mark.parametrize("group", ["C4", "T", "I"])
def test_a_reference_tells_mates_apart_by_what_breaks_its_symmetry(box: int, group: str):
    z, y, x = torch.meshgrid(*[torch.arange(box).float() - box // 2] * 3, indexing="ij")

    def blob(centre: torch.Tensor) -> torch.Tensor:
        a, b, c = centre.tolist()
        return torch.exp(-((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2) / (2 * 1.6**2))

    operators = point_group(group)
    carrier = sum(blob(mate @ torch.tensor([3.0, 7.0, 5.0])) for mate in operators.rotations)
    carrier = carrier + sum(
        blob(mate @ torch.tensor([8.0, 1.0, 3.0])) for mate in operators.rotations
    )
    mass = float(carrier.sum())
    ligand = blob(torch.tensor([6.0, -8.0, 2.0]))
    ligand = ligand * (0.04 * mass / float(ligand.sum()))
    told = [
        tells_mates_apart(prepare_references(volume[None], box // 2 - 3), operators)
        for volume in (carrier, carrier + ligand)
    ]
    assert told == [False, True]


def test_mates_show_the_same_view_of_what_has_the_symmetry():
    """A S of the poses A, and with a translation t the shift that goes with it."""
    rotations = random_rotations(3, torch.Generator().manual_seed(1))
    poses = known_poses(rotations, torch.randn(3, 2), torch.zeros(3, dtype=torch.long))
    helix = SymmetryOperators(
        point_group("C2").rotations, torch.tensor([[0.0, 0, 0], [0.0, 0, 5.0]])
    )
    mates = mates_of(as_candidates(poses), helix)
    assert mates.score.shape == (3, 1)
    point = torch.tensor([2.0, -1.0, 3.0])
    there = helix.rotations[1] @ point + helix.translations_px[1]
    # a feature at x is at S x + t as well; an image shows it where its pose says, minus the shift
    seen = (rotations @ there)[:, :2] - poses.shift_px
    again = (mates.rotations[:, 0] @ point)[:, :2] - mates.shift_px[:, 0]
    assert torch.allclose(seen, again, atol=1e-5)


def test_without_poses_to_start_from_it_is_refused(scene):
    folder, group = scene
    with pytest.raises(InputError, match=r"--relax-symmetry .* --local"):
        halfmap.refine(
            folder / "mixed.star", folder / "carrier.mrc", folder / "refused", relax_symmetry=group
        )


def test_a_narrow_prior_holds_poses_where_they_were(scene):
    """The pose and shift of each particle move no farther than a few standard deviations."""
    folder, _group = scene
    before = load_particles(folder / "mixed.star")
    held = _refine(folder, "held", iterations=2, sigma_rotation_deg=0.05, sigma_shift_angstrom=0.02)
    free = _refine(folder, "free", iterations=2)
    moved = {}
    for name, result in (("held", held), ("free", free)):
        after = load_particles(result.folder / "particles.star")
        turn = [
            halfmap.euler_to_matrix(torch.from_numpy(one.rotations_deg)) for one in (before, after)
        ]
        cosine = ((turn[0].mT @ turn[1]).diagonal(dim1=1, dim2=2).sum(1) - 1) / 2
        angle = torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))
        shift = np.abs(after.shift_angstrom - before.shift_angstrom)
        moved[name] = float(angle.median()), float(np.median(shift))
    assert moved["held"][0] < 0.3
    assert moved["held"][1] < 0.1
    assert moved["free"][0] > 2 * moved["held"][0]
    assert moved["free"][1] > 2 * moved["held"][1]


def test_two_words_for_one_prior_are_refused(scene):
    folder, _ = scene
    with pytest.raises(InputError, match="--sigma-rotation 1: has no effect beside --local-range"):
        _refine(folder, "refused", local_range_deg=3, sigma_rotation_deg=1)
