"""What is done with particles whose poses are known: transfer functions refined, particles sorted
by a small part of their map, and the right one of their symmetry mates found."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

import halfmap
import relion
from common import DATA, HALFMAP, Report, job_folder, run, shown, third_party
from halfmap.ctf_parameters import CTFParameters
from halfmap.engine.preprocessing import background
from halfmap.masks import soft_sphere
from halfmap.particles import Particles, load_particles
from halfmap.resolution import fourier_shell_correlation, resolution_at
from halfmap.signal_subtraction import fit_scale, views_of
from truth import adjusted_rand_index

BOX, PIXEL = 48, 5.0


def ctfrefine() -> Report:
    """Errors put into the transfer functions of an antibody (1hzh, 150 pixels of 1.3 A, 1,500
    images, SNR 0.05, micrographs of 30): defocus 300 A rms by particle, astigmatism 280 A rms by
    micrograph, a beam tilt of 0.6, -0.4 mrad; refined at the true poses. RELION 3.1 has the same
    images and the half maps of the spoiled set. Goals: defocus to 100 A (median), tilt to 0.05 mrad,
    and the FSC to truth within a shell of the clean set's. With
    the true defoci put into what was found in a sphere, the map reached 4.94 A; so what it lacked
    was the defocus of single particles, and what that lacked were maps without the noise of the
    solvent, which is three quarters of the sphere. RELION is given the sphere; in the mask of the
    half maps it errs by 83 A, 166 A and 0.033 mrad."""
    report, folder = Report(), DATA / "antibody"
    if not (folder / "truth.star").exists():
        model = third_party("models", "1hzh.pdb")
        size = ["--box", "150", "--pixel-size", "1.3", "--per-micrograph", "30"]
        drawn = ["--n", "1500", "--snr", "0.05", "--defocus-spread", "300"]
        run(report, [HALFMAP, "simulate", model, "--out", folder, *drawn, *size], log="antibody")
    truth = load_particles(folder / "truth.star")
    spoiled = truth.with_transfer(_spoiled(truth)).with_results(half_set=np.arange(1500) % 2 + 1)
    spoiled.write_star(folder / "spoiled.star")
    found = job_folder("ctfrefine")
    asked = ["--astigmatism", "--beam-tilt"]
    common = ["--overwrite", "--quiet", "--threads", "1"]
    command = [HALFMAP, "ctfrefine", "--particles", folder / "spoiled.star", *asked]
    ours = run(report, [*command, "--out", found, *common], log="ctfrefine")
    stars = {"clean": "truth.star", "spoiled": "spoiled.star"}
    places = {name: folder / star for name, star in stars.items()}
    places["halfmap"] = found / "particles.star"
    theirs = None
    _reconstructed(report, places, "spoiled", common)
    if relion.version("relion_ctf_refine"):
        places["RELION"], theirs = _by_relion(report, folder / "spoiled.star")
    for name in places:
        if name != "spoiled":
            _reconstructed(report, places, name, common)
    for name, place in places.items():
        found_there = load_particles(place, data_dir=folder)
        _tell(report, name, found_there, truth, folder / "truth_1.mrc")
    beside = "" if theirs is None else f"RELION {relion.version('relion_ctf_refine')}: {theirs}"
    report.add("cost, one thread", str(ours), beside)
    return report


MAGNIFIED = {
    "TRPV1": (("maps", "trpv1_96_2.5A.mrc"), "C4", ()),
    "ribosome": (("maps", "ribosome70S_64_5A.mrc"), "C1", ()),
    "antibody, odd box": (("models", "1hzh.pdb"), "C1", ("--box", "75", "--pixel-size", "2.6")),
    "beta-galactosidase": (("maps", "bgal_100_3.54A.mrc"), "D2", ()),
}


def ctfrefine_magnification() -> Report:
    """A magnification of 2 % along x and -2 % along y, and 1 % of shear, put into four sets of 600
    images (SNR 0.05), refined at the true poses in two rounds: the largest element of what is left
    of it but for size. `relion_ctf_refine --fit_aniso` has the same images and the half maps of the
    spoiled set, of which it makes one step; a second one from half maps made anew. Goal: 0.1 %."""
    report = Report()
    for name, (source, group, size) in MAGNIFIED.items():
        folder = DATA / f"magnified_{source[1].split('.')[0]}"
        command = [HALFMAP, "simulate", third_party(*source), "--out", folder, *size]
        drawn = ["--n", "600", "--snr", "0.05", "--per-micrograph", "20"]
        if not (folder / "truth.star").exists():
            run(report, [*command, *drawn, "--quiet"], log="magnified_simulate")
        truth, one = load_particles(folder / "truth.star"), np.ones(600)
        names = ("magnification_xx", "magnification_xy", "magnification_yx", "magnification_yy")
        wrong = dict(zip(names, (1.02 * one, 0.01 * one, 0.01 * one, 0.98 * one), strict=True))
        spoiled = truth.with_transfer(replace(truth.transfer, **wrong))
        halves = {"half_set": np.arange(600) % 2 + 1}
        spoiled.with_results(**halves).write_star(folder / "spoiled.star")
        out = job_folder(f"{folder.name}_refined")
        asked = ["--magnification", "--defocus", "none", "--symmetry", group, "--threads", "1"]
        refined = [HALFMAP, "ctfrefine", "--particles", folder / "spoiled.star", *asked]
        cost = run(report, [*refined, "--out", out, "--overwrite", "--quiet"], log=out.name)
        left = _distortion(out / "particles.star", folder)
        peers = _magnified_relion(report, folder, group)
        beside = ", ".join(f"{one:.2%}" for one in peers)
        report.add(
            f"{name}, {group}: distortion left, of 2 %",
            f"{left:.3%}; {cost.cpu_s:.0f} CPU s",
            f"RELION {relion.version('relion_ctf_refine')}: {beside}" if peers else "",
        )
        report.numbers[name] = {"left": left, "relion_left": peers, "cpu_s": cost.cpu_s}
    return report


def _distortion(star: Path, images: Path) -> float:
    """The largest element of the magnification's matrix, less its size and its turn."""
    p = load_particles(star, data_dir=images).transfer
    xx, xy = p.magnification_xx[0], p.magnification_xy[0]
    yx, yy = p.magnification_yx[0], p.magnification_yy[0]
    return float(max(abs(xx - yy) / 2, abs(xy + yx) / 2))


