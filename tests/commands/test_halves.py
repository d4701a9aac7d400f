"""Half sets and copies: an image is never in both halves, half sets of the file are kept, and what
was changed is told."""

import numpy as np
import pytest
import torch

import halfmap
from halfmap.commands._copies import find_copies
from halfmap.commands._halves import divide_into_folds, divide_into_halves, halves_at_known_poses
from halfmap.errors import InputError
from halfmap.io.mrc import read_map, write_map
from halfmap.io.stack_writer import write_stack
from halfmap.io.star import read_star, write_star
from halfmap.io.table import Table
from halfmap.particles import load_particles
from halfmap.resolution import fourier_shell_correlation
from halfmap.so3 import matrix_to_euler, random_rotations
from halfmap.workspace.progress import Progress

BOX = 24


class Told(Progress):
    """A progress line that keeps what it is told."""

    def __init__(self):
        super().__init__("test", quiet=True)
        self.lines = []

    def note(self, message):
        self.lines.append(message)


def noise(folder, n=60, **columns):
    """Images of noise with poses, and the rows of their STAR."""
    random = np.random.default_rng(0)
    write_stack(folder / "a.mrcs", random.normal(size=(n, BOX, BOX)).astype(np.float32), 4.0)
    angles = matrix_to_euler(random_rotations(n, torch.Generator().manual_seed(1)).double()).numpy()
    return {
        "rlnImageName": [f"{i + 1:06d}@a.mrcs" for i in range(n)],
        "rlnImagePixelSize": [4.0] * n,
        **{f"rlnAngle{x}": angles[:, i] for i, x in enumerate(("Rot", "Tilt", "Psi"))},
        **columns,
    }


def save(path, rows, take=None):
    table = Table.from_columns(rows)
    write_star(path, {"particles": table if take is None else table.take(np.asarray(take))})
    return path


def test_copies_of_noise_do_not_make_a_resolution(tmp_path):
    """Half maps of pure noise agree where each image is in both; with copies kept together they
    agree no more than half maps of the images themselves."""
    rows, n = noise(tmp_path), 60
    for name, take in (("once", range(n)), ("twice", [*range(n), *range(n)])):
        save(tmp_path / f"{name}.star", rows, list(take))
        halfmap.reconstruct(
            tmp_path / f"{name}.star", tmp_path / f"{name}.mrc", halves=True, ctf=False, quiet=True
        )
    for name in ("once", "twice"):
        maps = (read_map(tmp_path / f"{name}_half{h}.mrc")[0] for h in (1, 2))
        fsc = fourier_shell_correlation(*maps, pixel_size_angstrom=4.0).correlation
        assert abs(float(fsc[3:11].mean())) < 0.15, name


@pytest.mark.parametrize("with_halves", [False, True])
def test_copies_are_in_one_half_and_one_fold(tmp_path, with_halves):
    rows = noise(tmp_path, 40)
    take = [*range(40), *range(0, 40, 2)]
    if with_halves:  # and the file has copies in both
        rows["rlnRandomSubset"] = [1, 2] * 20
    save(tmp_path / "a.star", rows, take)
    if with_halves:
        blocks = read_star(tmp_path / "a.star").blocks
        flipped = [1, 2] * 20 + [2] * 20
        table = blocks["particles"].with_columns({"rlnRandomSubset": flipped})
        write_star(tmp_path / "a.star", {"particles": table})
    particles, told = load_particles(tmp_path / "a.star"), Told()
    half = divide_into_halves(particles, 1, progress=told).numpy()
    fold = divide_into_folds(particles, 4, 1).numpy()
    assert (half[40:] == half[:40:2]).all()
    assert (fold[40:] == fold[:40:2]).all()
    assert "20 rows are copies (20 of the same stack and number)" in told.lines[-1]
    assert "select --unique" in told.lines[-1]
    if with_halves:
        assert half[:40].tolist() == [0, 1] * 20  # the first rows stay where they are
        assert "20 of them are moved" in told.lines[-1]


def test_one_stack_under_two_names_is_one(tmp_path):
    rows = noise(tmp_path, 10)
    rows["rlnImageName"] = [f"{i // 2 + 1}@{'./' * (i % 2)}a.mrcs" for i in range(10)]
    found = find_copies(load_particles(save(tmp_path / "a.star", rows)))
    assert (found.same_image, found.near) == (5, 0)


