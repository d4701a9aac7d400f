"""Files as they come: what can be read gives what a clean file gives, what cannot is refused in one
line that names file, row and column; nothing ends in a traceback, in silence, or as another map."""

import gzip
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import halfmap
from halfmap.io.convert import convert
from halfmap.io.mrc import read_map, write_map
from halfmap.io.stack_writer import write_stack
from halfmap.io.star import read_star, write_star
from halfmap.io.table import Table
from halfmap.particles import load_particles
from odd_scene import BOX, PIXEL, N, refused, told, written


def fourth(value: str, column: str) -> Callable[[Path], Path]:
    """The fourth row's cell replaced."""

    def make(scene: Path) -> Path:
        cells = read_star(scene / "truth.star").blocks["particles"].strings(column).astype(object)
        cells[3] = value
        return written(scene, **{column: cells})

    return make


CELLS = {
    "rlnDefocusU": ("1e30", "row 4, column _rlnDefocusU"),
    "rlnAngleRot": ("1e30", "row 4, column _rlnAngleRot: expected -1,000,000 to 1,000,000"),
    "rlnOriginXAngst": ("1e30", "row 4, column _rlnOriginXAngst: expected -100,000 to 100,000"),
    "rlnPhaseShift": ("1e30", "row 4, column _rlnPhaseShift"),
    "rlnCtfBfactor": ("1e9", "row 4, column _rlnCtfBfactor"),
    "rlnImageName": ("particles.mrcs", "row 4, column _rlnImageName: .* gives no index"),
}


@pytest.mark.parametrize("column", CELLS)
def test_a_broken_cell_is_named(scene, capsys, column) -> None:
    value, message = CELLS[column]
    fourth(value, column)(scene)
    error = refused(capsys, "reconstruct", "--particles", "v.star", "--out", "m.mrc", "--quiet")
    assert "v.star" in error
    assert re.search(message, error), error


OPTICS = {
    "rlnVoltage": (300000, "_rlnVoltage.*at most 3000 .kV., found 300000"),
    "rlnSphericalAberration": (1e30, "_rlnSphericalAberration"),
    "rlnImagePixelSize": (1e30, "_rlnImagePixelSize: expected"),
    "rlnMagMat00": (1.02, "missing _rlnMagMat01, _rlnMagMat10, _rlnMagMat11"),
    "rlnOddZernike": ("abc", r"list of numbers such as \[0.1,0,2\], found 'abc'"),
}


@pytest.mark.parametrize("column", OPTICS)
def test_a_broken_cell_of_the_optics_table_is_named(scene, column) -> None:
    value, message = OPTICS[column]
    path = written(scene, optics={column: [value]})
    with pytest.raises(halfmap.InputError, match=message):
        load_particles(path)


def test_a_broken_cell_of_a_group_that_no_particle_is_in_is_no_fault(scene) -> None:
    optics = read_star(scene / "truth.star").blocks["optics"]
    columns = {name: [*optics.strings(name), *optics.strings(name)] for name in optics.names}
    columns |= {"rlnOpticsGroup": [1, 5], "rlnVoltage": [300, "nan"], "rlnImageSize": [BOX, "nan"]}
    blocks = dict(read_star(scene / "truth.star").blocks)
    write_star("v.star", blocks | {"optics": Table.from_columns(columns)})
    assert load_particles("v.star").box == BOX
    write_star(
        "v.star", blocks | {"optics": Table.from_columns(columns | {"rlnOpticsGroup": [5, 1]})}
    )
    with pytest.raises(halfmap.InputError, match=r"row 2 \(line \d+\), column _rlnImageSize"):
        load_particles("v.star")


def test_one_shift_column_without_the_other_is_refused(scene) -> None:
    path = written(scene, without=("rlnOriginYAngst",))
    with pytest.raises(halfmap.InputError, match="_rlnOriginYAngst is missing, beside _rlnOriginX"):
        load_particles(path)
    none = load_particles(written(scene, without=("rlnOriginYAngst", "rlnOriginXAngst")))
    assert not none.shift_angstrom.any()


