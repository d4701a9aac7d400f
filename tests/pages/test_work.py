"""Jobs started, stopped and resumed from the page; what the page reads of them; the numbers that it
shows, against what is known."""

import asyncio
import contextlib
import http.client
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import halfmap
from halfmap.commands._signatures import command_signature
from halfmap.options import command_line
from halfmap.pages import processes
from halfmap.pages.watch import Watch
from halfmap.reports.directions import count_by_cell, evenness, viewing_directions
from halfmap.reports.job_data import job_data
from halfmap.reports.jobs import find_jobs, job_row, parents
from halfmap.reports.surface import surface_of
from halfmap.workspace.machine import hold_open


def wait_for(server, job: str, status: str) -> dict:
    end = time.monotonic() + 120
    while True:
        rows = {row["id"]: row for row in server.get("/api/rows")["rows"]}
        if job in rows and rows[job]["status"] == status:
            return rows[job]
        assert time.monotonic() < end, rows.get(job)
        time.sleep(0.2)


def test_a_job_is_started_stopped_and_resumed_to_the_bytes_of_an_undisturbed_one(
    server, jobs
) -> None:
    values = {
        "particles": "particles/particles.star",
        "out": "run",
        "classes": "3",
        "iterations": "60",
        "threads": "1",
    }
    status, told = server.post("/api/start", {"command": "class2d", "values": values})
    assert status == 200, told
    wait_for(server, "run", "running")
    end = time.monotonic() + 60
    while job_row(jobs, "run")["iteration"] in (None, 1) and time.monotonic() < end:
        time.sleep(0.05)
    status, told = server.post("/api/stop", {"id": "run"})
    if status == 200:  # else it had ended before
        wait_for(server, "run", "stopped")
        assert server.post("/api/stop", {"id": "run"})[0] == 400
        assert server.post("/api/resume", {"id": "run"})[0] == 200
    wait_for(server, "run", "finished")
    halfmap.class2d(
        jobs / "particles" / "particles.star",
        jobs / "same",
        classes=3,
        iterations=60,
        threads=1,
        quiet=True,
    )
    for name in ("classes.mrcs", "classes.star", "particles.star"):
        # the table of classes names its stack with the job's folder
        run, same = (
            re.sub(rb"@\S*/classes.mrcs", b"@classes.mrcs", (jobs / job / name).read_bytes())
            for job in ("run", "same")
        )
        assert run == same, name
    assert not (jobs / "run" / "progress.json").exists()
    for name in ("run", "same"):
        shutil.rmtree(jobs / name)


@pytest.fixture
def waiting(jobs, serve, tmp_path) -> Iterator[tuple[Any, Path, dict]]:
    """A server of its own, and a command that writes one file at work: it reads from a pipe into
    which nobody writes."""
    root = tmp_path.resolve()
    shutil.copy(jobs / "refined" / "map.mrc", root / "map.mrc")
    os.mkfifo(root / "pipe.star")
    server = serve(root)
    values = {"source": "pipe.star", "out": "other.star", "share": "0.5"}
    status, told = server.post("/api/start", {"command": "select", "values": values})
    assert status == 200, told
    yield server, root, told
    with contextlib.suppress(OSError):  # no reader is left
        os.close(os.open(root / "pipe.star", os.O_WRONLY | os.O_NONBLOCK))


def the_start(server: Any) -> dict:
    """What the page is told of the one start."""
    line = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    line.request("GET", "/events")
    answer = line.getresponse()
    while not (text := answer.readline()).startswith(b"data: "):
        pass
    line.close()
    (one,) = json.loads(text[6:])["starts"] or [{"status": "none"}]
    return one


def until_status(server: Any, status: str) -> None:
    end = time.monotonic() + 120
    while (told := the_start(server))["status"] != status:
        assert time.monotonic() < end, told
        time.sleep(0.2)


