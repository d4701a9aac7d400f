"""Density of atomic models: closed forms of single atoms, file formats, and a map that another
program made of 3j5p."""

import math
from pathlib import Path

import gemmi
import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from halfmap.errors import InputError
from halfmap.io.mrc import read_map
from halfmap.resampling import resample_volume
from halfmap.simulation.atomic_models import (
    VOLT_SQUARE_ANGSTROM,
    Atoms,
    density_from_atoms,
    density_from_model,
    read_atoms,
)


def _atoms(positions, elements, bfactors, occupancies=None) -> Atoms:
    occupancies = np.ones(len(elements)) if occupancies is None else np.array(occupancies)
    return Atoms(
        np.array(positions, dtype=float),
        np.array(elements),
        np.array(bfactors, dtype=float),
        occupancies,
    )


def _closed_form(atoms: Atoms, box: int, pixel: float) -> np.ndarray:
    """Sum of the real-space Gaussians that the five-term scattering factors are the transforms
    of."""
    axis = (np.arange(box) - box // 2) * pixel
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    density = np.zeros((box, box, box))
    for (px, py, pz), element, b, occupancy in zip(
        atoms.positions, atoms.elements, atoms.bfactors, atoms.occupancies, strict=True
    ):
        r2 = (x - px) ** 2 + (y - py) ** 2 + (z - pz) ** 2
        table = gemmi.Element(str(element)).c4322
        for a_i, b_i in zip(table.a, table.b, strict=True):
            density += (
                occupancy
                * a_i
                * (4 * np.pi / (b_i + b)) ** 1.5
                * np.exp(-4 * np.pi**2 * r2 / (b_i + b))
            )
    return VOLT_SQUARE_ANGSTROM * density


@pytest.mark.parametrize(("box", "pixel"), [(48, 0.5), (47, 0.5)])
def test_one_carbon_is_its_closed_form(box: int, pixel: float) -> None:
    carbon = _atoms([[1.3, -2.1, 0.77]], ["C"], [60.0])
    density = density_from_atoms(carbon, box=box, pixel_size_angstrom=pixel).numpy()
    expected = _closed_form(carbon, box, pixel)
    assert abs(density - expected).max() < 2e-3 * expected.max()


def test_many_atoms_with_their_own_b_factors_and_occupancies() -> None:
    rng = np.random.default_rng(0)
    atoms = _atoms(
        rng.uniform(-5, 5, (12, 3)),
        list("CNOSCNOSCCCC"),
        rng.uniform(40, 160, 12),
        rng.uniform(0.2, 1, 12),
    )
    density = density_from_atoms(atoms, box=40, pixel_size_angstrom=0.7).numpy()
    expected = _closed_form(atoms, 40, 0.7)
    assert abs(density - expected).max() < 4e-3 * expected.max()


def test_total_potential_is_the_scattering_at_zero_angle_and_the_map_is_band_limited() -> None:
    atoms = _atoms([[0, 0, 0], [3, 1, -2]], ["C", "O"], [10.0, 30.0])
    density = density_from_atoms(atoms, box=32, pixel_size_angstrom=2.0, resolution_angstrom=8.0)
    total = VOLT_SQUARE_ANGSTROM * sum(sum(gemmi.Element(e).c4322.a) for e in ("C", "O"))
    assert float(density.sum()) * 2.0**3 == pytest.approx(total, rel=1e-4)
    k = torch.fft.fftfreq(32, 2.0)
    s = torch.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + k[None, None, :] ** 2)
    power = torch.fft.fftn(density).abs()
    assert float(power[s >= 1 / 8.0].max()) < 1e-4 * float(power.max())
    assert float(power[s < 0.9 / 8.0 - 3 / 64].min()) > 1e-2 * float(power.max())


def _structure() -> gemmi.Structure:
    structure = gemmi.Structure()
    model, chain, residue = gemmi.Model(1), gemmi.Chain("A"), gemmi.Residue()
    residue.name, residue.seqid = "ALA", gemmi.SeqId("1")
    for name, element, position, b in (
        ("N", "N", (10.0, 11.0, 12.0), 20.0),
        ("CA", "C", (11.4, 11.2, 12.1), 35.0),
        ("O", "O", (12.0, 13.0, 9.5), 50.0),
    ):
        atom = gemmi.Atom()
        atom.name, atom.element, atom.pos, atom.b_iso, atom.occ = (
            name,
            gemmi.Element(element),
            gemmi.Position(*position),
            b,
            1.0,
        )
        residue.add_atom(atom)
    chain.add_residue(residue)
    model.add_chain(chain)
    structure.add_model(model)
    structure.setup_entities()
    return structure


