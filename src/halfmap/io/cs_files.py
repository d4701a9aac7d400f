"""cryoSPARC's `.cs` files on disk: structured numpy arrays, in a main file and its passthrough
files, joined by uid."""

import io
import os
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from halfmap.errors import InputError
from halfmap.io.files import replacing

Passthrough = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

# numpy refuses longer headers by default: of a job with many classes they have tens of thousands of
# bytes. What is read is a literal, never code.
_LONGEST_HEADER = 1 << 24
_REQUIRED = ("uid", "blob/path", "blob/idx", "blob/psize_A")


def fields(data: np.ndarray) -> tuple[str, ...]:
    """The names of an array's fields."""
    return data.dtype.names or ()


def text(values: np.ndarray) -> list[str]:
    """A field of paths or names as text, without cryoSPARC's leading '>'."""
    encoded = values if values.dtype.kind == "S" else np.char.encode(values.astype(str), "utf-8")
    return [one.decode("utf-8", "surrogateescape").removeprefix(">") for one in encoded.tolist()]


def read_cs(
    path: str | os.PathLike[str], *, passthrough: Passthrough | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read a `.cs` file with the fields of its passthrough files added by uid, and notes on which
    those were.

    Of a cryoSPARC job one file has what the job changed, another what it passed through: images,
    CTFs or poses may lie only there. Where no `passthrough` is given, files in the same folder with
    `passthrough` in their name that hold all particles are taken, those of the most similar name
    first (particles_selected.cs: passthrough_particles_selected.cs). A field of the file itself is
    never replaced.

    Raises:
        InputError: unreadable, not a particle `.cs`, or a passthrough file is missing, ambiguous or
            lacks particles.
    """
    path = Path(path)
    data = _load(path)
    given = _as_paths(passthrough)
    used = given or _found_passthroughs(path, data)
    notes = []
    for one in used:
        other = _load(one)
        new = [name for name in fields(other) if name not in fields(data)]
        if new or given:
            data = _merge(path, data, one, other, new)
        if new:
            kinds = ", ".join(dict.fromkeys(name.partition("/")[0] for name in new))
            notes.append(f"{path}: {kinds} from its passthrough file {one.name}")
    if not len(data):
        raise InputError(f"{path}: has no particles; nothing to process")
    notes += [
        f"{path}: {kind} has poses and no shifts; particles are taken to be centred"
        for kind in ("alignments3D", "alignments2D")
        if f"{kind}/pose" in fields(data) and f"{kind}/shift" not in fields(data)
    ]
    missing = [name for name in _REQUIRED if name not in fields(data)]
    if "blob/path" in missing and (what := _what_else(fields(data))):
        raise InputError(
            f"{path}: holds {what}, no particles (no field blob/path); give the particles' .cs"
        )
    if "blob/path" in missing and not used:
        raise InputError(
            f"{path}: no field blob/path (where the images are), and 0 files *passthrough*.cs "
            "with these particles beside it; give the passthrough file with --passthrough"
        )
    if missing:
        raise InputError(
            f"{path}: the field {missing[0]} is missing; this is not a particle .cs file with its "
            "passthrough file"
        )
    return data, tuple(notes)


def _what_else(names: tuple[str, ...]) -> str:
    """What a .cs file holds that has none of a particle's fields; empty if it may be particles."""
    kinds = {name.partition("/")[0] for name in names}
    if any(kind.startswith(("alignments", "ctf", "blob", "pick_stats")) for kind in kinds):
        return ""
    known = {
        "micrograph_blob": "micrographs",
        "movie_blob": "movies",
        "map": "volumes",
        "mask": "masks",
    }
    return next((what for kind, what in known.items() if kind in kinds), "")


def _as_paths(passthrough: Passthrough | None) -> list[Path]:
    if passthrough is None:
        return []
    if isinstance(passthrough, str | os.PathLike):
        return [Path(passthrough)]
    return [Path(one) for one in passthrough]


def passthroughs_of(
    files: Sequence[str | os.PathLike[str]], passthrough: Passthrough | None
) -> list[list[Path] | None]:
    """Of several particle files, which of the passthrough files given belongs to each `.cs`: those
    that hold a particle of it. None: what lies beside it.

    Raises:
        InputError: a passthrough file that belongs to none.
    """
    given = _as_paths(passthrough)
    uids = {one: _load(one, mapped=True)["uid"] for one in given}
    found: list[list[Path] | None] = []
    for file in map(Path, files):
        own: list[Path] = []
        if given and file.suffix.lower() == ".cs":
            held = _load(file, mapped=True)["uid"]
            own = [one for one in given if np.isin(held, uids[one]).any()]
        found.append(own or None)
    for one in given:
        if not any(one in (own or ()) for own in found):
            raise InputError(
                f"--passthrough {one}: expected the passthrough file of a .cs file given, holds "
                f"no particle of {', '.join(map(str, files))}"
            )
    return found


def _load(path: Path, *, mapped: bool = False) -> np.ndarray:
    try:
        data = np.load(
            path,
            mmap_mode="r" if mapped else None,
            allow_pickle=False,
            max_header_size=_LONGEST_HEADER,
        )
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); check the path"
        ) from error
    except (ValueError, EOFError, SyntaxError, TypeError) as error:
        raise InputError(
            f"{path}: is not a cryoSPARC .cs file (a structured numpy array), or is damaged; copy "
            "it again"
        ) from error
    if (
        not isinstance(data, np.ndarray)
        or data.dtype.names is None
        or "uid" not in data.dtype.names
        or data.ndim != 1
    ):
        raise InputError(f"{path}: is not a cryoSPARC .cs file (no table with a field uid)")
    return data


