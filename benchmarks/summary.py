"""docs/benchmarks.md, the page that a person reads: a line for what matters, the peer beside it.

Figures of the table come from the records. `RECORDED` and the sentences of `MISSED` are written by
hand: read them again when the records behind them change.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import device_check
import relion
from from_nothing import CONVERGED

Records = Mapping[str, Mapping[str, Any]]
ELSEWHERE = "RELION 5, another machine"


@dataclass(frozen=True)
class Line:
    """One line of the table: what was asked of which images, and the records that it is made of."""

    what: str
    needs: tuple[str, ...]
    halfmap: Callable[..., str]
    peer: Callable[..., str] = lambda *numbers: ""


@dataclass(frozen=True)
class Recorded:
    """A line that was measured outside this repository's records, with how to make it again."""

    what: str
    halfmap: str
    peer: str
    how: str


def _refined(n: Mapping) -> str:
    ml = n["ml"]
    fsc, error = ml["fsc_half_to_truth_angstrom"], ml["error_median_deg"]
    return f"{ml['cpu_s']:.0f} CPU s; {error:.2f} deg; {fsc:.1f} A"


def _refined_by_relion(name: str) -> str:
    peer = relion.REFINEMENT[name]
    return (
        f"{peer.cpu_s:,} CPU s, iterations: {peer.iterations}; {peer.error_median_deg:.2f} deg; "
        f"{peer.fsc_half_to_truth_angstrom:.1f} A ({ELSEWHERE})"
    )


def _by_place(n: Mapping, way: str) -> str:
    sets = [n[name][way] for name in ("micelle", "domain", "rigid")]
    errors = ", ".join(f"{one['error_median_deg']:.1f}" for one in sets)
    cores = ", ".join(f"{one['core_angstrom']:.1f}" for one in sets)
    return f"{errors} deg; {cores} A"


def _seeds_right(n: Mapping) -> str:
    made = len(n["cpu_s"])
    limit = CONVERGED * n["refined_from_truth"][0]
    refined = sum(fsc <= limit for fsc in n["refined_fsc_half_angstrom"])
    cpu = median(n["cpu_s"])
    return f"{n['right']} of {made} maps right, {refined} of {made} refine; {cpu:.0f} CPU s a map"


def _purity(n: Mapping) -> str:
    seeds = [v for name, v in n.items() if name.startswith("halfmap ml")]
    low, high = (f(s["purity"] for s in seeds) for f in (min, max))
    return f"{low:.1%} to {high:.1%}; {median(s['cpu_s'] for s in seeds):.0f} CPU s"


def _purity_of_relion(n: Mapping) -> str:
    name = next((key for key in n if key.startswith("RELION")), None)
    return f"{n[name]['purity']:.1%}; {n[name]['cpu_s']:.0f} CPU s ({name})" if name else ""


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _errors(found: Sequence[float], true: Sequence[float]) -> str:
    return ", ".join(f"{f / t - 1:+.0%}" for f, t in zip(found, true, strict=True))


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def _low_signal(n: Mapping) -> str:
    known, wide = n["all"]["by_known"], n["all"]["by_wide"]
    return (
        f"{known['beaten']} of {known['images']:,}; {wide['beaten']} of {wide['images']:,}; "
        f"{n['all']['largest_ece']:.2f}"
    )


def _transfer(n: Mapping) -> str:
    return (
        f"{n['defocus_angstrom']:.0f} A, {n['astigmatism_angstrom']:.0f} A, "
        f"{n['beam_tilt_mrad']:.3f} mrad; {n['fsc_to_truth_angstrom']:.2f} A"
    )


def _in_full(n: Mapping) -> str:
    return (
        f"{n['n']:,} images, {n['cpu_s'] / 3600:.2f} CPU hours (other work beside); "
        f"{n['peak_bytes'] / 1e9:.1f} GB; {n['deg']:.2f} deg"
    )


def _peak(n: Mapping) -> str:
    return f"{max(one['peak_bytes'] for one in n.values()) / 1e9:.1f} GB, {_off(n)}"


