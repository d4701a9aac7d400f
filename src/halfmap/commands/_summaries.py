"""What a job says: a line for each iteration, and the last line, what was reached and where."""

import math
from collections.abc import Sequence
from pathlib import Path

from halfmap.engine.problem import Problem
from halfmap.engine.state import IterationRecord

OPTIMISTIC = "optimistic: halves share references"
UNRESOLVED = 999.0  # Angstrom, RELION's word for no resolution in a table
_LISTED = 6  # classes whose numbers are told one by one; of more the range


def map_name(k: int, n_classes: int) -> str:
    """What the files of map k are called: `map`, or with several classes `class001` ..."""
    return "map" if n_classes == 1 else f"class{k + 1:03d}"


def angstrom(resolution: float) -> str:
    """`12.8 A`, `3.42 A`, or `none`: infinity is a curve that begins below the threshold."""
    if not math.isfinite(resolution):
        return "none"
    return f"{resolution:.{1 if resolution >= 5 else 2}f} A"


def resolved(resolution: float) -> str:
    """`9.81 A`, or that there is none."""
    return angstrom(resolution) if math.isfinite(resolution) else "no resolution"


def class_in_words(number: int, size: int, total: int, resolution: float | None = None) -> str:
    """A class by its number, how many of all images are in it, and how well it is resolved:
    `12 · 33 images (2.2 %) · 9.8 A`, `20 · 1 image (0.1 %) · not resolved`."""
    words = f"{number} · {counted(size, 'image')} ({100 * size / max(1, total):.1f} %)"
    return words if resolution is None else f"{words} · {class_resolution(resolution)}"


def class_resolution(resolution: float) -> str:
    """`9.8 A`, or `not resolved`: infinity, and what a table writes for it."""
    return angstrom(resolution) if resolution < UNRESOLVED else "not resolved"


def counted(number: int, what: str) -> str:
    """`1,249 particles`, `1 particle`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def class_sizes_in_words(sizes: Sequence[int], *, in_order: bool = True) -> str:
    """`sizes 812, 655, 33`; of many classes `sizes 3 to 91`. Class images have no order before the
    end: `in_order` is then False and the largest comes first."""
    if len(sizes) > _LISTED:
        return f"sizes {min(sizes)} to {max(sizes)}"
    shown = sizes if in_order else sorted(sizes, reverse=True)
    return f"sizes {', '.join(map(str, shown))}"


def largest_classes(sizes: Sequence[int]) -> str:
    """`the largest of 120, 98, 87`."""
    return f"the largest of {', '.join(map(str, sorted(sizes, reverse=True)[:3]))}"


def reached(record: IterationRecord, problem: Problem) -> str:
    """What an iteration reached, in a few words: the resolution and whose it is, or the limit up to
    which images were scored."""
    resolutions = record.resolutions_angstrom
    if not resolutions:
        return f"scored to {angstrom(record.scored_to_angstrom)}"
    if len(resolutions) == 1:
        return f"resolution {angstrom(resolutions[0])}"
    best = min(range(len(resolutions)), key=lambda k: resolutions[k])
    if problem.dimensions == 2:  # class images have no numbers before they are sorted, at the end
        return f"best of {len(resolutions)} classes {angstrom(resolutions[best])} (FRC 0.5)"
    name = map_name(best, len(resolutions))
    return f"best of {len(resolutions)} classes: {name} {angstrom(resolutions[best])}"


def iteration_in_words(
    record: IterationRecord, problem: Problem, cost_ms: float, *, outliers: int = 0
) -> str:
    """The line of an iteration."""
    words = [reached(record, problem)]
    if problem.matched_to == "other":
        words[0] += f" ({OPTIMISTIC})"
    if len(record.class_sizes) > 1:
        words.append(class_sizes_in_words(record.class_sizes, in_order=problem.dimensions == 3))
    if record.iteration > 1:
        turned, shifted = record.angular_change_deg, record.shift_change_angstrom
        words.append(f"poses moved {turned:.2f} deg and {shifted:.2f} A (median)")
    words.append(f"{record.mean_significant:.1f} poses and {cost_ms:.2f} ms an image")
    if outliers:
        words.append(f"{outliers} noise outlier{'s' * (outliers > 1)}")
    if empty := record.empty_classes:
        words.append(f"{empty} empty class{'es' * (empty > 1)} reseeded")
    return ", ".join(words)


def ending(iterations: int, *, converged: bool) -> str:
    """How the iterations ended."""
    n = counted(iterations, "iteration")
    return f"converged after {n}" if converged else f"stopped at the limit of {n}"


def mask_in_words(problem: Problem, mask: str | Path | None) -> str:
    """In what the resolution was measured: `sphere of 190 A`, or the name of the mask's file."""
    if mask is not None:
        return f"mask {Path(mask).name}"
    diameter = 2 * problem.specimen.radius_px * problem.particles.pixel_size_angstrom
    return f"sphere of {diameter:.0f} A"


def where(path: Path) -> str:
    """A path, relative to the folder that the user is in if it lies there."""
    here = Path.cwd()
    whole = path.absolute()
    return str(whole.relative_to(here)) if whole.is_relative_to(here) else str(whole)
