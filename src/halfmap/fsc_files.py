"""FSC curves as RELION-style STAR files, and the FSC of maps that lie in files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.errors import InputError
from halfmap.io.mrc import read_density, same_pixel_size
from halfmap.io.star import write_star
from halfmap.io.table import Table
from halfmap.masks import read_fsc_mask, soft_sphere
from halfmap.resolution import Curve, HalfMapCurves, half_map_curves, resolution_at


def write_fsc_star(
    path: str | Path, curves: HalfMapCurves | Curve, *, optimistic: bool = False
) -> None:
    """Curves as RELION's postprocess writes them: ``data_general`` with the resolution at 0.143,
    ``data_fsc`` with a row per shell; where the halves share references,
    ``_halfmapResolutionIsOptimistic 1`` beside the resolution."""
    if isinstance(curves, Curve):
        curves = HalfMapCurves(unmasked=curves)
    final, first = curves.final, curves.unmasked
    general: dict[str, float | str] = {"rlnFinalResolution": resolution_at(final, 0.143)}
    if optimistic:
        general["halfmapResolutionIsOptimistic"] = 1
    if curves.mask_name is not None:
        general["rlnMaskName"] = curves.mask_name
    if curves.randomised_from is not None:
        general["rlnRandomiseFrom"] = first.box * first.pixel_size_angstrom / curves.randomised_from
    one_row = Table.from_columns({name: [value] for name, value in general.items()}, is_loop=False)
    write_star(path, {"general": one_row, "fsc": fsc_table(curves)})


def fsc_table(curves: HalfMapCurves) -> Table:
    """A row per shell, in RELION's columns."""
    first = curves.unmasked
    resolution = first.resolution_angstrom.numpy().copy()
    resolution[0] = 999.0  # RELION's word for infinity
    shells: dict[str, np.ndarray] = {
        "rlnSpectralIndex": np.arange(len(first.correlation)),
        "rlnResolution": first.frequency_per_angstrom.numpy(),
        "rlnAngstromResolution": resolution,
    }
    correlations = {
        "rlnFourierShellCorrelationCorrected": curves.final,
        "rlnFourierShellCorrelationUnmaskedMaps": first,
        "rlnFourierShellCorrelationMaskedMaps": curves.masked,
        "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps": curves.randomised,
    }
    shells |= {
        name: curve.correlation.numpy() for name, curve in correlations.items() if curve is not None
    }
    return Table.from_columns(shells)


def compare_maps(
    map1: str | Path,
    map2: str | Path,
    *,
    mask: str | Path | None = None,
    diameter_angstrom: float | None = None,
) -> HalfMapCurves:
    """:func:`half_map_curves` of two MRC files, inside a mask file or a soft sphere of a diameter
    (whose edge is 5 pixels), or unmasked.

    Raises:
        InputError: a file cannot be read, boxes or pixel sizes (by over 1 %) differ, no pixel size,
            a map constant or not finite, both or wrong masks (also one that the box cuts).
    """
    half1, half2, pixel_size = read_two_maps(map1, map2)
    box = len(half1)
    inside = None
    if mask is not None and diameter_angstrom is not None:
        raise InputError("--mask and --diameter both given; expected at most one of them")
    if mask is not None:
        inside = read_fsc_mask(mask, box, pixel_size)
    elif diameter_angstrom is not None:
        largest = box * pixel_size
        if not 0 < diameter_angstrom <= largest:
            raise InputError(
                f"--diameter {diameter_angstrom:g}: expected more than 0 and at most the box, "
                f"{largest:.1f} A"
            )
        inside = soft_sphere(box, radius_px=diameter_angstrom / 2 / pixel_size, edge_px=5)
    curves = half_map_curves(half1, half2, pixel_size_angstrom=pixel_size, mask=inside)
    return replace(curves, mask_name=None if mask is None else str(mask))


def read_two_maps(
    map1: str | Path, map2: str | Path
) -> tuple[Float[Tensor, "N N N"], Float[Tensor, "N N N"], float]:
    """Two MRC files on one grid, and its pixel size in Angstrom.

    Raises:
        InputError: a file cannot be read, boxes or pixel sizes (by over 1 %) differ, no pixel size,
            a map constant or not finite.
    """
    volume1, pixel_size = read_density(map1)
    volume2, other_pixel_size = read_density(map2)
    box = len(volume1)
    if volume1.shape != volume2.shape:
        raise InputError(
            f"{map2}: box is {len(volume2)} pixels, that of {map1} is {box}; rescale one of them"
        )
    if pixel_size <= 0:
        raise InputError(f"{map1}: the header has no pixel size; write one into it")
    if not same_pixel_size(other_pixel_size, pixel_size):
        raise InputError(
            f"{map2}: pixel size is {other_pixel_size:.4g} A, that of {map1} is {pixel_size:.4g} "
            "A; correct or rescale one"
        )
    return torch.from_numpy(volume1), torch.from_numpy(volume2), pixel_size