def test_pdb_and_mmcif_give_the_same_centred_density(tmp_path: Path) -> None:
    _structure().write_pdb(str(tmp_path / "m.pdb"))
    _structure().make_mmcif_document().write_file(str(tmp_path / "m.cif"))
    pdb, cif = (
        density_from_model(tmp_path / name, box=32, pixel_size_angstrom=1.0)
        for name in ("m.pdb", "m.cif")
    )
    assert torch.allclose(pdb, cif, atol=1e-3 * float(pdb.max()))
    atoms = read_atoms(tmp_path / "m.pdb")
    assert atoms.elements.tolist() == ["N", "C", "O"]
    mass = np.array([14.007, 12.011, 15.999])
    np.testing.assert_allclose(
        atoms.centre_of_mass(), mass @ atoms.positions / mass.sum(), rtol=1e-4
    )
    np.testing.assert_allclose(atoms.centred().centre_of_mass(), 0, atol=1e-9)
    sharp = density_from_model(tmp_path / "m.pdb", box=32, pixel_size_angstrom=1.0, bfactor=0.0)
    assert float(sharp.max()) > 1.3 * float(pdb.max())
    kept = density_from_model(tmp_path / "m.pdb", box=64, pixel_size_angstrom=1.0, centre=False)
    z, y, x = (int(i) - 32 for i in np.unravel_index(int(kept.argmax()), kept.shape))
    assert (x, y, z) in {(10, 11, 12), (11, 11, 12), (12, 13, 9), (12, 13, 10)}


def test_bad_models_are_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.pdb").write_text("REMARK nothing here\nEND\n")
    (tmp_path / "broken.cif").write_text("data_x\nloop_\n_a.b\n_a.c\n1 2 3\n")
    unknown = _structure()
    unknown[0][0][0][1].element = gemmi.Element("X")
    unknown.make_mmcif_document().write_file(str(tmp_path / "unknown.cif"))
    for name, words in (
        ("none.pdb", "no such file"),
        ("empty.pdb", "no atoms"),
        ("broken.cif", "not a PDB"),
        ("unknown.cif", "no electron scattering"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            read_atoms(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="use a box of at least 42"):
        density_from_atoms(_atoms([[0, 0, 41.0]], ["C"], [0.0]), box=32, pixel_size_angstrom=2.0)


@pytest.mark.shared
def test_trpv1_model_against_the_map_that_another_program_made_of_it(shared_data: Path) -> None:
    """The other program turned the model about the four-fold axis: the angle is found at 10 A, then
    the maps agree to 7 A (beyond, that map's cut-off shows: 96 % of its voxels are exactly 0)."""
    volume, pixel = read_map(shared_data / "maps" / "trpv1_96_2.5A.mrc")
    reference = torch.from_numpy(volume)
    atoms = read_atoms(shared_data / "maps" / "3j5p.pdb").centred()

    def turned(angle_deg: float, box: int, size: float) -> torch.Tensor:
        c, s = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
        about_z = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        moved = Atoms(
            atoms.positions @ about_z.T,
            atoms.elements,
            np.full_like(atoms.bfactors, 20.0),
            atoms.occupancies,
        )
        return density_from_atoms(moved, box=box, pixel_size_angstrom=size)

    def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])

    coarse = resample_volume(reference, pixel, box=48, new_pixel_size_angstrom=5.0)
    scores = {angle: correlation(turned(angle, 48, 5.0), coarse) for angle in range(-40, 50, 6)}
    start = max(scores, key=scores.__getitem__)
    best = minimize_scalar(
        lambda angle: -correlation(turned(angle, 48, 5.0), coarse),
        bounds=(start - 6, start + 6),
        method="bounded",
        options={"xatol": 0.05},
    )
    model = turned(float(best.x), 96, pixel)
    assert correlation(model, reference) > 0.89

    f, g = torch.fft.fftn(model), torch.fft.fftn(reference)
    k = torch.fft.fftfreq(96) * 96
    shell = (
        torch.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + k[None, None, :] ** 2)
        .round()
        .long()
        .flatten()
    )
    cross, ff, gg = (
        torch.zeros(96).index_add_(0, shell, v.flatten())
        for v in ((f * g.conj()).real, f.abs() ** 2, g.abs() ** 2)
    )
    fsc = cross / torch.sqrt(ff * gg)
    assert float(fsc[: round(240 / 7) + 1].min()) > 0.9
