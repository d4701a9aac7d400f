"""`halfmap symmetry`: a map laid on its axes, its poses with it, and what is refused."""

import pytest
import torch
from typer.testing import CliRunner

import halfmap
from halfmap.alignment import Alignment
from halfmap.cli.main import app
from halfmap.errors import InputError
from halfmap.io.mrc import read_map, write_map
from halfmap.simulation.phantom import phantom
from halfmap.so3 import random_rotations


@pytest.fixture(scope="module")
def lost(tmp_path_factory):
    """The phantom (C4) in a frame of its own, and particles posed in that frame."""
    folder = tmp_path_factory.mktemp("symmetry")
    where = Alignment(
        random_rotations(1, torch.Generator().manual_seed(3))[0],
        torch.tensor([1.0, -0.5, 0.8]),
        False,
        1.0,
    )
    moved = where.apply_to_map(phantom(36, 5.0))
    write_map(folder / "lost.mrc", moved.numpy(), 5.0)
    halfmap.simulate(folder / "lost.mrc", folder / "sim", n=60, snr=5.0, symmetry="C1", quiet=True)
    return folder


def test_the_laid_map_is_symmetric_and_poses_reconstruct_it(lost):
    star = lost / "sim" / "truth.star"
    found = halfmap.symmetry(
        lost / "lost.mrc", lost / "laid.mrc", group="C4", particles=star, resolution_angstrom=20
    )
    assert found.group == "C4"
    laid = torch.from_numpy(read_map(lost / "laid.mrc")[0])
    turned = laid.flip(1).roll(1, 1).transpose(1, 2)  # about z by a quarter
    assert float(torch.corrcoef(torch.stack([laid.flatten(), turned.flatten()]))[0, 1]) > 0.98
    halfmap.reconstruct(lost / "laid.star", lost / "again.mrc", quiet=True, overwrite=True)
    again = torch.from_numpy(read_map(lost / "again.mrc")[0])
    assert float(torch.corrcoef(torch.stack([laid.flatten(), again.flatten()]))[0, 1]) > 0.85


def test_what_is_not_there_is_refused_in_a_line(lost):
    with pytest.raises(InputError, match=r"no I symmetry found.*nothing was written"):
        halfmap.symmetry(lost / "lost.mrc", lost / "i.mrc", group="I", resolution_angstrom=25)
    assert not (lost / "i.mrc").exists()
    with pytest.raises(InputError, match=r"--particles .*: has no effect without --out"):
        halfmap.symmetry(lost / "lost.mrc", particles=lost / "sim" / "truth.star")
    told = CliRunner().invoke(app, ["symmetry", str(lost / "lost.mrc"), "--symmetry", "C1"])
    assert told.exit_code != 0


def test_a_part_that_breaks_the_symmetry_is_told_with_its_place(tmp_path):
    volume = phantom(36, 5.0)
    axis = torch.arange(36.0) - 18
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    part = torch.exp(-((x - 6) ** 2 + (y - 3) ** 2 + (z - 4) ** 2) / 5)
    noise = torch.randn(volume.shape, generator=torch.Generator().manual_seed(1)) * volume.std()
    for name, broken in (("whole", volume), ("broken", volume + 0.5 * volume.max() * part)):
        write_map(tmp_path / f"{name}.mrc", (broken + 0.2 * noise).numpy(), 5.0)
    options = {"group": "C4", "resolution_angstrom": 20}
    assert halfmap.symmetry(tmp_path / "whole.mrc", **options).warning is None
    found = halfmap.symmetry(tmp_path / "broken.mrc", **options)
    assert found.group == "C4"
    assert "does not follow C4" in found.lines[-1]
    assert "does not follow C4" in found.summary
    place = torch.tensor(found.departure.place_px) - 18
    assert (place - torch.tensor([6.0, 3, 4])).norm() < 2
