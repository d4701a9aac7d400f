"""cryoSPARC `.cs`: the convention against matrices by hand, passthrough by uid, round trips to and
from RELION's tables."""

import numpy as np
import pytest

from halfmap.errors import InputError
from halfmap.io.convert import convert
from halfmap.io.cryosparc import cs_to_star, star_to_cs
from halfmap.io.cs_files import read_cs, write_cs
from halfmap.io.cs_poses import euler_deg_to_rotation_vector, rotation_vector_to_euler_deg
from halfmap.io.relion import ctf_parameters, particle_tables, pixel_sizes, poses
from halfmap.io.stack_writer import write_stack
from halfmap.io.star import read_star, write_star
from halfmap.io.table import Table
from halfmap.particles import load_particles


def relion_matrix(rot, tilt, psi):
    """RELION's Euler_angles2matrix, written out from its manual: object to view coordinates."""
    a, b, g = np.radians([rot, tilt, psi])
    ca, cb, cg, sa, sb, sg = np.cos(a), np.cos(b), np.cos(g), np.sin(a), np.sin(b), np.sin(g)
    return np.array(
        [
            [cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb],
            [-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb],
            [sb * ca, sb * sa, cb],
        ]
    )


def rodrigues(v):
    """exp([v]x) by its series, independent of scipy's Rotation."""
    cross = np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])
    out, term = np.eye(3), np.eye(3)
    for k in range(1, 40):
        term = term @ cross / k
        out = out + term
    return out


ANGLES = [
    (0, 0, 0),
    (30, 0, 40),
    (10, 180, 20),
    (0, 90, 0),
    *np.random.default_rng(0).uniform([-180, 0, -180], [180, 180, 180], (20, 3)),
]


@pytest.mark.parametrize("angles", ANGLES)
def test_rotation_vector_is_the_transpose_of_relions_matrix(angles):
    vector = euler_deg_to_rotation_vector(np.array([angles]))
    np.testing.assert_allclose(rodrigues(vector[0]).T, relion_matrix(*angles), atol=1e-6)
    np.testing.assert_allclose(
        relion_matrix(*rotation_vector_to_euler_deg(vector)[0]), relion_matrix(*angles), atol=1e-6
    )


def test_in_plane_angle_is_psi():
    """A 2D alignment's angle is the rotation vector along z, and that is psi."""
    np.testing.assert_allclose(
        rodrigues([0, 0, 0.7]).T, relion_matrix(0, 0, np.degrees(0.7)), atol=1e-12
    )


def make_cs(n=6, *, poses_3d=True):
    random = np.random.default_rng(3)
    fields = [
        ("uid", "<u8"),
        ("blob/path", "S40"),
        ("blob/idx", "<u4"),
        ("blob/shape", "<u4", (2,)),
        ("ctf/exp_group_id", "<u4"),
    ]
    names = "blob/psize_A blob/sign ctf/accel_kv ctf/cs_mm ctf/amp_contrast ctf/df1_A ctf/df2_A ctf/df_angle_rad ctf/phase_shift_rad"
    fields += [(name, "<f4") for name in [*names.split(), "ctf/bfactor", "ctf/scale"]] + [
        ("ctf/tilt_A", "<f4", (2,))
    ]
    if poses_3d:
        fields += [
            ("alignments3D/pose", "<f4", (3,)),
            ("alignments3D/shift", "<f4", (2,)),
            ("alignments3D/psize_A", "<f4"),
        ]
        fields += [("alignments3D/split", "<u4"), ("alignments3D/class", "<u4")]
    data = np.zeros(n, fields)
    data["uid"] = random.integers(0, 2**64, n, np.uint64)  # larger than float64 or int64 hold
    data["blob/path"], data["blob/idx"] = b">J1/imported/stack.mrc", np.arange(n)[::-1]
    data["blob/shape"], data["blob/psize_A"], data["blob/sign"] = 8, 1.5, -1
    data["ctf/exp_group_id"], data["ctf/accel_kv"], data["ctf/cs_mm"], data["ctf/amp_contrast"] = (
        np.arange(n) % 2 + 4,
        300,
        2.7,
        0.1,
    )
    data["ctf/df1_A"], data["ctf/df2_A"] = random.uniform(5000, 20000, (2, n))
    data["ctf/df_angle_rad"], data["ctf/phase_shift_rad"] = random.uniform(0, np.pi, (2, n))
    data["ctf/bfactor"], data["ctf/scale"] = 20, 0.9
    data["ctf/tilt_A"] = np.where(data["ctf/exp_group_id"] == 4, 2700, 5400)[:, None] * [1, -1]
    if poses_3d:
        data["alignments3D/pose"], data["alignments3D/shift"] = (
            random.normal(size=(n, 3)),
            random.normal(size=(n, 2)),
        )
        data["alignments3D/psize_A"] = 3.0
        data["alignments3D/split"], data["alignments3D/class"] = np.arange(n) % 2, np.arange(n) % 3
    return data