def _off(n: Mapping) -> str:
    """How far estimates of memory are from the peaks."""
    off = [100 * (one["estimated_bytes"] / one["peak_bytes"] - 1) for one in n.values()]
    return f"{min(off):+.0f} to {max(off):+.0f} %"


def _large(n: Mapping) -> str:
    words = (("refine 360^2", "refine"), ("class3d 360^2", "K = 6"), ("refine 400^2", "refine"))
    found = []
    for start, job in words:
        one = next(value for name, value in n.items() if name.startswith(start))
        found.append(f"{job} {start.split()[1]} {one['peak_bytes'] / 1e9:.1f} GB")
    return "; ".join(found)


LINES = (
    Line(
        "`refine`, TRPV1 (C4, 2,000 x 96^2, SNR 0.1): cost to convergence; pose error; FSC 0.5 to the truth",
        ("trpv1",),
        _refined,
        lambda n: _refined_by_relion("trpv1"),
    ),
    Line(
        "`refine`, ribosome (C1, 3,000 x 64^2, SNR 0.2): the same",
        ("ribo",),
        _refined,
        lambda n: _refined_by_relion("ribo"),
    ),
    Line(
        "`refine`, four molecules (600 images each) at SNR 0.2, 0.05, 0.02: poses beaten by the known one; by a far wider search; largest calibration error of a posterior",
        ("low_signal",),
        _low_signal,
    ),
    Line(
        "`refine --local-regularisation`, a core in a disordered belt, with a floppy domain, and rigid (800 x 64^2, SNR 0.05): pose error; core to the truth at FSC 0.5",
        ("local_regularisation",),
        lambda n: _by_place(n, "with"),
        lambda n: f"{_by_place(n, 'without')} (without the option)",
    ),
    Line(
        "at SNR 0.05, one thread: `refine` of TRPV1 (C4, 600 x 96^2) to convergence; `class2d` of ribosomes (1,500 x 64^2), K = 16, 15 iterations",
        ("low_signal_cost",),
        lambda n: f"{n['refine']['cpu_s']:.0f} CPU s; {n['class2d']['cpu_s']:.0f} CPU s",
        lambda n: (
            f"{relion.LOW_REFINEMENT.cpu_s:.0f} CPU s; {relion.LOW_CLASS2D_CPU_S} CPU s ({relion.RECORDED})"
        ),
    ),
    Line(
        "`class2d`, ribosome, K = 20, 15 iterations: cost; spread of true views in a class",
        ("ribo_mix_2d",),
        lambda n: f"{n['cpu_s']:.0f} CPU s; {n['spread_median_deg']:.0f} deg",
        lambda n: f"{relion.CLASS2D_CPU_S} CPU s; {relion.CLASS2D_SPREAD_DEG} deg ({ELSEWHERE})",
    ),
    Line(
        "`class2d`, two molecules in one stack, K = 10 (three seeds): purity; cost",
        ("mixture_purity_2d",),
        _purity,
        _purity_of_relion,
    ),
    Line(
        "`class3d`, two states 5 % of the mass apart: adjusted Rand index; cost",
        ("ribo_mix_3d",),
        lambda n: f"{n['adjusted_rand_index']:.2f}; {n['cpu_s']:.0f} CPU s",
        lambda n: f"{relion.CLASS3D_RAND_INDEX:.2f}; {relion.CLASS3D_CPU_S:,} CPU s ({ELSEWHERE})",
    ),
    Line(
        "`class3d`, calibration error of class posteriors at SNR 0.2, 0.05, 0.02 (1,500 images, poses known): a domain turned by 9 degrees; 5 % of the mass",
        ("class_posteriors",),
        lambda n: "; ".join(
            ", ".join(f"{n[f'{name} {snr:g} known 1']['ece']:.2f}" for snr in (0.2, 0.05, 0.02))
            for name in ("phantom", "ribosome")
        ),
        lambda n: "asked: 0.03",
    ),
    Line(
        "`abinitio`, ribosome, ten seeds: right at 30 A and refined to the true map's result; cost",
        ("abinitio_ribo",),
        _seeds_right,
        lambda n: (
            f"{relion.INITIAL_ANGSTROM[0]} A after 30 of 100 iterations, stopped at "
            f"{relion.INITIAL_CPU_S:,} CPU s ({ELSEWHERE})"
        ),
    ),
    Line(
        "`abinitio`, TRPV1 without its symmetry, ten seeds: right at 20 A and refined; cost",
        ("abinitio_trpv1_c1",),
        _seeds_right,
    ),
    Line(
        "`abinitio` at low signal, ten seeds each: ribosome C1 and beta-galactosidase D2 at SNR 0.05, dirty spikes C3 at 0.03: right; cost",
        ("abinitio_low_signal",),
        lambda n: (
            "; ".join(f"{v['right']} of {len(v['cpu_s'])}" for v in n.values())
            + f"; {max(median(v['cpu_s']) for v in n.values()):.0f} CPU s at most"
        ),
    ),
    Line(
        "`abinitio --classes 2` and `3` of dirty spikes (C3, SNR 0.03, 15 % junk), five seeds each: right; refined to the true map's result; cost",
        ("abinitio_dirty_classes",),
        lambda n: "; ".join(
            f"{v['right']} and {v['converged']} of {len(v['runs'])}; "
            f"{median(one['cpu_s'] for one in v['runs']):.0f} CPU s"
            for v in n.values()
        ),
    ),
    Line(
        "`abinitio --classes 3`, three molecules in one stack: purity of three seeds; cost",
        ("abinitio_classes",),
        lambda n: (
            f"{min(n['3']['purity']):.1%} to {max(n['3']['purity']):.1%}; "
            f"{median(n['3']['cpu_s']):.0f} CPU s"
        ),
        lambda n: "33 % by chance",
    ),
    Line(
        "real ribosomes (1,430 tilt images, deposited poses), `reconstruct`: between halves; to the published map",
        ("real_ribosome",),
        lambda n: f"{n['reconstruct'][0]:.1f} A; {n['reconstruct'][3]:.1f} A",
        lambda n: (
            f"{relion.REAL_RIBOSOME['halves']} A; {relion.REAL_RIBOSOME['all']} A ({ELSEWHERE})"
        ),
    ),
    Line(
        "10 real TRPV1 images, searched everywhere against their map to 15 A: within 15 degrees of the deposited pose",
        ("trpv1_real",),
        lambda n: f"{sum(a < 15 for a in n['angles_deg_15'])} of {len(n['angles_deg_15'])}",
        lambda n: "0.4 % by chance",
    ),
    Line(
        "`reconstruct`, TRPV1 from true poses: CPU; FSC 0.5 to the truth",
        ("reconstruct",),
        lambda n: f"{n['cpu_s']:.1f} CPU s; {n['fsc_half_to_truth_angstrom']:.1f} A",
        lambda n: (
            f"{n['relion_cpu_s']:.1f} CPU s; {n['relion_fsc_half_to_truth_angstrom']:.1f} A "
            "(RELION 3.1, same run)"
        ),
    ),
    Line(
        "`postprocess`, TRPV1 and ribosome at true poses: largest difference of corrected curves from RELION's mean over 32 seeds; B; CPU",
        ("postprocess",),
        lambda n: "; ".join(
            f"{v['corrected_apart']:.3f}; {v['b_factor']:.0f} A^2; {v['cpu_s']:.0f} CPU s"
            for v in n.values()
        ),
        lambda n: (
            "; ".join(
                f"its own seeds differ by up to {max(v['relion_seeds_apart']):.3f}; "
                f"{_mean(v['relion_b_factors']):.0f} A^2; {v['relion_cpu_s']:.1f} CPU s"
                for v in n.values()
            )
            + " (RELION 3.1.3, same run)"
        ),
    ),
    Line(
        "`localres`, regions blurred to a known resolution; CPU of 96^3; of 256^3",
        ("localres",),
        lambda n: (
            f"{_errors(n['found_angstrom'], n['truth_angstrom'])}; {n['cpu_s']:.0f} CPU s; "
            f"{n['large_cpu_s']:.0f} CPU s"
        ),
        lambda n: (
            f"{_errors(n['relion_angstrom'], n['truth_angstrom'])}; {n['relion_cpu_s']:.0f} CPU s "
            "(RELION 3.1.3, same run)"
            if n["relion_angstrom"]
            else ""
        ),
    ),
    Line(
        "`ctfrefine`, errors put into 1,500 images (SNR 0.05): error left of defocus, astigmatism, beam tilt; map to the truth",
        ("ctfrefine",),
        lambda n: _transfer(n["halfmap"]),
        lambda n: (
            (f"{_transfer(n['RELION'])} (RELION 3.1.3, same run); " if "RELION" in n else "")
            + f"{n['clean']['fsc_to_truth_angstrom']:.2f} A from the clean set"
        ),
    ),
    Line(
        "`orientations`, a ball, a rod and a disc, views even to extreme: cFAR; apart by the shape",
        ("orientations",),
        lambda n: "; ".join(
            f"{name} {median(v['cfar'].values()):.2f}, {v['spread']:.0%}"
            for name, v in n.items()
            if name != "ranked"
        ),
        lambda n: "goal: ranked, within 10 %",
    ),
    Line(
        "100,000 x 128^2 refined to Nyquist, extrapolated from 600 images",
        ("yardstick",),
        lambda n: f"{n['hours'][-1]:.1f} CPU hours",
        lambda n: "19 CPU years naive, 1 CPU day efficient (lecture)",
    ),
    Line(
        "the same in full, simulated to disk, from 40 A to convergence: cost; peak memory; pose error",
        ("yardstick_in_full",),
        _in_full,
        lambda n: "goal: 1.5 CPU hours",
    ),
    Line(
        "a set of the size of EMPIAR-10005 (TRPV1, C4, 256^2, 1.22 A, SNR 0.01), from 40 A to convergence with `--memory 8GB`: the same",
        ("trpv1_in_full",),
        _in_full,
        lambda n: "goal: 1.5 CPU hours, 8 GB",
    ),
    Line(
        "peak memory of jobs scored to shells 121, 37 and 100; estimates against it, 256^2 to 400^2",
        ("memory_large",),
        lambda n: f"{_large(n)}; {_off(n)}",
        lambda n: "goals: 8, 20 GB, this machine; within 25 %",
    ),
    Line(
        "peak memory of refinements of 64^2 to 192^2, and estimates against it; of other jobs of 64^2 to 256^2",
        ("memory", "memory_of_other_jobs"),
        lambda a, b: f"up to {_peak(a)}; up to {_peak(b)}",
        lambda a, b: "goal: within 25 %",
    ),
    Line(
        "peak memory: `refine` of `trpv1`; `class2d` and `class3d` of `ribo_mix`",
        ("trpv1", "ribo_mix_2d", "ribo_mix_3d"),
        lambda a, b, c: (
            f"{_gib(a['ml']['peak_bytes'])}; {_gib(b['peak_bytes'])}; {_gib(c['peak_bytes'])}"
        ),
    ),
)

