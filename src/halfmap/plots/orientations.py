"""From where the particles were seen: the distribution of viewing directions over the sphere."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike

from halfmap.orientation_diagnostics import fourier_sampling
from halfmap.plots.curves import DPI

if TYPE_CHECKING:
    from astropy_healpix import HEALPix


def save_orientation_plot(
    path: str | Path,
    rotations_deg: ArrayLike,
    *,
    symmetry: ArrayLike | None = None,
    title: str = "",
) -> None:
    """Density of viewing directions over the sphere on a logarithmic scale, in Mollweide's
    equal-area projection: longitude rot, latitude 90 - tilt; cells without a particle are grey. The
    title says how even they are (SCF* of `fourier_sampling`) and how full the fullest cell is.

    `rotations_deg` (n, 3) are rot, tilt, psi; the viewing direction in the object is `(sin tilt cos
    rot, sin tilt sin rot, cos tilt)`. `symmetry` (G, 3, 3) are the matrices of a point group: each
    particle then counts in all its G equivalent directions. Cells are HEALPix pixels of equal area,
    their number chosen so that a uniform distribution has some ten particles in each.
    """
    from astropy_healpix import HEALPix
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    rot, tilt = np.radians(np.asarray(rotations_deg, dtype=np.float64)[:, :2].T)
    directions = np.stack(
        [np.sin(tilt) * np.cos(rot), np.sin(tilt) * np.sin(rot), np.cos(tilt)], axis=-1
    )
    if symmetry is not None:
        directions = np.einsum(
            "gij,nj->gni", np.asarray(symmetry, dtype=np.float64), directions
        ).reshape(-1, 3)
    n_side = 2 ** int(np.clip(round(math.log2(max(1.0, len(directions) / 120)) / 2), 1, 4))
    cells = HEALPix(nside=n_side, order="ring")
    longitude, latitude = (
        np.arctan2(directions[:, 1], directions[:, 0]),
        np.arcsin(directions[:, 2].clip(-1, 1)),
    )
    counts = np.bincount(_cell(cells, longitude, latitude), minlength=cells.npix)
    edges_longitude, edges_latitude = (
        np.linspace(-np.pi, np.pi, 721),
        np.linspace(-np.pi / 2, np.pi / 2, 361),
    )
    middle = [(edges[1:] + edges[:-1]) / 2 for edges in (edges_longitude, edges_latitude)]
    grid_longitude, grid_latitude = np.meshgrid(*middle)
    density = counts[_cell(cells, grid_longitude.ravel(), grid_latitude.ravel())].reshape(
        grid_longitude.shape
    )
    figure = Figure(figsize=(7.5, 4.6), facecolor="white", layout="constrained")
    axes = figure.add_subplot(projection="mollweide")
    mesh = axes.pcolormesh(
        edges_longitude,
        edges_latitude,
        np.ma.masked_less(density, 1),
        cmap="viridis",
        norm=LogNorm(1, max(2, int(counts.max()))),
        rasterized=True,
    )
    axes.set_facecolor("0.85")
    axes.grid(color="white", alpha=0.25, linewidth=0.6)
    axes.set_xticks(np.radians([-120, -60, 0, 60, 120]))
    axes.set_yticks(np.radians([-60, -30, 0, 30, 60]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{math.degrees(value):.0f}°"))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{90 - math.degrees(value):.0f}°")
    )
    axes.tick_params(axis="x", labelcolor="white", labelsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.set(xlabel="rot", ylabel="tilt")
    label = "particles in a cell of equal area" + (
        "" if symmetry is None else ", with symmetry mates"
    )
    figure.colorbar(
        mesh,
        ax=axes,
        orientation="horizontal",
        shrink=0.6,
        aspect=30,
        label=label,
        ticks=LogLocator(subs=(1, 2, 5)),
        format="{x:g}",
    ).ax.xaxis.set_minor_locator(NullLocator())
    words = evenness_in_words(directions, counts)
    figure.suptitle(
        f"{title}{': ' if title else ''}{len(rot):,} viewing directions; {words}", fontsize=10
    )
    figure.savefig(path, dpi=DPI)


def evenness_in_words(directions: np.ndarray, counts: np.ndarray) -> str:
    """`SCF* 0.93 (1 is even), fullest cell 2.1 times the mean, 3 % of cells without a particle`,
    from directions (m, 3) and how many of them are in each cell (C,)."""
    scf_star = fourier_sampling(torch.from_numpy(directions)).scf_star
    fullest, empty = counts.max() / counts.mean(), float((counts == 0).mean())
    words = f"SCF* {scf_star:.2f} (1 is even), fullest cell {fullest:.2g} times the mean"
    return words + (f", {100 * empty:.0f} % of cells without a particle" if empty > 0.005 else "")


def _cell(cells: "HEALPix", longitude: np.ndarray, latitude: np.ndarray) -> np.ndarray:
    from astropy import units

    return cells.lonlat_to_healpix(longitude * units.rad, latitude * units.rad)