def test_a_command_without_a_folder_is_stopped_from_the_page(waiting) -> None:
    server, root, told = waiting
    assert the_start(server)["status"] == "running"
    assert server.post("/api/stop", {"start": told["number"]}) == (200, {})
    until_status(server, "stopped")
    assert server.post("/api/stop", {"start": told["number"]})[0] == 400
    for wrong in (99, "1", None, [1], True):
        assert server.post("/api/stop", {"start": wrong})[0] == 400, wrong
    left = {one.name for one in root.iterdir()}
    assert left == {"map.mrc", "pipe.star", ".halfmap"}


def test_a_server_that_comes_back_knows_what_it_had_started(waiting, serve) -> None:
    server, root, told = waiting
    server.process.kill()
    server.process.wait()
    after = serve(root)
    again = the_start(after)
    assert {**again, "status": "running"} == told
    assert again["status"] == "running"
    assert after.post("/api/stop", {"start": told["number"]})[0] == 200
    until_status(after, "stopped")
    assert serve(root).ask(f"/api/log?start={told['number']}")[0] == 400  # it is over


def test_a_start_that_another_user_wrote_down_is_not_believed(tmp_path, monkeypatch) -> None:
    """Or it would name the process that Stop ends."""
    log = tmp_path / processes.LOGS / "1-select.log"
    log.parent.mkdir()
    with open(log, "wb") as printed:
        hold_open(printed.fileno())
        processes.Start(1, ("select",), None, os.getpid(), log, None).keep()
        assert [one.pid for one in processes.Processes(tmp_path).starts] == [os.getpid()]
        other = os.getuid() + 1
        monkeypatch.setattr(os, "getuid", lambda: other)
        assert not processes.Processes(tmp_path).starts


def test_what_is_refused_is_told(server, jobs) -> None:
    values = {"particles": "nowhere.star", "out": "refused", "classes": "3"}
    assert server.post("/api/start", {"command": "class2d", "values": values})[0] == 200
    end = time.monotonic() + 60
    while True:
        _, _, body = server.ask("/api/log?start=" + str(_last(server)))
        if b"nowhere.star" in body:
            break
        assert time.monotonic() < end
        time.sleep(0.2)
    assert not (jobs / "refused").exists()


def _last(server) -> int:
    numbers = [n for n in range(1, 30) if server.ask(f"/api/log?start={n}")[0] == 200]
    return max(numbers)


def test_the_command_that_is_shown_is_the_command_that_was_run(jobs) -> None:
    """The words of the page, read by the command line, are the arguments of the job."""
    from halfmap.cli.application import command_of

    for name in ("classes", "refined"):
        data = job_data(jobs, name, command_signature)
        words = shlex.split(data["shell"])
        assert words[0] == "halfmap"
        record = json.loads((jobs / name / "job.json").read_text())
        given: dict[str, object] = {}
        command = command_of(command_signature(words[1]), lambda given=given: given.update)
        command.main(words[2:], standalone_mode=False)
        assert str(given.pop("out")) == str(jobs / name)
        for key, value in record["parameters"].items():
            told = given[key]
            assert (str(told) if isinstance(told, Path) else told) == value, key


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        (
            "class2d",
            {"particles": "p.star", "out": "o", "classes": 5, "ctf": False},
            ["--particles=p.star", "--out=o", "--classes=5", "--no-ctf"],
        ),
        (
            "select",
            {"source": "-x", "out": "a b.star", "classes": [1, 4]},
            ["--out=a b.star", "--classes=1,4", "--", "-x"],
        ),
        (
            "simulate",
            {
                "source": "phantom",
                "out": "o",
                "n": 3,
                "snr": 0.05,
                "defocus_range_angstrom": (8000.0, 9000.5),
            },
            [
                "--out=o",
                "--n=3",
                "--snr=0.05",
                "--defocus",
                "8000",
                "9000.5",
                "--",
                "phantom",
            ],
        ),
    ],
)
def test_words_of_a_command_line(name, values, words) -> None:
    assert command_line(command_signature(name), values) == [name, *words]