def test_picks_of_one_place_are_one_particle(tmp_path):
    """Distance of the centres, coordinate less origin, in Angstrom of the micrograph's pixels."""
    rows = noise(tmp_path, 6)
    rows |= {
        "rlnMicrographName": ["m1", "m1", "m1", "m2", "m2", "m1"],
        "rlnCoordinateX": [100.0, 110.0, 300.0, 100.0, 140.0, 325.0],
        "rlnCoordinateY": [50.0, 50.0, 50.0, 50.0, 50.0, 50.0],
        "rlnOriginXAngst": [0.0, 0.0, 0.0, 0.0, 0.0, 24.0],
        "rlnOriginYAngst": [0.0] * 6,
        "rlnMicrographPixelSize": [2.0] * 6,
    }
    particles = load_particles(save(tmp_path / "a.star", rows))
    found = find_copies(particles)  # rows 1 and 2 are 20 A apart, 3 and 6 are 26 A
    assert (found.same_image, found.near) == (0, 2)
    assert found.unit[0] == found.unit[1]
    assert found.unit[2] == found.unit[5]
    assert len(set(found.unit.tolist())) == 4
    assert find_copies(particles, 21.0).near == 1
    assert find_copies(particles, 20.0).near == 0  # at the distance, not within
    rows["rlnCoordinateX"] = rows["rlnCoordinateY"] = [0.0] * 6  # a column that says nothing
    assert find_copies(load_particles(save(tmp_path / "b.star", rows))).count == 0


def test_neighbours_never_empty_a_half(tmp_path):
    """Picks so dense that chains of neighbours hold all particles tell no copies."""
    rows = noise(tmp_path, 20)
    rows |= {
        "rlnMicrographName": ["m"] * 20,
        "rlnCoordinateX": np.arange(20) * 5.0,
        "rlnCoordinateY": [1.0] * 20,
    }
    half = divide_into_halves(load_particles(save(tmp_path / "a.star", rows)), 1)
    assert 5 < int(half.sum()) < 15


def test_half_sets_that_are_there_stay_and_rows_without_are_added(tmp_path):
    rows = noise(tmp_path, 60, rlnRandomSubset=[1, 2, 2] * 10 + [0] * 30)
    particles, told = load_particles(save(tmp_path / "a.star", rows)), Told()
    half = divide_into_halves(particles, 1, progress=told).numpy()
    assert (half[:30] + 1).tolist() == [1, 2, 2] * 10
    assert 8 < half[30:].sum() < 22
    assert "30 of 60 rows have no half set" in told.lines[0]
    assert "the other 30 stay" in told.lines[0]
    whole = particles.take(np.arange(30))
    assert divide_into_halves(whole, 1, progress=(quiet := Told())).tolist() == half[:30].tolist()
    assert quiet.lines == []


def test_a_job_keeps_half_sets_and_says_what_it_added(tmp_path, capsys):
    rows = noise(tmp_path, 40, rlnRandomSubset=[1, 2] * 10 + [0] * 20)
    star = save(tmp_path / "a.star", rows)
    volume = np.random.default_rng(0).normal(size=(BOX,) * 3).astype(np.float32)
    write_map(tmp_path / "ref.mrc", volume, 4.0)
    halfmap.refine(
        star, tmp_path / "ref.mrc", tmp_path / "r", ctf=False, iterations=1, folds=1, local=True
    )
    assert "20 of 40 rows have no half set" in capsys.readouterr().err
    written = read_star(tmp_path / "r" / "particles.star").blocks["particles"]
    image = [int(name.partition("@")[0]) for name in written.strings("rlnImageName")]
    of = dict(zip(image, written.ints("rlnRandomSubset").tolist(), strict=True))
    assert [of[i + 1] for i in range(20)] == [1, 2] * 10


def test_one_half_alone_is_one_line(tmp_path):
    rows = noise(tmp_path, 40, rlnRandomSubset=[1] * 40)
    star = save(tmp_path / "a.star", rows)
    write_map(tmp_path / "ref.mrc", np.random.default_rng(0).normal(size=(BOX,) * 3), 4.0)
    with pytest.raises(InputError, match=r"_rlnRandomSubset is 1 in all 40 rows, expected 1 and 2"):
        halfmap.refine(star, tmp_path / "ref.mrc", tmp_path / "r", ctf=False, quiet=True)
    halves_at_known_poses(load_particles(star), 1, told := Told())
    assert "halves are drawn at random" in told.lines[0]


def test_select_unique_removes_copies(tmp_path):
    rows = noise(tmp_path, 40, rlnClassNumber=[1, 2] * 20)
    star = save(tmp_path / "a.star", rows, [*range(40), *range(10)])
    chosen = halfmap.select(star, tmp_path / "b.star", unique=True)
    assert (chosen.kept, chosen.of) == (40, 50)
    assert "10 of the same stack and number" in chosen.lines[0]
    names = read_star(tmp_path / "b.star").blocks["particles"].strings("rlnImageName")
    assert len(set(names.tolist())) == 40
    both = halfmap.select(star, tmp_path / "c.star", unique=True, classes=[2])
    assert (both.kept, both.of) == (20, 50)
    with pytest.raises(InputError, match=r"--min-distance 9: has no effect without --unique"):
        halfmap.select(star, tmp_path / "d.star", classes=[1], min_distance_angstrom=9)
