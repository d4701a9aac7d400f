"""A table of text cells: what a STAR block holds, kept as the bytes that were read and converted
only where asked."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from halfmap.errors import InputError

_CHUNK_ROWS = 1 << 16  # bounds the temporary memory of gathering cells
_SPACES = b" \t\n\r\v\f"


@dataclass(frozen=True, eq=False)
class Cells:
    """One column: cell i is `buffer[start[i] : start[i] + length[i]]`, quotes included.

    Many columns and tables share one buffer (the file), so that a million rows cost 8 bytes a cell
    besides the file itself.
    """

    buffer: np.ndarray  # uint8
    start: np.ndarray
    length: np.ndarray

    def __len__(self) -> int:
        return len(self.start)

    def take(self, rows: np.ndarray) -> "Cells":
        return Cells(self.buffer, self.start[rows], self.length[rows])

    def raw(self, i: int) -> bytes:
        """Bytes of cell `i`, quotes included."""
        start = int(self.start[i])
        return self.buffer[start : start + int(self.length[i])].tobytes()

    def chunks(self) -> Iterable[np.ndarray]:
        """Cells as `S<width>` arrays of at most `_CHUNK_ROWS` rows, quotes included."""
        for first in range(0, len(self), _CHUNK_ROWS):
            start = self.start[first : first + _CHUNK_ROWS].astype(np.int64)
            length = self.length[first : first + _CHUNK_ROWS]
            offset = np.arange(max(1, int(length.max(initial=0))))
            text = (
                self.buffer.take(start[:, None] + offset, mode="clip")
                if self.buffer.size
                else np.zeros((len(start), 1), np.uint8)
            )
            text *= offset < length[:, None]
            yield text.view(f"S{len(offset)}")[:, 0]


class FileCells(Cells):
    """Cells whose buffer is a whole file, so that a cell's line number can be told."""

    def take(self, rows: np.ndarray) -> Cells:
        return FileCells(self.buffer, self.start[rows], self.length[rows])

    def line(self, row: int) -> int:
        return int(np.count_nonzero(self.buffer[: int(self.start[row])] == ord("\n"))) + 1


def cells_from_tokens(tokens: Sequence[bytes]) -> Cells:
    """Column of the given raw tokens (already quoted where needed)."""
    length = np.fromiter(map(len, tokens), np.int32, len(tokens))
    start = np.zeros(len(tokens), np.int64)
    np.cumsum(length[:-1], out=start[1:])
    return Cells(np.frombuffer(b"".join(tokens), np.uint8), start, length)


def unquote(token: bytes) -> str:
    """Value of a raw token: one pair of equal quotes around it is taken off."""
    if len(token) > 1 and token[:1] in b"'\"" and token[:1] == token[-1:]:
        token = token[1:-1]
    return token.decode("utf-8", "surrogateescape")


def quote(value: str) -> bytes:
    """Raw token of a value: as it is, or in quotes where STAR needs them.

    Raises:
        InputError: the value holds a line break, or both kinds of quote before a space, and cannot
            be written.
    """
    token = value.encode("utf-8", "surrogateescape")
    reserved = token[:1] in (b"", b'"', b"'", b"#", b"_") or token.lower().startswith(
        (b"data_", b"loop_")
    )
    if not reserved and not any(byte in _SPACES for byte in token):
        return token
    for mark in (b'"', b"'"):
        if not any(mark + bytes([space]) in token for space in _SPACES) and not any(
            byte in b"\n\r" for byte in token
        ):
            return mark + token + mark
    raise InputError(
        f"text {value!r} cannot be a STAR cell: it has a line break or both kinds of quote before "
        "a space"
    )


def format_number(value: float) -> str:
    """Text of a float as RELION writes it: six decimals, or scientific where those would lose the
    number."""
    return (
        f"{value:.6f}"
        if value == 0 or 1e-3 <= abs(value) < 1e7 or value != value
        else f"{value:.6e}"
    )


def format_cells(values: Iterable[object]) -> Cells:
    """Column of text from an array or list of floats, ints, bools (0 or 1) or strings."""
    array = values if isinstance(values, np.ndarray) else np.asarray(list(values), dtype=None)
    if array.ndim != 1:
        raise InputError(
            f"a table column needs one dimension; an array of shape {array.shape} arrived"
        )
    if array.dtype.kind == "f":
        return cells_from_tokens([format_number(value).encode() for value in array.tolist()])
    if array.dtype.kind in "iub":
        return cells_from_tokens([b"%d" % value for value in array.tolist()])
    return cells_from_tokens([quote(str(value)) for value in array.tolist()])


