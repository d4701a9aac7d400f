"""Classes are what images tell where their noise cannot confirm itself: images of one state, or of
none, say that they do not know; and maps follow from unsure labels by least squares."""

import json

import numpy as np
import pytest
import torch

import halfmap
import halfmap.commands.class3d as job
from halfmap.commands._doubts import doubted_classes
from halfmap.engine.class_posterior import ClassProbability
from halfmap.engine.pose_prior import uniform_prior
from halfmap.engine.significant_poses import SignificantPoses
from halfmap.engine.state import State, as_candidates, identity_poses, in_every_class
from halfmap.io.star import read_star
from halfmap.methods.class_check import along_directions, directions, with_classes
from halfmap.projection import empty_sums


def test_unsure_labels_give_the_maps_that_images_are_of():
    """Images of three classes in unequal shares, without noise, each with calibrated labels P:
    `num_k = sum_i P_ik y_i` is a mixture of all maps, and what is made of it is the maps."""
    generator = torch.Generator().manual_seed(1)
    n, k = 20000, 3
    weight = torch.softmax(2 * torch.randn(n, k, generator=generator).double() + torch.arange(k), 1)
    state = torch.multinomial(weight, 1, generator=generator)[:, 0]
    maps = torch.randn(k, 6, generator=generator).double()
    num = weight.T @ maps[state]
    share, along = directions(weight.T @ weight)
    found = along.T @ ((along @ num) / (share[:, None] * n))
    torch.testing.assert_close(found, maps, atol=0.1, rtol=0)
    naive = num / weight.sum(0)[:, None]
    assert (naive - maps).norm() > 5 * (found - maps).norm()


def test_the_last_direction_is_the_mean_of_all_images():
    sums = empty_sums(2, 8, 2, 3)
    sums.num[0], sums.num[1], sums.den[:] = 1.0, 3.0, 2.0
    products = torch.tensor([[0.2, 0.1], [0.1, 0.6]])
    turned = along_directions(sums, *directions(products))
    assert torch.allclose(turned.num[1].abs(), torch.full_like(turned.num[1].real, 4.0))
    assert torch.allclose(turned.den[1], torch.full_like(turned.den[1], 4.0))


def _sorted(classes: list[int], log_weight: torch.Tensor) -> State:
    poses = identity_poses(torch.tensor(classes))
    known = in_every_class(as_candidates(poses), 2)
    probability = torch.softmax(log_weight, 1).amax(1)
    candidates = type(known)(*(*known.fields()[:4], log_weight, *known.fields()[5:])).best(2)
    prior = uniform_prior(2, 3, order=0, shift_sigma_px=1.0, device="cpu")
    return State(
        iteration=1,
        references=torch.zeros(1, 2, 2, 2, 2),
        poses=poses,
        radius=1,
        curves=torch.zeros(2, 2),
        statistics=(SignificantPoses(candidates), ClassProbability(probability), prior),
    )


def test_images_keep_poses_and_take_the_classes_told():
    before = _sorted([0, 1], torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log())
    told = _sorted([1, 0], torch.tensor([[0.3, 0.7], [0.5, 0.5]]).log())
    after = with_classes(before, told)
    assert after.poses.classes.tolist() == [1, 1]  # in a tie the class is what it was
    torch.testing.assert_close(
        after.poses.largest_weight, torch.tensor([0.7, 0.5]), atol=1e-3, rtol=0
    )


def test_what_is_not_borne_out_is_told():
    assert doubted_classes(0.9, 0.9, 2, True) == ()
    (less,) = doubted_classes(0.9, 0.7, 2, True)
    assert "0.70 of their class in the mean, not 0.90" in less
    (nothing,) = doubted_classes(0.8, 0.25, 4, False)
    assert "do not tell these classes apart" in nothing
    assert "each has 0.25 now" in nothing


def _classified(out, particles, maps, classes: int = 2) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Classes, their probabilities and doubts of a job at known poses."""
    halfmap.class3d(
        particles,
        maps,
        out,
        classes=classes,
        alignment=False,
        iterations=8,
        initial_lowpass_angstrom=40.0,
        diameter_angstrom=160.0,
        device="cpu",
        threads=1,
        quiet=True,
    )
    found = read_star(out / "particles.star").blocks["particles"]
    doubts = json.loads((out / "job.json").read_text())["results"].get("doubts", [])
    probability = np.asarray(found.floats("halfmapClassProbability"))
    return np.asarray(found.floats("rlnClassNumber")), probability, doubts


@pytest.mark.parametrize("snr", [0.1, 1e-6])
def test_images_of_one_state_or_of_none_say_that_they_do_not_know(tmp_path, monkeypatch, snr):
    """Unchecked, they are sure of classes that noise made."""
    folder = halfmap.simulate(
        "phantom",
        tmp_path / "sim",
        n=300,
        snr=snr,
        box=24,
        pixel_size_angstrom=8.0,
        shift_rms_px=0.7,
        seed=3,
        quiet=True,
    ).folder
    one = folder / "truth.star", folder / "truth_1.mrc"
    _, probability, (doubt,) = _classified(tmp_path / "checked", *one)
    assert probability.max() < 0.51
    assert "do not tell these classes apart" in doubt
    if snr < 0.01:
        return
    monkeypatch.setattr(job, "_checked", lambda job, problem, settings, state, *told: state)
    _, probability, doubts = _classified(tmp_path / "unchecked", *one)
    assert probability.mean() > 0.65
    assert not doubts


def test_states_that_images_tell_stay(tmp_path):
    folder = halfmap.simulate(
        ["phantom", "phantom:1"],
        tmp_path / "sim",
        n=300,
        snr=0.5,
        box=25,
        pixel_size_angstrom=8.0,
        shift_rms_px=0.7,
        seed=3,
        quiet=True,
    ).folder
    maps = [folder / "truth_1.mrc", folder / "truth_2.mrc"]
    classes, probability, doubts = _classified(tmp_path / "states", folder / "truth.star", maps)
    true = read_star(folder / "truth.star").blocks["particles"].floats("rlnClassNumber")
    right = np.equal(classes, true).mean()
    assert right > 0.95
    assert probability.mean() == pytest.approx(right, abs=0.03)
    assert not doubts
