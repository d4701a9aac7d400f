"""Whole jobs on every device there is, and on the CPU with the plain torch kernels that an
accelerator runs, against the same jobs with the CPU's own kernels."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import halfmap
from halfmap.io.mrc import open_stack, read_map
from halfmap.particles import load_particles
from halfmap.so3 import angular_distance_deg, euler_to_matrix
from halfmap.symmetries import symmetry_matrices

SEARCH = {"symmetry": "C4", "angular_step_deg": 15.0, "initial_lowpass_angstrom": 40.0}
SAME_ANGLE_DEG, SAME_SHIFT_ANGSTROM = 0.1, 0.1


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return halfmap.simulate(
        ["phantom", "phantom:1"],
        tmp_path_factory.mktemp("devices") / "sim",
        n=80,
        snr=0.5,
        box=28,
        pixel_size_angstrom=7.0,
        shift_rms_px=1.0,
        seed=7,
        quiet=True,
    ).folder


def _refine(data: Path, out: Path, device: str) -> Path:
    halfmap.refine(
        data / "particles.star",
        data / "truth_1.mrc",
        out,
        iterations=2,
        device=device,
        quiet=True,
        **SEARCH,
    )
    return out / "map.mrc"


def _bounded(data: Path, out: Path, device: str) -> Path:
    halfmap.refine(
        data / "particles.star",
        data / "truth_1.mrc",
        out,
        iterations=2,
        search="branch-and-bound",
        device=device,
        quiet=True,
        **SEARCH,
    )
    return out / "map.mrc"


def _class3d(data: Path, out: Path, device: str) -> Path:
    halfmap.class3d(
        data / "particles.star",
        [data / "truth_1.mrc", data / "truth_2.mrc"],
        out,
        classes=2,
        iterations=2,
        device=device,
        quiet=True,
        **SEARCH,
    )
    return out / "class001.mrc"


def _class2d(data: Path, out: Path, device: str) -> Path:
    halfmap.class2d(
        data / "particles.star",
        out,
        classes=3,
        iterations=3,
        angular_step_deg=10.0,
        device=device,
        quiet=True,
    )
    return out / "classes.mrcs"


def _abinitio(data: Path, out: Path, device: str) -> Path:
    halfmap.abinitio(
        data / "particles.star",
        out,
        iterations=2,
        symmetry="C4",
        early_symmetry=True,
        diameter_angstrom=150.0,
        device=device,
        quiet=True,
    )
    return out / "map.mrc"


def _reconstruct(data: Path, out: Path, device: str) -> Path:
    out.mkdir()
    halfmap.reconstruct(
        data / "truth.star",
        out / "map.mrc",
        symmetry="C4",
        diameter_angstrom=150.0,
        device=device,
        quiet=True,
    )
    return out / "map.mrc"


JOBS = {
    "refine": _refine,
    "bounded": _bounded,
    "class3d": _class3d,
    "class2d": _class2d,
    "abinitio": _abinitio,
    "reconstruct": _reconstruct,
}
SLOW = ("bounded", "class3d", "abinitio")
# correlation of the maps: rounding may leave one of the 80 images one significant pose more or less;
# ab initio draws poses, and a draw at the edge may fall either way
ALIKE = dict.fromkeys(JOBS, 0.998) | {"abinitio": 0.98}


@pytest.fixture(scope="module")
def on_the_cpu(data: Path, tmp_path_factory) -> Callable[[str], Path]:
    """The result of a job with the CPU's own kernels, run once."""
    folder, done = tmp_path_factory.mktemp("cpu"), {}

    def result(job: str) -> Path:
        if job not in done:
            done[job] = JOBS[job](data, folder / job, "cpu")
        return done[job]

    return result


def _array(path: Path) -> torch.Tensor:
    if path.suffix == ".mrcs":
        stack = open_stack(path)
        return torch.from_numpy(stack.read(np.arange(len(stack)))).double().flatten()
    array = read_map(path)[0]
    return torch.as_tensor(array).double().flatten()


def test_a_second_run_gives_the_same_map(data, device, tmp_path):
    first, second = (_refine(data, tmp_path / name, device.type) for name in ("one", "two"))
    if device.type == "cpu":
        assert first.read_bytes() == second.read_bytes()
    else:  # sums over many addresses come in any order there
        both = torch.stack([_array(first), _array(second)])
        assert float(torch.corrcoef(both)[0, 1]) > 1 - 1e-6


@pytest.mark.parametrize(
    "job",
    [pytest.param(job, marks=[pytest.mark.slow] if job in SLOW else []) for job in JOBS],
)
def test_a_job_gives_the_same_map_and_poses(
    job, data, on_the_cpu, other_device, tmp_path, monkeypatch
):
    with monkeypatch.context() as own:
        own.delenv("HALFMAP_KERNELS", raising=False)
        expected = on_the_cpu(job)
    found = JOBS[job](data, tmp_path / job, other_device.type)
    assert found.read_bytes() != expected.read_bytes()  # sums in another order: other kernels ran
    both = torch.stack([_array(expected), _array(found)])
    assert float(torch.corrcoef(both)[0, 1]) > ALIKE[job]
    assert float(both[1].norm() / both[0].norm()) == pytest.approx(1, abs=1 - ALIKE[job])
    if job in ("reconstruct", "abinitio"):
        return
    a, b = (load_particles(path.parent / "particles.star") for path in (expected, found))
    angle = angular_distance_deg(
        *(euler_to_matrix(p.rotations_deg) for p in (a, b)), symmetry=symmetry_matrices("C4")
    )
    shift = torch.from_numpy(a.shift_angstrom - b.shift_angstrom).norm(dim=1)
    assert float(angle.median()) < SAME_ANGLE_DEG
    assert float(shift.median()) < SAME_SHIFT_ANGSTROM
    assert (a.class_number == b.class_number).mean() > 0.95
