"""The `halfmap` command: one sub-command per job, errors in one line."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Annotated

import typer
import typer.main

from halfmap import __version__
from halfmap.cli.application import SETTINGS, Commands
from halfmap.errors import InputError, is_of_storage, is_out_of_memory, storage_error

# Threads that wait for others spin for a few microseconds and then sleep. torch's OpenMP would have
# them spin for milliseconds: beside a second job of two threads a refinement took 68 s of CPU and
# of time, and 23 and 26 so. OpenMP (GNU and LLVM) reads these when torch is loaded, which is later;
# what a user has set stays.
WAITING_THREADS = {"GOMP_SPINCOUNT": "2000", "KMP_BLOCKTIME": "1"}
if "OMP_WAIT_POLICY" not in os.environ:
    for _name, _value in WAITING_THREADS.items():
        os.environ.setdefault(_name, _value)

app = typer.Typer(name="halfmap", cls=Commands, no_args_is_help=True, **SETTINGS)
_USAGE_ERROR = typer.BadParameter.__bases__[
    0
]  # typer brings its own click or uses the installed one: ask it


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"halfmap {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an unexpected error.")
    ] = False,
) -> None:
    """Cryo-EM single-particle reconstruction: particle images in, refined half maps and honest
    resolution out."""
    if debug:
        os.environ["HALFMAP_DEBUG"] = "1"


def run(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 unexpected error, 2 bad input (one line, no
    traceback), 130 stopped."""
    given = sys.argv[1:] if arguments is None else arguments
    command = typer.main.get_command(app)
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1  # of several, the launcher ends all at once
    if alone and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)
    try:  # not app(...): that swallows the message of a KeyboardInterrupt, which says how to go on
        with command.make_context("halfmap", list(given) or ["--help"]) as context:
            command.invoke(context)
        sys.exit(0)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except InputError as error:
        _leave("; ".join([str(error), *getattr(error, "__notes__", [])]), 2)
    except KeyboardInterrupt as error:
        _leave(str(error) or "stopped", 130)
    except typer.Abort:
        _leave("stopped", 130)
    except BrokenPipeError:  # the reader of our output has left, for example `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if isinstance(error, _USAGE_ERROR):
            where = getattr(error, "ctx", None)
            name = where.command_path if where else "halfmap"
            _leave(f"{error.format_message()} ({name} --help shows the options)", 2)  # type: ignore[attr-defined]
        if os.environ.get("HALFMAP_DEBUG"):
            raise
        if is_out_of_memory(error):
            from halfmap.workspace.memory import memory_shortage

            way = "run it on fewer or smaller images or maps, or where there is more memory"
            _leave(str(memory_shortage(error, (), way)), 2)
        if is_of_storage(error):
            _leave(str(storage_error(error)), 2)  # type: ignore[arg-type]
        notes = (
            "; ".join(getattr(error, "__notes__", []))
            or "halfmap --debug COMMAND shows the traceback"
        )
        _leave(f"unexpected error, {type(error).__name__}: {error}; {notes}", 1)


def _stop(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends a command as Ctrl-C does: what it was writing is taken away."""
    raise KeyboardInterrupt


def _leave(message: str, code: int) -> None:
    if _is_to_speak():
        print(f"halfmap: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.exit(code)


def _is_to_speak() -> bool:
    """Of several processes that torchrun started, one tells why they end."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True
    from halfmap.distributed import has_last_word

    return has_last_word()


if __name__ == "__main__":
    run()
