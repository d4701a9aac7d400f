"""RELION goes on from what halfmap leaves, and halfmap from what RELION leaves: poses stay, maps
agree, file names are found."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import halfmap
from halfmap.fourier import lowpass
from halfmap.io.mrc import read_map
from halfmap.io.star import read_star
from halfmap.particles import load_particles
from halfmap.so3 import euler_to_matrix
from halfmap.symmetries import symmetry_matrices

pytestmark = pytest.mark.skipif(
    shutil.which("relion_refine") is None, reason="relion_refine (RELION) is not installed"
)
PARTICLES, BOX, PIXEL, SYMMETRY, DIAMETER = 60, 32, 6.0, "C4", 150.0
ALIKE_DEG = 10.0  # RELION searches a grid of 7.5 degrees; poses at random are 60 apart


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A folder from which RELION is run, with a refinement of halfmap's in it."""
    folder = tmp_path_factory.mktemp("project")
    simulated = halfmap.simulate(
        "phantom",
        folder / "sim",
        n=PARTICLES,
        snr=1.0,
        box=BOX,
        pixel_size_angstrom=PIXEL,
        quiet=True,
    )
    halfmap.refine(
        simulated.folder / "particles.star",
        simulated.folder / "truth_1.mrc",
        folder / "refined",
        initial_lowpass_angstrom=30.0,
        iterations=2,
        symmetry=SYMMETRY,
        diameter_angstrom=DIAMETER,
        quiet=True,
    )
    return folder


def relion(project: Path, *words: object) -> None:
    """A program of RELION's, in the folder of the project."""
    done = subprocess.run(
        [str(word) for word in words], cwd=project, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]


@pytest.fixture(scope="module")
def gone_on(project: Path) -> Path:
    """The folder of RELION's: one iteration with a search everywhere, from halfmap's particles and
    map."""
    (project / "relion").mkdir()
    words = ["relion_refine", "--i", "refined/particles.star", "--ref", "refined/map.mrc"]
    words += ["--o", "relion/run", "--iter", 1, "--ini_high", 15, "--sym", SYMMETRY, "--ctf"]
    words += ["--particle_diameter", DIAMETER, "--flatten_solvent", "--zero_mask", "--norm"]
    words += ["--scale", "--oversampling", 1, "--healpix_order", 2, "--offset_range", 4]
    words += ["--offset_step", 2, "--tau2_fudge", 4, "--pool", 30, "--j", 1]
    relion(project, *words, "--firstiter_cc")
    return project / "relion"


def turned_by(one: Path, other: Path) -> np.ndarray:
    """Angles in degrees between the poses of two files, by image name, modulo symmetry."""
    tables = [load_particles(path, check_images=False) for path in (one, other)]
    numbers = [
        [int(name.split("@")[0]) for name in data.table.strings("rlnImageName")] for data in tables
    ]
    first, second = (
        euler_to_matrix(torch.from_numpy(data.rotations_deg[np.argsort(rows)]))
        for data, rows in zip(tables, numbers, strict=True)
    )
    mates = first[:, None] @ symmetry_matrices(SYMMETRY).to(first)
    trace = torch.einsum("ngij,nij->ng", mates, second).amax(1)
    return torch.rad2deg(torch.acos(((trace - 1) / 2).clamp(-1, 1))).numpy()


def correlation(one: Path, other: Path) -> float:
    """Of two maps to 20 A, where they are not differently regularised."""
    volumes = [torch.from_numpy(read_map(path)[0]) for path in (one, other)]
    shown = [lowpass(volume, 20.0, PIXEL, dimensions=3).flatten() for volume in volumes]
    return float(torch.corrcoef(torch.stack(shown))[0, 1])


def test_relion_refines_on_from_our_poses_and_map(project, gone_on) -> None:
    angles = turned_by(project / "refined/particles.star", gone_on / "run_it001_data.star")
    assert np.median(angles) < ALIKE_DEG
    assert correlation(project / "refined/map.mrc", gone_on / "run_it001_class001.mrc") > 0.85
    blocks = read_star(gone_on / "run_it001_data.star").blocks
    assert blocks["optics"].floats("rlnImagePixelSize")[0] == PIXEL


