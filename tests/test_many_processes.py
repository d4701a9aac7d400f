"""Whole jobs by several processes, as torchrun starts them: the results of one process, one voice,
and a folder that goes on after a process was killed."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import halfmap
from halfmap.io.mrc import read_map
from halfmap.particles import load_particles
from halfmap.so3 import angular_distance_deg, euler_to_matrix
from halfmap.symmetries import symmetry_matrices
from halfmap.workspace.earlier_job import CHECKPOINT
from halfmap.workspace.job import read_events, read_job

LONGEST_SECONDS = 240
SOURCE = str(Path(halfmap.__file__).parents[1])
SEARCH = ("--symmetry", "C4", "--angular-step", "15", "--shift-range", "3")
SEARCH += ("--initial-lowpass", "40", "--iterations", "5")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("many") / "sim"
    return halfmap.simulate(
        "phantom", out, n=121, snr=0.4, box=32, pixel_size_angstrom=6.0, seed=7, quiet=True
    ).folder


def _command(processes: int, *arguments: object, launcher: tuple[str, ...] = ()) -> list[str]:
    job = ["-m", "halfmap.cli.main", *map(str, arguments)]
    if processes == 1:
        return [sys.executable, *job]
    own_port = ("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", *launcher)
    torchrun = [sys.executable, "-m", "torch.distributed.run", *own_port]
    return [*torchrun, "--nproc-per-node", str(processes), *job]


def _start(command: list[str]) -> subprocess.Popen:
    inherited = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    environment = {**inherited, "OMP_NUM_THREADS": "1", "PYTHONPATH": SOURCE}
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def _end(process: subprocess.Popen) -> str:
    """What it wrote, once it has ended."""
    try:
        out, errors = process.communicate(timeout=LONGEST_SECONDS)
    finally:
        process.terminate()
    return out + errors


def _halfmap(processes: int, *arguments: object, launcher: tuple[str, ...] = ()) -> str:
    process = _start(_command(processes, *arguments, launcher=launcher))
    written = _end(process)
    assert process.returncode == 0, written
    return written


def _refine(data: Path, out: Path) -> tuple[object, ...]:
    inputs = ("--particles", data / "particles.star", "--reference", data / "truth_1.mrc")
    return ("refine", *inputs, *SEARCH, "--device", "cpu", "--out", out)


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory) -> Path:
    """The job of one process that others are compared with."""
    out = tmp_path_factory.mktemp("alone") / "refined"
    _halfmap(1, *_refine(data, out))
    return out


def _same_maps(one: Path, other: Path, *names: str) -> None:
    for name in names:
        a, b = (read_map(folder / name)[0].ravel() for folder in (one, other))
        # rounding grows over iterations: an image between two optima may end in the other one, and
        # is 1 or 2 % of a class here; one left out, or counted twice, would be in every map
        assert np.corrcoef(a, b)[0, 1] > 0.998, name


def _same_poses(one: Path, other: Path, symmetry: str = "C4") -> None:
    a, b = (load_particles(folder / "particles.star") for folder in (one, other))
    assert len(a) == len(b)
    turned = angular_distance_deg(
        euler_to_matrix(torch.from_numpy(a.rotations_deg)).float(),
        euler_to_matrix(torch.from_numpy(b.rotations_deg)).float(),
        symmetry=symmetry_matrices(symmetry).float(),
    )
    # folds make references of 45 images here: an image between two optima may end in the other one
    assert float((turned < 0.1).float().mean()) > 0.93
    assert float(turned.median()) < 0.02
    assert np.array_equal(a.half_set, b.half_set)
    assert float((a.class_number == b.class_number).mean()) > 0.97


def _kill(process: subprocess.Popen, out: Path, *, local_rank: int) -> None:
    """Kill one of the processes that torchrun has started, as soon as an iteration is saved."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text
    _wait_for_checkpoint(process, out)
    os.kill(int(children().split()[local_rank]), signal.SIGKILL)