def test_a_scale_of_nothing_is_refused(scene) -> None:
    with pytest.raises(halfmap.InputError, match="_rlnCtfScalefactor is 0 in all rows"):
        load_particles(written(scene, rlnCtfScalefactor=[0] * N))


def test_copies_of_one_image_are_no_two_halves(scene, capsys) -> None:
    written(scene, rlnImageName=["1@particles.mrcs"] * N)
    error = refused(capsys, "reconstruct", "--particles", "v.star", "--out", "m.mrc", "--quiet")
    assert f"1 found in {N} rows, the others are copies" in error


def test_half_sets_that_are_copies_of_each_other_are_told_so(scene, capsys) -> None:
    """And not that the column says the same in all rows."""
    names = [f"{i % 12 + 1:06d}@particles.mrcs" for i in range(N)]
    written(scene, rlnImageName=names, rlnRandomSubset=[1] * 12 + [2] * 12)
    error = refused(capsys, "reconstruct", "--particles", "v.star", "--out", "m.mrc", "--quiet")
    assert "every image of one half set is a copy of one in the other (12 images in 24" in error


def test_projections_of_a_map_whose_header_says_1_are_on_the_images_grid(scene) -> None:
    volume = read_map("truth_1.mrc")[0]
    for name, pixel in (("right", PIXEL), ("untold", 1.0)):
        write_map(f"{name}.mrc", volume, pixel)
        done = halfmap.project(f"{name}.mrc", "truth.star", f"{name}.mrcs")
        assert any("a header of 1 A" in note for note in done.notes) == (name == "untold")
    assert (scene / "right.mrcs").read_bytes() == (scene / "untold.mrcs").read_bytes()


@pytest.mark.parametrize("known", [0, N - 2])
def test_places_that_are_not_known_are_no_copies(scene, capsys, known) -> None:
    """Coordinates of NaN, in all rows or in two; of those known, two are one particle."""
    x = np.full(N, np.nan)
    x[:known] = 1000.0 * np.arange(known)
    if known:
        x[1] = x[0]
    written(scene, rlnCoordinateX=x, rlnCoordinateY=np.where(np.isnan(x), np.nan, 5.0))
    code, error = told(capsys, "select", "v.star", "--unique", "--out", "s.star")
    assert code == 0, error
    kept = len(load_particles("s.star"))
    assert kept == (N - 1 if known else N)


@pytest.mark.parametrize(
    "how", ["gzip", "crlf", "cr", "mark", "quoted", "spaced", "one row a list"]
)
def test_dialects_are_the_same_table(scene, how) -> None:
    text = (scene / "truth.star").read_bytes()
    table = read_star(scene / "truth.star").blocks["optics"]
    values = "".join(f"_{name} {table.strings(name)[0]}\n" for name in table.names)
    changed = {
        "gzip": gzip.compress(text),
        "crlf": text.replace(b"\n", b"\r\n"),
        "cr": text.replace(b"\n", b"\r"),
        "mark": b"\xef\xbb\xbf" + text,
        "quoted": text.replace(b"@particles.mrcs", b"@particles.mrcs'").replace(b"\n00", b"\n'00"),
        "spaced": text.replace(b"\n", b"\n\n"),
        "one row a list": b"data_optics\n\n"
        + values.encode()
        + b"\ndata_particles"
        + text.split(b"data_particles")[1],
    }[how]
    (scene / "v.star").write_bytes(changed)
    one, other = load_particles("truth.star"), load_particles("v.star")
    np.testing.assert_array_equal(one.rotations_deg, other.rotations_deg)
    np.testing.assert_array_equal(
        one.transfer.defocus_u_angstrom, other.transfer.defocus_u_angstrom
    )
    np.testing.assert_array_equal(one.images([5]), other.images([5]))


def test_a_compressed_star_that_is_cut_short_is_refused(scene) -> None:
    (scene / "v.star.gz").write_bytes(gzip.compress((scene / "truth.star").read_bytes())[:300])
    with pytest.raises(halfmap.InputError, match=r"v\.star\.gz: is damaged \(gzip"):
        load_particles("v.star.gz")


