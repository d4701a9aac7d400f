"""The data set: what is read from each dialect, images in the asked order, bad input told in one
line."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

from halfmap.ctf_parameters import CTFParameters, quantities
from halfmap.errors import InputError
from halfmap.io.stack_writer import write_stack
from halfmap.io.star import read_star, write_star
from halfmap.io.table import Table
from halfmap.particles import Particles, load_particles
from halfmap.transfer_function import ctf, evaluate, rfft2_frequencies

N = 8
OPTICS = {
    "rlnOpticsGroup": [3, 7],
    "rlnOpticsGroupName": ["a", "b"],
    "rlnVoltage": [300.0, 200.0],
    "rlnSphericalAberration": [2.7, 2.0],
    "rlnAmplitudeContrast": [0.1, 0.07],
    "rlnImagePixelSize": [1.5, 1.5],
    "rlnImageSize": [N, N],
    "rlnCtfDataAreCtfPremultiplied": [0, 1],
    "rlnBeamTiltX": [0.25, -0.5],
}
PARTICLES = {
    "rlnImageName": ["2@one.mrcs", "000001@sub/two.mrcs", "1@one.mrcs", "3@sub/two.mrcs"],
    "rlnMicrographName": ["m2", "m1", "m2", "m3"],
    "rlnDefocusU": [10000.0, 11000.0, 12000.0, 13000.0],
    "rlnDefocusV": [10500.0, 11500.0, 12500.0, 13500.0],
    "rlnDefocusAngle": [10.0, 20.0, 30.0, 40.0],
    "rlnPhaseShift": [0.0, 90.0, 0.0, 0.0],
    "rlnOpticsGroup": [7, 3, 7, 3],
    "rlnAngleRot": [1.0, 2.0, 3.0, 4.0],
    "rlnAngleTilt": [5.0, 6.0, 7.0, 8.0],
    "rlnAnglePsi": [9.0, 10.0, 11.0, 12.0],
    "rlnOriginXAngst": [1.0, -1.0, 0.0, 0.5],
    "rlnOriginYAngst": [2.0, -2.0, 0.0, 1.5],
    "rlnRandomSubset": [1, 2, 1, 2],
    "rlnClassNumber": [1, 1, 2, 3],
    "myColumn": ["kept", "as it", "is", ""],
}


@pytest.fixture
def stacks():
    random = np.random.default_rng(0)
    return {
        "one.mrcs": random.normal(size=(2, N, N)).astype(np.float32),
        "sub/two.mrcs": random.normal(size=(3, N, N)).astype(np.float32),
    }


@pytest.fixture
def folder(tmp_path, stacks):
    (tmp_path / "sub").mkdir()
    for name, images in stacks.items():
        write_stack(tmp_path / name, images, 1.5)
    return tmp_path


def save(folder, *, optics=OPTICS, name="p.star", drop=(), **changes):
    """STAR of the tables above with columns changed or dropped."""
    columns = {key: values for key, values in {**PARTICLES, **changes}.items() if key not in drop}
    blocks = {"particles": Table.from_columns(columns)}
    if optics is not None:
        blocks["optics"] = Table.from_columns(
            {key: values for key, values in optics.items() if key not in drop}
        )
    write_star(folder / name, blocks)
    return folder / name


def test_every_column_arrives_with_its_unit(folder):
    p = load_particles(save(folder))
    assert (len(p), p.box, p.pixel_size_angstrom, p.has_poses, p.has_ctf, p.notes) == (
        4,
        N,
        1.5,
        True,
        True,
        (),
    )
    np.testing.assert_array_equal(p.rotations_deg[1], [2, 6, 10])
    np.testing.assert_array_equal(p.shift_angstrom[3], [0.5, 1.5])
    assert p.class_number.tolist() == [1, 1, 2, 3]
    assert p.half_set.tolist() == [1, 2, 1, 2]
    assert p.optics_group.tolist() == [
        1,
        0,
        1,
        0,
    ]  # rows of the optics table, whatever the groups are called
    assert p.micrograph.tolist() == [0, 1, 0, 2]
    assert p.transfer.premultiplied.tolist() == [True, False, True, False]
    assert p.transfer.voltage_kv.tolist() == [200, 300, 200, 300]
    assert p.transfer.beam_tilt_x_mrad.tolist() == [-0.5, 0.25, -0.5, 0.25]
    assert p.transfer.phase_shift_deg.tolist() == [0, 90, 0, 0]
    assert (p.transfer.scale.tolist(), p.transfer.bfactor_angstrom2.tolist()) == ([1] * 4, [0] * 4)
    assert p.table.strings("myColumn").tolist() == PARTICLES["myColumn"]


def test_images_come_in_the_asked_order(folder, stacks):
    p = load_particles(save(folder))
    expected = np.stack(
        [
            stacks["one.mrcs"][1],
            stacks["sub/two.mrcs"][0],
            stacks["one.mrcs"][0],
            stacks["sub/two.mrcs"][2],
        ]
    )
    for order in ([0, 1, 2, 3], [3, 1, 1, 0], [2], []):
        images = p.images(np.array(order, int))
        assert images.dtype == np.float32
        np.testing.assert_array_equal(images, expected[order])
    np.testing.assert_array_equal(p.images(np.array([True, False, False, True])), expected[[0, 3]])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(p)).images([2]), expected[[2]])


def test_take_commutes_with_everything(folder):
    p = load_particles(save(folder)).with_results(
        extra={"rlnMaxValueProbDistribution": np.array([0.1, 0.2, 0.3, 0.4])}
    )
    rows = np.array([3, 0])
    q = p.take(rows)
    np.testing.assert_array_equal(q.images([0, 1]), p.images(rows))
    for name in ("rotations_deg", "half_set", "optics_group"):
        np.testing.assert_array_equal(getattr(q, name), getattr(p, name)[rows])
    for one in quantities():
        expected = getattr(p.transfer, one.name)[rows]
        np.testing.assert_array_equal(getattr(q.transfer, one.name), expected)
    assert q.table.strings("myColumn").tolist() == ["", "kept"]
    q.write_star(folder / "q.star")
    assert read_star(folder / "q.star").blocks["particles"].floats(
        "rlnMaxValueProbDistribution"
    ).tolist() == [0.4, 0.1]
    assert len(p.take(p.half_set == 1)) == 2


def test_results_are_written_and_read_back(folder):
    p = load_particles(save(folder))
    random = np.random.default_rng(1)
    rotations, shift = random.uniform(-180, 180, (4, 3)), random.normal(size=(4, 2))
    q = p.with_results(
        rotations_deg=rotations,
        shift_angstrom=shift,
        class_number=np.array([4, 3, 2, 1]),
        half_set=np.array([2, 1, 2, 1]),
    )
    np.testing.assert_array_equal(p.rotations_deg[0], [1, 5, 9])  # the old data set is what it was
    q.write_star(folder / "q.star")
    r = load_particles(folder / "q.star")
    np.testing.assert_allclose(r.rotations_deg, rotations, atol=1e-6)
    np.testing.assert_allclose(r.shift_angstrom, shift, atol=1e-6)
    assert (r.class_number.tolist(), r.half_set.tolist()) == ([4, 3, 2, 1], [2, 1, 2, 1])
    before, after = (read_star(folder / name).blocks["particles"] for name in ("p.star", "q.star"))
    assert after.names == before.names
    for name in ("rlnImageName", "rlnDefocusU", "myColumn", "rlnMicrographName"):
        assert [after.cells(name).raw(i) for i in range(4)] == [
            before.cells(name).raw(i) for i in range(4)
        ]
    with pytest.raises(
        InputError,
        match=r"column rlnFoo: expected one value for each of 4 particles, shape \(3,\) arrived",
    ):
        p.with_results(extra={"rlnFoo": np.zeros(3)})


def test_old_dialect_becomes_optics_groups(folder):
    columns = {
        "rlnVoltage": [300.0] * 4,
        "rlnSphericalAberration": [2.7] * 4,
        "rlnAmplitudeContrast": [0.1, 0.1, 0.07, 0.1],
        "rlnMagnification": [50000.0] * 4,
        "rlnDetectorPixelSize": [10.0] * 4,
        "rlnOriginX": [1.0, 2.0, 3.0, 4.0],
        "rlnOriginY": [0.0] * 4,
    }
    path = save(
        folder,
        optics=None,
        drop=("rlnOpticsGroup", "rlnOriginXAngst", "rlnOriginYAngst"),
        **columns,
    )
    p = load_particles(path)
    assert p.pixel_size_angstrom == 2.0  # 10 um / 50000
    assert p.shift_angstrom[:, 0].tolist() == [2, 4, 6, 8]
    p.write_star(folder / "new.star")
    q = load_particles(folder / "new.star")
    assert sorted(q.optics.floats("rlnAmplitudeContrast").tolist()) == [0.07, 0.1]
    assert q.optics.ints("rlnImageSize").tolist() == [N, N]
    np.testing.assert_array_equal(q.transfer.amplitude_contrast, p.transfer.amplitude_contrast)
    np.testing.assert_array_equal(q.shift_angstrom, p.shift_angstrom)
    moved = p.with_results(shift_angstrom=np.ones((4, 2)))
    moved.write_star(folder / "moved.star")
    assert load_particles(folder / "moved.star").shift_angstrom.tolist() == [[1, 1]] * 4


def test_no_ctf_no_poses(folder):
    drop = [name for name in PARTICLES if name not in ("rlnImageName", "rlnOpticsGroup")]
    p = load_particles(save(folder, drop=drop))
    assert (p.has_ctf, p.has_poses) == (False, False)
    assert not p.rotations_deg.any()
    assert (p.class_number.tolist(), p.half_set.tolist(), p.micrograph.tolist()) == (
        [1] * 4,
        [0] * 4,
        [0] * 4,
    )
    incomplete = save(folder, drop=("rlnVoltage",))
    assert not load_particles(incomplete, use_ctf=False).has_ctf


def test_where_stacks_are_looked_for(folder, monkeypatch, tmp_path_factory):
    """Beside the STAR, in the working directory, in --data-dir (whole name or bare), in parents of
    the STAR; cryoSPARC's '>' dropped."""
    expected = load_particles(save(folder)).images([0, 1])
    job = folder / "Refine3D" / "job001"
    job.mkdir(parents=True)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    np.testing.assert_array_equal(load_particles(save(job)).images([0, 1]), expected)  # parents
    star = save(elsewhere)
    with pytest.raises(
        InputError,
        match=r"row 1: image file one.mrcs was not found; looked in .*elsewhere.*--data-dir",
    ) as caught:
        load_particles(star)
    assert str(Path.cwd()) in str(caught.value)
    np.testing.assert_array_equal(load_particles(star, data_dir=folder).images([0, 1]), expected)
    flat = tmp_path_factory.mktemp("flat")
    for path in (folder / "one.mrcs", folder / "sub" / "two.mrcs"):
        (flat / path.name).write_bytes(path.read_bytes())
    np.testing.assert_array_equal(load_particles(star, data_dir=flat).images([0, 1]), expected)
    monkeypatch.chdir(folder)
    np.testing.assert_array_equal(load_particles(star).images([0, 1]), expected)
    names = [name.replace("@", "@>") for name in PARTICLES["rlnImageName"]]
    np.testing.assert_array_equal(
        load_particles(save(elsewhere, rlnImageName=names)).images([0, 1]), expected
    )
    assert (
        load_particles(save(folder, rlnImageName=["1@none.mrcs"] * 4), check_images=False).box == N
    )


