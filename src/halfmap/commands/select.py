"""Keep some particles of a file: of some classes, by any column, of a half, at random."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from halfmap.commands._beside import leave_record
from halfmap.commands._class_averages import choose_resolved
from halfmap.commands._copies import find_copies
from halfmap.commands._options import (
    Annotated,
    Option,
    OverwriteFile,
    Passthrough,
    Sequence,
    Setting,
    check_star_name,
    parse_classes,
)
from halfmap.commands._summaries import counted
from halfmap.errors import InputError
from halfmap.io.conditions import rows_that_meet
from halfmap.io.relion import ParticleTables
from halfmap.options import command
from halfmap.particles import Particles, load_particles


@dataclass(frozen=True)
class Selected:
    """The STAR written, how many particles of how many are in it, of which classes (empty where
    classes were not asked about), and what each wish left."""

    path: Path
    kept: int
    of: int
    classes: tuple[int, ...]
    steps: tuple[str, ...] = ()

    @property
    def lines(self) -> tuple[str, ...]:
        """What each wish left, in order."""
        return self.steps

    @property
    def summary(self) -> str:
        classes = f" (classes {', '.join(map(str, self.classes))})" if self.classes else ""
        share = f"{100 * self.kept / max(1, self.of):.1f} %"
        return f"{self.kept:,} of {counted(self.of, 'particle')} ({share}) in {self.path}{classes}"


@command
def select(
    source: Annotated[
        str | Path,
        Option(
            "Job folder, or a particle STAR or .cs",
            positional=True,
            metavar="DIR|STAR",
        ),
    ],
    out: Annotated[
        str | Path,
        Option("STAR file to write", metavar="STAR", recorded=False, check=check_star_name),
    ],
    *,
    where: Annotated[
        Sequence[str] | None,
        Option(
            'Condition on columns, such as "rlnMaxValueProbDistribution > 0.3 and rlnDefocusU < '
            '20000", with and, or, not, brackets; repeated, all must hold',
            metavar="CONDITION",
        ),
    ] = None,
    classes: Annotated[
        Sequence[int] | None,
        Option(
            "Class numbers to keep; ranges such as 1-5 too",
            at_least=1,
            metavar="1,4,7",
            parse=parse_classes,
        ),
    ] = None,
    resolved_within: Annotated[
        float | None,
        Option(
            "Keep 2D classes resolved to X times the median particle's resolution or better, whose "
            "contrast and extent are those of the others; 1.5 drops junk",
            at_least=1,
            metavar="X",
        ),
    ] = None,
    half: Annotated[
        int | None, Option("Keep half set 1 or 2", at_least=1, at_most=2, metavar="1|2")
    ] = None,
    optics_group: Annotated[
        Sequence[str] | None,
        Option("Keep this optics group, by name or number; repeat for several", metavar="NAME|N"),
    ] = None,
    unique: Annotated[
        bool,
        Option(
            "Keep one of each particle: no image twice, and none closer than --min-distance to "
            "another in its micrograph"
        ),
    ] = False,
    min_distance_angstrom: Annotated[
        float | None,
        Option(
            "Particles of one micrograph whose centres are closer are one",
            unit="A",
            at_least=0,
            unset="30 A",
            needs=(Setting("unique"),),
        ),
    ] = None,
    share: Annotated[
        float | None,
        Option("Keep this share of the rest, drawn at random", above=0, at_most=1, metavar="X"),
    ] = None,
    seed: Annotated[
        int, Option("Seed of the draw", at_least=0, metavar="N", needs=(Setting("share"),))
    ] = 1,
    passthrough: Passthrough = None,
    overwrite: OverwriteFile = False,
) -> Selected:
    """Write the particles that fulfil every wish to a new STAR, and say what each wish left.

    Example: halfmap select classes --classes 1,4,7 --out good.star

    Raises:
        InputError: no such file or column, a condition that cannot be read, a class or optics group
            that no particle is in, no wish, nothing left, or `out` exists.
    """
    arguments = locals()
    if not any((where, classes, resolved_within, half, optics_group, unique, share)):
        raise InputError(
            "select: expected a wish: --where, --classes or --resolved-within, --half, "
            "--optics-group, --unique or --share"
        )
    if classes is not None and resolved_within is not None:
        raise InputError("select: expected either --classes or --resolved-within, not both")
    _refuse_existing(out, overwrite=overwrite)
    particles = _read(source, passthrough)
    chosen = _Chosen(particles)
    for condition in where or ():
        chosen.keep(f"--where {condition!r}", rows_that_meet(condition, _tables(particles)))
    wanted: tuple[int, ...] = ()
    if classes is not None:
        wanted = tuple(classes)
        chosen.keep(f"--classes {_listed(wanted)}", of_classes(particles, wanted))
    if resolved_within is not None:
        found = choose_resolved(source, within=resolved_within)
        wanted = found.kept
        chosen.steps += [f"class {k} dropped: {why}" for k, why in found.dropped.items()]
        name = f"--resolved-within {resolved_within:g}"
        chosen.keep(name, of_classes(particles, wanted, absent_too=True))
    if half is not None:
        chosen.keep(f"--half {half}", _of_half(particles, half))
    if optics_group:
        chosen.keep(f"--optics-group {_listed(optics_group)}", _of_groups(particles, optics_group))
    if unique:
        chosen.keep(*_unique(particles, chosen.kept, min_distance_angstrom))
    if share is not None:
        chosen.keep(f"--share {share:g}", _drawn(chosen.kept, share, seed))
    if wanted:
        chosen.steps += _by_class(particles, chosen.kept, wanted)
    particles.take(chosen.kept).write_star(out)
    done = Selected(Path(out), chosen.count, len(particles), wanted, tuple(chosen.steps))
    leave_record(select, arguments, done.path, kept=done.kept, of=done.of, summary=done.summary)
    return done


class _Chosen:
    """The rows that every wish so far has left, and what is told of each."""

    def __init__(self, particles: Particles) -> None:
        self.kept, self.path = np.ones(len(particles), bool), particles.path
        self.steps: list[str] = []

    @property
    def count(self) -> int:
        return int(self.kept.sum())

    def keep(self, wish: str, rows: np.ndarray) -> None:
        """Keep what is kept so far and is among the rows.

        Raises:
            InputError: nothing is left.
        """
        before = self.count
        self.kept = self.kept & rows
        if not self.count:
            raise InputError(
                f"{wish}: none of {counted(before, 'particle')} of {self.path} is left; nothing "
                "was written"
            )
        share = f"{100 * self.count / before:.1f} %"
        self.steps.append(f"{wish}: kept {self.count} of {before} ({share})")


def _by_class(particles: Particles, kept: np.ndarray, classes: Sequence[int]) -> list[str]:
    """What is kept of each class, and its share of all particles."""
    sizes = {k: int((kept & (particles.class_number == k)).sum()) for k in classes}
    return [
        f"class {k}: {counted(n, 'particle')} ({100 * n / len(particles):.1f} %)"
        for k, n in sizes.items()
    ]


def _unique(
    particles: Particles, kept: np.ndarray, min_distance_angstrom: float | None
) -> tuple[str, np.ndarray]:
    """The wish in words, with what was found, and the rows that repeat no earlier one of those
    kept."""
    rows = np.flatnonzero(kept)
    copies = find_copies(particles.take(rows), min_distance_angstrom)
    first = np.zeros(len(particles), bool)
    first[rows[~copies.repeated]] = True
    return f"--unique, copies: {copies.words if copies.count else 'none'}", first


def _listed(values: Sequence[object]) -> str:
    return ",".join(map(str, values))


def _refuse_existing(out: str | Path, *, overwrite: bool) -> None:
    if Path(out).exists() and not overwrite:
        raise InputError(f"{out}: the file exists; choose another name, or --overwrite it")


def _read(source: str | Path, passthrough: str | Path | Sequence[str | Path] | None) -> Particles:
    """Particles of a file, or of the job folder that holds `particles.star`."""
    source = Path(source)
    if source.is_dir():
        source = source / "particles.star"
        if not source.exists():
            raise InputError(
                f"{source}: no such file; give the folder of a finished job, or a STAR file"
            )
    return load_particles(source, check_images=False, passthrough=passthrough)


def _tables(particles: Particles) -> ParticleTables:
    return ParticleTables(particles.path, particles.table, particles.optics, particles.optics_group)


def of_classes(
    particles: Particles, classes: Sequence[int], *, absent_too: bool = False
) -> np.ndarray:
    """Which particles are in the classes, bool (n,).

    Raises:
        InputError: no class column; without `absent_too`, a class that no particle is in.
    """
    if not _tables(particles).has("rlnClassNumber"):
        raise InputError(
            f"{particles.path}: column _rlnClassNumber is missing; give the result of a "
            "classification"
        )
    present = np.unique(particles.class_number)
    absent = sorted(set(classes) - set(present.tolist()))
    if absent and not absent_too:
        there = ", ".join(map(str, present[:20])) + (" ..." if len(present) > 20 else "")
        raise InputError(
            f"--classes {absent[0]}: no particle of {particles.path} is in class {absent[0]}; "
            f"classes there: {there}"
        )
    return np.isin(particles.class_number, classes)


def _of_half(particles: Particles, half: int) -> np.ndarray:
    if "rlnRandomSubset" not in particles.table:
        raise InputError(
            f"{particles.path}: column _rlnRandomSubset is missing; give the result of a refinement"
        )
    return particles.half_set == half


def _of_groups(particles: Particles, wanted: Sequence[str]) -> np.ndarray:
    """Which particles are in optics groups of these names or numbers."""
    optics = particles.optics
    if optics is None:
        raise InputError(f"{particles.path}: has no optics groups, of which {wanted[0]} be one")
    numbers = optics.strings("rlnOpticsGroup").tolist()
    names = (
        optics.strings("rlnOpticsGroupName").tolist() if "rlnOpticsGroupName" in optics else numbers
    )
    rows: list[int] = []
    for one in wanted:
        found = [
            i for i, (n, name) in enumerate(zip(numbers, names, strict=True)) if one in (n, name)
        ]
        if not found:
            raise InputError(
                f"--optics-group {one}: {particles.path} has {', '.join(names)} (numbers "
                f"{', '.join(numbers)})"
            )
        rows += found
    return np.isin(particles.optics_group, rows)


def _drawn(kept: np.ndarray, share: float, seed: int) -> np.ndarray:
    """A share of the rows kept, drawn at random."""
    rows = np.flatnonzero(kept)
    drawn = np.random.default_rng(seed).permutation(rows)[: max(1, round(share * len(rows)))]
    return np.isin(np.arange(len(kept)), drawn)


def select_classes(
    source: str | Path, classes: list[int], out: str | Path, *, overwrite: bool = False
) -> tuple[int, int]:
    """Write the particles of `source` (a STAR or .cs, or the job folder that holds
    `particles.star`) in `classes` to the STAR `out`.

    Returns:
        How many particles were kept, and of how many.

    Raises:
        InputError: no such file, a class that no particle is in, or `out` exists.
    """
    done = select(source, out, classes=classes, overwrite=overwrite)
    return done.kept, done.of


def best_resolved_classes(folder: str | Path, *, within: float = 1.5) -> list[int]:
    """Numbers of the classes of a 2D classification that are well resolved and alike, see
    `choose_resolved`.

    Raises:
        InputError: no table of classes in the folder.
    """
    return list(choose_resolved(folder, within=within).kept)