@dataclass(frozen=True, eq=False)
class Table:
    """Named columns of text cells of equal length; floats and ints are made from the columns that
    are asked for.

    `is_loop` is False for a RELION list of single values, which is a table of one row. `path` and
    `block` say in error messages where the table came from. Tables are never changed:
    `with_columns` and `take` return new ones that share untouched cells.
    """

    columns: Mapping[str, Cells]
    is_loop: bool = True
    path: str = "table"
    block: str = ""

    def __post_init__(self) -> None:
        lengths = {name: len(cells) for name, cells in self.columns.items()}
        if len(set(lengths.values())) > 1:
            raise InputError(
                f"{self.path}: columns of one table must be equally long; lengths are {lengths}"
            )

    @classmethod
    def from_columns(
        cls, columns: Mapping[str, Iterable[object]], *, is_loop: bool = True, path: str = "table"
    ) -> "Table":
        """Table of new columns: floats are written with six decimals, see `format_number`."""
        return cls({name: format_cells(values) for name, values in columns.items()}, is_loop, path)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.columns)

    @cached_property
    def _length(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def __len__(self) -> int:
        return self._length

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    def cells(self, name: str) -> Cells:
        """Raw text of a column.

        Raises:
            InputError: no such column.
        """
        if name not in self.columns:
            raise InputError(
                f"{self.path}: column _{name} is missing from block data_{self.block}; it has "
                f"{', '.join(self.names) or 'none'}"
            )
        return self.columns[name]

    def strings(self, name: str) -> np.ndarray:
        """Column as an object array of str, quotes taken off."""
        cells = self.cells(name)
        out = np.empty(len(cells), object)
        first = 0
        for chunk in cells.chunks():
            quoted = np.isin(
                chunk.view(np.uint8)[:: chunk.itemsize], np.frombuffer(b"'\"", np.uint8)
            ).any()
            tokens = chunk.tolist()
            out[first : first + len(chunk)] = [
                unquote(t) if quoted else t.decode("utf-8", "surrogateescape") for t in tokens
            ]
            first += len(chunk)
        return out

    def floats(self, name: str) -> np.ndarray:
        """Column as float64 `(n,)`.

        Raises:
            InputError: a cell is not a number (named by file, row, line, column).
        """
        return self._numbers(name, np.dtype(np.float64), float, "a number")

    def ints(self, name: str) -> np.ndarray:
        """Column as int64 `(n,)`; `2.000000` counts as 2, as several programs write integers so.

        Raises:
            InputError: a cell is not an integer (named by file, row, line, column).
        """
        return self._numbers(name, np.dtype(np.int64), _integer, "an integer")

    def _numbers(self, name: str, dtype: np.dtype, parse, kind: str) -> np.ndarray:
        cells = self.cells(name)
        out = np.empty(len(cells), dtype)
        first = 0
        for chunk in cells.chunks():
            try:
                out[first : first + len(chunk)] = chunk.astype(dtype)
            except ValueError:  # quoted or wrong: find out which
                for i, token in enumerate(chunk.tolist(), first):
                    try:
                        out[i] = parse(unquote(token))
                    except (ValueError, OverflowError):
                        raise InputError(
                            f"{self.where(i, name)}: expected {kind}, found {unquote(token)!r}; "
                            "correct the cell"
                        ) from None
            first += len(chunk)
        return out

    def is_of_file(self, name: str) -> bool:
        """Whether a column's cells still are the file's."""
        return isinstance(self.columns[name], FileCells)

    def where(self, row: int, name: str) -> str:
        """Place of a cell for messages: file, 1-based data row, line where the cell still is the
        file's, column."""
        cells = self.columns[name]
        line = f" (line {cells.line(row)})" if isinstance(cells, FileCells) else ""
        return f"{self.path}: row {row + 1}{line}, column _{name}"

    def with_columns(self, columns: Mapping[str, Iterable[object]]) -> "Table":
        """Table with new or replaced columns; all other cells keep their text.

        Raises:
            InputError: a column's length is not the table's.
        """
        made = {name: format_cells(values) for name, values in columns.items()}
        for name, cells in made.items():
            if self.columns and len(cells) != len(self):
                raise InputError(
                    f"new column {name} has {len(cells)} values; the table has {len(self)} rows"
                )
        return replace(self, columns={**self.columns, **made})

    def with_cells(self, columns: Mapping[str, Cells]) -> "Table":
        """Table with columns of another table added or replaced, text untouched."""
        return replace(self, columns={**self.columns, **columns})

    def without(self, *names: str) -> "Table":
        """Table without the named columns (those that it has)."""
        return replace(
            self, columns={name: cells for name, cells in self.columns.items() if name not in names}
        )

    def take(self, rows: np.ndarray | Sequence[int]) -> "Table":
        """Rows in the given order: integers, or a boolean mask."""
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        return replace(
            self, columns={name: cells.take(rows) for name, cells in self.columns.items()}
        )


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        value = float(text)
        if value != int(value):
            raise ValueError(text) from None
        return int(value)
