"""A job folder survives any kill, is never overwritten by accident, and goes on where it
stopped."""

# ruff: noqa: PT012  (the exception has to leave the job's block)

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import halfmap
from halfmap.errors import InputError
from halfmap.workspace import job as jobs
from halfmap.workspace.job import Job, JobStopped, read_events, read_job


def make(out: Path, command: str = "refine", seed: int = 1, **options: bool) -> Job:
    return Job.create(
        command,
        {"particles": Path("p.star"), "iterations": 3, "angles": (1.5, None)},
        out,
        seed=seed,
        **options,
    )


def test_a_finished_job_tells_what_was_asked_and_what_it_cost(tmp_path: Path) -> None:
    with make(tmp_path / "a" / "job") as job:
        assert read_job(job.folder)["status"] == "running"
        sum(range(1_000_000))
        job.update(resolution_angstrom=np.float32(7.5))
    record = read_job(tmp_path / "a" / "job")
    assert record["status"] == "finished"
    assert record["parameters"] == {"particles": "p.star", "iterations": 3, "angles": [1.5, None]}
    assert record["seed"] == 1
    assert {"halfmap", "python", "torch", "numba"} <= record["versions"].keys()
    assert record["wall_seconds"] > 0
    assert record["cpu_seconds"] > 0
    assert record["peak_memory_bytes"] > 1e6
    assert record["results"] == {"resolution_angstrom": 7.5}


def test_an_exception_marks_the_job_failed_and_keeps_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError) as caught, make(tmp_path / "job") as job:
        job.event(iteration=1)
        1 / 0  # noqa: B018
    assert read_job(tmp_path / "job")["status"] == "failed"
    assert "ZeroDivisionError" in read_job(tmp_path / "job")["message"]
    assert "Traceback" in (tmp_path / "job" / "error.txt").read_text()
    assert "error.txt" in caught.value.__notes__[0]


def test_bad_input_before_any_output_leaves_no_folder_so_the_corrected_command_just_runs(
    tmp_path: Path,
) -> None:
    with pytest.raises(InputError), make(tmp_path / "job"):
        raise InputError("p.star: no such file")
    assert not (tmp_path / "job").exists()
    (tmp_path / "mine").mkdir()
    for place in ("mine", "mine/a/b"):
        with pytest.raises(InputError), make(tmp_path / place) as job:
            job.path("set_aside.star").write_text("row 3")
            raise InputError("p.star: no usable image")
        assert (
            list((tmp_path / "mine").iterdir()) == []
        )  # the folder that was there stays, those on the way go
    with pytest.raises(InputError), make(tmp_path / "job") as job:
        job.path("map.mrc").write_text("made")
        raise InputError("stack cut short")
    assert read_job(tmp_path / "job")["status"] == "failed"