def _words(path: Path) -> set[str]:
    return set(re.split(r"[\W_]+", path.stem.lower())) - {"passthrough", "cryosparc", ""}


def _found_passthroughs(path: Path, data: np.ndarray) -> list[Path]:
    """Passthrough files beside `path` that hold its particles, the most similar name first. Where
    images are missing and files hold only some of the particles, the most similar of those, which
    is then refused with the reason."""
    near = sorted(
        one
        for one in path.parent.glob("*.cs")
        if "passthrough" in one.name.lower() and one.name != path.name
    )
    near.sort(key=lambda one: len(_words(one) ^ _words(path)))
    whole, some = [], []
    for one in near:
        try:
            uids = np.asarray(_load(one, mapped=True)["uid"])
        except InputError:
            continue
        held = np.isin(data["uid"], uids)
        if held.all() and len(held):
            whole.append(one)
        elif held.any():
            some.append(one)
    _refuse_rivals(path, data, whole)
    return whole or ([] if "blob/path" in fields(data) else some[:1])


def _refuse_rivals(path: Path, data: np.ndarray, whole: list[Path]) -> None:
    """Two files of equally similar names that say different things: the user must choose.

    Raises:
        InputError: naming them.
    """
    for first, second in pairwise(whole):
        if len(_words(first) ^ _words(path)) != len(_words(second) ^ _words(path)):
            continue
        one, other = (_load(file) for file in (first, second))
        shared = set(fields(one)) & set(fields(other)) - set(fields(data))
        rows_one, rows_other = (_rows(file["uid"], data["uid"])[0] for file in (one, other))
        if any((one[name][rows_one] != other[name][rows_other]).any() for name in shared):
            raise InputError(
                f"{path}: 2 passthrough files beside it hold its particles and differ: "
                f"{first.name}, {second.name}; give one with --passthrough"
            )


def _rows(uids: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The row of each wanted uid, and the places in `wanted` of those that are not there."""
    if not len(uids):
        return np.zeros(len(wanted), np.int64), np.arange(len(wanted))
    order = np.argsort(uids, kind="stable")
    rows = order[np.searchsorted(uids[order], wanted).clip(max=len(uids) - 1)]
    return rows, np.flatnonzero(uids[rows] != wanted)


def _merge(
    path: Path, data: np.ndarray, other_path: Path, other: np.ndarray, new: Iterable[str]
) -> np.ndarray:
    rows, lost = _rows(other["uid"], data["uid"])
    if len(lost):
        raise InputError(
            f"{other_path}: {len(lost)} of {len(data)} particles of {path.name} are not in it "
            f"(first: row {lost[0] + 1}, "
            f"uid {data['uid'][lost[0]]}); give the passthrough file of the same job"
        )
    added = [(name, other.dtype[name]) for name in new]
    _refuse_unequal_twins(other_path, other, data["uid"], new)
    merged = np.empty(len(data), [(name, data.dtype[name]) for name in fields(data)] + added)
    for name in fields(data):
        merged[name] = data[name]
    for name, _ in added:
        merged[name] = other[name][rows]
    return merged


def _refuse_unequal_twins(
    path: Path, other: np.ndarray, wanted: np.ndarray, new: Iterable[str]
) -> None:
    """Two rows of one uid that say different things: which is meant, nobody knows.

    Raises:
        InputError: naming both.
    """
    held = np.flatnonzero(np.isin(other["uid"], wanted))
    uids, first, inverse = np.unique(other["uid"][held], return_index=True, return_inverse=True)
    if len(uids) == len(held):
        return
    one = held[first[inverse]]
    for name in new:
        differs = other[name][held] != other[name][one]
        rows = np.flatnonzero(differs.reshape(len(held), -1).any(1))
        if len(rows):
            row = rows[0]
            raise InputError(
                f"{path}: rows {one[row] + 1} and {held[row] + 1} have the same uid "
                f"{other['uid'][held[row]]} and differ in {name}; expected one row a particle"
            )


def write_cs(path: str | os.PathLike[str], data: np.ndarray) -> None:
    """Write a structured array as a `.cs` file, atomically.

    Through a buffer: numpy writes into a file by a way of its own, on which a full disk may go
    unnoticed.
    """
    encoded = io.BytesIO()
    np.save(encoded, data, allow_pickle=False)
    with replacing(path) as temporary, open(temporary, "wb") as out:
        out.write(encoded.getbuffer())
