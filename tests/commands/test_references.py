"""`--reference` takes a map, a job, or the table in which RELION names its maps; a mask fits into its
box, or is made to."""

from pathlib import Path

import pytest
import torch

import halfmap
from halfmap.commands._references import one_reference, references_of
from halfmap.errors import InputError
from halfmap.io.mrc import read_map, write_map
from halfmap.io.star import write_star
from halfmap.io.table import Table
from halfmap.masks import inside_box, reaches_edge, soft_sphere
from halfmap.simulation.phantom import phantom

BOX, PIXEL = 32, 6.0


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A RELION project in which a job names its maps from the project's folder."""
    job = tmp_path / "Class3D" / "job001"
    job.mkdir(parents=True)
    for k in (1, 2):
        write_map(job / f"run_it025_class00{k}.mrc", phantom(BOX, PIXEL).numpy(), PIXEL)
    return tmp_path


def _table(project: Path, names: list[str], column: str = "rlnReferenceImage") -> Path:
    path = project / "Class3D" / "job001" / "run_it025_model.star"
    general = Table.from_columns({"rlnNrClasses": [len(names)]}, is_loop=False)
    write_star(
        path, {"model_general": general, "model_classes": Table.from_columns({column: names})}
    )
    return path


def test_the_maps_of_relions_model_star_are_taken(project: Path) -> None:
    names = [f"Class3D/job001/run_it025_class00{k}.mrc" for k in (1, 2)]
    both = _table(project, names)
    assert references_of([both]) == [project / name for name in names]
    with pytest.raises(InputError, match=r"names 2 maps; give one of them, such as .*class001"):
        one_reference(both)
    assert one_reference(_table(project, names[1:])) == project / names[1]


def test_the_map_of_a_job_is_taken(tmp_path: Path) -> None:
    (tmp_path / "refined").mkdir()
    write_map(tmp_path / "refined/map.mrc", phantom(BOX, PIXEL).numpy(), PIXEL)
    assert one_reference(tmp_path / "refined") == tmp_path / "refined/map.mrc"


@pytest.mark.parametrize(
    ("name", "column", "words"),
    [
        ("Class3D/job001/gone.mrc", "rlnReferenceImage", "row 1.*gone.mrc was not found"),
        ("000001@Class2D/classes.mrcs", "rlnReferenceImage", "class average.*halfmap abinitio"),
        ("Class3D/job001/run_it025_class001.mrc", "rlnMicrographName", "expected a map"),
    ],
)
def test_a_table_that_names_no_map_is_refused_in_a_line(project, name, column, words) -> None:
    star = _table(project, [name], column)
    with pytest.raises(InputError, match=words) as caught:
        halfmap.refine("p.star", star, project / "out")
    assert "\n" not in str(caught.value)
    assert not (project / "out").exists()


@pytest.mark.parametrize("box", [32, 33])
def test_a_mask_that_its_box_cuts_is_made_to_fit(box: int) -> None:
    ball = soft_sphere(box, radius_px=0.3 * box, edge_px=3)
    assert inside_box(ball) is ball
    cut = ball.roll(box // 3, 1)
    assert reaches_edge(cut)
    fitted = inside_box(cut)
    assert not reaches_edge(fitted)
    middle = slice(box // 2 - box // 6, box // 2 + box // 6)  # what lies well inside the box stays
    torch.testing.assert_close(fitted[middle, middle, middle], cut[middle, middle, middle])


def test_a_job_whose_particle_fills_its_box_goes_on_into_postprocess(tmp_path: Path) -> None:
    halfmap.simulate(
        ["phantom"],
        tmp_path / "sim",
        n=120,
        snr=5.0,
        box=BOX,
        pixel_size_angstrom=PIXEL,
        quiet=True,
    )
    star, width = tmp_path / "sim/truth.star", BOX * PIXEL
    made = {"diameter_angstrom": width, "quiet": True, "threads": 1}
    halfmap.class3d(
        star, tmp_path / "sim/truth_1.mrc", tmp_path / "job", classes=1, iterations=1, **made
    )
    assert not reaches_edge(torch.from_numpy(read_map(tmp_path / "job/mask.mrc")[0]))
    halves = [tmp_path / f"job/class001_half{h}.mrc" for h in (1, 2)]
    mask = tmp_path / "job/mask.mrc"
    halfmap.postprocess(halves, tmp_path / "sharpened", mask=mask, quiet=True)


def test_a_mask_that_the_box_cuts_ends_inside_it_in_a_job_too(tmp_path: Path) -> None:
    made = {"n": 60, "snr": 5.0, "box": BOX, "pixel_size_angstrom": PIXEL, "quiet": True}
    halfmap.simulate(["phantom"], tmp_path / "sim", **made)
    write_map(tmp_path / "cut.mrc", torch.ones(BOX, BOX, BOX).numpy(), PIXEL)
    star, job = tmp_path / "sim/truth.star", tmp_path / "job"
    halfmap.reconstruct(star, job, halves=True, mask=tmp_path / "cut.mrc", quiet=True)
    used = torch.from_numpy(read_map(job / "mask.mrc")[0])
    torch.testing.assert_close(used, inside_box(torch.ones(BOX, BOX, BOX)))
    assert "cut.mrc" not in (job / "fsc.star").read_text()  # not the mask that it was made with
    assert "cut by the box" in (job / "messages.txt").read_text()
    halfmap.postprocess(job, tmp_path / "sharpened", quiet=True)  # which refuses one that is cut


def test_a_whole_mask_keeps_its_file_and_one_of_a_face_alone_is_refused(tmp_path: Path) -> None:
    made = {"n": 60, "snr": 5.0, "box": BOX, "pixel_size_angstrom": PIXEL, "quiet": True}
    halfmap.simulate(["phantom"], tmp_path / "sim", **made)
    ball = soft_sphere(BOX, radius_px=10, edge_px=3)
    write_map(tmp_path / "ball.mrc", ball.numpy(), PIXEL)
    star = tmp_path / "sim/truth.star"
    halfmap.reconstruct(star, tmp_path / "job", halves=True, mask=tmp_path / "ball.mrc", quiet=True)
    assert "ball.mrc" in (tmp_path / "job/fsc.star").read_text()
    assert not (tmp_path / "job/mask.mrc").exists()
    face = torch.zeros(BOX, BOX, BOX)
    face[0] = 1
    write_map(tmp_path / "face.mrc", face.numpy(), PIXEL)
    with pytest.raises(InputError, match=r"face\.mrc: lies on the faces"):
        halfmap.refine(
            star, tmp_path / "sim/truth_1.mrc", tmp_path / "no", mask=tmp_path / "face.mrc"
        )
    assert not (tmp_path / "no").exists()