def test_a_map_is_no_stack_of_images(scene, capsys) -> None:
    """A folder with both invites it; its sections would be classified."""
    words = ("--classes", "2", "--no-ctf", "--out", "c", "--quiet")
    error = refused(capsys, "class2d", "--particles", "truth_1.mrc", *words)
    assert f"is a map of {BOX} voxels a side" in error


@pytest.mark.parametrize("times", [1e9, 1e13])
def test_a_reference_of_huge_values_is_refused(scene, capsys, times) -> None:
    write_map("big.mrc", read_map("truth_1.mrc")[0] * np.float32(times), PIXEL)
    words = ("--reference", "big.mrc", "--out", "j", "--iterations", "1", "--quiet")
    assert "big.mrc: the map has values up to" in refused(
        capsys, "refine", "--particles", "truth.star", *words
    )


@pytest.mark.parametrize(
    "words",
    [
        "stack --particles v.star --out particles.star --overwrite",
        "stack --particles v.star --downsample 8 --out particles.star --overwrite",
        "project truth_1.mrc --particles v.star --out particles.mrcs --overwrite",
    ],
)
def test_images_that_are_read_are_not_written_over(scene, capsys, words) -> None:
    before = (scene / "particles.mrcs").read_bytes()
    written(scene)
    error = refused(capsys, *words.split())
    assert "particles.mrcs: holds images of" in error
    assert (scene / "particles.mrcs").read_bytes() == before


@pytest.mark.parametrize("words", ["select truth.star --share 0.5", "expand --symmetry C4"])
@pytest.mark.parametrize("name", ["x.cs", "x.mrc", "x.star.gz"])
def test_a_star_is_not_written_under_another_name(scene, capsys, words, name) -> None:
    more = ["--particles", "truth.star"] if words.startswith("expand") else []
    error = refused(capsys, *words.split(), *more, "--out", name)
    assert f"--out {name}: expected the name of a STAR file" in error
    assert not (scene / name).exists()


@pytest.mark.parametrize(("name", "there"), [("nowhere", "none"), ("truth.star", "a file")])
def test_a_data_dir_that_is_no_folder_is_refused(scene, capsys, name, there) -> None:
    words = ("--particles", "truth.star", "--out", "m.mrc", "--data-dir", name, "--quiet")
    error = refused(capsys, "reconstruct", *words)
    assert f"--data-dir {name}: expected a folder, there is {there}" in error


# --- cryoSPARC ------------------------------------------------------------------------------------


def cs(scene: Path) -> np.ndarray:
    convert(scene / "truth.star", scene / "t.cs")
    return np.load(scene / "t.cs")


def save(path: Path, data: np.ndarray) -> Path:
    with open(path, "wb") as file:
        np.save(file, data)
    return path


def only(data: np.ndarray, names: list[str]) -> np.ndarray:
    return np.array(data[names].tolist(), data[names].dtype)


def test_poses_without_shifts_are_told(scene) -> None:
    data = cs(scene)
    names = [one for one in data.dtype.names if one != "alignments3D/shift"]
    particles = load_particles(save(scene / "v.cs", only(data, names)))
    assert any("has poses and no shifts" in note for note in particles.notes)
    assert not any("no shifts" in note for note in load_particles(scene / "t.cs").notes)


def test_two_rows_of_one_uid_in_a_passthrough_file_are_refused_if_they_differ(scene) -> None:
    data = cs(scene)
    poses = [one for one in data.dtype.names if one.startswith("alignments3D")]
    rest = [one for one in data.dtype.names if one not in poses]
    save(scene / "v.cs", only(data, rest))
    through = only(data, ["uid", *poses])
    save(scene / "same.cs", np.concatenate([through, through[:3]]))
    assert load_particles("v.cs", passthrough="same.cs").has_poses
    other = through[2:3].copy()
    other["alignments3D/pose"] += 1
    save(scene / "differ.cs", np.concatenate([through, other]))
    with pytest.raises(halfmap.InputError, match=rf"rows 3 and {N + 1} have the same uid .*pose"):
        load_particles("v.cs", passthrough="differ.cs")


