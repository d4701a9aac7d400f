"""The long tables behind docs/benchmarks.md, one page a subject in docs/benchmarks, and the page
itself (`summary`), from the newest record of each benchmark in `results/`: no figure of a run is
typed by hand."""

import json
from collections.abc import Callable, Mapping

import relion
from common import RESULTS, ROOT
from summary import first_page

DOCS = ROOT / "docs"

# every benchmark on one page: file name, title, benchmarks in order
PAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "refinement": ("Refinement and reconstruction", ("trpv1", "ribo", "reconstruct")),
    "low_signal": (
        "Low signal",
        ("low_signal", "low_signal_numbers", "low_signal_cost", "class_posteriors", "bias"),
    ),
    "classes": (
        "Classes in 2D and 3D",
        (
            "ribo_mix_2d",
            "ribo_mix_2d_template",
            "relion_beside",
            "mixture_purity_2d",
            "mixture_2d",
            "ribo_mix_3d",
            "phantom_mix_3d",
        ),
    ),
    "dirty": (
        "Dirty images",
        ("dirty_2d", "dirty_relion", "dirty_abinitio", "dirty_class3d", "dirty_refine"),
    ),
    "ab_initio": (
        "Maps from nothing",
        (
            "abinitio_trpv1_c4",
            "abinitio_trpv1_c1",
            "abinitio_low_signal",
            "abinitio_dirty_classes",
            "abinitio_ribo",
            "abinitio_phantom",
            "abinitio_classes",
            "abinitio_averages",
        ),
    ),
    "search": ("Search and accuracy", ("branch_and_bound", "accuracy", "gallery")),
    "cost": ("Cost, stage by stage", ("yardstick", "cost_growth", "stages", "estep")),
    "optics": ("Optics groups that differ", ("optics_groups",)),
    "sizes": (
        "Real sizes",
        (
            "sizes",
            "memory",
            "memory_of_other_jobs",
            "memory_large",
            "symmetry",
            "yardstick_in_full",
            "trpv1_in_full",
        ),
    ),
    "processes": ("Many processes", ("many_processes",)),
    "local_regularisation": ("References filtered by place", ("local_regularisation",)),
    "known_poses": (
        "CTF refinement, small parts and symmetry mates at known poses",
        ("ctfrefine", "ctfrefine_magnification", "focus", "relaxed"),
    ),
    "real_data": ("Real data", ("real_ribosome", "trpv1_real")),
    "finishing": (
        "From half maps to a finished map",
        ("mask", "postprocess", "localres", "orientations"),
    ),
    "symmetry": (
        "Symmetry of maps",
        ("symmetry_found", "symmetry_departure", "symmetry_of_molecules"),
    ),
    "documentation": ("The documentation", ("gallery_built", "docstring_examples", "biased_start")),
    "files": ("Undoing the CTF, reading files", ("restore_methods", "star_readers")),
}

HOW = f"""# How it was measured

[Benchmarks](../benchmarks.md) is the page to read first; the long tables stand behind it.

{{pages}}

`make benchmarks` (or `python benchmarks/run.py NAME...`) runs them and writes these pages; figures come from the newest record of each
benchmark in `benchmarks/results`. Every section names the commands that it ran, in the repository's root, with `../shared` the folder of
third-party data. Images are simulated by `../shared/tools/simulate_reference.py` (exact projections, no code in common with halfmap), those
of the embedded phantom by `halfmap simulate`; errors are measured by `benchmarks/truth.py` (no code in common either), after the global
frame is removed. CPU seconds are user and system of the whole process, start and imports included unless a line says "marginal". Goals are
those set before the work began.

## The peer

RELION 5.0.1 (CPU build, gcc 12 -O3 -march=native, `--cpu`) ran on these very images and from this very start on 2 cores of another machine,
an Intel Xeon with AVX-512 and AMX; what it took and reached was recorded there. Where a line says "{relion.RECORDED}" or
"across machines", read a ratio as an order of magnitude. CPU seconds of RELION are of one core (classes, ab initio) or of three processes
(refinement). "Same run" is Debian's RELION 3.1, run beside halfmap on the same machine; it has no vectorised path.

Refinement, `trpv1` with `--ini_high 40 --particle_diameter 170 --sym C4`, `ribo` with `--ini_high 60 --particle_diameter 270 --sym C1`:

```
relion_refine_mpi (3 ranks) --auto_refine --split_random_halves --ctf --flatten_solvent --zero_mask --oversampling 1 --healpix_order 2
    --auto_local_healpix_order 4 --offset_range 5 --offset_step 2 --norm --scale --j 1 --cpu --pool 30 --firstiter_cc
    --low_resol_join_halves 40 --pad 2 --random_seed 1
```

2D classes; 3D classes (the same with `--ref (true map at 40 A) --ini_high 60 --K 2 --tau2_fudge 4 --healpix_order 2 --firstiter_cc --sym C1`):

```
relion_refine --K 20 --iter 15 --tau2_fudge 2 --ctf --particle_diameter 270 --flatten_solvent --zero_mask --oversampling 1 --psi_step 12
    --offset_range 5 --offset_step 2 --norm --scale --cpu --pool 30 --random_seed 1
```

Ab initio:

```
relion_refine --iter 100 --grad --denovo_3dref --K 1 --healpix_order 1 --offset_range 6 --offset_step 2 --auto_sampling --tau2_fudge 4
```
"""

