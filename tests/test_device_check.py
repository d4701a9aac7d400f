"""The check of a GPU, on tiny data and without one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "device_check.py"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line():
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == (
        "device_check: expected a CUDA device, found none; --small runs it on the CPU\n"
    )


@pytest.mark.slow
def test_the_small_check_runs_every_job_and_keeps_its_figures(tmp_path):
    record = tmp_path / "record.json"
    options = ["--small", "--device", "cpu", "--scratch", tmp_path / "scratch", "--json", record]
    done = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (kept,) = json.loads(record.read_text())
    jobs = {what: found for what, found in kept["figures"].items() if "wall_s" in found}
    assert [what.split()[0] for what in jobs] == ["refine", "class3d", "class2d", "abinitio"]
    for found in jobs.values():
        assert 0 < sum(found["stages_s"].values()) < found["wall_s"]
        assert found["resident_bytes"] > 1e8
    same = kept["figures"]["refine, the same as on the CPU"]
    assert same["agree"]
    assert same["correlation"] < 1  # other kernels did run
    assert not (tmp_path / "scratch").exists()
