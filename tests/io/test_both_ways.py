"""Particle files from RELION to cryoSPARC and back, and the other way: what has a place on the other
side is there, what has none is told; passthrough files, names of stacks, orders of groups."""

import numpy as np
import pytest

import halfmap
from halfmap.errors import InputError
from halfmap.io.convert import convert
from halfmap.io.cs_aberrations import aberrations_from_cs, aberrations_to_cs
from halfmap.io.cs_files import read_cs, write_cs
from halfmap.io.relion import particle_tables
from halfmap.io.stack_writer import write_stack
from halfmap.io.star import StarFile, read_star, write_star
from halfmap.io.table import Table
from halfmap.particles import load_particles

ODD, EVEN = "[0.3,-0.2,34.4,0,0,10.8]", "[0,0,0,0,-20.4,21.2,0,-20.2,-17]"


def star(path, n=6, *, optics=None, **columns):
    """A particle STAR of two optics groups, with its stack beside it."""
    write_stack(
        path.parent / "a.mrcs",
        np.random.default_rng(0).normal(size=(n, 8, 8)).astype(np.float32),
        1.5,
    )
    groups = {
        "rlnOpticsGroup": [1, 2],
        "rlnOpticsGroupName": ["krios1", "a b"],
        "rlnImagePixelSize": [1.5, 1.5],
        "rlnImageSize": [8, 8],
        "rlnVoltage": [300.0, 200.0],
        "rlnSphericalAberration": [2.7, 2.7],
        "rlnAmplitudeContrast": [0.1, 0.07],
        **(optics or {}),
    }
    random = np.random.default_rng(1)
    rows = {
        "rlnImageName": [f"{i + 1:06d}@a.mrcs" for i in range(n)],
        "rlnOpticsGroup": [1 + i % 2 for i in range(n)],
        "rlnDefocusU": random.uniform(8000, 20000, n),
        "rlnDefocusV": random.uniform(8000, 20000, n),
        "rlnDefocusAngle": random.uniform(0, 90, n),
        "rlnAngleRot": random.uniform(-180, 180, n),
        "rlnAngleTilt": random.uniform(5, 175, n),
        "rlnAnglePsi": random.uniform(-180, 180, n),
        "rlnOriginXAngst": random.normal(size=n),
        "rlnOriginYAngst": random.normal(size=n),
        "rlnRandomSubset": [1, 2] * (n // 2),
        "rlnClassNumber": [1 + i % 3 for i in range(n)],
        **columns,
    }
    blocks = {"optics": Table.from_columns(groups), "particles": Table.from_columns(rows)}
    write_star(path, blocks)
    return path


def there_and_back(path):
    """The file as `.cs` and as STAR again; notes of both."""
    notes = convert(path, path.with_suffix(".cs"))
    notes += convert(path.with_suffix(".cs"), path.with_name("back.star"))
    return read_star(path.with_name("back.star")).blocks, notes


def same(blocks, path, *names, table="particles", **tolerance):
    before = read_star(path).blocks[table]
    for name in names:
        np.testing.assert_allclose(
            blocks[table].floats(name), before.floats(name), err_msg=name, **tolerance
        )


def test_everything_with_a_place_comes_back(tmp_path):
    n = 6
    path = star(
        tmp_path / "in.star",
        optics={
            "rlnOddZernike": [ODD, "[0,0,0,0,0,0]"],
            "rlnEvenZernike": [EVEN.replace("21.2", "0"), "[0]"],
            "rlnBeamTiltX": [0.5, 0.0],
            "rlnBeamTiltY": [-0.2, 0.1],
            "rlnMagMat00": [1.007, 1.0],
            "rlnMagMat01": [0.003, 0.0],
            "rlnMagMat10": [0.004, 0.0],
            "rlnMagMat11": [0.99, 1.0],
        },
        rlnMicrographName=["m/1.mrc", "m/2.mrc"] * 3,
        rlnCoordinateX=np.arange(n) * 100 + 3.25,
        rlnCoordinateY=np.arange(n) * 50 + 7.5,
        csMicrographSizeX=[4096] * n,
        csMicrographSizeY=[3000] * n,
        rlnPhaseShift=np.arange(n) * 3.0,
        rlnCtfMaxResolution=[4.0] * n,
        rlnAutopickFigureOfMerit=np.arange(n) / 7,
        rlnLogLikeliContribution=np.arange(n) * 1000.0 + 1,
        rlnGroupScaleCorrection=np.linspace(0.9, 1.1, n),
    )
    blocks, notes = there_and_back(path)
    assert notes == ()
    optics = blocks["optics"]
    assert optics.strings("rlnOpticsGroupName").tolist() == ["krios1", "a b"]
    tight = {"rtol": 2e-6, "atol": 1e-5}
    same(blocks, path, "rlnVoltage", "rlnAmplitudeContrast", table="optics", **tight)
    same(blocks, path, "rlnBeamTiltX", "rlnBeamTiltY", table="optics", **tight)
    same(
        blocks, path, *(f"rlnMagMat{i}" for i in ("00", "01", "10", "11")), table="optics", **tight
    )
    for name in ("rlnOddZernike", "rlnEvenZernike"):
        lists = (
            [float(word) for word in cell.strip("[]").split(",")]
            for cell in (
                optics.strings(name)[0],
                read_star(path).blocks["optics"].strings(name)[0],
            )
        )
        np.testing.assert_allclose(*lists, **tight)
    names = read_star(path).blocks["particles"].names
    numbers = [one for one in names if one not in ("rlnImageName", "rlnMicrographName")]
    same(blocks, path, *numbers, rtol=2e-6, atol=2e-3)
    assert blocks["particles"].strings("rlnMicrographName")[1] == "m/2.mrc"


def test_coma_in_the_zernike_list_is_the_same_phase(tmp_path):
    """cryoSPARC's tilt and shift, by the formulas of the docstring, give the phase of RELION's
    polynomials at every frequency; trefoil and tetrafoil too."""
    path = star(tmp_path / "in.star", optics={"rlnOddZernike": ["[0.3,-0.2,34,2.5,-1.5,11]"] * 2})
    tables = particle_tables(read_star(path))
    out, rest = aberrations_to_cs(tables, np.full(6, 300.0))
    assert rest == {}
    c, wavelength = (
        [0.3, -0.2, 34, 2.5, -1.5, 11],
        12.264259660 / np.sqrt(3e5 * (1 + 9.78475598e-7 * 3e5)),
    )
    k, phi = np.meshgrid(np.linspace(0.01, 0.4, 9), np.linspace(0, 6, 11))
    coma = 3 * k**3 - 2 * k
    relion = c[0] * np.sin(phi) * k + c[1] * np.cos(phi) * k + c[2] * np.sin(3 * phi) * k**3
    relion += c[3] * np.sin(phi) * coma + c[4] * np.cos(phi) * coma + c[5] * np.cos(3 * phi) * k**3
    shift, tilt, trefoil = (out[f"ctf/{name}_A"][0] for name in ("shift", "tilt", "trefoil"))
    cs = shift[0] * np.cos(phi) * k + shift[1] * np.sin(phi) * k
    cs = cs + wavelength**2 * k**3 * (tilt[0] * np.cos(phi) + tilt[1] * np.sin(phi))
    cs += wavelength**2 * k**3 * (trefoil[0] * np.cos(3 * phi) + trefoil[1] * np.sin(3 * phi))
    np.testing.assert_allclose(-2 * np.pi * cs, relion, atol=1e-9)


def test_a_corrected_microscope_keeps_its_coma(tmp_path):
    """Without spherical aberration no beam tilt stands for ctf/tilt_A."""
    data = np.zeros(
        2,
        [("ctf/accel_kv", "f4"), ("ctf/cs_mm", "f4"), ("ctf/tilt_A", "f4", 2)],
    )
    data["ctf/accel_kv"], data["ctf/tilt_A"] = 300, [[900, -400], [0, 0]]
    columns = {name: list(values) for name, values in aberrations_from_cs(data).items()}
    table = Table.from_columns({"rlnImageName": ["1@a.mrcs", "2@a.mrcs"], **columns})
    tables = particle_tables(StarFile("a.star", {"": table}))
    out, _ = aberrations_to_cs(tables, np.full(2, 300.0))
    np.testing.assert_allclose(out["ctf/tilt_A"], data["ctf/tilt_A"], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(out["ctf/shift_A"], 0, atol=1e-6)


def test_what_has_no_place_is_told_by_column_and_count(tmp_path):
    path = star(
        tmp_path / "in.star",
        optics={"rlnOddZernike": ["[0,0,0,0,0,0,5]", "[0,0,0,0,0,0,0]"]},
        rlnNormCorrection=[1.0] * 6,
        rlnCoordinateX=[1.0] * 6,
        rlnCoordinateY=[1.0] * 6,
        rlnMicrographName=["gone.mrc"] * 6,
    )
    (note,) = convert(path, tmp_path / "a.cs")
    for word in (
        "_rlnNormCorrection (6 rows)",
        "_rlnCoordinateX (6 rows)",
        "_rlnOddZernike beyond the third order (3 rows)",
    ):
        assert word in note
    data = read_cs(tmp_path / "a.cs")[0]
    more = np.zeros(6, [*data.dtype.descr, ("alignments3D/cross_cor", "f4"), ("x/empty", "f4")])
    for name in data.dtype.names:
        more[name] = data[name]
    more["alignments3D/cross_cor"][:4] = 1
    write_cs(tmp_path / "b.cs", more)
    (note,) = convert(tmp_path / "b.cs", tmp_path / "b.star")
    assert note.endswith("not carried over: alignments3D/cross_cor (4 rows)")


def test_micrographs_that_are_there_tell_their_size(tmp_path):
    write_stack(tmp_path / "m.mrc", np.zeros((1, 20, 40), np.float32), 1.0)
    path = star(
        tmp_path / "in.star",
        rlnMicrographName=["m.mrc"] * 6,
        rlnCoordinateX=np.arange(6) * 4.0,
        rlnCoordinateY=np.arange(6) * 2.0,
    )
    assert convert(path, tmp_path / "a.cs") == ()
    data = read_cs(tmp_path / "a.cs")[0]
    assert data["location/micrograph_shape"].tolist() == [[20, 40]] * 6  # y first
    np.testing.assert_allclose(data["location/center_x_frac"], np.arange(6) * 0.1, rtol=1e-6)
    np.testing.assert_allclose(data["location/center_y_frac"], np.arange(6) * 0.1, rtol=1e-6)


@pytest.mark.parametrize("labels", [[0, 1], [1, 2], [7, 3]])
def test_optics_groups_from_any_number(tmp_path, labels):
    path = star(
        tmp_path / "in.star",
        optics={"rlnOpticsGroup": labels, "rlnSphericalAberration": [2.7, 2.6]},
        rlnOpticsGroup=labels * 3,
    )
    blocks, _ = there_and_back(path)
    data = read_cs(tmp_path / "in.cs")[0]
    assert data["ctf/exp_group_id"].max() < 8
    number = dict(
        zip(
            blocks["optics"].ints("rlnOpticsGroup").tolist(),
            blocks["optics"].floats("rlnSphericalAberration").tolist(),
            strict=True,
        )
    )
    found = [number[label] for label in blocks["particles"].ints("rlnOpticsGroup").tolist()]
    np.testing.assert_allclose(found, [2.7, 2.6] * 3, rtol=1e-6)
    assert min(number) >= 1
    assert set(blocks["optics"].strings("rlnOpticsGroupName")) == {"krios1", "a b"}


def test_copies_get_uids_of_their_own_that_repeat(tmp_path):
    names = [f"{i // 2 + 1:06d}@a.mrcs" for i in range(6)]
    path = star(tmp_path / "in.star", rlnImageName=names)
    there_and_back(path)
    uids = read_cs(tmp_path / "in.cs")[0]["uid"]
    assert len(set(uids.tolist())) == 6
    convert(tmp_path / "back.star", tmp_path / "again.cs")
    np.testing.assert_array_equal(read_cs(tmp_path / "again.cs")[0]["uid"], uids)
    copied = read_star(tmp_path / "back.star").blocks
    rows = np.arange(6) // 2
    write_star(tmp_path / "copies.star", {**copied, "particles": copied["particles"].take(rows)})
    convert(tmp_path / "copies.star", tmp_path / "copies.cs")
    assert len(set(read_cs(tmp_path / "copies.cs")[0]["uid"].tolist())) == 6


def test_rows_without_a_half_set_do_not_all_join_one(tmp_path):
    path = star(tmp_path / "in.star", 12, rlnRandomSubset=[1, 2, 2, 1] + [0] * 8)
    (note,) = convert(path, tmp_path / "a.cs")
    assert "8 rows without a half set" in note
    split = read_cs(tmp_path / "a.cs")[0]["alignments3D/split"]
    assert split[:4].tolist() == [0, 1, 1, 0]
    assert split[4:].sum() == 4


def test_poses_in_the_plane_are_alignments2d(tmp_path):
    """As RELION's 2D classification writes them, and as halfmap does."""
    for name, angles in (
        ("zero", {"rlnAngleRot": [0.0] * 6, "rlnAngleTilt": [0.0] * 6}),
        ("none", None),
    ):
        path = star(tmp_path / f"{name}.star", **(angles or {}))
        if angles is None:
            blocks = read_star(path).blocks
            table = blocks["particles"].without("rlnAngleRot", "rlnAngleTilt")
            write_star(path, {**blocks, "particles": table})
        particles = load_particles(path)
        assert (particles.has_poses, particles.has_in_plane_poses) == (False, True)
        there_and_back(path)
        data = read_cs(path.with_suffix(".cs"))[0]
        assert not any(field.startswith("alignments3D") for field in data.dtype.names)
        again = load_particles(tmp_path / "back.star")
        assert (again.has_poses, again.has_in_plane_poses) == (False, True)
        np.testing.assert_allclose(
            again.rotations_deg[:, 2], particles.rotations_deg[:, 2], atol=1e-4
        )
        for job in (halfmap.reconstruct, halfmap.project):
            arguments = {"map": tmp_path / "a.mrc"} if job is halfmap.project else {}
            if arguments:
                volume = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
                halfmap.io.mrc.write_map(tmp_path / "a.mrc", volume, 1.5)
            out = tmp_path / ("x.mrcs" if arguments else "x.mrc")
            with pytest.raises(InputError, match=r"poses here are in the plane.*halfmap refine"):
                job(particles=path, out=out, **arguments)
            assert not out.exists()


def job_files(folder, name, passthrough, rows, *, moved=("blob", "ctf")):
    """A job's file, and its passthrough file with the fields that begin so."""
    path = star(folder / "in.star")
    convert(path, folder / "whole.cs")
    data = read_cs(folder / "whole.cs")[0][rows]
    (folder / "whole.cs").unlink()
    through = [one for one in data.dtype.names if one.split("/")[0] in moved]
    own = [one for one in data.dtype.names if one not in through]
    write_cs(folder / name, data[own])
    write_cs(folder / passthrough, data[["uid", *through]])
    return data


PAIRS = [
    ("P1_J20_particles.cs", "P1_J20_passthrough_particles.cs"),
    ("cryosparc_P1_J20_005_particles.cs", "cryosparc_P1_J20_passthrough_particles.cs"),
    ("extracted_particles.cs", "J4_passthrough_particles.cs"),
    ("split_0.cs", "passthrough_split_0.cs"),
]


@pytest.mark.parametrize(("name", "passthrough"), PAIRS)
@pytest.mark.parametrize("moved", [("blob", "ctf"), ("alignments3D",)], ids=["images", "poses"])
def test_passthrough_files_are_found_by_name(tmp_path, name, passthrough, moved):
    """Images, or only the poses, lie there; every reader finds them."""
    job_files(tmp_path, name, passthrough, slice(None), moved=moved)
    particles = load_particles(tmp_path / name)
    assert (particles.has_poses, particles.has_ctf, len(particles)) == (True, True, 6)
    assert passthrough in particles.notes[0]
    convert(tmp_path / name, tmp_path / "out.star")
    assert load_particles(tmp_path / "out.star").has_poses


def test_each_file_of_a_selection_has_its_own_passthrough(tmp_path):
    """Both hold some of the particles; a file of all particles serves as well."""
    for what, rows in (("selected", slice(0, 4)), ("excluded", slice(4, 6))):
        job_files(tmp_path, f"particles_{what}.cs", f"passthrough_particles_{what}.cs", rows)
    for what, n in (("selected", 4), ("excluded", 2)):
        particles = load_particles(tmp_path / f"particles_{what}.cs")
        assert len(particles) == n
        assert f"passthrough_particles_{what}.cs" in particles.notes[0]
    (tmp_path / "passthrough_particles_excluded.cs").unlink()
    with pytest.raises(InputError, match=r"2 of 2 particles .*|0 files"):
        load_particles(tmp_path / "particles_excluded.cs")


def test_rival_passthroughs_are_refused_and_one_can_be_given(tmp_path):
    data = job_files(tmp_path, "particles.cs", "passthrough_particles_a.cs", slice(None))
    other = data[
        ["uid", *(n for n in data.dtype.names if n.split("/")[0] in ("blob", "ctf"))]
    ].copy()
    other["ctf/df1_A"] += 1000
    write_cs(tmp_path / "passthrough_particles_b.cs", other)
    with pytest.raises(InputError, match=r"differ: .*_a.cs, .*_b.cs; give one with --passthrough"):
        load_particles(tmp_path / "particles.cs")
    given = load_particles(
        tmp_path / "particles.cs", passthrough=tmp_path / "passthrough_particles_b.cs"
    )
    np.testing.assert_allclose(given.transfer.defocus_u_angstrom, other["ctf/df1_A"])
    with pytest.raises(InputError, match=r"only a \.cs file has passthrough files"):
        load_particles(tmp_path / "in.star", passthrough=tmp_path / "passthrough_particles_b.cs")


def test_a_field_of_the_file_is_not_replaced_by_its_passthrough(tmp_path):
    data = job_files(tmp_path, "particles.cs", "passthrough_particles.cs", slice(None))
    stale = data.copy()
    stale["alignments3D/shift"] += 9
    write_cs(tmp_path / "passthrough_particles.cs", stale)
    merged = read_cs(tmp_path / "particles.cs")[0]
    np.testing.assert_array_equal(merged["alignments3D/shift"], data["alignments3D/shift"])


def test_long_headers_are_read(tmp_path):
    base = job_files(tmp_path, "a.cs", "passthrough_a.cs", slice(None))
    fields = [
        (f"alignments_class_{k}/{name}", "<f4", shape)
        for k in range(150)
        for name, shape in (("pose", (3,)), ("shift", (2,)), ("class_posterior", ()), ("ess", ()))
    ]
    keep = [name for name in base.dtype.names if not name.startswith("alignments")]
    data = np.zeros(6, [(name, base.dtype[name]) for name in keep] + fields)
    for name in keep:
        data[name] = base[name]
    best = [149, 0, 12, 2, 101, 30]
    for row, k in enumerate(best):
        data[f"alignments_class_{k}/class_posterior"][row] = 0.9
        data[f"alignments_class_{k}/pose"][row] = [0.1, 0.2, k / 100]
    write_cs(tmp_path / "many.cs", data)
    assert (tmp_path / "many.cs").read_bytes()[6] > 0
    particles = load_particles(tmp_path / "many.cs")
    assert particles.class_number.tolist() == [k + 1 for k in best]  # by number, not by name
    assert particles.has_poses


def test_stacks_that_relion_takes_for_maps_are_marked(tmp_path):
    path = star(tmp_path / "in.star")
    (tmp_path / "a.mrcs").rename(tmp_path / "a.mrc")
    blocks = read_star(path).blocks
    names = [f"{i + 1}@a.mrc" for i in range(6)]
    table = blocks["particles"].with_columns({"rlnImageName": names})
    write_star(path, {**blocks, "particles": table})
    before = load_particles(path)
    before.write_star(tmp_path / "b.star")
    written = read_star(tmp_path / "b.star").blocks["particles"].strings("rlnImageName")
    assert written[2] == "000003@a.mrc:mrcs"
    after = load_particles(tmp_path / "b.star")
    np.testing.assert_array_equal(after.images(range(6)), before.images(range(6)))
    convert(tmp_path / "b.star", tmp_path / "c.cs")
    assert set(read_cs(tmp_path / "c.cs")[0]["blob/path"].tolist()) == {b"a.mrc"}
    convert(tmp_path / "c.cs", tmp_path / "d.star")
    again = read_star(tmp_path / "d.star").blocks["particles"].strings("rlnImageName")
    assert again.tolist() == written.tolist()


def test_stacks_of_one_name_in_several_folders_stay_apart(tmp_path):
    """A scratch folder with one of two stacks of the same name must not serve for both."""
    images = np.random.default_rng(0).normal(size=(6, 8, 8)).astype(np.float32)
    for i, name in enumerate(("run1", "run2")):
        (tmp_path / "project" / name).mkdir(parents=True)
        write_stack(tmp_path / "project" / name / "p.mrcs", images[3 * i : 3 * i + 3], 1.5)
    names = [f"{i % 3 + 1}@run{i // 3 + 1}/p.mrcs" for i in range(6)]
    path = star(tmp_path / "project" / "in.star", rlnImageName=names)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    write_stack(scratch / "p.mrcs", images[:3] + 100, 1.5)
    particles = load_particles(path, data_dir=scratch)
    np.testing.assert_array_equal(particles.images(range(6)), images)
    (scratch / "run1").mkdir()
    write_stack(scratch / "run1" / "p.mrcs", images[:3] + 50, 1.5)  # its folder tells which it is
    particles = load_particles(path, data_dir=scratch)
    np.testing.assert_array_equal(particles.images([0, 3]), [images[0] + 50, scratch_p(scratch)])
    for name in ("run1", "run2"):
        (tmp_path / "project" / name / "p.mrcs").unlink()
        (tmp_path / "project" / name).rmdir()
    (scratch / "run1" / "p.mrcs").unlink()
    with pytest.raises(InputError, match=r"p.mrcs is meant by stacks of several folders"):
        load_particles(path, data_dir=scratch)


def scratch_p(scratch):
    return halfmap.io.mrc.open_stack(scratch / "p.mrcs").read(np.array([0]))[0]


def test_a_project_that_moved_finds_its_stacks(tmp_path):
    old, new = tmp_path / "old", tmp_path / "elsewhere" / "new"
    (old / "Extract").mkdir(parents=True)
    (old / "Refine").mkdir()
    path = star(old / "Refine" / "in.star")
    (old / "Refine" / "a.mrcs").rename(old / "Extract" / "a.mrcs")
    names = [f"{i + 1}@{old}/Extract/a.mrcs" for i in range(6)]
    blocks = read_star(path).blocks
    table = blocks["particles"].with_columns({"rlnImageName": names})
    write_star(path, {**blocks, "particles": table})
    images = load_particles(path).images(range(6))
    new.parent.mkdir()
    old.rename(new)
    moved = load_particles(new / "Refine" / "in.star")
    np.testing.assert_array_equal(moved.images(range(6)), images)
    assert moved.stack_paths == (new / "Extract" / "a.mrcs",)


@pytest.mark.parametrize("suffix", [".star", ".cs"])
def test_contrast_is_the_users_word(tmp_path, suffix):
    path = star(tmp_path / "in.star")
    stored = load_particles(path).images(range(6))
    if suffix == ".cs":
        convert(path, tmp_path / "in.cs")
    dark = load_particles(tmp_path / f"in{suffix}", contrast="dark")
    np.testing.assert_array_equal(dark.images(range(6)), -stored)
    dark.write_star(tmp_path / "dark.star")  # files written from then on say so
    np.testing.assert_array_equal(load_particles(tmp_path / "dark.star").images([1]), -stored[[1]])
    convert(tmp_path / "dark.star", tmp_path / "dark.cs")
    assert (read_cs(tmp_path / "dark.cs")[0]["blob/sign"] == -1).all()
    for name in ("dark.star", "dark.cs"):
        white = load_particles(tmp_path / name, contrast="white")
        np.testing.assert_array_equal(white.images(range(6)), stored)
        white.write_star(tmp_path / "white.star")
        again = load_particles(tmp_path / "white.star")
        np.testing.assert_array_equal(again.images(range(6)), stored)
    convert(path, tmp_path / "c.cs", contrast="dark")
    assert (read_cs(tmp_path / "c.cs")[0]["blob/sign"] == -1).all()


def test_options_without_effect_are_refused(tmp_path):
    path = star(tmp_path / "in.star")
    with pytest.raises(InputError, match=r"--local-range 3: has no effect without --local"):
        halfmap.refine(path, tmp_path / "a.mrc", tmp_path / "r", local_range_deg=3)
    with pytest.raises(InputError, match=r"--relion 3.0: is for STAR files"):
        halfmap.convert(path, tmp_path / "x.cs", relion="3.0")


def test_one_table_never_contradicts_itself(tmp_path):
    """Magnification columns that another program left say what the optics table says."""
    path = star(
        tmp_path / "in.star", rlnMagnification=[50000.0] * 6, rlnDetectorPixelSize=[5.0] * 6
    )
    convert(path, tmp_path / "old.star", relion="3.0")
    (table,) = read_star(tmp_path / "old.star").blocks.values()
    size = table.floats("rlnDetectorPixelSize") * 1e4 / table.floats("rlnMagnification")
    np.testing.assert_allclose(size, 1.5)


def test_two_optics_groups_of_one_number_are_refused(tmp_path):
    """Else the second would stand for both, whose images have other optics."""
    path = star(tmp_path / "p.star", optics={"rlnOpticsGroup": [1, 1]}, rlnOpticsGroup=[1] * 6)
    with pytest.raises(InputError, match=r"p\.star: rows 1, 2 of the optics table") as caught:
        load_particles(path)
    assert "_rlnOpticsGroup 1" in str(caught.value)


def test_passthrough_files_of_several_files_go_to_their_own(tmp_path):
    """`info` and `join` of two jobs whose poses lie elsewhere, in files that no name tells."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    files, through = [], []
    for number in range(2):
        name = f"job{number}"
        (tmp_path / name).mkdir()
        whole = tmp_path / name / "whole.cs"
        convert(star(tmp_path / name / "p.star"), whole)
        data, _ = read_cs(whole)
        poses = [one for one in data.dtype.names if one.startswith("alignments3D")]
        rest = [one for one in data.dtype.names if one not in poses]
        data["uid"] += np.uint64(1000 * number)
        files.append(tmp_path / name / "particles.cs")
        through.append(elsewhere / f"poses{number}.cs")
        write_cs(files[-1], np.array(data[rest].tolist(), data[rest].dtype))
        write_cs(through[-1], np.array(data[["uid", *poses]].tolist(), data[["uid", *poses]].dtype))
    assert [one["poses"] for one in halfmap.info(files).facts] == ["no", "no"]
    told = halfmap.info(files, passthrough=through[::-1])
    assert [one["poses"] for one in told.facts] == ["yes", "yes"]
    halfmap.join(files, tmp_path / "both.star", passthrough=through)
    assert load_particles(tmp_path / "both.star", check_images=False).has_poses
    halfmap.select(files[0], tmp_path / "some.star", half=1, passthrough=through[0])
    assert load_particles(tmp_path / "some.star", check_images=False).has_poses
    with pytest.raises(InputError, match=r"poses1\.cs: expected the passthrough file of a \.cs"):
        halfmap.info(files[:1], passthrough=through)
    with pytest.raises(InputError, match=r"only a \.cs file has passthrough"):
        halfmap.select(tmp_path / "both.star", tmp_path / "x.star", half=1, passthrough=through[0])