def test_units_and_offsets():
    data = make_cs()
    star, notes = cs_to_star(data, "a.cs")
    tables = particle_tables(star)
    ctf, has_ctf = ctf_parameters(tables)
    angles, shift, has_poses = poses(tables, 1.5)
    assert (has_ctf, has_poses, set(pixel_sizes(tables)), notes) == (True, True, {1.5}, ())
    assert tables.particles.strings("rlnImageName")[0] == "000006@J1/imported/stack.mrc"
    assert tables.optics.ints("rlnOpticsGroup").tolist() == [5, 6]
    np.testing.assert_allclose(
        ctf.defocus_angle_deg, np.degrees(data["ctf/df_angle_rad"]), atol=1e-5
    )
    np.testing.assert_allclose(
        ctf.phase_shift_deg, np.degrees(data["ctf/phase_shift_rad"]), atol=1e-5
    )
    # Cs sin(tilt) of 2.7 mm is 2700 A at 0.1 mrad
    np.testing.assert_allclose(
        ctf.beam_tilt_x_mrad, np.where(data["ctf/exp_group_id"] == 4, 0.1, 0.2), atol=1e-6
    )
    np.testing.assert_allclose(
        shift, data["alignments3D/shift"] * 3.0, atol=1e-5
    )  # its own pixel size, not the image's
    assert tables.particles.ints("rlnClassNumber").tolist() == [1, 2, 3, 1, 2, 3]
    assert tables.particles.ints("rlnRandomSubset").tolist() == [1, 2] * 3
    for row, vector in zip(angles, data["alignments3D/pose"], strict=True):
        np.testing.assert_allclose(
            relion_matrix(*row), rodrigues(vector.astype(float)).T, atol=1e-5
        )


@pytest.mark.parametrize("poses_3d", [True, False])
def test_cs_to_star_file_and_back(tmp_path, poses_3d):
    data = make_cs(poses_3d=poses_3d)
    write_cs(tmp_path / "a.cs", data)
    convert(tmp_path / "a.cs", tmp_path / "b.star")
    convert(tmp_path / "b.star", tmp_path / "c.cs")
    again = read_cs(tmp_path / "c.cs")[0]
    for name in data.dtype.names:
        if name == "alignments3D/pose":  # the same rotation
            for v, w in zip(data[name], again[name], strict=True):
                np.testing.assert_allclose(
                    rodrigues(v.astype(float)), rodrigues(w.astype(float)), atol=1e-5
                )
        elif name == "alignments3D/shift":  # pixels of the images now
            np.testing.assert_allclose(
                again[name] * again["alignments3D/psize_A"][:, None], data[name] * 3.0, atol=1e-5
            )
        elif name == "blob/path":
            assert (again[name] == b"J1/imported/stack.mrc").all()
        elif name != "alignments3D/psize_A":
            np.testing.assert_allclose(
                again[name].astype(float),
                data[name].astype(float),
                rtol=1e-6,
                atol=1e-6,
                err_msg=name,
            )
    assert (again["uid"] == data["uid"]).all()


