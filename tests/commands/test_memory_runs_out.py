"""Jobs in which memory runs out for more than a few images at once give what they give otherwise;
and what is asked for before a job begins."""

import importlib
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

import halfmap
from halfmap.cli.main import run
from halfmap.commands._setup import batch_size
from halfmap.engine import preprocessing
from halfmap.engine.memory import JobSize
from halfmap.errors import InputError, MemoryShortage
from halfmap.io.mrc import write_map
from halfmap.masks import soft_sphere
from halfmap.particles import Particles, load_particles
from halfmap.workspace.job import read_job
from halfmap.workspace.memory import _control_group_limits

ENOUGH = 6  # images at once
DRAWN = ("abinitio", "class3d")
MESSAGE = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("sizes") / "sim"
    return halfmap.simulate(
        "phantom", out, n=60, snr=3.0, box=32, pixel_size_angstrom=7.0, seed=3, quiet=True
    ).folder


def _run(command: str, folder: Path, out: Path) -> np.ndarray:
    """What the job leaves behind, as one array."""
    truth, start = folder / "truth.star", folder / "truth_1.mrc"
    common = {"threads": 1, "quiet": True}
    if command == "refine":
        fine = {"initial_lowpass_angstrom": 20.0, "iterations": 1}
        halfmap.refine(folder / "particles.star", start, out, **fine, **common)
        return mrcfile.read(out / "map.mrc")
    if command == "class3d":
        fine = {"initial_lowpass_angstrom": 20.0, "iterations": 1}
        halfmap.class3d(truth, [start], out, classes=2, **fine, **common)
        # of images of one kind, which goes to which class is chance
        return sum(mrcfile.read(out / f"class00{k}.mrc") for k in (1, 2))
    if command == "class2d":
        halfmap.class2d(folder / "particles.star", out, classes=3, iterations=2, **common)
        return mrcfile.read(out / "classes.mrcs")
    if command == "abinitio":
        halfmap.abinitio(folder / "particles.star", out, iterations=3, **common)
        return mrcfile.read(out / "map.mrc")
    if command == "reconstruct":
        halfmap.reconstruct(truth, out, **common)
        return mrcfile.read(out / "map.mrc")
    halfmap.ctfrefine(truth, out, rounds=1, **common)
    refined = load_particles(out / "particles.star")
    return np.asarray(refined.transfer.defocus_u_angstrom)


@pytest.mark.parametrize(
    "command",
    [
        "refine",
        "reconstruct",
        "ctfrefine",
        *(pytest.param(one, marks=pytest.mark.slow) for one in ("class2d", *DRAWN)),
    ],
)
def test_batches_are_halved_and_nothing_is_lost(command, simulated, tmp_path, monkeypatch):
    expected = _run(command, simulated, tmp_path / "enough")
    transform, refused, done = preprocessing.fourier_transform, [], []

    def short_of_memory(images: torch.Tensor, plane: object) -> torch.Tensor:
        (refused if len(images) > ENOUGH else done).append(len(images))
        if len(images) > ENOUGH:
            raise RuntimeError(MESSAGE)
        return transform(images, plane)

    monkeypatch.setattr(preprocessing, "fourier_transform", short_of_memory)
    found = _run(command, simulated, tmp_path / "short")
    assert refused
    assert done
    # a posterior that a grid resolves is drawn from, and draws turn on last bits: where it is so
    # diffuse (ab initio, classes of one map), batches that are small from the start do the same
    alike = 0.9 if command in DRAWN else 0.999
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > alike


def _written(command: str, folder: Path, out: Path) -> np.ndarray:
    """The images that a command without iterations writes."""
    truth = folder / "truth.star"
    if command == "stack":
        halfmap.stack(truth, out.with_suffix(".star"), downsample=24)
        return mrcfile.read(out.with_suffix(".mrcs"))
    if command == "subtract":
        mask = folder / "part.mrc"
        write_map(mask, soft_sphere(32, radius_px=5.0, edge_px=2.0).numpy(), 7.0)
        halfmap.subtract(
            truth, out.with_suffix(".star"), mask=mask, reference=folder / "truth_1.mrc"
        )
        return mrcfile.read(out.with_suffix(".mrcs"))
    halfmap.restore(truth, command, out, view_tolerance=180.0, quiet=True)
    return mrcfile.read(out / "restored.mrcs")


@pytest.mark.parametrize("command", ["flip", "wiener-stack", "stack", "subtract"])
def test_images_are_written_in_halved_batches(command, simulated, tmp_path, monkeypatch):
    expected = _written(command, simulated, tmp_path / "enough")
    read, refused = Particles.images, []

    def short_of_memory(data: Particles, rows: np.ndarray) -> np.ndarray:
        if len(rows) > ENOUGH:
            refused.append(len(rows))
            raise MemoryError("Unable to allocate 9.00 GiB for an array")
        return read(data, rows)

    monkeypatch.setattr(Particles, "images", short_of_memory)
    found = _written(command, simulated, tmp_path / "short")
    assert refused
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


