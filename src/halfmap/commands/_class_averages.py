"""Which classes of a 2D classification are worth keeping: well resolved, and alike."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from halfmap.commands._summaries import angstrom, class_resolution, counted
from halfmap.errors import InputError
from halfmap.io.mrc import open_stack
from halfmap.io.star import read_star
from halfmap.io.table import Table

# Views of one molecule project the same mass: over directions their contrast and their extent
# differ by a factor that these bounds leave room for; ice, edges of carbon and what noise has made
# of few images lie outside. In deviations of the classes among each other, or in plain numbers
# where these agree to the letter.
_DEVIATIONS, _LEAST_LOG_CONTRAST, _LEAST_LOG_EXTENT = 4.0, 0.7, 0.3
_MAD_TO_DEVIATION = 1.4826  # of a normal distribution
# Of the mean class: halves of 2D classes share references, and a handful of images agrees on the
# noise that they were laid onto
_TINY = 0.1
_FEWEST_TO_COMPARE = 5  # classes among which one can be told to be unlike


@dataclass(frozen=True)
class ChosenClasses:
    """Numbers of the classes kept, and why others were not, by number."""

    kept: tuple[int, ...]
    dropped: dict[int, str]


def choose_resolved(folder: str | Path, *, within: float) -> ChosenClasses:
    """Classes whose estimated resolution is at most `within` times that of the class in which the
    median particle is, and whose average looks like those of the others: a class of junk may be as
    sharp as any, but its contrast or its extent are not those of a view of the molecule. Classes of
    fewer than a tenth of the images that the mean class has are dropped too.

    Raises:
        InputError: no `classes.star` in the folder, or another table in it.
    """
    table = _classes_table(folder)
    resolution, size = table.floats("rlnEstimatedResolution"), table.floats("halfmapClassSize")
    order = np.argsort(resolution, kind="stable")
    half = size.sum() / 2
    median = resolution[order][min(np.searchsorted(np.cumsum(size[order]), half), len(order) - 1)]
    dropped: dict[int, str] = {}
    filled = np.flatnonzero(size > 0)
    fewest = _TINY * size[filled].mean()
    for k in filled.tolist():
        if resolution[k] > within * median:
            dropped[k + 1] = (
                f"{class_resolution(resolution[k])}, the median particle has {angstrom(median)}"
            )
        elif size[k] < fewest:
            images, claimed = counted(int(size[k]), "image"), angstrom(resolution[k])
            dropped[k + 1] = (
                f"{images}, too few to believe its {claimed} (the mean class has "
                f"{size[filled].mean():.0f})"
            )
    sharp = [k for k in np.flatnonzero(size > 0).tolist() if k + 1 not in dropped]
    dropped |= _unlike(Path(folder), sharp, size)
    kept = tuple(k + 1 for k in sharp if k + 1 not in dropped)
    return ChosenClasses(kept, dict(sorted(dropped.items())))


def _classes_table(folder: str | Path) -> Table:
    path = Path(folder) / "classes.star"
    if not path.exists():
        raise InputError(
            f"{path}: no such file; --resolved-within wants the folder of a finished class2d"
        )
    blocks = read_star(path).blocks
    if "model_classes" not in blocks:
        raise InputError(
            f"{path}: expected a table data_model_classes, found {', '.join(blocks) or 'none'}"
        )
    return blocks["model_classes"]


def _unlike(folder: Path, classes: list[int], size: np.ndarray) -> dict[int, str]:
    """Of the classes (from 0), those whose average is unlike the others', and in what."""
    stack = folder / "classes.mrcs"
    if len(classes) < _FEWEST_TO_COMPARE or not stack.exists():
        return {}
    images = open_stack(stack).read(np.array(classes))
    measures = {
        "contrast": (_log_contrast(images), _LEAST_LOG_CONTRAST),
        "extent": (_log_extent(images), _LEAST_LOG_EXTENT),
    }
    unlike: dict[int, str] = {}
    for name, (value, least) in measures.items():
        middle = _weighted_median(value, size[classes])
        spread = _weighted_median(np.abs(value - middle), size[classes])
        limit = max(_DEVIATIONS * _MAD_TO_DEVIATION * spread, least)
        for k, one in zip(classes, value, strict=True):
            if abs(one - middle) > limit:
                unlike[k + 1] = f"{name} {np.exp(one - middle):.2g} times that of the others"
    return unlike


def _log_contrast(images: np.ndarray) -> np.ndarray:
    """Logarithm of the standard deviation of each image."""
    return np.log(np.maximum(images.std(axis=(1, 2)), 1e-30))


def _log_extent(images: np.ndarray) -> np.ndarray:
    """Logarithm of the radius of gyration of each image's squared density, about its own centre."""
    power = np.square(images - np.median(images, axis=(1, 2), keepdims=True))
    weight = power / np.maximum(power.sum(axis=(1, 2), keepdims=True), 1e-30)
    axis = np.arange(images.shape[-1]) - images.shape[-1] // 2
    y, x = np.meshgrid(axis, axis, indexing="ij")
    moments = [(weight * one).sum(axis=(1, 2)) for one in (x, y, x**2 + y**2)]
    squared = moments[2] - moments[0] ** 2 - moments[1] ** 2
    return 0.5 * np.log(np.maximum(squared, 1e-30))


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])
