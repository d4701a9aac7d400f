"""Imports point downwards only: each line below may import from the lines under it and from its
own, `|` parts not from each other."""

import ast
from pathlib import Path

import halfmap

# the order of docs/architecture.md, top to bottom; a folder stands for all files in it
LAYERS = """
cli | pages
commands
methods
pose_search
engine
reports
workspace | plots
simulation restoration alignment symmetry_search asymmetry grey_scale signal_subtraction postprocessing
orientation_diagnostics local_resolution local_regularisation
likelihood | reconstruction
resolution mask_making fsc_files
symmetrisation
projection kernels gridding
particles particle_fields
transfer_function masks so3 symmetries fourier resizing resampling image_grids stored_grids
distributed
io | options
ctf_parameters
arrays
errors
"""
# what computes never knows of folders, pictures and jobs
PURE, NEVER = ("engine", "pose_search", "methods"), ("workspace", "plots", "reports", "commands")
PACKAGE = Path(halfmap.__file__).parent
RANK = {
    room: (depth, part)
    for depth, line in enumerate(LAYERS.split("\n"))
    for part, rooms in enumerate(line.split("|"))
    for room in rooms.split()
}


def room_of(module: str) -> str:
    """`halfmap.io.star` lies in room `io`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, lazy imports in functions too; those for type
    checking alone do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    idle = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if node in idle:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f"{path}: line {node.lineno}: write the import in full, from halfmap..."
            )
            found |= (
                {node.module}
                if node.module != "halfmap"
                else {f"halfmap.{alias.name}" for alias in node.names}
            )
    return {name for name in found if name and name.split(".")[0] == "halfmap"}


def breaches(source: str, imported: set[str]) -> list[str]:
    """What room `source` imports against the order."""
    rank, part = RANK[source]
    wrong = []
    for room in sorted({room_of(module) for module in imported} & RANK.keys()):
        depth, other = RANK[room]
        impure = source in PURE and room in NEVER
        if impure or depth < rank or (depth == rank and other != part):
            wrong.append(room)
    return wrong


def test_imports_point_downwards() -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE)
        if inside.name == "__init__.py" and len(inside.parts) == 1:
            continue  # resolves public names lazily, from anywhere
        room = inside.parts[0].removesuffix(".py")
        assert room in RANK, f"give {room} a line in LAYERS and in docs/architecture.md"
        wrong += [f"{inside} imports {other}" for other in breaches(room, imports(path))]
    assert not wrong


def test_the_order_forbids_what_it_should() -> None:
    assert breaches("likelihood", {"halfmap.reconstruction"}) == ["reconstruction"]
    assert breaches("reconstruction", {"halfmap.likelihood"}) == ["likelihood"]
    assert breaches("io", {"halfmap.particles"}) == ["particles"]
    assert breaches("engine", {"halfmap.workspace.job", "halfmap.errors"}) == ["workspace"]
    assert breaches("methods", {"halfmap.plots.tiles"}) == ["plots"]
    assert breaches("commands", {"halfmap.cli.main"}) == ["cli"]
