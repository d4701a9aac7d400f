"""The demo, whole: what it promises is there, and true."""

from pathlib import Path

import numpy as np
import pytest

from halfmap.cli.main import run
from halfmap.particles import load_particles
from halfmap.workspace.job import read_job


@pytest.mark.slow
def test_the_demo_tells_the_whole_story(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as left:
        run(["demo", "--out", str(tmp_path), "--n", "1000", "--quiet"])
    assert not left.value.code
    assert {path.parent.parent.name for path in tmp_path.glob("*/pictures/*.png")} == {
        "2_classes",
        "4_initial",
        "5_states",
        "7_refined",
    }
    assert (tmp_path / "7_refined" / "half1.mrc").exists()
    assert (tmp_path / "7_refined" / "half2.mrc").exists()
    truth, found = (
        load_particles(tmp_path / name)
        for name in ("1_particles/truth.star", "5_states/particles.star")
    )
    rows = np.searchsorted(truth.image_index, found.image_index)
    junk = truth.table.floats("halfmapTruthJunk")[rows] > 0
    assert junk.mean() < 0.08  # of 12 %: overlaps of two particles look like particles
    good = ~junk
    same = (truth.class_number[rows] == found.class_number)[good].mean()
    assert max(same, 1 - same) > 0.95
    assert read_job(tmp_path / "7_refined")["results"]["resolution_angstrom"] < 10
