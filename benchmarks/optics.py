"""Optics groups of different grids and aberrations in one set, beside the same particles in one clean
group."""

import subprocess
from pathlib import Path

import mrcfile
import numpy as np
import starfile

import relion
import truth
from common import DATA, HALFMAP, RUNS, Report, job_folder, run, third_party
from datasets import save_map

IMAGES, SNR, SEED, BOX, PIXEL = 1500, "0.1", "81", 96, 1.0
DIAMETER, LOWPASS = 66.0, 16.0  # Angstrom
OUTER = (4.0, 2.2)  # Angstrom: shells that both groups see, and aberrations act upon
GROUPS = {
    "--group-pixel-size": "1,1.07",
    "--group-box": "96,90",
    "--group-magnification": "0,0.03",
    "--group-beam-tilt": "0,0.5",
    "--group-trefoil": "0,30",
}
MAGNIFICATION = ("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11")
# what is left out of the second group, by the columns that tell it
IGNORED = {
    "magnification": MAGNIFICATION,
    "beam tilt": ("rlnBeamTiltX", "rlnBeamTiltY"),
    "trefoil": ("rlnOddZernike",),
    "pixel size": ("rlnImagePixelSize",),
}


def optics_groups() -> Report:
    """`refine` of 1,500 particles (TRPV1's map at 96 pixels, taken for 1 A; C4, SNR 0.1) whose
    micrographs take turns in two optics groups: 1.0 A, 96^2, clean; and 1.07 A, 90^2, with 3 %
    anisotropic magnification, 0.5 mrad of beam tilt (a coma of 33 rad at 1 A) and trefoil of 30 rad
    at 1 A (a three-fold astigmatism of 3.7 um, of a column whose stigmators are off); beside the
    same particles in one clean group, and beside the same file with one of the differences left
    out. From the true map at 16 A, one thread. A defocus of 8,000 to 22,000 A moves what is at 3 A
    by 50 to 140 A, out of boxes of 96 A. Then RELION's reconstruction of the same file from the
    true poses beside `halfmap reconstruct`. Goal: as the clean group; each omission is worse;
    RELION's FSC 0.5 within a shell. The two groups have better poses than the clean one because
    their images are multiplied by C before they are masked, and simulated images are periodic: on
    images that a box has cut, of the clean group, that order gains nothing."""
    report = Report()
    clean, mixed = simulated("clean", {}), simulated("two_groups", GROUPS)
    refined(report, "one clean group", clean / "particles.star", clean)
    refined(report, "two groups", mixed / "particles.star", mixed)
    for what, columns in IGNORED.items():
        star = left_out(mixed / "particles.star", what, columns)
        refined(report, f"two groups, {what} ignored", star, mixed)
    beside_relion(report, mixed)
    return report


def reference() -> Path:
    path = DATA / "maps" / "trpv1_96_1A.mrc"
    if not path.exists():
        with mrcfile.open(third_party("maps", "trpv1_96_2.5A.mrc")) as file:
            save_map(path, np.array(file.data), PIXEL)
    return path


def simulated(name: str, groups: dict[str, str]) -> Path:
    folder = DATA / f"optics_{name}_{IMAGES}"
    if not (folder / "truth.star").exists():
        command = [HALFMAP, "simulate", reference(), "--out", folder, "--n", IMAGES, "--snr", SNR]
        command += ["--symmetry", "C4", "--seed", SEED, "--optics-groups", "2"]
        command += [f"{flag}={value}" for flag, value in groups.items()]
        command += ["--overwrite", "--quiet"]
        subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
    return folder


def left_out(star: Path, what: str, columns: tuple[str, ...]) -> Path:
    """A copy of the STAR beside it without the columns; with the first group's pixel size."""
    tables = starfile.read(star, always_dict=True)
    if columns == ("rlnImagePixelSize",):
        tables["optics"]["rlnImagePixelSize"] = PIXEL
    else:
        tables["optics"] = tables["optics"].drop(columns=list(columns))
    path = star.with_name(f"without_{what.replace(' ', '_')}.star")
    starfile.write(tables, path, overwrite=True)
    return path