def _magnified_relion(report: Report, folder: Path, group: str) -> list[float]:
    """What is left after each of two steps of `relion_ctf_refine --fit_aniso`, or nothing if it is
    not installed."""
    if not relion.version("relion_ctf_refine"):
        return []
    left, star = [], folder / "spoiled.star"
    for step in (1, 2):
        root = job_folder(f"{folder.name}_relion{step}")
        root.mkdir(exist_ok=True)
        halves = [root / f"half{h}.mrc" for h in (1, 2)]
        for h, half in enumerate(halves, start=1):
            made = ["--i", star, "--o", half, "--ctf", "--subset", str(h), "--sym", group]
            run(report, ["relion_reconstruct", *made], log=root.name, cwd=folder)
        volume, pixel = halfmap.read_map(halves[0])
        sphere = soft_sphere(len(volume), radius_px=0.46 * len(volume), edge_px=4).numpy()
        halfmap.write_map(root / "mask.mrc", sphere, pixel)
        maps = ["--i", halves[0], "--i2", halves[1], "--mask", root / "mask.mrc"]
        post = ["relion_postprocess", *maps, "--angpix", f"{pixel:.4f}", "--o", root / "post"]
        # it exits with 1 where ghostscript, for its page of plots, is absent
        shell = ["sh", "-c", '"$@" || test -s "$0"', root / "post.star", *post]
        run(report, shell, log=root.name)
        report.commands[-1] = shown(post)
        command = ["relion_ctf_refine", "--i", star, "--f", root / "post.star", "--o", root]
        command += ["--m1", halves[0], "--m2", halves[1], "--mask", root / "mask.mrc"]
        try:
            run(report, [*command, "--fit_aniso", "--j", "1"], log=root.name, cwd=folder)
        except RuntimeError:  # RELION 3.1.3 breaks off on the ribosome: free(): invalid pointer
            return left
        star = root / "particles_ctf_refine.star"
        left.append(_distortion(star, folder))
    return left