# where there are no batches to halve: the start, an update, the final maps
PLACES = {
    "start": "halfmap.commands._setup.have_ramps",
    "references": "halfmap.engine.loop.prepare_references",
    "update": "halfmap.methods.maximum_likelihood.map_update",
    "final maps": "halfmap.commands._final_maps.unregularised",
}


@pytest.mark.parametrize("place", PLACES)
def test_where_nothing_can_be_halved_one_line_tells_what_helps(
    place, simulated, tmp_path, monkeypatch, capsys
):
    """No traceback; job.json says the same; the job goes on where it was and ends as ever."""
    told = [simulated / "particles.star", simulated / "truth_1.mrc"]
    options = {"initial_lowpass_angstrom": 20.0, "iterations": 2, "threads": 1, "quiet": True}
    halfmap.refine(*told, tmp_path / "enough", **options)
    module, name = PLACES[place].rsplit(".", 1)

    def no_room(*arguments: object, **options: object) -> None:
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 3200000000 bytes"
        )

    with monkeypatch.context() as patch:
        patch.setattr(importlib.import_module(module), name, no_room)
        with pytest.raises(MemoryShortage) as error:
            halfmap.refine(*told, tmp_path / "job", **options)
    line = str(error.value)
    assert "\n" not in line
    assert "memory ran out: there was no room for an array of 3.2 GB" in line
    assert f"halfmap resume {tmp_path / 'job'} --memory " in line
    assert "--box or --folds" in line
    record = read_job(tmp_path / "job")
    assert record["status"] == "failed"
    assert record["message"] == line
    assert not (tmp_path / "job" / "error.txt").exists()
    halfmap.resume(tmp_path / "job", memory=4_000_000_000, quiet=True)
    after, expected = (mrcfile.read(tmp_path / one / "map.mrc") for one in ("job", "enough"))
    assert np.corrcoef(after.ravel(), expected.ravel())[0, 1] > 0.999


def test_the_command_line_tells_it_too(simulated, tmp_path, monkeypatch, capsys):
    """Of a command without a job folder: one line, exit code 2."""

    def no_room(*arguments: object, **options: object) -> None:
        raise np._core._exceptions._ArrayMemoryError((1 << 30, 3), np.dtype(np.float32))

    monkeypatch.setattr("halfmap.commands.fsc.compare_maps", no_room)
    with pytest.raises(SystemExit) as left:
        run(["fsc", str(simulated / "truth_1.mrc"), str(simulated / "truth_1.mrc")])
    assert left.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "no room for an array of 12.9 GB" in line


def test_a_control_group_limits_what_may_be_used(tmp_path):
    """Of both versions of Linux's; "max" is no limit, and a group holds those inside it."""
    for name, value in (
        ("a/memory.max", "5000000000"),
        ("a/b/memory.max", "max"),
        ("memory/c/memory.limit_in_bytes", "7000000000"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(value + "\n")
    told = tmp_path / "cgroup"
    told.write_text("0::/a/b\n5:memory:/c\n4:cpu:/elsewhere\n")
    assert list(_control_group_limits(told, tmp_path)) == [5_000_000_000, 7_000_000_000]
    assert list(_control_group_limits(tmp_path / "none", tmp_path)) == []


def test_what_is_asked_fits_and_what_is_refused_says_what_to_change():
    """Batches are as large as the memory allows; the message names what is needed, what there is,
    and a box that would do."""
    size, cpu = JobSize(360, 3, 1), torch.device("cpu")
    needed = size.least_bytes(1)
    for memory in (needed, needed + (1 << 28)):
        n = batch_size(size, memory=memory, device=cpu)
        assert 1 <= n < 256
        assert size.least_bytes(n) <= memory
    with pytest.raises(InputError, match="images of 360 pixels need at least") as refusal:
        batch_size(size, memory=4_000_000_000, device=cpu)
    words = str(refusal.value)
    assert "--memory allows 4.0 GB" in words
    smaller = int(words.split("--box ")[1].split()[0].rstrip(",;"))
    assert JobSize(smaller, 3, 1).least_bytes(1) <= 4_000_000_000
    assert smaller > 250


def test_a_360_pixel_refinement_fits_into_8_gb():
    """At any resolution up to shell 120 of 180 without folds, in batches of a few dozen."""
    size = JobSize(360, 3, 1)
    assert batch_size(size, memory=8_000_000_000, device=torch.device("cpu")) > 16
    assert size.least_bytes(1, 120) < 8_000_000_000
    assert JobSize(360, 3, 6).least_bytes(1, 60) < 20_000_000_000


def test_more_of_anything_needs_no_less():
    base = {"box": 200, "dimensions": 3, "n_classes": 2, "folds": 2, "operators": 1}
    before = JobSize(**base).least_bytes(10, 40)
    for name, value in {"box": 220, "n_classes": 3, "folds": 4}.items():
        assert JobSize(**(base | {name: value})).least_bytes(10, 40) >= before
    assert JobSize(**base).least_bytes(20, 40) >= before
    assert JobSize(**base).least_bytes(10, 60) >= before
    assert JobSize(**base, images=20).least_bytes(10, 40) <= before
