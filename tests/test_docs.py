"""What the documentation says is there, is there: links, files, names, commands, options, and the
example of CONTRIBUTING.md, which is run."""

import importlib.util
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
import yaml

import halfmap
from halfmap.cli.main import app
from halfmap.symmetries import Specimen, point_group

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "halfmap"
PROSE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# commands there are those of the commit that was measured
RECORDS = sorted((ROOT / "docs" / "benchmarks").glob("*.md"))
ARCHITECTURE = ROOT / "docs" / "architecture.md"
GROUP = typer.main.get_command(app)
_CONTEXT = GROUP.make_context("halfmap", [], resilient_parsing=True)
COMMANDS = {n: GROUP.resolve_command(_CONTEXT, [n])[1] for n in GROUP.list_commands(_CONTEXT)}

FENCED = re.compile(r"^```[a-z]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^    .*\n)+", re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FILE = re.compile(r"`((?:[a-z_0-9]+/)*[a-z_0-9]+\.py)`")
# `name` in `file.py`; `name` (`file.py`); `file.py`: `name`, `name`
NAMED = (
    re.compile(r"`(?P<names>\w+)`\s(?:in\s|\()`(?P<file>[a-z_/0-9]+\.py)`"),
    re.compile(r"`(?P<file>[a-z_/0-9]+\.py)`(?::\s|\s\()(?P<names>`\w+`(?:, `\w+`)*)"),
)


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _prose(path: Path) -> str:
    """The text without its code blocks."""
    return FENCED.sub("", path.read_text(encoding="utf-8"))


def _find(file: str) -> Path | None:
    """A source file as the documentation names it: from the package, or from the repository."""
    return next((base / file for base in (PACKAGE, ROOT) if (base / file).is_file()), None)


def _slugs(path: Path) -> set[str]:
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", _prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def _commands(path: Path) -> Iterator[list[str]]:
    """The words after `halfmap` of every command in the code blocks of a page."""
    text = path.read_text(encoding="utf-8")
    blocks = FENCED.findall(text) + INDENTED.findall(FENCED.sub("", text))
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        if not re.search(r"(^|[ /])halfmap \w", line):
            continue
        words = shlex.split(line, comments=True)
        at = next((n for n, w in enumerate(words) if w in ("halfmap", ".venv/bin/halfmap")), None)
        if at is not None and words[at + 1 :]:
            yield words[at + 1 :]


@pytest.mark.parametrize("path", PROSE + RECORDS, ids=_name)
def test_links_lead_somewhere(path: Path) -> None:
    broken = []
    for target in LINK.findall(_prose(path)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        if (made := re.fullmatch(r"(?:\.\./)*(?:docs/)?_built/jobs/(\w+)\.md", file)) and (
            made[1] in (*COMMANDS, "index")
        ):
            continue  # made by make docs, a page for every job
        if file.endswith(("_built/gallery/index.rst", "_built/tutorial/index.rst")):
            continue
        page = (path.parent / file).resolve() if file else path
        if not page.exists() or (anchor and anchor not in _slugs(page)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("path", PROSE, ids=_name)
def test_files_and_the_names_in_them_are_there(path: Path) -> None:
    text = _prose(path)
    missing = [file for file in FILE.findall(text) if _find(file) is None]
    for pattern in NAMED:
        for match in pattern.finditer(text):
            source = _find(match["file"])
            for name in re.findall(r"\w+", match["names"]) if source else []:
                defined = rf"^\s*(?:(?:def|class) {name}\b|{name}\b\s*[:=])"
                if not re.search(defined, source.read_text(encoding="utf-8"), re.MULTILINE):
                    missing.append(f"{match['file']}: {name}")
    assert not missing


def test_every_room_has_its_line_in_the_architecture() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8")
    rooms = [p.name + "/" for p in PACKAGE.iterdir() if (p / "__init__.py").exists()]
    files = [p.name for p in PACKAGE.glob("*.py") if p.name != "__init__.py"]
    assert not [room for room in rooms + files if f"`{room}`" not in text]


def test_the_architecture_knows_the_parts_of_the_engine() -> None:
    """`State.find`, `Method.statistics`, `method.prepare` ...: attributes that are there."""
    from halfmap.engine.method import Method, Update
    from halfmap.engine.state import State

    owners = {"State": State, "Method": Method, "method": Method, "Update": Update}
    found = re.findall(r"`(State|Method|method|Update)\.(\w+)`", ARCHITECTURE.read_text())
    assert len(found) > 10
    for owner, name in found:
        fields = owners[owner].__dataclass_fields__
        assert name in fields or hasattr(owners[owner], name), f"{owner}.{name}"


@pytest.mark.parametrize("path", PROSE, ids=_name)
def test_commands_in_code_blocks_parse(path: Path) -> None:
    for words in _commands(path):
        assert words[0] in COMMANDS, f"halfmap {words[0]}"
        COMMANDS[words[0]].make_context(words[0], words[1:])


def test_commands_are_found_in_code_blocks() -> None:
    found = [words for words in _commands(ROOT / "README.md")]
    assert {"info", "class2d", "select", "abinitio", "class3d", "refine"} <= {w[0] for w in found}
    assert sum("--threads" in words for words in found) == 1  # behind torchrun


@pytest.mark.parametrize("path", PROSE, ids=_name)
def test_options_in_the_text_exist(path: Path) -> None:
    def options(command: str) -> set[str]:
        return {o for p in COMMANDS[command].params for o in (*p.opts, *p.secondary_opts)}

    anywhere = set().union(*(options(command) for command in COMMANDS)) | {"--help"}
    for code in INLINE.findall(INDENTED.sub("", _prose(path))):
        words = code.split()
        known = anywhere if code.startswith("--") else set()
        if words[0] == "halfmap" and len(words) > 1 and not words[1].startswith("-"):
            assert words[1] in COMMANDS, code
            known = options(words[1]) | {"--help"}
        if known:
            assert {w for w in words if w.startswith("--")} <= known, code


def test_the_readme_lists_every_command() -> None:
    listed = re.findall(r"^\| `halfmap (\w+)`", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_job_says_how_it_works_and_what_its_files_mean(name: str) -> None:
    text = (ROOT / "docs" / "job_notes" / f"{name}.md").read_text(encoding="utf-8")
    assert "## How it works" in text
    assert "## What it writes" in text
    for target in LINK.findall(text):
        page, _, anchor = target.removeprefix("../../").partition("#")
        assert target.startswith("../../")
        assert (ROOT / "docs" / page).is_file()
        assert not anchor or anchor in _slugs(ROOT / "docs" / page)


def test_figures_of_the_readme_are_those_of_the_benchmarks() -> None:
    """Each figure of the table against other programs stands in docs/benchmarks.md."""
    benchmarks = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = re.search(r"^\| measured on the same images .*?(?=\n\n)", text, re.M | re.S)
    assert table
    figures = []
    for row in table[0].splitlines()[2:]:
        for cell in row.split("|")[2:4]:
            figures += [re.sub(r" \(.*\)", "", one).strip() for one in cell.split(";")]
    assert len(figures) > 20
    assert not [one for one in figures if one.replace("stopped at ", "") not in benchmarks]


def test_pages_of_benchmarks_are_those_of_the_records(monkeypatch, tmp_path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import run
    import table

    monkeypatch.setattr(table, "DOCS", tmp_path)
    table.write_docs(run.ALL)
    for written in tmp_path.rglob("*.md"):
        page = ROOT / "docs" / written.relative_to(tmp_path)
        assert page.read_text(encoding="utf-8") == written.read_text(encoding="utf-8"), page.name


def test_project_citation_and_workflow_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert project["version"] == citation["version"] == halfmap.__version__
    assert project["urls"]["Homepage"] == citation["repository-code"]
    assert project["urls"]["Homepage"] in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    matrix = workflow["jobs"]["newest"]["strategy"]["matrix"]
    named = [c.rsplit(" ", 1)[1] for c in project["classifiers"] if ":: Python :: 3." in c]
    assert matrix["python"] == named == ["3.11", "3.12", "3.13"]
    assert matrix["os"] == ["ubuntu-latest", "macos-latest"]


# --- the example of CONTRIBUTING.md ---------------------------------------------------------------

EXAMPLE = ROOT / "docs" / "examples" / "momentum.py"


def test_contributing_shows_the_example_as_it_is() -> None:
    shown = FENCED.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert EXAMPLE.read_text(encoding="utf-8") in shown


@pytest.fixture
def momentum(monkeypatch):
    """The example, as a module that a checkpoint can name."""
    spec = importlib.util.spec_from_file_location("momentum", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "momentum", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def opened(tmp_path):
    """A small problem, the method of projection matching for it, and its first state."""
    import torch

    from halfmap.commands._volumes import first_state
    from halfmap.engine.preprocessing import ImageSettings
    from halfmap.engine.problem import Problem
    from halfmap.masks import soft_sphere
    from halfmap.methods.projection_matching import projection_matching
    from halfmap.methods.settings import Settings
    from halfmap.particles import load_particles
    from halfmap.pose_search.refinement import SearchSettings
    from halfmap.simulation.phantom import phantom

    box, pixel, n, particle = 24, 8.0, 40, Specimen(point_group("C1"), 10.0)
    out = tmp_path / "sim"
    halfmap.simulate("phantom", out, n=n, snr=1.0, box=box, pixel_size_angstrom=pixel, quiet=True)
    images = ImageSettings(10.0, True, False, torch.device("cpu"))
    particles = load_particles(out / "particles.star")
    problem = Problem(particles, images, torch.arange(n) % 2, "own", particle, 3, 1, 64)
    search = SearchSettings(particle, angular_step_deg=15.0)
    sphere = soft_sphere(box, radius_px=10, edge_px=2)
    settings = Settings(search, 0.143, reference_mask=sphere, fsc_mask=sphere)
    maps = phantom(box, pixel).expand(2, 1, box, box, box)
    return problem, projection_matching(problem, settings), first_state(problem, maps, 40.0)


def test_the_example_runs_counts_and_goes_on_after_a_checkpoint(momentum, opened) -> None:
    import torch

    from halfmap.engine.checkpoint import state_from_arrays, state_to_arrays
    from halfmap.engine.loop import iterate

    problem, plain, state = opened
    first = {}
    for share in (0.0, 0.5):
        method = momentum.with_momentum(plain, share)
        first[share], _ = iterate(problem, method, method.start(state))
    without, _ = iterate(problem, plain, plain.start(state))
    assert torch.allclose(first[0.0].references, without.references, atol=1e-6)

    tilts = first[0.5].poses.rotations[:, 2, 2].abs()  # hard assignment: a pose is a weight of 1
    counted = first[0.5].find(momentum.SideViews).share
    assert counted == pytest.approx(float((tilts < 0.5).float().mean()), abs=1e-6)

    method = momentum.with_momentum(plain, 0.5)
    second, _ = iterate(problem, method, first[0.5])
    gone_on, _ = iterate(problem, method, state_from_arrays(*state_to_arrays(first[0.5])))
    assert torch.equal(gone_on.references, second.references)
    still, _ = iterate(problem, momentum.with_momentum(plain, 0.0), first[0.5])
    expected = still.references + 0.5 * (first[0.5].references - state.references)
    assert torch.allclose(second.references, expected, atol=1e-5)