# measured once, outside `benchmarks/results`, and kept with the recipe
RECORDED = (
    Recorded(
        "`refine`, a map with O symmetry (600 x 72^2, SNR 0.05): CPU",
        "40 CPU s",
        "420 CPU s",
        "options as for `trpv1`, quiet machine",
    ),
    Recorded(
        "`class2d`, 1,500 x 80^2, SNR 0.05, K = 16, 15 iterations: CPU",
        "18 CPU s",
        "268 CPU s",
        "options as for `ribo_mix_2d`, quiet machine",
    ),
)

# what the device check is asked for; its peer is RELION 5 on one H100 (recovar's benchmark notes)
DEVICE_GOALS = (
    ("refine, 10,000 x 128^2", "507 s (RELION 5, after its initial model, one 80 GB card)", ""),
    ("class3d, 10,000 x 128^2, K = 4, 5 iterations", "117 to 143 s (RELION 5, one H100)", "60 s"),
    ("class2d, 20,000 x 64^2, K = 50", "", ""),
    ("abinitio", "", ""),
)


def first_page(newest: Records, page_of: Mapping[str, str]) -> str:
    """The page: how, the table, low signal, what is missed, the device check."""
    return "\n".join(
        [
            HEAD.format(machines=_machines(newest)),
            *_table(newest, page_of),
            "",
            RECORDED_HEAD,
            *[f"| {r.what} | {r.halfmap} | {r.peer} | {r.how} |" for r in RECORDED],
            "",
            MISSED.format(**page_of),
            *_device(newest),
        ]
    )