@pytest.mark.shared
@pytest.mark.parametrize(
    "name",
    [
        "star/relion31.star",
        "star/sample_particles_relion31.star",
        "images/trpv1_trpv1_small_stack.star",
    ],
)
def test_star_to_cs_and_back(shared_data, tmp_path, name):
    source = shared_data / name
    text = source.read_text()
    if "_rlnImageSize" not in text:  # the stack is not there to ask
        blocks = dict(read_star(source).blocks)
        blocks["optics"] = blocks["optics"].with_columns(
            {"rlnImageSize": [64] * len(blocks["optics"])}
        )
        source = tmp_path / "with_size.star"
        write_star(source, blocks)
    convert(source, tmp_path / "a.cs")
    convert(tmp_path / "a.cs", tmp_path / "b.star")
    old, new = (load_particles(path, check_images=False) for path in (source, tmp_path / "b.star"))
    np.testing.assert_allclose(new.shift_angstrom, old.shift_angstrom, atol=2e-5)
    for a, b in zip(old.rotations_deg, new.rotations_deg, strict=True):
        np.testing.assert_allclose(relion_matrix(*a), relion_matrix(*b), atol=1e-5)
    for field in (
        "defocus_u_angstrom",
        "defocus_v_angstrom",
        "voltage_kv",
        "amplitude_contrast",
        "spherical_aberration_mm",
    ):
        np.testing.assert_allclose(
            getattr(new.transfer, field), getattr(old.transfer, field), rtol=1e-6, err_msg=field
        )
    if (
        len(set(old.half_set.tolist())) > 1
    ):  # cryoSPARC cannot tell "all in the first half" from "never split"
        assert new.half_set.tolist() == old.half_set.tolist()
    np.testing.assert_allclose(
        new.transfer.defocus_angle_deg, old.transfer.defocus_angle_deg, atol=2e-5
    )
    assert new.pixel_size_angstrom == pytest.approx(old.pixel_size_angstrom, rel=1e-6)
    assert new.class_number.tolist() == old.class_number.tolist()


@pytest.mark.shared
def test_cs_files_of_cryosparc(shared_data, tmp_path):
    data, _ = read_cs(shared_data / "cs" / "cryosparc_J2_particles_exported.cs")
    particles = load_particles(
        shared_data / "cs" / "cryosparc_J2_particles_exported.cs", check_images=False
    )
    assert (len(particles), particles.box, particles.has_ctf, particles.has_poses) == (
        22,
        300,
        True,
        False,
    )
    assert particles.pixel_size_angstrom == pytest.approx(1.345)
    np.testing.assert_allclose(
        particles.rotations_deg[:, 2], np.degrees(data["alignments2D/pose"]), atol=1e-5
    )
    np.testing.assert_allclose(
        particles.shift_angstrom, data["alignments2D/shift"] * 1.345, atol=1e-4
    )
    assert particles.class_number.tolist() == (data["alignments2D/class"] + 1).tolist()
    assert (particles.half_set == 0).all()
    # the same seven images by .cs and by RELION 3.0 STAR, written by different programs; the .cs
    # knows that they are stored dark
    ours = load_particles(shared_data / "cs" / "empiar_10076_7.cs", data_dir=shared_data / "images")
    theirs = load_particles(shared_data / "images" / "empiar_10076_7.star")
    assert ours.pixel_size_angstrom == pytest.approx(theirs.pixel_size_angstrom, rel=1e-5)
    for field in (
        "defocus_u_angstrom",
        "defocus_v_angstrom",
        "defocus_angle_deg",
        "voltage_kv",
        "amplitude_contrast",
    ):
        np.testing.assert_allclose(
            getattr(ours.transfer, field), getattr(theirs.transfer, field), rtol=1e-5, err_msg=field
        )
    np.testing.assert_array_equal(ours.images([0, 6]), -theirs.images([0, 6]))
    convert(shared_data / "cs" / "empiar_10076_7.cs", tmp_path / "a.star")
    again = load_particles(tmp_path / "a.star", data_dir=shared_data / "images")
    np.testing.assert_array_equal(again.images([3]), ours.images([3]))


