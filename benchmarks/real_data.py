"""Experimental images: what the poses that others found are worth here."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pose_search
import relion
import torch
import truth
from common import FIGURES, HALFMAP, THREADS, Report, job_folder, run, third_party

SPHERE_ANGSTROM = 150.0


def real_ribosome() -> Report:
    """1,430 experimental tilt images of 40 ribosomes (32^2, 12 A, CTF-premultiplied), with their depositors' poses: reconstruction, then local
    refinement around those poses, which must not lower either figure. FSC inside a soft sphere of radius 150 A (half height there, cosine edge of 5
    pixels); all programs in this same sphere. RELION 3.1.3 honours `rlnCtfDataAreCtfPremultiplied`."""
    report = Report()
    star, published = third_party("real_ribosome", "deposited_poses.star"), third_party("real_ribosome", "published_map.mrc")
    known_map, pixel = truth.read_volume(published)
    box = len(known_map)
    mask = truth.soft_sphere(box, SPHERE_ANGSTROM / pixel)

    def figures(both: Path, halves: list[Path]) -> list[float]:
        maps = [truth.read_volume(path)[0] for path in (*halves, both)]
        pairs = [(maps[0], maps[1], 0.143)] + [(volume, known_map, 0.5) for volume in maps]
        return [truth.resolution_at(truth.fsc(a, b, mask), level, box, pixel) for a, b, level in pairs]

    made = job_folder("real_ribosome.mrc")
    command = [HALFMAP, "reconstruct", "--particles", star, "--halves", "--diameter", f"{2 * SPHERE_ANGSTROM:g}", "--threads", f"{THREADS}"]
    cost = run(report, [*command, "--out", made, "--overwrite", "--quiet"], log="real_ribosome")
    found = figures(made, [made.with_name(f"real_ribosome_half{h}.mrc") for h in (1, 2)])

    refined = job_folder("real_ribosome_local")
    command = [HALFMAP, "refine", "--particles", star, "--reference", made, "--local", "--diameter", f"{2 * SPHERE_ANGSTROM:g}"]
    command += ["--initial-lowpass", "40", "--threads", f"{THREADS}", "--out", refined, "--overwrite", "--quiet"]
    local_cost = run(report, command, log="real_ribosome_local")
    local = figures(refined / "map.mrc", [refined / f"half{h}.mrc" for h in (1, 2)])
    moved = truth.pose_errors(truth.read_poses(refined / "particles.star"), truth.read_poses(star))

    peer, version = None, relion.version()
    if version:
        peers = [job_folder(f"relion_ribosome_{which}.mrc") for which in ("half1", "half2", "all")]
        peer_cost = [relion.reconstruct(report, star, path, subset=i) for i, path in zip((1, 2, None), peers, strict=True)]
        peer = figures(peers[2], peers[:2])
    recorded = relion.REAL_RIBOSOME
    old = [recorded["halves"], recorded["half1"], None, recorded["all"]]
    names = ["between halves at 0.143", "half 1 to published map at 0.5", "half 2 to published map at 0.5", "all images to published map at 0.5"]
    for name, value, after, beside, past in zip(names, found, local, peer or [None] * 4, old, strict=True):
        said = [f"RELION {version}, same run: {beside:.1f} A"] if beside else []
        said += [f"RELION 5 recorded: {past} A"] if past else []
        report.add(name, f"{value:.1f} A; after local refinement {after:.1f} A", "; ".join(said))
    # a tenth of an Angstrom is a fiftieth of a shell here
    kept = local[0] <= found[0] + 0.05 and local[3] <= found[3] + 0.05
    report.add("local refinement lowers neither", "met" if kept else "NOT met", f"poses moved {np.median(moved.angle_deg):.2f} deg (median)")
    report.add("reconstruct, refine --local: CPU seconds", f"{cost.cpu_s:.1f}, {local_cost.cpu_s:.1f}",
               f"relion_reconstruct three times: {sum(c.cpu_s for c in peer_cost):.1f}" if peer else "")  # fmt: skip

    halves = torch.stack([torch.from_numpy(truth.read_volume(made.with_name(f"real_ribosome_half{h}.mrc"))[0]) for h in (1, 2)])
    ranks = rank_rows(report, pose_search.load(star, symmetry="C1", diameter_angstrom=2 * SPHERE_ANGSTROM), halves, (60.0, 40.0, 30.0), 2.0)
    report.numbers = {"reconstruct": found, "local": local, "relion": peer, "rank_median": ranks, "moved_median_deg": np.median(moved.angle_deg)}
    shutil.copy(refined / "pictures" / "map.png", FIGURES / "benchmark_real_ribosome.png")
    report.pictures.append("benchmark_real_ribosome.png")
    return report


def rank_rows(
    report: Report, known: pose_search.Known, volumes: torch.Tensor, resolutions: tuple[float, ...], shift_range_px: float
) -> dict[str, float]:
    """Median rank of the known pose at some resolutions, as lines of the report."""
    medians = {}
    for resolution in resolutions:
        ranks = pose_search.ranks_of_poses(known, volumes, resolution, shift_range_px=shift_range_px)
        medians[f"{resolution:g}"] = float(np.median(ranks))
        report.add(
            f"deposited pose's rank in the 7.5-degree grid, to {resolution:g} A",
            f"median: best {np.median(ranks):.1%}; {np.mean(ranks < 0.01):.0%} of images in the best 1 %",
        )
    return medians


def trpv1_real() -> Report:
    """The 10 experimental TRPV1 images (48^2, 4.88 A) against their map: one global search (7.5-degree grid, +-5 pixels, then local
    optima), no refinement of the map. By chance 0.4 % of poses fall within 15 degrees modulo C4."""
    report = Report()
    original, stack = third_party("images", "trpv1_trpv1_small_stack.star"), third_party("images", "trpv1_small_stack.mrcs")
    volume, pixel = truth.read_volume(third_party("images", "trpv1_volume.mrc"))
    with tempfile.TemporaryDirectory() as folder:
        star = Path(folder) / "particles.star"  # the STAR names a stack that was renamed
        star.write_text(original.read_text().replace("./batch_0_restacked.mrc", str(stack)))
        known = pose_search.load(star, symmetry="C4", diameter_angstrom=170)
        deposited = truth.read_poses(star)
    report.numbers = {"pixel_of_map": pixel}
    reference = torch.from_numpy(volume)
    for resolution in (30.0, 20.0, 15.0):
        rotations, origins = pose_search.search_once(known, reference, resolution)
        mates = np.einsum("nji,njk->nik", deposited.rotations, rotations)
        angles = truth.angle_of(np.einsum("gji,njk->ngik", truth.cyclic_group("C4"), mates)).min(1)
        shifts = np.linalg.norm(origins - deposited.origins_angstrom, axis=1)
        right = angles < 15
        report.add(
            f"within 15 degrees of the deposited pose, to {resolution:g} A", f"{right.sum()} of {len(angles)}",
            f"their shifts differ by {np.median(shifts[right]):.1f} A (median)" if right.any() else "",
        )  # fmt: skip
        report.numbers[f"angles_deg_{resolution:g}"] = np.sort(angles).round(1).tolist()
    report.numbers["rank_median"] = rank_rows(report, known, torch.stack([reference] * 2), (30.0, 20.0, 15.0), 2.0)
    return report
