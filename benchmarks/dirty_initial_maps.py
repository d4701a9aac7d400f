"""Initial maps in two and three classes of dirty images, from several seeds each, refined."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import starfile

from common import HALFMAP, THREADS, Report, job_folder, keep_picture, run
from datasets import spike_64
from dirty import DIAMETER, from_map, halfmap, spikes, to_truth
from from_nothing import CONVERGED, three

SET, CLASSES, SEEDS = "ramps", (2, 3), 5
RIGHT_ANGSTROM = 22.0  # a ninth of the diameter, as in `abinitio_low_signal`


@dataclass(frozen=True)
class Found:
    """Of one run, the class that is nearest the truth: its number, FSC 0.5 to the truth, the median
    pose error of its good particles and their share of all good ones; FSC 0.5 of the refinement from
    it, and what the run took."""

    number: int
    to_truth_angstrom: float
    error_deg: float
    share_of_good: float
    refined_angstrom: float
    cpu_s: float


def abinitio_dirty_classes(
    kinds: Sequence[int] = CLASSES, seeds: Sequence[int] = range(1, SEEDS + 1)
) -> Report:
    """`halfmap abinitio --classes 2` and `3` with its defaults, five seeds each, one thread, of the
    dirty spikes with ramps of `dirty_2d` (C3, 1,500 x 64^2, 4 A, SNR 0.03; 15 % junk, neighbours in
    40 %, defocus errors). Right: the FSC of 0.5 to the truth of the class nearest to it is beyond a
    ninth of the diameter. Then `refine` of all images from that class, beside `refine` from the
    true map (converged: FSC 0.5 to the truth within 5 % of that)."""
    report, folder = Report(), spikes(SET)
    from_truth = _refined(report, folder, spike_64(), "true")
    for k in kinds:
        with ThreadPoolExecutor(THREADS) as pool:
            done = list(pool.map(lambda seed, k=k: _one(folder, k, seed), seeds))
        report.commands += done[0][1]
        _tell(report, k, [found for found, _ in done], from_truth)
        pictures = job_folder(f"dirty_classes_{k}_{seeds[0]}") / "pictures"
        best = pictures / f"class{done[0][0].number:03d}.png"
        keep_picture(report, best, f"benchmark_abinitio_dirty_{k}.png")
    return report


def _one(folder: Path, k: int, seed: int) -> tuple[Found, list[str]]:
    own, out = Report(), job_folder(f"dirty_classes_{k}_{seed}")
    command = [HALFMAP, "abinitio", "--particles", folder / "particles.star", "--classes", f"{k}"]
    command += ["--symmetry", "C3", "--diameter", DIAMETER, "--seed", f"{seed}", "--threads", "1"]
    cost = run(own, [*command, "--out", out, "--overwrite", "--quiet"], log=out.name)
    sizes = np.atleast_1d(starfile.read(out / "classes.star")["halfmapClassSize"])
    judged = {int(c) + 1: to_truth(out, folder, int(c) + 1) for c in np.flatnonzero(sizes)}
    best = min(judged, key=lambda c: judged[c][0])
    refined = _refined(own, folder, out / f"class{best:03d}.mrc", f"{k}_{seed}")
    found = Found(best, *judged[best], refined, cost.cpu_s)
    print(f"    K = {k}, seed {seed}: {found}", flush=True)
    return found, own.commands


def _refined(report: Report, folder: Path, reference: Path, name: str) -> float:
    """FSC 0.5 to the truth of `refine` of all images from a map, A."""
    out = job_folder(f"dirty_classes_{name}_refined")
    halfmap(report, "refine", folder, out, from_map(reference))
    return to_truth(out, folder)[0]


def _tell(report: Report, k: int, found: Sequence[Found], from_truth: float) -> None:
    def of_all(name: str, scale: float = 1.0) -> np.ndarray:
        return scale * np.array([getattr(one, name) for one in found])

    right = int((of_all("to_truth_angstrom") < RIGHT_ANGSTROM).sum())
    converged = int((of_all("refined_angstrom") <= CONVERGED * from_truth).sum())
    report.add(
        f"K = {k}: seeds whose best class has FSC 0.5 beyond {RIGHT_ANGSTROM:g} A",
        f"{right} of {len(found)}",
        "goal: all",
    )
    for what, values, unit in (
        ("FSC 0.5 to the truth, best / median / worst", of_all("to_truth_angstrom"), "A"),
        ("pose error, best / median / worst", of_all("error_deg"), "deg"),
        ("its share of the good, least / median / most", of_all("share_of_good", 100), "%"),
        ("CPU seconds, least / median / most", of_all("cpu_s"), "s"),
    ):
        report.add(f"K = {k}: {what}", three(values, unit))
    report.add(
        f"K = {k}: refinements that converged; FSC 0.5, best / median / worst",
        f"{converged} of {len(found)}; {three(of_all('refined_angstrom'), 'A')}",
        f"{from_truth:.1f} A from the true map",
    )
    report.numbers[f"{k}"] = {
        "right": right,
        "converged": converged,
        "from_true_map_angstrom": from_truth,
        "runs": [asdict(one) for one in found],
    }
