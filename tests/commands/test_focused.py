"""Classes of particles whose poses are known, that differ inside a small mask alone."""

from pathlib import Path

import numpy as np
import pytest
import torch

import halfmap
from halfmap.errors import InputError
from halfmap.io.mrc import write_map
from halfmap.masks import soft_sphere
from halfmap.methods.reference_update import focused
from halfmap.particles import load_particles
from halfmap.simulation.phantom import phantom

N, BOX, PIXEL = 300, 32, 6.0
OPTIONS = {"classes": 2, "iterations": 8, "alignment": False, "threads": 1, "quiet": True}


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    """Half of the particles lack a ball; and the mask of a sphere around it."""
    folder = tmp_path_factory.mktemp("focused")
    whole = phantom(BOX, PIXEL, state=0)
    z, y, x = np.indices(whole.shape) - BOX // 2
    dense = np.argwhere(whole.numpy() > 0.5 * float(whole.max())) - BOX // 2
    cz, cy, cx = dense[np.abs(np.linalg.norm(dense, axis=1) - 7).argmin()]
    distance = np.sqrt((z - cz) ** 2 + (y - cy) ** 2 + (x - cx) ** 2)
    lacking = whole.numpy() * (distance > 3.5)
    write_map(folder / "whole.mrc", whole.numpy(), PIXEL)
    write_map(folder / "lacking.mrc", lacking.astype(np.float32), PIXEL)
    mask = np.clip(1 - (distance - 4.5) / 2, 0, 1).astype(np.float32)
    write_map(folder / "focus.mrc", mask, PIXEL)
    maps = [folder / "whole.mrc", folder / "lacking.mrc"]
    halfmap.simulate(maps, folder / "sim", n=N, snr=0.2, seed=5, quiet=True)
    return folder


def _agreement(scene: Path, folder: Path) -> float:
    """Share of particles in their kind's class, whichever number it has."""
    truth = load_particles(scene / "sim/truth.star", check_images=False).class_number
    found = load_particles(folder / "particles.star", check_images=False).class_number
    share = float((truth == found).mean())
    return max(share, 1 - share)


def test_a_focus_mask_finds_what_the_whole_map_hides(scene):
    truth, start = scene / "sim/truth.star", scene / "whole.mrc"
    without = halfmap.class3d(truth, start, scene / "without", **OPTIONS)
    within = halfmap.class3d(
        truth, start, scene / "within", focus_mask=scene / "focus.mrc", **OPTIONS
    )
    assert _agreement(scene, within.folder) > 0.85
    assert _agreement(scene, within.folder) > _agreement(scene, without.folder) + 0.05


def test_poses_stay_as_they_were(scene):
    folder = scene / "kept"
    halfmap.class3d(
        scene / "sim/truth.star", scene / "whole.mrc", folder, **OPTIONS | {"iterations": 2}
    )
    before = load_particles(scene / "sim/truth.star", check_images=False)
    after = load_particles(folder / "particles.star", check_images=False)
    turned = halfmap.euler_to_matrix(torch.from_numpy(before.rotations_deg))
    found = halfmap.euler_to_matrix(torch.from_numpy(after.rotations_deg))
    assert torch.allclose(turned, found, atol=1e-4)
    np.testing.assert_allclose(before.shift_angstrom, after.shift_angstrom, atol=1e-3)


def test_classes_are_one_outside_the_focus_mask():
    draw = torch.Generator().manual_seed(1)
    maps = torch.randn(2, 3, 16, 16, 16, generator=draw)
    focus = soft_sphere(16, radius_px=3, edge_px=2)
    sizes = torch.tensor([10, 30, 0])
    found = focused(maps, focus, sizes)
    mean = 0.25 * maps[:, 0] + 0.75 * maps[:, 1]
    outside, inside = focus == 0, focus == 1
    for k in range(3):
        assert torch.allclose(found[:, k][:, outside], mean[:, outside], atol=1e-6)
        assert torch.allclose(found[:, k][:, inside], maps[:, k][:, inside], atol=1e-6)


def test_options_of_a_search_are_refused_without_one(scene):
    with pytest.raises(InputError, match="--local: has no effect beside --no-alignment"):
        halfmap.class3d(
            scene / "sim/truth.star",
            scene / "whole.mrc",
            scene / "refused",
            local=True,
            **OPTIONS,
        )
    assert not (scene / "refused").exists()


def test_poses_must_be_there_to_be_kept(scene):
    with pytest.raises(InputError, match=r"--no-alignment keeps given poses"):
        halfmap.class3d(
            scene / "sim/particles.star", scene / "whole.mrc", scene / "refused", **OPTIONS
        )
