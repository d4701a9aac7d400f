"""The command line: light to start, one clear line on bad input, and the small commands on small
data."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mrcfile
import numpy as np
import pytest

import halfmap
from halfmap.cli.application import PANELS, command_of
from halfmap.cli.main import run
from halfmap.commands._options import parse_classes, parse_memory
from halfmap.commands._signatures import command_signature
from halfmap.io.mrc import read_map, write_map
from halfmap.io.stack_writer import write_stack
from halfmap.particles import load_particles
from halfmap.workspace.job import Job

HEAVY = (
    "torch",
    "pandas",
    "matplotlib",
    "numba",
    "scipy",
    "astropy",
    "pyarrow",
    "gemmi",
    "finufft",
)
BOX, PIXEL = 28, 4.0
OPTICS = "OpticsGroup Voltage SphericalAberration AmplitudeContrast ImagePixelSize ImageSize"
COLUMNS = "ImageName AngleRot AngleTilt AnglePsi OriginXAngst OriginYAngst DefocusU DefocusV DefocusAngle ClassNumber OpticsGroup"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with six particles in three classes (`p.star`), their stack and a map, as the
    working directory."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    write_stack("p.mrcs", rng.standard_normal((6, BOX, BOX)).astype("f4"), PIXEL)
    z, y, x = np.mgrid[:BOX, :BOX, :BOX] - BOX // 2
    write_map("map.mrc", np.exp(-((x - 3) ** 2 + (y - 1) ** 2 + z**2) / 6.0).astype("f4"), PIXEL)
    optics = "".join(f"_rln{name}\n" for name in OPTICS.split())
    optics = f"data_optics\n\nloop_\n{optics}1 300 2.7 0.1 {PIXEL} {BOX}\n"
    loop = "".join(f"_rln{name}\n" for name in COLUMNS.split())
    rows = "".join(
        f"{i + 1:06d}@p.mrcs {40 * i} {25 * i} 0 {PIXEL * (i - 2)} {-PIXEL} 15000 15000 0 "
        f"{1 + i % 3} 1\n"
        for i in range(6)
    )
    Path("p.star").write_text(f"{optics}\ndata_particles\n\nloop_\n{loop}{rows}")
    return tmp_path


def call(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line."""
    with pytest.raises(SystemExit) as left:
        run([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


@pytest.mark.parametrize(
    "code",
    [
        "import halfmap",
        "from halfmap.cli.main import app; app(['refine', '--help'], standalone_mode=False)",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code: str) -> None:
    program = (
        f"{code}\nimport sys\nprint('HEAVY', [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "HEAVY []"


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_waiting_threads_do_not_spin_for_long(given: dict[str, str], expected: str) -> None:
    """Set before torch, whose OpenMP reads it, is loaded; and a user's own choice stays."""
    code = (
        "import os, sys, halfmap.cli.main;"
        "assert 'torch' not in sys.modules; print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP", "KMP", "OMP_W"))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=kept | given, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected


def test_every_command_is_a_function_and_has_help_with_an_example() -> None:
    listed = [name for names in PANELS.values() for name in names]
    assert sorted(listed) == sorted(halfmap._COMMANDS)
    for name in listed:
        assert f"Example: halfmap {name}" in command_of(command_signature(name)).help, name


def test_jobs_share_their_options() -> None:
    for name in ("class2d", "refine", "class3d", "reconstruct"):
        parameters = command_of(command_signature(name)).params
        given = {option for parameter in parameters for option in parameter.opts}
        assert given >= {
            "--particles",
            "--out",
            "--seed",
            "--device",
            "--threads",
            "--overwrite",
            "--data-dir",
            "--diameter",
            "--memory",
        }, name


def test_the_installed_command_answers() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("halfmap"), "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("halfmap 0.")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("info nothing.star", "nothing.star: no such file"),
        ("info p.txt", "expected .star"),
        ("info .", "no job.json"),
        ("resume .", "no job.json"),
        ("select p.star --classes 1,x --out o.star", "found 'x'"),
        ("select p.star --classes 9 --out o.star", "is in class 9; classes there: 1, 2, 3"),
        ("select p.star --classes 1 --out p.star", "the file exists"),
        ("convert p.star p.star", "the file exists"),
        ("project map.mrc --particles p.star --out o.mrc", "ending in .mrcs"),
        ("project map.mrc --particles p.star --out p.mrcs", "the file exists"),
        ("project p.star --particles p.star --out o.mrcs", "p.star"),
        ("refine --particles p.star --reference map.mrc", "Missing option '--out'"),
        (
            "refine --particles p.star --reference map.mrc --out o --method magic",
            "projection-matching",
        ),
        ("refine --particles p.star --reference map.mrc --out o --memory much", "8GB"),
        ("refine --particles p.star --reference map.mrc --out o --threads 0", "--threads"),
        ("no-such-command", "No such command"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    project: Path, capsys: pytest.CaptureFixture[str], arguments: str, told: str
) -> None:
    Path("p.txt").write_text("x")
    before = {path.name: path.read_bytes() for path in project.iterdir()}
    code, _, err = call(*arguments.split(), capsys=capsys)
    assert code == 2
    assert err.count("\n") == 1
    assert err.startswith("halfmap: ")
    assert told in err
    assert {path.name: path.read_bytes() for path in project.iterdir()} == before


def test_other_errors_exit_with_1_and_130(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HALFMAP_DEBUG", raising=False)
    for error, expected in (
        (RuntimeError("bug"), 1),
        (KeyboardInterrupt("stopped; go on with: halfmap resume d"), 130),
    ):

        def fail(*_: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr("halfmap.commands.info.describe", fail)
        code, _, err = call("info", "p.star", capsys=capsys)
        assert code == expected
        assert err.count("\n") == 1
        assert str(error) in err
    monkeypatch.setenv("HALFMAP_DEBUG", "1")
    monkeypatch.setattr("halfmap.commands.info.describe", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(["info", "p.star"])


def test_info_tells_what_files_hold(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Job.create("refine", {"particles": "p.star"}, "job", seed=3) as job:
        job.event(iteration=1, resolution_angstrom=20.0)
        job.event(iteration=2, resolution_angstrom=11.5)
    code, out, _ = call("info", "p.star", "p.mrcs", "map.mrc", "job", "--json", capsys=capsys)
    assert code == 0
    star, stack, map_, folder = [json.loads(line) for line in out.splitlines()]
    images, volume = mrcfile.read("p.mrcs"), mrcfile.read("map.mrc")
    assert star["particles"] == 6
    assert star["box"] == BOX
    assert star["pixel_size_angstrom"] == PIXEL
    assert star["class_sizes"] == {"1": 2, "2": 2, "3": 2}
    assert star["poses"] == star["ctf"] == "yes"
    assert "rlnDefocusU" in star["columns"]["particles"]
    assert (stack["images"], stack["box"]) == (6, BOX)
    assert stack["min"] == images.min()
    assert stack["mean"] == pytest.approx(images.mean(), abs=1e-6)
    assert map_["kind"] == "map"
    assert map_["max"] == volume.max()
    assert map_["pixel_size_angstrom"] == pytest.approx(PIXEL)
    assert (folder["status"], folder["resolution_angstrom"], folder["iterations done"]) == (
        "finished",
        11.5,
        2,
    )
    code, out, _ = call("info", "p.star", capsys=capsys)
    assert "pixel size angstrom" in out


def test_info_counts_pixels_that_are_not_finite(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.zeros((2, 8, 8), dtype=np.float32)
    images[1, 2, 3:5] = np.nan, np.inf
    write_stack("bad.mrcs", images, 1.0)
    _, out, _ = call("info", "bad.mrcs", "--json", capsys=capsys)
    assert json.loads(out)["not_finite_pixels"] == 2
    assert json.loads(out)["max"] == 0


def test_select_keeps_the_rows_of_the_classes(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call("select", "p.star", "--classes", "1,3", "--out", "kept.star", capsys=capsys)
    assert code == 0
    assert "4 of 6" in out
    before, after = load_particles("p.star"), load_particles("kept.star")
    rows = np.flatnonzero(before.class_number != 2)
    assert np.array_equal(after.rotations_deg, before.rotations_deg[rows])
    assert np.array_equal(after.images(np.arange(4)), before.images(rows))
    os.mkdir("job")
    os.rename("p.star", "job/particles.star")
    assert (
        call("select", "job", "--classes", "2", "--out", "kept.star", "--overwrite", capsys=capsys)[
            0
        ]
        == 0
    )
    assert load_particles("kept.star").class_number.tolist() == [2, 2]


def test_select_keeps_what_is_well_resolved(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two particles in each class: the median one is in the class of 11 A; 17 A is too blurred, an
    empty class is none."""
    os.mkdir("job")
    os.rename("p.star", "job/particles.star")
    rows = "10.0 2\n11.0 2\n17.0 2\n5.0 0\n"
    Path("job/classes.star").write_text(
        f"data_model_classes\n\nloop_\n_rlnEstimatedResolution #1\n_halfmapClassSize #2\n{rows}"
    )
    code, out, _ = call(
        "select", "job", "--resolved-within", "1.5", "--out", "kept.star", capsys=capsys
    )
    assert code == 0
    assert "4 of 6" in out
    assert "classes 1, 2" in out
    for arguments, told in (
        (("--resolved-within", "0.5"), "--resolved-within 0.5"),
        ((), "expected a wish"),
        (("--resolved-within", "2", "--classes", "1"), "either --classes or --resolved-within"),
    ):
        code, _, err = call("select", "job", *arguments, "--out", "other.star", capsys=capsys)
        assert code == 2
        assert told in err
    code, _, err = call(
        "select",
        "job/particles.star",
        "--resolved-within",
        "2",
        "--out",
        "other.star",
        capsys=capsys,
    )
    assert (code, "classes.star: no such file" in err) == (2, True)


def test_class_lists() -> None:
    assert parse_classes("1,4-6, 9") == [1, 4, 5, 6, 9]
    assert [parse_memory(text) for text in ("8GB", "500 mb", "1.5GiB", "100")] == [
        8_000_000_000,
        500_000_000,
        1_500_000_000,
        100,
    ]


def test_convert_round_trip(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("convert", "p.star", "p.cs", capsys=capsys)[0] == 0
    assert call("convert", "p.cs", "back.star", capsys=capsys)[0] == 0
    before, after = load_particles("p.star"), load_particles("back.star")
    assert np.allclose(before.shift_angstrom, after.shift_angstrom, atol=1e-4)
    assert np.allclose(before.transfer.defocus_u_angstrom, after.transfer.defocus_u_angstrom)
    assert np.array_equal(before.images(np.arange(6)), after.images(np.arange(6)))


def test_project_puts_the_blob_where_pose_and_shift_say(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(
        "project", "map.mrc", "--particles", "p.star", "--out", "q.mrcs", capsys=capsys
    )
    assert code == 0
    assert "6 projections in q.mrcs" in out
    projected = load_particles("q.star")
    assert not projected.has_ctf
    images = projected.images(np.arange(6))
    angles = np.radians(projected.rotations_deg)
    y, x = np.mgrid[:BOX, :BOX] - BOX // 2
    for image, (rot, tilt, _), shift in zip(
        images, angles, projected.shift_angstrom / PIXEL, strict=True
    ):
        # RELION's A for psi = 0 takes the blob's centre (3, 1, 0) to the view; the image is moved
        # by minus the shift
        right = np.cos(tilt) * (3 * np.cos(rot) + 1 * np.sin(rot))
        up = -3 * np.sin(rot) + 1 * np.cos(rot)
        truth = np.sqrt(6 * np.pi) * np.exp(
            -((x - right + shift[0]) ** 2 + (y - up + shift[1]) ** 2) / 6.0
        )
        assert np.corrcoef(image.ravel(), truth.ravel())[0, 1] > 0.999
        assert np.abs(image - truth).max() < 0.03 * truth.max()


def test_project_with_ctf_multiplies_its_transform(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from halfmap.fourier import fourier_transform, half_plane
    from halfmap.transfer_function import ctf

    for name, extra in (("plain.mrcs", ()), ("ctf.mrcs", ("--ctf",))):
        assert (
            call(
                "project", "map.mrc", "--particles", "p.star", "--out", name, *extra, capsys=capsys
            )[0]
            == 0
        )
    with_ctf = load_particles("ctf.star")
    assert with_ctf.has_ctf
    plane, rows = half_plane(BOX, 13), np.arange(6)
    transfer = ctf(with_ctf.transfer.take(rows), *plane.frequencies(PIXEL))
    plain, seen = (
        fourier_transform(torch.from_numpy(load_particles(name).images(rows)), plane)
        for name in ("plain.star", "ctf.star")
    )
    assert torch.allclose(plain * transfer, seen, atol=1e-4 * float(plain.abs().max()))


def test_no_resolution_is_said_in_words(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_map("negative.mrc", -read_map("map.mrc")[0], PIXEL)
    code, out, _ = call("fsc", "map.mrc", "negative.mrc", capsys=capsys)
    assert code == 0
    assert out.splitlines()[1].split() == ["unmasked", "none", "none"]


def test_convert_writes_the_dialect_asked(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("convert", "p.star", "old.star", "--relion", "3.0", capsys=capsys)[0] == 0
    assert "data_optics" not in Path("old.star").read_text()
    code, _, err = call("convert", "p.star", "new.star", "--passthrough", "p.cs", capsys=capsys)
    assert (code, "passthrough" in err) == (2, True)