def test_relion_finds_our_half_maps_by_their_names(project) -> None:
    """`--i half1.mrc` alone: RELION puts half2 for half1; and our mask is one for it."""
    refined = project / "refined"
    words = ["relion_postprocess", "--i", "half1.mrc", "--mask", "mask.mrc", "--o", "relion"]
    words += ["--angpix", PIXEL, "--adhoc_bfac", 0]
    # it fails at the end where ghostscript, for its page of plots, is absent: all is written then
    subprocess.run([str(word) for word in words], cwd=refined, capture_output=True, check=False)
    theirs = read_star(refined / "relion.star").blocks["fsc"]
    ours = read_star(refined / "fsc.star").blocks["fsc"]
    for name in ("UnmaskedMaps", "MaskedMaps"):
        column = f"rlnFourierShellCorrelation{name}"
        np.testing.assert_allclose(theirs.floats(column), ours.floats(column), atol=0.04)


def test_relion_reads_our_maps_and_reconstructs_from_our_poses(project) -> None:
    words = ["relion_image_handler", "--i", "refined/map.mrc", "--o", "halved.mrc"]
    relion(project, *words, "--angpix", PIXEL, "--rescale_angpix", 2 * PIXEL)
    volume, pixel = read_map(project / "halved.mrc")
    assert volume.shape == (BOX // 2,) * 3
    assert pixel == pytest.approx(2 * PIXEL)
    words = ["relion_reconstruct", "--i", "refined/particles.star", "--o", "relion.mrc", "--ctf"]
    relion(project, *words, "--sym", SYMMETRY)
    halfmap.reconstruct(
        project / "refined/particles.star", project / "ours.mrc", symmetry=SYMMETRY, quiet=True
    )
    assert correlation(project / "relion.mrc", project / "ours.mrc") > 0.95


def test_we_go_on_from_relions_particles_and_map(project, gone_on, monkeypatch) -> None:
    """Its STAR names stacks from the folder of its project, where its user is."""
    monkeypatch.chdir(project)
    halfmap.refine(
        gone_on / "run_it001_data.star",
        gone_on / "run_it001_class001.mrc",
        project / "again",
        iterations=1,
        local=True,
        symmetry=SYMMETRY,
        mask=project / "refined/mask.mrc",
        diameter_angstrom=DIAMETER,
        quiet=True,
    )
    angles = turned_by(gone_on / "run_it001_data.star", project / "again/particles.star")
    assert np.median(angles) < ALIKE_DEG
    assert correlation(gone_on / "run_it001_class001.mrc", project / "again/map.mrc") > 0.85


def test_we_select_among_relions_classes_and_it_takes_ours(project, monkeypatch) -> None:
    """Class averages of ours are its references, its classes are ours to select, and what is
    selected is input to both."""
    monkeypatch.chdir(project)
    classified = halfmap.class2d(
        "sim/particles.star",
        "classes",
        classes=3,
        iterations=2,
        diameter_angstrom=DIAMETER,
        quiet=True,
    )
    (project / "class2d").mkdir()
    words = ["relion_refine", "--i", "classes/particles.star", "--ref", "classes/classes.star"]
    words += ["--o", "class2d/run", "--iter", 1, "--ctf", "--particle_diameter", DIAMETER]
    words += ["--skip_align", "--norm", "--scale", "--pool", 30, "--j", 1, "--zero_mask"]
    relion(project, *words)
    model = read_star(project / "class2d/run_it001_model.star").blocks
    assert len(model["model_classes"].strings("rlnReferenceImage")) == len(classified.sizes)
    data = project / "class2d/run_it001_data.star"
    numbers = read_star(data).blocks["particles"].floats("rlnClassNumber").astype(int)
    most = int(np.bincount(numbers).argmax())
    kept = halfmap.select(data, project / "kept.star", classes=[most])
    assert kept.kept == int((numbers == most).sum())
    assert len(load_particles(project / "kept.star")) == kept.kept
    with_poses = [read_star(path).blocks["particles"] for path in (data, project / "kept.star")]
    psi = with_poses[0].floats("rlnAnglePsi")[numbers == most]
    np.testing.assert_allclose(with_poses[1].floats("rlnAnglePsi"), psi, atol=1e-4)
