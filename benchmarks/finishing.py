"""From half maps to a finished map: `mask`, `postprocess` and `localres` against known
truths and beside RELION 3.1 on the same files."""

import math
from pathlib import Path

import numpy as np
import starfile
import torch

import relion
from common import (
    HALFMAP,
    RUNS,
    SETS,
    Report,
    Skip,
    job_folder,
    keep_picture,
    run,
    shown,
    simulated,
    third_party,
)
from halfmap.fourier import filter_shells
from halfmap.io.mrc import read_map, write_map
from halfmap.masks import soft_sphere

HALVES = {"trpv1": "C4", "ribo": "C1"}  # sets, and the symmetry that they are reconstructed in
FIT_FROM_ANGSTROM = 20.0  # of the Guinier fit: neither set reaches far beyond 10 A
CORRECTED = "rlnFourierShellCorrelationCorrected"
MASKED = "rlnFourierShellCorrelationMaskedMaps"
SEEDS = 32  # of RELION's random phases
SPHERE_DIAMETER, BLURRED_BOX, LARGE_BOX = {"trpv1": "170", "ribo": "270"}, 96, 256


def half_maps(report: Report, name: str) -> list[Path]:
    """Half maps of a simulated set at its true poses."""
    out = job_folder(f"finishing_{name}.mrc")
    words = ["--symmetry", HALVES[name], "--diameter", SPHERE_DIAMETER[name], "--halves"]
    star = simulated(name) / "truth.star"
    command = [HALFMAP, "reconstruct", "--particles", star, *words, "--out", out, "--overwrite"]
    run(report, [*command, "--quiet"], log=out.stem)
    return [out.with_name(f"{out.stem}_half{h}.mrc") for h in (1, 2)]


# --- mask -----------------------------------------------------------------------------------------


def mask() -> Report:
    """`halfmap mask` of the half maps of two sets at true poses, nothing given: what of the true
    map's mass above its noise-free tenth of the maximum lies inside, how much of the box it fills,
    and the FSC 0.143 with it. Beside it `relion_mask_create` on the averaged map, given the
    threshold, low-pass, extension and edge that halfmap found by itself."""
    report = Report()
    for name in HALVES:
        halves = half_maps(report, name)
        out = RUNS / f"finishing_{name}_mask.mrc"
        cost = run(
            report, [HALFMAP, "mask", *halves, "--out", out, "--overwrite"], log=f"mask_{name}"
        )
        told = (RUNS / f"mask_{name}.log").read_text().strip().splitlines()[-1]
        values = read_map(out)[0]
        report.add(f"{name}: {told.split(':')[0]}", f"{cost.cpu_s:.1f} CPU s", told[:80])
        true = read_map(third_party("maps", SETS[name][0][0]))[0]
        solid = true > 0.1 * true.max()
        inside = float(true[solid & (values > 0.5)].sum() / true[solid].sum())
        report.add(f"{name}: true mass inside", f"{inside:.1%}", "goal: 99 %")
        particle, filled = solid.mean(), (values > 0.5).mean()
        report.add(f"{name}: of the box; the particle alone", f"{filled:.1%}; {particle:.1%}")
        report.numbers[name] = {"inside": inside, "filled": float(filled), "cpu_s": cost.cpu_s}
        _relion_mask(report, name, halves, values, told)
    return report


def _relion_mask(report: Report, name: str, halves: list[Path], ours: np.ndarray, told: str):
    if not relion.version("relion_mask_create"):
        report.add(f"{name}: relion_mask_create", "not installed")
        return
    threshold, lowpass = (
        told.split(before)[1].split()[0].rstrip(",") for before in ("above ", " at ")
    )
    pair = [read_map(half) for half in halves]
    average, pixel = RUNS / f"finishing_{name}_average.mrc", pair[0][1]
    write_map(average, (pair[0][0] + pair[1][0]) / 2, pixel)
    out = RUNS / f"relion_{name}_mask.mrc"
    command = ["relion_mask_create", "--i", average, "--o", out, "--ini_threshold", threshold]
    command += ["--lowpass", lowpass, "--angpix", f"{pixel}", "--extend_inimask", "3"]
    cost = run(report, [*command, "--width_soft_edge", "6"], log=f"relion_mask_{name}")
    both = np.corrcoef(ours.ravel(), read_map(out)[0].ravel())[0, 1]
    report.add(
        f"{name}: correlation with relion_mask_create's, its CPU",
        f"{both:.3f}",
        f"{cost.cpu_s:.1f} CPU s, RELION {relion.version('relion_mask_create')}, same run",
    )
    report.numbers[name] |= {"correlation_relion": float(both), "relion_cpu_s": cost.cpu_s}


# --- postprocess ----------------------------------------------------------------------------------


def postprocess() -> Report:
    """`halfmap postprocess` and `relion_postprocess` on the same half maps (true poses) and the
    same mask, the same range of the Guinier fit, no other option. Goals: corrected curves within
    0.01, B within 5 %, resolution within a shell. Both randomise phases beyond the same shell, RELION
    in one draw, so it runs with 32 seeds: halfmap, which has the mean over all phases, is compared
    with their mean, and each of them with the mean of the others."""
    report = Report()
    if not relion.version("relion_postprocess"):
        raise Skip("relion_postprocess is not installed")
    for name in HALVES:
        _postprocessed(report, name)
    return report


