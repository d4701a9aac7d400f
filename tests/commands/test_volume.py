"""`halfmap volume`: each change against what it must be, and poses that follow the map."""

import numpy as np
import pytest
import torch

import halfmap
from halfmap.alignment import Alignment
from halfmap.errors import InputError
from halfmap.io.mrc import read_map, write_map
from halfmap.simulation.phantom import phantom
from halfmap.so3 import random_rotations

PIXEL = 5.0


def _corr(a, b) -> float:
    return float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    """A molecule without symmetry, the same in another frame, hand and grey scale, C4."""
    folder = tmp_path_factory.mktemp("volume")
    molecule = phantom(40, PIXEL, symmetry="C1")
    write_map(folder / "molecule.mrc", molecule.numpy(), PIXEL)
    where = Alignment(
        random_rotations(1, torch.Generator().manual_seed(1))[0], torch.ones(3), True, 1.0
    )
    write_map(folder / "moved.mrc", 0.1 * where.apply_to_map(molecule).numpy(), PIXEL)
    write_map(folder / "channel.mrc", phantom(40, PIXEL).numpy(), PIXEL)
    return folder


def test_aligned_from_another_frame_and_hand(maps):
    out = maps / "laid.mrc"
    halfmap.volume(maps / "moved.mrc", out, align_to=maps / "molecule.mrc", either_hand=True)
    wanted = read_map(maps / "molecule.mrc")[0]
    assert (
        _corr(read_map(maps / "moved.mrc")[0], wanted)
        < 0.8
        < 0.98
        < _corr(read_map(out)[0], wanted)
    )


def test_resampled_to_a_pixel_size_and_back_like_another(maps):
    there, back = maps / "there.mrc", maps / "back.mrc"
    halfmap.volume(maps / "molecule.mrc", there, pixel_size_angstrom=3.7)
    small, pixel = read_map(there)
    assert pixel == pytest.approx(3.7, rel=4e-3)
    assert small.shape[0] == pytest.approx(40 * PIXEL / 3.7, abs=2)
    halfmap.volume(there, back, like=maps / "molecule.mrc")
    again, pixel = read_map(back)
    assert again.shape[0] == 40
    assert pixel == pytest.approx(PIXEL, rel=4e-3)
    assert _corr(again, read_map(maps / "molecule.mrc")[0]) > 0.98


def test_hand_flipped_twice_centred_padded_and_poses_follow(maps):
    sim = maps / "sim"
    halfmap.simulate(maps / "molecule.mrc", sim, n=80, snr=20.0, symmetry="C1", quiet=True)
    out = maps / "flipped.mrc"
    done = halfmap.volume(
        maps / "molecule.mrc", out, flip_hand=True, centre=True, particles=sim / "truth.star"
    )
    assert len(done.steps) == 2
    halfmap.reconstruct(maps / "flipped.star", maps / "again.mrc", quiet=True)
    flipped, again = read_map(out)[0], read_map(maps / "again.mrc")[0]
    assert _corr(flipped, again) > 0.85
    halfmap.reconstruct(sim / "truth.star", maps / "before.mrc", quiet=True)
    assert _corr(flipped, read_map(maps / "before.mrc")[0]) < 0.8
    halfmap.volume(maps / "molecule.mrc", maps / "once.mrc", flip_hand=True, box=51)
    halfmap.volume(maps / "once.mrc", maps / "twice.mrc", flip_hand=True, box=40)
    assert _corr(read_map(maps / "twice.mrc")[0], read_map(maps / "molecule.mrc")[0]) > 0.999


def test_symmetry_of_a_map_off_its_axes_is_refused_and_of_one_on_them_taken(maps):
    with pytest.raises(InputError, match=r"I mates at 20 A.*halfmap symmetry"):
        halfmap.volume(maps / "molecule.mrc", maps / "no.mrc", symmetry="I")
    assert not (maps / "no.mrc").exists()
    halfmap.volume(maps / "channel.mrc", maps / "yes.mrc", symmetry="C4")
    assert _corr(read_map(maps / "yes.mrc")[0], read_map(maps / "channel.mrc")[0]) > 0.99


def test_filters_and_normalising(maps):
    halfmap.volume(maps / "molecule.mrc", maps / "low.mrc", lowpass_angstrom=25.0)
    power = np.abs(np.fft.fftn(read_map(maps / "low.mrc")[0])) ** 2
    assert power[0, 0, 12] < 1e-6 * power[0, 0, 0]  # 17 A
    halfmap.volume(maps / "molecule.mrc", maps / "sharp.mrc", bfactor_angstrom2=-200.0)
    before, after = (
        np.abs(np.fft.fftn(read_map(maps / f"{name}.mrc")[0]))[0, 0, 10]
        for name in ("molecule", "sharp")
    )
    assert after / before == pytest.approx(np.exp(200 / 4 / 20.0**2), rel=1e-3)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "nothing to do"),
        ({"align_to": "small.mrc"}, "add --like"),
        ({"lowpass_angstrom": 3.0}, "expected 10 to"),
        ({"like": "small.mrc", "pixel_size_angstrom": 3.0}, "expected one of them"),
    ],
)
def test_what_cannot_be_done_is_refused(maps, options, told):
    write_map(maps / "small.mrc", phantom(32, PIXEL).numpy(), PIXEL)
    paths = {k: maps / v if isinstance(v, str) else v for k, v in options.items()}
    with pytest.raises(InputError, match=told):
        halfmap.volume(maps / "molecule.mrc", maps / "bad.mrc", **paths)
    assert not (maps / "bad.mrc").exists()