def _table(newest: Records, page_of: Mapping[str, str]) -> list[str]:
    rows = ["| what was asked | halfmap | beside it | command: `python benchmarks/run.py` |"]
    rows += ["|---|---|---|---|"]
    for line in LINES:
        if all(name in newest for name in line.needs):
            numbers = [newest[name]["numbers"] for name in line.needs]
            links = " ".join(f"[`{name}`]({page_of[name]})" for name in line.needs)
            cells = (line.what, line.halfmap(*numbers), line.peer(*numbers), links)
            rows.append(f"| {' | '.join(cells)} |")
    return rows


def _machines(newest: Records) -> str:
    """The processors that the records were made on, with the first and last day."""
    days: dict[str, list[str]] = {}
    for name, record in newest.items():
        if name != "device_check":
            days.setdefault(record["machine"]["processor"], []).append(record["date"][:10])
    return " and ".join(
        f"2 cores of an {processor} ({' to '.join(sorted({min(of), max(of)}))})"
        for processor, of in sorted(days.items())
    )


def _device(newest: Records) -> Sequence[str]:
    """The newest device check, or that there is none."""
    head = ["## On a GPU", "", "`make device-check` simulates its images where it runs.", ""]
    if "device_check" in newest:
        record = newest["device_check"]
        rows = [
            f"| {what} | {device_check.described(found)} | {device_check.beside(what)} |"
            for what, found in record["figures"].items()
        ]
        when = f"{record['device']}, {record['date'][:10]}, commit {record['commit']}."
        table = ["| figure | halfmap | beside it |", "|---|---|---|", *rows]
        return [*head, *table, "", when, "", *DEVICE_SINCE.splitlines()]
    rows = [f"| {what} | not run | {peer} | {goal} |" for what, peer, goal in DEVICE_GOALS]
    return [
        *head,
        "It has not run on a GPU yet: no device was at hand.",
        "",
        "| job | halfmap | peer | goal |",
        "|---|---|---|---|",
        *rows,
    ]