def test_jobs_are_found_with_what_they_came_from(jobs) -> None:
    found = find_jobs(jobs)
    assert {"particles", "classes", "good.star", "refined"} <= set(found)
    known = set(found)
    assert parents(jobs, "classes", known) == ["particles"]
    assert parents(jobs, "good.star", known) == ["classes"]
    assert set(parents(jobs, "refined", known)) == {"good.star", "particles"}


def test_a_job_of_another_machine_is_killed_only_after_a_silence(jobs, tmp_path) -> None:
    import os

    root = tmp_path.resolve()
    shutil.copytree(jobs / "refined", root / "node")
    record = json.loads((root / "node" / "job.json").read_text())
    record |= {"status": "running", "machine": {"host": "node17"}}
    (root / "node" / "job.json").write_text(json.dumps(record))
    assert job_row(root, "node")["status"] == "running"
    past = time.time() - 3600
    for name in ("job.json", "events.jsonl"):
        os.utime(root / "node" / name, (past, past))
    row = job_row(root, "node")
    assert row["status"] == "killed"
    assert "node17 for 60 minutes" in row["message"]


def test_a_page_that_opens_is_not_told_of_what_is_gone(jobs, tmp_path, monkeypatch) -> None:
    """Though another request is looking at the folder just then, and is slow."""
    root = tmp_path.resolve()
    shutil.copytree(jobs / "refined", root / "gone")
    watch = Watch(root)
    watch.look(search=True)
    assert list(watch.rows) == ["gone"]
    shutil.rmtree(root / "gone")
    searches = []

    def slowly(root: Path) -> list[str]:
        searches.append(root)
        time.sleep(0.5)
        return find_jobs(root)

    monkeypatch.setattr("halfmap.pages.watch.find_jobs", slowly)
    watch._searched -= 10

    async def first_rows() -> list:
        asyncio.get_running_loop().run_in_executor(None, partial(watch.look, search=True))
        await asyncio.sleep(0.1)
        told = []
        async for text in watch.follow():
            if text.startswith("data: "):
                told.append(json.loads(text[6:]))
                return told[0]["rows"]
        return told

    assert asyncio.run(first_rows()) == []
    assert len(searches) <= 2


def test_the_server_loads_nothing_that_computes(jobs) -> None:
    """Neither to start, nor to read a job that was killed: it stays small beside the jobs."""
    code = (
        "import sys; from pathlib import Path; import halfmap.pages.shown as a, halfmap.pages.application; "
        "from halfmap.pages.watch import Watch; w = Watch(Path(sys.argv[1])); w.look(); "
        "assert w.rows; a.job_data(w.root, 'refined', a.command_signature); "
        "print([m for m in ('torch', 'pandas', 'numba', 'matplotlib', 'skimage') if m in sys.modules])"
    )
    record = jobs / "refined" / "job.json"
    before = record.read_text()
    record.write_text(json.dumps(json.loads(before) | {"status": "running"}))
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, str(jobs)], check=True, capture_output=True, text=True
        )
    finally:
        record.write_text(before)
    assert done.stdout.strip() == "[]"


def test_even_views_are_told_from_uneven_ones() -> None:
    rng = np.random.default_rng(1)
    n = 4000
    even = np.stack(
        [rng.uniform(-180, 180, n), np.degrees(np.arccos(rng.uniform(-1, 1, n))), np.zeros(n)], 1
    )
    side = np.stack([rng.uniform(-180, 180, n), np.full(n, 90.0), np.zeros(n)], 1)
    top = np.stack([rng.uniform(-180, 180, n), rng.uniform(0, 5, n), np.zeros(n)], 1)
    one = np.eye(3)[None]
    told = [evenness(viewing_directions(views, one), n) for views in (even, side, top)]
    assert told[0]["coverage"] > 0.97
    assert told[0]["missing"] == 0
    # side views all around meet every direction; the mean of 1/S over the sphere is 2/pi * 4/pi or
    # so of an even coverage: Baldwin and Lyumkis give 0.81
    assert 0.75 < told[1]["coverage"] < 0.87
    assert told[1]["missing"] == 0
    assert told[2]["missing"] > 0.8  # a missing cone of almost everything
    assert told[2]["coverage"] < 0.2
    counts = count_by_cell(viewing_directions(even, one))
    assert sum(map(sum, counts["counts"])) == n
    areas = sum(
        area * len(row) for area, row in zip(counts["areas"], counts["counts"], strict=True)
    )
    assert areas == pytest.approx(1)


