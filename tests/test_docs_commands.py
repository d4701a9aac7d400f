"""Every command and Python block of README and docs is run, in order, at a small size; several
processes (torchrun) are `test_many_processes`, the web server `tests/web`."""

import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import halfmap
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
    "--downsample": "24",
    "--split": "100",
    "--lowpass": "20",
    "--where": "rlnDefocusU < 60000",
}
ITERATING = ("class2d", "class3d", "abinitio", "refine")
NOT_HERE = ("web",)
FLOWS = (
    "first_map.md",
    "README.md",
    "from_cryosparc.md",
    "restore.md",
    "maps_and_particles.md",
    "many_machines.md",
)


def smaller(words: list[str]) -> list[str]:
    """The same command on few images and in few iterations."""
    out = [SMALLER.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    if words[0] == "select" and "--classes" in words:  # from two classes, both
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


def prepare_maps(folder: Path) -> None:
    """What the page on maps and particle files takes as given: maps, a mask of one part, sets."""
    refined = folder / "refined"
    for name in ("map", "half1", "half2", "mask"):
        shutil.copy(refined / f"{name}.mrc", folder / f"{name}.mrc")
    for name, made in (("other", "half2"), ("state1", "half1"), ("state2", "half2")):
        shutil.copy(folder / f"{made}.mrc", folder / f"{name}.mrc")
    volume, pixel_size_angstrom = halfmap.read_map(folder / "mask.mrc")
    volume[: len(volume) // 2] = 0  # the upper half
    halfmap.write_map(folder / "part.mrc", volume, pixel_size_angstrom)
    shutil.copy(folder / "sim" / "truth.star", folder / "session1.star")
    for made in folder.glob("good*"):  # another page has written it
        made.unlink()
    run(["convert", "sim/truth.star", "session2.cs"])


def run(words: list[str]) -> None:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, f"halfmap {' '.join(words)}: {result.output} {result.exception}"


def test_every_page_with_commands_is_run() -> None:
    pages = {path.name for path in PROSE for words in _commands(path) if words[0] not in NOT_HERE}
    assert pages <= set(FLOWS)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_commands_and_python_of_the_documentation_run(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in FLOWS:
        page = ROOT / name if name == "README.md" else ROOT / "docs" / name
        if name == "restore.md":
            (tmp_path / "class2d").symlink_to(tmp_path / "classes")
        if name == "maps_and_particles.md":
            prepare_maps(tmp_path)
        for words in _commands(page):
            if words[0] == "convert":  # particles.star is there already
                words = [*words, "--overwrite"]
            if "part_refined/particles.star" in words:
                (tmp_path / "part_refined").mkdir()
                shutil.copy(tmp_path / "part.star", tmp_path / "part_refined" / "particles.star")
                shutil.copy(tmp_path / "part.mrcs", tmp_path / "part_refined")
            if words[0] not in NOT_HERE:
                run(smaller(words))
        if name == FLOWS[0]:
            prepare(tmp_path)
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            exec(f"import dataclasses\nimport halfmap\n{block}", {})
