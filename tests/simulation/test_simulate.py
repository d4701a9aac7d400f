"""Simulated particles against closed forms, against their own truth files, and against an
independent simulator."""

import importlib.util
import math
from pathlib import Path

import gemmi
import numpy as np
import pytest
import torch

from halfmap.cli.main import run
from halfmap.commands._sources import load_volumes
from halfmap.commands.simulate import simulate
from halfmap.errors import InputError
from halfmap.fourier import half_plane
from halfmap.io.mrc import open_stack, read_map, write_map
from halfmap.io.star import read_star
from halfmap.resampling import resample_volume
from halfmap.simulation.forward_model import (
    EMPTY,
    ICE,
    OVERLAP,
    Recipe,
    clean_images,
    draw_truth,
    exact_slices,
    noise_amplitude,
    noise_images,
    normalise,
    symmetrise_volume,
)
from halfmap.so3 import euler_to_matrix, random_rotations
from halfmap.symmetries import symmetry_matrices
from halfmap.transfer_function import CTFParameters, ctf

# centre x, y, z and width, as shares of the box; weight
BLOBS = (
    ((0.11, -0.06, 0.04), 0.05, 1.0),
    ((-0.08, 0.02, -0.12), 0.04, 0.7),
    ((0.03, 0.14, 0.05), 0.06, 1.3),
)


