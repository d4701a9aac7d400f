"""STAR: cells survive to the letter, numbers are exact, errors name the place."""

from pathlib import Path

import gemmi
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfmap.errors import InputError
from halfmap.io.star import read_star, write_star
from halfmap.io.table import Table, unquote

TWO_BLOCKS = """# a comment

data_particles

loop_
_rlnImageName #1
_rlnDefocusU #2 [a note]
_rlnClassNumber #3
   1@a.mrcs\t1.50000e+04 2
# a comment between rows
2@it"s.mrcs#1  '16000.1'   "3"  # and one behind

'3@with space.mrcs' 17000. 1

data_general
_rlnText "two words"
_rlnEmpty ''
data_empty
loop_
_rlnOne
"""


def raw_cells(table: Table) -> dict[str, list[bytes]]:
    return {name: [table.cells(name).raw(i) for i in range(len(table))] for name in table.names}


def save(folder: Path, text: str, name: str = "a.star") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    "chunk", [8, 40, 1 << 20], ids=["chunk=line", "chunk=2 lines", "chunk=file"]
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_dialect_by_hand(tmp_path, chunk, newline):
    file = read_star(save(tmp_path, TWO_BLOCKS.replace("\n", newline)), chunk_bytes=chunk)
    assert list(file.blocks) == ["particles", "general", "empty"]
    table = file.blocks["particles"]
    assert table.names == ("rlnImageName", "rlnDefocusU", "rlnClassNumber")
    assert table.strings("rlnImageName").tolist() == [
        "1@a.mrcs",
        '2@it"s.mrcs#1',
        "3@with space.mrcs",
    ]
    assert table.floats("rlnDefocusU").tolist() == [15000, 16000.1, 17000]
    assert table.ints("rlnClassNumber").tolist() == [2, 3, 1]
    assert file.blocks["general"].strings("rlnText").tolist() == ["two words"]
    assert file.blocks["general"].strings("rlnEmpty").tolist() == [""]
    assert not file.blocks["general"].is_loop
    assert file.blocks["empty"].is_loop
    assert len(file.blocks["empty"]) == 0


@pytest.mark.parametrize("chunk", [1, 30, 1 << 20])
def test_rows_quotes_comments_and_blank_lines(tmp_path, chunk):
    text = "data_\nloop_\n_a\n_b #2\n\n 1 'x y' # c\n#\n\t2\t\"\"\r\n\n3 data_x\n_4 _y\ndata_5 loop_\n6 it's#7"
    table = read_star(save(tmp_path, text), chunk_bytes=chunk).blocks[""]
    assert table.strings("a").tolist() == ["1", "2", "3", "_4", "data_5", "6"]
    assert table.strings("b").tolist() == ["x y", "", "data_x", "_y", "loop_", "it's#7"]


@pytest.mark.parametrize(
    "name",
    [
        "data_set1/x.mrc",
        "_odd/x.mrc",
        "loop_2/x.mrc",
        "$x/a.mrc",
        "'it",
        ";x",
        "[x]",
        "été/é.mrc",
        "a#b",
    ],
)
def test_names_that_relion_takes_and_cif_forbids(tmp_path, name):
    table = read_star(save(tmp_path, f"data_a\nloop_\n_n #1\n_m #2\n{name} 1\n{name} 2\n")).blocks[
        "a"
    ]
    assert table.strings("n").tolist() == [name, name]


@pytest.mark.shared
def test_every_dialect_file_round_trips_bit_equal(shared_data, tmp_path):
    paths = sorted(shared_data.glob("*/*.star"))
    assert len(paths) >= 24
    for path in paths:
        blocks = read_star(path).blocks
        write_star(tmp_path / "copy.star", blocks)
        again = read_star(tmp_path / "copy.star").blocks
        assert list(again) == list(blocks)
        for name in blocks:
            assert raw_cells(again[name]) == raw_cells(blocks[name]), (path, name)


@pytest.mark.shared
def test_every_dialect_file_agrees_with_gemmi(shared_data):
    """An independent parser finds the same cells."""
    for path in sorted(shared_data.glob("*/*.star")):
        document = gemmi.cif.read_file(str(path))
        blocks = read_star(path).blocks
        for block in document:
            name = block.name.strip()
            ours = raw_cells(blocks[name])
            for column, cells in ours.items():
                item = (
                    block.find_loop("_" + column)
                    if blocks[name].is_loop
                    else [block.find_value("_" + column)]
                )
                assert [cell.decode() for cell in cells] == list(item), (path, column)


cell_text = st.text(
    st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from(" \t\"'#_;"), max_size=12
)


