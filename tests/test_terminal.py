"""Every job on a real terminal: it ends with exit code 0, its last line is right, and nothing on
the screen is nonsense on the way."""

import errno
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pty = pytest.importorskip("pty", reason="pseudo-terminals are Unix")

BOX, N = 24, 48
REFERENCE = ("--reference", "sim/truth_1.mrc", "--symmetry", "C4")
PARTICLES = ("--particles", "sim/particles.star")
BY_MASK = r"FSC 0\.143, mask-corrected, mask mask\.mrc"
ANGSTROM = r"\d+\.\d+ A"


@dataclass(frozen=True)
class Screen:
    """What a terminal was sent, freed of colours and movements: every line that was ever shown."""

    code: int
    lines: list[str]

    @property
    def last(self) -> str:
        return self.lines[-1]

    def __contains__(self, words: str) -> bool:
        return any(words in line for line in self.lines)


def on_a_terminal(folder: Path, *arguments: str, **environment: str) -> Screen:
    """Run `halfmap` in `folder` on a pseudo-terminal of its own."""
    ours, theirs = pty.openpty()
    known = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "halfmap.cli.main", *arguments],
        cwd=folder,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**known, **environment},
    ) as process:
        os.close(theirs)
        shown = b""
        while piece := _read(ours):
            shown += piece
    os.close(ours)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    return Screen(
        process.returncode, [line for line in re.split(r"[\r\n]+", plain) if line.strip()]
    )


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError as error:  # Linux says so where macOS reads nothing: the other end is closed
        if error.errno != errno.EIO:
            raise
        return b""


def good(screen: Screen, *, limit: int | None = None) -> Screen:
    """The job ended well, and on the way showed no iteration beyond its limit, none numbered 0, no
    failure."""
    assert screen.code == 0, screen.lines[-20:]
    text = "\n".join(screen.lines)
    assert not re.search(r"Error|could not draw|no progress line|Traceback", text), text
    told = [(int(n), int(of)) for n, of in re.findall(r"^\W*[a-z0-9]+ (\d+)/(\d+)\b", text, re.M)]
    assert all(1 <= n <= of for n, of in told)
    if limit is not None:
        assert told, "no iteration was shown"
        assert {of for _, of in told} == {limit}
    return screen


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("terminal")
    screen = good(
        on_a_terminal(
            folder,
            *("simulate", "phantom", "--out", "sim", "--n", str(N), "--snr", "0.5"),
            *("--box", str(BOX), "--pixel-size", "8", "--preferred", "1"),
        )
    )
    assert screen.last == f"simulate: {N} particles in sim"
    return folder


def test_refine_and_what_it_says_of_its_resolution(work: Path) -> None:
    screen = good(
        on_a_terminal(work, "refine", *PARTICLES, *REFERENCE, "--out", "r", "--iterations", "2"),
        limit=2,
    )
    assert re.fullmatch(
        rf"refine: {ANGSTROM} \({BY_MASK}; unmasked {ANGSTROM}\), {N} particles, "
        r"stopped at the limit of 2 iterations: r/map\.mrc",
        screen.last,
    )
    assert "refine final maps" in screen
    assert (work / "r/map.mrc").exists()


def test_class3d_calls_its_resolutions_optimistic_and_tells_sizes(work: Path) -> None:
    screen = good(
        on_a_terminal(
            work,
            *("class3d", *PARTICLES, *REFERENCE, "--classes", "2"),
            *("--out", "c3", "--iterations", "1"),
        ),
        limit=1,
    )
    sizes = [int(n) for n in re.findall(r"class00\d \S+ A? ?\((\d+) particles?\)", screen.last)]
    assert sum(sizes) == N, screen.last
    assert "optimistic: halves share references" in screen.last
    assert screen.last.endswith("stopped at the limit of 1 iteration: c3/class001.mrc ...")
    (line,) = (line for line in screen.lines if line.startswith("class3d 1/1:"))
    assert re.search(r"best of 2 classes: class00[12] .* A \(optimistic: .*sizes \d+, \d+", line)
    assert "_halfmapResolutionIsOptimistic" in (work / "c3/class001_fsc.star").read_text()


def test_class2d_goes_to_its_limit_and_no_further(work: Path) -> None:
    screen = good(
        on_a_terminal(
            work, "class2d", *PARTICLES, "--classes", "3", "--out", "c2", "--iterations", "2"
        ),
        limit=2,
    )
    assert re.fullmatch(
        rf"class2d: 3 classes of {N} images, the largest of \d+, \d+, \d+, FRC 0\.5 "
        rf"(from {ANGSTROM} to {ANGSTROM}|is reached by none), "
        r"stopped at the limit of 2 iterations: c2/classes\.mrcs",
        screen.last,
    )
    assert any(
        re.search(r"class2d 2/2: best of 3 classes .*sizes \d+, \d+", x) for x in screen.lines
    )


def test_abinitio_never_calls_its_limit_a_resolution(work: Path) -> None:
    screen = good(
        on_a_terminal(
            work,
            *("abinitio", *PARTICLES, "--symmetry", "C4", "--out", "a"),
            *("--iterations", "1", "--final-lowpass", "30", "--initial-lowpass", "40"),
        )
    )
    assert re.fullmatch(
        rf"abinitio: scored to {ANGSTROM}, log likelihood "
        rf"-?\d+\.\d a particle, {N} particles: a/map\.mrc",
        screen.last,
    )
    assert not any("resolution" in line for line in screen.lines)


def test_reconstruct_and_restore(work: Path) -> None:
    truth = ("--particles", "sim/truth.star")
    made = good(on_a_terminal(work, "reconstruct", *truth, "--out", "m/map.mrc"))
    assert re.match(rf"reconstruct: {ANGSTROM} \({BY_MASK}; .*, {N} particles, .*: m/", made.last)
    restored = good(on_a_terminal(work, "restore", *truth, "--method", "flip", "--out", "flip"))
    assert str(N) in restored.last


def test_resume_ends_with_the_line_of_the_job_that_it_goes_on_with(work: Path) -> None:
    """Killed when its final maps were made, a job goes on there and says what it reached."""
    asked = ("refine", *PARTICLES, *REFERENCE, "--out", "k", "--iterations", "1")
    assert on_a_terminal(work, *asked).code == 0
    job = work / "k/job.json"
    job.write_text(job.read_text().replace('"status": "finished"', '"status": "stopped"'))
    screen = good(on_a_terminal(work, "resume", "k"), limit=None)
    assert "going on after iteration 1" in screen
    assert screen.last.startswith("refine: ")
    assert screen.last.endswith("stopped at the limit of 1 iteration: k/map.mrc")
    assert "refine 2/1" not in screen


def test_a_picture_that_cannot_be_drawn_does_not_end_a_job(work: Path) -> None:
    """A folder stands where a picture belongs."""
    (work / "blocked.png").mkdir()
    screen = on_a_terminal(
        work,
        *("reconstruct", "--particles", "sim/truth.star", "--out", "blocked.mrc", "--overwrite"),
        HALFMAP_STRICT_PICTURES="",
    )
    assert screen.code == 0
    assert "could not draw blocked.png: IsADirectoryError" in screen
    assert screen.last.endswith("blocked.mrc")


@pytest.mark.slow
def test_the_demo(tmp_path: Path) -> None:
    screen = good(on_a_terminal(tmp_path, "demo", "--out", "demo", "--n", "300"))
    assert "halfmap class2d --help" in screen.last
    assert (tmp_path / "demo/7_refined/half1.mrc").exists()
