"""States go to disk and back bit by bit; poses and candidates are never changed in place."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from halfmap.engine.checkpoint import state_from_arrays, state_to_arrays
from halfmap.engine.image_model import NoiseSpectra, NormAndScale
from halfmap.engine.posterior_weights import assign_hard
from halfmap.engine.state import Candidates, IterationRecord, Poses, State, as_candidates
from halfmap.errors import InputError
from halfmap.so3 import random_rotations
from halfmap.workspace.job import Job, load_checkpoint


def _poses(n: int, seed: int = 0) -> Poses:
    g = torch.Generator().manual_seed(seed)
    return Poses(
        random_rotations(n, g),
        torch.randn(n, 2, generator=g),
        torch.randint(0, 3, (n,), generator=g),
        torch.randn(n, generator=g),
        torch.rand(n, generator=g),
        torch.randint(1, 9, (n,), generator=g),
        torch.randn(n, generator=g),
        torch.rand(n, 2, generator=g),
    )


def _state() -> State:
    g = torch.Generator().manual_seed(1)
    record = IterationRecord(
        iteration=1,
        radius=3,
        scored_to_angstrom=12.0,
        resolutions_angstrom=(float("inf"), 1 / 3),
        angular_change_deg=0.1,
        report={"step": 0.4},
    )
    return State(
        iteration=1,
        references=torch.randn(2, 3, 8, 8, 8, generator=g),
        poses=_poses(11),
        radius=3,
        curves=torch.randn(3, 4, generator=g),
        history=(record,),
        statistics=(
            NoiseSpectra(torch.rand(2, 4, generator=g)),
            NormAndScale(torch.rand(11, generator=g), torch.rand(2, generator=g), 3),
        ),
        method={"velocity": (torch.randn(3, generator=g), [1, 2.5, None, "word", True])},
    )


def _assert_same(a: State, b: State) -> None:
    (arrays, meta), (others, other_meta) = state_to_arrays(a), state_to_arrays(b)
    assert repr(meta) == repr(other_meta)
    assert arrays.keys() == others.keys()
    for name, values in arrays.items():
        other = others[name]
        assert values.dtype == other.dtype, name
        assert values.tobytes() == other.tobytes(), name


def test_arrays_and_meta_make_the_same_state():
    state = _state()
    read = state_from_arrays(*state_to_arrays(state))
    _assert_same(read, state)
    assert read.history == state.history  # typed, not a dictionary
    assert read.find(NormAndScale).outliers == 3
    assert read.method["velocity"][1] == [1, 2.5, None, "word", True]


def test_a_checkpoint_makes_the_same_state_bit_by_bit(tmp_path):
    """Infinity and thirds in the record as well: the next iteration looks at them."""
    state = _state()
    with Job.create("refine", {"particles": "p.star"}, tmp_path / "job", seed=1) as job:
        job.save_checkpoint(*state_to_arrays(state))
    saved = load_checkpoint(tmp_path / "job")
    assert saved is not None
    _assert_same(state_from_arrays(*saved), state)


def test_a_state_read_back_does_not_share_memory_with_the_arrays():
    arrays, meta = state_to_arrays(_state())
    state = state_from_arrays(arrays, meta)
    before = state.references.clone()
    arrays["state.references"][:] = 0
    assert torch.equal(state.references, before)


def test_what_a_checkpoint_cannot_keep_is_refused_with_its_place():
    with pytest.raises(InputError, match=r"state\.method\.hook: expected .* got function"):
        state_to_arrays(replace(_state(), method={"hook": lambda: 0}))


def test_only_dataclasses_are_made_from_a_checkpoint():
    arrays, meta = state_to_arrays(_state())
    meta["state"]["fields"]["method"] = {"dataclass": "os:system", "fields": {}}
    with pytest.raises(InputError, match="system of the module os"):
        state_from_arrays(arrays, meta)


def test_what_is_kept_is_found_by_its_type_and_replaced():
    state = _state()
    new = state.keeping(NoiseSpectra(torch.ones(1, 2)))
    assert torch.equal(new.find(NoiseSpectra).variance, torch.ones(1, 2))
    assert new.find(NormAndScale) is state.find(NormAndScale)
    assert state.find(NoiseSpectra).variance.shape == (2, 4)
    assert new.find(IterationRecord) is None


def test_put_returns_a_copy_and_take_reads_it_back():
    poses, new, index = _poses(9), _poses(3, seed=5), torch.tensor([7, 0, 4])
    kept = Poses(*(f.clone() for f in poses.fields()))
    changed = poses.put(index, new)
    for name in (f.name for f in fields(Poses)):
        assert torch.equal(getattr(poses, name), getattr(kept, name))
        assert torch.equal(getattr(changed.select_images(index), name), getattr(new, name))
        rest = torch.tensor([1, 2, 3, 5, 6, 8])
        assert torch.equal(
            getattr(changed.select_images(rest), name), getattr(kept.select_images(rest), name)
        )


def _candidates(b: int, n: int) -> Candidates:
    g = torch.Generator().manual_seed(3)
    return Candidates(
        random_rotations(b * n, g).view(b, n, 3, 3),
        torch.randn(b, n, 2, generator=g),
        torch.randint(0, 2, (b, n), generator=g),
        torch.randn(b, n, generator=g),
        torch.randn(b, n, generator=g),
        torch.full((b, n), -1),
        torch.rand(b, n, 2, generator=g),
    )


def test_best_candidates_keep_their_poses_together():
    candidates = _candidates(4, 6)
    best = candidates.best(2)
    for i in range(4):
        order = np.argsort(-candidates.log_weight[i].numpy())[:2]
        for name in (f.name for f in fields(Candidates)):
            assert torch.equal(
                getattr(best, name)[i], getattr(candidates, name)[i, order.tolist()]
            ), name
    assert candidates.best(99).score.shape == (4, 6)


def test_append_and_as_candidates():
    poses = _poses(4)
    both = _candidates(4, 3).append(as_candidates(poses))
    assert both.score.shape == (4, 4)
    assert torch.equal(both.rotations[:, 3], poses.rotations)
    assert torch.equal(both.shift_px[:, 3], poses.shift_px)


def test_hard_assignment_is_one_at_the_largest_weight():
    candidates = _candidates(5, 7)
    gamma = assign_hard(candidates)
    assert gamma.weight.tolist() == [1.0] * 5
    assert gamma.image.tolist() == [0, 1, 2, 3, 4]
    for e in range(5):
        best = int(candidates.log_weight[e].argmax())
        slice_number = int(gamma.reference[e])
        assert torch.equal(gamma.rotations[slice_number], candidates.rotations[e, best])
        assert torch.equal(gamma.shift_px[e], candidates.shift_px[e, best])
        assert gamma.classes[slice_number] == candidates.classes[e, best]
