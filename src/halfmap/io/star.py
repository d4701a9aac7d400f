"""STAR files of every RELION version and of other programs: read once as bytes, cell text kept to
the letter, written atomically."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from halfmap.errors import InputError
from halfmap.io.files import replacing
from halfmap.io.mrc_layout import decompressed
from halfmap.io.table import Cells, FileCells, Table

CHUNK_BYTES = 1 << 20
_IS_SPACE = np.zeros(256, bool)
_IS_SPACE[list(b" \t\n\r\v\f")] = True
# a token: in quotes that are closed before a space, or up to the next space
_TOKEN = re.compile(rb"""(?P<token>"[^\n]*?"(?=\s|\Z)|'[^\n]*?'(?=\s|\Z)|\S+)""")


@dataclass(frozen=True)
class StarFile:
    """Blocks of a STAR file by name (without `data_`), in file order."""

    path: str
    blocks: Mapping[str, Table]


def read_star(path: str | os.PathLike[str], *, chunk_bytes: int = CHUNK_BYTES) -> StarFile:
    """Read a STAR file: RELION 1.x to 5 and other programs' dialects.

    A block is one table (`loop_`) or one list of single values, in any order of blocks, with single
    or double quotes, `#` comments, blank lines, tabs, and empty loops. Cells stay text until a
    column is asked for as numbers. Rows are split `chunk_bytes` at a time.

    Raises:
        InputError: the file is missing, binary, or not STAR (the line is named). One that is
            compressed (gzip, bzip2, xz) is read as it is.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        inside = path / "particles.star"
        way = f"give the file in it, {inside}" if inside.is_file() else "check the path"
        raise InputError(f"{path}: cannot be read ({error.strerror}); {way}") from error
    data = _with_line_feeds(decompressed(path, data))
    if data.find(b"\0") >= 0:
        raise InputError(f"{path}: is a binary file, not a STAR text file")
    return StarFile(str(path), _Parser(str(path), data, chunk_bytes).blocks())


def _with_line_feeds(data: bytes) -> bytes:
    """A text whose lines end with carriage returns alone, all or some, with line feeds there."""
    alone = data.count(b"\r") > data.count(b"\r\n")
    return re.sub(rb"\r(?!\n)", b"\n", data) if alone else data


