"""MRC: every mode and byte order against bytes by hand and against mrcfile; permuted axes;
truncation."""

import importlib
import io
import os
import struct

import mrcfile
import numpy as np
import pytest

from halfmap.commands.info import describe
from halfmap.errors import InputError
from halfmap.io.mrc import open_stack, read_map, write_map
from halfmap.io.stack_writer import StackWriter, write_stack

MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}


def by_hand(path, data, *, mode, order, axes=(1, 2, 3), cell=None, extended=0, stamp=True):
    """An MRC file from the format's definition, independent of mrcfile: 4-byte words 1-24, then MAP
    and the machine stamp at 208."""
    nz, ny, nx = data.shape
    size = dict(zip(axes, (nx, ny, nz), strict=True))  # by axis 1 = x
    cell = cell or tuple(2.0 * size[axis] for axis in (1, 2, 3))
    words = struct.pack(f"{order}10i", nx, ny, nz, mode, 0, 0, 0, size[1], size[2], size[3])
    words += (
        struct.pack(f"{order}6f", *cell, 90, 90, 90)
        + struct.pack(f"{order}3i", *axes)
        + bytes(12)
        + struct.pack(f"{order}2i", 0, extended)
    )
    header = bytearray(1024)
    header[: len(words)] = words
    if stamp:
        header[208:216] = b"MAP " + (b"\x44\x44\0\0" if order == "<" else b"\x11\x11\0\0")
    path.write_bytes(bytes(header) + bytes(extended) + data.astype(order + MODES[mode]).tobytes())


