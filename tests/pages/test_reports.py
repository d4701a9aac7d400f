"""Every job leaves its report: found by walking over all commands that there are."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import halfmap
from halfmap.cli.application import PANELS
from halfmap.reports.jobs import find_jobs
from halfmap.reports.report import report_path

COMMANDS = [name for names in PANELS.values() for name in names]
NO_JOBS = {
    "info": "writes nothing",
    "web": "serves a folder",
    "demo": "runs the others, each of which leaves its own",
}


def steps(jobs: Path, small: Path, root: Path) -> dict[str, Callable[[], object]]:
    """What each command is asked for, small; what it writes lies in `root`."""
    star, sim = jobs / "refined" / "particles.star", jobs / "particles" / "particles.star"
    map_, refined = jobs / "refined" / "map.mrc", jobs / "refined"
    quiet = {"quiet": True}
    brief = {"iterations": 1, "threads": 1, **quiet}
    three = {"symmetry": "C4", "threads": 1, **quiet}
    return {
        "simulate": lambda: halfmap.simulate(
            "phantom", root / "sim", n=4, snr=1.0, box=16, pixel_size_angstrom=12.0, **quiet
        ),
        "class2d": lambda: halfmap.class2d(sim, root / "k", classes=2, **brief),
        "abinitio": lambda: halfmap.abinitio(sim, root / "a", **brief),
        "refine": lambda: halfmap.refine(star, map_, root / "r", symmetry="C4", **brief),
        "class3d": lambda: halfmap.class3d(star, map_, root / "c", classes=2, **brief),
        "ctfrefine": lambda: halfmap.ctfrefine(star, root / "ctf", folds=2, rounds=1, **three),
        "reconstruct": lambda: halfmap.reconstruct(star, root / "x.mrc", **three),
        "restore": lambda: halfmap.restore(sim, "wiener", root / "restored", **quiet),
        "mask": lambda: halfmap.mask(refined, root / "mask.mrc", extend="-1px", soft_edge="2px"),
        "postprocess": lambda: halfmap.postprocess(refined, root / "p", mask=small, **quiet),
        "orientations": lambda: halfmap.orientations(refined, root / "o", mask=small, **quiet),
        "localres": lambda: halfmap.localres(refined, root / "l", mask=small, **quiet),
        "symmetry": lambda: halfmap.symmetry(map_, out=root / "laid.mrc"),
        "volume": lambda: halfmap.volume(map_, root / "low.mrc", lowpass_angstrom=40),
        "project": lambda: halfmap.project(map_, star, root / "shown.mrcs"),
        "fsc": lambda: halfmap.fsc(map_, small, out=root / "curve.star"),
        "select": lambda: halfmap.select(star, root / "some.star", share=0.5),
        "stack": lambda: halfmap.stack(sim, root / "less.star", downsample=16),
        "join": lambda: halfmap.join([sim, star], root / "both.star"),
        "subtract": lambda: halfmap.subtract(star, root / "part.star", reference=map_, mask=small),
        "expand": lambda: halfmap.expand(star, "C4", root / "copies.star"),
        "convert": lambda: halfmap.convert(star, root / "other.cs"),
        "resume": lambda: halfmap.resume(stopped(jobs / "classes", root / "again")),
    }


@pytest.fixture(scope="module")
def small(jobs, tmp_path_factory) -> Path:
    """A mask that the box does not cut."""
    path = tmp_path_factory.mktemp("mask").resolve() / "mask.mrc"
    halfmap.mask(jobs / "refined", path, extend="-1px", soft_edge="2px")
    return path


def stopped(job: Path, copy: Path) -> Path:
    """A copy of a job as it was before its end: without its report."""
    shutil.copytree(job, copy)
    (copy / "report.html").unlink()
    record = json.loads((copy / "job.json").read_text())
    (copy / "job.json").write_text(json.dumps(record | {"status": "stopped"}))
    return copy


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in NO_JOBS])
def test_every_command_leaves_its_report(jobs, small, tmp_path, command) -> None:
    steps(jobs, small, tmp_path)[command]()
    made = find_jobs(tmp_path)
    assert made, "the command left no record"
    for job in made:
        page = report_path(tmp_path / job).read_text()
        told = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
        (one,) = told["jobs"]
        assert one["status"] == "finished"
        assert one["command"] == ("class2d" if command == "resume" else command)
        assert one["shell"].startswith("halfmap ")
        assert len(page) < 10e6
        if not one["meshes"]:  # and no library of surfaces
            assert len(page) < 0.4e6 + sum(len(p["address"]) for p in one["shown"])


def test_a_report_that_cannot_be_made_is_a_word_and_no_more(
    jobs, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.delenv("HALFMAP_STRICT_PICTURES", raising=False)

    def broken(*given: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr("halfmap.commands._beside.write_report", broken)
    halfmap.volume(jobs / "refined" / "map.mrc", tmp_path / "low.mrc", lowpass_angstrom=40)
    assert "could not draw low.mrc.report.html: OSError: no room" in capsys.readouterr().err
    assert np.isfinite(halfmap.read_map(tmp_path / "low.mrc")[0]).all()