@pytest.mark.parametrize("box", [33, 48])
def test_the_surface_of_a_ball_is_a_sphere_in_its_place_with_its_faces_outwards(box) -> None:
    axis = np.arange(box) - box // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    radius, middle = box / 5, np.array([3.0, -2.0, 4.0])  # x, y, z
    distance = np.sqrt((x - middle[0]) ** 2 + (y - middle[1]) ** 2 + (z - middle[2]) ** 2)
    volume = (radius - distance).astype(np.float32)
    found = surface_of(volume, 2.0, level=0.0, size=box)
    away = found.vertices * (box / 2) - middle
    assert np.linalg.norm(away, axis=1) == pytest.approx(np.full(len(away), radius), abs=0.1)
    assert (np.einsum("nd,nd->n", found.normals, away) > 0).all()
    a, b, c = (found.vertices[found.triangles[:, k]] for k in range(3))
    faces = np.cross(b - a, c - a)
    centre = (a + b + c) / 3 * (box / 2) - middle
    big = np.linalg.norm(faces, axis=1) > 1e-5
    assert (np.einsum("nd,nd->n", faces, centre)[big] > 0).all()
    assert found.side_angstrom == 2 * box


def test_a_finer_grid_holds_the_same_map() -> None:
    from halfmap.reports.surface import finer

    rng = np.random.default_rng(2)
    coarse = np.fft.irfftn(
        np.fft.rfftn(rng.normal(size=(24, 24, 24))) * (np.abs(np.fft.rfftfreq(24)) < 0.3),
        s=(24,) * 3,
        axes=(0, 1, 2),
    )
    fine = finer(coarse.astype(np.float32), 48)
    assert fine.shape == (48, 48, 48)
    keep = (slice(None, None, 2),) * 3
    # beyond the Nyquist frequency of two axes a little is lost
    assert np.corrcoef(fine[keep].ravel(), coarse.ravel())[0, 1] > 0.99


def test_the_best_projection_lies_on_the_particle_and_the_posterior_on_its_direction(jobs) -> None:
    """The turn and the shift have the right sense: any other correlates less."""
    from dataclasses import replace

    from halfmap.pages import particle as page

    for name in ("refined", "classes"):
        folder = jobs / name
        opened = page._opened(str(folder), 0.0)
        p = opened.particles
        mirrored = replace(opened, particles=replace(p, rotations_deg=p.rotations_deg * [1, 1, -1]))
        moved = replace(opened, particles=replace(p, shift_angstrom=-p.shift_angstrom))

        def mean(one, of=opened):
            rows = range(0, len(of.particles), 4)
            seen = [
                page._correlation(of, of.particles.corrected(i), page.best_projection(one, i))
                for i in rows
            ]
            return float(np.mean(seen))

        right = mean(opened)
        assert right > 0.3
        assert right > mean(mirrored) + 0.02
        assert right > mean(moved) + 0.02
    told = page.particle_posterior(str(jobs / "refined"), 3)
    grid = torch.tensor(told["posterior"])
    row, column = divmod(int(grid.argmax()), grid.shape[1])
    tilt, rot = (row + 0.5) * 180 / grid.shape[0], -180 + (column + 0.5) * 360 / grid.shape[1]
    found = told["found"]
    apart = (rot - found[0] + 45) % 90 - 45  # C4
    assert abs(tilt - found[1]) < 16
    assert abs(apart) * np.sin(np.radians(found[1])) < 16
    assert 1 <= told["directions"] < 60
