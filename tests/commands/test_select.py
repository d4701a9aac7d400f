"""`halfmap select`: every way to choose, alone and together; what it says; sharp junk is not kept."""

import numpy as np
import pytest
import torch

import halfmap
from halfmap.errors import InputError
from halfmap.io.stack_writer import write_stack
from halfmap.io.star import read_star, write_star
from halfmap.io.table import Table

N = 60


@pytest.fixture
def star(tmp_path):
    """60 particles, two optics groups, three classes, two halves; no images."""
    rng = np.random.default_rng(0)
    particles = Table.from_columns(
        {
            "rlnImageName": [f"{i + 1:06d}@stack.mrcs" for i in range(N)],
            "rlnOpticsGroup": np.arange(N) % 2 + 3,
            "rlnClassNumber": np.arange(N) % 3 + 1,
            "rlnRandomSubset": np.arange(N) // 30 + 1,
            "rlnMaxValueProbDistribution": rng.random(N),
        }
    )
    optics = Table.from_columns(
        {
            "rlnOpticsGroup": [3, 4],
            "rlnOpticsGroupName": ["early", "late"],
            "rlnImagePixelSize": [2.0, 2.0],
            "rlnImageSize": [32, 32],
        }
    )
    write_star(tmp_path / "p.star", {"optics": optics, "particles": particles})
    return tmp_path / "p.star"


def rows(path) -> list[int]:
    """Which particles are in a file, from 0."""
    names = read_star(path).blocks["particles"].strings("rlnImageName")
    return [int(name.split("@")[0]) - 1 for name in names]


def test_each_wish_and_all_together(star, tmp_path):
    pmax = read_star(star).blocks["particles"].floats("rlnMaxValueProbDistribution")
    i, out = np.arange(N), tmp_path / "out.star"
    wishes = {
        "where": (["rlnMaxValueProbDistribution > 0.3"], pmax > 0.3),
        "classes": ([1, 3], i % 3 != 1),
        "half": (2, i >= 30),
        "optics_group": (["late"], i % 2 == 1),
    }
    for name, (wish, expected) in wishes.items():
        done = halfmap.select(star, out, overwrite=True, **{name: wish})
        assert rows(out) == np.flatnonzero(expected).tolist()
        assert f"kept {expected.sum()} of {N}" in done.lines[0]
    together = np.all([expected for _, expected in wishes.values()], axis=0)
    wish = {name: one for name, (one, _) in wishes.items()}
    done = halfmap.select(star, out, overwrite=True, **wish)
    assert rows(out) == np.flatnonzero(together).tolist()
    assert len(done.lines) == 6  # four wishes and what is left of two classes
    assert f"{together.sum()} of {N}" in done.summary


def test_a_share_is_drawn_by_the_seed(star, tmp_path):
    drawn = {}
    for seed in (1, 1, 2):
        halfmap.select(star, tmp_path / "out.star", share=0.25, seed=seed, overwrite=True)
        kept = rows(tmp_path / "out.star")
        assert len(kept) == 15
        assert kept == sorted(kept)
        assert drawn.setdefault(seed, kept) == kept
    assert drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        ({}, "expected a wish"),
        ({"where": ["rlnDefocusU > 3"]}, "no column _rlnDefocusU"),
        ({"where": ["rlnMaxValueProbDistribution > 3"]}, "none of 60 particles"),
        ({"classes": [7]}, "classes there: 1, 2, 3"),
        ({"optics_group": ["never"]}, "has early, late"),
        ({"share": 1.5}, "--share 1.5"),
    ],
)
def test_what_cannot_be_chosen_is_refused_and_nothing_written(star, tmp_path, wish, told):
    with pytest.raises(InputError, match=told):
        halfmap.select(star, tmp_path / "out.star", **wish)
    assert not (tmp_path / "out.star").exists()


@pytest.mark.parametrize(
    ("column", "wish"),
    [("rlnClassNumber", {"classes": [1]}), ("rlnRandomSubset", {"half": 1})],
)
def test_without_the_column_nothing_is_kept(star, tmp_path, column, wish):
    blocks = read_star(star).blocks
    write_star(star, {"optics": blocks["optics"], "particles": blocks["particles"].without(column)})
    with pytest.raises(InputError, match=f"column _{column} is missing"):
        halfmap.select(star, tmp_path / "out.star", **wish)


def test_a_handful_of_images_is_not_believed_and_what_is_not_resolved_says_so(star, tmp_path):
    """A class of two images among classes of twenty claims the finest resolution; another has
    none."""
    folder = tmp_path / "job"
    folder.mkdir()
    sizes = [20, 20, 16, 2, 2]
    blocks = read_star(star).blocks
    numbered = blocks["particles"].with_columns(
        {"rlnClassNumber": np.repeat(np.arange(5) + 1, sizes)}
    )
    write_star(folder / "particles.star", {"optics": blocks["optics"], "particles": numbered})
    table = {
        "rlnEstimatedResolution": [12.0, 12.0, 13.0, 5.0, 999.0],
        "halfmapClassSize": [200, 200, 160, 2, 20],
    }
    write_star(folder / "classes.star", {"model_classes": Table.from_columns(table)})
    done = halfmap.select(folder, tmp_path / "out.star", resolved_within=1.5)
    assert done.classes == (1, 2, 3)
    assert any("class 4 dropped: 2 images, too few" in line for line in done.lines)
    assert any("class 5 dropped: not resolved" in line for line in done.lines)


@pytest.mark.parametrize("junk", ["ice", "edge", "speckle"])
def test_a_sharp_class_of_junk_is_not_kept(star, tmp_path, junk):
    """Nine views of a molecule and one class of junk, which claims the best resolution of all."""
    from halfmap.fourier import half_plane, inverse_fourier_transform
    from halfmap.projection import extract_slices, prepare_references
    from halfmap.simulation.phantom import phantom
    from halfmap.so3 import random_rotations

    plane = half_plane(32, 15)
    references = prepare_references(phantom(32, 6.0)[None], 15)
    views = random_rotations(9, torch.Generator().manual_seed(0))
    images = inverse_fourier_transform(extract_slices(references, views, plane), plane)
    axis = torch.arange(32) - 16.0
    spot = torch.exp(-(axis[:, None] ** 2 + axis**2) / 8)
    bad = {
        "ice": 12 * float(images.std()) * spot,
        "edge": 4 * float(images.std()) * (axis[:, None] > 3) * torch.ones(32, 32),
        "speckle": float(images.std())
        * torch.randn(32, 32, generator=torch.Generator().manual_seed(1)),
    }[junk]
    stack = torch.cat([images, bad[None]])
    folder = tmp_path / "job"
    folder.mkdir()
    write_stack(folder / "classes.mrcs", stack.numpy(), 6.0)
    blocks = read_star(star).blocks
    numbered = blocks["particles"].with_columns({"rlnClassNumber": np.arange(N) % 10 + 1})
    write_star(folder / "particles.star", {"optics": blocks["optics"], "particles": numbered})
    table = {"rlnEstimatedResolution": [12.0] * 8 + [30.0, 8.0], "halfmapClassSize": [6] * 10}
    write_star(folder / "classes.star", {"model_classes": Table.from_columns(table)})
    done = halfmap.select(folder, tmp_path / "out.star", resolved_within=1.5)
    assert done.classes == tuple(range(1, 9))
    assert any("class 9 dropped: 30.0 A" in line for line in done.lines)
    assert any("class 10 dropped" in line for line in done.lines)
    assert "class 3: 6 particles (10.0 %)" in done.lines
    assert "48 of 60 particles (80.0 %)" in done.summary
