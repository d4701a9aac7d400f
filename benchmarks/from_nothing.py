"""Ab initio maps of particles whose truth is known: how often they are right, what they take, and
whether refinement goes on from them."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import relion
import truth
from common import (
    HALFMAP,
    SETS,
    THREADS,
    Cost,
    Report,
    job_folder,
    keep_picture,
    run,
    simulated,
    third_party,
)
from datasets import (
    bgal_72,
    low_signal_images,
    molecules,
    phantom_map,
    phantom_particles,
    ribosome_80,
    spike_64,
)
from dirty import good_numbers, spikes

SEEDS, CLASS_SEEDS, FASTER, CONVERGED = 10, 3, 20, 1.05
Judged = tuple[
    float, float, float
]  # FSC to the truth at 0.5 and 0.143, A; median pose error, degrees
ROUGH = "1,4,6,7"  # classes of `averages_2d` that show large ribosomal subunits; looked at


@dataclass(frozen=True)
class Molecule:
    """Particles, their true map, the symmetry asked for and the molecule's own, and where success
    begins."""

    particles: Path
    true_map: Path
    symmetry: str
    own_symmetry: str
    diameter_angstrom: float
    success_angstrom: float
    lowpass_angstrom: float


def abinitio_trpv1_c4() -> Report:
    """`halfmap abinitio --symmetry C4` on `trpv1` (96^2, 2.5 A, 2,000 images, SNR 0.1), 10 seeds,
    one thread. Success: FSC to the truth of 0.5 beyond 20 A, after either hand was laid onto it;
    then `refine` from it, beside `refine` from the true map low-passed alike (converged: FSC 0.5 to
    the truth within 5 % of that)."""
    return _seeds("trpv1_c4", Molecule(simulated("trpv1"), _map("trpv1"), "C4", "C4", 170, 20, 30))


def abinitio_trpv1_c1() -> Report:
    """The same images without their symmetry."""
    return _seeds("trpv1_c1", Molecule(simulated("trpv1"), _map("trpv1"), "C1", "C4", 170, 20, 30))


def abinitio_ribo() -> Report:
    """`halfmap abinitio` on `ribo` (70S ribosome, C1, 64^2, 5 A, 3,000 images, SNR 0.2), 10 seeds,
    one thread; success: 0.5 beyond 30 A. RELION 5 ran `InitialModel`'s program on the same images
    (`--grad --denovo_3dref`, 100 iterations) and was stopped after 35."""
    return _seeds("ribo", Molecule(simulated("ribo"), _map("ribo"), "C1", "C1", 270, 30, 40))


def abinitio_phantom() -> Report:
    """`halfmap abinitio` on a molecule without symmetry, four parts of which are alike: the
    embedded phantom seen in C1 (64^2, 3.5 A, 2,000 images, SNR 0.1), 10 seeds, one thread; success:
    0.5 beyond 20 A."""
    folder = phantom_particles("phantom_c1", n=2000, box=64, snr=0.1, seed=8)
    return _seeds("phantom", Molecule(folder, phantom_map(64), "C1", "C1", 160, 20, 30))


def abinitio_low_signal() -> Report:
    """`halfmap abinitio` with its defaults, 10 seeds, one thread, of 1,500 images each at low
    signal: the ribosome (C1, 80^2, 4 A, SNR 0.05), beta-galactosidase (D2, 72^2, 3.54 A, SNR 0.05),
    and the dirty spikes of `dirty_2d` (C3, 64^2, 4 A, SNR 0.03; 15 % junk, neighbours, defocus
    errors, ramps). Success: FSC to the truth of 0.5 beyond a ninth of the diameter. The pose error
    is over the images that are no junk."""
    report = Report()
    ribosome, bgal = ribosome_80(), bgal_72()
    sets = {
        "ribosome": Molecule(
            low_signal_images("ribosome", ribosome, n=1500, snr=0.05),
            ribosome,
            "C1",
            "C1",
            270,
            30,
            0,
        ),
        "beta-galactosidase": Molecule(
            low_signal_images("bgal", bgal, n=1500, snr=0.05), bgal, "D2", "D2", 180, 20, 0
        ),
        "dirty spikes": Molecule(spikes("ramps"), spike_64(), "C3", "C3", 200, 22, 0),
    }
    for name, molecule in sets.items():
        label = name.replace(" ", "_")
        with ThreadPoolExecutor(THREADS) as pool:
            done = list(
                pool.map(
                    lambda seed, m=molecule, n=label: _one_map(m, n, seed), range(1, SEEDS + 1)
                )
            )
        report.commands.append(done[0][2])
        found = np.array([judged for judged, _, _ in done])
        cpu = np.array([cost.cpu_s for _, cost, _ in done])
        right = int((found[:, 0] < molecule.success_angstrom).sum())
        report.add(
            f"{name}: seeds whose FSC to the truth is 0.5 beyond {molecule.success_angstrom:g} A",
            f"{right} of {SEEDS}",
            "goal: all",
        )
        report.add(f"{name}: FSC 0.5, best / median / worst", three(found[:, 0], "A"))
        report.add(f"{name}: pose error, best / median / worst seed", three(found[:, 2], "deg"))
        report.add(f"{name}: CPU seconds, least / median / most", three(cpu, "s"))
        report.numbers[name] = {
            "right": right,
            "fsc_half_angstrom": found[:, 0].tolist(),
            "error_deg": found[:, 2].tolist(),
            "cpu_s": cpu.tolist(),
        }
    return report


def _one_map(molecule: Molecule, name: str, seed: int) -> tuple[Judged, Cost, str]:
    own, out = Report(), job_folder(f"from_nothing_{name}_{seed}")
    command = [HALFMAP, "abinitio", "--particles", molecule.particles / "particles.star"]
    command += ["--symmetry", molecule.symmetry, "--diameter", f"{molecule.diameter_angstrom:g}"]
    command += ["--seed", f"{seed}", "--threads", "1", "--out", out, "--overwrite", "--quiet"]
    cost = run(own, command, log=out.name)
    judged = _judged(out, molecule)
    print(f"    {name}, seed {seed}: {_numbers(judged)}; {cost}", flush=True)
    return judged, cost, own.commands[0]


def _map(name: str) -> Path:
    return third_party("maps", SETS[name][0][0])


def _seeds(name: str, molecule: Molecule) -> Report:
    """Two seeds at a time, a thread each."""
    report = Report()
    start = _refine(report, f"from_nothing_{name}_true", molecule, molecule.true_map)

    def one(seed: int) -> tuple[Judged, Cost, tuple[Judged, Cost], list[str]]:
        own, out = Report(), job_folder(f"from_nothing_{name}_{seed}")
        command = [
            HALFMAP,
            "abinitio",
            "--particles",
            molecule.particles / "particles.star",
            "--symmetry",
            molecule.symmetry,
        ]
        command += [
            "--diameter",
            f"{molecule.diameter_angstrom:g}",
        ]
        cost = run(
            own,
            [
                *command,
                "--seed",
                f"{seed}",
                "--threads",
                "1",
                "--out",
                out,
                "--overwrite",
                "--quiet",
            ],
            log=out.name,
        )
        judged, refined = (
            _judged(out, molecule),
            _refine(own, f"{out.name}_refined", molecule, out / "map.mrc"),
        )
        print(
            f"    seed {seed}: {_numbers(judged)}; refined {_numbers(refined[0])}; {cost}",
            flush=True,
        )
        return judged, cost, refined, own.commands

    with ThreadPoolExecutor(THREADS) as pool:
        done = list(pool.map(one, range(1, SEEDS + 1)))
    found, costs, refined = [d[0] for d in done], [d[1] for d in done], [d[2] for d in done]
    report.commands += [*done[0][3], f"... and so on for seeds 2 to {SEEDS}"]
    _tell(report, name, molecule, found, costs, refined, start)
    keep_picture(
        report,
        job_folder(f"from_nothing_{name}_1") / "pictures" / "map.png",
        f"benchmark_abinitio_{name}.png",
    )
    return report


def _judged(out: Path, molecule: Molecule) -> Judged:
    """FSC to the truth at 0.5 and 0.143, A, and the median pose error, degrees."""
    volume, pixel = truth.read_volume(out / "map.mrc")
    found, true = truth.read_poses(out / "particles.star"), molecule.particles / "truth.star"
    numbers = np.intersect1d(found.numbers, good_numbers(molecule.particles))
    laid = truth.laid_onto_truth(
        volume,
        found.only(numbers),
        truth.read_volume(molecule.true_map)[0],
        truth.read_poses(true).only(numbers),
        symmetry=molecule.own_symmetry,
        radius_px=molecule.diameter_angstrom / 2 / pixel,
        pixel=pixel,
    )
    at_half, at_0143 = (
        truth.resolution_at(laid.curve, level, len(volume), pixel) for level in (0.5, 0.143)
    )
    return at_half, at_0143, float(np.median(laid.errors.angle_deg))


def _refine(report: Report, name: str, molecule: Molecule, start: Path) -> tuple[Judged, Cost]:
    out = job_folder(name)
    command = [
        HALFMAP,
        "refine",
        "--particles",
        molecule.particles / "particles.star",
        "--reference",
        start,
    ]
    command += [
        "--symmetry",
        molecule.symmetry,
        "--initial-lowpass",
        f"{molecule.lowpass_angstrom:g}",
    ]
    command += [
        "--diameter",
        f"{molecule.diameter_angstrom:g}",
        "--threads",
        "1",
        "--out",
        out,
        "--overwrite",
        "--quiet",
    ]
    cost = run(report, command, log=name)
    return _judged(out, molecule), cost


def _numbers(judged: Judged) -> str:
    return f"{judged[0]:.1f} A, {judged[1]:.1f} A, {judged[2]:.1f} deg"


def _tell(
    report: Report,
    name: str,
    molecule: Molecule,
    found: list[Judged],
    costs: list[Cost],
    refined: list[tuple[Judged, Cost]],
    start: tuple[Judged, Cost],
) -> None:
    at_half, at_0143, error = np.array(found).T
    right, cpu = (
        int((at_half < molecule.success_angstrom).sum()),
        np.array([cost.cpu_s for cost in costs]),
    )
    peer = name == "ribo"
    report.add(
        f"seeds whose FSC to the truth is 0.5 beyond {molecule.success_angstrom:g} A",
        f"{right} of {SEEDS}",
        "goal: all",
    )
    recorded = (
        f"{relion.INITIAL_ANGSTROM[0]} A after 30 iterations ({relion.RECORDED})" if peer else ""
    )
    report.add("FSC 0.5 to the truth, best / median / worst", three(at_half, "A"), recorded)
    recorded = (
        f"{relion.INITIAL_ANGSTROM[1]} A after 30 iterations ({relion.RECORDED})" if peer else ""
    )
    report.add("FSC 0.143 to the truth, best / median / worst", three(at_0143, "A"), recorded)
    report.add("pose error, median of an image: best / median / worst seed", three(error, "deg"))
    whole = relion.INITIAL_CPU_S * relion.INITIAL_ITERATIONS / relion.INITIAL_STOPPED_AT
    recorded = f"{relion.INITIAL_CPU_S:,} at iteration {relion.INITIAL_STOPPED_AT} of {relion.INITIAL_ITERATIONS} ({relion.RECORDED})"
    report.add("CPU seconds, least / median / most", three(cpu, "s"), recorded if peer else "")
    report.add("wall time, 1 thread, median", f"{np.median([cost.wall_s for cost in costs]):.0f} s")
    report.add("peak memory", f"{max(cost.peak_bytes for cost in costs) / 2**30:.2f} GiB")
    if peer:
        ratios = relion.INITIAL_CPU_S / np.median(cpu), whole / np.median(cpu)
        met = "met" if ratios[0] >= FASTER else "NOT met"
        report.add(
            "CPU ratio, across machines",
            f"{ratios[0]:.0f} times less than RELION's 35 iterations",
            f"{ratios[1]:.0f} times less than 100 at the same rate; goal {FASTER}: {met}",
        )
        report.numbers["ratio"], report.numbers["ratio_of_whole"] = ratios
    after = np.array([judged for judged, _ in refined])
    converged = after[:, 0] <= CONVERGED * start[0][0]
    report.add(
        "refinements from them that converged",
        f"{int(converged.sum())} of {SEEDS}",
        "within 5 % of that from the true map",
    )
    report.add(
        "refined: FSC 0.5 to the truth, best / median / worst",
        three(after[:, 0], "A"),
        f"{start[0][0]:.1f} A from the true map",
    )
    report.add(
        "refined: pose error, best / median / worst seed",
        three(after[:, 2], "deg"),
        f"{start[0][2]:.2f} deg from the true map",
    )
    report.add(
        "refinement's CPU seconds, median",
        f"{np.median([cost.cpu_s for _, cost in refined]):.0f}",
        f"{start[1].cpu_s:.0f}",
    )
    report.add(
        f"goal: {SEEDS} of {SEEDS}, and refinement converges",
        "met" if right == SEEDS and converged.all() else "NOT met",
    )
    report.numbers |= {
        "fsc_half_angstrom": at_half.tolist(),
        "fsc_0143_angstrom": at_0143.tolist(),
        "error_deg": error.tolist(),
        "cpu_s": cpu.tolist(),
        "refined_fsc_half_angstrom": after[:, 0].tolist(),
        "refined_error_deg": after[:, 2].tolist(),
        "right": right,
        "refined_from_truth": start[0],
    }


def three(values: np.ndarray, unit: str) -> str:
    """The least, the median and the largest."""
    return f"{values.min():.1f} / {np.median(values):.1f} / {values.max():.1f} {unit}"


def abinitio_classes() -> Report:
    """`halfmap abinitio --classes K` on mixtures: 2,000 images of two molecules (ribosome, TRPV1),
    3,000 of three (and beta-galactosidase), 64^2 at 5 A, SNR 0.1, equal shares and equal variance,
    C1, three seeds each, one thread. Purity: share of the particles that carry their class's most
    frequent label."""
    report = Report()
    for kinds in (2, 3):
        folder = molecules(1000 * kinds, kinds=kinds)
        labels, purities, rands, costs = truth.read_poses(folder / "truth.star").classes, [], [], []
        for seed in range(1, CLASS_SEEDS + 1):
            out = job_folder(f"from_nothing_classes_{kinds}_{seed}")
            command = [
                HALFMAP,
                "abinitio",
                "--particles",
                folder / "particles.star",
                "--classes",
                f"{kinds}",
                "--diameter",
                "270",
            ]
            costs.append(
                run(
                    report,
                    [
                        *command,
                        "--seed",
                        f"{seed}",
                        "--threads",
                        "1",
                        "--out",
                        out,
                        "--overwrite",
                        "--quiet",
                    ],
                    log=out.name,
                )
            )
            classes = truth.read_poses(out / "particles.star").classes
            purities.append(truth.purity(classes, labels))
            rands.append(truth.adjusted_rand_index(classes, labels))
        report.add(
            f"K = {kinds}: purity, seeds 1 to {CLASS_SEEDS}",
            ", ".join(f"{p:.1%}" for p in purities),
            f"chance: {1 / kinds:.0%}",
        )
        report.add(f"K = {kinds}: adjusted Rand index", ", ".join(f"{r:.2f}" for r in rands))
        report.add(
            f"K = {kinds}: CPU seconds, median", f"{np.median([cost.cpu_s for cost in costs]):.0f}"
        )
        report.numbers[f"{kinds}"] = {
            "purity": purities,
            "rand_index": rands,
            "cpu_s": [cost.cpu_s for cost in costs],
        }
        for k in range(kinds):
            picture = (
                job_folder(f"from_nothing_classes_{kinds}_1") / "pictures" / f"class{k + 1:03d}.png"
            )
            keep_picture(report, picture, f"benchmark_abinitio_classes_{kinds}_{k + 1}.png")
    return report


def abinitio_averages() -> Report:
    """Real images: of the 100 class averages of a mixture of ribosomes and other complexes
    (EMPIAR-10268), `class2d --method template` makes 10 classes, those of compact bodies with a
    rough surface (large ribosomal subunits, by eye in the picture of `mixture_2d`) are selected,
    and `abinitio --no-ctf --runs 3` makes maps of them. There is no truth: runs from different
    starts, laid onto one another, are compared. The pixel size is not known and taken for 1 A."""
    report = Report()
    stack, classes, star, out = (
        third_party("images", "mixture_2D.mrcs"),
        *map(job_folder, ("averages_2d", "averages.star", "averages")),
    )
    command = [
        HALFMAP,
        "class2d",
        "--particles",
        stack,
        "--pixel-size",
        "1",
        "--classes",
        "10",
        "--method",
        "template",
        "--no-ctf",
    ]
    run(
        report,
        [*command, "--threads", "1", "--out", classes, "--overwrite", "--quiet"],
        log=classes.name,
    )
    run(
        report,
        [HALFMAP, "select", classes, "--classes", ROUGH, "--out", star, "--overwrite"],
        log="averages_select",
    )
    command = [
        HALFMAP,
        "abinitio",
        "--particles",
        star,
        "--no-ctf",
        "--diameter",
        "64",
        "--shift-range",
        "4",
        "--runs",
        "3",
    ]
    cost = run(
        report,
        [*command, "--threads", f"{THREADS}", "--out", out, "--overwrite", "--quiet"],
        log=out.name,
    )
    results = json.loads((out / "job.json").read_text())["results"]
    likelihoods = results["log_likelihoods"]
    report.add("averages selected", f"{sum(results['sizes'])} of 100")
    report.add(
        "log likelihood an image, by run",
        ", ".join(f"{value:.0f}" for value in likelihoods),
        f"best: run {results['best_run']}",
    )
    for r, (at_half, at_0143) in enumerate(results["agreement_angstrom"]):
        if r + 1 != results["best_run"]:
            shells = ", ".join(f"{96 / value:.1f}" for value in (at_half, at_0143))
            report.add(
                f"run {r + 1} on the best: FSC 0.5, 0.143",
                f"{at_half:.1f}, {at_0143:.1f} pixels",
                f"shells {shells} of 96 pixels",
            )
    report.add("cost of all runs", str(cost))
    report.numbers = {
        "log_likelihoods": likelihoods,
        "agreement": results["agreement_angstrom"],
        "cpu_s": cost.cpu_s,
    }
    keep_picture(report, out / "pictures" / "map.png", "benchmark_abinitio_averages_map.png")
    keep_picture(report, out / "pictures" / "runs_fsc.png", "benchmark_abinitio_averages_fsc.png")
    return report