@pytest.mark.parametrize("stamp", [True, False], ids=["stamped", "no stamp"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("mode", sorted(MODES))
def test_every_mode_and_byte_order(tmp_path, mode, order, stamp):
    data = (
        np.random.default_rng(mode)
        .integers(-100 if mode != 6 else 0, 100, (3, 4, 5))
        .astype(np.float32)
    )
    by_hand(tmp_path / "a.mrcs", data, mode=mode, order=order, extended=80, stamp=stamp)
    stack = open_stack(tmp_path / "a.mrcs")
    assert (stack.shape, stack.pixel_size_angstrom) == ((3, 4, 5), 2.0)
    images = stack.read(np.array([2, 0, 2]))
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images, data[[2, 0, 2]])


def test_reads_what_mrcfile_writes_and_back(tmp_path):
    data = np.random.default_rng(0).normal(size=(4, 6, 6)).astype(np.float32)
    with mrcfile.new(tmp_path / "a.mrc") as file:
        file.set_data(data)
        file.voxel_size = 1.5
    volume, voxel = read_map(tmp_path / "a.mrc", cubic=False)
    np.testing.assert_array_equal(volume, data)
    assert voxel == (1.5, 1.5, 1.5)
    write_map(tmp_path / "b.mrc", data, 1.5)
    write_stack(tmp_path / "c.mrcs", data, 1.5)
    for name, is_volume in (("b.mrc", True), ("c.mrcs", False)):
        assert mrcfile.validate(tmp_path / name, print_file=io.StringIO())
        with mrcfile.open(tmp_path / name) as file:
            np.testing.assert_array_equal(file.data, data)
            assert file.is_volume() == is_volume
            assert float(file.voxel_size.x) == 1.5
            np.testing.assert_allclose(float(file.header.rms), data.std(), rtol=1e-5)


@pytest.mark.parametrize("axes", [(1, 2, 3), (2, 1, 3), (3, 2, 1), (1, 3, 2), (2, 3, 1), (3, 1, 2)])
def test_permuted_axes_come_out_as_x_y_z(tmp_path, axes):
    """volume[z, y, x] = 100 z + 10 y + x on a 2 x 3 x 4 grid, stored with columns, rows, sections
    along `axes`."""
    z, y, x = np.indices((2, 3, 4))
    volume = (100 * z + 10 * y + x).astype(np.float32)
    place = {3: 0, 2: 1, 1: 2}
    stored = volume.transpose([place[axis] for axis in axes[::-1]])
    by_hand(
        tmp_path / "a.map", stored, mode=2, order="<", axes=axes, cell=(4 * 1.0, 3 * 2.0, 2 * 3.0)
    )
    found, voxel = read_map(tmp_path / "a.map", cubic=False)
    np.testing.assert_array_equal(found, volume)
    assert voxel == (1.0, 2.0, 3.0)


def test_single_image_is_a_stack_of_one(tmp_path):
    with mrcfile.new(tmp_path / "a.mrc") as file:
        file.set_data(np.ones((4, 4), np.float32))
    assert open_stack(tmp_path / "a.mrc").shape == (1, 4, 4)


def test_writer_appends_batches_and_leaves_nothing_on_failure(tmp_path):
    data = np.random.default_rng(0).normal(size=(5, 4, 4)).astype(np.float32)
    with StackWriter(tmp_path / "a.mrcs", 2.0) as out:
        out.append(data[:2])
        assert not (tmp_path / "a.mrcs").exists()
        out.append(data[2:4])
        out.append(data[4])
    write_stack(tmp_path / "b.mrcs", data, 2.0)
    assert (tmp_path / "a.mrcs").read_bytes() == (
        tmp_path / "b.mrcs"
    ).read_bytes()  # no time, no chance: the same bytes
    before = (tmp_path / "a.mrcs").read_bytes()
    with StackWriter(tmp_path / "b.mrcs", 2.0) as out:
        out.append(data)
        with pytest.raises(
            InputError, match=r"expected images of \(4, 4\), an array of shape \(1, 5, 5\)"
        ):
            out.append(np.zeros((1, 5, 5), np.float32))
    with (
        pytest.raises(InputError, match="no images to write"),
        StackWriter(tmp_path / "a.mrcs", 2.0),
    ):
        pass
    with pytest.raises(KeyError), StackWriter(tmp_path / "a.mrcs", 2.0) as out:
        raise KeyError
    assert (tmp_path / "a.mrcs").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mrcs", "b.mrcs"]


def test_bad_files_are_refused_in_one_line(tmp_path):
    path = tmp_path / "a.mrcs"
    write_stack(path, np.zeros((3, 4, 4), np.float32), 1.0)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(
        InputError, match=r"a.mrcs: is truncated: its header asks for 1216 bytes, the file has 1215"
    ):
        open_stack(path)
    path.write_bytes(whole[:100])
    with pytest.raises(InputError, match="expected an MRC header of 1024 bytes, the file has 100"):
        open_stack(path)
    path.write_bytes(whole[:12] + struct.pack("<i", 4) + whole[16:])
    with pytest.raises(InputError, match="mode 4 is not supported"):
        open_stack(path)
    path.write_bytes(b"text " * 500)
    with pytest.raises(InputError, match="is not an MRC file"):
        open_stack(path)
    with pytest.raises(InputError, match=r"b.mrcs: cannot be read \(No such file"):
        open_stack(tmp_path / "b.mrcs")
    path.write_bytes(whole)
    with pytest.raises(InputError, match="image 4 was asked for; the stack holds 3"):
        open_stack(path).read(np.array([3]))
    with pytest.raises(InputError, match=r"expected a cube, found \(4, 4, 3\)"):
        read_map(path)
    by_hand(path, np.zeros((4, 4, 4)), mode=2, order="<", cell=(4.0, 4.0, 5.0))
    with pytest.raises(
        InputError, match=r"expected equal voxel sizes, found 1.0000, 1.0000, 1.2500 A"
    ):
        read_map(path)


@pytest.mark.shared
def test_maps_of_the_databank(shared_data):
    with mrcfile.open(shared_data / "maps" / "emd_2479.map") as file:  # big-endian
        volume, voxel = read_map(shared_data / "maps" / "emd_2479.map")
        np.testing.assert_array_equal(volume, file.data)
        assert voxel == pytest.approx(4.36, abs=1e-6)
    with pytest.raises(InputError, match=r"expected a cube, found \(89, 81, 21\)"):
        read_map(shared_data / "maps" / "emd_1087.map")
    volume, sizes = read_map(shared_data / "maps" / "emd_1087.map", cubic=False)  # columns along y
    with mrcfile.open(shared_data / "maps" / "emd_1087.map") as file:
        np.testing.assert_array_equal(volume, file.data.transpose(0, 2, 1))
        assert sizes == pytest.approx(
            (float(file.voxel_size.x), float(file.voxel_size.y), float(file.voxel_size.z))
        )


def with_imod_bytes(path, values, *, flags, stamp=1146047817, order="<"):
    """Values 0 to 255 in mode 0 as IMOD writes them: from 0, or with its flag 1 from -128."""
    by_hand(path, np.zeros(values.shape), mode=0, order=order)
    raw = bytearray(path.read_bytes()[:1024])
    raw[152:160] = struct.pack(f"{order}2i", stamp, flags)
    raw[76:88] = struct.pack(f"{order}3f", values.min(), values.max(), values.mean())
    stored = values.astype(np.int16) - 128 * (flags & 1)
    path.write_bytes(bytes(raw) + stored.astype(np.int8 if flags & 1 else np.uint8).tobytes())


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("flags", [0, 1, 5, 4])
def test_bytes_of_imod_are_0_to_255(tmp_path, order, flags):
    """Unsigned without the flag; with it, 128 less is stored."""
    values = np.random.default_rng(1).integers(0, 256, (4, 4, 4))
    with_imod_bytes(tmp_path / "a.mrc", values, flags=flags, order=order)
    np.testing.assert_array_equal(read_map(tmp_path / "a.mrc")[0], values)
    np.testing.assert_array_equal(open_stack(tmp_path / "a.mrc").read(np.arange(4)), values)


def test_bytes_of_a_header_that_signed_bytes_do_not_have_are_unsigned(tmp_path):
    values = np.random.default_rng(1).integers(0, 256, (4, 4, 4))
    with_imod_bytes(tmp_path / "a.mrc", values, flags=0, stamp=0)
    np.testing.assert_array_equal(read_map(tmp_path / "a.mrc")[0], values)
    by_hand(tmp_path / "b.mrc", values // 2 - 64, mode=0, order="<")  # MRC2014: signed
    np.testing.assert_array_equal(read_map(tmp_path / "b.mrc")[0], values // 2 - 64)


@pytest.mark.parametrize("pack", ["gzip", "bz2", "lzma"])
def test_compressed_maps_are_read_whatever_their_name(tmp_path, pack):
    data = np.random.default_rng(0).normal(size=(4, 4, 4)).astype(np.float32)
    write_map(tmp_path / "a.mrc", data, 1.5)
    packed = importlib.import_module(pack).compress((tmp_path / "a.mrc").read_bytes())
    for name in ("a.map.gz", "b.mrc"):
        (tmp_path / name).write_bytes(packed)
        volume, size = read_map(tmp_path / name)
        np.testing.assert_array_equal(volume, data)
        assert size == 1.5
        assert describe(tmp_path / name)["pixel_size_angstrom"] == 1.5
    with pytest.raises(InputError, match=r"b.mrc: is compressed .*decompress"):
        open_stack(tmp_path / "b.mrc")
    (tmp_path / "c.map.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(InputError, match=r"c.map.gz: "):
        read_map(tmp_path / "c.map.gz")


def edited(path, data, pixel, edits):
    write_map(path, data, pixel)
    raw = bytearray(path.read_bytes())
    for at, value in edits.items():
        raw[at : at + len(value)] = value
    path.write_bytes(bytes(raw))
    return path


@pytest.mark.parametrize(
    "edits",
    [
        {36: struct.pack("<i", 1), 88: bytes(4)},  # a volume with the header of a stack
        {36: struct.pack("<i", 1), 48: struct.pack("<f", 2.5)},  # cell of one section
        {28: struct.pack("<3i", 1, 1, 1), 40: struct.pack("<3f", 2.5, 2.5, 2.5)},
        {48: bytes(4)},  # no cell along z
        {44: struct.pack("<2f", np.nan, np.nan)},
        {208: b"|\x94\xf2\xc4\x90\x42\x4d\xc3"},  # junk where the stamps are
    ],
)
def test_odd_headers_have_the_voxel_size_that_is_meant(tmp_path, edits):
    data = np.random.default_rng(0).normal(size=(6, 6, 6)).astype(np.float32)
    volume, size = read_map(edited(tmp_path / "a.mrc", data, 2.5, edits))
    np.testing.assert_array_equal(volume, data)
    assert size == pytest.approx(2.5)


def test_a_header_without_a_size_says_so(tmp_path):
    data = np.random.default_rng(0).normal(size=(6, 6, 6)).astype(np.float32)
    for cell in (0.0, np.nan, -15.0):
        path = edited(tmp_path / "a.mrc", data, 2.5, {40: struct.pack("<3f", cell, cell, cell)})
        assert read_map(path)[1] == 0
        assert open_stack(path).pixel_size_angstrom == 0


def test_stack_with_columns_along_y_is_turned(tmp_path):
    data = np.random.default_rng(0).integers(0, 9, (3, 4, 4))
    by_hand(tmp_path / "a.mrcs", data, mode=1, order=">", axes=(2, 1, 3))
    np.testing.assert_array_equal(
        open_stack(tmp_path / "a.mrcs").read(np.array([2, 1])), data[[2, 1]].swapaxes(1, 2)
    )


def test_a_stack_cut_short_while_it_is_open_is_an_error(tmp_path):
    """A mapped file would end the process with a bus error."""
    path = tmp_path / "a.mrcs"
    write_stack(path, np.arange(4 * 64 * 64, dtype=np.float32).reshape(4, 64, 64), 1.0)
    stack = open_stack(path)
    os.truncate(path, 1024 + 2 * 64 * 64 * 4)
    assert stack.read(np.array([1]))[0, 0, 0] == 64 * 64
    with pytest.raises(InputError, match=r"a.mrcs: ends before image 4 of 4.*copy the stack again"):
        stack.read(np.array([0, 3]))