def _spoiled(truth: Particles) -> CTFParameters:
    draw, p, n = np.random.default_rng(0), truth.transfer, len(truth)
    change = 300 * draw.standard_normal(n)
    along, across = 200 * draw.standard_normal((2, truth.micrograph.max() + 1))
    half = _astigmatism(p) + (along + 1j * across)[truth.micrograph]
    return replace(
        p,
        defocus_u_angstrom=_defocus(p) + change + np.abs(half),
        defocus_v_angstrom=_defocus(p) + change - np.abs(half),
        defocus_angle_deg=np.degrees(np.angle(half)) / 2,
        beam_tilt_x_mrad=np.full(n, 0.6),
        beam_tilt_y_mrad=np.full(n, -0.4),
    )


def _defocus(p: CTFParameters) -> np.ndarray:
    return (p.defocus_u_angstrom + p.defocus_v_angstrom) / 2


def _astigmatism(p: CTFParameters) -> np.ndarray:
    half = (p.defocus_u_angstrom - p.defocus_v_angstrom) / 2
    return half * np.exp(2j * np.radians(p.defocus_angle_deg))


def _reconstructed(report: Report, places: dict[str, Path], name: str, common: list[str]) -> None:
    out = job_folder(f"ctfrefine_{name}")
    command = [HALFMAP, "reconstruct", "--particles", places[name], "--halves", "--out", out]
    command += ["--data-dir", DATA / "antibody"]
    run(report, [*command, *common], log=out.name)


def _by_relion(report: Report, star: Path) -> tuple[Path, object]:
    """The STAR that `relion_ctf_refine` writes, and what it cost; half maps and FSC are those of the
    spoiled set, the mask a sphere, for the antibody fills its box."""
    maps, mask = job_folder("ctfrefine_spoiled"), job_folder("ctfrefine_sphere.mrc")
    sphere = soft_sphere(150, radius_px=70, edge_px=4).numpy()
    halfmap.write_map(mask, sphere, 1.3)
    out = job_folder("ctfrefine_relion")
    out.mkdir(exist_ok=True)
    halves = [maps / "half1.mrc", maps / "half2.mrc"]
    fsc = ["--i", halves[0], "--i2", halves[1], "--mask", mask, "--angpix", "1.3"]
    run(report, ["relion_postprocess", *fsc, "--o", out / "post"], log="ctfrefine_post")
    command = ["relion_ctf_refine", "--i", star, "--f", out / "post.star", "--o", out]
    command += ["--m1", halves[0], "--m2", halves[1], "--mask", mask]
    command += ["--fit_defocus", "--fit_mode", "fpmff", "--fit_beamtilt", "--j", "1"]
    cost = run(report, command, log="ctfrefine_relion", cwd=star.parent)
    return out / "particles_ctf_refine.star", cost


def _tell(report: Report, name: str, found: Particles, truth: Particles, true_map: Path) -> None:
    p, q = found.transfer, truth.transfer
    defocus = np.abs(_defocus(p) - _defocus(q))
    # U - V of the difference of the two astigmatisms
    astigmatism = 2 * np.abs(_astigmatism(p) - _astigmatism(q))
    tilt = np.hypot(
        p.beam_tilt_x_mrad - q.beam_tilt_x_mrad, p.beam_tilt_y_mrad - q.beam_tilt_y_mrad
    )
    (map_, pixel), (true, _) = (
        halfmap.read_map(path) for path in (job_folder(f"ctfrefine_{name}") / "map.mrc", true_map)
    )
    curve = fourier_shell_correlation(
        torch.from_numpy(map_), torch.from_numpy(true), pixel_size_angstrom=pixel
    )
    reached, area = resolution_at(curve, 0.5), float(curve.correlation.sum())
    report.add(
        f"{name}: error of defocus, astigmatism (medians), beam tilt",
        f"{np.median(defocus):.0f} A, {np.median(astigmatism):.0f} A, {tilt.max():.3f} mrad",
        f"map to truth {reached:.2f} A at FSC 0.5, area {area:.1f} shells",
    )
    report.numbers[name] = {
        "defocus_angstrom": float(np.median(defocus)),
        "astigmatism_angstrom": float(np.median(astigmatism)),
        "beam_tilt_mrad": float(tilt.max()),
        "fsc_to_truth_angstrom": reached,
        "fsc_area_shells": area,
    }


