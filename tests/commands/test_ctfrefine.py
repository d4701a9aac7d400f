"""Errors put into the transfer functions of a simulated set are found again."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import halfmap
from halfmap.ctf_parameters import CTFParameters
from halfmap.errors import InputError
from halfmap.masks import soft_sphere
from halfmap.particles import Particles, load_particles

N, BOX, PIXEL, PER_MICROGRAPH = 300, 60, 2.5, 20
OPTIONS = {"symmetry": "C4", "threads": 1, "quiet": True}


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    """Images of the phantom with all aberrations there are, and their truth."""
    folder = tmp_path_factory.mktemp("ctfrefine") / "sim"
    halfmap.simulate(
        ["phantom"],
        folder,
        n=N,
        snr=0.3,
        box=BOX,
        pixel_size_angstrom=PIXEL,
        shift_rms_px=0.5,
        particles_per_micrograph=PER_MICROGRAPH,
        seed=4,
        quiet=True,
    )
    return folder


def _refined(scene: Path, tmp_path: Path, wrong, **options) -> tuple[Particles, ...]:
    """The truth, a set with the wrong transfer functions that `wrong` makes of it, and that set
    refined."""
    truth = load_particles(scene / "truth.star")
    spoiled = truth.with_transfer(wrong(truth.transfer))
    spoiled.write_star(tmp_path / "spoiled.star")
    result = halfmap.ctfrefine(
        tmp_path / "spoiled.star", tmp_path / "ctf", **{**OPTIONS, **options}
    )
    return truth, spoiled, load_particles(result.particles_path)


def _defocus(particles: Particles) -> np.ndarray:
    p = particles.transfer
    return (p.defocus_u_angstrom + p.defocus_v_angstrom) / 2


def _astigmatism(particles: Particles) -> np.ndarray:
    p = particles.transfer
    half = (p.defocus_u_angstrom - p.defocus_v_angstrom) / 2
    return half * np.exp(2j * np.radians(p.defocus_angle_deg))


def _moved(transfer: CTFParameters, by: np.ndarray) -> CTFParameters:
    return replace(
        transfer,
        defocus_u_angstrom=transfer.defocus_u_angstrom + by,
        defocus_v_angstrom=transfer.defocus_v_angstrom + by,
    )


def test_the_defocus_of_particles_is_found(scene, tmp_path):
    error = 300 * np.random.default_rng(1).standard_normal(N)
    truth, spoiled, found = _refined(scene, tmp_path, lambda p: _moved(p, error))
    before = np.median(np.abs(_defocus(spoiled) - _defocus(truth)))
    after = np.median(np.abs(_defocus(found) - _defocus(truth)))
    assert after < 0.5 * before


def test_what_is_solvent_does_not_tell_the_defocus(tmp_path):
    """In a mask of its own a map knows more than in a sphere that holds mostly solvent."""
    rng, box = np.random.default_rng(3), 64
    rod = np.zeros((box,) * 3)
    z, y, x = np.indices(rod.shape) - box // 2
    for _ in range(80):  # along z: in a sphere it fills a fiftieth
        cx, cy, cz = rng.normal(0, 1, 3) * (2.5, 2.5, 9)
        rod += np.exp(-((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2) / (2 * 0.7**2))
    halfmap.write_map(tmp_path / "rod.mrc", rod.astype(np.float32), 1.5)
    halfmap.simulate(tmp_path / "rod.mrc", tmp_path / "sim", n=300, snr=0.1, seed=5, quiet=True)
    sphere = soft_sphere(box, radius_px=0.45 * box, edge_px=3)
    halfmap.write_map(tmp_path / "sphere.mrc", sphere.numpy(), 1.5)
    error = 300 * rng.standard_normal(300)
    left = {}
    for name, mask in (("own", None), ("sphere", tmp_path / "sphere.mrc")):
        (tmp_path / name).mkdir()
        options = {"mask": mask, "symmetry": "C1"}
        truth, _, found = _refined(
            tmp_path / "sim", tmp_path / name, lambda p: _moved(p, error), **options
        )
        left[name] = np.std(_defocus(found) - _defocus(truth))
    assert left["own"] < 0.85 * left["sphere"]
    own = halfmap.read_map(tmp_path / "own/ctf/mask.mrc")[0]
    assert own[rod > 0.2 * rod.max()].min() > 0.9
    assert own.mean() < 0.3 * float(sphere.mean())
    assert not (tmp_path / "sphere/ctf/mask.mrc").exists()


def test_the_defocus_and_astigmatism_of_micrographs_are_found(scene, tmp_path):
    draw, micrograph = np.random.default_rng(2), np.arange(N) // PER_MICROGRAPH
    shared = 300 * draw.standard_normal(micrograph.max() + 1)[micrograph]

    def wrong(p: CTFParameters) -> CTFParameters:
        stretched = replace(
            p,
            defocus_u_angstrom=p.defocus_u_angstrom + 250,
            defocus_v_angstrom=p.defocus_v_angstrom - 250,
        )
        return _moved(stretched, shared)

    truth, spoiled, found = _refined(scene, tmp_path, wrong, defocus="micrograph", astigmatism=True)
    for measure in (_defocus, _astigmatism):
        before = np.median(np.abs(measure(spoiled) - measure(truth)))
        after = np.median(np.abs(measure(found) - measure(truth)))
        assert after < 0.3 * before


def test_beam_tilt_is_found_and_particles_stay_where_they_are(scene, tmp_path):
    truth, _, found = _refined(
        scene,
        tmp_path,
        lambda p: replace(p, beam_tilt_x_mrad=1.5 + 0 * p.scale, beam_tilt_y_mrad=-1 + 0 * p.scale),
        defocus="none",
        beam_tilt=True,
    )
    assert abs(found.transfer.beam_tilt_x_mrad[0]) < 0.2
    assert abs(found.transfer.beam_tilt_y_mrad[0]) < 0.2
    assert np.abs(found.shift_angstrom - truth.shift_angstrom).max() < 0.3


def test_magnification_is_found(scene, tmp_path):
    def wrong(p: CTFParameters) -> CTFParameters:
        one = np.ones(N)
        return replace(
            p,
            magnification_xx=1.02 * one,
            magnification_xy=0.01 * one,
            magnification_yx=0.01 * one,
            magnification_yy=0.98 * one,
        )

    _, _, found = _refined(scene, tmp_path, wrong, defocus="none", magnification=True)
    p = found.transfer
    # how large the object is and how it is turned, the map that it makes does not tell
    assert (p.magnification_xx[0] - p.magnification_yy[0]) / 2 == pytest.approx(0, abs=1e-3)
    assert (p.magnification_xy[0] + p.magnification_yx[0]) / 2 == pytest.approx(0, abs=1e-3)
    assert (p.magnification_xx[0] + p.magnification_yy[0]) / 2 == pytest.approx(1, abs=1e-3)


def test_the_sizes_of_groups_are_found_against_one_another(tmp_path):
    drawn = {"n": N, "snr": 0.3, "box": BOX, "pixel_size_angstrom": PIXEL, "shift_rms_px": 0.5}
    halfmap.simulate(["phantom"], tmp_path / "sim", optics_groups=2, seed=4, quiet=True, **drawn)
    truth = load_particles(tmp_path / "sim" / "truth.star")
    size = np.where(truth.optics_group == 1, 0.985, 1.01)
    one = replace(truth.transfer, magnification_xx=size, magnification_yy=size)
    truth.with_transfer(one).write_star(tmp_path / "sizes.star")
    asked = {"defocus": "none", "magnification": True, **OPTIONS}
    result = halfmap.ctfrefine(tmp_path / "sizes.star", tmp_path / "ctf", **asked)
    p = load_particles(result.particles_path).transfer
    found = [p.magnification_xx[truth.optics_group == group].mean() for group in (0, 1)]
    assert found[0] / found[1] == pytest.approx(1, abs=3e-3)
    # the size that they share, the images do not tell
    assert p.magnification_xx.mean() == pytest.approx(size.mean(), abs=1e-3)


def test_right_parameters_stay_right(scene, tmp_path):
    truth, _, found = _refined(
        scene, tmp_path, lambda p: p, beam_tilt=True, trefoil=True, astigmatism=True
    )
    assert np.median(np.abs(_defocus(found) - _defocus(truth))) < 60
    assert np.abs(found.transfer.beam_tilt_x_mrad).max() < 0.2


def test_what_cannot_be_done_is_refused_in_one_line(scene, tmp_path):
    with pytest.raises(InputError, match="nothing is left to refine"):
        halfmap.ctfrefine(scene / "truth.star", tmp_path / "a", defocus="none")
    with pytest.raises(InputError, match="no poses"):
        halfmap.ctfrefine(scene / "particles.star", tmp_path / "b", quiet=True)
    stored = load_particles(scene / "truth.star")
    stored = stored.with_transfer(replace(stored.transfer, premultiplied=np.ones(N, bool)))
    stored.write_star(tmp_path / "stored.star")
    with pytest.raises(InputError, match="row 1: the image is CTF-premultiplied"):
        halfmap.ctfrefine(tmp_path / "stored.star", tmp_path / "c", quiet=True)


def test_what_images_do_not_tell_is_left_as_it_was(tmp_path):
    """Of 40 images in which the noise is 1000 times the signal nothing is to be learnt."""
    few = {"n": 40, "snr": 0.001, "box": 32, "pixel_size_angstrom": 6.0, "seed": 2, "quiet": True}
    halfmap.simulate(["phantom"], tmp_path / "sim", particles_per_micrograph=10, **few)
    asked = {"beam_tilt": True, "astigmatism": True, "spherical_aberration": True}
    truth, spoiled, found = _refined(
        tmp_path / "sim", tmp_path, lambda p: _moved(p, np.full(40, 50.0)), **asked
    )
    np.testing.assert_allclose(_defocus(found), _defocus(spoiled), atol=0.01)
    assert np.abs(_astigmatism(found) - _astigmatism(spoiled)).max() < 0.01
    p, q = found.transfer, truth.transfer
    np.testing.assert_allclose(p.beam_tilt_x_mrad, q.beam_tilt_x_mrad, atol=1e-6)
    np.testing.assert_allclose(p.spherical_aberration_mm, q.spherical_aberration_mm, atol=1e-6)
    assert "left as it was" in (tmp_path / "ctf/messages.txt").read_text()