@pytest.mark.parametrize("interrupt", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_job_says_how_to_go_on(tmp_path: Path, interrupt: signal.Signals) -> None:
    before = signal.getsignal(signal.SIGTERM)
    # a shell that starts tests in the background has it ignored
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(JobStopped, match="halfmap resume"), make(tmp_path / "job"):
            os.kill(os.getpid(), interrupt)
            time.sleep(1)
    finally:
        signal.signal(signal.SIGINT, ignored)
    assert signal.getsignal(signal.SIGTERM) is before
    assert read_job(tmp_path / "job")["status"] == "stopped"
    with (
        pytest.raises(JobStopped, match="run it again with --overwrite"),
        make(tmp_path / "simulated", command="simulate"),
    ):
        raise KeyboardInterrupt


def test_the_launcher_does_not_cut_short_what_a_job_says_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two processes one is lost; the other hears SIGTERM while it writes how it ended."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("WORLD_SIZE", "2")
    job, write = Job.create("refine", {}, tmp_path / "job", seed=1), jobs.write_whole

    def told_to_stop(path: Path, text: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        write(path, text)

    try:
        with pytest.raises(JobStopped, match="halfmap resume"), job:
            monkeypatch.setattr(jobs, "write_whole", told_to_stop)
            raise KeyboardInterrupt("a process of the job was lost")
        assert read_job(tmp_path / "job")["status"] == "stopped"
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("chapter 1")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(InputError, match=r"thesis\.tex"):
            make(tmp_path, **options)
    (tmp_path / "job.json").write_text('{"name": "another program"}')
    with pytest.raises(InputError, match="something else"):
        make(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "chapter 1"
    with pytest.raises(InputError, match="this is a file"):
        make(tmp_path / "thesis.tex")


def test_a_job_folder_is_overwritten_only_when_asked_and_never_with_an_input_in_it(
    tmp_path: Path,
) -> None:
    with make(tmp_path / "job") as job:
        job.path("maps/half1.mrc").write_text("old")
    with pytest.raises(InputError, match=r"finished halfmap refine job.*--overwrite"):
        make(tmp_path / "job")
    inside = {"particles": tmp_path / "job" / "maps" / "half1.mrc"}
    with pytest.raises(InputError, match="remove the input particles"):
        Job.create("refine", inside, tmp_path / "job", seed=1, overwrite=True)
    assert (tmp_path / "job" / "maps" / "half1.mrc").exists()
    with make(tmp_path / "job", overwrite=True):
        assert sorted(entry.name for entry in (tmp_path / "job").iterdir()) == [
            ".replaced",
            "job.json",
        ]
    assert sorted(entry.name for entry in (tmp_path / "job").iterdir()) == ["job.json"]


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def earlier(tmp_path: Path) -> dict[str, bytes]:
    """The files of a finished job in tmp_path / "job"."""
    with make(tmp_path / "job") as job:
        job.path("maps/half1.mrc").write_text("precious")
        job.save_checkpoint({"x": np.zeros(2)}, {"iteration": 1})
    return files(tmp_path / "job")


@pytest.mark.parametrize("error", [InputError("p.star: no such file"), ZeroDivisionError("bug")])
def test_the_earlier_job_is_back_where_the_one_to_replace_it_fails_before_its_first_checkpoint(
    tmp_path: Path, earlier: dict[str, bytes], error: Exception
) -> None:
    with pytest.raises(type(error)), make(tmp_path / "job", overwrite=True) as job:
        job.path("maps/half1.mrc").write_text("new")
        job.path("set_aside.star").write_text("new")
        raise error
    assert files(tmp_path / "job") == earlier


def test_the_earlier_job_is_gone_after_the_first_checkpoint(
    tmp_path: Path, earlier: dict[str, bytes]
) -> None:
    with pytest.raises(InputError), make(tmp_path / "job", overwrite=True) as job:
        assert job.load_checkpoint() is None
        job.save_checkpoint({"x": np.ones(2)}, {"iteration": 1})
        raise InputError("stack cut short")
    assert sorted(files(tmp_path / "job")) == ["checkpoint", "job.json"]


def test_a_kill_before_the_first_checkpoint_loses_neither_job(
    tmp_path: Path, earlier: dict[str, bytes]
) -> None:
    def killed() -> None:
        os.close(make(tmp_path / "job", overwrite=True)._lock)  # what a kill leaves

    killed()
    killed()  # the one that saved nothing does not take the place of the one that did
    with make(tmp_path / "job", resume=True) as job:
        assert files(tmp_path / "job" / ".replaced") == earlier
        job.save_checkpoint({"x": np.ones(2)}, {"iteration": 1})
        assert not (tmp_path / "job" / ".replaced").exists()


@pytest.mark.parametrize("moved", [["maps"], ["maps", "checkpoint", "job.json"]])
def test_a_kill_while_files_move_is_mended(
    tmp_path: Path, earlier: dict[str, bytes], moved: list[str]
) -> None:
    (tmp_path / "job" / ".replaced").mkdir()
    for name in moved:
        (tmp_path / "job" / name).rename(tmp_path / "job" / ".replaced" / name)
    with pytest.raises(
        InputError, match=r"finished halfmap refine job; choose another folder, or --overwrite it"
    ):
        make(tmp_path / "job")
    assert files(tmp_path / "job") == earlier


def test_a_stack_inside_the_job_is_an_input_too(tmp_path: Path, earlier: dict[str, bytes]) -> None:
    (tmp_path / "p.star").write_text(
        "data_particles\n\nloop_\n_rlnImageName\n_rlnImagePixelSize\n_rlnImageSize\n000001@job/maps/half1.mrc 2.0 16\n"
    )
    with pytest.raises(InputError, match=r"remove the input particles .*half1\.mrc"):
        Job.create(
            "refine", {"particles": tmp_path / "p.star"}, tmp_path / "job", seed=1, overwrite=True
        )
    assert files(tmp_path / "job") == earlier


def test_two_processes_cannot_share_a_job(tmp_path: Path) -> None:
    with make(tmp_path / "job"):
        for options in ({"overwrite": True}, {"resume": True}):
            with pytest.raises(InputError, match="at work there"):
                make(tmp_path / "job", **options)


def test_resume_refuses_another_command_seed_or_parameter(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to resume"):
        make(tmp_path / "job", resume=True)
    make(tmp_path / "job").__exit__(None, None, None)
    with pytest.raises(InputError, match="not class3d"):
        make(tmp_path / "job", command="class3d", resume=True)
    with pytest.raises(InputError, match="started with seed 1"):
        make(tmp_path / "job", seed=2, resume=True)
    with pytest.raises(InputError, match="angles="):
        Job.create(
            "refine",
            {"particles": "p.star", "iterations": 3, "angles": [2.0, None]},
            tmp_path / "job",
            seed=1,
            resume=True,
        )


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    arrays = {
        "map": np.random.default_rng(0).standard_normal((4, 4, 4)).astype("f4"),
        "pose": np.arange(6).reshape(2, 3),
    }
    meta = {
        "iteration": 3,
        "resolution_angstrom": 0.1 + 0.2,
        "best": float("inf"),
        "history": [1, None, "x"],
    }
    with make(tmp_path / "job") as job:
        assert job.load_checkpoint() is None
        job.save_checkpoint(arrays, meta)
        first = (tmp_path / "job" / "checkpoint").read_bytes()
        read, told = job.load_checkpoint()
        assert told == meta
        assert read.keys() == arrays.keys()
        assert all(
            np.array_equal(read[name], arrays[name]) and read[name].dtype == arrays[name].dtype
            for name in arrays
        )
        job.save_checkpoint(arrays, meta)
        assert (tmp_path / "job" / "checkpoint").read_bytes() == first  # no clock in it
        for damaged in (first[:-50], b"", b"garbage", first[:40] + b"x" * 40 + first[80:]):
            (tmp_path / "job" / "checkpoint").write_bytes(damaged)
            with pytest.raises(
                InputError,
                match=r"whole checkpoint was expected, the file is damaged; run the job anew",
            ):
                job.load_checkpoint()


def test_resume_drops_the_events_beyond_the_checkpoint_and_adds_the_cost_of_both_runs(
    tmp_path: Path,
) -> None:
    with pytest.raises(JobStopped), make(tmp_path / "job") as job:
        for iteration in (1, 2, 3):
            job.event(iteration=iteration, resolution_angstrom=float("nan"))
            if iteration == 2:
                job.save_checkpoint({"x": np.zeros(2)}, {"iteration": 2})
        time.sleep(0.05)
        raise KeyboardInterrupt
    with open(tmp_path / "job" / "events.jsonl", "a") as file:
        file.write('{"iteration": 4, "resol')  # torn by a kill
    spent = read_job(tmp_path / "job")["wall_seconds"]
    with make(tmp_path / "job", resume=True) as job:
        assert [event["iteration"] for event in read_events(job.folder)] == [1, 2]
        job.event(iteration=3)
        assert read_events(job.folder)[-1]["elapsed_seconds"] >= spent
    record = read_job(tmp_path / "job")
    assert record["runs"] == 2
    assert record["wall_seconds"] >= spent
    assert read_events(tmp_path / "job")[0]["resolution_angstrom"] is None


def test_without_a_checkpoint_a_resumed_job_begins_its_events_anew(tmp_path: Path) -> None:
    with pytest.raises(JobStopped), make(tmp_path / "job") as job:
        job.event(message="reading")
        job.event(iteration=1)
        raise KeyboardInterrupt
    with make(tmp_path / "job", resume=True) as job:
        assert read_events(job.folder) == []


def test_kill_in_the_middle_of_saving_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import sys, numpy as np
        from halfmap.workspace.job import Job
        job = Job.create("refine", {}, sys.argv[1], seed=1).__enter__()
        print("ready", flush=True)
        for iteration in range(10**9):
            job.save_checkpoint({"map": np.full(1_000_000, iteration)}, {"iteration": iteration})
            job.event(iteration=iteration)
    """)
    caught_in_the_act = 0
    for trial in range(4):
        folder = tmp_path / f"job{trial}"
        process = subprocess.Popen(
            [sys.executable, "-c", program, folder], stdout=subprocess.PIPE, text=True
        )
        with process:
            assert process.stdout is not None
            process.stdout.readline()
            while not (folder / "checkpoint").exists():
                time.sleep(0.01)
            deadline = time.monotonic() + 5
            while not (folder / "checkpoint.new").exists() and time.monotonic() < deadline:
                pass
            process.kill()
        caught_in_the_act += (folder / "checkpoint.new").exists()
        checkpoint = jobs.load_checkpoint(folder)
        assert checkpoint is not None
        arrays, meta = checkpoint
        assert (arrays["map"] == meta["iteration"]).all()
        assert read_job(folder)["status"] == "killed"
        assert "halfmap resume" in read_job(folder)["message"]
        with Job.create("refine", {}, folder, seed=1, resume=True) as job:
            assert all(event["iteration"] <= meta["iteration"] for event in read_events(job.folder))
    assert caught_in_the_act > 0


def test_resume_calls_the_command_with_its_parameters_where_it_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def refine(
        particles: str,
        out: str,
        *,
        iterations: int = 1,
        angles: list,
        seed: int = 0,
        memory: int = 5,
        resume: bool = False,
    ) -> str:
        calls.append((particles, Path(out), iterations, angles, seed, memory, resume, os.getcwd()))
        return "done"

    monkeypatch.setitem(halfmap._PUBLIC, "refine", "a_module_of_this_test")
    monkeypatch.setitem(sys.modules, "a_module_of_this_test", SimpleNamespace(refine=refine))
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    with pytest.raises(JobStopped), make(tmp_path / "job", seed=7):
        raise KeyboardInterrupt
    monkeypatch.chdir(tmp_path)
    assert halfmap.resume("job") == halfmap.resume("job", memory=8) == "done"
    assert calls == [
        ("p.star", tmp_path / "job", 3, [1.5, None], 7, memory, True, str(tmp_path / "project"))
        for memory in (5, 8)
    ]
    make(tmp_path / "job", seed=7, resume=True).__exit__(None, None, None)
    with pytest.raises(InputError, match="finished"):
        halfmap.resume("job")
    with pytest.raises(InputError, match=r"no job\.json"):
        halfmap.resume(tmp_path)


def test_job_json_is_valid_json_at_every_moment(tmp_path: Path) -> None:
    with make(tmp_path / "job") as job:
        job.update(resolution_angstrom=float("inf"), table=np.eye(2))
        text = (tmp_path / "job" / "job.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["results"] == {
        "resolution_angstrom": None,
        "table": [[1.0, 0.0], [0.0, 1.0]],
    }