class _Parser:
    """Walks over the lines of one file; the rows of a loop are split in bulk."""

    def __init__(self, path: str, data: bytes, chunk_bytes: int) -> None:
        self.path, self.data, self.buffer = path, data, np.frombuffer(data, np.uint8)
        self.chunk_bytes = chunk_bytes
        self.position = 3 if data.startswith(b"\xef\xbb\xbf") else 0  # byte-order mark

    def error(self, message: str, at: int) -> InputError:
        line = self.data.count(b"\n", 0, at) + 1
        return InputError(f"{self.path}: line {line}: {message}")

    def tokens(self, first: int, last: int) -> list[tuple[int, int]]:
        """Start and end of each token of a line; a `#` that starts a token starts a comment."""
        found = []
        for match in _TOKEN.finditer(self.data, first, last):
            if self.data[match.start()] == ord("#"):
                break
            found.append(match.span())
        return found

    def next_line(self) -> list[tuple[int, int]] | None:
        """Tokens of the next line that has any, or None at the end of the file."""
        while self.position < len(self.data):
            newline = self.data.find(b"\n", self.position)
            end = newline if newline >= 0 else len(self.data)
            found = self.tokens(self.position, end)
            self.line_start, self.position = self.position, end + 1
            if found:
                return found
        return None

    def blocks(self) -> dict[str, Table]:
        blocks: dict[str, Table] = {}
        name: str | None = None
        line = self.next_line()
        while line is not None:
            at, word = line[0][0], self.data[slice(*line[0])]
            keyword = word.lower()
            if keyword.startswith(b"data_"):
                name = word[5:].decode("utf-8", "surrogateescape")
                if name in blocks:
                    raise self.error(
                        f"a second block data_{name}; names of blocks must differ, rename one", at
                    )
                blocks[name] = Table({}, is_loop=False, path=self.path, block=name)
                line = self.next_line()
                continue
            if name is None:
                raise self.error(
                    f"expected data_..., found {_shown(word)}; this is not a STAR file", at
                )
            if blocks[name].names:
                raise self.error(
                    f"a second table in block data_{name} (at {_shown(word)}); give it a data_ "
                    "line of its own",
                    at,
                )
            if keyword == b"loop_":
                columns, line = self.loop()
                blocks[name] = Table(columns, is_loop=True, path=self.path, block=name)
            elif word.startswith(b"_"):
                columns, line = self.items(line)
                blocks[name] = Table(columns, is_loop=False, path=self.path, block=name)
            else:
                raise self.error(
                    f"expected data_, loop_ or a column name, found {_shown(word)}", at
                )
        if not blocks:
            raise InputError(f"{self.path}: has no data_ block; this is not a STAR file")
        return blocks

    def items(self, line: list[tuple[int, int]] | None):
        """List of `_name value` lines: one row."""
        columns: dict[str, Cells] = {}
        while line is not None and self.data[line[0][0]] == ord("_"):
            name = self.column_name(line[0], columns)
            if len(line) != 2:
                raise self.error(
                    f"expected one value after _{name}, found {len(line) - 1} (quote a value that "
                    "has spaces)",
                    line[0][0],
                )
            start, end = line[1]
            columns[name] = FileCells(
                self.buffer, np.array([start]), np.array([end - start], np.int32)
            )
            line = self.next_line()
        return columns, line

    def column_name(self, span: tuple[int, int], seen: Mapping[str, object]) -> str:
        name = self.data[slice(*span)][1:].decode("utf-8", "surrogateescape")
        if not name or name in seen:
            raise self.error(
                f"column _{name} " + ("appears twice; remove one" if name else "has no name"),
                span[0],
            )
        return name

    def loop(self):
        """Header and rows of a `loop_`."""
        names: dict[str, None] = {}
        line = self.next_line()
        while line is not None and len(line) == 1 and self.data[line[0][0]] == ord("_"):
            names[self.column_name(line[0], names)] = None
            line = self.next_line()
        if not names:
            raise self.error("loop_ without column names", self.line_start)
        if line is not None:
            self.position = self.line_start
        starts, lengths = self.rows(len(names))
        columns = {
            name: FileCells(self.buffer, starts[:, j], lengths[:, j])
            for j, name in enumerate(names)
        }
        return columns, self.next_line()

    def rows(self, n_columns: int) -> tuple[np.ndarray, np.ndarray]:
        """Split rows up to the next block; returns starts and lengths `(rows, columns)`."""
        offset_type = np.uint32 if len(self.data) < 2**32 else np.int64
        starts, lengths = (
            [np.empty((0, n_columns), offset_type)],
            [np.empty((0, n_columns), np.int32)],
        )
        done = False
        while not done and self.position < len(self.data):
            end = min(self.position + self.chunk_bytes, len(self.data))
            if end < len(self.data):
                newline = self.data.find(b"\n", end)
                end = newline + 1 if newline >= 0 else len(self.data)
            start, length, done = self.chunk(self.position, end, n_columns)
            starts.append(start.astype(offset_type))
            lengths.append(length.astype(np.int32))
            if not done:
                self.position = end
        return np.concatenate(starts), np.concatenate(lengths)

    def chunk(self, first: int, last: int, n_columns: int) -> tuple[np.ndarray, np.ndarray, bool]:
        """Split the lines of `data[first:last]` by whole-array operations; only lines with spaces
        in quotes or comments go one by one."""
        text = self.buffer[first:last]
        space = np.concatenate([[True], _IS_SPACE[text], [True]])
        edges = np.flatnonzero(space[1:] != space[:-1])
        start, end = edges[0::2], edges[1::2]
        line_end = np.append(np.flatnonzero(text == ord("\n")), last - first)
        token_end = np.searchsorted(start, line_end)  # tokens before the end of each line
        token_first = np.concatenate([[0], token_end[:-1]])
        count = token_end - token_first
        line_first = np.concatenate([[0], line_end[:-1] + 1])

        head, tail = text[start], text[end - 1]
        quoted = (head == ord('"')) | (head == ord("'"))
        odd_token = (head == ord("#")) | (quoted & ((tail != head) | (end - start < 2)))
        odd_line = np.zeros(len(count), bool)
        odd_line[np.searchsorted(line_end, start[odd_token])] = True

        # a line may open the next block: data_..., loop_, or _name, which no row of n_columns cells
        # can be
        opener = np.append(head, 0)[token_first] if len(head) else np.zeros(len(count), np.uint8)
        suspect = (
            (count > 0)
            & np.isin(opener, np.frombuffer(b"_dDlL", np.uint8))
            & ((count != n_columns) | (n_columns == 1))
        )
        suspect |= odd_line
        plain = (count == n_columns) & ~suspect
        rows: dict[int, list[tuple[int, int]]] = {}
        stop = len(count)
        for i in np.flatnonzero((count > 0) & ~plain).tolist():
            found = self.tokens(first + int(line_first[i]), first + int(line_end[i]))
            if not found:
                continue
            if self.opens_block(found, n_columns):
                stop = i
                self.position = first + int(line_first[i])
                break
            if len(found) != n_columns:
                shown = _shown(self.data[slice(*found[0])])
                raise self.error(
                    f"a row starting with {shown} has {len(found)} cells; the loop has "
                    f"{n_columns} columns",
                    found[0][0],
                )
            rows[i] = found

        keep = plain.copy()
        keep[stop:] = False
        keep[list(rows)] = True
        which = np.cumsum(keep) - 1
        starts = np.empty((int(keep.sum()), n_columns), np.int64)
        ends = np.empty_like(starts)
        fast = np.flatnonzero(plain[:stop])
        index = token_first[fast][:, None] + np.arange(n_columns)
        starts[which[fast]], ends[which[fast]] = start[index] + first, end[index] + first
        for i, found in rows.items():
            starts[which[i]], ends[which[i]] = np.array(found).T
        return starts, ends - starts, stop < len(count)

    def opens_block(self, found: list[tuple[int, int]], n_columns: int) -> bool:
        word = self.data[slice(*found[0])].lower()
        if len(found) == 1 and (word.startswith(b"data_") or word == b"loop_"):
            return True
        return word.startswith(b"_") and (len(found) != n_columns or n_columns == 1)


