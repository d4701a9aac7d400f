"""Pages are read in the repository too, where they link to files beside docs/: on the site these
links lead to the page that shows the file, and CONTRIBUTING.md is a page itself."""

from pathlib import Path

from sphinx.application import Sphinx

PAGES = {"../CONTRIBUTING.md": "contributing.md", "../README.md": "index.md"}


def _rewrite(app: Sphinx, name: str, source: list[str]) -> None:
    if name == "contributing":
        text = (Path(app.srcdir).parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
        source[0] = text.replace("](docs/", "](")
        return
    if name == "index":
        source[0] += _others(Path(app.srcdir), source[0])
    depth = "../" * name.count("/")
    for outside, page in PAGES.items():
        source[0] = source[0].replace(f"]({depth}{outside}", f"]({depth}{page}")


def _others(docs: Path, index: str) -> str:
    """A table of contents of the pages that the index does not name."""
    named = index.split()
    names = [page.stem for page in sorted(docs.glob("*.md")) if page.stem not in named]
    others = [name for name in names if name != "index"]
    return "\n".join(["\n```{toctree}", ":caption: More", "", *others, "```", ""]) if others else ""


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", _rewrite)
    return {"parallel_read_safe": True}