def numbered(star: Path, like: Path) -> truth.Poses:
    """Poses by row of the file of all particles, whichever stack they lie in."""
    names = [_bare(one) for one in starfile.read(like)["particles"]["rlnImageName"]]
    row = {name: number for number, name in enumerate(names, start=1)}
    tables = starfile.read(star, always_dict=True)
    table = tables["particles"]
    table["rlnImageName"] = [f"{row[_bare(name)]}@all" for name in table["rlnImageName"]]
    copy = RUNS / f"numbered_{star.parent.name}_{star.name}"
    copy.parent.mkdir(parents=True, exist_ok=True)
    starfile.write(tables, copy, overwrite=True)
    return truth.read_poses(copy)


def _bare(name: str) -> str:
    number, _, stack = str(name).partition("@")
    return f"{int(number)}@{Path(stack).name}"


def refined(report: Report, what: str, star: Path, folder: Path) -> None:
    out = job_folder(f"optics_{what.replace(',', '').replace(' ', '_')}")
    command = [HALFMAP, "refine", "--particles", star, "--reference", reference()]
    command += ["--symmetry", "C4", "--diameter", f"{DIAMETER:g}", "--threads", "1"]
    command += ["--initial-lowpass", f"{LOWPASS:g}", "--out", out, "--overwrite", "--quiet"]
    command += ["--pixel-size", f"{PIXEL:g}", "--box", f"{BOX}"]
    cost = run(report, command, log=out.name)
    like = folder / "truth.star"
    errors = truth.pose_errors(
        numbered(out / "particles.star", like), numbered(like, like), symmetry="C4"
    )
    laid = truth.laid_onto_truth(
        truth.read_volume(out / "map.mrc")[0],
        numbered(out / "particles.star", like),
        truth.read_volume(reference())[0],
        numbered(like, like),
        symmetry="C4",
        radius_px=DIAMETER / 2 / PIXEL,
        pixel=PIXEL,
    )
    resolution = truth.resolution_at(laid.curve, 0.5, BOX, PIXEL)
    outer = outer_mean(laid.curve)
    angle = float(np.median(errors.angle_deg))
    shift = float(np.median(errors.shift_angstrom))
    report.add(
        f"{what}: pose error; shift error; FSC 0.5 to the truth; mean FSC from "
        f"{OUTER[0]:g} to {OUTER[1]:g} A; CPU seconds",
        f"{angle:.2f} deg; {shift:.2f} A; {resolution:.2f} A; {outer:.3f}; {cost.cpu_s:.0f}",
    )
    report.numbers[what] = {"deg": angle, "shift": shift, "resolution": resolution, "fsc": outer}


def outer_mean(curve: np.ndarray) -> float:
    first, last = (round(BOX * PIXEL / angstrom) for angstrom in OUTER)
    return float(np.mean(curve[first : last + 1]))


def beside_relion(report: Report, folder: Path) -> None:
    """Both maps of all particles at their true poses."""
    if not relion.version():
        return
    ours, theirs = RUNS / "optics_ours.mrc", RUNS / "optics_relion.mrc"
    command = [HALFMAP, "reconstruct", "--particles", folder / "truth.star", "--symmetry", "C4"]
    command += ["--diameter", f"{DIAMETER:g}", "--pixel-size", f"{PIXEL:g}", "--box", f"{BOX}"]
    run(report, [*command, "--threads", "1", "--out", ours, "--overwrite", "--quiet"], log="optics")
    relion.reconstruct(report, folder / "truth.star", theirs, symmetry="C4")
    true = truth.read_volume(reference())[0]
    mask = truth.soft_sphere(BOX, DIAMETER / 2 / PIXEL)
    words, numbers = [], {}
    for who, path in (("ours", ours), ("relion", theirs)):
        curve = truth.fsc(truth.read_volume(path)[0], true, mask)
        resolution, outer = truth.resolution_at(curve, 0.5, BOX, PIXEL), outer_mean(curve)
        words.append(f"{resolution:.2f} A (shell {BOX * PIXEL / resolution:.1f}); {outer:.3f}")
        numbers |= {who: resolution, f"{who}_fsc": outer}
    report.add(
        "reconstruction from the true poses: FSC 0.5 to the truth; mean FSC from "
        f"{OUTER[0]:g} to {OUTER[1]:g} A",
        words[0],
        f"RELION {relion.version()}: {words[1]}",
    )
    report.numbers["reconstruct"] = numbers
