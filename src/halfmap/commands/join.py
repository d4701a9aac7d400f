"""Particle files made one."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from halfmap.commands._beside import leave_record
from halfmap.commands._maps import refuse_existing
from halfmap.commands._options import (
    Annotated,
    DataDir,
    Option,
    OverwriteFile,
    Passthrough,
    Sequence,
)
from halfmap.commands._summaries import counted, where
from halfmap.errors import InputError
from halfmap.io.convert import convert as convert_file
from halfmap.io.cs_files import passthroughs_of
from halfmap.io.joining import join_tables
from halfmap.io.star import write_star
from halfmap.options import command
from halfmap.particles import Particles, load_particles


@dataclass(frozen=True)
class FilesJoined:
    """The file written, how many particles and optics groups are in it, and notes."""

    path: Path
    count: int
    groups: int
    notes: tuple[str, ...]

    @property
    def summary(self) -> str:
        groups = counted(self.groups, "optics group")
        return f"{counted(self.count, 'particle')} in {groups}: {where(self.path)}"


@command
def join(
    files: Annotated[
        Sequence[str | Path],
        Option("Particle files, STAR of any version or .cs", positional=True, metavar="FILE..."),
    ],
    out: Annotated[
        str | Path, Option("File to write, .star or .cs", metavar="FILE", recorded=False)
    ],
    *,
    data_dir: DataDir = None,
    passthrough: Passthrough = None,
    overwrite: OverwriteFile = False,
) -> FilesJoined:
    """Join particle files. Optics groups are numbered anew: those that agree in every column become
    one, those that share a name and differ get names of their own.

    Example: halfmap join session1.star session2.star --out both.star

    Raises:
        InputError: fewer than two files, an unreadable one, no column in common, or `out` exists.
    """
    arguments, path = locals(), Path(out)
    if len(files) < 2:
        raise InputError(f"join: expected two files or more, got {len(files)}")
    if path.suffix.lower() not in (".star", ".cs"):
        raise InputError(f"--out {out}: expected a file name ending in .star or .cs")
    refuse_existing([path], overwrite=overwrite)
    sets = [
        load_particles(one, data_dir=data_dir, check_images=False, use_ctf=False, passthrough=of_it)
        for one, of_it in zip(files, passthroughs_of(files, passthrough), strict=True)
    ]
    joined = join_tables([one.star_blocks(path) for one in sets])
    if path.suffix.lower() == ".cs":
        with tempfile.TemporaryDirectory(dir=path.absolute().parent) as folder:
            star = Path(folder) / "joined.star"
            write_star(star, joined.blocks)
            convert_file(star, path, data_dir=data_dir)
    else:
        write_star(path, joined.blocks)
    count, groups = len(joined.blocks["particles"]), len(joined.blocks["optics"])
    done = FilesJoined(path, count, groups, joined.notes + _twice(sets))
    leave_record(join, arguments, path, particles=count, summary=done.summary)
    return done


def _twice(sets: list[Particles]) -> tuple[str, ...]:
    """A note on images that are in more than one row."""
    keys: list[tuple[str, int]] = []
    for one in sets:
        places = [
            str(path.absolute()) if path is not None else name
            for path, name in zip(one.stack_paths, one.files, strict=True)
        ]
        rows = zip(one.image_file.tolist(), one.image_index.tolist(), strict=True)
        keys += [(places[file], index) for file, index in rows]
    twice = len(keys) - len(set(keys))
    if not twice:
        return ()
    return (f"{twice} of {len(keys)} rows name an image that another row has too",)
