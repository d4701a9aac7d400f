"""From two half maps to a sharpened map: the B-factor by a Guinier fit, FSC weighting, the
detector's MTF, a low-pass at the resolution.

`M(k) = (A1 + A2)(k) / 2 * w(s) / mtf(s) * exp(-B s^2 / 4) * lowpass(s)`,
`w = sqrt(2 FSC / (1 + FSC))`; with a fitted B < 0 amplitudes rise.

Source: Rosenthal and Henderson 2003, J. Mol. Biol. 333, 721.
"""

from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.arrays import takes_arrays
from halfmap.errors import InputError
from halfmap.fourier import filter_shells
from halfmap.fsc_files import fsc_table
from halfmap.io.star import read_star, write_star
from halfmap.io.table import Table
from halfmap.resolution import Curve, HalfMapCurves, resolution_at, shell_means

# Below 10 A the Guinier plot of a protein is a line: what is coarser shows shape and solvent, not
# the decay of atoms (Rosenthal and Henderson 2003); RELION's default
FIT_FROM_ANGSTROM = 10.0
FEWEST_SHELLS = 5  # that a line is fitted to: below, chance gives the slope
LOWPASS_EDGE_SHELLS = 2.0  # raised cosine around the resolution, RELION's default
THRESHOLD = 0.143
_NO_AMPLITUDE = -99.0  # RELION's word for the logarithm of nothing


@dataclass(frozen=True)
class GuinierPlot:
    """`ln <|F|>` per shell against s^2 (1/A^2): of the map as it is, divided by the MTF, weighted
    by the FSC, and sharpened; and the line `intercept + slope s^2` that was fitted to the weighted
    ones between two resolutions (A), None where B was given."""

    squared_frequency: Float[Tensor, "shells"]
    original: Float[Tensor, "shells"]
    over_mtf: Float[Tensor, "shells"] | None
    weighted: Float[Tensor, "shells"]
    sharpened: Float[Tensor, "shells"]
    slope: float | None = None
    intercept: float | None = None
    correlation: float | None = None
    fitted_angstrom: tuple[float, float] | None = None


@dataclass(frozen=True)
class Sharpened:
    """The map (N, N, N), its B-factor in A^2 (negative sharpens), where it was low-passed, the
    Guinier plot, and what is to be said."""

    density: Float[Tensor, "N N N"]
    b_factor: float
    lowpass_angstrom: float
    guinier: GuinierPlot
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SharpeningOptions:
    """None takes what the half maps tell: B by a fit, from 10 A to the resolution, which is the
    low-pass too. `mtf` is (frequencies in 1/A, values)."""

    b_factor: float | None = None
    fit_from_angstrom: float = FIT_FROM_ANGSTROM
    fit_to_angstrom: float | None = None
    lowpass_angstrom: float | None = None
    fsc_weighting: bool = True
    mtf: tuple[Float[Tensor, " m"], Float[Tensor, " m"]] | None = None


@takes_arrays
def fsc_weights(fsc: Float[Tensor, " shells"]) -> Float[Tensor, " shells"]:
    """`sqrt(2 FSC / (1 + FSC))`, the correlation of the averaged halves with the truth; 0 from the
    first shell on where the FSC is not positive."""
    alive = (fsc > 0).long().cumprod(0)
    positive = fsc.clamp_min(0)
    return (2 * positive / (1 + positive)).sqrt() * alive


@takes_arrays
def log_amplitudes(density: Float[Tensor, "N N N"]) -> Float[Tensor, " shells"]:
    """`ln <|F|>` over each Fourier shell of the unitary transform."""
    amplitude = shell_means(torch.abs, torch.fft.rfftn(density)[None])[0] / density.numel() ** 0.5
    return amplitude.clamp_min(torch.finfo(torch.float64).tiny).log()


