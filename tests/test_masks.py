import mrcfile
import numpy as np
import pytest
import torch

from halfmap.errors import InputError
from halfmap.masks import read_mask, soft_sphere


@pytest.mark.parametrize("box", [24, 25])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_soft_sphere_follows_its_raised_cosine_along_an_axis(box: int, dimensions: int) -> None:
    mask = soft_sphere(box, radius_px=5, edge_px=4, dimensions=dimensions)
    middle = (box // 2,) * (dimensions - 1)
    along_x = mask[middle][box // 2 : box // 2 + 11]
    edge = [0.5 + 0.5 * np.cos(np.pi * step / 4) for step in (1, 2, 3)]
    np.testing.assert_allclose(along_x, [1] * 6 + edge + [0, 0], atol=1e-6)
    torch.testing.assert_close(mask, mask.transpose(0, -1))


def test_a_sphere_has_a_spheres_volume_and_obeys_its_centre() -> None:
    mask = soft_sphere(40, radius_px=12, edge_px=0)
    assert mask.sum().item() == pytest.approx(4 / 3 * np.pi * 12**3, rel=0.02)
    moved = soft_sphere(40, radius_px=5, edge_px=3, centre_px=(23, 19, 16), dtype=torch.float64)
    centred = soft_sphere(40, radius_px=5, edge_px=3, dtype=torch.float64)
    torch.testing.assert_close(moved, centred.roll((-4, -1, 3), (0, 1, 2)))  # axes are z, y, x


def test_soft_sphere_refuses_a_negative_edge_and_a_flat_centre() -> None:
    with pytest.raises(InputError, match="edge_px"):
        soft_sphere(10, radius_px=2, edge_px=-1)
    with pytest.raises(InputError, match="3 numbers"):
        soft_sphere(10, radius_px=2, edge_px=1, centre_px=(5.0, 5.0))


def _write(path, values: np.ndarray, pixel_size: float) -> None:
    with mrcfile.new(path) as file:
        file.set_data(values.astype(np.float32))
        file.voxel_size = pixel_size


def test_read_mask_takes_a_good_one_and_names_what_is_wrong_with_a_bad_one(tmp_path) -> None:
    good = soft_sphere(16, radius_px=4, edge_px=3)
    _write(tmp_path / "good.mrc", good.numpy(), 2.5)
    torch.testing.assert_close(read_mask(tmp_path / "good.mrc", 16, 2.5), good)
    with pytest.raises(InputError, match=r"good\.mrc: box is 16x16x16, the map's is 20"):
        read_mask(tmp_path / "good.mrc", 20, 2.5)
    with pytest.raises(InputError, match=r"pixel size 2\.5 A, the map's is 1\.25 A"):
        read_mask(tmp_path / "good.mrc", 16, 1.25)
    _write(tmp_path / "loud.mrc", 3 * good.numpy(), 2.5)
    with pytest.raises(InputError, match="from 0 to 3"):
        read_mask(tmp_path / "loud.mrc", 16, 2.5)
    _write(tmp_path / "empty.mrc", 0 * good.numpy(), 2.5)
    with pytest.raises(InputError, match="nothing is left"):
        read_mask(tmp_path / "empty.mrc", 16, 2.5)
    with pytest.raises(InputError, match=r"none\.mrc: cannot be read"):
        read_mask(tmp_path / "none.mrc", 16, 2.5)
    (tmp_path / "text.mrc").write_text("not a map")
    with pytest.raises(InputError, match=r"text\.mrc: expected an MRC header"):
        read_mask(tmp_path / "text.mrc", 16, 2.5)