def _wait_for_checkpoint(process: subprocess.Popen, out: Path) -> None:
    deadline = time.monotonic() + LONGEST_SECONDS
    while not (out / CHECKPOINT).exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the first iteration takes too long"
        time.sleep(0.005)


def _said(written: str) -> list[str]:
    return re.findall(r"^halfmap: .*$", written, flags=re.MULTILINE)


needs_proc = pytest.mark.skipif(
    not Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists(),
    reason="the system does not tell a process's children",
)


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_refine_equals_one_process(data, alone, tmp_path, processes):
    out = tmp_path / "refined"
    written = _halfmap(processes, *_refine(data, out))
    assert written.count("refine 5/5") == 1
    _same_maps(alone, out, "map.mrc", "half1.mrc", "half2.mrc")
    _same_poses(alone, out)
    assert [e["iteration"] for e in read_events(out)] == [1, 2, 3, 4, 5]
    events = zip(read_events(alone), read_events(out), strict=True)
    # two processes have whole folds each, and sum them in the order of one process: the same bits.
    # Three cut through two folds, whose sums are added up in another order. Where a sample of a
    # pose crosses a face of the reference's grid, where slopes jump, that image ends elsewhere: of
    # six seeds the worst had 3e-10, 2e-4 and 1e-3 in three iterations.
    bounds = (1e-9,) * 5 if processes == 2 else (1e-8, 1e-3, 1e-2)
    for (one, many), apart in zip(events, bounds, strict=False):
        for name in ("mean_log_likelihood", "resolution_angstrom", "accuracy_deg", "scale_max"):
            assert many[name] == pytest.approx(one[name], rel=apart), (one["iteration"], name)


@pytest.mark.parametrize("method", ["ml", "template"])
def test_class2d_equals_one_process(data, tmp_path, method):
    folders = [tmp_path / name for name in ("one", "two")]
    for processes, out in enumerate(folders, start=1):
        options = ("--classes", 3, "--iterations", 3, "--method", method, "--device", "cpu")
        _halfmap(
            processes, "class2d", "--particles", data / "particles.star", *options, "--out", out
        )
    a, b = (load_particles(folder / "particles.star") for folder in folders)
    assert np.array_equal(a.class_number, b.class_number)
    for one, two in zip(*map(read_events, folders), strict=True):  # whole halves: the same bits
        assert two["mean_score"] == pytest.approx(one["mean_score"], rel=1e-9)


def test_a_job_begun_by_one_process_goes_on_with_two(data, alone, tmp_path):
    out = tmp_path / "refined"
    process = _start(_command(1, *_refine(data, out)))
    _wait_for_checkpoint(process, out)
    process.kill()
    process.communicate()
    assert read_job(out)["status"] == "killed"
    _halfmap(2, "resume", out, "--quiet")
    assert read_job(out)["runs"] == 2
    _same_maps(alone, out, "map.mrc")
    _same_poses(alone, out)


@needs_proc
@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_process_ends_the_job_in_one_line(data, alone, tmp_path, lost):
    out = tmp_path / "refined"
    process = _start(_command(2, *_refine(data, out)))
    _kill(process, out, local_rank=lost)
    written = _end(process)
    assert process.returncode != 0
    (line,) = _said(written)
    assert "lost" in line
    assert f"halfmap resume {out}" in line
    assert read_job(out)["status"] in ("stopped", "killed")
    _halfmap(2 - lost, "resume", out, "--quiet")  # with both, and alone
    assert read_job(out)["status"] == "finished"
    _same_maps(alone, out, "map.mrc")
    _same_poses(alone, out)


@needs_proc
def test_torchrun_starts_a_lost_process_again(data, alone, tmp_path):
    out = tmp_path / "refined"
    process = _start(_command(2, *_refine(data, out), launcher=("--max-restarts", "1")))
    _kill(process, out, local_rank=1)
    written = _end(process)
    assert process.returncode == 0, written
    assert read_job(out)["runs"] == 2
    _same_maps(alone, out, "map.mrc")