def _blobs(box: int, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Sum of Gaussian blobs, each of integral `weight`, on a grid [z, y, x]."""
    axis = torch.arange(box, dtype=torch.float64) - box // 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    volume = torch.zeros((box,) * 3, dtype=torch.float64)
    for (cx, cy, cz), width, weight in BLOBS:
        r2 = (x - cx * box) ** 2 + (y - cy * box) ** 2 + (z - cz * box) ** 2
        volume += (
            weight
            * torch.exp(-r2 / (2 * (width * box) ** 2))
            / (2 * math.pi * (width * box) ** 2) ** 1.5
        )
    return volume.to(dtype)


def _blob_transform(box: int, rotation: np.ndarray, kx: np.ndarray, ky: np.ndarray) -> np.ndarray:
    """Closed form of the blobs' projection seen by A: centres at (A r)_xy."""
    total = np.zeros(kx.shape, complex)
    for centre, width, weight in BLOBS:
        x, y, _ = rotation @ np.array(centre) * box
        total += weight * np.exp(
            -2 * (np.pi * width) ** 2 * (kx**2 + ky**2) - 2j * np.pi * (kx * x + ky * y) / box
        )
    return total


def _write_blobs(folder: Path, box: int = 32, pixel: float = 3.0) -> Path:
    write_map(folder / "blobs.mrc", _blobs(box).numpy(), pixel)
    return folder / "blobs.mrc"


def _table(path: Path):
    return read_star(path).blocks["particles"]


# --- volumes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("box", [32, 33])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-6)])
def test_exact_slices_of_blobs_are_their_closed_form(
    box: int, dtype: torch.dtype, tolerance: float
) -> None:
    rotations = random_rotations(5, torch.Generator().manual_seed(1))
    plane = half_plane(box, 8)  # farther out the samples of a narrow blob alias
    samples = exact_slices(_blobs(box, dtype=dtype), rotations, plane.kx, plane.ky).numpy()
    for m in range(5):
        expected = _blob_transform(
            box, rotations[m].double().numpy(), plane.kx.numpy(), plane.ky.numpy()
        )
        assert abs(samples[m] - expected).max() < tolerance
    between = exact_slices(
        _blobs(box, dtype=dtype), rotations, torch.tensor([1.37]), torch.tensor([-2.61])
    ).numpy()
    expected = [
        _blob_transform(box, r.double().numpy(), np.array(1.37), np.array(-2.61)) for r in rotations
    ]
    np.testing.assert_allclose(between[:, 0], expected, atol=tolerance)


@pytest.mark.parametrize(("box", "pixel"), [(48, 2.0), (24, 4.0), (40, 3.0), (27, 3.2)])
def test_resampled_blobs_are_blobs_on_the_new_grid(box: int, pixel: float) -> None:
    old_box, old_pixel = 32, 3.0
    new = resample_volume(_blobs(old_box), old_pixel, box=box, new_pixel_size_angstrom=pixel)
    axis = (torch.arange(box, dtype=torch.float64) - box // 2) * pixel / old_pixel
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    expected = torch.zeros((box,) * 3, dtype=torch.float64)
    for (cx, cy, cz), width, weight in BLOBS:
        r2 = (x - cx * old_box) ** 2 + (y - cy * old_box) ** 2 + (z - cz * old_box) ** 2
        expected += (
            weight
            * torch.exp(-r2 / (2 * (width * old_box) ** 2))
            / (2 * math.pi * (width * old_box) ** 2) ** 1.5
        )
    assert float((new - expected).abs().max()) < 0.02 * float(
        expected.max()
    )  # the blobs are not quite band-limited
    same = _blobs(32)
    assert resample_volume(same, 3.0, box=32, new_pixel_size_angstrom=3.0) is same


def test_a_smaller_box_cuts_and_does_not_fold() -> None:
    volume = torch.zeros(32, 32, 32)
    volume[16, 16, 3] = 1.0  # outside the new box
    volume[16, 16, 18] = 1.0
    small = resample_volume(volume, 2.0, box=16, new_pixel_size_angstrom=2.0)
    assert float(small.sum()) == pytest.approx(1.0, abs=1e-4)
    assert np.unravel_index(int(small.argmax()), small.shape) == (8, 8, 10)


def test_symmetrised_volume_is_the_mean_of_its_turns() -> None:
    box = 33
    mean = symmetrise_volume(_blobs(box), symmetry_matrices("C4"))
    turns = torch.stack([torch.rot90(_blobs(box), i, dims=(1, 2)) for i in range(4)]).mean(dim=0)
    assert float((mean - turns).abs().max()) < 0.02 * float(turns.max())
    three = symmetrise_volume(_blobs(box), symmetry_matrices("C3"))
    again = symmetrise_volume(three, symmetry_matrices("C3"))
    assert float((again - three).abs().max()) < 5e-3 * float(three.max())


# --- the job --------------------------------------------------------------------------------------


def test_images_are_the_closed_form_of_what_the_truth_file_says(tmp_path: Path) -> None:
    """End to end: read truth.star, write down CTF, shift and projection again in numpy, and compare
    with the stack."""
    box, pixel, kv, cs, q0 = 32, 3.0, 200.0, 2.0, 0.07
    out = simulate(
        _write_blobs(tmp_path, box, pixel),
        tmp_path / "job",
        n=5,
        snr=math.inf,
        seed=4,
        voltage_kv=kv,
        spherical_aberration_mm=cs,
        amplitude_contrast=q0,
        phase_shift_deg=20.0,
        bfactor_angstrom2=50.0,
        astigmatism_angstrom=2000.0,
        quiet=True,
    ).folder
    stack = open_stack(out / "particles.mrcs")
    table = _table(out / "truth.star")
    value = {
        name: np.array(table.floats(name))
        for name in table.names
        if name not in ("rlnImageName", "rlnMicrographName")
    }
    k = np.fft.fftfreq(box) * box
    ky, kx = np.meshgrid(k, k, indexing="ij")
    keep = np.round(np.hypot(kx, ky)) <= (box - 1) // 2
    wavelength = 0.02507934  # 200 kV
    for i in range(5):
        rotation = euler_to_matrix(
            torch.tensor(
                [value[f"rlnAngle{a}"][i] for a in ("Rot", "Tilt", "Psi")], dtype=torch.float64
            )
        ).numpy()
        sx, sy = value["rlnOriginXAngst"][i] / pixel, value["rlnOriginYAngst"][i] / pixel
        s2 = (kx**2 + ky**2) / (box * pixel) ** 2
        theta = np.arctan2(ky, kx) - np.deg2rad(value["rlnDefocusAngle"][i])
        u, v = value["rlnDefocusU"][i], value["rlnDefocusV"][i]
        defocus = (u + v) / 2 + (u - v) / 2 * np.cos(2 * theta)
        chi = np.pi * wavelength * defocus * s2 - np.pi / 2 * cs * 1e7 * wavelength**3 * s2**2
        contrast = np.sin(chi + np.deg2rad(20.0) + np.arcsin(q0)) * np.exp(-50.0 * s2 / 4)
        transform = (
            _blob_transform(box, rotation, kx, ky)
            * contrast
            * np.exp(2j * np.pi * (kx * sx + ky * sy) / box)
            * keep
        )
        expected = np.fft.fftshift(np.fft.ifft2(transform).real)
        assert abs(stack.read(np.array([i]))[0] - expected).max() < 2e-3 * abs(expected).max()
    assert (
        value["rlnDefocusU"] - value["rlnDefocusV"]
    ).std() < 1e-2  # one micrograph, one astigmatism
    assert "rlnAngleRot" not in _table(out / "particles.star").names
    assert read_map(out / "truth_1.mrc")[1] == pytest.approx(pixel)


def test_snr_is_as_stated(tmp_path: Path) -> None:
    """Each image is a (clean + noise) + b; the slope on the clean image gives a, the rest the
    noise."""
    out = simulate(
        _write_blobs(tmp_path, 48),
        tmp_path / "job",
        n=60,
        snr=0.3,
        seed=2,
        noise_colour=1.0,
        quiet=True,
    ).folder
    images = torch.from_numpy(open_stack(out / "particles.mrcs").read(np.arange(60)))
    truth = draw_truth(Recipe(n=60, seed=2))
    clean = clean_images([_blobs(48)], truth, torch.arange(60), 3.0)
    variance = clean.var(dim=(1, 2)).mean()
    centred, signal = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (images, clean))
    slope = (centred * signal).sum(1) / (signal**2).sum(1)
    noise = ((centred - slope[:, None] * signal) ** 2).mean(1) / slope**2
    assert float(variance / noise.mean()) == pytest.approx(0.3, rel=0.05)
    axis = torch.arange(48) - 24
    background = images[:, axis[:, None] ** 2 + axis[None, :] ** 2 > (0.45 * 48) ** 2]
    torch.testing.assert_close(background.mean(1), torch.zeros(60), atol=1e-5, rtol=0)
    torch.testing.assert_close(background.std(1), torch.ones(60), atol=1e-4, rtol=0)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    blobs = _write_blobs(tmp_path)
    threads = torch.get_num_threads()
    folders = [
        simulate(
            blobs, tmp_path / str(i), n=30, snr=0.5, seed=s, junk_fraction=0.2, quiet=True
        ).folder
        for i, s in enumerate((7, 7, 8))
    ]
    stacks = [(folder / "particles.mrcs").read_bytes() for folder in folders]
    stars = [(folder / "truth.star").read_bytes() for folder in folders]
    assert stacks[0] == stacks[1]
    assert stars[0] == stars[1]
    assert stacks[0] != stacks[2]
    assert stars[0] != stars[2]
    assert torch.get_num_threads() == threads
    some = clean_images([_blobs(32)], draw_truth(Recipe(n=30, seed=7)), torch.tensor([3, 11]), 3.0)
    every = clean_images([_blobs(32)], draw_truth(Recipe(n=30, seed=7)), torch.arange(30), 3.0)
    torch.testing.assert_close(
        some, every[[3, 11]], atol=1e-6, rtol=1e-5
    )  # a particle does not depend on its batch


def test_states_junk_groups_and_files(tmp_path: Path) -> None:
    out = simulate(
        ["phantom", "phantom:1"],
        tmp_path / "job",
        n=60,
        snr=0.2,
        box=32,
        pixel_size_angstrom=5.0,
        weights=[3.0, 1.0],
        junk_fraction=0.25,
        optics_groups=2,
        beam_tilt_mrad=1.5,
        particles_per_micrograph=7,
        quiet=True,
    ).folder
    table = _table(out / "truth.star")
    state, junk = (
        np.array(table.floats("rlnClassNumber")),
        np.array(table.floats("halfmapTruthJunk")),
    )
    assert 4 <= (state == 2).sum() <= 27  # 15 expected, standard deviation 3.4
    assert [(junk == kind).sum() for kind in range(4)] == [45, 5, 5, 5]
    micrographs = table.strings("rlnMicrographName")
    assert len(set(micrographs)) == 9
    for name in set(micrographs):
        rows = [i for i, m in enumerate(micrographs) if m == name]
        assert len({table.floats("rlnDefocusAngle")[i] for i in rows}) == 1
        assert np.std([table.floats("rlnDefocusU")[i] for i in rows]) < 500
    optics = read_star(out / "particles.star").blocks["optics"]
    np.testing.assert_allclose(optics.floats("rlnBeamTiltX"), [1.5, -1.5], atol=1e-5)
    first, second = (read_map(out / f"truth_{k}.mrc")[0] for k in (1, 2))
    assert first.shape == second.shape == (32, 32, 32)
    assert 0.5 < np.corrcoef(first.ravel(), second.ravel())[0, 1] < 0.98
    for name in ("particles.png", "orientations.png", "truth_1.png", "job.json"):
        assert (out / name).stat().st_size > 0
    with pytest.raises(InputError, match="job"):
        simulate("phantom", out, n=5, snr=1.0, quiet=True)
    simulate(
        "phantom", out, n=5, snr=1.0, box=32, pixel_size_angstrom=5.0, overwrite=True, quiet=True
    )
    assert len(open_stack(out / "particles.mrcs")) == 5


def test_junk_is_what_it_is_called() -> None:
    truth = draw_truth(Recipe(n=300, junk_fraction=0.3, shift_rms_px=0.0))
    volume = _blobs(32)
    images = clean_images([volume], truth, torch.arange(300), 3.0)
    flat = clean_images(
        [volume], draw_truth(Recipe(n=300, shift_rms_px=0.0)), torch.arange(300), 3.0
    )
    power = (images**2).sum(dim=(1, 2))
    assert float(power[truth.junk == EMPTY].max()) == 0
    assert float(power[truth.junk == ICE].min()) > 0
    torch.testing.assert_close(images[truth.junk == 0], flat[truth.junk == 0], atol=1e-6, rtol=1e-4)
    second = images[truth.junk == OVERLAP] - flat[truth.junk == OVERLAP]
    ratio = (second**2).sum(dim=(1, 2)).mean() / (flat**2).sum(dim=(1, 2)).mean()
    assert float(ratio) == pytest.approx(1.0, abs=0.3)  # another whole particle


# --- what is drawn --------------------------------------------------------------------------------


def test_drawn_numbers_follow_their_distributions() -> None:
    recipe = Recipe(
        n=20000,
        seed=5,
        weights=(2.0, 1.0, 1.0),
        shift_rms_px=3.0,
        astigmatism_angstrom=500.0,
        particles_per_micrograph=5,
    )
    truth = draw_truth(recipe)
    matrices = euler_to_matrix(truth.angles_deg)
    np.testing.assert_allclose(
        matrices.mean(dim=0), 0, atol=0.02
    )  # uniform on SO(3): every element has mean 0 and mean square 1/3
    np.testing.assert_allclose((matrices**2).mean(dim=0), 1 / 3, atol=0.01)
    np.testing.assert_allclose(torch.bincount(truth.state) / 20000, [0.5, 0.25, 0.25], atol=0.015)
    assert float((truth.shift_px**2).sum(dim=1).mean()) == pytest.approx(9.0, rel=0.03)
    difference = truth.ctf.defocus_u_angstrom - truth.ctf.defocus_v_angstrom
    assert float(difference.min()) >= 0
    assert float((difference**2).mean().sqrt()) == pytest.approx(500.0, rel=0.05)
    mean = (truth.ctf.defocus_u_angstrom + truth.ctf.defocus_v_angstrom) / 2
    assert float(mean.mean()) == pytest.approx(15000, rel=0.02)
    assert float(mean.std()) == pytest.approx(14000 / math.sqrt(12), rel=0.03)


def test_preferred_views_are_along_z() -> None:
    tilt = draw_truth(Recipe(n=8000, preferred_fraction=0.6)).angles_deg[:, 1]
    uniform = (1 - math.cos(math.radians(40))) / 2
    assert float((tilt < 40).double().mean()) == pytest.approx(
        0.6 * (1 - math.exp(-0.5 * (40 / 15) ** 2)) + 0.4 * uniform, abs=0.02
    )


@pytest.mark.parametrize(("box", "colour"), [(32, 0.0), (33, 2.0)])
def test_noise_has_unit_variance_and_the_stated_spectrum(box: int, colour: float) -> None:
    pixel = 4.0
    images = noise_images(torch.arange(400), 3, noise_amplitude(box, pixel, colour))
    assert float((images**2).mean()) == pytest.approx(1.0, abs=0.01)
    power = (torch.fft.fft2(images).abs() ** 2).mean(dim=0) / box**2
    s = torch.fft.fftfreq(box, pixel)
    expected = (1 + colour / (1 + 1600 * (s[:, None] ** 2 + s[None, :] ** 2))) ** 2
    ratio = power / (expected / expected.mean())
    assert float(ratio.mean()) == pytest.approx(1.0, abs=0.01)
    assert float(ratio.std()) < 1.6 * math.sqrt(1 / 400) * math.sqrt(
        1.1
    )  # chi-squared of 400 samples, self-conjugate ones twice
    assert abs(float(ratio[:2, :2].mean()) - 1) < 0.15


def test_normalise_is_exact_on_the_background() -> None:
    images = normalise(torch.randn(3, 20, 20, generator=torch.Generator().manual_seed(0)) * 7 + 100)
    axis = torch.arange(20) - 10
    background = images[:, axis[:, None] ** 2 + axis[None, :] ** 2 > 81]
    torch.testing.assert_close(background.mean(1), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(background.std(1), torch.ones(3), atol=1e-4, rtol=0)


# --- sources and bad input ------------------------------------------------------------------------


def test_sources_share_the_grid_of_the_first(tmp_path: Path) -> None:
    structure = gemmi.Structure()
    model, chain, residue, atom = gemmi.Model(1), gemmi.Chain("A"), gemmi.Residue(), gemmi.Atom()
    residue.name, residue.seqid = "GLY", gemmi.SeqId("1")
    for x in (0.0, 8.0):
        atom.name, atom.element, atom.pos, atom.b_iso = (
            "CA",
            gemmi.Element("C"),
            gemmi.Position(x, 0, 0),
            40.0,
        )
        residue.add_atom(atom)
    chain.add_residue(residue)
    model.add_chain(chain)
    structure.add_model(model)
    structure.write_pdb(str(tmp_path / "two.pdb"))
    volumes, pixel = load_volumes([_write_blobs(tmp_path), tmp_path / "two.pdb"], symmetry="C2")
    assert pixel == pytest.approx(3.0)
    assert [tuple(v.shape) for v in volumes] == [(32, 32, 32)] * 2
    model_alone, pixel = load_volumes([tmp_path / "two.pdb"], pixel_size_angstrom=0.5)
    assert (tuple(model_alone[0].shape), pixel) == ((24, 24, 24), 0.5)
    smaller, pixel = load_volumes([_write_blobs(tmp_path)], pixel_size_angstrom=4.0)
    assert (tuple(smaller[0].shape), pixel) == ((24, 24, 24), 4.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"source": "missing.mrc"}, "missing.mrc"),
        ({"source": "missing.pdb"}, "missing.pdb: no such file"),
        ({"source": "phantom:7"}, "phantom:1"),
        ({"source": []}, "source"),
        ({"symmetry": "C5"}, "C4 and C1"),
        ({"n": 0}, "--n 0: expected 1 or more"),
        ({"snr": 0.0}, "--snr 0: expected more than 0; inf"),
        ({"snr": math.nan}, "--snr nan: expected"),
        ({"weights": [1.0, 1.0]}, "weights: expected one for each of the 1"),
        ({"weights": [-1.0]}, "--weights -1: expected 0 or more"),
        ({"box": 4}, "--box 4: expected"),
        ({"box": 16}, "use a box of at least"),
        ({"pixel_size_angstrom": -1.0}, "--pixel-size -1"),
        ({"junk_fraction": 1.0}, "--junk 1"),
        ({"preferred_fraction": 1.5}, "--preferred 1.5"),
        ({"defocus_range_angstrom": (2.0, 1.0)}, "lower defocus first"),
        ({"noise_colour": -1.0}, "--noise-colour -1"),
        ({"spherical_aberration_mm": float("nan")}, "--cs nan"),
        ({"seed": -1}, "--seed -1"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path, change: dict, words: str) -> None:
    options = {
        "source": "phantom",
        "n": 3,
        "snr": 1.0,
        "box": 32,
        "pixel_size_angstrom": 5.0,
        "quiet": True,
        **change,
    }
    with pytest.raises(InputError, match=words) as caught:
        simulate(out=tmp_path / "job", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "job").exists()


def test_a_map_without_voxel_size_or_with_nan_is_refused(tmp_path: Path) -> None:
    write_map(tmp_path / "no_size.mrc", _blobs(16).numpy(), 0.0)
    with pytest.raises(InputError, match="--pixel-size"):
        load_volumes([tmp_path / "no_size.mrc"])
    assert load_volumes([tmp_path / "no_size.mrc"], pixel_size_angstrom=2.5)[1] == 2.5
    write_map(tmp_path / "flat.mrc", np.ones((16, 16, 16), np.float32), 2.0)
    with pytest.raises(InputError, match="every voxel is 1"):
        load_volumes([tmp_path / "flat.mrc"])
    broken = _blobs(16).numpy()
    broken[3, 4, 5] = np.nan
    write_map(tmp_path / "nan.mrc", broken, 2.0)
    with pytest.raises(InputError, match="not finite"):
        load_volumes([tmp_path / "nan.mrc"])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blobs = _write_blobs(tmp_path)
    arguments = [
        "simulate",
        str(blobs),
        "--out",
        str(tmp_path / "job"),
        "--n",
        "4",
        "--snr",
        "inf",
        "--defocus",
        "9000",
        "9000",
        "--weights",
        "1",
    ]
    with pytest.raises(SystemExit) as left:
        run(arguments)
    out, _ = capsys.readouterr()
    assert left.value.code == 0
    assert out == f"simulate: 4 particles in {tmp_path / 'job'}\n"
    assert len(_table(tmp_path / "job" / "particles.star")) == 4
    with pytest.raises(SystemExit) as left:
        run([*arguments[:3], str(tmp_path / "no"), *arguments[4:-1], "a,b"])
    assert left.value.code == 2
    assert "--weights a,b: expected numbers with commas between" in capsys.readouterr().err


@pytest.mark.shared
def test_against_an_independent_simulator(shared_data: Path) -> None:
    """Same poses and CTF: slices agree to 1e-3 of their rms and CTFs to 1e-3."""
    path = shared_data.parent / "tools" / "simulate_reference.py"
    if not path.is_file():
        pytest.skip(f"no reference simulator at {path}")
    specification = importlib.util.spec_from_file_location("simulate_reference", path)
    assert specification is not None
    assert specification.loader is not None
    reference = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(reference)

    volume, pixel = read_map(shared_data / "maps" / "ribosome70S_64_5A.mrc")
    box, truth = len(volume), draw_truth(Recipe(n=12, seed=9, astigmatism_angstrom=1500.0))
    ours = clean_images([torch.from_numpy(volume)], truth, torch.arange(12), pixel).numpy()
    theirs = reference.slices(volume, reference.euler_matrix(*truth.angles_deg.numpy().T))
    f = (np.arange(box) - box // 2) / (box * pixel)
    fy, fx = np.meshgrid(f, f, indexing="ij")
    parameters: CTFParameters = truth.ctf
    u, v, angle = (
        x.double().numpy()[:, None, None]
        for x in (
            parameters.defocus_u_angstrom,
            parameters.defocus_v_angstrom,
            parameters.defocus_angle_deg,
        )
    )
    contrast = reference.ctf(fx[None], fy[None], u, v, angle, 300.0, 2.7, 0.1)
    shift = truth.shift_px.numpy() * pixel
    phase = np.exp(2j * np.pi * (fx * shift[:, 0, None, None] + fy * shift[:, 1, None, None]))
    keep = np.round(np.hypot(fx, fy) * box * pixel) <= (box - 1) // 2
    transform = np.fft.ifftshift(theirs * contrast * phase * keep, axes=(1, 2))
    expected = np.fft.fftshift(np.fft.ifft2(transform).real, axes=(1, 2))
    assert np.sqrt(((ours - expected) ** 2).mean()) < 1e-3 * expected.std()
    plane = half_plane(box, 31)
    kx, ky = plane.frequencies(pixel)
    mine = ctf(parameters, kx, ky).numpy()
    assert (
        abs(mine - contrast[:, plane.ky.numpy() + box // 2, plane.kx.numpy() + box // 2]).max()
        < 1e-3
    )
