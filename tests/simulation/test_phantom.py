"""The phantom: its symmetry and nothing beyond it, its hand, the geometry of its helices and a
spectrum like a protein's."""

from dataclasses import replace

import gemmi
import numpy as np
import pytest
import torch

from halfmap.errors import InputError
from halfmap.simulation.atomic_models import density_from_atoms
from halfmap.simulation.phantom import phantom, phantom_atoms

BOX, PIXEL = 41, 4.0


def _correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def _moved(matrix: np.ndarray) -> torch.Tensor:
    """The phantom with every atom moved by a matrix: exact, whatever the angle."""
    atoms = phantom_atoms()
    return density_from_atoms(
        replace(atoms, positions=atoms.positions @ matrix.T), box=BOX, pixel_size_angstrom=PIXEL
    )


def _about_z(degrees: float) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


@pytest.fixture(scope="module")
def volume() -> torch.Tensor:
    return phantom(BOX, PIXEL)


def test_a_quarter_turn_about_z_leaves_it(volume: torch.Tensor) -> None:
    turned = torch.rot90(volume, 1, dims=(1, 2))  # exact about the centre of an odd box
    assert float((turned - volume).abs().max()) < 2e-3 * float(volume.max())


def test_no_other_symmetry_and_no_mirror(volume: torch.Tensor) -> None:
    for degrees in (20, 30, 45, 60, 72):
        assert _correlation(_moved(_about_z(degrees)), volume) < 0.75
    flips = {"two-fold across": np.diag([1.0, -1, -1]), "mirror": np.diag([1.0, -1, 1])}
    for name, flip in flips.items():
        best = max(
            _correlation(_moved(_about_z(degrees) @ flip), volume) for degrees in range(0, 90, 10)
        )
        assert best < 0.8, name


def test_c1_and_state_1_differ_as_stated(volume: torch.Tensor) -> None:
    c1 = phantom(BOX, PIXEL, symmetry="C1")
    quarter_turns = [_correlation(torch.rot90(c1, i, dims=(1, 2)), c1) for i in (1, 2, 3)]
    assert max(quarter_turns) < 0.93
    assert 0.6 < _correlation(phantom(BOX, PIXEL, state=1), volume) < 0.95
    whole, changed = phantom_atoms(), phantom_atoms(state=1)
    assert (
        0.9 < len(changed.positions) / len(whole.positions) < 0.99
    )  # one helix of each subunit is missing


def test_size_and_mass() -> None:
    atoms = phantom_atoms()
    assert 145 < 2 * atoms.radius_angstrom() < 155
    np.testing.assert_allclose(atoms.centre_of_mass(), 0, atol=1e-6)
    kilodalton = sum(gemmi.Element(str(e)).weight for e in atoms.elements) / 1000
    assert 150 < kilodalton < 250  # heavy atoms of some 430 residues a subunit


def test_its_helices_are_alpha_helices() -> None:
    """The chain starts with a helix: CA 3.8 A apart, rising 1.5 A a residue along a right-handed
    axis; bonds of chemical length."""
    atoms = phantom_atoms()
    positions = atoms.positions[:120]
    gaps = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    backbone = [
        i
        for i in range(100)
        if atoms.elements[i] == "N" and atoms.elements[i + 3] == "O" and 1.3 < gaps[i, i + 1] < 1.6
    ]
    alpha = positions[np.array(backbone[:8]) + 1]
    steps = np.diff(alpha, axis=0)
    np.testing.assert_allclose(np.linalg.norm(steps, axis=1), 3.8, atol=0.1)
    # for a helix, second differences point at the axis: their cross product is along it
    inwards = np.diff(steps, axis=0)
    axis = np.cross(inwards[0], inwards[1])
    axis /= np.linalg.norm(axis)
    rises = steps @ axis
    np.testing.assert_allclose(
        rises, 1.5, atol=0.02
    )  # positive: right-handed, as turning about +axis goes with rising along it
    for i in backbone[:8]:
        assert 1.4 < gaps[i + 1, i + 2] < 1.6
        assert 1.15 < gaps[i + 2, i + 3] < 1.3


def test_spectrum_is_a_proteins() -> None:
    """Molecular shape at low resolution, then Wilson's law: at 3 to 4 A the power is that of as
    many atoms placed at random."""
    box, pixel = 112, 1.5
    power = torch.fft.fftn(phantom(box, pixel)).abs() ** 2
    k = torch.fft.fftfreq(box, pixel)
    s = torch.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + k[None, None, :] ** 2)

    def mean_power(low_angstrom: float, high_angstrom: float) -> float:
        return float(power[(s >= 1 / low_angstrom) & (s < 1 / high_angstrom)].mean())

    random = 0.0
    middle = 1 / 3.6
    for element in phantom_atoms().elements:
        random += gemmi.Element(str(element)).c4322.calculate_sf(middle**2 / 4) ** 2 * np.exp(
            -30 * middle**2 / 2
        )
    wilson = random * (47.878 / pixel**3) ** 2
    assert 0.4 < mean_power(3.8, 3.4) / wilson < 2.5
    shape, packing, secondary, fine = (
        mean_power(80, 40),
        mean_power(11, 9),
        mean_power(5.5, 4.7),
        mean_power(3.8, 3.4),
    )
    assert shape > 40 * packing
    assert packing > 2 * secondary > 4 * fine
    # the helices' pitch of 5.4 A: there the power stops falling, as it does in proteins
    assert secondary > 0.85 * mean_power(6.5, 5.5)
    assert mean_power(9, 7) > 1.5 * mean_power(6.5, 5.5)


def test_the_same_molecule_at_any_sampling() -> None:
    fine, coarse = phantom(80, 2.0), phantom(40, 4.0)
    f, c = (torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(v))) for v in (fine, coarse))
    f = f[40 - 12 : 40 + 13, 40 - 12 : 40 + 13, 40 - 12 : 40 + 13] * (2.0 / 4.0) ** 3
    c = c[20 - 12 : 20 + 13, 20 - 12 : 20 + 13, 20 - 12 : 20 + 13]
    inside = sum(a**2 for a in torch.meshgrid(*[torch.arange(-12, 13)] * 3, indexing="ij")) < 12**2
    assert float((f - c)[inside].abs().max()) < 1e-3 * float(c.abs().max())


def test_bad_arguments() -> None:
    with pytest.raises(InputError, match="use a box of at least 74"):
        phantom(40, 2.0)
    with pytest.raises(InputError, match="'C4' and 'C1'"):
        phantom_atoms(symmetry="D7")
    with pytest.raises(InputError, match="states 0 and 1"):
        phantom_atoms(state=2)