def test_a_job_whose_poses_lie_in_a_passthrough_file_is_done_again(scene, capsys) -> None:
    """The folder to replace holds none of its inputs: asked of the passthrough file too, which is
    no particle file, and of the particles, which need it."""
    data = cs(scene)
    images = [one for one in data.dtype.names if one.startswith("blob")]
    rest = [one for one in data.dtype.names if one not in images]
    for name, fields in (("a", rest), ("b", ["uid", *images])):
        (scene / name).mkdir()
        save(scene / name / "p.cs", only(data, fields))
    words = "--particles a/p.cs --passthrough b/p.cs --out m.mrc --threads 1 --quiet --overwrite"
    for _ in range(2):
        code, error = told(capsys, "reconstruct", *words.split())
        assert code == 0, error


@pytest.mark.parametrize(
    ("column", "field"),
    [
        ("rlnCtfMaxResolution", "ctf/ctf_fit_to_A"),
        ("rlnAutopickFigureOfMerit", "pick_stats/ncc_score"),
        ("rlnLogLikeliContribution", "alignments3D/error"),
    ],
)
def test_a_figure_that_is_none_goes_on_as_none(scene, capsys, column, field) -> None:
    values = [1.5, "nan", "inf"] * (N // 3)
    written(scene, **{column: values})
    code, error = told(capsys, "convert", "v.star", "v.cs")
    assert code == 0, error
    expected = np.array(values, float)
    found = np.abs(np.load("v.cs")[field])
    np.testing.assert_array_equal(found, expected.astype(np.float32))


@pytest.mark.parametrize("voltage", [0.0, np.nan, -300.0])
def test_a_voltage_that_cannot_be_is_one_line(scene, capsys, voltage) -> None:
    """And no warning of a division beside it."""
    data = cs(scene)
    data["ctf/accel_kv"][4] = voltage
    save(scene / "v.cs", data)
    error = refused(capsys, "reconstruct", "--particles", "v.cs", "--out", "m.mrc", "--quiet")
    assert "row 5, column _rlnVoltage" in error


def test_a_cs_file_that_is_none_is_refused_in_words_of_the_user(scene, capsys) -> None:
    (scene / "v.cs").write_bytes(b"<html>")
    error = refused(capsys, "info", "v.cs")
    assert "pickle" not in error
    assert "v.cs: is not a cryoSPARC .cs file" in error


def renamed(scene: Path, old: str, new: str) -> Path:
    """`v.star`: that of the truth with another name for a column."""
    text = (scene / "truth.star").read_text(encoding="utf-8")
    assert f"_{old} " in text
    (scene / "v.star").write_text(text.replace(f"_{old} ", f"_{new} "), encoding="utf-8")
    return scene / "v.star"


@pytest.mark.parametrize(
    ("written", "right"),
    [
        ("rlnimagename", "rlnImageName"),
        ("rlnDefocusu", "rlnDefocusU"),
        ("rlnPhaseshift", "rlnPhaseShift"),
        ("RLNBeamTiltX", "rlnBeamTiltX"),
    ],
)
def test_a_column_in_other_upper_case_is_not_passed_over(scene, capsys, written, right) -> None:
    """Unread in silence, half sets and phases would be lost."""
    star = renamed(scene, right, written)
    line = refused(capsys, "reconstruct", "--particles", str(star), "--out", "m.mrc")
    assert f"column _{written} of data_" in line
    assert f"RELION writes it _{right}" in line


def test_a_lost_optics_table_is_what_is_said(scene, capsys) -> None:
    blocks = read_star(scene / "truth.star").blocks
    write_star(scene / "v.star", {"particles": blocks["particles"]})
    line = refused(capsys, "reconstruct", "--particles", "v.star", "--out", "m.mrc")
    assert "missing _rlnVoltage" in line
    assert "they belong into the optics table (data_optics), which is not there" in line


def test_numbers_from_0_are_refused_with_the_way_out(scene, capsys) -> None:
    star = written(scene, rlnImageName=[f"{i:06d}@particles.mrcs" for i in range(N)])
    line = refused(capsys, "info", str(star))
    assert "row 1" in line
    assert "counts from 0, add 1 to all" in line


FILES = {  # as other programs write them, and whose they are
    "a.par": ("C   PSI   THETA     PHI\n      1   10.00   20.00\n", "FREALIGN"),
    "a.star": ("data_\n\nloop_\n_cisTEMPositionInStack #1\n_cisTEMAnglePsi #2\n1 10.0\n", "cisTEM"),
    "a.lst": ("#LSX\n# comment\n# line\n0 p.hdf\n", "EMAN2"),
    "a.tbl": ("1 1 1 0 0 0 10 20 30\n", "Dynamo"),
    "a.xmd": (
        "# XMIPP_STAR_1 *\ndata_noname\nloop_\n _itemId\n _image\n 1 000001@p.stk\n",
        "Xmipp",
    ),
    "a.csg": ("created: 2024\ngroup:\n  name: particles\n", "cryoSPARC"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_other_programs_are_known(scene, capsys, name) -> None:
    text, program = FILES[name]
    (scene / name).write_text(text, encoding="utf-8")
    commands = [("reconstruct", "--particles", name, "--out", "m.mrc"), ("convert", name, "b.cs")]
    if name != "a.star":  # whose blocks and columns are shown
        commands.append(("info", name))
    for words in commands:
        assert program in refused(capsys, *words), words
    assert not (scene / "b.cs").exists()


def test_a_stack_of_another_program_is_known(scene, capsys) -> None:
    (scene / "p.hdf").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(4000))
    star = written(scene, rlnImageName=[f"{i + 1:06d}@p.hdf" for i in range(N)])
    assert "a stack of EMAN2" in refused(
        capsys, "reconstruct", "--particles", str(star), "--out", "m.mrc"
    )


def test_defocus_in_micrometres_is_refused(scene, capsys) -> None:
    """In silence, it would be a set without CTF: its map agrees to 0.77 with the right one."""
    table = read_star(scene / "truth.star").blocks["particles"]
    small = {name: table.floats(name) / 1e4 for name in ("rlnDefocusU", "rlnDefocusV")}
    star = written(scene, **small)
    line = refused(capsys, "reconstruct", "--particles", str(star), "--out", "m.mrc")
    assert "as of micrometres; multiply both columns by 10,000" in line


def test_other_signs_and_units_are_told(scene) -> None:
    table = read_star(scene / "truth.star").blocks["particles"]
    assert load_particles("truth.star").notes == ()
    over = {name: -table.floats(name) for name in ("rlnDefocusU", "rlnDefocusV")}
    (note,) = load_particles(written(scene, **over)).notes
    assert "24 of 24 images have a negative defocus, which is overfocus" in note
    for factor in (0.0, 1e-4):  # not found, or in micrometres
        some = table.floats("rlnDefocusU") * np.where(np.arange(N) == 4, factor, 1)
        (note,) = load_particles(written(scene, rlnDefocusU=some, rlnDefocusV=some)).notes
        assert "1 of 24 images have a defocus of less than 20 A, for example row 5" in note
    names = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
    turned = {name: np.radians(table.floats(name)) for name in names}
    (note,) = load_particles(written(scene, **turned)).notes
    assert "these look like radians" in note
    assert not load_particles(written(scene, rlnPhaseShift=[90.0] * N)).notes
    plate = load_particles(written(scene, rlnPhaseShift=[np.pi / 2] * N))
    assert "no _rlnPhaseShift exceeds 2 pi: degrees are expected" in plate.notes[0]
    angles = np.linspace(0, 170, N)
    assert not load_particles(written(scene, rlnDefocusAngle=angles)).notes
    astigmatic = load_particles(written(scene, rlnDefocusAngle=np.radians(angles)))
    assert "no _rlnDefocusAngle exceeds 2 pi" in astigmatic.notes[0]


def test_images_with_nan_are_told_where_a_stack_is_written(scene) -> None:
    images = load_particles("truth.star").images(np.arange(N)).copy()
    images[3, 5, 5] = np.nan
    write_stack(scene / "bad.mrcs", images, PIXEL)
    star = written(scene, rlnImageName=[f"{i + 1:06d}@bad.mrcs" for i in range(N)])
    done = halfmap.stack(star, scene / "new.star", downsample=20)
    assert done.broken == (4,)
    assert "1 image with NaN or infinite pixels, for example row 4" in done.summary
    whole = halfmap.stack(scene / "truth.star", scene / "whole.star", downsample=20)
    assert "NaN" not in whole.summary


def test_links_to_a_stack_are_the_same_images(scene, capsys) -> None:
    """The halves of a set that names its stack in two ways share no image."""
    (scene / "link.mrcs").symlink_to("particles.mrcs")
    table = read_star(scene / "truth.star").blocks["particles"]
    twice = table.take(np.repeat(np.arange(N), 2))
    names = [f"{i // 2 + 1:06d}@{'particles' if i % 2 else 'link'}.mrcs" for i in range(2 * N)]
    blocks = dict(read_star(scene / "truth.star").blocks)
    write_star(
        scene / "v.star", blocks | {"particles": twice.with_columns({"rlnImageName": names})}
    )
    assert halfmap.select(scene / "v.star", scene / "one.star", unique=True).kept == N


def test_a_header_of_another_pixel_size_and_far_origins_are_told(scene) -> None:
    (note,) = load_particles(written(scene, optics={"rlnImagePixelSize": [2 * PIXEL]})).notes
    assert "of 24 of 24 images are 16 A by the columns, which count, and 8 A by the header" in note
    shifts = read_star(scene / "truth.star").blocks["particles"].floats("rlnOriginXAngst").copy()
    shifts[5] = 500.0
    (note,) = load_particles(written(scene, rlnOriginXAngst=shifts)).notes
    assert "1 of 24 particles have an origin outside" in note
    assert "row 6: 500 A from the middle of 192 A" in note


def test_what_holds_no_particles_says_what_it_holds(scene, capsys) -> None:
    rows = np.zeros(
        3, [("uid", "<u8"), ("micrograph_blob/path", "S20"), ("mscope_params/x", "<f4")]
    )
    with open(scene / "exposures.cs", "wb") as file:
        np.save(file, rows)
    line = refused(capsys, "reconstruct", "--particles", "exposures.cs", "--out", "m.mrc")
    assert "holds micrographs, no particles" in line
    (scene / "job").mkdir()
    write_star(scene / "job" / "particles.star", read_star(scene / "truth.star").blocks)
    line = refused(capsys, "reconstruct", "--particles", "job", "--out", "m.mrc")
    assert "give the file in it, job/particles.star" in line


@pytest.mark.parametrize("by", ["size", "magnification"])
def test_one_table_of_two_pixel_sizes_keeps_both(scene, capsys, by) -> None:
    """Converted, the second size was lost: all particles were of the first."""
    blocks = read_star(scene / "truth.star").blocks
    sizes = np.repeat([PIXEL, 1.1 * PIXEL], N // 2)
    columns = {"rlnVoltage": [300.0] * N, "rlnSphericalAberration": [2.7] * N}
    columns |= {"rlnAmplitudeContrast": [0.1] * N}
    if by == "size":
        columns["rlnImagePixelSize"] = sizes
    else:
        columns |= {"rlnDetectorPixelSize": [5.0] * N, "rlnMagnification": 5e4 / sizes}
    table = blocks["particles"].without("rlnOpticsGroup").with_columns(columns)
    write_star(scene / "old.star", {"": table})
    assert told(capsys, "convert", "old.star", "new.star")[0] == 0
    assert told(capsys, "convert", "new.star", "p.cs")[0] == 0
    for name in ("old.star", "new.star", "p.cs"):
        data = load_particles(name)
        found = np.array([grid.pixel_size_angstrom for grid in data.grids])[data.stored]
        np.testing.assert_allclose(found, sizes, rtol=1e-5)
