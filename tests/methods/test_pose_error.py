"""Poses that the half maps disagree about: none at first, where both are the same map; the fewer
images, the more."""

import halfmap
from halfmap.engine.checkpoint import state_from_arrays
from halfmap.engine.image_model import PoseError
from halfmap.workspace.job import load_checkpoint


def _ratio(tmp_path, n: int, iterations: int) -> float:
    folder, out = tmp_path / f"images_{n}", tmp_path / f"refined_{n}_{iterations}"
    if not folder.exists():
        halfmap.simulate(
            "phantom", folder, n=n, snr=0.1, box=32, pixel_size_angstrom=7.0, quiet=True
        )
    halfmap.refine(
        folder / "particles.star",
        folder / "truth_1.mrc",
        out,
        iterations=iterations,
        initial_lowpass_angstrom=40,
        threads=1,
        quiet=True,
    )
    kept = state_from_arrays(*load_checkpoint(out)).find(PoseError)
    return float(kept.ratio)


def test_few_images_make_maps_that_disagree_about_poses(tmp_path):
    assert _ratio(tmp_path, 80, 1) == 0  # one map, twice
    few, many = _ratio(tmp_path, 80, 3), _ratio(tmp_path, 800, 3)
    assert 0 < many < few
