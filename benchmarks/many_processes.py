"""What a second process brings to a whole refinement, and what the two tell each other."""

import sys
from pathlib import Path

from common import HALFMAP, Report, events, job_folder, run
from datasets import phantom_map, phantom_particles
from halfmap.workspace.job import read_job

N, BOX, SNR, ITERATIONS = 15_000, 64, 0.1, 6
GOAL = 1.8


def many_processes() -> Report:
    """Speed-up of `refine --method ml` from one process of one thread to two, on 15,000 images of the
    embedded phantom (C1, 64^2, SNR 0.1), 6 iterations, final maps and pictures included, and the
    bytes that an iteration reduces. CPU seconds are of all processes, of the first, and so of the
    second (and torchrun): on a loaded machine wall time says little, and the speed-up that two free
    processors would give is told by the larger of the two shares."""
    report = Report()
    data = phantom_particles("phantom_many_15000", n=N, box=BOX, snr=SNR)
    costs = [_refine(report, data, processes) for processes in (1, 2)]
    folder = job_folder("many2")
    (one, two), first = costs, float(read_job(folder)["cpu_seconds"])
    second = two.cpu_s - first
    reduced = [int(event["reduced_bytes"]) for event in events(folder)]
    report.add("one process", str(one))
    report.add("two processes", str(two), f"first {first:.1f}, second {second:.1f} CPU s")
    by_wall, by_cpu = one.wall_s / two.wall_s, one.cpu_s / max(first, second)
    report.add("speed-up, wall", f"{by_wall:.2f}", f"goal {GOAL} on two free processors")
    spent = [
        sum(sum(event["seconds"].values()) for event in events(job_folder(f"many{n}")))
        for n in (1, 2)
    ]
    report.add("speed-up, iterations alone", f"{spent[0] / spent[1]:.2f}")
    searches = [
        [event["seconds"]["search"] for event in events(job_folder(f"many{n}"))] for n in (1, 2)
    ]
    fixed = sum(2 * two - one for one, two in zip(*searches, strict=True))
    report.add(
        "search that does not shrink (slices of the references)",
        f"{fixed:.1f} of {sum(searches[0]):.1f} s",
        "2 x two processes - one",
    )
    report.add("speed-up, CPU seconds of the busier process", f"{by_cpu:.2f}")
    report.add(
        "reduced in an iteration", f"{min(reduced) / 1e6:.1f} to {max(reduced) / 1e6:.1f} MB"
    )
    report.numbers |= {
        "speed_up_wall": by_wall,
        "speed_up_cpu": by_cpu,
        "speed_up_iterations": spent[0] / spent[1],
        "fixed_search_seconds": fixed,
        "cpu_seconds": [one.cpu_s, first, second],
        "reduced_bytes": reduced,
    }
    return report


def _refine(report: Report, data: Path, processes: int):
    out = job_folder(f"many{processes}")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*launcher, "--no-python"] if processes == 2 else []
    command += [HALFMAP, "refine", "--particles", data / "particles.star"]
    command += ["--reference", phantom_map(BOX), "--initial-lowpass", 40, "--device", "cpu"]
    command += ["--threads", 1, "--iterations", ITERATIONS, "--out", out, "--overwrite", "--quiet"]
    return run(report, [str(word) for word in command], log=f"many{processes}")
