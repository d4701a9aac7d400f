"""Bad input: every command says in one line which file, row and column is wrong, exits 2, and
leaves the folder as it was."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from halfmap.cli.main import run
from halfmap.io.mrc import write_map
from halfmap.io.stack_writer import write_stack
from halfmap.io.star import read_star
from halfmap.workspace.job import Job

BOX, PIXEL, N = 20, 4.0, 6
OPTICS: Mapping[str, object] = {
    "OpticsGroup": 1,
    "Voltage": 300,
    "SphericalAberration": 2.7,
    "AmplitudeContrast": 0.1,
    "ImagePixelSize": PIXEL,
    "ImageSize": BOX,
}
POSES = ("AngleRot", "AngleTilt", "AnglePsi")
DEFOCUS = ("DefocusU", "DefocusV", "DefocusAngle")

JOBS = {
    "refine": "refine --reference map.mrc --out out --quiet",
    "class2d": "class2d --classes 2 --out out --quiet",
    "class3d": "class3d --reference map.mrc --classes 2 --out out --quiet",
    "reconstruct": "reconstruct --out out.mrc --quiet",
    "restore": "restore --method flip --out out --quiet",
    "project": "project map.mrc --ctf --out out.mrcs",
}
IMAGE_READERS = [name for name in JOBS if name != "project"]  # project reads the table alone


def write_particles(
    name: str,
    *,
    stack: str = "p.mrcs",
    n: int = N,
    without: tuple[str, ...] = (),
    cells: Mapping[tuple[int, str], object] | None = None,
    optics: tuple[Mapping[str, object], ...] = (OPTICS,),
) -> None:
    """A STAR of n particles, without some columns, with some cells (row from 1, column)
    replaced."""
    columns = [column for column in OPTICS if column not in without]
    text = "data_optics\n\nloop_\n" + "".join(f"_rln{column}\n" for column in columns)
    text += "".join(" ".join(str(group[column]) for column in columns) + "\n" for group in optics)
    text += "\ndata_particles\n\nloop_\n"
    for i in range(n):
        row: dict[str, object] = {
            "ImageName": f"{i + 1:06d}@{stack}",
            "AngleRot": 40 * i,
            "AngleTilt": 25 * i,
            "AnglePsi": 0,
        }
        row |= {
            "DefocusU": 15000,
            "DefocusV": 15000,
            "DefocusAngle": 0,
            "OpticsGroup": 1 + i % len(optics),
        }
        row |= {column: 0 for _, column in cells or {} if column not in row}
        row = {
            column: (cells or {}).get((i + 1, column), value)
            for column, value in row.items()
            if column not in without
        }
        text += (
            ("" if i else "".join(f"_rln{column}\n" for column in row))
            + " ".join(map(str, row.values()))
            + "\n"
        )
    Path(name).write_text(text if n else text + "_rlnImageName\n_rlnOpticsGroup\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six good particles and a good map, and one file for each fault."""
    place = tmp_path_factory.mktemp("bad input")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        images = np.random.default_rng(0).standard_normal((N, BOX, BOX)).astype("f4")
        write_stack("p.mrcs", images, PIXEL)
        write_particles("p.star")
        write_particles("missing.star", cells={(4, "ImageName"): "000001@gone.mrcs"})
        write_particles("outside.star", cells={(5, "ImageName"): "000099@p.mrcs"})
        write_particles("text.star", cells={(3, "DefocusU"): "abc"})
        write_particles("nan_pose.star", cells={(3, "AngleRot"): "nan"})
        write_particles("nan_defocus.star", cells={(3, "DefocusU"): "nan"})
        write_particles("no_defocus.star", without=DEFOCUS)
        write_particles("no_voltage.star", without=("Voltage",))
        write_particles("no_poses.star", without=POSES)
        write_particles("zero.star", n=0)
        write_particles("other_box.star", optics=({**OPTICS, "ImageSize": 32},))
        Path("truncated.mrcs").write_bytes(Path("p.mrcs").read_bytes()[:-100])
        write_particles("truncated.star", stack="truncated.mrcs")
        write_stack("no_size.mrcs", images, 0.0)
        write_particles("no_pixel_size.star", stack="no_size.mrcs", without=("ImagePixelSize",))
        spoilt = np.ones_like(images)
        spoilt[1] = np.nan
        write_stack("spoilt.mrcs", spoilt, PIXEL)
        write_particles("spoilt.star", stack="spoilt.mrcs")
        write_particles("one_half.star", cells={(i + 1, "RandomSubset"): 2 for i in range(N)})
        Path("not.star").write_text("hello world\n")

        z, y, x = np.mgrid[:BOX, :BOX, :BOX] - BOX // 2
        density = np.exp(-((x - 3) ** 2 + (y - 1) ** 2 + z**2) / 6.0).astype("f4")
        write_map("map.mrc", density, PIXEL)
        write_map("small.mrc", density[2:18, 2:18, 2:18], 0.0)  # else jobs resample it
        write_map("scaled.mrc", density, 1.2 * PIXEL)
        write_map("no_size.mrc", density, 0.0)
        write_map("constant.mrc", np.ones_like(density), PIXEL)
        density[0, 0, 0] = np.nan
        write_map("nan.mrc", density, PIXEL)
        Path("not.mrc").write_text("hello")
    return place


