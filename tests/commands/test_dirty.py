"""Jobs on dirty images: what they do about ramps."""

from pathlib import Path

import numpy as np
import pytest

from halfmap.commands.class2d import class2d
from halfmap.commands.reconstruct import reconstruct
from halfmap.commands.refine import refine
from halfmap.commands.simulate import simulate
from halfmap.io.mrc import read_map
from halfmap.io.stack_writer import write_stack
from halfmap.particles import load_particles


@pytest.mark.parametrize("box", [32, 33])
def test_ramps_make_no_classes(tmp_path: Path, box: int, capsys) -> None:
    """With the ramps left in, nearly all images lie in one class of four at this noise."""
    largest, told = {}, {}
    for name, ramp in (("plain", 0.0), ("ramps", 0.5)):
        data = simulate(
            "phantom",
            tmp_path / name,
            n=400,
            snr=0.03,
            box=box,
            pixel_size_angstrom=7.0,
            ramp=ramp,
            seed=4,
            quiet=True,
        ).folder
        result = class2d(
            data / "particles.star",
            tmp_path / f"{name}_classes",
            classes=8,
            iterations=5,
            threads=1,
        )
        largest[name] = max(result.sizes) / np.sum(result.sizes)
        told[name] = "ramps" in capsys.readouterr().err
    assert told == {"plain": False, "ramps": True}
    assert largest["ramps"] < max(1.5 * largest["plain"], 0.4)


def test_hot_pixels_cost_no_particle_and_no_signal(tmp_path: Path, capsys) -> None:
    """A map from true poses is that of the same images without hot pixels, though these lie in
    every third background by which images were normalised."""
    maps = {}
    for name, share in (("plain", 0.0), ("hot", 0.5)):
        data = simulate(
            "phantom",
            tmp_path / name,
            n=120,
            snr=0.5,
            box=32,
            pixel_size_angstrom=7.0,
            hot_pixel_fraction=share,
            seed=4,
            quiet=True,
        ).folder
        out = tmp_path / f"{name}_map"
        reconstruct(data / "truth.star", out, threads=1)
        assert not (out / "set_aside.star").exists()
        maps[name] = read_map(out / "map.mrc")[0]
        told = capsys.readouterr().err
        assert ("hot pixels" in told and "mended" in told) == (name == "hot")
    plain, hot = maps["plain"].ravel(), maps["hot"].ravel()
    assert np.corrcoef(plain, hot)[0, 1] > 0.99
    assert (plain @ hot) / (plain @ plain) == pytest.approx(1, abs=0.05)


def test_jobs_tell_that_particles_look_dark(tmp_path: Path, capsys) -> None:
    data = simulate(
        "phantom", tmp_path / "white", n=200, snr=0.03, box=32, pixel_size_angstrom=7.0, quiet=True
    ).folder
    star = data / "truth.star"
    jobs = {
        "class2d": lambda out: class2d(star, out, classes=2, iterations=1, threads=1),
        "reconstruct": lambda out: reconstruct(star, out, threads=1),
        "refine": lambda out: refine(star, data / "truth_1.mrc", out, iterations=1, threads=1),
    }
    images = load_particles(star).images(np.arange(200))
    for contrast in ("white", "dark"):
        if contrast == "dark":
            write_stack(data / "particles.mrcs", -images, 7.0)
        for name, job in jobs.items():
            job(tmp_path / f"{name}_{contrast}")
            assert ("--contrast dark" in capsys.readouterr().err) == (contrast == "dark"), name