def _postprocessed(report: Report, name: str) -> None:
    halves = half_maps(report, name)
    solvent, out = RUNS / f"finishing_{name}_mask.mrc", job_folder(f"finishing_{name}_post")
    run(report, [HALFMAP, "mask", *halves, "--out", solvent, "--overwrite"], log=f"mask_{name}")
    command = [HALFMAP, "postprocess", *halves, "--mask", solvent, "--out", out, "--overwrite"]
    fit = ["--fit-from", f"{FIT_FROM_ANGSTROM:g}", "--quiet"]
    cost = run(report, [*command, *fit], log=out.name)
    keep_picture(report, out / "pictures" / "fsc.png", f"benchmark_postprocess_{name}.png")
    ours = starfile.read(out / "postprocess.star")
    last = ours["general"]["halfmapFittedToAngstrom"]
    theirs, peer = _relion_postprocess(report, name, halves, solvent, last)
    curves = np.stack([one["fsc"][CORRECTED].to_numpy() for one in theirs])
    below = np.flatnonzero(curves.mean(0)[1:] < 0.143)
    used = slice(1, int(below[0]) + 2 if len(below) else None)
    apart = np.abs(ours["fsc"][CORRECTED].to_numpy() - curves.mean(0))[used]
    draws = [
        np.abs(one - np.delete(curves, k, 0).mean(0))[used].max() for k, one in enumerate(curves)
    ]
    masked = np.abs(ours["fsc"][MASKED] - theirs[0]["fsc"][MASKED]).to_numpy()[used].max()
    b = float(ours["general"]["rlnBfactorUsedForSharpening"])
    of_relion = np.array([float(t["general"]["rlnBfactorUsedForSharpening"]) for t in theirs])
    resolved = [float(t["general"]["rlnFinalResolution"]) for t in (ours, *theirs)]
    width = 2 * (len(curves[0]) - 1) * read_map(solvent)[1]
    shells = abs(width / resolved[0] - width / float(np.mean(resolved[1:])))
    by = f"RELION {relion.version('relion_postprocess')}, same run"
    report.add(f"{name}: largest difference of the masked curves", f"{masked:.4f}", "goal: 0.01")
    report.add(
        f"{name}: largest difference of the corrected curves from RELION's mean",
        f"{apart.max():.4f}, mean {apart.mean():.4f}",
        f"goal: 0.01; RELION's own seeds from the others: {min(draws):.4f} to {max(draws):.4f}",
    )
    spread = f"{of_relion.mean():.1f} ({of_relion.min():.1f} to {of_relion.max():.1f})"
    report.add(
        f"{name}: B, A^2",
        f"{b:.1f} ({b / of_relion.mean() - 1:+.1%})",
        f"{spread}, {by}; goal: 5 %",
    )
    report.add(
        f"{name}: resolution", f"{resolved[0]:.2f} A", f"{resolved[1]:.2f} A, {shells:.1f} shells"
    )
    report.add(f"{name}: CPU seconds", f"{cost.cpu_s:.1f}", f"{peer:.1f}, {by}")
    report.numbers[name] = {
        "corrected_apart": float(apart.max()),
        "relion_seeds_apart": [float(one) for one in draws],
        "masked_apart": float(masked),
        "b_factor": b,
        "relion_b_factors": of_relion.tolist(),
        "resolution_angstrom": resolved,
        "cpu_s": cost.cpu_s,
        "relion_cpu_s": peer,
    }


def _relion_postprocess(report, name: str, halves: list[Path], solvent: Path, last: float):
    """RELION's tables, one of each seed, and CPU seconds of the first."""
    tables, first = [], 0.0
    for seed in range(1, SEEDS + 1):  # RELION's seeds 0 and 1 draw the same
        root = RUNS / f"relion_{name}_post{seed}"
        command = ["relion_postprocess", "--i", halves[0], "--i2", halves[1], "--o", root]
        command += ["--angpix", f"{read_map(solvent)[1]:.4f}", "--mask", solvent, "--auto_bfac"]
        command += ["--autob_lowres", f"{FIT_FROM_ANGSTROM:g}", "--autob_highres", f"{last}"]
        command += ["--low_pass", "-1", "--random_seed", f"{seed}"]
        # it exits with 1 where ghostscript, for its page of plots, is absent: all is written by then
        shell = ["sh", "-c", '"$@" || test -s "$0"', root.with_suffix(".star"), *command]
        cost = run(report, shell, log=root.name)
        report.commands[-1] = shown(command)
        tables.append(starfile.read(root.with_suffix(".star")))
        first = first or cost.cpu_s
    return tables, first


# --- localres -------------------------------------------------------------------------------------

BLURRED_PIXEL, SSNR, B_OF_SIDES = 1.3, 10.0, (120.0, 350.0)