def _shown(word: bytes) -> str:
    text = word.decode("utf-8", "replace")
    return repr(text if len(text) <= 40 else text[:37] + "...")


def write_star(path: str | os.PathLike[str], blocks: Mapping[str, Table]) -> None:
    """Write blocks in RELION's layout, atomically; cells that were not replaced keep the text they
    were read with.

    Raises:
        InputError: the folder is missing or not writable.
    """
    with replacing(path) as temporary, open(temporary, "wb") as out:
        for name, table in blocks.items():
            out.write(f"\n# version 30001\n\ndata_{name}\n\n".encode("utf-8", "surrogateescape"))
            if table.is_loop and table.names:
                header = "".join(f"_{column} #{i}\n" for i, column in enumerate(table.names, 1))
                out.write(b"loop_\n" + header.encode("utf-8", "surrogateescape"))
                _write_rows(out, list(table.columns.values()))
            else:
                width = max(map(len, table.names), default=0) + 2
                for column, cells in table.columns.items():
                    out.write(
                        f"_{column:<{width}}".encode("utf-8", "surrogateescape")
                        + cells.raw(0)
                        + b"\n"
                    )
            out.write(b"\n")


def _write_rows(out, columns: list[Cells]) -> None:
    """Cells joined by spaces, gathered a few million bytes at a time."""
    n = len(columns[0])
    step = max(1, (1 << 18) // len(columns))
    for first in range(0, n, step):
        rows = slice(first, min(first + step, n))
        lengths = np.stack([cells.length[rows] for cells in columns], axis=1).astype(np.int64) + 1
        ends = np.cumsum(lengths.ravel()).reshape(lengths.shape)
        text = np.full(int(ends[-1, -1]), ord(" "), np.uint8)
        text[ends[:, -1] - 1] = ord("\n")
        for j, cells in enumerate(columns):
            size = lengths[:, j] - 1
            within = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
            target = np.repeat(ends[:, j] - lengths[:, j], size) + within
            text[target] = cells.buffer[
                np.repeat(cells.start[rows].astype(np.int64), size) + within
            ]
        out.write(text.tobytes())
