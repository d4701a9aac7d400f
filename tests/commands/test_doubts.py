"""A refinement says against itself what its user must know: that its images are noise, or that the
halves agree no further than the start they were given."""

from dataclasses import replace

import torch

import halfmap
from halfmap.commands._doubts import doubts
from halfmap.engine.state import IterationRecord, State, identity_poses


def _state(log_likelihood: float) -> State:
    last = IterationRecord(
        iteration=5, radius=10, scored_to_angstrom=10.0, mean_log_likelihood=log_likelihood
    )
    nothing = torch.zeros(1, 1)
    poses = identity_poses(torch.zeros(2, dtype=torch.long))
    return State(
        iteration=5, references=nothing, poses=poses, radius=10, curves=nothing, history=(last,)
    )


def test_nothing_is_doubted_without_a_reason():
    seen = _state(12.0)
    assert doubts(seen, 8.0, 40.0, by_likelihood=True) == ()
    (one,) = doubts(seen, 26.0, 20.0, by_likelihood=True)
    assert "no further than the start" in one
    unseen = replace(seen, history=_state(-2.0).history)
    assert doubts(unseen, 8.0, 40.0, by_likelihood=False) == ()  # other scores have another zero
    (one,) = doubts(unseen, 8.0, 40.0, by_likelihood=True)
    assert "no better than noise alone" in one


def test_images_of_noise_are_told_and_particles_are_not(tmp_path):
    """From a start with detail both reach a resolution; only the particles deserve theirs."""
    told = {}
    for name, snr in (("particles", 0.5), ("noise", 1e-6)):
        folder = halfmap.simulate(
            "phantom",
            tmp_path / name,
            n=120,
            snr=snr,
            box=24,
            pixel_size_angstrom=8.0,
            shift_rms_px=0.7,
            seed=4,
            quiet=True,
        ).folder
        told[name] = halfmap.refine(
            folder / "particles.star",
            tmp_path / "particles" / "truth_1.mrc",
            tmp_path / f"{name}_refined",
            iterations=3,
            initial_lowpass_angstrom=40.0,
            diameter_angstrom=160.0,
            shift_range_px=2.0,
            threads=1,
            device="cpu",
            quiet=True,
        ).notes
    assert any("no better than noise alone" in note for note in told["noise"])
    assert not any("no better than noise alone" in note for note in told["particles"])