def test_passthrough_is_joined_by_uid(tmp_path):
    data = make_cs()
    own, blob = (
        [name for name in data.dtype.names if name == "uid" or name.startswith("align") == mine]
        for mine in (True, False)
    )
    write_cs(tmp_path / "J5_particles.cs", data[own])
    with pytest.raises(InputError, match=r"no field blob/path .* 0 files"):
        read_cs(tmp_path / "J5_particles.cs")
    write_cs(tmp_path / "J5_passthrough_particles.cs", data[blob][::-1])
    for merged in (
        read_cs(tmp_path / "J5_particles.cs")[0],
        read_cs(tmp_path / "J5_particles.cs", passthrough=tmp_path / "J5_passthrough_particles.cs")[
            0
        ],
    ):
        for name in data.dtype.names:
            np.testing.assert_array_equal(merged[name], data[name])
    assert load_particles(tmp_path / "J5_particles.cs", check_images=False).has_poses
    write_cs(tmp_path / "J5_passthrough_particles.cs", data[blob][1:])
    with pytest.raises(
        InputError, match=r"1 of 6 particles of J5_particles.cs are not in it \(first: row 1"
    ):
        read_cs(tmp_path / "J5_particles.cs")


def test_best_class_of_several(tmp_path):
    """Ab initio writes one alignment per class: the one with the highest posterior counts."""
    base = make_cs(4, poses_3d=False)
    fields = [
        (f"alignments_class_{k}/{field}", "<f4", shape)
        for k in (0, 1)
        for field, shape in (
            ("pose", (3,)),
            ("shift", (2,)),
            ("class_posterior", ()),
            ("psize_A", ()),
            ("class", ()),
        )
    ]
    data = np.zeros(4, base.dtype.descr + fields)
    for name in base.dtype.names:
        data[name] = base[name]
    data["alignments_class_0/class_posterior"], data["alignments_class_1/class_posterior"] = (
        [0.9, 0.1, 0.2, 0.8],
        [0.1, 0.9, 0.8, 0.2],
    )
    data["alignments_class_1/class"] = 1
    data["alignments_class_1/pose"] = [0, 0, 1]
    data["alignments_class_0/psize_A"] = data["alignments_class_1/psize_A"] = 1.5
    table = cs_to_star(data, "a.cs")[0].blocks["particles"]
    assert table.ints("rlnClassNumber").tolist() == [1, 2, 2, 1]
    turn = table.floats("rlnAngleRot") + table.floats("rlnAnglePsi")
    np.testing.assert_allclose(turn, [0, np.degrees(1), np.degrees(1), 0], atol=1e-5)


def test_uids_are_made_from_names_and_repeat(tmp_path):
    table = Table.from_columns(
        {"rlnImageName": ["1@a.mrcs", "2@a.mrcs"], "rlnImagePixelSize": [1.0, 1.0]}
    )
    write_star(tmp_path / "a.star", {"": table})
    tables = particle_tables(read_star(tmp_path / "a.star"))
    first, again = (star_to_cs(tables, box=8, pixel_size_angstrom=1.0)[0]["uid"] for _ in range(2))
    assert first.tolist() == again.tolist()
    assert first[0] != first[1]


def test_bad_input_is_refused_in_one_line(tmp_path):
    (tmp_path / "text.cs").write_text("not numpy")
    with pytest.raises(InputError, match=r"text\.cs: is not a cryoSPARC \.cs file"):
        read_cs(tmp_path / "text.cs")
    with pytest.raises(InputError, match=r"none\.cs: cannot be read"):
        read_cs(tmp_path / "none.cs")
    np.save(tmp_path / "plain.npy", np.zeros(3))
    with pytest.raises(InputError, match="no table with a field uid"):
        read_cs(tmp_path / "plain.npy")
    data = make_cs()
    write_cs(tmp_path / "empty.cs", data[:0])
    with pytest.raises(InputError, match="has no particles"):
        read_cs(tmp_path / "empty.cs")
    data["blob/shape"][2] = (8, 9)
    with pytest.raises(InputError, match=r"row 3, field blob/shape: \[8, 9\]"):
        cs_to_star(data, "a.cs")
    with pytest.raises(InputError, match=r"ending in \.star or \.cs"):
        convert(tmp_path / "text.cs", tmp_path / "a.txt")
    with pytest.raises(InputError, match=r"only a \.cs input has a passthrough"):
        convert(tmp_path / "a.star", tmp_path / "b.cs", tmp_path / "p.cs")