def localres() -> Report:
    """`halfmap localres` on a ball of random atoms whose halves left and right of x = 0 are blurred
    by B = 120 and 350 A^2 in white noise, so that the FSC falls below 0.143 at
    `s = sqrt(2 / B ln(6 SSNR))`: 3.8 A and 6.5 A in a 96^3 box. Medians of each side, 8 voxels and
    more from the border; `relion_postprocess --locres` on the same files. Then the cost of a 256^3
    map. Goals: 10 %; 256^3 in under 3 CPU minutes."""
    report = Report()
    folder, ball = job_folder("finishing_blurred"), None
    folder.mkdir(exist_ok=True)
    halves, solvent, ball = _blurred(folder, BLURRED_BOX)
    out = job_folder("finishing_localres")
    command = [HALFMAP, "localres", *halves, "--mask", solvent, "--out", out, "--overwrite"]
    cost = run(report, [*command, "--window", "45", "--quiet"], log=out.name)
    keep_picture(report, out / "pictures/local_resolution.png", "benchmark_localres.png")
    sides = _sides(ball, BLURRED_BOX)
    true = [math.sqrt(b / 2 / math.log(6 * SSNR)) for b in B_OF_SIDES]
    found = read_map(out / "local_resolution.mrc")[0]
    ours = [float(np.median(found[side])) for side in sides]
    theirs, peer = _relion_localres(report, folder, halves, solvent, sides)
    for side, b, t, o in zip(("left", "right"), B_OF_SIDES, true, ours, strict=True):
        beside = "" if theirs is None else f"; RELION {theirs[b]:.2f} A ({theirs[b] / t - 1:+.0%})"
        report.add(
            f"{side}, truth {t:.2f} A", f"{o:.2f} A ({o / t - 1:+.0%})", "goal: 10 %" + beside
        )
    by = "" if peer is None else f"{peer:.1f}, RELION {relion.version('relion_postprocess')}"
    report.add(f"CPU seconds, {BLURRED_BOX}^3", f"{cost.cpu_s:.1f}", by)
    large = job_folder("finishing_blurred_large")
    large.mkdir(exist_ok=True)
    halves, solvent, _ = _blurred(large, LARGE_BOX)
    out = job_folder("finishing_localres_large")
    command = [HALFMAP, "localres", *halves, "--mask", solvent, "--out", out, "--overwrite"]
    whole = run(report, [*command, "--quiet"], log=out.name)
    report.add(f"CPU seconds, {LARGE_BOX}^3", f"{whole.cpu_s:.0f}", "goal: 180")
    report.numbers = {
        "truth_angstrom": true,
        "found_angstrom": ours,
        "relion_angstrom": None if theirs is None else list(theirs.values()),
        "cpu_s": cost.cpu_s,
        "relion_cpu_s": peer,
        "large_cpu_s": whole.cpu_s,
        "large_peak_bytes": whole.peak_bytes,
    }
    return report


def _blurred(folder: Path, box: int) -> tuple[list[Path], Path, torch.Tensor]:
    """Half maps, a mask around the ball, and the ball."""
    generator = torch.Generator().manual_seed(1)
    ball = soft_sphere(box, radius_px=0.375 * box, edge_px=3)
    atoms = torch.randn(box, box, box, generator=generator) * ball
    right = torch.sigmoid((torch.arange(box) - box // 2).float()).expand(box, box, box)
    frequency = torch.arange(box // 2 + 1) / (box * BLURRED_PIXEL)
    signal = sum(
        filter_shells(atoms * share, torch.exp(-b / 4 * frequency**2), dimensions=3)
        for share, b in zip((1 - right, right), B_OF_SIDES, strict=True)
    )
    paths = [folder / "half1.mrc", folder / "half2.mrc"]
    for path in paths:
        noise = torch.randn(box, box, box, generator=generator) / SSNR**0.5
        write_map(path, (signal + noise).numpy(), BLURRED_PIXEL)
    around = soft_sphere(box, radius_px=0.39 * box, edge_px=5)
    write_map(folder / "mask.mrc", around.numpy(), BLURRED_PIXEL)
    return paths, folder / "mask.mrc", ball


def _sides(ball: torch.Tensor, box: int) -> list[np.ndarray]:
    """Left and right of the border, inside the ball."""
    x = (torch.arange(box) - box // 2).expand(box, box, box)
    core = soft_sphere(box, radius_px=0.29 * box, edge_px=1) > 0.99
    return [(core & side & (ball > 0.99)).numpy() for side in (x < -0.12 * box, x > 0.12 * box)]


def _relion_localres(report, folder, halves, solvent, sides):
    """Medians by B of each side, and CPU seconds; None without RELION."""
    if not relion.version("relion_postprocess"):
        return None, None
    root = folder / "relion"
    command = ["relion_postprocess", "--i", halves[0], "--i2", halves[1], "--o", root]
    command += ["--angpix", f"{BLURRED_PIXEL}", "--mask", solvent, "--locres", "--adhoc_bfac", "0"]
    cost = run(report, command, log="relion_localres")
    found = read_map(Path(f"{root}_locres.mrc"))[0]
    medians = (float(np.median(found[side])) for side in sides)
    return dict(zip(B_OF_SIDES, medians, strict=True)), cost.cpu_s
