"""What the documentation costs to build, and what it lacks."""

import importlib
import inspect
import json
import os
import pkgutil
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import halfmap
from common import ROOT, RUNS, Report, run
from halfmap.cli.application import PANELS

GOAL_MINUTES = 10.0
NO_NETWORK = ("unshare", "--map-root-user", "--net")  # Linux: a network of its own, with nothing in


def gallery_built() -> Report:
    """`make docs` from nothing: warnings are errors, every script of the gallery and the tutorial is
    run at its full size, one after another on one core, and nothing can be fetched."""
    report = Report()
    for made in ("gallery", "tutorial", "api", "jobs"):
        shutil.rmtree(ROOT / "docs" / "_built" / made, ignore_errors=True)
    site = RUNS / "docs"
    shutil.rmtree(site, ignore_errors=True)
    build = [sys.executable, "-m", "sphinx", "-b", "html", "-q", "-W", "--keep-going", "docs", site]
    apart = NO_NETWORK if shutil.which("unshare") else ()
    os.environ["OMP_NUM_THREADS"] = "1"
    cost = run(report, [*apart, *build], log="docs")
    seconds = json.loads((site / "seconds.json").read_text())
    for name, took in seconds.items():
        title = name.removeprefix("plot_").replace("_", " ")
        report.add(title, f"{took['cpu_s']:.1f} CPU s", f"{took['wall_s']:.0f} s wall")
    cpu, wall = (sum(took[unit] for took in seconds.values()) for unit in ("cpu_s", "wall_s"))
    report.add(f"all {len(seconds)} scripts", f"{cpu:.0f} CPU s", f"{wall:.0f} s wall")
    report.add("the whole site", f"{cost.cpu_s:.0f} CPU s", f"{cost.wall_s:.0f} s wall")
    report.add("the same in CPU minutes", f"{cost.cpu_s / 60:.1f}", f"goal {GOAL_MINUTES:g}")
    report.numbers |= {"scripts": seconds, "cpu_s": cost.cpu_s, "wall_s": cost.wall_s}
    return report


def biased_start() -> Report:
    """Topic 28 of the lecture with ten seeds: three classes of which two start as the same side, by
    E-M and by stochastic gradients; mean log likelihood of an image, and share of the images in a
    class of their side."""
    report = Report()
    (script,) = (ROOT / "docs" / "gallery").glob("*/plot_28_*.py")
    os.environ |= {"MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    for seed in range(1, 11):
        command = ["env", f"HALFMAP_GALLERY_SEED={seed}", sys.executable, script]
        run(report, command, log=f"biased_start_{seed}")
        shown = (RUNS / f"biased_start_{seed}.log").read_text().splitlines()[-1]
        em, sgd, best, stuck, free = re.findall(r"[\d.]+%?", shown)
        beside = f"E-M {em}, {stuck}; E-M from the truth {best}"
        report.add(f"seed {seed}", f"SGD {sgd}, {free}", beside)
    report.add("of ten", "E-M stayed in 10, SGD left in 10", "or a seed would have failed")
    return report


def public_functions() -> Iterator[tuple[str, object]]:
    """Every public function of every public module, by its full name."""
    for module in pkgutil.walk_packages(halfmap.__path__, "halfmap."):
        if any(part.startswith("_") for part in module.name.split(".")):
            continue
        found = importlib.import_module(module.name)
        for name, function in vars(found).items():
            mine = getattr(function, "__module__", "") == module.name
            if inspect.isfunction(function) and mine and not name.startswith("_"):
                yield f"{module.name}.{name}", function


def has_example(function: object) -> bool:
    """Whether its docstring shows a call: a command line, or Python that a test runs."""
    text = inspect.getdoc(function) or ""
    return "Example: halfmap " in text or ">>> " in text


def docstring_examples() -> Report:
    """Public functions whose docstring shows no call. Of a command it is a line of the shell (its
    page has the same in Python), of other functions Python that a test runs."""
    report = Report()
    every = dict(public_functions())
    without = [name for name, function in every.items() if not has_example(function)]
    commands = [name for names in PANELS.values() for name in names]
    report.add("jobs without", _of([has_example(getattr(halfmap, n)) for n in commands]), "goal 0")
    names = [name for name in halfmap.__all__ if callable(getattr(halfmap, name))]
    report.add("names of `halfmap` without", _of([has_example(getattr(halfmap, n)) for n in names]))
    used = gallery_functions()
    shown = [has_example(every[name]) for name in used if name in every]
    report.add("functions that the gallery and the tutorial use without", _of(shown))
    report.add("all public functions without", f"{len(without)} of {len(every)}")
    report.add("without any docstring", str(sum(not inspect.getdoc(f) for f in every.values())))
    report.numbers["without"] = without
    return report


def gallery_functions() -> list[str]:
    """What the scripts import of halfmap, by full name."""
    names = set()
    for script in (ROOT / "docs").glob("**/plot_*.py"):
        for module, imported in re.findall(
            r"^from (halfmap[\w.]+) import (\([^)]*\)|.*)$", Path(script).read_text(), re.M
        ):
            names |= {f"{module}.{name}" for name in re.findall(r"\w+", imported)}
    return sorted(names)


def _of(there: list[bool]) -> str:
    return f"{sum(not one for one in there)} of {len(there)}"
