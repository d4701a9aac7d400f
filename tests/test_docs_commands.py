"""Every command and Python block of README and docs is run, in order, at a small size; several
processes (torchrun) are `test_many_processes`, the web server `tests/web`."""

import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from halfmap.cli.main import app
from test_docs import PROSE, ROOT, _commands

# what makes an example small: this word after this option
SMALLER = {
    "--n": "240",
    "--box": "32",
    "--pixel-size": "6",
    "--snr": "0.5",
    "--classes": "2",
    "--class": "1",
    "--iterations": "2",
    "--runs": "1",
}
ITERATING = ("class2d", "class3d", "abinitio", "refine")
NOT_HERE = ("web",)
FLOWS = ("first_map.md", "README.md", "from_cryosparc.md", "restore.md", "many_machines.md")
# a page of single commands on files of several jobs, each run by the tests of its command
BY_THEIR_OWN_TESTS = {"maps_and_particles.md"}


def smaller(words: list[str]) -> list[str]:
    """The same command on few images and in few iterations."""
    out = [SMALLER.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    if words[0] == "select":  # from two classes, both
        out[out.index("--classes") + 1] = "1-2" if "," in " ".join(words) else "1"
    if words[0] in ITERATING:
        out += [] if "--iterations" in out else ["--iterations", "2"]
        out += ["--angular-step", "15"] if words[0] in ("class3d", "refine") else []
        out += (
            ["--diameter", "160"]
            if words[0] in ("class2d", "abinitio") and "--diameter" not in out
            else []
        )
        out += ["--overwrite", "--quiet"]
    return [*out, "--overwrite"] if words[0] == "simulate" else out


def prepare(folder: Path) -> None:
    """What examples take as given: particles.star, p.star, start.mrc, a file of cryoSPARC's."""
    shutil.copy(folder / "sim" / "particles.mrcs", folder)
    for name in ("particles.star", "p.star"):
        shutil.copy(folder / "sim" / "particles.star", folder / name)
    shutil.copy(folder / "initial" / "map.mrc", folder / "start.mrc")
    run(["convert", "sim/particles.star", "cryosparc_P1_J42_particles.cs"])


def run(words: list[str]) -> None:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, f"halfmap {' '.join(words)}: {result.output} {result.exception}"


def test_every_page_with_commands_is_run() -> None:
    pages = {path.name for path in PROSE for words in _commands(path) if words[0] not in NOT_HERE}
    assert pages <= {*FLOWS, *BY_THEIR_OWN_TESTS}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_commands_and_python_of_the_documentation_run(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in FLOWS:
        page = ROOT / name if name == "README.md" else ROOT / "docs" / name
        if name == "restore.md":
            (tmp_path / "class2d").symlink_to(tmp_path / "classes")
        for words in _commands(page):
            if words[0] == "convert":  # particles.star is there already
                words = [*words, "--overwrite"]
            if words[0] not in NOT_HERE:
                run(smaller(words))
        if name == FLOWS[0]:
            prepare(tmp_path)
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            exec(f"import dataclasses\nimport halfmap\n{block}", {})
