"""What every benchmark needs: where things are, commands run and measured, data made on demand,
results kept."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent
ROOT = BENCHMARKS.parent
DATA, RUNS, RESULTS = BENCHMARKS / "data", BENCHMARKS / "runs", BENCHMARKS / "results"
FIGURES = ROOT / "docs" / "figures"
SHARED_DATA = Path(os.environ.get("HALFMAP_SHARED_DATA", ROOT.parent / "shared" / "data"))
SHARED = SHARED_DATA.parent
HALFMAP = Path(sys.executable).with_name("halfmap")
THREADS = 2

# maps and options of each simulated set; the same options and seed give the same images on every
# machine
SETS = {
    "trpv1": (
        ["trpv1_96_2.5A.mrc"],
        ["--n", "2000", "--snr", "0.1", "--seed", "31", "--colour", "0.5"],
    ),
    "ribo": (
        ["ribosome70S_64_5A.mrc"],
        ["--n", "3000", "--snr", "0.2", "--seed", "21", "--colour", "0.5"],
    ),
    "ribo_mix": (
        ["ribosome70S_64_5A.mrc", "ribosome70S_64_5A_state2.mrc"],
        ["--n", "3000", "--snr", "0.2", "--seed", "32", "--colour", "0.5"],
    ),
    "trpv1_low": (
        ["trpv1_96_2.5A.mrc"],
        ["--n", "600", "--snr", "0.05", "--seed", "41", "--colour", "0.5"],
    ),
    "ribo_mix_low": (
        ["ribosome70S_64_5A.mrc", "ribosome70S_64_5A_state2.mrc"],
        ["--n", "1500", "--snr", "0.05", "--seed", "42", "--colour", "0.5"],
    ),
}


class Skip(Exception):
    """This benchmark cannot run here; the message says why."""


@dataclass(frozen=True)
class Cost:
    """What a command took: wall and CPU seconds of the process and its children, and the largest
    resident memory of any one of them."""

    wall_s: float
    user_s: float
    system_s: float
    peak_bytes: int

    @property
    def cpu_s(self) -> float:
        return self.user_s + self.system_s

    def __str__(self) -> str:
        return (
            f"{self.wall_s:.1f} s wall, {self.cpu_s:.1f} CPU s, {self.peak_bytes / 2**30:.2f} GiB"
        )


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, what halfmap gives, what stands beside it (peer or
    target) and from where."""

    what: str
    halfmap: str
    beside: str = ""


@dataclass
class Report:
    """A benchmark's figures: lines for the table, plain numbers for whoever compares later, the
    commands that were run, pictures."""

    rows: list[Row] = field(default_factory=list)
    numbers: dict[str, object] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)

    def add(self, what: str, value: str, beside: str = "") -> None:
        self.rows.append(Row(what, value, beside))
        print(f"    {what:62} {value:34} {beside}", flush=True)


def shown(command: Sequence[str | Path]) -> str:
    """The command as one would type it in the repository's root."""
    words = [str(word) for word in command]
    programs = {str(HALFMAP): "halfmap", sys.executable: "python"}
    words = [programs.get(word, word) for word in words]
    words = [word.replace(f"{SHARED}/", "../shared/").replace(f"{ROOT}/", "") for word in words]
    return " ".join(words)


def run(report: Report, command: Sequence[str | Path], *, log: str, cwd: Path = ROOT) -> Cost:
    """Run a command to its end and measure it; its output goes to `runs/<log>.log`.

    Raises:
        RuntimeError: it failed; the message holds the end of its output.
    """
    RUNS.mkdir(exist_ok=True)
    report.commands.append(shown(command))
    print(f"  $ {shown(command)}", flush=True)
    path = RUNS / f"{log}.log"
    with open(path, "wb") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            [str(word) for word in command], stdout=output, stderr=subprocess.STDOUT, cwd=cwd
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        last = path.read_text(errors="replace").replace("\r", "\n").strip().splitlines()[-3:]
        raise RuntimeError(f"{shown(command)} failed ({process.returncode}): {' '.join(last)}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Cost(wall, usage.ru_utime, usage.ru_stime, usage.ru_maxrss * unit)


def job_folder(name: str) -> Path:
    """Where a benchmark's job goes; halfmap is told to overwrite it."""
    RUNS.mkdir(exist_ok=True)
    return RUNS / name


def events(folder: Path) -> list[dict]:
    """The job's iterations."""
    return [
        json.loads(line)
        for line in (folder / "events.jsonl").read_text().splitlines()
        if line.strip()
    ]


def third_party(*parts: str) -> Path:
    """A file of the shared third-party data.

    Raises:
        Skip: it is not there.
    """
    path = SHARED_DATA.joinpath(*parts)
    if not path.exists():
        raise Skip(f"third-party data not found: {path} (HALFMAP_SHARED_DATA says where it is)")
    return path


def simulated(name: str) -> Path:
    """Folder of a simulated set, made if it is not there: `particles.star` without poses,
    `truth.star` with them.

    Raises:
        Skip: it must be made, and the simulator or its maps are not there.
    """
    folder = DATA / name
    if not (folder / "truth.star").exists():
        maps, options = SETS[name]
        simulator = SHARED / "tools" / "simulate_reference.py"
        if not simulator.exists():
            raise Skip(f"{folder} does not exist, and no simulator at {simulator}")
        paths = [str(third_party("maps", file)) for file in maps]
        print(f"  simulating {name}", flush=True)
        subprocess.run(
            [sys.executable, str(simulator), *paths, "--out", str(folder), *options],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return folder


def machine() -> dict[str, object]:
    """Processor, cores, memory, system and versions, without the machine's name."""
    processor = platform.processor()
    if Path("/proc/cpuinfo").exists():
        names = [
            line
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
        processor = names[0].split(":", 1)[1].strip() if names else processor
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    from importlib.metadata import version

    versions = {name: version(name) for name in ("torch", "numba", "numpy")}
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "python": platform.python_version(),
        **versions,
    }


def keep_picture(report: Report, source: Path, name: str) -> None:
    """A job's picture becomes a figure of the documentation: two thirds of its size and 64 colours,
    since the repository keeps it."""
    from PIL import Image

    with Image.open(source) as picture:
        small = picture.convert("RGB").resize(
            (picture.width * 2 // 3, picture.height * 2 // 3), Image.Resampling.LANCZOS
        )
        small.quantize(64).save(FIGURES / name, optimize=True)
    report.pictures.append(name)


def git_commit() -> str:
    """The commit that was measured, with a + if files under src differ from it."""
    asked = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    changed = subprocess.run(
        ["git", "-C", str(ROOT), "status", "--porcelain", "src"], capture_output=True, text=True
    ).stdout.strip()
    return commit + ("+" if changed else "")


def keep(name: str, report: Report, *, load: float) -> None:
    """Append the report to `results/<name>.json`, newest last. `load` is the machine's load before
    the start: near 0 if nobody else worked."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    records = json.loads(path.read_text()) if path.exists() else []
    when = datetime.now(UTC).isoformat(timespec="seconds")
    records.append(
        {
            "date": when,
            "commit": git_commit(),
            "machine": machine(),
            "load_before": round(load, 1),
            **asdict(report),
        }
    )
    path.write_text(json.dumps(records, indent=1) + "\n")