def test_written_names_resolve_from_the_new_place(folder, monkeypatch, tmp_path_factory):
    p = load_particles(save(folder))
    elsewhere = tmp_path_factory.mktemp("out")
    p.write_star(elsewhere / "a.star")  # would not be found: absolute now
    assert (
        read_star(elsewhere / "a.star").blocks["particles"].strings("rlnImageName")[1]
        == f"000001@{folder / 'sub' / 'two.mrcs'}"
    )
    np.testing.assert_array_equal(
        load_particles(elsewhere / "a.star").images([0, 1]), p.images([0, 1])
    )
    monkeypatch.chdir(folder)
    p.write_star(elsewhere / "b.star")  # RELION's project directory: to the letter
    assert (
        read_star(elsewhere / "b.star").blocks["particles"].strings("rlnImageName").tolist()
        == PARTICLES["rlnImageName"]
    )
    (elsewhere / "one.mrcs").write_bytes(
        (folder / "one.mrcs").read_bytes()
    )  # another stack of that name lies beside the new file
    p.write_star(elsewhere / "c.star")
    assert (
        read_star(elsewhere / "c.star").blocks["particles"].strings("rlnImageName")[0]
        == f"000002@{folder / 'one.mrcs'}"
    )
    spaced = tmp_path_factory.mktemp("with space")
    write_stack(spaced / "one.mrcs", np.zeros((2, N, N), np.float32), 1.5)
    q = load_particles(
        save(elsewhere, name="d.star", rlnImageName=["1@one.mrcs"] * 4), data_dir=spaced
    )
    q.write_star(folder / "d.star")
    assert load_particles(folder / "d.star").stack_paths == (spaced / "one.mrcs",)


