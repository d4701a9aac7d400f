"""The benchmark of low signal, on poses and posteriors that are known."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from halfmap.engine.state import Candidates, Poses, known_poses
from halfmap.so3 import random_rotations, rotation_vector_to_matrix

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import low_signal
import truth

C1, C4 = (torch.from_numpy(truth.point_group(name)).float() for name in ("C1", "C4"))


def some_poses(n: int) -> Poses:
    generator = torch.Generator().manual_seed(n)
    shift_px = torch.randn(n, 2, generator=generator)
    return known_poses(random_rotations(n, generator), shift_px, torch.zeros(n, dtype=torch.long))


def turned(poses: Poses, angle_deg: float) -> Poses:
    turn = rotation_vector_to_matrix(torch.tensor([math.radians(angle_deg), 0.0, 0.0]))
    return replace(poses, rotations=turn @ poses.rotations)


def candidates(*columns: tuple[Poses, float]) -> Candidates:
    """Refined poses with the log weights given, the same for every image."""
    poses, weights = zip(*columns, strict=True)
    log_weight = torch.tensor(weights).expand(len(poses[0]), -1).contiguous()
    return Candidates(
        rotations=torch.stack([p.rotations for p in poses], 1),
        shift_px=torch.stack([p.shift_px for p in poses], 1),
        classes=torch.stack([p.classes for p in poses], 1),
        score=log_weight.clone(),
        log_weight=log_weight,
        cell=torch.full(log_weight.shape, -1),
        accuracy=torch.zeros(*log_weight.shape, 2),
    )


def test_the_mass_around_the_best_pose_is_that_of_its_cone() -> None:
    """Weights 0.4, 0.3, 0.2, 0.1: the best, one 6 degrees away, one 15 degrees away, and one at the
    same angle but 3 pixels away."""
    true = some_poses(5)
    moved = replace(true, shift_px=true.shift_px + torch.tensor([3.0, 0.0]))
    found = candidates(
        (true, math.log(4)),
        (turned(true, 6), math.log(3)),
        (turned(true, 15), math.log(2)),
        (moved, 0.0),
    )
    said = low_signal.posteriors(found, true, C1)
    assert said.probability == pytest.approx(0.7)
    assert said.right.all()
    assert said.error == pytest.approx(0.3)
    for other in (turned(true, 15), moved):
        assert not low_signal.posteriors(found, other, C1).right.any()


def test_symmetry_mates_are_one_pose_and_empty_places_none() -> None:
    true = some_poses(5)
    mate = replace(true, rotations=true.rotations @ C4[1])
    found = candidates((true, 0.0), (mate, 0.0), (turned(true, 90), -math.inf))
    assert low_signal.posteriors(found, mate, C4).probability == pytest.approx(1)
    assert low_signal.posteriors(found, mate, C4).right.all()
    assert low_signal.posteriors(found, mate, C1).probability == pytest.approx(0.5)


def test_a_pose_is_lost_where_a_better_one_lies_elsewhere() -> None:
    true = some_poses(5)
    found = candidates((turned(true, 3), 2.0), (turned(true, 90), 1.0))
    for pose, weight, beaten, elsewhere in (
        (true, 2.9, 0, 0),  # better by less than one
        (true, 3.1, 5, 0),  # the same peak, not refined to its end
        (turned(true, 40), 3.1, 5, 5),
        (turned(true, 40), 1.0, 0, 0),
    ):
        result = low_signal.beaten(found, candidates((pose, weight)), C1)
        assert result == low_signal.Beaten(5, beaten, elsewhere)
    total = low_signal.Beaten(5, 3, 1) + low_signal.Beaten(5, 0, 0)
    assert str(total) == "3 (1) of 10"


def test_cells_of_a_grid_are_compared_by_their_likelihood() -> None:
    """The weight of a cell is not that of a peak."""
    true = some_poses(5)
    found = replace(candidates((true, -50.0)), cell=torch.zeros(5, 1, dtype=torch.long))
    found = replace(found, score=torch.full((5, 1), 2.0))
    assert low_signal.beaten(found, candidates((true, 2.5)), C1).beaten == 0
    assert low_signal.beaten(found, candidates((true, 3.5)), C1).beaten == 5


def test_known_poses_are_brought_into_the_frame_of_the_job() -> None:
    """What the judge then finds between them is nothing."""
    pixel, n = 2.0, 200
    known = some_poses(n)
    frame = truth.rotation_from_vector(np.array([20.0, -35.0, 50.0]))
    offset = np.array([2.0, -1.0, 3.0])
    nothing = np.zeros(n)
    errors = truth.PoseErrors(nothing, nothing, frame, float(truth.angle_of(frame)), offset)
    moved = low_signal.in_frame_of_job(known, errors, pixel)

    def judged(poses: Poses) -> truth.Poses:
        return truth.Poses(
            poses.rotations.double().numpy(),
            poses.shift_px.double().numpy() * pixel,
            np.ones(n, int),
            np.arange(n),
        )

    found = truth.pose_errors(judged(moved), judged(known))
    assert found.angle_deg.max() < 1e-3
    assert found.shift_angstrom.max() < 1e-3
    assert found.frame == pytest.approx(frame, abs=1e-5)
    assert found.frame_shift_angstrom == pytest.approx(offset, abs=1e-4)
    # a pixel is no Angstrom
    assert truth.pose_errors(
        judged(low_signal.in_frame_of_job(known, errors, 1.0)), judged(known)
    ).frame_shift_angstrom == pytest.approx(2 * offset, abs=1e-4)


@pytest.mark.slow
@pytest.mark.shared
def test_a_small_set_of_strong_signal_is_measured(tmp_path, monkeypatch, shared_data) -> None:
    """Where signal is strong, every pose is found, and the posteriors know it."""
    import common
    import datasets

    monkeypatch.setattr(datasets, "DATA", tmp_path / "data")
    monkeypatch.setattr(common, "RUNS", tmp_path)
    monkeypatch.setattr(low_signal, "FIGURES", tmp_path)
    report = low_signal.low_signal(molecules=("cage",), snrs=(0.5,), n=60)
    numbers = report.numbers["cage 0.5"]
    assert numbers["beyond_10_deg"] == 0
    assert numbers["error_median_deg"] < 1
    assert numbers["share_right"] == 1
    assert numbers["mean_probability"] > 0.999
    assert numbers["ece"] < 0.001
    assert numbers["by_known"] == {"images": 60, "beaten": 0, "elsewhere": 0}
    assert numbers["by_wide"] == {"images": 60, "beaten": 0, "elsewhere": 0}
    assert (tmp_path / low_signal.PICTURE).exists()
    assert len(report.numbers["printed"].splitlines()) == 2
