"""Local resolution: coloured central slices and a histogram."""

from pathlib import Path

import numpy as np
from jaxtyping import Float

from halfmap.plots.curves import DPI

_DARKEST = 0.4  # of a colour, where the map is dark
_SHOWN = 0.3  # of the mask: what is coloured and counted


def save_local_resolution_plot(
    path: str | Path,
    density: Float[np.ndarray, "N N N"],
    resolution_angstrom: Float[np.ndarray, "N N N"],
    mask: Float[np.ndarray, "N N N"],
    *,
    title: str = "",
) -> None:
    """Three central slices of the map, coloured by local resolution inside the mask, and how many
    voxels have which."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.figure import Figure

    inside = mask > _SHOWN
    values = resolution_angstrom[inside]
    low, high = (float(value) for value in np.quantile(values, [0.02, 0.98]))
    high = max(high, low + 0.1)
    figure = Figure(figsize=(13, 4.2), facecolor="white", layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=[1, 1, 1, 1.1])
    middle = len(density) // 2
    darkest, brightest = np.quantile(density[inside], [0.02, 0.98])
    brightest = max(brightest, darkest + 1e-12)
    # blue is fine, red is coarse, as in ChimeraX and RELION's pages; colour-blind people tell these
    # apart (Brewer's RdYlBu; its ends are too dark to be shaded)
    chosen = colormaps["RdYlBu_r"](np.linspace(0.1, 0.9, 9))
    colours = LinearSegmentedColormap.from_list("fine to coarse", chosen)
    for number, name in enumerate(("z", "y", "x")):
        grey, colour, within = (
            np.take(one, middle, axis=number) for one in (density, resolution_angstrom, inside)
        )
        lit = ((grey - darkest) / (brightest - darkest)).clip(0, 1)[..., None]
        hue = colours((colour - low) / (high - low))[..., :3]
        # inside the mask the map's grey is the brightness of the colour, so that both are seen
        axes[number].imshow(
            np.where(within[..., None], hue * (_DARKEST + (1 - _DARKEST) * lit), 0.8 * lit),
            origin="lower",
        )
        axes[number].set_title(f"central slice, {name} = 0", fontsize=10)
        axes[number].set_axis_off()
    scale = ScalarMappable(Normalize(low, high), colours)
    figure.colorbar(scale, ax=axes[:3], shrink=0.7, label="local resolution (Å)")
    axes[3].hist(values, bins=40, range=(low, high), color="#1b4f9c")
    axes[3].axvline(float(np.median(values)), color="black", linewidth=1, linestyle="--")
    axes[3].set(xlabel="local resolution (Å)", ylabel="voxels inside the mask")
    axes[3].set_title(f"median {float(np.median(values)):.2f} Å", fontsize=10)
    if title:
        figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=DPI)
