"""Particle tables of several files made one, their optics groups numbered anew."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from halfmap.ctf_parameters import quantities
from halfmap.errors import InputError
from halfmap.io.table import Cells, Table, cells_from_tokens

# What stands for a column of the CTF that one of the files does not have: the value it is read as.
_DEFAULTS = {one.relion: one.default for one in quantities() if not one.required}
_NUMBER, _NAME, _GROUP = "rlnOpticsGroup", "rlnOpticsGroupName", "rlnGroupNumber"


@dataclass(frozen=True)
class Joined:
    """Blocks `optics` and `particles` of all files, and what a user should be told."""

    blocks: dict[str, Table]
    notes: tuple[str, ...]


def join_tables(files: Sequence[dict[str, Table]]) -> Joined:
    """One pair of tables from several (blocks `optics` and `particles` as RELION 3.1 has them).

    Optics groups that agree in every column are one group; others get numbers, and where names
    clash names, of their own. Columns that not every file has are left out, but for those of the
    CTF, which get the value that their absence means. Group numbers (rlnGroupNumber) of the files
    are kept apart.

    Raises:
        InputError: no column in common.
    """
    optics, numbers = _join_optics([one["optics"] for one in files])
    particles, offset = [], 0
    for one, new in zip(files, numbers, strict=True):
        table = one["particles"]
        labels = one["optics"].ints(_NUMBER)
        row = {int(label): new[i] for i, label in enumerate(labels)}
        group = [row[int(label)] for label in table.ints(_NUMBER)]
        changed: dict[str, np.ndarray] = {_NUMBER: np.array(group)}
        if _GROUP in table:
            values = table.ints(_GROUP)
            changed[_GROUP] = values + offset
            offset += int(values.max(initial=0))
        particles.append(table.with_columns(changed))
    joined, lost = _stacked(particles)
    _, lost_optics = _common([one["optics"] for one in files])
    dropped = [f"_{name}" for name in (*lost, *lost_optics)]
    notes = () if not dropped else (f"left out, not in every file: {', '.join(dropped)}",)
    return Joined({"optics": optics, "particles": joined}, notes)


def _join_optics(tables: Sequence[Table]) -> tuple[Table, list[list[int]]]:
    """The groups of all files, and for each file the new number of each of its groups."""
    common, _ = _common(tables)
    compared = [name for name in common if name != _NUMBER]
    seen: dict[tuple[object, ...], int] = {}
    names: dict[str, int] = {}
    rows: list[Table] = []
    numbers: list[list[int]] = []
    for table in tables:
        filled = _filled(table, common)
        columns = [_values(filled, name) for name in compared]
        numbers.append([])
        for i, key in enumerate(zip(*columns, strict=True)):
            if key not in seen:
                seen[key] = len(seen) + 1
                row = filled.take([i]).with_columns({_NUMBER: [seen[key]]})
                if _NAME in row:
                    row = row.with_columns({_NAME: [_free_name(row.strings(_NAME)[0], names)]})
                rows.append(row)
            numbers[-1].append(seen[key])
    return _stacked(rows)[0], numbers


def _free_name(name: str, taken: dict[str, int]) -> str:
    """The name, numbered if it is taken."""
    taken[name] = taken.get(name, 0) + 1
    return name if taken[name] == 1 else _free_name(f"{name}_{taken[name]}", taken)


def _values(table: Table, name: str) -> list[object]:
    """A column as numbers if all are, so that 300 and 300.000000 are one, else as text."""
    try:
        return [float(np.float32(value)) for value in table.floats(name)]
    except InputError:
        return list(table.strings(name))


def _common(tables: Sequence[Table]) -> tuple[list[str], list[str]]:
    """Columns that every table has or that have a default, in the order met; and the others."""
    every = list(dict.fromkeys(name for table in tables for name in table.names))
    kept = [n for n in every if n in _DEFAULTS or all(n in table for table in tables)]
    return kept, [n for n in every if n not in kept]


def _filled(table: Table, columns: Sequence[str]) -> Table:
    """The table with these columns in this order, those it has not filled with defaults."""
    absent = {n: [float(_DEFAULTS[n])] * len(table) for n in columns if n not in table}
    filled = table.with_columns(absent)
    return replace(filled, columns={name: filled.columns[name] for name in columns})


def _stacked(tables: Sequence[Table]) -> tuple[Table, list[str]]:
    """The rows of all tables in the columns they have in common, text untouched; and the names of
    the columns left out."""
    names, lost = _common(tables)
    if not names:
        raise InputError("join: the files have no column in common")
    filled = [_filled(table, names) for table in tables]
    columns: dict[str, Cells] = {}
    for name in names:
        cells = [table.columns[name] for table in filled]
        columns[name] = cells_from_tokens([one.raw(i) for one in cells for i in range(len(one))])
    return replace(tables[0], columns=columns, is_loop=True), lost