@pytest.fixture(autouse=True)
def _inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def contents() -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in Path().rglob("*")}


def refused(command: str, *words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The command exits 2 with one line that holds the words, and every file in the folder is as it
    was."""
    before = contents()
    with pytest.raises(SystemExit) as left:
        run(command.split())
    message = capsys.readouterr().err
    assert left.value.code == 2, message
    assert message.startswith("halfmap: ")
    assert message.count("\n") == 1, message
    assert not [word for word in words if word not in message], message
    assert contents() == before


@pytest.mark.parametrize("job", IMAGE_READERS)
@pytest.mark.parametrize(
    ("particles", "words"),
    [
        ("missing.star", ["row 4", "gone.mrcs", "--data-dir"]),
        ("outside.star", ["row 5", "_rlnImageName", "image 99", "p.mrcs", "holds 6"]),
        ("truncated.star", ["truncated.mrcs", "bytes"]),
        ("other_box.star", ["row 1", "32", "20"]),
        ("spoilt.star", ["spoilt.star", "no usable image", "row 1", "constant"]),
    ],
)
def test_stacks(
    job: str, particles: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    refused(f"{JOBS[job]} --particles {particles}", *words, capsys=capsys)


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize(
    ("particles", "words"),
    [
        ("gone.star", ["gone.star"]),
        ("not.star", ["not.star", "line 1"]),
        ("zero.star", ["zero.star", "no rows"]),
        ("text.star", ["row 3", "_rlnDefocusU", "'abc'"]),
        ("nan_pose.star", ["row 3", "_rlnAngleRot", "nan"]),
        ("nan_defocus.star", ["row 3", "_rlnDefocusU", "nan"]),
        ("no_defocus.star", ["no_defocus.star", "rlnDefocusU"]),
        ("no_voltage.star", ["no_voltage.star", "_rlnVoltage"]),
        ("no_pixel_size.star", ["no_pixel_size.star", "_rlnImagePixelSize"]),
    ],
)
def test_particle_tables(
    job: str, particles: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    refused(f"{JOBS[job]} --particles {particles}", *words, capsys=capsys)


@pytest.mark.parametrize(
    "command",
    [
        JOBS["reconstruct"],
        JOBS["project"],
        f"{JOBS['refine']} --local",
        f"{JOBS['class3d']} --local",
    ],
)
def test_poses_are_needed(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(f"{command} --particles no_poses.star", "no_poses.star", "rlnAngleRot", capsys=capsys)


MAP_FAULTS = {
    "small.mrc": ["small.mrc", "16", "20"],
    "not.mrc": ["not.mrc", "header"],
    "gone.mrc": ["gone.mrc"],
}
# of maps that are compared voxel by voxel; jobs resample such a map
SCALE_FAULT = {"scaled.mrc": ["scaled.mrc", "4.8", "4"]}
DENSITY_FAULTS = {"nan.mrc": ["nan.mrc", "finite"], "constant.mrc": ["constant.mrc"]}


@pytest.mark.parametrize("job", ["refine", "class3d"])
@pytest.mark.parametrize("reference", [*MAP_FAULTS, *DENSITY_FAULTS])
def test_starting_maps(job: str, reference: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = (MAP_FAULTS | DENSITY_FAULTS)[reference]
    refused(f"{JOBS[job].replace('map.mrc', reference)} --particles p.star", *words, capsys=capsys)


@pytest.mark.parametrize("job", ["refine", "class3d", "reconstruct"])
@pytest.mark.parametrize("mask", [*MAP_FAULTS, "nan.mrc"])
def test_masks(job: str, mask: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(
        f"{JOBS[job]} --particles p.star --mask {mask}",
        *(MAP_FAULTS | {"nan.mrc": ["nan.mrc", "nan"]})[mask],
        capsys=capsys,
    )


@pytest.mark.parametrize("other", MAP_FAULTS | DENSITY_FAULTS | SCALE_FAULT)
def test_maps_of_project_and_fsc(other: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = (MAP_FAULTS | DENSITY_FAULTS | SCALE_FAULT)[other]
    if other not in SCALE_FAULT:
        refused(
            f"{JOBS['project'].replace('map.mrc', other)} --particles p.star", *words, capsys=capsys
        )
    refused(f"fsc map.mrc {other}", *words, capsys=capsys)
    if other not in DENSITY_FAULTS:
        refused(f"fsc map.mrc map.mrc --mask {other}", *words, capsys=capsys)


@pytest.mark.parametrize("job", ["refine", "class3d"])
def test_one_half_set_only(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(
        f"{JOBS[job]} --particles one_half.star",
        "one_half.star",
        "_rlnRandomSubset is 2 in all 6 rows",
        capsys=capsys,
    )


def test_a_bare_stack_without_pixel_size(capsys: pytest.CaptureFixture[str]) -> None:
    refused(
        f"{JOBS['class2d']} --particles no_size.mrcs --no-ctf",
        "no_size.mrcs",
        "--pixel-size",
        capsys=capsys,
    )


@pytest.mark.parametrize(
    "option",
    [
        "--seed -1",
        "--view-tolerance -1",
        "--view-tolerance nan",
        "--threads 100000",
        "--constant inf",
    ],
)
def test_options_of_restore_out_of_range(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(f"{JOBS['restore']} --particles p.star {option}", option, capsys=capsys)


@pytest.mark.parametrize(
    "option",
    [
        *(
            "--seed -1",
            "--snr 0",
            "--snr nan",
            "--box 4",
            "--pixel-size nan",
            "--cs nan",
            "--voltage inf",
            "--shift nan",
            "--bfactor nan",
        ),
        *(
            "--beam-tilt inf",
            "--preferred 2",
            "--per-micrograph 0",
            "--junk 1",
            "--noise-colour nan",
            "--symmetry C9",
        ),
    ],
)
def test_options_of_simulate_out_of_range(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(
        f"simulate phantom --n 5 --snr 1 --box 32 --out out --quiet {option}",
        option.split()[0],
        capsys=capsys,
    )


def test_a_map_without_pixel_size_has_no_resolution(capsys: pytest.CaptureFixture[str]) -> None:
    refused("fsc no_size.mrc map.mrc", "no_size.mrc", "pixel size", capsys=capsys)


@pytest.mark.parametrize(
    "source", ["not.mrc", "gone.mrc", "nan.mrc", "constant.mrc", "no_size.mrc", "gone.pdb"]
)
def test_sources_of_simulate(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(f"simulate {source} --n 5 --snr 1 --out out --quiet", source, capsys=capsys)


@pytest.mark.parametrize(
    "command",
    [
        *(f"{JOBS[job]} --particles p.star" for job in ("refine", "class3d", "reconstruct")),
        "simulate phantom --n 5 --snr 1 --out out",
    ],
)
@pytest.mark.parametrize("group", ["X7", "C0", "D4h"])
def test_symmetry(command: str, group: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(f"{command} --symmetry {group}", "symmetry", f"'{group}'", "C1", capsys=capsys)


@pytest.mark.parametrize(
    "option",
    ["--diameter 5000", "--memory 1MB", "--seed -1", "--wiener-constant 0", "--threads 100000"],
)
@pytest.mark.parametrize("job", ["refine", "class2d", "class3d", "reconstruct"])
def test_options_out_of_range(job: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(f"{JOBS[job]} --particles p.star {option}", option.split()[0], capsys=capsys)


def test_more_classes_than_pairs_of_images(capsys: pytest.CaptureFixture[str]) -> None:
    refused(
        "class2d --particles p.star --classes 4 --out out --quiet",
        "--classes 4",
        "3",
        capsys=capsys,
    )


@pytest.mark.parametrize(
    "command",
    [
        *(f"{JOBS[job]} --particles p.star" for job in ("refine", "class2d", "class3d", "restore")),
        "simulate map.mrc --n 5 --snr 1",
    ],
)
def test_a_folder_in_use_is_left_alone(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("notes", "thesis"):
        Path(name).mkdir(exist_ok=True)
        Path(name, "chapter.txt").write_text("precious")
    command = command.replace(" --out out", "")
    refused(f"{command} --out notes", "--out notes", "chapter.txt", capsys=capsys)
    refused(
        f"{command} --out thesis --overwrite", "--out thesis", capsys=capsys
    )  # no job of ours: not to be removed
    refused(f"{command} --out p.star --overwrite", "--out p.star", capsys=capsys)


@pytest.mark.parametrize(
    "command",
    [
        "reconstruct --particles p.star --out map.mrc --quiet",
        "project map.mrc --particles p.star --out p.mrcs",
    ],
)
def test_a_file_in_use_is_left_alone(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(command, "exists", "--overwrite", capsys=capsys)


@pytest.mark.parametrize(
    "name", ["new.mrc", "new.png", "new_half1.mrc", "new_half2.mrc", "new_fsc.star", "new_fsc.png"]
)
def test_reconstruct_overwrites_none_of_its_files(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(name).write_text("precious")
    refused(
        "reconstruct --particles p.star --out new.mrc --halves --quiet",
        name,
        "exists",
        "--overwrite",
        capsys=capsys,
    )
    Path(name).unlink()


def test_fsc_overwrites_nothing_unless_asked(capsys: pytest.CaptureFixture[str]) -> None:
    refused("fsc map.mrc map.mrc --out p.mrcs", "--out p.mrcs", ".star", capsys=capsys)
    for name in ("curve.star", "curve.png"):
        Path(name).write_text("precious")
        refused(
            "fsc map.mrc map.mrc --out curve.star", name, "exists", "--overwrite", capsys=capsys
        )
        Path(name).unlink()


@pytest.mark.parametrize("job", ["refine", "class2d", "class3d", "restore"])
def test_overwrite_leaves_the_earlier_job_where_the_new_one_is_refused(
    job: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Job.create("class3d", {}, "earlier", seed=1) as earlier:
        earlier.path("class001.mrc").write_text("precious")
    command = JOBS[job].replace("--out out", "--out earlier --overwrite")
    refused(f"{command} --particles spoilt.star", "no usable image", capsys=capsys)
    shutil.rmtree("earlier")


def test_bad_images_are_set_aside_and_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(1).standard_normal((N, BOX, BOX)).astype("f4")
    images[1], images[4, 3, 3] = 7.0, np.nan
    write_stack("p.mrcs", images, PIXEL)
    write_particles("p.star")
    write_map("map.mrc", np.random.default_rng(2).random((BOX, BOX, BOX), "f4"), PIXEL)
    with pytest.raises(SystemExit) as left:
        run(
            [
                *JOBS["refine"].split(),
                "--particles",
                "p.star",
                "--iterations",
                "1",
                "--angular-step",
                "30",
            ]
        )
    assert left.value.code == 0, capsys.readouterr().err
    aside = read_star("out/set_aside.star").blocks["particles"]
    assert [name.split("@")[0] for name in aside.strings("rlnImageName")] == ["000002", "000005"]
    assert "constant" in aside.strings("halfmapSetAside")[0]
    assert "NaN" in aside.strings("halfmapSetAside")[1]
    assert len(read_star("out/particles.star").blocks["particles"]) == N - 2