# by hand: what later, shorter runs on the same kind of GPU showed
DEVICE_SINCE = """The two lines that failed: a comparison after two iterations, and a test of maps alike to 0.999, both on a few dozen to 200 images, of which one
more or less significant pose is a thousandth of the map. The check now compares one iteration, and did so on the same kind of GPU on the same day (commit f7bebbc): correlation with the CPU's map 1.00000, poses
within 4e-6 deg, with float32 products and with the faster ones that a search uses there. With folds and the search of low signal (f7bebbc) `refine` took 74.0 s and 1.6 GiB on it; torch's deterministic sums were switched on in that run, which
cost an unknown part, did not give the same bits twice, and are gone since. Two processes on one GPU gave the map of one (correlation 1.0000). NCCL has not run: it needs two GPUs."""

HEAD = """# Benchmarks

What was measured: whole jobs through the command line, on images whose truth is known, judged by code that shares nothing with halfmap
(`benchmarks/truth.py`, simulator in `../shared/tools`). CPU seconds are those of the whole process, start and imports included. Machine: {machines},
mostly with other work beside, so times are rather too long than too short. RELION 5.0.1 ran on the same
images from the same start on 2 cores of another machine: read those ratios as orders of magnitude. [How it was measured](benchmarks/how.md)
has the peers' commands and leads to the long tables; each figure's own command stands with its table.
"""

RECORDED_HEAD = """**Low signal, recorded** once, outside `benchmarks/results`, at commit 423620a; RELION 5.0.1 on the same quiet machine, 2 cores of an AMD EPYC.

| what was asked | halfmap | RELION 5 beside it | images and command |
|---|---|---|---|"""