# what eyes say about pictures; figures belong above
SEEN = {
    "abinitio_averages": (
        "Looked at: the likeliest map is one compact body, rounded on one side and flatter on the "
        "other, with a protrusion at its rim and "
        "texture inside, as a large ribosomal subunit has at this resolution, and its projections "
        "look like the averages selected. The "
        "runs agree on that body; how far they agree in detail differs from run to run: 43 "
        "averages, which are themselves of unequal "
        "sharpness, do not decide more."
    ),
    "abinitio_classes": (
        "Looked at: with three classes the ribosome, the channel with its wide transmembrane part "
        "and the four-part beta-galactosidase "
        "are told apart at a glance."
    ),
    "mixture_2d": (
        "Looked at: compact bodies with a rough surface and larger bodies of two parts with a "
        "cleft come out in classes of their own, "
        "and small classes hold one view sharply. Classes of two-part bodies mix neighbouring "
        "views and are blurred. The few averages "
        "of junk (a ring, bright spots at the rim) have no class of their own and sit among the "
        "others. The resolutions in the titles "
        "mean nothing: the pixel size is not known, and averages that share particles are not "
        "independent."
    ),
}


def write_docs(benchmarks: Mapping[str, Callable]) -> None:
    """Write docs/benchmarks.md and the pages in docs/benchmarks anew."""
    newest = {
        name: json.loads((RESULTS / f"{name}.json").read_text())[-1]
        for name in (*benchmarks, "device_check")
        if (RESULTS / f"{name}.json").exists()
    }
    for page, (title, names) in PAGES.items():
        parts = [
            f"# {title}\n\nBehind [Benchmarks](../benchmarks.md); [how it was measured](how.md).\n"
        ]
        parts += [section(n, benchmarks[n], newest[n]) for n in names if n in newest]
        _write(f"benchmarks/{page}.md", "\n".join(parts))
    links = [f"- [{title}]({page}.md): {_codes(names)}" for page, (title, names) in PAGES.items()]
    _write("benchmarks/how.md", HOW.format(pages="\n".join(links)))
    _write("benchmarks.md", first_page(newest, page_of()))


def page_of() -> dict[str, str]:
    """Where each benchmark's long table stands, as a link from docs/."""
    return {n: f"benchmarks/{page}.md#{n}" for page, (_, names) in PAGES.items() for n in names}


def _write(name: str, text: str) -> None:
    path = DOCS / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text.rstrip() + "\n", encoding="utf-8")


def _codes(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def section(name: str, function: Callable, record: dict) -> str:
    """One benchmark: what it is, its table, the commands, the machine, pictures."""
    lines = [f"## `{name}`", "", " ".join((function.__doc__ or "").split()), ""]
    if printed := record["numbers"].get("printed"):
        lines += ["```", printed.strip(), "```", ""]
    lines += ["| figure | halfmap | beside it |", "|---|---|---|"]
    lines += [f"| {row['what']} | {row['halfmap']} | {row['beside']} |" for row in record["rows"]]
    machine = record["machine"]
    load = record["load_before"]
    busy = (
        f"; load {load} before the start, so other work ran beside: times are too long"
        if load > 0.7
        else ""
    )
    versions = ", ".join(f"{k} {machine[k]}" for k in ("python", "torch", "numba"))
    lines += [
        "",
        f"{record['date'][:10]}, commit {record['commit']}, {machine['processor']}, "
        f"{machine['cores']} cores, {versions}{busy}.",
    ]
    commands = [f"python benchmarks/run.py {name}", *record["commands"]]
    lines += ["", "```", *commands, "```", ""]
    for picture in record["pictures"]:
        lines += [f"![{name}](../figures/{picture})", ""]
    if SEEN.get(name):
        lines += [SEEN[name], ""]
    return "\n".join(lines)
