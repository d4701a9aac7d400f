"""Jobs on dirty images: what they do about ramps."""

from pathlib import Path

import numpy as np
import pytest

from halfmap.commands.class2d import class2d
from halfmap.commands.simulate import simulate


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
