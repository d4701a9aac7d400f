"""The checkpoint of a job: the arrays and numbers of the last finished iteration, whole at every
moment."""

import contextlib
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from halfmap.errors import InputError
from halfmap.io.files import rename_durably, writing
from halfmap.workspace.earlier_job import CHECKPOINT
from halfmap.workspace.records import as_json

_META = "__meta__"


def save_checkpoint(
    folder: Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]
) -> None:
    """Replace the checkpoint by `arrays` and the JSON-able `meta`.

    Written to a temporary name, synced and renamed: at every moment either the previous or this
    checkpoint is whole on the disk.

    Raises:
        StorageError: the disk is full, or gone.
    """
    encoded = np.frombuffer(json.dumps(as_json(meta, keep_nan=True)).encode(), dtype=np.uint8)
    temporary = folder / f"{CHECKPOINT}.new"
    try:
        with writing(folder / CHECKPOINT):
            with open(temporary, "wb") as file:
                contents: dict[str, Any] = {**arrays, _META: encoded}
                np.savez(file, **contents)
                file.flush()
                os.fsync(file.fileno())
            rename_durably(temporary, folder / CHECKPOINT)
    finally:
        with contextlib.suppress(OSError):  # of a full disk it would take what is left
            temporary.unlink(missing_ok=True)


def load_checkpoint(folder: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """`(arrays, meta)` of a job folder's checkpoint, or None. Raises `InputError` where the file is
    damaged."""
    path = Path(folder) / CHECKPOINT
    if not path.exists():
        return None
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
            meta = json.loads(arrays.pop(_META).tobytes())
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
    ):  # numpy's words would not help
        raise InputError(
            f"{path}: a whole checkpoint was expected, the file is damaged; run the job anew with "
            "--overwrite"
        ) from None
    return arrays, meta
