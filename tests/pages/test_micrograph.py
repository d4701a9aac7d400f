"""The micrograph on a particle's page: the right part of it is marked, and nothing else is read."""

import base64
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halfmap.io.stack_writer import write_stack
from halfmap.io.star import read_star, write_star
from halfmap.pages.micrograph import averaged, particle_micrograph

HEIGHT, WIDTH, SIDE = 900, 1200, 48  # of a micrograph of 4 A pixels; boxes are 24 pixels of 8 A


@pytest.fixture(scope="module")
def project(jobs, tmp_path_factory) -> Path:
    """Particles picked from two micrographs, of which one is on disk: bright where they are."""
    root = tmp_path_factory.mktemp("project").resolve()
    shutil.copytree(jobs / "refined", root / "refined")
    star = root / "refined" / "particles.star"
    blocks = read_star(star).blocks
    table, n = blocks["particles"], len(blocks["particles"])
    x, y = 60.0 + 25 * (np.arange(n) % 40), 50.0 + 12 * np.arange(n)
    names = np.where(np.arange(n) % 2 == 0, "Micrographs/one.mrc", "Micrographs/two.mrc")
    columns = {"rlnCoordinateX": x, "rlnCoordinateY": y, "rlnMicrographName": names}
    optics = blocks["optics"].with_columns({"rlnMicrographOriginalPixelSize": np.full(1, 4.0)})
    write_star(star, {**blocks, "optics": optics, "particles": table.with_columns(columns)})
    image = np.random.default_rng(1).normal(size=(HEIGHT, WIDTH)).astype(np.float32)
    for i in range(0, n, 2):
        image[int(y[i]) - 12 : int(y[i]) + 12, int(x[i]) - 12 : int(x[i]) + 12] += 8
    (root / "Micrographs").mkdir()
    write_stack(root / "Micrographs" / "one.mrc", image[None], 4.0)
    return root


def test_boxes_lie_where_particles_are(project) -> None:
    told = particle_micrograph(str(project / "refined"), 4)
    assert (told["width"], told["height"]) == (WIDTH, HEIGHT)
    assert told["side"] == SIDE
    index, x, y = told["boxes"][0]
    assert index == 4
    assert {i % 2 for i, _, _ in told["boxes"]} == {0}
    body = base64.b64decode(told["picture"].split(",")[1])
    seen = np.asarray(Image.open(io.BytesIO(body)), float)
    assert max(seen.shape) <= 720
    scale = seen.shape[1] / WIDTH

    def brightness(a: float, b: float) -> float:
        r, c = round(b * scale), round(a * scale)
        return float(seen[r - 4 : r + 4, c - 4 : c + 4].mean())

    places = [brightness(a, b) for _, a, b in told["boxes"]]
    assert min(places) > 1.5 * np.median(seen)
    assert brightness(HEIGHT - y, x) < min(places)  # rows and columns are not exchanged


def test_a_micrograph_that_is_not_there_is_told_in_a_line(project) -> None:
    told = particle_micrograph(str(project / "refined"), 1)
    assert told["note"] == "The micrograph Micrographs/two.mrc is not on this machine's disk."
    assert "picture" not in told


def test_a_micrograph_is_found_from_where_the_job_was_started(project, tmp_path) -> None:
    shutil.copytree(project / "Micrographs", tmp_path / "raw" / "Micrographs")
    shutil.copytree(project / "refined", tmp_path / "jobs" / "refined")
    record = json.loads((tmp_path / "jobs" / "refined" / "job.json").read_text())
    record["working_directory"] = str(tmp_path / "raw")
    (tmp_path / "jobs" / "refined" / "job.json").write_text(json.dumps(record))
    assert "picture" in particle_micrograph(str(tmp_path / "jobs" / "refined"), 0)


def _named(project: Path, folder: Path, name: str) -> dict:
    shutil.copytree(project / "refined", folder / "job")
    star = folder / "job" / "particles.star"
    star.write_text(star.read_text().replace("Micrographs/one.mrc", name))
    return particle_micrograph(str(folder / "job"), 0)


@pytest.mark.parametrize("name", ["/etc/passwd", "secret.mrc", "pipe.mrc", "movie.mrc", "."])
def test_what_is_no_micrograph_is_not_shown(project, tmp_path, name) -> None:
    (tmp_path / "secret.mrc").write_text("SECRET " * 400)
    os.mkfifo(tmp_path / "pipe.mrc")
    write_stack(tmp_path / "movie.mrc", np.zeros((3, 16, 16), np.float32), 4.0)
    told = _named(project, tmp_path, name)
    assert "picture" not in told
    assert told["note"]
    assert "SECRET" not in json.dumps(told)


def test_without_coordinates_there_is_the_picture_alone(project, tmp_path) -> None:
    shutil.copytree(project, tmp_path / "p")
    star = tmp_path / "p" / "refined" / "particles.star"
    star.write_text(star.read_text().replace("rlnCoordinateX", "otherColumn"))
    told = particle_micrograph(str(tmp_path / "p" / "refined"), 0)
    assert "boxes" not in told
    assert "no coordinates" in told["note"]
    assert told["picture"]


@pytest.mark.parametrize("shape", [(10, 7), (11, 23), (5, 5)])
def test_averaging_keeps_means_of_blocks(shape) -> None:
    image = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    small = averaged(image, 5)
    factor = -(-max(shape) // 5)
    assert max(small.shape) <= 5
    assert small[0, 0] == pytest.approx(image[:factor, :factor].mean(), abs=1e-6)


def test_the_server_gives_the_picture_and_never_the_file(project, serve) -> None:
    server = serve(project)
    told = server.get("/api/particle?id=refined&index=0&micrograph=1")
    assert told["picture"].startswith("data:image/jpeg")
    for asked in (
        "api/file?id=refined&name=../Micrographs/one.mrc",
        "api/surface?id=refined&file=../Micrographs/one.mrc",
    ):
        assert server.ask(f"/{asked}")[0] == 400