@takes_arrays
def sharpen(
    half1: Float[Tensor, "N N N"],
    half2: Float[Tensor, "N N N"],
    curves: HalfMapCurves,
    options: SharpeningOptions | None = None,
) -> Sharpened:
    """The sharpened map of two half maps, neither filtered nor masked.

    Raises:
        InputError: the halves agree nowhere, so there is no resolution; a fit was asked for over
            fewer than `FEWEST_SHELLS` shells.
    """
    asked = options or SharpeningOptions()
    final = curves.final
    resolution = resolution_at(final, THRESHOLD)
    if not isfinite(resolution):
        raise InputError("half maps: they agree nowhere (FSC below 0.143), nothing to sharpen")
    average = (half1 + half2) / 2
    frequency = final.frequency_per_angstrom
    weight = fsc_weights(final.correlation) if asked.fsc_weighting else torch.ones_like(frequency)
    mtf = torch.ones_like(frequency) if asked.mtf is None else _mtf_at(asked.mtf, frequency)
    plot = _plot_before(average, frequency, weight, mtf if asked.mtf is not None else None)
    b_factor, notes = asked.b_factor, tuple[str, ...]()
    if b_factor is None:
        b_factor, plot, notes = _fitted(plot, final, resolution, asked)
    cut = asked.lowpass_angstrom or resolution
    decay = torch.exp(-b_factor / 4 * frequency.square())
    gain = weight / mtf * decay * _lowpass_gain(final, cut)
    density = filter_shells(average, gain.to(average.dtype), dimensions=3)
    sharpened = plot.weighted - b_factor / 4 * frequency.square()
    return Sharpened(density, b_factor, cut, replace(plot, sharpened=sharpened), notes)


def _plot_before(
    average: Float[Tensor, "N N N"],
    frequency: Float[Tensor, " shells"],
    weight: Float[Tensor, " shells"],
    mtf: Float[Tensor, " shells"] | None,
) -> GuinierPlot:
    """The curves that do not need B: gains are constant over a shell, so they add in logarithms."""
    original = log_amplitudes(average)
    over_mtf = None if mtf is None else original - mtf.log()
    weighted = (original if over_mtf is None else over_mtf) + weight.clamp_min(1e-30).log()
    weighted = torch.where(weight > 0, weighted, torch.nan)
    return GuinierPlot(frequency.square(), original, over_mtf, weighted, weighted)


def _fitted(
    plot: GuinierPlot, curve: Curve, resolution: float, asked: SharpeningOptions
) -> tuple[float, GuinierPlot, tuple[str, ...]]:
    """B = 4 slope of the line through the weighted logarithms, every shell counting once; 0, and
    why, where the range holds too few shells and was not asked for."""
    first, last = asked.fit_from_angstrom, asked.fit_to_angstrom or resolution
    frequency = curve.frequency_per_angstrom
    inside = (frequency >= 1 / first) & (frequency <= 1 / last) & plot.weighted.isfinite()
    if int(inside.sum()) < FEWEST_SHELLS:
        words = (
            f"{int(inside.sum())} shells between {first:.3g} and {last:.3g} A are too few to fit "
            f"a B-factor to ({FEWEST_SHELLS} are needed)"
        )
        if asked.fit_to_angstrom is not None:
            raise InputError(f"Guinier fit: {words}; widen the range, or give --b-factor")
        return 0.0, plot, (f"{words}: the map is weighted and low-passed, not sharpened",)
    x, y = plot.squared_frequency[inside].numpy(), plot.weighted[inside].numpy()
    slope, intercept = (float(value) for value in np.polyfit(x, y, 1))
    correlation = float(abs(np.corrcoef(x, y)[0, 1])) if np.ptp(y) > 0 else 0.0
    plot = replace(
        plot,
        slope=slope,
        intercept=intercept,
        correlation=correlation,
        fitted_angstrom=(first, last),
    )
    if slope > 0:
        return 0.0, plot, ("amplitudes rise with frequency: the map is not sharpened",)
    return 4 * slope, plot, ()


def _lowpass_gain(curve: Curve, cut_angstrom: float) -> Float[Tensor, " shells"]:
    """A raised cosine of `LOWPASS_EDGE_SHELLS` shells around the resolution."""
    shell = torch.arange(len(curve.correlation), dtype=torch.float64)
    at = curve.box * curve.pixel_size_angstrom / cut_angstrom
    edge = ((shell - at) / LOWPASS_EDGE_SHELLS + 0.5).clamp(0, 1)
    return 0.5 + 0.5 * torch.cos(torch.pi * edge)


# --- the detector's modulation transfer function --------------------------------------------------