# --- a small part ------------------------------------------------------------------------------


def focus() -> Report:
    """A ball of 5 % and of 2 % of the mass of a ribosome (64^2, 5 A, 1,200 images, SNR 0.05) that
    half of the particles lack: adjusted Rand index of two classes at the true poses, with and
    without a mask around it."""
    report = Report()
    path = third_party("maps", "ribosome70S_64_5A.mrc")
    volume, pixel = halfmap.read_map(path)
    for share in (0.05, 0.02):
        folder = DATA / f"ball_{share:g}"
        lacking, mask = _ball(volume, share)
        folder.mkdir(parents=True, exist_ok=True)
        halfmap.write_map(folder / "lacking.mrc", lacking, pixel)
        halfmap.write_map(folder / "focus.mrc", mask, pixel)
        sources = [path, folder / "lacking.mrc"]
        made = ["--n", "1200", "--snr", "0.05", "--overwrite", "--quiet"]
        command = [HALFMAP, "simulate", *sources, "--out", folder / "sim", *made]
        run(report, command, log="focus_simulate")
        truth = load_particles(folder / "sim/truth.star").class_number
        index = {}
        for name, extra in (("whole", []), ("focus", ["--focus-mask", folder / "focus.mrc"])):
            out = job_folder(f"focus_{share:g}_{name}")
            command = [HALFMAP, "class3d", "--particles", folder / "sim/truth.star"]
            command += ["--reference", path, "--classes", "2", "--no-alignment", *extra]
            run(report, [*command, "--out", out, "--overwrite", "--quiet"], log=out.name)
            index[name] = adjusted_rand_index(
                truth, load_particles(out / "particles.star").class_number
            )
        report.add(
            f"{share:.0%} of the mass: adjusted Rand index with the focus mask",
            f"{index['focus']:.3f}",
            f"{index['whole']:.3f} without",
        )
        report.numbers[f"{share:g}"] = index
    return report