MISSED = """## What is missed

- [`abinitio`]({abinitio_trpv1_c1}) makes 100 mini-batches by default since its record without symmetry; the other records of `abinitio` are of 60, cheaper by a third.
- [`abinitio` at low signal]({abinitio_low_signal}): ten of ten seeds were asked; one of the dirty spikes (C3, SNR 0.03) is wrong, its axis not found. Its log likelihood is 16 an image where the other seeds have 28 to 29, so
  that `--runs 3` should keep another (not run); its correlation with its symmetry mates (0.41) is not below that of two right ones.
- [`class2d`]({ribo_mix_2d}): 50 times less CPU than RELION 5 was asked; it is that by the marginal cost of an image, 40 times with start and end; [at SNR 0.05]({low_signal_cost}) 26 times, and `refine` there 32 times (40 were asked).
- [Template matching]({mixture_purity_2d}) separates two molecules less well than maximum likelihood or RELION do (86 % against 93 to 96 %).
- [`reconstruct`]({reconstruct}) takes 1.4 times RELION 3.1's CPU and twice its memory.
- [Branch and bound]({branch_and_bound}) is slower than the adaptive grid at every noise level, and at SNR 0.02 slower than exhaustive search. What it loses of the poses is
  what its bound says. (The adaptive grid lost 0.5 to 1.5 % then; see [low signal]({low_signal}) for what it loses now.)
- [Real ribosome tilts]({real_ribosome}): a single image does not know its pose at 32 A, so refinement helps only with a tight prior.
- [Posteriors at SNR 0.02]({low_signal}): a calibration error of 0.03 was asked; it is 0.03 on the ribosome, 0.05 on beta-galactosidase (0.02 by chance; images say 0.89 and 0.87 are right), below 0.01 everywhere else. Against maps made at the true poses
  it is what chance gives: what is left is what images say to the maps that comes back to them through the others of their half. At SNR 0.01 ([in numbers]({low_signal_numbers})) it is 0.07 to 0.19.
- [Class posteriors]({class_posteriors}): a calibration error of 0.03 was asked, and met with the defaults: of a domain turned by 9 degrees it is 0.01 at most, of two states of the ribosome 5 % of the mass apart 0.01 to 0.03, poses known or found
  (0.35 at SNR 0.05 and 0.02 before classes were checked on [split noise](maximum_likelihood.md#how-far-classes-differ): there images say 0.50 now). With `--folds 4` it is 0.05 and 0.06 where least is known, as images say less than is right. The price: classes that are
  real but too weak for split noise are given up, and the job says so.
- [Bias of the start]({bias}): from a start at 20 A, `refine` of 500 images of noise reports 27 A, and the map is like its start to 31 A; noise deserves none. The job doubts it twice: the halves agree no further than the
  start, and the map explains an image no better than noise does. What a start lends fades by 2 to 4 % an iteration and is not taken away. Another molecule at 60 A, from which 500 images at SNR 0.05 do not find their own, is reported at 32 A without
  a doubt: both halves keep to the wrong molecule. The right molecule at 60 A, with all detail, or mirrored ends at 23.3 to 23.4 A, which is what it deserves; projection matching does not leave 60 A (35 A reported, 55 A deserved).
- [cFAR]({orientations}) was asked not to depend on the molecule's shape by more than 10 %: a ball, a rod and a disc are apart by 1 to 4 % in masks of their own half maps (in one sphere 14 and 13 % where views are severe
  and extreme: thin shapes hold more of its noise). An L and a pair of balls are up to 15 and 20 % above them there: each cone's noise is the same within 1 % with one spectrum for all, but where a molecule has more power at low
  resolution, the same noise costs less of a cone's area; no area of FSC can be free of that. SCF* is: it is of the views alone.
- [`ctfrefine`]({ctfrefine}) takes four times RELION's CPU. The map from the transfer functions that it finds is within a fifth of a shell of the clean set's.
- [Mates of relaxed symmetry]({relaxed}): of a ligand of 5 to 6 % of the mass on O and I carriers images know 92 and 71 %; from a map with the ligand 79 and 45 % are found, from the carrier alone 16 and 4 %. What is missing is a
  start that breaks the symmetry: give one (a ligand modelled at any of its places) where there are many mates.
"""
