"""Sets of several optics groups, simulated from one molecule: the same particles on other grids,
with other aberrations."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from halfmap.io.relion import ctf_columns
from halfmap.io.stack_writer import write_stack
from halfmap.io.star import read_star, write_star
from halfmap.io.table import Table
from halfmap.simulation.forward_model import (
    Recipe,
    clean_images,
    draw_truth,
    noise_amplitude,
    noise_images,
    normalise,
)
from halfmap.simulation.phantom import phantom

BOX, PIXEL = 48, 4.0  # of the finest group
MAGNIFICATION = {
    "magnification_xx": 1.03,
    "magnification_xy": 0.015,
    "magnification_yx": -0.01,
    "magnification_yy": 0.97,
}
# at 8 A some radians each: far from a microscope's, as the resolution is
TILT = {"beam_tilt_x_mrad": 14.0, "beam_tilt_y_mrad": -9.0}
TREFOIL = {"odd_zernike": [0.0, 0.0, 900.0, 0.0, 0.0, -1100.0]}
TETRAFOIL = {"even_zernike": [0.0, 0.0, 0.0, 0.0, 12000.0, 0.0, 0.0, 0.0, -15000.0]}
DISTORTED = MAGNIFICATION | TILT | TREFOIL | TETRAFOIL


@dataclass(frozen=True)
class Group:
    """An optics group: its grid, and CTF parameters by name that are not the usual ones."""

    box: int = BOX
    pixel: float = PIXEL
    optics: dict[str, object] = field(default_factory=dict)


CLEAN = Group()
COARSE = Group(44, 4.28, DISTORTED)  # not odd: RELION cannot


def two_groups(
    folder: Path,
    groups: Sequence[Group],
    n: int,
    *,
    snr: float = float("inf"),
    symmetry: str = "C1",
    poses: bool = True,
    seed: int = 1,
    defocus_angstrom: tuple[float, float] = (8000.0, 22000.0),
) -> Path:
    """`particles.star` of n particles, whose micrographs take turns in the groups: the same
    particles, poses and defoci whatever the groups. A stack for each."""
    drawn = {"optics_groups": len(groups), "defocus_range_angstrom": defocus_angstrom}
    truth = draw_truth(Recipe(n=n, seed=seed, shift_rms_px=1.5, **drawn))
    shift_angstrom = truth.shift_px * PIXEL
    names = np.empty(n, object)
    optics: dict[str, list[object]] = {}
    folder.mkdir(parents=True, exist_ok=True)
    for g, group in enumerate(groups):
        rows = torch.nonzero(truth.optics_group == g)[:, 0]
        parameters = replace(truth.ctf, **_columns(group.optics, n))
        own = replace(truth, ctf=parameters, shift_px=shift_angstrom / group.pixel)
        volume = phantom(group.box, group.pixel, symmetry=symmetry)
        images = clean_images([volume], own, rows, group.pixel)
        if np.isfinite(snr):
            deviation = (images.var(dim=(1, 2)).mean() / snr).sqrt()
            noise = noise_images(rows, seed, noise_amplitude(group.box, group.pixel, 0.0))
            images = normalise(images + noise * deviation)
        write_stack(folder / f"group{g + 1}.mrcs", images.numpy(), group.pixel)
        names[rows.numpy()] = [f"{i + 1:06d}@group{g + 1}.mrcs" for i in range(len(rows))]
        one = ctf_columns(parameters.take(rows[:1].numpy()), per_group=True)
        for name in ("rlnOddZernike", "rlnEvenZernike"):
            one.setdefault(name, np.array(["[0,0]"], dtype=object))
        one |= {"rlnOpticsGroup": [g + 1], "rlnImagePixelSize": [group.pixel]}
        one |= {"rlnOpticsGroupName": [f"group{g + 1}"], "rlnImageSize": [group.box]}
        for name, values in one.items():
            optics.setdefault(name, []).append(values[0])
    columns = {"rlnImageName": names, "rlnOpticsGroup": truth.optics_group.numpy() + 1}
    columns |= ctf_columns(replace(truth.ctf, **_columns({}, n)), per_group=False)
    columns["rlnMicrographName"] = np.array([f"m{m}.mrc" for m in truth.micrograph], object)
    if poses:
        angles = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
        columns |= dict(zip(angles, truth.angles_deg.T.numpy(), strict=True))
        origins = ("rlnOriginXAngst", "rlnOriginYAngst")
        columns |= dict(zip(origins, shift_angstrom.T.numpy(), strict=True))
    tables = {"optics": Table.from_columns(optics), "particles": Table.from_columns(columns)}
    write_star(folder / "particles.star", tables)
    return folder / "particles.star"


def _columns(optics: dict[str, object], n: int) -> dict[str, np.ndarray]:
    """Columns of n images; those of the magnification always are there."""
    unity: dict[str, object] = {"premultiplied": False}
    unity |= {f"magnification_{at}": float(at in ("xx", "yy")) for at in ("xx", "xy", "yx", "yy")}
    return {k: np.repeat(np.array([v]), n, axis=0) for k, v in (unity | optics).items()}


def without(path: Path, *columns: str, **values: object) -> Path:
    """A copy of the STAR beside it without some optics columns, or with values put in."""
    blocks = dict(read_star(path).blocks)
    optics = blocks["optics"].without(*columns)
    blocks["optics"] = optics.with_columns({k: [v] * len(optics) for k, v in values.items()})
    copy = path.with_name(f"without_{'_'.join(columns) or '_'.join(values)}.star")
    write_star(copy, blocks)
    return copy
