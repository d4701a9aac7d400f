"""Stacks as they come: what a job would stumble over is told before it, by kind and count."""

import numpy as np
import pytest

import halfmap
from halfmap.io.mrc import read_map
from halfmap.io.stack_writer import write_stack
from halfmap.io.star import read_star
from halfmap.particles import load_particles
from odd_scene import BOX, PIXEL, N, told, written

FAULTS = {  # of `several`, and what is said of each
    "stacks not found: 1 of 5 (4 of 24 particles)": "row 9: image file b.mrcs was not found",
    "stacks that cannot be read: 1 of 5 (4 of 24 particles)": "c.mrcs: is truncated",
    "stacks with fewer images than rows ask for: 1 of 5 (3 of 24 particles)": "row 20, column",
    "stacks of another box than _rlnImageSize: 1 of 5 (4 of 24 particles)": "row 21: ",
}


@pytest.fixture
def several(scene):
    """`v.star`: rows in five stacks, of which one is missing, one cut short, one has fewer images
    than rows ask for, and one another box."""
    images = load_particles("truth.star").images(np.arange(N))
    write_stack("a.mrcs", images[:8], PIXEL)
    write_stack("c.mrcs", images[12:16], PIXEL)
    (scene / "c.mrcs").write_bytes((scene / "c.mrcs").read_bytes()[:-900])
    write_stack("d.mrcs", images[16:17], PIXEL)
    write_stack("e.mrcs", np.pad(images[20:], ((0, 0), (2, 2), (2, 2))), PIXEL)
    sizes = {"a": 8, "b": 4, "c": 4, "d": 4, "e": 4}
    names = [f"{i + 1:06d}@{name}.mrcs" for name, n in sizes.items() for i in range(n)]
    return written(scene, rlnImageName=names)


def test_info_tells_each_kind_of_broken_stack_in_a_line(several) -> None:
    """And describes the particles all the same; of a clean set it says nothing of the kind."""
    found = halfmap.info("v.star")
    assert found.facts[0]["particles"] == N
    for kind, example in FAULTS.items():
        (line,) = [line for line in found.lines if kind in line]
        assert example in line
    assert "notes" not in halfmap.info("truth.star").facts[0]


def test_the_first_stack_may_be_the_broken_one(scene) -> None:
    """A table without sizes: those of the first stack that can be read."""
    names = ["1@cut.mrcs", *(f"{i + 1:06d}@particles.mrcs" for i in range(1, N))]
    (scene / "cut.mrcs").write_bytes((scene / "particles.mrcs").read_bytes()[:2000])
    written(scene, without=("rlnImageSize", "rlnImagePixelSize"), rlnImageName=names)
    (facts,) = halfmap.info("v.star").facts
    assert (facts["box"], facts["pixel_size_angstrom"]) == (BOX, PIXEL)
    assert any("stacks that cannot be read: 1 of 2 (1 of" in note for note in facts["notes"])


@pytest.mark.parametrize("out", ["o.star", "o.cs"])
def test_convert_tells_of_broken_stacks_and_converts(several, capsys, out) -> None:
    code, said = told(capsys, "convert", "v.star", out)
    assert code == 0, said
    for kind, example in FAULTS.items():
        (line,) = [line for line in said.splitlines() if kind in line]
        assert example in line
    assert len(load_particles(out, check_images=False)) == N


def test_stacks_without_columns_have_the_pixel_sizes_of_their_headers(scene) -> None:
    """All particles were of the first header's size."""
    images = load_particles("truth.star").images(np.arange(N))
    write_stack("a.mrcs", images[:12], PIXEL)
    write_stack("b.mrcs", images[12:], 1.25 * PIXEL)
    names = [f"{i % 12 + 1:06d}@{'ab'[i // 12]}.mrcs" for i in range(N)]
    blocks = read_star(written(scene, rlnImageName=names)).blocks
    table = blocks["particles"].without("rlnOpticsGroup")
    for name in ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast"):
        table = table.with_columns({name: [blocks["optics"].strings(name)[0]] * N})
    halfmap.io.star.write_star("v.star", {"": table})
    particles = load_particles("v.star")
    sizes = np.array([one.pixel_size_angstrom for one in particles.grids])[particles.stored]
    np.testing.assert_allclose(sizes, [PIXEL] * 12 + [1.25 * PIXEL] * 12)
    halfmap.convert("v.star", "o.star")
    again = read_star("o.star").blocks["optics"]
    np.testing.assert_allclose(again.floats("rlnImagePixelSize"), [PIXEL, 1.25 * PIXEL])


def test_a_header_that_contradicts_a_later_stack_is_told(scene) -> None:
    images = load_particles("truth.star").images(np.arange(N))
    write_stack("a.mrcs", images[:18], PIXEL)
    write_stack("b.mrcs", images[18:], PIXEL / 2)
    names = [f"{i + 1:06d}@a.mrcs" for i in range(18)] + [f"{i + 1:06d}@b.mrcs" for i in range(6)]
    (note,) = load_particles(written(scene, rlnImageName=names)).notes
    assert "pixels of 6 of 24 images are 8 A by the columns, which count, and 4 A by" in note
    assert "(row 19)" in note


@pytest.mark.parametrize("times", [0.02, 50.0])
def test_images_of_which_some_are_not_normalised_give_the_map_of_normalised_ones(
    scene, capsys, times
) -> None:
    """Two sets joined, of which one was not: in the median, images are as they should be."""
    halfmap.reconstruct("truth.star", "clean.mrc", threads=1, quiet=True)
    images = load_particles("truth.star").images(np.arange(N))
    images[::3] = times * (images[::3] + 0.5)
    write_stack("some.mrcs", images, PIXEL)
    star = written(scene, rlnImageName=[f"{i + 1:06d}@some.mrcs" for i in range(N)])
    capsys.readouterr()
    halfmap.reconstruct(star, "some.mrc", threads=1)
    assert "some images are not normalised" in capsys.readouterr().err
    maps = [read_map(name)[0].ravel() for name in ("clean.mrc", "some.mrc")]
    assert np.corrcoef(*maps)[0, 1] > 0.995
