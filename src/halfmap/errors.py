"""The exceptions a user is meant to see."""

import errno
import os
import re


class InputError(ValueError):
    """Bad input, told in one line: where (file, row, column or argument), what was expected, what
    arrived, the way out.

    The command line prints the message without a traceback and exits with code 2.

    >>> import halfmap
    >>> try:
    ...     halfmap.symmetry_matrices("Q7")
    ... except InputError as error:
    ...     print(type(error).__name__)
    InputError
    """


class StorageError(InputError):
    """A disk that is full, gone or read-only, told in one line with the path and the way on."""


class MemoryShortage(InputError):
    """Memory that ran out, told in one line: what was asked for, what there is, and the way on."""


# of the words of torch, which raises a plain RuntimeError on the CPU, of its libraries and drivers
_NO_MEMORY = (
    "not enough memory",
    "allocate memory",  # "can't ..." (torch), "cannot ..." (the system)
    "out of memory",
    "memory allocation error",  # of the transforms
    "alloc_failed",  # of an accelerator's libraries
)
_BYTES_OF = {"bytes": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error says that memory ran out, of the machine or of its accelerator."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(
        text in str(error).lower() for text in _NO_MEMORY
    )


def asked_bytes(error: BaseException) -> float | None:
    """How much was asked for when memory ran out, where the error tells.

    >>> asked_bytes(MemoryError("Unable to allocate 1.50 GiB for an array with shape (3,)")) / 2**30
    1.5
    """
    found = re.search(r"allocate ([\d.]+) ?(bytes|[KMGT]iB)", str(error), re.IGNORECASE)
    return float(found[1]) * _BYTES_OF[found[2].lower()] if found else None


# of the system's words, what they ask of the user
_WAYS_OUT = {
    errno.ENOSPC: "the disk is full; make room",
    errno.EDQUOT: "the disk quota is used up; make room",
    errno.EFBIG: "the file system takes no file so large; choose another place",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.EACCES: "no permission to write here; choose another place",
    errno.EPERM: "no permission to write here; choose another place",
    errno.ENOENT: "the folder is not there any more; bring it back",
    errno.ENOTDIR: "a folder of the path is a file; choose another place",
    errno.EIO: "the disk gives errors; choose another place",
    errno.ESTALE: "the network file system has lost the file; mount it again",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


def storage_error(error: OSError, path: str | os.PathLike[str] | None = None) -> StorageError:
    """What the system said of a file that could not be written, with the path and the way out.

    numpy says of a full disk only that fewer bytes were written, without a number of the error.
    """
    where = path or error.filename or "a file"
    number = error.errno
    if number is None and " requested and " in str(error):
        number = errno.ENOSPC
    way = _WAYS_OUT.get(number or 0, "choose another place")
    return StorageError(f"{os.fspath(where)}: cannot be written ({error.strerror or error}): {way}")


def is_of_storage(error: BaseException) -> bool:
    """Whether an error is the disk's, whatever was at work, and not the program's."""
    disks = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE)
    return isinstance(error, OSError) and (error.errno in disks or " requested and " in str(error))


def is_gone(error: OSError) -> bool:
    """Whether the folder is not there any more."""
    return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
