"""Jobs that are a file with its record beside it, jobs whose map lies beside their folder, and what
jobs leave as numbers, as pages and reports show them."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import halfmap
from halfmap.commands._signatures import command_signature
from halfmap.io.mrc import read_map, write_map
from halfmap.reports.colouring import colouring_of
from halfmap.reports.directions import count_by_cell, read_views, viewing_directions
from halfmap.reports.job_data import job_data
from halfmap.reports.jobs import find_jobs, parents
from halfmap.reports.report import report_page
from halfmap.reports.surface import default_level
from halfmap.symmetries import symmetry_matrices
from halfmap.workspace.figures import Figure, add_figures, read_figures


@pytest.fixture(scope="module")
def made(jobs, tmp_path_factory) -> Path:
    """A refined set, and what else can be made of it."""
    root = tmp_path_factory.mktemp("made").resolve()
    shutil.copytree(jobs / "refined", root / "refined")
    particles = root / "refined" / "particles.star"
    halfmap.mask(root / "refined", root / "mask.mrc", extend="-1px", soft_edge="2px")
    halfmap.volume(root / "refined" / "map.mrc", root / "low.mrc", lowpass_angstrom=40)
    halfmap.subtract(
        particles, root / "part.star", reference=root / "low.mrc", mask=root / "mask.mrc"
    )
    halfmap.expand(particles, "C4", root / "copies.star")
    halfmap.reconstruct(
        particles, root / "again.mrc", symmetry="C4", halves=True, threads=1, quiet=True
    )
    halfmap.volume(root / "again.mrc", root / "box.mrc", box=16)
    halfmap.postprocess(root / "refined", root / "sharp", mask=root / "mask.mrc", quiet=True)
    halfmap.localres(root / "refined", root / "local", mask=root / "mask.mrc", quiet=True)
    halfmap.orientations(root / "refined", root / "views", mask=root / "mask.mrc", quiet=True)
    return root


def test_files_with_a_record_are_jobs_with_parents(made) -> None:
    known = set(find_jobs(made))
    assert {"refined", "mask.mrc", "low.mrc", "part.star", "again_job", "box.mrc", "sharp"} <= known
    assert parents(made, "mask.mrc", known) == ["refined"]
    assert set(parents(made, "part.star", known)) == {"refined", "low.mrc", "mask.mrc"}
    assert parents(made, "box.mrc", known) == ["again_job"]  # the map lies beside the folder
    assert job_data(made, "copies.star", command_signature)["map_before"] == "refined/map.mrc"
    data = job_data(made, "mask.mrc", command_signature)
    assert "% of the box" in data["summary"]
    assert [one["file"] for one in data["maps"]] == ["mask.mrc"]
    assert "mask.png" in data["pictures"]
    assert {one["name"] for one in data["files"]} == {"mask.mrc", "mask.png"}


def test_the_command_of_a_file_job_repeats_it(made, tmp_path) -> None:
    data = job_data(made, "low.mrc", command_signature)
    words = [
        w.replace(str(made / "low.mrc"), str(tmp_path / "same.mrc"))
        for w in shlex.split(data["shell"])[1:]
    ]
    subprocess.run([sys.executable, "-m", "halfmap.cli.main", *words], cwd=made, check=True)
    assert (tmp_path / "same.mrc").read_bytes() == (made / "low.mrc").read_bytes()


@pytest.mark.parametrize("job", ["again_job", "sharp", "local", "mask.mrc", "low.mrc", "refined"])
def test_a_report_has_the_mesh_of_the_map(made, job) -> None:
    page = report_page(made, job, command_signature, False)
    told = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    meshes = told["jobs"][0]["meshes"]
    assert meshes
    assert all(len(one["packed"]) > 1000 for one in meshes)
    assert len(page) < 10e6
    if job == "local":  # its coloured slices
        assert "local_resolution.png" in [one["name"] for one in told["jobs"][0]["shown"]]


def test_a_form_of_a_file_starts_it_and_the_file_is_a_job(made, serve) -> None:
    server = serve(made)
    values = {"map": "refined/map.mrc", "lowpass_angstrom": "50", "out": "by_form.mrc"}
    status, told = server.post("/api/start", {"command": "volume", "values": values})
    assert status == 200, told
    end = time.monotonic() + 120
    while "by_form.mrc" not in (rows := {r["id"]: r for r in server.get("/api/rows")["rows"]}):
        assert time.monotonic() < end
        time.sleep(0.2)
    assert rows["by_form.mrc"]["parents"] == ["refined"]
    assert rows["by_form.mrc"]["summary"] == "low-passed at 50 A"
    assert server.ask("/api/thumbnail?id=by_form.mrc")[0] == 200


def test_a_map_beside_its_job_is_served_and_nothing_else_beside_it(made, serve) -> None:
    (made / "secret.mrc").write_bytes((made / "low.mrc").read_bytes())
    server = serve(made)
    assert server.ask("/api/surface?id=again_job&file=again.mrc")[0] == 200
    assert server.ask("/api/file?id=again_job&name=again_half1.mrc")[0] == 200
    assert server.ask("/api/surface?id=mask.mrc&file=mask.mrc")[0] == 200
    assert server.ask("/api/picture?id=mask.mrc&name=mask.png")[0] == 200
    for job in ("again_job", "mask.mrc"):
        for name in ("secret.mrc", "../secret.mrc", "low.mrc", "./low.mrc"):
            assert server.ask(f"/api/file?id={job}&name={name}")[0] == 400, (job, name)
    record = json.loads((made / "again_job" / "job.json").read_text())
    kept = dict(record["results"])
    beside = made.parent / "beyond.mrc"
    beside.write_bytes(b"SECRET")
    (made / "link.mrc").symlink_to(beside)
    lies = ["../beyond.mrc", str(beside), "link.mrc", ".hidden", "..", 7, None]
    record["results"]["files"] = lies
    (made / "again_job" / "job.json").write_text(json.dumps(record))
    for name in ("../beyond.mrc", str(beside), "link.mrc", "..", ".hidden"):
        status, _, body = server.ask(f"/api/file?id=again_job&name={name}")
        assert status == 400
        assert b"SECRET" not in body
    assert server.ask("/api/job?id=again_job")[0] == 200
    record["results"] = kept
    (made / "again_job" / "job.json").write_text(json.dumps(record))
    for one in (beside, made / "link.mrc", made / "secret.mrc"):
        one.unlink()


def test_a_tree_that_has_moved_is_the_same_tree(jobs, tmp_path) -> None:
    root = tmp_path.resolve() / "elsewhere"
    shutil.copytree(jobs / "particles", root / "particles")
    shutil.copytree(jobs / "classes", root / "classes")
    assert parents(root, "classes", set(find_jobs(root))) == ["particles"]


def test_figures_are_numbers_of_what_was_found(made) -> None:
    (cones,) = [f for f in read_figures(made / "views") if f["title"].startswith("FSC in cones")]
    curves = {name: np.array(y) for name, y in cones["curves"].items()}
    assert (curves["nine tenths lie above"] <= curves["nine tenths lie below"] + 1e-6).all()
    (local,) = read_figures(made / "local")
    inside = read_map(made / "local" / "mask.mrc")[0] > 0.5
    values = read_map(made / "local" / "local_resolution.mrc")[0][inside]
    (counts,) = local["curves"].values()
    assert 0.97 * len(values) <= sum(counts) <= len(values)
    (guinier,) = read_figures(made / "sharp")
    assert guinier["title"].startswith("Guinier")
    assert all(np.diff(guinier["x"]) > 0)


def test_figures_of_a_title_are_replaced_and_broken_ones_left_out(tmp_path) -> None:
    one = Figure("One", "x", "y", [1, 2], {"a": [3, float("nan")]})
    add_figures(tmp_path, one, Figure("Two", "x", "y", [1], {"b": [2]}))
    add_figures(tmp_path, Figure("One", "x", "y", [1], {"a": [9]}))
    assert [(f["title"], f["curves"]) for f in read_figures(tmp_path)] == [
        ("One", {"a": [9]}),
        ("Two", {"b": [2]}),
    ]
    path = tmp_path / "shown" / "figures.json"
    path.write_text('[{"title": "A", "kind": "curves", "x": [1, 2], "curves": {"a": [1]}}, 5]')
    assert read_figures(tmp_path) == []
    path.write_text("{")
    assert read_figures(tmp_path) == []


def test_the_views_that_a_job_keeps_while_it_runs_are_those_of_its_particles(jobs) -> None:
    """Those of the last iteration are those in the STAR, mates and all."""
    from halfmap.particles import load_particles

    kept = read_views(jobs / "refined")
    assert kept is not None
    assert kept["iteration"] == 3
    particles = load_particles(jobs / "refined" / "particles.star", check_images=False)
    mates = np.asarray(symmetry_matrices("C4"))
    counts = count_by_cell(viewing_directions(particles.rotations_deg, mates))["counts"]
    moved = sum(abs(np.array(a) - b).sum() for a, b in zip(counts, kept["counts"], strict=True))
    assert sum(map(sum, kept["counts"])) == 4 * len(particles)
    assert moved <= 8  # views on the border of two cells, rounded in the file


def test_directions_are_shown_while_a_job_runs(jobs, serve, tmp_path) -> None:
    root = tmp_path.resolve()
    shutil.copytree(jobs / "refined", root / "node")
    record = json.loads((root / "node" / "job.json").read_text())
    record |= {"status": "running", "machine": {"host": "node17"}}
    (root / "node" / "job.json").write_text(json.dumps(record))
    (root / "node" / "particles.star").unlink()
    server = serve(root)
    told = server.get("/api/directions?id=node")
    assert told["iteration"] == 3
    before = server.get("/api/rows")["rows"][0]["shown"]
    (root / "node" / "shown" / "views.json").unlink()
    assert server.get("/api/directions?id=node") is None
    assert server.get("/api/rows")["rows"][0]["shown"] != before  # by which a page knows


@pytest.mark.parametrize(("box", "size"), [(32, 32), (32, 64), (48, 24), (33, 64), (50, 20)])
def test_a_surface_has_the_colour_of_its_place(tmp_path, box, size) -> None:
    """A ball whose values run along x and y: each vertex has that of where it lies, whatever grid
    the surface was made on."""
    z, y, x = np.mgrid[:box, :box, :box] - box // 2.0
    ball = np.exp(-(x**2 + y**2 + z**2) / (2 * (box / 6) ** 2)).astype(np.float32)
    values = (5 + 0.1 * x + 0.02 * y).astype(np.float32)
    write_map(tmp_path / "local_resolution.mrc", values, 1.5)
    mask = (np.abs(x) < box / 4).astype(np.float32)
    write_map(tmp_path / "mask.mrc", mask, 1.5)
    colouring = colouring_of(tmp_path / "local_resolution.mrc")
    inside = values[mask > 0.5]
    assert (colouring.low, colouring.high) == pytest.approx(np.quantile(inside, [0.02, 0.98]))
    found = colouring.surface_of(ball, 1.5, level=0.5, size=size)
    assert len(found.shares) == len(found.vertices) > 100
    # a surface's grid of blocks lies at their corners: half a block less one voxel off its places
    block = -(-box // size)
    middle = (block - 1) / 2 + block * (len(range(0, box - block + 1, block)) // 2) - box // 2
    at = found.vertices * (box // block * block / 2) + middle
    expected = 5 + 0.1 * at[:, 0] + 0.02 * at[:, 1]
    told = colouring.low + found.shares / 255 * (colouring.high - colouring.low)
    within = (expected > colouring.low) & (expected < colouring.high)
    assert np.abs(told - expected)[within].max() < 0.05
    assert found.packed()[:4] == b"2MFH"
    write_map(tmp_path / "map_locally_filtered.mrc", ball, 1.5)  # then what of it is seen counts
    seen = colouring_of(tmp_path / "local_resolution.mrc")
    dense = values[ball >= 0.5 * default_level(ball)]
    assert (seen.low, seen.high) == pytest.approx(np.quantile(dense, [0.02, 0.98]), rel=1e-3)
    assert colouring.low < seen.low < seen.high < colouring.high
    with pytest.raises(halfmap.InputError, match="pixels was expected"):
        colouring.surface_of(ball[1:, 1:, 1:], 1.5)


def test_maps_of_a_local_resolution_are_coloured_by_it(made, serve) -> None:
    maps = {m["label"]: m for m in job_data(made, "local", command_signature)["maps"]}
    coloured = {name for name, one in maps.items() if one.get("colour") == "local_resolution.mrc"}
    assert coloured == {"map_locally_filtered", "map_locally_sharpened"}
    server = serve(made)
    asked = "/api/surface?id=local&file=map_locally_filtered.mrc"
    plain, with_colours = (
        server.ask(asked + more) for more in ("", "&colour=local_resolution.mrc")
    )
    assert (plain[0], with_colours[0]) == (200, 200)
    n = int.from_bytes(plain[2][4:8], "little")
    assert len(with_colours[2]) == len(plain[2]) + 8 + n
    for wrong in ("../refined/map.mrc", "/etc/passwd", "nowhere.mrc", "job.json"):
        assert server.ask(f"{asked}&colour={wrong}")[0] == 400


def test_messages_are_kept_in_plain_words(jobs) -> None:
    data = job_data(jobs, "refined", command_signature)
    assert any(line.startswith("refine 3/3:") for line in data["messages"])


def test_the_default_threshold_of_a_mask_is_its_edge() -> None:
    axis = np.arange(32) - 16
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    mask = np.clip((12 - np.sqrt(x**2 + y**2 + z**2)) / 4 + 0.5, 0, 1).astype(np.float32)
    assert default_level(mask) == pytest.approx(0.5)