def _ball(volume: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """The map without a soft ball near its rim that holds a share of its mass, and a mask around
    the ball."""
    n = len(volume)
    z, y, x = np.indices(volume.shape) - n // 2
    mass = volume.clip(min=0)
    dense, away = gaussian_filter(mass, 3), np.sqrt(x**2 + y**2 + z**2)
    dense[(away < 0.22 * n) | (away > 0.31 * n)] = 0
    centre = np.array(np.unravel_index(dense.argmax(), dense.shape)) - n // 2
    distance = np.sqrt((z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2)
    radii = np.arange(1, n / 2, 0.25)
    held = np.array([mass[distance < radius].sum() for radius in radii]) / mass.sum()
    radius = radii[np.searchsorted(held, share)]
    lacking = volume * (1 - 1 / (1 + np.exp((distance - radius) / 0.7)))
    mask = np.clip(1 - (distance - radius - 2) / 3, 0, 1)
    return lacking.astype(np.float32), mask.astype(np.float32)


# --- symmetry mates ----------------------------------------------------------------------------


def relaxed() -> Report:
    """A ligand on a symmetric carrier (48^2, 5 A, 600 images, SNR 0.1) at poses that are right up to
    the carrier's group: share of particles whose mate is found by `refine --local
    --relax-symmetry`, from the carrier alone and from the map with the ligand. Beside it what an
    image knows: the mate that scores best at its true pose against the true map, in white noise.
    The more mates, the less of the mass a ligand of one size is, and the more there are to take it
    for."""
    report = Report()
    for group in ("C4", "D2", "T", "O", "I"):
        folder = DATA / f"ligand_{group}"
        share = _ligand(folder, group)
        command = [HALFMAP, "simulate", folder / "ligand.mrc", "--out", folder / "sim"]
        made = ["--n", "600", "--snr", "0.1", "--overwrite", "--quiet"]
        run(report, [*command, *made], log="relaxed_simulate")
        mates = halfmap.symmetry_matrices(group)
        truth = load_particles(folder / "sim/truth.star")
        drawn = mates[torch.from_numpy(np.random.default_rng(1).integers(0, len(mates), 600))]
        mixed = halfmap.matrix_to_euler(_rotations(truth) @ drawn).numpy()
        truth.with_results(rotations_deg=mixed).write_star(folder / "mixed.star")
        known = _known_by_images(truth, folder / "ligand.mrc", mates)
        right = {}
        for start in ("carrier", "ligand"):
            out = job_folder(f"relaxed_{group}_{start}")
            command = [HALFMAP, "refine", "--particles", folder / "mixed.star", "--local"]
            command += ["--reference", folder / f"{start}.mrc", "--relax-symmetry", group]
            command += ["--initial-lowpass", "20", "--out", out, "--overwrite", "--quiet"]
            run(report, command, log=out.name)
            found = _rotations(load_particles(out / "particles.star"))
            right[start] = _share_of_one_mate(_rotations(truth), found, mates)
        report.add(
            f"{group}: {len(mates)} mates, ligand {share:.1%} of the mass, right from the carrier",
            f"{right['carrier']:.1%}",
            f"{right['ligand']:.1%} from the map with the ligand; images know {known:.1%}; by chance "
            f"{1 / len(mates):.1%}",
        )
        report.numbers[group] = right | {"ligand_share": share, "known": known}
    return report


def _known_by_images(truth: Particles, path: Path, mates: torch.Tensor) -> float:
    """Share of particles whose true pose explains their image better than any mate of it does."""
    views = views_of(torch.from_numpy(halfmap.read_map(path)[0]), use_ctf=True)
    rows, rotations = np.arange(len(truth)), _rotations(truth)
    images = torch.from_numpy(truth.images(rows))
    images = images / background(images, 0.45 * truth.box)[1][:, None, None]
    cross, power = (each.sum() for each in fit_scale(images, views.of(truth, rows), views.plane))
    misfit = []
    for mate in mates:  # the identity first
        turned = halfmap.matrix_to_euler(rotations @ mate).numpy()
        shown = views.of(truth.with_results(rotations_deg=turned), rows) * (cross / power)
        own, square = fit_scale(images, shown, views.plane)
        misfit.append((square - 2 * own).sum(1))
    return float((torch.stack(misfit).argmin(0) == 0).double().mean())


def _rotations(particles: Particles) -> torch.Tensor:
    return halfmap.euler_to_matrix(torch.from_numpy(particles.rotations_deg))


def _ligand(folder: Path, group: str) -> float:
    """Maps of a carrier of random blobs that has the symmetry, alone and with a ligand; returns the
    ligand's share of the mass."""
    mates, draw = halfmap.symmetry_matrices(group).numpy(), np.random.default_rng(3)
    blob = _blobs()
    directions = draw.normal(0, 1, (max(3, 40 // len(mates)), 3))
    away = draw.uniform(5, 14, (len(directions), 1))
    carrier = np.zeros((BOX,) * 3)
    for centre in directions / np.linalg.norm(directions, axis=1)[:, None] * away:
        sigma = draw.uniform(1.5, 2.5)
        carrier += sum(blob(mate @ centre, sigma) for mate in mates)
    place = np.array([10, 4, 9.0])
    ligand = carrier.max() * blob(15 * place / np.linalg.norm(place), 2.5)
    folder.mkdir(parents=True, exist_ok=True)
    halfmap.write_map(folder / "carrier.mrc", carrier.astype(np.float32), PIXEL)
    halfmap.write_map(folder / "ligand.mrc", (carrier + ligand).astype(np.float32), PIXEL)
    return float(ligand.sum() / (carrier + ligand).sum())


def _blobs() -> Callable[[np.ndarray, float], np.ndarray]:
    z, y, x = np.indices((BOX,) * 3) - BOX // 2
    points = np.stack([x, y, z], -1)
    return lambda centre, sigma: np.exp(-((points - centre) ** 2).sum(-1) / (2 * sigma**2))


def _share_of_one_mate(true: torch.Tensor, found: torch.Tensor, mates: torch.Tensor) -> float:
    """Share of the particles within 15 degrees of one and the same mate of their true pose."""
    shares = []
    for mate in mates:
        turn = (true @ mate).mT @ found
        cosine = (turn.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2
        shares.append(float((cosine > np.cos(np.radians(15))).double().mean()))
    return max(shares)
