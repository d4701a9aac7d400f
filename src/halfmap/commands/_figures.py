"""What jobs found as figures for their pages and reports: numbers, which a browser draws."""

import numpy as np
from jaxtyping import Float

from halfmap.orientation_diagnostics import THRESHOLD, ConicalFsc
from halfmap.postprocessing import Sharpened
from halfmap.workspace.figures import Figure

_BINS = 40
_BEYOND = 1.3  # times the squared frequency of the low-pass, up to which amplitudes are shown


def guinier_figure(sharpened: Sharpened) -> Figure:
    """ln of the mean amplitude against s^2, before and after, with the line that was fitted."""
    plot = sharpened.guinier
    x = plot.squared_frequency.numpy()
    shown = (x > 0) & (x <= _BEYOND / sharpened.lowpass_angstrom**2)
    curves = {
        "averaged half maps": plot.original,
        "divided by the MTF": plot.over_mtf,
        "weighted by the FSC": plot.weighted,
        f"sharpened, B = {sharpened.b_factor:.0f} Å²": plot.sharpened,
    }
    told = {name: one.numpy()[shown].tolist() for name, one in curves.items() if one is not None}
    if plot.slope is not None and plot.intercept is not None and plot.fitted_angstrom is not None:
        low, high = sorted(one**-2.0 for one in plot.fitted_angstrom)
        line = plot.intercept + plot.slope * x[shown]
        fitted = (x[shown] >= low) & (x[shown] <= high)
        told["line fitted"] = np.where(fitted, line, np.nan).tolist()
    return Figure(
        f"Guinier plot, B-factor {sharpened.b_factor:.0f} Å²",
        "resolution (Å)",
        "ln of the mean amplitude",
        x[shown].tolist(),
        told,
        x_kind="squared",
    )


def cones_figure(cones: ConicalFsc) -> Figure:
    """FSC in cones: their mean, the cones of the smallest and the largest area, and the range of
    nine tenths of them."""
    curves = cones.curves.numpy()
    low, high = np.quantile(curves, [0.05, 0.95], axis=0)
    told = {
        "mean of the cones": curves.mean(0),
        "worst cone": curves[int(cones.areas.argmin())],
        "best cone": curves[int(cones.areas.argmax())],
        "nine tenths lie above": low,
        "nine tenths lie below": high,
    }
    return Figure(
        f"FSC in cones of 20°, cFAR {cones.cfar:.2f}",
        "resolution (Å)",
        "Fourier shell correlation",
        cones.whole.frequency_per_angstrom.numpy()[: curves.shape[1]].tolist(),
        {name: one.tolist() for name, one in told.items()},
        x_kind="resolution",
        lines={"0.143": THRESHOLD},
    )


def counts_figure(
    title: str, label: str, counted: str, values: Float[np.ndarray, " n"], *, inside: float = 1.0
) -> Figure:
    """How many of the values lie where, in 40 bins over the middle share `inside` of them."""
    tail = (1 - inside) / 2
    values = np.asarray(values, np.float64)
    low, high = (float(v) for v in np.quantile(values, [tail, 1 - tail]))
    if high - low < 1e-3 * abs(high):  # all alike: one bin among empty ones
        low, high = low - 0.01 * abs(low), high + 0.01 * abs(high)
    counts, edges = np.histogram(values, bins=_BINS, range=(low, high if high > low else low + 1))
    # a bin more, of none, closes the last step
    return Figure(
        title, label, counted, edges.tolist(), {counted: [*counts.tolist(), 0]}, kind="bins"
    )