OLD = """
data_
loop_
_rlnImageName #1
_rlnOriginX #2
_rlnOriginY #3
_rlnDefocusU #4
_rlnDefocusV #5
_rlnDefocusAngle #6
_rlnVoltage #7
_rlnSphericalAberration #8
_rlnAmplitudeContrast #9
_rlnMagnification #10
_rlnDetectorPixelSize #11
_rlnOddOne #12
1@s.mrcs 2.0 -1.5 10000.50 10000 33.0 300 2.7 0.1 25000 5.0 "odd one"
2@s.mrcs 0 4 11000 12000 33.0 200 2.7 0.1 25000 5.0 x
3@s.mrcs 0 4 11000 12000 33.0 300 2.7 0.1 25000 5.0 ''
"""


def test_old_dialect_to_optics_groups_and_back(tmp_path):
    (tmp_path / "old.star").write_text(OLD)
    write_stack(tmp_path / "s.mrcs", np.zeros((3, 8, 8), np.float32), 0.0)
    convert(tmp_path / "old.star", tmp_path / "new.star")
    blocks = read_star(tmp_path / "new.star").blocks
    assert list(blocks) == ["optics", "particles"]
    assert sorted(blocks["optics"].floats("rlnVoltage").tolist()) == [200, 300]
    assert blocks["optics"].floats("rlnImagePixelSize").tolist() == [2.0, 2.0]  # 5 um at 25000
    assert blocks["optics"].ints("rlnImageSize").tolist() == [8, 8]
    assert blocks["particles"].floats("rlnOriginXAngst").tolist() == [4.0, 0.0, 0.0]
    assert "rlnOriginX" not in blocks["particles"]
    assert blocks["particles"].cells("rlnDefocusU").raw(0) == b"10000.50"
    assert blocks["particles"].cells("rlnOddOne").raw(0) == b'"odd one"'
    convert(tmp_path / "new.star", tmp_path / "back.star", relion="3.0")
    (name, table), *rest = read_star(tmp_path / "back.star").blocks.items()
    assert (name, rest) == ("", [])
    old = read_star(tmp_path / "old.star").blocks[""]
    for column in old.names:
        if column.startswith("rlnOrigin"):
            np.testing.assert_allclose(table.floats(column), old.floats(column), atol=1e-6)
        else:
            assert [table.cells(column).raw(i) for i in range(3)] == [
                old.cells(column).raw(i) for i in range(3)
            ]


@pytest.mark.shared
def test_optics_groups_to_old_dialect_and_back(shared_data, tmp_path):
    for name in (
        "star/relion31.star",
        "star/relion31.v2.star",
        "star/relion5.star",
        "star/sample_particles_relion31.star",
    ):
        convert(shared_data / name, tmp_path / "old.star", relion="3.0")
        convert(tmp_path / "old.star", tmp_path / "new.star")
        first, last = (
            load_particles(path, check_images=False)
            for path in (shared_data / name, tmp_path / "new.star")
        )
        np.testing.assert_allclose(last.shift_angstrom, first.shift_angstrom, atol=2e-6)
        for field in ("rotations_deg", "half_set", "optics_group"):
            np.testing.assert_array_equal(
                getattr(last, field), getattr(first, field), err_msg=field
            )
        for field in ("defocus_u_angstrom", "voltage_kv", "beam_tilt_x_mrad"):
            np.testing.assert_array_equal(
                getattr(last.transfer, field), getattr(first.transfer, field), err_msg=field
            )
