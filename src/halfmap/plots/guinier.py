"""The Guinier plot: how amplitudes fall with resolution, and the line that gives the B-factor."""

from pathlib import Path

import numpy as np

from halfmap.plots.curves import COLOURS, DPI
from halfmap.postprocessing import Sharpened


def save_guinier_plot(
    path: str | Path, sharpened: Sharpened, *, given: bool = False, title: str = ""
) -> None:
    """`ln <|F|>` against s^2, of the map as it is, weighted, and sharpened; the fitted line over
    the range that it was fitted to. `given`: the B-factor was not fitted."""
    from matplotlib.figure import Figure

    plot = sharpened.guinier
    x = plot.squared_frequency.numpy()
    figure = Figure(figsize=(7, 5), facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    curves = {
        "averaged half maps": plot.original,
        "divided by the MTF": plot.over_mtf,
        "weighted by the FSC": plot.weighted,
        f"sharpened with B = {sharpened.b_factor:.1f} Å²": plot.sharpened,
    }
    for number, (label, values) in enumerate(curves.items()):
        if values is not None:
            axes.plot(x[1:], values.numpy()[1:], color=COLOURS[number], linewidth=1.5, label=label)
    if plot.slope is not None and plot.intercept is not None and plot.fitted_angstrom is not None:
        first, last = plot.fitted_angstrom
        ends = np.array([first**-2.0, last**-2.0])
        axes.axvspan(*ends, color="0.93", zorder=0)
        axes.plot(
            ends,
            plot.intercept + plot.slope * ends,
            "--",
            color="black",
            linewidth=1.4,
            label=f"line fitted from {first:.3g} to {last:.3g} Å: 4 × slope = "
            f"{4 * plot.slope:.1f} Å²",
        )
    within = x <= 1.3 / sharpened.lowpass_angstrom**2
    shown = [values.numpy()[within & (x > 0)] for values in curves.values() if values is not None]
    finite = np.concatenate([one[np.isfinite(one)] for one in shown])
    low, high = finite.min(), finite.max()
    axes.axvline(sharpened.lowpass_angstrom**-2.0, color="0.45", linewidth=0.8, linestyle=":")
    axes.text(
        sharpened.lowpass_angstrom**-2.0,
        0.98,
        f" low-pass {sharpened.lowpass_angstrom:.3g} Å",
        transform=axes.get_xaxis_transform(),
        va="top",
        fontsize=8,
    )
    axes.set(
        xlim=(0, max(x[within][-1], x[min(2, len(x) - 1)])),
        ylim=(low - 0.05 * (high - low), high + 0.05 * (high - low)),
        xlabel="squared spatial frequency (1/Å²)",
        ylabel="ln of the mean amplitude",
    )
    ticks = [
        one
        for one in (20, 10, 8, 7, 6, 5, 4.5, 4, 3.5, 3.2, 3, 2.8, 2.6, 2.4, 2.2, 2, 1.8, 1.6, 1.5)
        if one**-2.0 <= axes.get_xlim()[1]
    ]
    apart: list[float] = []
    for one in ticks:
        if not apart or one**-2.0 - apart[-1] ** -2.0 > 0.06 * axes.get_xlim()[1]:
            apart.append(one)
    top = axes.secondary_xaxis("top")
    top.set_xticks([one**-2.0 for one in apart], [f"{one:g}" for one in apart])
    top.set_xlabel("resolution (Å)")
    how = "given" if given else ("fitted" if plot.slope is not None else "not fitted")
    figure.suptitle(f"{title or 'Guinier plot'}, B-factor {how}", fontsize=11)
    figure.legend(loc="outside lower center", fontsize=8.5, frameon=False, ncols=1)
    figure.savefig(path, dpi=DPI)
