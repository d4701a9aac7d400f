"""A project folder that has moved: its jobs go on from anywhere, with the same bytes."""

import json
import os
import shutil
from pathlib import Path

import pytest

import halfmap
from halfmap.workspace.job import read_job
from halfmap.workspace.moved import brought_here
from killed import kill_after_checkpoint

RESULTS = ("map.mrc", "half1.mrc", "half2.mrc", "fsc.star", "particles.star", "mask.mrc")
REFINE = {
    **{"symmetry": "C4", "angular_step_deg": 15.0, "shift_range_px": 2.0, "iterations": 3},
    **{"initial_lowpass_angstrom": 40.0, "device": "cpu", "threads": 1, "quiet": True},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """Images in one folder, their STAR in another, and a refinement of them that ended."""
    folder = tmp_path_factory.mktemp("before") / "project"
    size = {"box": 32, "pixel_size_angstrom": 6.0, "shift_rms_px": 1.0, "seed": 7}
    halfmap.simulate("phantom", folder / "sim", n=120, snr=0.4, quiet=True, **size)
    before = Path.cwd()
    os.chdir(folder)
    try:
        halfmap.refine("sim/particles.star", "sim/truth_1.mrc", "whole", **REFINE)
    finally:
        os.chdir(before)
    return folder


@pytest.mark.parametrize("names", ["relative", "absolute"])
def test_a_killed_job_goes_on_where_its_project_has_moved(
    project, names, tmp_path, monkeypatch
) -> None:
    """The old place is gone, and the working directory has nothing to do with either."""
    old, new = tmp_path / "old" / "project", tmp_path / "elsewhere" / "deep" / "renamed"
    shutil.copytree(project, old)
    monkeypatch.chdir(old)
    inputs = [Path("sim/particles.star"), Path("sim/truth_1.mrc")]
    if names == "absolute":
        inputs = [one.absolute() for one in inputs]
    kill_after_checkpoint("refine", *inputs, out=Path("job"), after=1, **REFINE)
    new.parent.mkdir(parents=True)
    old.rename(new)
    (tmp_path / "nowhere").mkdir()
    monkeypatch.chdir(tmp_path / "nowhere")
    halfmap.resume(new / "job", quiet=True)
    for name in RESULTS:  # image names are absolute where they lead nowhere from the job's folder
        moved, whole = ((at / name).read_bytes() for at in (new / "job", project / "whole"))
        assert moved == whole.replace(str(project).encode(), str(new).encode()), name
    record = read_job(new / "job")
    assert record["status"] == "finished"
    assert record["working_directory"] == str(new)
    assert str(old) not in json.dumps(record["parameters"])


def test_files_are_looked_for_from_the_job_folder_and_then_as_recorded(tmp_path) -> None:
    """A copy of a project takes its own files; what lies outside stays where it is."""
    old, new, data = tmp_path / "a" / "p", tmp_path / "b" / "c" / "p", tmp_path / "data"
    for place in (old, new, data):
        (place / "job").mkdir(parents=True)
        for name in ("x.star", "mask.mrc"):
            (place / name).touch()
    (new / "mask.mrc").unlink()
    parameters = {
        "particles": str(old / "x.star"),
        "reference": [str(data / "x.star"), "x.star"],
        "mask": "mask.mrc",
        "data_dir": str(tmp_path / "gone"),
        "symmetry": "x.star",
    }
    record = {"working_directory": str(old), "folder": str(old / "job"), "parameters": parameters}
    files = set(parameters) - {"symmetry"}
    here, where = brought_here(new / "job", record, files)
    assert where == new
    assert here["parameters"] == {
        "particles": str(new / "x.star"),
        "reference": [str(data / "x.star"), "x.star"],
        "mask": str(old / "mask.mrc"),
        "data_dir": str(tmp_path / "gone"),
        "symmetry": "x.star",
    }
    assert brought_here(old / "job", record, files) == (record, old)
    del record["folder"]  # of an earlier version
    assert brought_here(new / "job", record, files)[0]["parameters"] == parameters
