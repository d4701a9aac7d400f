"""Dirty images of a spike: the same particles clean, with junk, neighbours and a wrong CTF, and with
ramps on top, through every job."""

import subprocess
from pathlib import Path

import numpy as np
import starfile

import relion
import truth
from common import DATA, HALFMAP, Report, events, job_folder, keep_picture, run
from datasets import spike_64

IMAGES, SNR, SEED = 1500, "0.03", "72"
# by name, what `halfmap simulate` is told beside; poses and noise of all three are the same
SETS = {
    "clean": [],
    "dirty": ["--dirty", "--ramp", "0"],
    "ramps": ["--dirty"],
}
CLASSES, ITERATIONS_2D, DIAMETER = "20", "15", "200"
FILLED = 0.01  # of the images: a class with less is empty to a user


def dirty_2d() -> Report:
    """`class2d` (K = 20, 15 iterations) of 1,500 images of a spike-like trimer (64^2, 4 A, SNR 0.03)
    three times, from `halfmap simulate`: clean; dirty (15 % junk, neighbours in 40 %, defocus errors
    of 300 A, hot pixels in 2 %, uneven signal and B-factors, ice noise); and the dirty ones with
    ramps of a third of the noise. Purity: share of images in a class whose majority, good or junk,
    they belong to; by chance it is the share of the good. Goal: with ramps as good as without."""
    report = Report()
    words = ["--classes", CLASSES, "--iterations", ITERATIONS_2D, "--diameter", DIAMETER]
    for name in SETS:
        folder, out = spikes(name), job_folder(f"dirty_class2d_{name}")
        halfmap(report, "class2d", folder, out, words)
        classes(report, name, folder, out / "particles.star")
        keep_picture(report, out / "pictures" / "classes.png", f"benchmark_dirty_{name}.png")
    return report


def dirty_abinitio() -> Report:
    """`abinitio` in C3 of the sets of `dirty_2d`. Resolution is FSC 0.5 to the truth, the pose error
    is the median over the particles that are no junk."""
    return through("abinitio", ["--symmetry", "C3", "--diameter", DIAMETER])


def dirty_class3d() -> Report:
    """`class3d` in C3 of the sets of `dirty_2d`, K = 2, 10 iterations, from the true map at 60 A;
    judged is the larger class, as for `dirty_abinitio`."""
    return through("class3d", [*from_map(), "--classes", "2", "--iterations", "10"])


def dirty_refine() -> Report:
    """`refine` in C3 of the sets of `dirty_2d`, from the true map at 60 A; as `dirty_abinitio`."""
    return through("refine", from_map())


def through(job: str, words: list[str | Path]) -> Report:
    report = Report()
    for name in SETS:
        folder, out = spikes(name), job_folder(f"dirty_{job}_{name}")
        cpu_s = halfmap(report, job, folder, out, words)
        volume(report, name, folder, out, cpu_s)
    return report


def dirty_relion() -> Report:
    """RELION's 2D classification of the sets of `dirty_2d`, with the same number of classes and
    iterations, and judged the same way."""
    report = Report()
    for name in SETS:
        folder = spikes(name)
        how = {"classes": int(CLASSES), "iterations": int(ITERATIONS_2D), "diameter": DIAMETER}
        star, cost = relion.class2d(
            report, folder / "particles.star", f"relion_dirty_{name}", **how
        )
        what = f"{name}: RELION {relion.version('relion_refine')} class2d, {cost.cpu_s:.0f} CPU s"
        classes(report, what, folder, star)
    return report


def spikes(name: str) -> Path:
    """Folder of one of the sets, simulated if it is not there."""
    folder = DATA / f"spike_{name}_{IMAGES}"
    if not (folder / "truth.star").exists():
        print(f"  simulating {folder.name}", flush=True)
        command = [HALFMAP, "simulate", spike_64(), "--out", folder, "--n", IMAGES, "--snr", SNR]
        command += ["--seed", SEED, *SETS[name], "--overwrite", "--quiet"]
        subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
    return folder