@pytest.mark.parametrize("wrong", ["a missing file", "a folder in use", "an option"])
def test_bad_input_is_told_once(data, tmp_path, wrong):
    out = tmp_path / "refined"
    arguments = [*_refine(data, out), "--quiet"]
    if wrong == "a missing file":
        arguments[2] = tmp_path / "nothing.star"
    if wrong == "a folder in use":
        out.mkdir()
        (out / "mine.txt").write_text("kept")
    if wrong == "an option":
        arguments += ["--tau-fudge", "-1"]
    process = _start(_command(2, *arguments))
    written = _end(process)
    assert process.returncode != 0
    assert len(_said(written)) == 1, written
    assert re.search(r"exitcode\s*: 2", written)
    assert [one.name for one in out.iterdir()] == ["mine.txt"] if out.exists() else True


@pytest.mark.slow
def test_three_processes_and_every_other_job(data, tmp_path):
    """Classes from one reference (principal components), ab initio, reconstruction."""
    particles, truth = data / "particles.star", data / "truth_1.mrc"
    jobs = {
        "class3d": ("--particles", particles, "--reference", truth, "--classes", 2, *SEARCH),
        "abinitio": ("--particles", particles, "--iterations", 4, "--symmetry", "C4"),
        "reconstruct": ("--particles", data / "truth.star", "--symmetry", "C4"),
    }
    for name, options in jobs.items():
        one, three = tmp_path / f"{name}1", tmp_path / f"{name}3"
        for processes, out in ((1, one), (3, three)):
            _halfmap(processes, name, *options, "--device", "cpu", "--out", out)
        maps = ("class001.mrc", "class002.mrc") if name == "class3d" else ("map.mrc",)
        if name == "abinitio":  # drawn poses follow the last bit: the same start, not the same map
            first = [read_events(folder)[0]["mean_log_likelihood"] for folder in (one, three)]
            assert first[0] == pytest.approx(first[1], rel=1e-3)
        else:
            _same_maps(one, three, *maps)


def test_two_network_namespaces_stand_for_two_hosts(data, alone, tmp_path):
    if shutil.which("ip") is None:
        pytest.skip("no ip (iproute2) to make network namespaces with")
    names, made = [f"hm{os.getpid() % 10000}{side}" for side in "ab"], []
    try:
        for name in names:
            done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"network namespaces are not permitted: {done.stderr.strip()}")
            made.append(name)
        _wire(names)
        out = tmp_path / "refined"
        hosts = [
            _start([*_on(name), *_node(rank, *_refine(data, out))])
            for rank, name in enumerate(names)
        ]
        written = [_end(host) for host in hosts]
        assert [host.returncode for host in hosts] == [0, 0], written
        _same_maps(alone, out, "map.mrc")
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "delete", name], check=False)


def _on(name: str) -> list[str]:
    """Run in a namespace; gloo is told its cable, since its host name is no address there."""
    return ["ip", "netns", "exec", name, "env", f"GLOO_SOCKET_IFNAME={name}v"]


def _wire(names: list[str]) -> None:
    """A cable between two namespaces; skips where the system has none."""
    ends = [f"{name}v" for name in names]
    steps = [f"link add {ends[0]} type veth peer name {ends[1]}"]
    for n, (name, end) in enumerate(zip(names, ends, strict=True), start=1):
        steps += [
            f"link set {end} netns {name}",
            f"-n {name} addr add 10.77.0.{n}/24 dev {end}",
            f"-n {name} link set {end} up",
            f"-n {name} link set lo up",
        ]
    for step in steps:
        done = subprocess.run(["ip", *step.split()], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"ip {step}: {done.stderr.strip()}")


def _node(rank: int, *arguments: object) -> list[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
    torchrun += ["--node-rank", str(rank), "--nproc-per-node", "1"]
    torchrun += ["--master-addr", "10.77.0.1", "--master-port", "29500"]
    return [*torchrun, "-m", "halfmap.cli.main", *map(str, arguments)]
