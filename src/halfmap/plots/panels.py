"""Figures for scripts and pages: images side by side, a posterior on the sphere. Jobs draw theirs
without matplotlib where they draw in every iteration (`tiles`, `posterior`)."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike

from halfmap.errors import InputError
from halfmap.so3 import direction_pixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANEL_INCHES = 1.9


def show_images(
    images: Sequence[ArrayLike | None],
    titles: Sequence[str] = (),
    *,
    columns: int = 0,
    same_grey: bool = False,
    title: str = "",
    pixel_size_angstrom: float | None = None,
) -> "Figure":
    """Images (N, N) in rows of `columns` (all in one row if 0), y upwards, the centre at N // 2.

    Grey runs from the 0.5 to the 99.5 percentile of each image, or of all together with
    `same_grey`. An image of which nothing is drawn may be given as None. With a pixel size the
    first image gets a bar of a round length in Angstrom.

    >>> figure = show_images([np.eye(8), np.ones((8, 8))], ["one", "two"], pixel_size_angstrom=5.0)
    >>> [panel.get_title() for panel in figure.axes]
    ['one', 'two']

    Raises:
        InputError: more titles than images.
    """
    import matplotlib.pyplot as plt

    if len(titles) > len(images):
        raise InputError(f"titles: expected at most {len(images)}, got {len(titles)}")
    arrays = [None if image is None else np.asarray(image, dtype=float) for image in images]
    columns = columns or len(arrays)
    rows = math.ceil(len(arrays) / columns)
    size = (_PANEL_INCHES * columns, (_PANEL_INCHES + 0.25) * rows + (0.3 if title else 0))
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    there = [array for array in arrays if array is not None]
    shared = np.percentile(np.stack(there), (0.5, 99.5)) if same_grey else None
    for panel in axes.flat:
        panel.set_axis_off()
    for n, (panel, array) in enumerate(zip(axes.flat, arrays, strict=False)):
        if array is None:
            continue
        low, high = np.percentile(array, (0.5, 99.5)) if shared is None else shared
        panel.imshow(array, cmap="gray", vmin=low, vmax=high, origin="lower")
        if n < len(titles):
            panel.set_title(titles[n], fontsize=10)
    if pixel_size_angstrom is not None:
        _scale_bar(axes.flat[0], there[0].shape[-1], pixel_size_angstrom)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _scale_bar(panel: "Axes", box: int, pixel_size_angstrom: float) -> None:
    """A bar of 1, 2 or 5 times a power of ten, at most a third of the box, in the lower corner."""
    from matplotlib.patheffects import withStroke

    third = box * pixel_size_angstrom / 3
    power = 10.0 ** math.floor(math.log10(third))
    length = power * max(n for n in (1, 2, 5) if n * power <= third)
    left, low, pixels = 0.06 * box, 0.06 * box, length / pixel_size_angstrom
    outline = [withStroke(linewidth=3, foreground="black")]
    panel.plot([left, left + pixels], [low, low], color="white", lw=2, path_effects=outline)
    panel.text(
        left + pixels / 2, 1.5 * low, f"{length:g} Å", color="white", fontsize=8, ha="center",
        va="bottom", path_effects=outline,
    )  # fmt: skip


def draw_directions(axes: "Axes", probability: ArrayLike, *, order: int) -> None:
    """A posterior over the D = 12 4^order viewing directions (`direction_posterior`) on Mollweide
    axes (`subplot_kw={"projection": "mollweide"}`): the share of each direction's pixel, from 0 to
    the largest, its root as brightness.

    >>> import matplotlib.pyplot as plt
    >>> axes = plt.figure().add_subplot(projection="mollweide")
    >>> draw_directions(axes, np.arange(48.0), order=1)

    Raises:
        InputError: another number of directions.
    """
    from matplotlib.colors import PowerNorm

    values = np.asarray(probability, dtype=float)
    if values.shape != (12 * 4**order,):
        raise InputError(f"probability: expected {12 * 4**order} directions, got {values.shape}")
    longitude = np.linspace(-np.pi, np.pi, 361)
    latitude = np.linspace(-np.pi / 2, np.pi / 2, 181)
    lon, lat = np.meshgrid((longitude[1:] + longitude[:-1]) / 2, (latitude[1:] + latitude[:-1]) / 2)
    views = np.zeros((*lon.shape, 3, 3))
    views[..., 2, :] = np.stack(
        [np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], -1
    )
    views[..., 0, :] = np.stack([-np.sin(lon), np.cos(lon), np.zeros_like(lon)], -1)
    views[..., 1, :] = np.cross(views[..., 2, :], views[..., 0, :])
    pixels = direction_pixels(torch.from_numpy(views), order).numpy()
    norm = PowerNorm(0.5, vmin=0.0)  # a diffuse posterior beside a peak would be black
    axes.pcolormesh(longitude, latitude, values[pixels], cmap="magma", norm=norm, rasterized=True)
    axes.set_xticks([])
    axes.set_yticks([])


@dataclass(frozen=True)
class Slider:
    """Figures with a slider that goes through them: a page or a notebook shows it by itself, with
    the pictures inside and nothing fetched. Without a browser's help the first one is seen.

    Raises:
        InputError: not one label per figure, or none at all.
    """

    figures: Sequence["Figure"]
    labels: Sequence[str]

    def __post_init__(self) -> None:
        if not self.figures or len(self.labels) != len(self.figures):
            raise InputError(
                f"labels: expected one for each of at least one figure, got {len(self.labels)} for "
                f"{len(self.figures)}"
            )

    def _repr_html_(self) -> str:
        pictures: list[str] = []
        for figure, label in zip(self.figures, self.labels, strict=True):
            file = io.BytesIO()
            figure.savefig(file, format="png", dpi=90)
            data = base64.b64encode(file.getvalue()).decode()
            hidden = "" if not pictures else ' style="display:none"'
            pictures.append(f'<img alt="{label}" src="data:image/png;base64,{data}"{hidden}>')
        script = (
            "var all=this.parentNode.querySelectorAll('img');"
            "for(var n=0;n<all.length;n++)all[n].style.display=n==this.value?'':'none';"
        )
        last = len(self.figures) - 1
        slider = f'<input type="range" min="0" max="{last}" value="0" step="1" style="width:90%"'
        return f'<div class="slider">{slider} oninput="{script}">{"".join(pictures)}</div>'