def test_bare_stack(folder):
    p = Particles.from_stack(folder / "one.mrcs")
    assert (len(p), p.box, p.pixel_size_angstrom, p.has_ctf, p.has_poses) == (
        2,
        N,
        1.5,
        False,
        False,
    )
    assert "MRC header" in p.notes[0]
    assert (
        Particles.from_stack(folder / "one.mrcs", pixel_size_angstrom=3.0).pixel_size_angstrom
        == 3.0
    )
    assert len(load_particles(folder / "one.mrcs")) == 2
    write_stack(folder / "bare.mrcs", np.zeros((1, N, N)), 0.0)
    with pytest.raises(InputError, match="no pixel size"):
        Particles.from_stack(folder / "bare.mrcs")
    p.write_star(folder / "bare.star")
    assert load_particles(folder / "bare.star").pixel_size_angstrom == 1.5


def test_bad_images_are_found_and_good_ones_are_not(tmp_path):
    random = np.random.default_rng(0)
    images = random.normal(size=(12, 32, 32)).astype(np.float32)
    y, x = np.indices((32, 32)) - 16
    images[1, 3, 3] = np.nan
    images[2, 3, 3] = np.inf
    images[3] = 5.0
    images[4, 10, 11] = 1e4
    images[5, 0, :3] = -300
    images[6] = np.exp(-(x**2 + y**2) / (2 * 5.0**2))  # noise-free particle
    images[7] += 20 * images[6]  # strong particle
    images[8] = random.poisson(1.0, (32, 32))  # counts
    images[9] *= 1e-20
    images[10] += 1e5
    write_stack(tmp_path / "a.mrcs", images, 1.0)
    found = Particles.from_stack(tmp_path / "a.mrcs").examine_images(np.arange(12))
    bad = found.bad
    assert {row: len(hot) for row, hot in found.hot.items()} == {4: 1, 5: 3}
    assert sorted(bad) == [1, 2, 3]
    assert "1 NaN or infinite" in bad[1]
    assert "constant" in bad[3]