def from_map(path: Path | None = None) -> list[str | Path]:
    """Options of a job from a map, the true one if none is given."""
    return ["--reference", path or spike_64(), "--symmetry", "C3", "--diameter", DIAMETER]


def halfmap(report: Report, job: str, folder: Path, out: Path, words: list[str | Path]) -> float:
    """Run one job on one set with one thread; CPU seconds."""
    command = [HALFMAP, job, "--particles", folder / "particles.star", *words]
    command += ["--threads", "1", "--out", out, "--overwrite", "--quiet"]
    return run(report, command, log=out.name).cpu_s


def good_numbers(folder: Path) -> np.ndarray:
    """Image numbers of the particles that are no junk: all, of a clean set."""
    table = starfile.read(folder / "truth.star")["particles"]
    if "halfmapTruthJunk" not in table:
        return np.arange(1, len(table) + 1)
    return np.flatnonzero(table["halfmapTruthJunk"].to_numpy() == 0) + 1


def classes(report: Report, what: str, folder: Path, star: Path) -> None:
    found = truth.read_poses(star)
    is_good = np.isin(found.numbers, good_numbers(folder)).astype(int)
    sizes = np.sort(np.bincount(found.classes)[1:])[::-1]
    filled = int((sizes >= FILLED * len(is_good)).sum())
    largest = sizes[:4].sum() / len(is_good)
    value = truth.purity(found.classes, is_good)
    good = is_good == 1
    true = truth.read_poses(folder / "truth.star").only(found.numbers)
    spread = np.median(truth.view_spread_deg(true.rotations[good], found.classes[good]))
    report.add(
        f"{what}: classes with 1 % of the images; share of the largest four",
        f"{filled} of {CLASSES}; {100 * largest:.0f} %",
    )
    report.add(
        f"{what}: purity of good and junk; spread of views",
        f"{100 * value:.1f} %; {spread:.0f} deg",
        f"{100 * is_good.mean():.1f} % by chance",
    )
    report.numbers[what] = {"filled": filled, "four": largest, "purity": value, "spread": spread}


def volume(report: Report, what: str, folder: Path, out: Path, cpu_s: float) -> None:
    """The map, or that of the largest class, and the poses of the good particles against the
    truth."""
    number = None
    if not (out / "map.mrc").exists():
        number = int(np.bincount(truth.read_poses(out / "particles.star").classes).argmax())
    resolution, error, _ = to_truth(out, folder, number)
    report.add(
        f"{what}: FSC 0.5 to the truth; pose error; iterations; CPU seconds",
        f"{resolution:.1f} A; {error:.1f} deg; {len(events(out))}; {cpu_s:.0f}",
    )
    report.numbers[what] = {"resolution": resolution, "error_deg": error, "cpu_s": cpu_s}


def to_truth(out: Path, folder: Path, number: int | None = None) -> tuple[float, float, float]:
    """FSC 0.5 to the truth (A), the median pose error (degrees) of the good particles and their
    share of all good ones: of the job's map, or of class `number`."""
    found, good = truth.read_poses(out / "particles.star"), good_numbers(folder)
    density, pixel = truth.read_volume(out / (f"class{number:03d}.mrc" if number else "map.mrc"))
    mine = found.numbers[found.classes == number] if number else found.numbers
    numbers = np.intersect1d(mine, good)
    if len(numbers) == 0:
        return float("inf"), float("nan"), 0.0
    laid = truth.laid_onto_truth(
        density,
        found.only(numbers),
        truth.read_volume(spike_64())[0],
        truth.read_poses(folder / "truth.star").only(numbers),
        symmetry="C3",
        radius_px=float(DIAMETER) / 2 / pixel,
        pixel=pixel,
    )
    resolution = truth.resolution_at(laid.curve, 0.5, len(density), pixel)
    return resolution, float(np.median(laid.errors.angle_deg)), len(numbers) / len(good)
