"""Does a change of the program leave its results as they were? Digests of what small jobs give, and
whole-job CPU beside another version.

    python benchmarks/guard.py record before.json --source ../before/src   digests of every map, half map, stack and STAR file
    python benchmarks/guard.py record after.json                           the same with the code of this tree
    python benchmarks/guard.py compare before.json after.json              which files differ, and by how much maps do
    python benchmarks/guard.py time ../before/src --runs 3                 CPU of whole jobs (trpv1, ribo, ribo_mix 2D) and of the start, in turns

Jobs run through the command line on one thread, on the embedded phantom with and without symmetry.
The old version is any checkout of the project (`git worktree add ../before COMMIT`); both run in
this Python.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = (".mrc", ".mrcs", ".star", ".st")
PIXEL_ANGSTROM, BOX, DIAMETER_ANGSTROM = "5", "44", "165"

Jobs = dict[str, list[str]]


def simulations() -> Jobs:
    """The sets: the phantom in C4 and in C1, and its two states mixed, with some junk and beam
    tilt."""
    common = [
        "--snr",
        "0.2",
        "--box",
        BOX,
        "--pixel-size",
        PIXEL_ANGSTROM,
        "--beam-tilt",
        "0.3",
        "--optics-groups",
        "2",
    ]
    return {
        "sim_C4": [
            "simulate",
            "phantom",
            "--n",
            "240",
            "--symmetry",
            "C4",
            "--junk",
            "0.05",
            *common,
        ],
        "sim_C1": ["simulate", "phantom", "--n", "240", "--symmetry", "C1", *common],
        "sim_mix": [
            "simulate",
            "phantom",
            "phantom:1",
            "--n",
            "300",
            "--symmetry",
            "C4",
            "--weights",
            "3,2",
            *common,
        ],
    }


def jobs() -> Jobs:
    """Every job, by the folder (or file) that it writes."""
    found: Jobs = {}
    for group in ("C4", "C1"):
        data, size = (
            ["--particles", f"sim_{group}/particles.star"],
            ["--diameter", DIAMETER_ANGSTROM],
        )
        start = [
            "--reference",
            f"sim_{group}/truth_1.mrc",
            "--symmetry",
            group,
            "--initial-lowpass",
            "40",
        ]
        for method in ("ml", "projection-matching"):
            for search in ("adaptive", "branch-and-bound"):
                few = ["--method", method, "--search", search, "--iterations", "4"]
                found[f"refine_{group}_{method}_{search}"] = ["refine", *data, *start, *size, *few]
        mixed = ["--particles", "sim_mix/particles.star"] if group == "C4" else data
        for method in ("ml", "projection-matching"):
            few = ["--method", method, "--classes", "2", "--iterations", "3"]
            found[f"class3d_{group}_{method}"] = ["class3d", *mixed, *start, *size, *few]
        for method in ("ml", "template"):
            few = ["--method", method, "--classes", "5", "--iterations", "5"]
            found[f"class2d_{group}_{method}"] = ["class2d", *data, *size, *few]
        few = ["--iterations", "12", "--classes", "1" if group == "C4" else "2"]
        found[f"abinitio_{group}"] = ["abinitio", *data, *size, "--symmetry", group, *few]
        truth = ["--particles", f"sim_{group}/truth.star"]
        found[f"reconstruct_{group}.mrc"] = [
            "reconstruct",
            *truth,
            "--symmetry",
            group,
            "--halves",
            *size,
        ]
        found[f"local_{group}"] = ["refine", *truth, *start, *size, "--local", "--iterations", "2"]
        found[f"project_{group}.mrcs"] = ["project", f"sim_{group}/truth_1.mrc", *truth, "--ctf"]
        for method in ("divide", "flip", "wiener"):
            found[f"restore_{group}_{method}"] = ["restore", *truth, "--method", method]
        for method in ("wiener-stack", "wiener-ssnr"):
            one = ["--particles", f"class2d_{group}_ml/particles.star", "--class", "1"]
            found[f"restore_{group}_{method}"] = ["restore", *one, "--method", method]
    return found


def record(out: Path, source: Path) -> None:
    """Run every job with the code in `source` and write digests of its results to `out`; the
    results stay beside it."""
    work = out.with_suffix("")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    digests: dict[str, dict[str, str]] = {}
    warm_kernels(source, work)
    for name, command in {**simulations(), **jobs()}.items():
        halfmap([*command, "--out", name], source, work)
        at = work / name
        files = sorted(at.rglob("*")) if at.is_dir() else sorted(work.glob(f"{at.stem}*"))
        digests[name] = {
            str(file.relative_to(work)): digest(file, work)
            for file in files
            if file.suffix in RESULTS
        }
        print(f"{name}: {len(digests[name])} files", flush=True)
    out.write_text(json.dumps(digests, indent=1) + "\n")


def warm_kernels(source: Path, work: Path) -> None:
    """Compile the kernels: what a process compiles itself and what it reads from the cache later
    may differ in the last bits."""
    halfmap([*simulations()["sim_C1"], "--out", "warm_sim"], source, work)
    for name in ("refine_C1_ml_adaptive", "class2d_C1_ml", "reconstruct_C1.mrc"):
        command = [word.replace("sim_C1", "warm_sim") for word in jobs()[name]]
        halfmap([*command, "--out", f"warm_{name}"], source, work)


def digest(file: Path, work: Path) -> str:
    """Of a file's bytes; the folder of the whole run, which image names may hold, does not count."""
    return hashlib.sha256(file.read_bytes().replace(str(work.resolve()).encode(), b".")).hexdigest()


