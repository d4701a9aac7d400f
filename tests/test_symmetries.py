"""Point groups: group axioms, RELION's own operators, and the asymmetric unit as a fundamental
domain."""

import re
import shutil
import subprocess

import pytest
import torch

from halfmap.errors import InputError
from halfmap.so3 import angular_distance_deg, orientation_grid, random_rotations
from halfmap.symmetries import asymmetric_unit, expand, symmetry_matrices

ORDERS = {
    "C1": 1,
    "C2": 2,
    "C3": 3,
    "C4": 4,
    "C7": 7,
    "D1": 2,
    "D2": 4,
    "D3": 6,
    "D7": 14,
    "T": 12,
    "O": 24,
}
ORDERS |= dict.fromkeys(("I", "I1", "I2", "I3", "I4"), 60)


def distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Largest-element distance of every matrix of a to every one of b."""
    return (a[:, None] - b[None]).abs().amax((-2, -1))


@pytest.mark.parametrize("name", ORDERS)
def test_group_axioms(name: str) -> None:
    group = symmetry_matrices(name)
    assert group.shape == (ORDERS[name], 3, 3)
    assert group.dtype == torch.float64
    torch.testing.assert_close(group[0], torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(
        group @ group.mT, torch.eye(3, dtype=torch.float64).expand_as(group), atol=1e-12, rtol=0
    )
    torch.testing.assert_close(torch.linalg.det(group), torch.ones(len(group), dtype=torch.float64))
    products = (group[:, None] @ group[None]).reshape(-1, 3, 3)
    assert ((distances(products, group) < 1e-9).sum(1) == 1).all(), "closed, without duplicates"
    assert ((distances(group.mT, group) < 1e-9).sum(1) == 1).all(), "with inverses"


@pytest.mark.parametrize(
    "name", [name for name in ORDERS if name not in ("C1", "D1")] + ["C12", "D5"]
)
@pytest.mark.skipif(shutil.which("relion_refine") is None, reason="relion_refine is not installed")
def test_same_operators_as_relion(name: str) -> None:
    command = ["relion_refine", "--sym", name, "--print_symmetry_ops"]
    text = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    number = r"(-?[\d.]+(?:e[-+]?\d+)?)"
    rows = re.findall(rf"^\s+{number}\s+{number}\s+{number}\s*$", text, re.MULTILINE)
    relion = torch.tensor([[float(x) for x in row] for row in rows], dtype=torch.float64).reshape(
        -1, 3, 3
    )
    group = symmetry_matrices(name)
    assert len(relion) == len(group)
    assert ((distances(group, relion) < 1e-4).sum(1) == 1).all()  # printed to 5 digits


def test_names_in_any_case() -> None:
    for given, same in (("c4", "C4"), (" d2 ", "D2"), ("i", "I2"), ("C04", "C4"), ("o", "O")):
        assert torch.equal(symmetry_matrices(given), symmetry_matrices(same))


@pytest.mark.parametrize("name", ["", "C0", "C", "X3", "I5", "C100", "D0", "4", "C4x"])
def test_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(
        InputError,
        match=rf"^argument symmetry: expected C1 to C99.* found '{name}', not a point group",
    ):
        symmetry_matrices(name)


@pytest.mark.parametrize(
    "name", ["Cs", "Ci", "C3v", "C2h", "D3h", "D2v", "S4", "Td", "Th", "Oh", "Ih", "I2h"]
)
def test_mirror_groups_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="mirrors"):
        symmetry_matrices(name)


@pytest.mark.parametrize("name", ["C1", "C4", "D7", "T", "O", "I1", "I3"])
def test_asymmetric_unit_is_a_fundamental_domain(name: str) -> None:
    """Exactly one mate of a random direction lies in the unit, and the unit is connected to no more
    than its share of the sphere."""
    group = symmetry_matrices(name)
    d = torch.randn(500, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    d = d / d.norm(dim=1, keepdim=True)
    mates = torch.einsum("gji,mj->mgi", group, d).reshape(-1, 3)
    inside = asymmetric_unit(mates, group).reshape(500, len(group))
    assert (inside.sum(1) == 1).all()


@pytest.mark.parametrize(
    ("name", "most"), [("C4", 1.0), ("D3", 1.3), ("O", 1.3), ("I2", 2.0), ("C50", 6.0)]
)
def test_reduced_grid_covers_all_orientations(name: str, most: float) -> None:
    """About M / |G| cells (more where the unit is narrower than a cell), and every rotation within
    about a step of one modulo the group."""
    group = symmetry_matrices(name)
    full, reduced = orientation_grid(2), orientation_grid(2, group)
    assert 1.0 <= len(reduced.cell_id) * len(group) / len(full.cell_id) <= most
    assert torch.isin(reduced.cell_id, full.cell_id).all()
    for a in random_rotations(100, torch.Generator().manual_seed(5)):
        assert (
            angular_distance_deg(reduced.rotations, a, symmetry=group).min() < 0.85 * full.step_deg
        )


def test_expand_gives_the_mates() -> None:
    group = symmetry_matrices("D2")
    a = random_rotations(5, torch.Generator().manual_seed(0))
    mates = expand(a, group)
    assert mates.shape == (5, 4, 3, 3)
    torch.testing.assert_close(mates, (a[:, None].double() @ group[None]).float())
    assert angular_distance_deg(mates, a[:, None], symmetry=group).max() < 0.1
