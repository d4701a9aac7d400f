"""Disks that are full, gone or read-only, and stacks that vanish: one line with the path and the
way on, nothing of an earlier state lost, and `job.json` says so."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import halfmap
from halfmap.errors import InputError, StorageError, storage_error
from halfmap.io.convert import convert
from halfmap.io.mrc import write_map
from halfmap.io.stack_writer import StackWriter, write_stack
from halfmap.io.star import write_star
from halfmap.io.table import Table
from halfmap.so3 import matrix_to_euler, random_rotations
from halfmap.workspace.checkpoint import load_checkpoint, save_checkpoint
from halfmap.workspace.job import Job, read_job

resource = pytest.importorskip("resource")  # Unix
SOURCE = Path(halfmap.__file__).parents[1]


@pytest.fixture
def largest_file():
    """A file system that takes no file of more bytes: as a full disk, in the middle of writing."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size or before[0], before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def particles(folder, n=24, box=24):
    random = np.random.default_rng(0)
    write_stack(folder / "a.mrcs", random.normal(size=(n, box, box)).astype(np.float32), 4.0)
    generator = torch.Generator().manual_seed(1)
    angles = matrix_to_euler(random_rotations(n, generator).double()).numpy()
    rows = {
        "rlnImageName": [f"{i + 1:06d}@a.mrcs" for i in range(n)],
        "rlnImagePixelSize": [4.0] * n,
        **{f"rlnAngle{x}": angles[:, i] for i, x in enumerate(("Rot", "Tilt", "Psi"))},
    }
    write_star(folder / "a.star", {"particles": Table.from_columns(rows)})
    return folder / "a.star"


def test_every_writer_tells_the_path_and_leaves_the_old_file(tmp_path, largest_file):
    star = particles(tmp_path)
    data = halfmap.load_particles(star)
    volume = np.ones((24, 24, 24), np.float32)

    def stack(path):
        with StackWriter(path, 1.0) as out:
            out.append(volume)

    writers = {
        "a.mrc": lambda path: write_map(path, volume, 1.0),
        "b.mrcs": stack,
        "b.star": data.write_star,
        "b.cs": lambda path: convert(star, path),
    }
    for name, write in writers.items():
        path = tmp_path / name
        path.write_text("old")
        largest_file(600)
        with pytest.raises(StorageError, match=re.escape(str(path))) as told:
            write(path)
        largest_file(None)
        assert "\n" not in str(told.value)
        assert path.read_text() == "old"
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, largest_file):
    save_checkpoint(tmp_path, {"a": np.arange(3)}, {"iteration": 1})
    largest_file(2000)
    with pytest.raises(StorageError, match="checkpoint: cannot be written"):
        save_checkpoint(tmp_path, {"a": np.arange(9999)}, {"iteration": 2})
    largest_file(None)
    assert load_checkpoint(tmp_path)[1] == {"iteration": 1}
    assert not (tmp_path / "checkpoint.new").exists()  # it would take the room that is left


def test_numpys_words_for_a_full_disk_are_understood():
    assert "the disk is full" in str(storage_error(OSError("9999 requested and 12 written"), "x"))
    assert "quota" in str(storage_error(OSError(errno.EDQUOT, "Disk quota exceeded"), "x"))


def test_a_job_on_a_full_disk_says_so_and_goes_on_with_more_room(tmp_path, largest_file):
    star, out = particles(tmp_path), tmp_path / "r"
    options = {"ctf": False, "quiet": True, "threads": 1}
    halfmap.reconstruct(star, tmp_path / "whole", **options)
    largest_file(60_000)  # less than a checkpoint
    with pytest.raises(StorageError) as told:
        halfmap.reconstruct(star, out, **options)
    largest_file(None)
    assert re.search(r"r/checkpoint: cannot be written .*halfmap resume .*r$", str(told.value))
    record = read_job(out)
    assert record["status"] == "failed"
    assert record["message"] == str(told.value)
    halfmap.resume(out, quiet=True)
    assert read_job(out)["status"] == "finished"
    assert (out / "map.mrc").read_bytes() == (tmp_path / "whole" / "map.mrc").read_bytes()


