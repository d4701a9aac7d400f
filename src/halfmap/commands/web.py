"""Pages in the browser: what the jobs of a folder do, and what came out."""

import importlib
import secrets
import socket
import sys
from pathlib import Path

from halfmap.commands._options import Annotated, Option, Sequence
from halfmap.errors import InputError
from halfmap.options import command

_LOCAL = "127.0.0.1"


@command
def web(
    folder: Annotated[
        str | Path, Option("Folder with job folders in it", positional=True, metavar="DIR")
    ] = ".",
    *,
    port: Annotated[
        int,
        Option(
            "Port to listen at; 0 takes one that is free", at_least=0, at_most=65535, metavar="N"
        ),
    ] = 8765,
    host: Annotated[
        str,
        Option(
            "Address to listen at; at any but this machine's own a token is needed",
            metavar="ADDRESS",
        ),
    ] = "127.0.0.1",
    token: Annotated[
        bool, Option("Ask for a token at this machine's own address too, where others log in")
    ] = False,
    root_path: Annotated[
        str,
        Option(
            "Path under which a proxy serves the pages, such as /user/me/halfmap", metavar="PATH"
        ),
    ] = "",
    host_name: Annotated[
        Sequence[str] | None,
        Option("Further host name that a proxy calls the server by", metavar="NAME", unset="none"),
    ] = None,
    read_only: Annotated[bool, Option("Show jobs, but start, stop and write nothing")] = False,
) -> None:
    """Show the jobs of a folder in the browser, live, and work with them there.

    Serves until Ctrl-C. Jobs that were started from the page go on when the server ends.

    Example: halfmap web jobs

    Raises:
        InputError: no such folder, or an address that cannot be listened at.
    """
    place = Path(folder)
    if not place.is_dir():
        raise InputError(f"{folder}: a folder of jobs was expected, there is none")
    if root_path and not root_path.startswith("/"):
        raise InputError(f"--root-path {root_path}: expected a path that begins with /")
    try:
        # named, not imported: the pages stand above the commands, as the command line does
        pages = importlib.import_module("halfmap.pages.application")
        safety = importlib.import_module("halfmap.pages.safety")
    except ModuleNotFoundError as error:
        raise InputError(
            f"halfmap web: {error.name} is not installed; pip install {error.name}"
        ) from None
    secret = secrets.token_urlsafe(32) if token or not safety.is_loopback(host) else None

    def ready(taken: int) -> None:
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{taken}{root_path.rstrip('/')}/"
        print(f"halfmap web: {place} at {address}{f'?token={secret}' if secret else ''}")
        if safety.is_loopback(host):
            print(f"  from elsewhere: ssh -L {taken}:{_LOCAL}:{taken} {socket.gethostname()}")
        print("  Ctrl-C ends it; jobs go on", flush=True)

    pages.serve(
        place,
        host=host,
        port=port,
        token=secret,
        root_path=root_path,
        host_names=tuple(host_name or ()),
        read_only=read_only,
        ready=ready,
    )
    sys.stdout.flush()