def read_mtf(
    path: str | Path, pixel_size_angstrom: float
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """Frequencies in 1/A and values of an MTF in RELION's STAR format (`rlnResolutionInversePixel`,
    `rlnMtfValue`); `pixel_size_angstrom` is the detector's, before images were binned.

    Raises:
        InputError: no such file or columns, frequencies that do not rise, values not above 0.
    """
    blocks = read_star(path).blocks
    names = ("rlnResolutionInversePixel", "rlnMtfValue")
    table = next((one for one in blocks.values() if all(name in one for name in names)), None)
    if table is None:
        raise InputError(f"{path}: expected the columns _{names[0]} and _{names[1]} of an MTF")
    frequency, values = table.floats(names[0]), table.floats(names[1])
    if len(frequency) < 2 or (np.diff(frequency) <= 0).any():
        raise InputError(f"{path}: expected _{names[0]} to rise from row to row, in 2 rows or more")
    if not (values > 0).all():
        row = int(np.flatnonzero(~(values > 0))[0])
        raise InputError(
            f"{table.where(row, names[1])}: expected an MTF above 0, found {values[row]:g}"
        )
    return (
        torch.from_numpy(frequency / pixel_size_angstrom),
        torch.from_numpy(values.astype(np.float64)),
    )


def _mtf_at(
    mtf: tuple[Float[Tensor, " m"], Float[Tensor, " m"]], frequency: Float[Tensor, " shells"]
) -> Float[Tensor, " shells"]:
    """Interpolated linearly, the last value beyond the table."""
    return torch.from_numpy(np.interp(frequency.numpy(), mtf[0].numpy(), mtf[1].numpy()))


# --- RELION's table -------------------------------------------------------------------------------


def write_postprocess_star(
    path: str | Path,
    curves: HalfMapCurves,
    sharpened: Sharpened,
    *,
    half_paths: tuple[str | Path, str | Path],
    mtf_name: str | Path | None = None,
) -> None:
    """`data_general`, `data_fsc` and `data_guinier` as `relion_postprocess` writes them."""
    first, plot = curves.unmasked, sharpened.guinier
    general: dict[str, float | str] = {
        "rlnFinalResolution": resolution_at(curves.final, THRESHOLD),
        "rlnBfactorUsedForSharpening": sharpened.b_factor,
        "rlnUnfilteredMapHalf1": str(half_paths[0]),
        "rlnUnfilteredMapHalf2": str(half_paths[1]),
    }
    if curves.mask_name is not None:
        general["rlnMaskName"] = curves.mask_name
    if mtf_name is not None:
        general["rlnMtfFileName"] = str(mtf_name)
    if curves.randomised_from is not None:
        general["rlnRandomiseFrom"] = first.box * first.pixel_size_angstrom / curves.randomised_from
    if plot.slope is not None and plot.intercept is not None and plot.fitted_angstrom is not None:
        general |= {
            "rlnFittedSlopeGuinierPlot": plot.slope,
            "rlnFittedInterceptGuinierPlot": plot.intercept,
            "rlnCorrelationFitGuinierPlot": plot.correlation or 0.0,
            "halfmapFittedFromAngstrom": plot.fitted_angstrom[0],
            "halfmapFittedToAngstrom": plot.fitted_angstrom[1],
        }
    general["halfmapLowpassAngstrom"] = sharpened.lowpass_angstrom
    guinier = {
        "rlnResolutionSquared": plot.squared_frequency,
        "rlnLogAmplitudesOriginal": plot.original,
        "rlnLogAmplitudesMTFCorrected": plot.over_mtf,
        "rlnLogAmplitudesWeighted": plot.weighted,
        "rlnLogAmplitudesSharpened": plot.sharpened,
    }
    columns = {
        name: values.nan_to_num(nan=_NO_AMPLITUDE).numpy()
        for name, values in guinier.items()
        if values is not None
    }
    if plot.intercept is not None:
        columns["rlnLogAmplitudesIntercept"] = np.full(len(plot.original), plot.intercept)
    one_row = Table.from_columns({name: [value] for name, value in general.items()}, is_loop=False)
    write_star(
        path,
        {"general": one_row, "fsc": fsc_table(curves), "guinier": Table.from_columns(columns)},
    )