def writable(text: str) -> bool:
    return not ('" ' in text.replace("\t", " ") and "' " in text.replace("\t", " "))


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 4).flatmap(
        lambda width: st.lists(
            st.lists(cell_text.filter(writable), min_size=width, max_size=width),
            min_size=1,
            max_size=6,
        )
    ),
    st.booleans(),
)
def test_any_text_round_trips(tmp_path_factory, rows, is_loop):
    path = tmp_path_factory.getbasetemp() / "any.star"
    rows = rows if is_loop else rows[:1]
    columns = {f"c{j}": [row[j] for row in rows] for j in range(len(rows[0]))}
    write_star(
        path,
        {"x": Table.from_columns(columns, is_loop=is_loop), "y": Table.from_columns({"n": [1]})},
    )
    blocks = read_star(path).blocks
    assert list(blocks) == ["x", "y"]
    assert {name: blocks["x"].strings(name).tolist() for name in blocks["x"].names} == columns


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=20),
    st.lists(st.integers(-(2**62), 2**62)),
)
def test_any_number_round_trips(tmp_path_factory, floats, ints):
    path = tmp_path_factory.getbasetemp() / "numbers.star"
    write_star(
        path,
        {
            "f": Table.from_columns({"f": np.array(floats)}),
            "i": Table.from_columns({"i": np.array(ints, np.int64)}),
        },
    )
    blocks = read_star(path).blocks
    np.testing.assert_allclose(blocks["f"].floats("f"), floats, rtol=1e-6, atol=5e-7)
    assert blocks["i"].ints("i").tolist() == ints


def test_floats_are_exactly_those_of_the_text(tmp_path):
    text = ["0.1", "1e-3", "-123.456789012345", "6.02214076e23", "3"]
    table = read_star(save(tmp_path, "data_\nloop_\n_x\n" + "\n".join(text))).blocks[""]
    assert table.floats("x").tolist() == [float(word) for word in text]


def test_integers_written_as_floats_are_integers(tmp_path):
    table = read_star(save(tmp_path, "data_\nloop_\n_x\n_y\n1.000000 1.5\n'2' 2\n")).blocks[""]
    assert table.ints("x").tolist() == [1, 2]
    with pytest.raises(
        InputError, match=r"a.star: row 1 \(line 5\), column _y: expected an integer, found '1.5'"
    ):
        table.ints("y")


def test_replaced_columns_leave_all_other_cells_alone(tmp_path):
    source = save(tmp_path, "data_\nloop_\n_a\n_b\n_c\n 01.50 'x y' 3\n 2.e0 \"\" 4\n")
    table = read_star(source).blocks[""]
    changed = table.with_columns({"b": ["new", "p q"], "d": np.array([1.0, 1e-9])}).take([1, 0])
    assert raw_cells(changed) == {
        "a": [b"2.e0", b"01.50"],
        "b": [b'"p q"', b"new"],
        "c": [b"4", b"3"],
        "d": [b"1.000000e-09", b"1.000000"],
    }
    assert raw_cells(table)["b"] == [b"'x y'", b'""']  # the old table is what it was
    with pytest.raises(
        InputError, match=r"a.star: row 1 \(line 7\), column _b: expected a number, found ''"
    ):
        table.take([1, 0]).floats("b")  # the row is the selection's, the line the file's
    with pytest.raises(InputError, match="found 'x y'"):
        table.take(np.array([True, False])).floats("b")


def test_writing_is_atomic(tmp_path):
    path = save(tmp_path, "data_\n_a 1\n")
    bad = Table({"a": read_star(path).blocks[""].cells("a")}, is_loop=True)
    object.__setattr__(bad.columns["a"], "start", None)
    with pytest.raises(TypeError):
        write_star(path, {"": bad})
    assert path.read_text() == "data_\n_a 1\n"
    assert [p.name for p in tmp_path.iterdir()] == ["a.star"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello\n", r"a.star: line 1: expected data_..., found 'hello'"),
        ("", "has no data_ block"),
        (
            "data_\nloop_\n_a\n_b\n1 2\n3\n",
            "line 6: a row starting with '3' has 1 cells; the loop has 2 columns",
        ),
        ("data_\nloop_\n_a\n_b\n1 2 3\n", "line 5: a row starting with '1' has 3 cells"),
        ("data_x\n_a 1\ndata_x\n_a 1\n", "line 3: a second block data_x"),
        ("data_x\nloop_\n_a\n_a\n", "line 4: column _a appears twice"),
        ("data_x\n_a 1 2\n", "line 2: expected one value after _a, found 2"),
        ("data_x\n_a\n", "line 2: expected one value after _a, found 0"),
        (
            "data_x\nloop_\n1\n",
            "line 2: loop_ without column names|line 3: loop_ without column names",
        ),
        ("data_x\nloop_\n_a\n_b\n1 2\nloop_\n_c\n", "line 6: a second table in block data_x"),
        ("data_x\nword\n", "line 2: expected data_, loop_ or a column name, found 'word'"),
        ("data_\n\0", "is a binary file"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as caught:
        read_star(save(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_missing_file_missing_column_and_wrong_lengths(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.star: cannot be read"):
        read_star(tmp_path / "nowhere.star")
    table = Table.from_columns({"a": [1, 2]})
    with pytest.raises(InputError, match="column _b is missing"):
        table.floats("b")
    with pytest.raises(InputError, match="3 values; the table has 2 rows"):
        table.with_columns({"b": [1, 2, 3]})
    with pytest.raises(InputError, match="does not exist"):
        write_star(tmp_path / "no" / "a.star", {"": table})
    with pytest.raises(InputError, match="cannot be a STAR cell"):
        Table.from_columns({"a": ["two\nlines"]})


def test_unquote():
    assert [unquote(token) for token in (b"a", b'"a"', b"'a\"", b'"', b'""', b"'it's'")] == [
        "a",
        "a",
        "'a\"",
        '"',
        "",
        "it's",
    ]
