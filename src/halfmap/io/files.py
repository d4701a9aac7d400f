"""Files that are either whole or absent: written under a temporary name, then renamed."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from halfmap.errors import InputError, storage_error


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary name in the folder of `path`; rename it to `path` on success, remove it on
    failure.

    A reader sees the old file or the whole new one, never a part, even when the process is killed.

    Raises:
        InputError: the folder does not exist.
        StorageError: it cannot be written to, or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; create it first")
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(
                written.fileno()
            )  # else a crash soon after the rename could leave an empty file
        rename_durably(temporary, path)
    except OSError as error:
        raise storage_error(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def rename_durably(temporary: Path, final: Path) -> None:
    """Rename a synced file over another, and sync the folder: after a crash the old or the new file
    is there, whole."""
    os.replace(temporary, final)
    if os.name != "posix":
        return  # a folder cannot be opened there, so it cannot be synced
    handle = os.open(final.parent, os.O_RDONLY)
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder
        os.fsync(handle)
    os.close(handle)


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Around the writing of a file: what the disk refuses is told with its path.

    Raises:
        StorageError: a full disk, a folder that is gone, no permission.
    """
    try:
        yield
    except OSError as error:
        raise storage_error(error, path) from error