def halfmap(arguments: list[str], source: Path, cwd: Path) -> float:
    """Run the halfmap command of a source tree on one thread; its CPU seconds."""
    one = ["--threads", "1"] if arguments[0] not in ("simulate", "info") else []
    quiet = [] if arguments[0] in ("project", "info") else ["--quiet"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(source.resolve()),
        "OMP_NUM_THREADS": "1",
        "HALFMAP_DEBUG": "1",
    }
    command = [sys.executable, "-m", "halfmap.cli.main", *arguments, *one, *quiet]
    process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed with {source}")
    return usage.ru_utime + usage.ru_stime


def compare(before: Path, after: Path) -> int:
    """Print the files whose digests differ, with the correlation of maps and stacks; how many there
    are."""
    import mrcfile
    import numpy as np

    old, new = (json.loads(path.read_text()) for path in (before, after))
    differ = 0
    for name in old:
        same = sum(new.get(name, {}).get(file) == digest for file, digest in old[name].items())
        missing = sorted(old[name].keys() - new.get(name, {}).keys())
        print(
            f"{name:44} {same:3} of {len(old[name]):3} the same"
            + (f"; missing: {', '.join(missing)}" if missing else "")
        )
        differ += len(old[name]) - same
        for file, digest in old[name].items():
            if new.get(name, {}).get(file) in (None, digest):
                continue
            how = ""
            if file.endswith((".mrc", ".mrcs")):
                a, b = (
                    mrcfile.read(path.with_suffix("") / file).astype(np.float64).ravel()
                    for path in (before, after)
                )
                how = (
                    f" correlation {np.corrcoef(a, b)[0, 1]:.7f}"
                    if len(a) == len(b)
                    else " another size"
                )
            print(f"    {file} differs{how}")
    print(f"{differ} files differ")
    return differ


def measure(before: Path, runs: int, only: list[str]) -> None:
    """CPU seconds of whole jobs with the old and the new code, in turns."""
    from common import simulated, third_party

    whole: Jobs = {"start (import, help)": ["refine", "--help"]}
    if not only or "trpv1" in only:
        reference = str(third_party("maps", "trpv1_96_2.5A.mrc"))
        whole["trpv1"] = [
            "refine",
            "--particles",
            f"{simulated('trpv1')}/particles.star",
            "--reference",
            reference,
        ]
        whole["trpv1"] += ["--symmetry", "C4", "--diameter", "170", "--initial-lowpass", "40"]
    if not only or "ribo" in only:
        reference = str(third_party("maps", "ribosome70S_64_5A.mrc"))
        whole["ribo"] = [
            "refine",
            "--particles",
            f"{simulated('ribo')}/particles.star",
            "--reference",
            reference,
        ]
        whole["ribo"] += ["--diameter", "270", "--initial-lowpass", "60"]
    if not only or "ribo_mix_2d" in only:
        particles = f"{simulated('ribo_mix')}/particles.star"
        whole["ribo_mix_2d"] = [
            "class2d",
            "--particles",
            particles,
            "--classes",
            "20",
            "--iterations",
            "15",
            "--diameter",
            "270",
        ]
    with tempfile.TemporaryDirectory() as folder:
        info = ["info", str(simulated("ribo") / "truth.star")]
        (
            halfmap(info, before, Path(folder)),
            halfmap(info, ROOT / "src", Path(folder)),
        )  # kernels compiled, files read once
        for name, command in whole.items():
            seconds: dict[str, list[float]] = {"before": [], "after": []}
            for run in range(runs):
                for which, source in (("before", before), ("after", ROOT / "src")):
                    out = [] if "--help" in command else ["--out", f"{name}_{which}_{run}"]
                    if "--help" in command:
                        usage = _cpu(
                            [sys.executable, "-m", "halfmap.cli.main", *command],
                            source,
                            Path(folder),
                        )
                    else:
                        usage = halfmap([*command, *out], source, Path(folder))
                    seconds[which].append(usage)
            ratios = [b / a for a, b in zip(seconds["before"], seconds["after"], strict=True)]
            print(
                f"{name:24} before {statistics.median(seconds['before']):8.2f} CPU s, after "
                f"{statistics.median(seconds['after']):8.2f}, "
                f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
                flush=True,
            )


def _cpu(command: list[str], source: Path, cwd: Path) -> float:
    environment = {**os.environ, "PYTHONPATH": str(source.resolve())}
    process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.DEVNULL)
    _, _, usage = os.wait4(process.pid, 0)
    return usage.ru_utime + usage.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("out", type=Path)
    recording.add_argument(
        "--source", type=Path, default=ROOT / "src", help="src folder of the version to run"
    )
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    timing = commands.add_parser("time")
    timing.add_argument("before", type=Path, help="src folder of the other version")
    timing.add_argument("--runs", type=int, default=3)
    timing.add_argument("--only", nargs="*", default=[])
    options = parser.parse_args()
    if options.command == "record":
        record(options.out, options.source)
        return 0
    if options.command == "compare":
        return 1 if compare(options.before, options.after) else 0
    measure(options.before, options.runs, options.only)
    return 0


if __name__ == "__main__":
    sys.exit(main())