def test_the_record_is_written_where_there_is_no_room_for_a_second_file(tmp_path, monkeypatch):
    """Into the place of the first: the disk has not one block more."""
    real = os.replace

    def full(source, target, **options):
        if str(source).endswith(".new"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(source, target, **options)

    def work():
        with Job.create("refine", {}, tmp_path / "r", seed=1) as job:
            monkeypatch.setattr(os, "replace", full)
            job.save_checkpoint({"a": np.zeros(2)}, {"iteration": 1})

    with pytest.raises(StorageError):
        work()
    record = json.loads((tmp_path / "r" / "job.json").read_text())
    assert record["status"] == "failed"
    assert "the disk is full; make room" in record["message"]


def test_the_earlier_job_is_back_where_the_new_one_meets_a_full_disk(tmp_path, largest_file):
    star, out = particles(tmp_path), tmp_path / "r"
    halfmap.reconstruct(star, out, ctf=False, quiet=True)
    before = (out / "map.mrc").read_bytes()
    largest_file(60_000)
    with pytest.raises(StorageError, match="the earlier job is back"):
        halfmap.reconstruct(star, out, ctf=False, quiet=True, symmetry="C2", overwrite=True)
    largest_file(None)
    assert (out / "map.mrc").read_bytes() == before
    assert read_job(out)["status"] == "finished"


@pytest.mark.parametrize("how", ["gone", "short"])
def test_a_stack_that_vanishes_in_mid_run_is_one_line_and_the_job_goes_on(
    tmp_path, monkeypatch, how
):
    star, out = particles(tmp_path), tmp_path / "r"
    stack = tmp_path / "a.mrcs"
    whole = stack.read_bytes()
    save = Job.save_checkpoint

    def save_and_lose(job, arrays, meta):
        save(job, arrays, meta)
        if how == "gone":
            stack.unlink(missing_ok=True)
        else:
            os.truncate(stack, 3000)

    monkeypatch.setattr(Job, "save_checkpoint", save_and_lose)
    with pytest.raises(InputError, match=r"a\.mrcs") as told:
        halfmap.reconstruct(star, out, ctf=False, quiet=True)
    monkeypatch.undo()
    assert any("halfmap resume" in note for note in told.value.__notes__)
    record = read_job(out)
    assert record["status"] == "failed"
    assert "a.mrcs" in record["message"]
    assert "halfmap resume" in record["message"]
    stack.write_bytes(whole)
    halfmap.resume(out, quiet=True)
    assert read_job(out)["status"] == "finished"


def run_kernels(package: Path, **environment: str) -> subprocess.CompletedProcess:
    script = (
        "import torch, halfmap; from halfmap import kernels; from halfmap.kernels import warm;"
        "warm.compile_all(); print(halfmap.__file__)"
    )
    kept = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**kept, "PYTHONPATH": str(package), "PYTHONDONTWRITEBYTECODE": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_compiled_code_is_kept_elsewhere_where_the_package_cannot_be_written(tmp_path):
    """No home, and files where the folders of the caches would be: nobody, root neither, can write
    there."""
    package = tmp_path / "package"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(SOURCE / "halfmap", package / "halfmap", ignore=ignored)
    (package / "halfmap" / "kernels" / "__pycache__").write_text("a file")
    (tmp_path / "home").write_text("a file")
    (tmp_path / "temporary").mkdir()
    places = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "temporary")}
    done = run_kernels(package, **places)
    assert done.returncode == 0, done.stderr
    assert str(package) in done.stdout
    (folder,) = (tmp_path / "temporary").glob("halfmap-numba-*")
    assert folder.stat().st_mode & 0o777 == 0o700  # what is in it is run
    assert list(folder.rglob("*.nbi"))