def change(name, row, value):
    values = [str(v) for v in PARTICLES[name]]
    values[row] = value
    return {name: values}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"rlnImageName": ["1@one.mrcs", "3@one.mrcs"] * 2},
            r"row 2, column _rlnImageName: asks for image 3 .* holds 2",
        ),
        (
            {"rlnImageName": ["one.mrcs"] * 4},
            r"row 1, .*one.mrcs holds 2 images and the name gives no index; expected index@one.mrcs",
        ),
        (
            {"rlnImageName": ["0@one.mrcs"] * 4},
            "row 1, column _rlnImageName: expected a 1-based index",
        ),
        (
            {"rlnImageName": ["1@one.mrcs", ""] * 2},
            "row 2, column _rlnImageName: the image name is empty",
        ),
        (
            {"rlnImageName": ["1@one.mrcs", "x@one.mrcs"] * 2},
            "row 2, column _rlnImageName: expected a 1-based index",
        ),
        (
            {"rlnImageName": ["1@none.mrcs"] * 4},
            r"row 1: image file none.mrcs was not found; looked in",
        ),
        (
            change("rlnDefocusU", 2, "abc"),
            r"row 3 \(line \d+\), column _rlnDefocusU: expected a number, found 'abc'",
        ),
        (
            change("rlnDefocusV", 1, "nan"),
            r"row 2 \(line \d+\), column _rlnDefocusV: expected a finite number, found nan",
        ),
        (
            change("rlnAngleTilt", 3, "inf"),
            r"row 4 \(line \d+\), column _rlnAngleTilt: expected a finite number",
        ),
        (
            change("rlnRandomSubset", 3, "3"),
            r"row 4 \(line \d+\), column _rlnRandomSubset: expected half set 1 or 2, found 3",
        ),
        (
            change("rlnOpticsGroup", 1, "9"),
            r"row 2 \(line \d+\), column _rlnOpticsGroup: optics group 9 is not in the optics table",
        ),
        ({"drop": ("rlnDefocusV",)}, "the CTF is incomplete: missing _rlnDefocusV"),
        (
            {"drop": ("rlnVoltage", "rlnAmplitudeContrast")},
            "missing _rlnVoltage, _rlnAmplitudeContrast",
        ),
        (
            {"drop": ("rlnImageName",)},
            "no table has the column _rlnImageName; blocks found: data_particles, data_optics",
        ),
        ({"drop": ("rlnOpticsGroup",), "optics": None}, "missing _rlnVoltage"),
        ({"optics": {**OPTICS, "rlnImagePixelSize": [0.0, 1.6]}}, "expected more than 0"),
        (
            {"optics": {**OPTICS, "rlnImageSize": [N, 16]}},
            "says _rlnImageSize 16, the stack has 8 pixels",
        ),
    ],
)
def test_bad_tables_are_refused_in_one_line(folder, arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        load_particles(save(folder, **arguments))
    assert "\n" not in str(caught.value)
    assert "p.star" in str(caught.value)


def test_bad_stacks_are_refused_in_one_line(folder):
    star = save(folder)
    with mrcfile.open(folder / "one.mrcs") as file:
        images = file.data.copy()
    write_stack(folder / "one.mrcs", np.zeros((2, N + 2, N + 2)), 1.5)
    with pytest.raises(InputError, match=r"one size is needed|says _rlnImageSize"):
        load_particles(star)
    write_stack(folder / "one.mrcs", np.zeros((2, N, N + 2)), 1.5)
    with pytest.raises(InputError, match=r"row 1: images of .*one.mrcs are 10 x 8 pixels; square"):
        load_particles(star)
    write_stack(folder / "one.mrcs", images, 1.5)
    os.truncate(folder / "one.mrcs", 1100)
    with pytest.raises(
        InputError,
        match=r"one.mrcs: is truncated: its header asks for 1536 bytes, the file has 1100",
    ):
        load_particles(star)


def test_missing_pixel_size_and_zero_particles(folder):
    star = save(folder, drop=("rlnImagePixelSize",))
    p = load_particles(star)  # the header knows
    assert p.pixel_size_angstrom == 1.5
    assert "MRC header" in p.notes[0]
    for name in ("one.mrcs", "sub/two.mrcs"):
        write_stack(folder / name, np.ones((3, N, N)), 0.0)
    with pytest.raises(InputError, match=r"p.star: no pixel size: no column _rlnImagePixelSize"):
        load_particles(star)
    (folder / "none.star").write_text("data_particles\nloop_\n_rlnImageName\n")
    with pytest.raises(
        InputError, match=r"none.star: the particle table data_particles has no rows"
    ):
        load_particles(folder / "none.star")


@pytest.mark.shared
def test_real_data_sets(shared_data, tmp_path):
    p = load_particles(shared_data / "real_ribosome" / "deposited_poses.star")
    assert (len(p), p.box, p.pixel_size_angstrom, p.has_ctf, p.has_poses) == (
        1430,
        32,
        12.0,
        True,
        True,
    )
    assert p.transfer.premultiplied.all()
    assert len(p.optics) == 4
    assert set(p.half_set.tolist()) == {1, 2}
    assert p.find_bad_images(np.arange(len(p))) == {}
    p.write_star(tmp_path / "copy.star")
    np.testing.assert_array_equal(
        load_particles(tmp_path / "copy.star").images([5, 1429]), p.images([5, 1429])
    )

    old = load_particles(
        shared_data / "images" / "empiar_10076_7.star"
    )  # RELION 3.0: 5 um at 38168
    assert old.pixel_size_angstrom == pytest.approx(1.31, abs=1e-4)
    assert (old.box, len(old)) == (320, 7)

    for name in ("relion31.star", "relion31.v2.star"):  # optics before and after the particles
        new = load_particles(shared_data / "star" / name, data_dir=shared_data / "images")
        assert (new.box, new.pixel_size_angstrom, len(new)) == (256, 2.806, 5)
        assert new.find_bad_images(np.arange(5)) == {}

    averages = Particles.from_stack(
        shared_data / "images" / "mixture_2D.mrcs", pixel_size_angstrom=2.0
    )
    assert (len(averages), averages.box) == (100, 96)
    assert averages.find_bad_images(np.arange(100)) == {}


@pytest.mark.shared
def test_files_that_are_not_particles(shared_data):
    for name in (
        "postprocess.star",
        "default_pipeline.star",
        "run_it025_optimiser_3D.star",
        "two_basic_blocks.star",
        "empty_loop.star",
    ):
        with pytest.raises(
            InputError, match=r"no table has the column _rlnImageName; blocks found: data_"
        ):
            load_particles(shared_data / "star" / name)
    with pytest.raises(InputError, match="2 tables have the column _rlnImageName"):
        load_particles(shared_data / "star" / "rln3.1_data_style.star")


# --- the transfer function of a data set ----------------------------------------------------------


def test_a_short_repr(folder):
    path = save(folder)
    assert repr(load_particles(path)) == (
        f"Particles(4 images of 8 pixels, 1.5 A, CTF, poses: {path})"
    )
    bare = repr(Particles.from_stack(folder / "one.mrcs"))
    assert bare == f"Particles(2 images of 8 pixels, 1.5 A, no CTF, no poses: {folder}/one.mrcs)"


def _text(path: Path, block: str, name: str) -> list[str]:
    return read_star(path).blocks[block].strings(name).tolist()


def test_a_new_transfer_function_is_written_where_relion_keeps_it(folder):
    source = save(folder, optics=OPTICS | {"rlnVoltage": ["300", "200.00"]})
    p = load_particles(source)
    defocus = p.transfer.defocus_u_angstrom + np.array([0, 0, 250.5, 0])
    tilt = np.array([0.75, 1.5, 0.75, 1.5])  # one in each optics group
    new = replace(
        p.transfer, defocus_u_angstrom=defocus, beam_tilt_x_mrad=tilt, bfactor_angstrom2=40.0
    )
    q = p.with_transfer(new)
    assert p.transfer.defocus_u_angstrom[2] == 12000  # nothing changes in place
    q.with_results(class_number=np.ones(4)).write_star(folder / "new.star")
    assert _text(folder / "new.star", "particles", "rlnDefocusU")[2] == "12250.500000"
    assert _text(folder / "new.star", "optics", "rlnVoltage") == ["300", "200.00"]  # untouched text
    assert _text(folder / "new.star", "optics", "rlnBeamTiltX") == ["1.500000", "0.750000"]
    assert _text(folder / "new.star", "particles", "myColumn") == PARTICLES["myColumn"]
    again = load_particles(folder / "new.star")
    for one in quantities():
        expected = getattr(q.transfer, one.name)
        np.testing.assert_array_equal(getattr(again.transfer, one.name), expected, one.name)
    assert again.transfer.bfactor_angstrom2.tolist() == [40] * 4

    # a value of each particle's own cannot stand in the optics table
    single = p.with_transfer(replace(p.transfer, beam_tilt_x_mrad=[0.1, 0.2, 0.3, 0.4]))
    single.write_star(folder / "single.star")
    assert "rlnBeamTiltX" not in read_star(folder / "single.star").blocks["optics"]
    again = load_particles(folder / "single.star")
    assert again.transfer.beam_tilt_x_mrad.tolist() == [0.1, 0.2, 0.3, 0.4]


def test_particles_of_the_old_layout_get_an_optics_group_for_each_new_microscope(folder):
    columns = {name: [values[0]] * 4 for name, values in OPTICS.items() if "Voltage" not in name}
    columns |= {"rlnVoltage": [300.0] * 4}
    path = save(folder, optics=None, drop=("rlnOpticsGroup", "rlnOpticsGroupName"), **columns)
    p = load_particles(path)
    q = p.with_transfer(replace(p.transfer, voltage_kv=[300.0, 200.0, 300.0, 200.0]))
    q.write_star(folder / "new.star")
    again = load_particles(folder / "new.star")
    assert again.optics.floats("rlnVoltage")[again.optics_group].tolist() == [300, 200, 300, 200]
    np.testing.assert_array_equal(again.transfer.voltage_kv, q.transfer.voltage_kv)


def test_the_ctfs_columns_are_no_results(folder):
    with pytest.raises(InputError, match=r"rlnDefocusU.*with_transfer"):
        load_particles(save(folder)).with_results(extra={"rlnDefocusU": np.zeros(4)})


def test_parameters_that_went_through_float32_leave_the_file_as_it_was(folder):
    p = load_particles(save(folder))
    p.write_star(folder / "old.star")
    q = p.with_transfer(p.transfer.to("cpu"))
    q.write_star(folder / "new.star")
    assert (folder / "new.star").read_bytes() == (folder / "old.star").read_bytes()
    np.testing.assert_array_equal(q.transfer.amplitude_contrast, p.transfer.amplitude_contrast)


@pytest.mark.parametrize("use_ctf", [True, False])
def test_a_data_set_without_a_ctf_is_given_one(folder, use_ctf):
    """Columns that were there and not looked at are replaced as well."""
    drop = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle") if use_ctf else ()
    p = load_particles(save(folder, drop=drop), use_ctf=use_ctf)
    assert not p.has_ctf
    given = CTFParameters(defocus_u_angstrom=9000.0, defocus_v_angstrom=np.arange(4) + 8000.0)
    p.with_transfer(given).write_star(folder / "new.star")
    q = load_particles(folder / "new.star")
    assert q.has_ctf
    assert q.transfer.defocus_u_angstrom.tolist() == [9000] * 4
    assert q.transfer.defocus_v_angstrom.tolist() == [8000, 8001, 8002, 8003]
    assert q.transfer.voltage_kv.tolist() == [300] * 4
    assert q.transfer.phase_shift_deg.tolist() == [0] * 4


def test_without_a_transfer_function_no_program_finds_a_ctf(folder):
    p = load_particles(save(folder)).with_transfer(None)
    assert not p.has_ctf
    p.write_star(folder / "new.star")
    q = load_particles(folder / "new.star")
    assert not q.has_ctf
    assert not q.transfer.premultiplied.any()
    assert q.optics.floats("rlnVoltage").tolist() == [300, 200]  # the microscope is what it was


def test_wrong_transfer_functions_are_refused_by_row_and_column(folder):
    p = load_particles(save(folder))
    with pytest.raises(InputError, match="each of 4 images, 3 arrived"):
        p.with_transfer(p.transfer.take([0, 1, 2]))
    with pytest.raises(InputError, match=r"p.star: row 3, column _rlnAmplitudeContrast.*found 1.5"):
        p.with_transfer(replace(p.transfer, amplitude_contrast=[0.1, 0.1, 1.5, 0.1]))
    path = save(folder, optics=OPTICS | {"rlnAmplitudeContrast": [0.1, 7.0]})
    with pytest.raises(InputError, match=r"row 1, column _rlnAmplitudeContrast.*0 to 1.*found 7"):
        load_particles(path)
    load_particles(path, use_ctf=False)


def test_an_image_and_its_ctf_are_looked_at_by_number(folder):
    """The object comes back in its right phases; `ctf` is the formula on the grid of rfft2."""
    p = load_particles(save(folder, drop=("rlnCtfDataAreCtfPremultiplied",)))
    transfer = p.ctf(1)
    assert (transfer.shape, transfer.dtype) == ((N, N // 2 + 1), np.float32)
    k = np.fft.rfftfreq(N, 1.5)
    expected = ctf(p.transfer.take([1]), k, 0 * k)[0]
    np.testing.assert_allclose(transfer[0], expected, atol=1e-5)
    tilted = p.with_transfer(replace(p.transfer, beam_tilt_x_mrad=8.0, beam_tilt_y_mrad=-5.0))
    scene = np.random.default_rng(1).normal(size=(N, N))
    inside = np.ones((N, N // 2 + 1))
    inside[N // 2], inside[:, N // 2] = 0, 0  # Nyquist's phase is not defined in real images
    ideal = np.fft.rfft2(scene) * inside
    kx, ky = (f.numpy() for f in rfft2_frequencies(N, 1.5))
    made = evaluate(tilted.transfer.take([1]), kx, ky).image(
        torch.from_numpy(ideal.reshape(1, -1)).to(torch.complex64)
    )
    image = np.fft.irfft2(made.numpy().reshape(ideal.shape), s=(N, N)).astype(np.float32)
    images = np.stack([image] * 3)
    write_stack(folder / "sub" / "two.mrcs", images, 1.5)
    tilted.write_star(folder / "tilted.star")
    shown = load_particles(folder / "tilted.star").corrected(1)
    assert (shown.shape, shown.dtype) == ((N, N), np.float32)
    right = np.abs(tilted.ctf(1)) * ideal
    np.testing.assert_allclose(np.fft.rfft2(shown) * inside, right, atol=1e-3)
    assert np.abs(np.fft.rfft2(image) - right).max() > 1  # it was not right before
    with pytest.raises(InputError, match="an image of 0 to 3, got 4"):
        p.ctf(4)
    with pytest.raises(InputError, match="no CTF columns"):
        p.with_transfer(None).corrected(0)
