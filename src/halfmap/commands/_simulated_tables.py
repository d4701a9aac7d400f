"""The tables of simulated particles: what is stated, what is true, and the optics."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from halfmap.io.relion import ctf_columns
from halfmap.io.table import Table
from halfmap.simulation.forward_model import Truth
from halfmap.transfer_function import CTFParameters


def image_names(rows: Sequence[Tensor], stacks: Sequence[str]) -> list[str]:
    """The image name of each particle, of those that lie in each stack in their order."""
    names = [""] * sum(map(len, rows))
    for own, stack in zip(rows, stacks, strict=True):
        for place, row in enumerate(own.tolist(), start=1):
            names[row] = f"{place:06d}@{stack}"
    return names


def particle_tables(
    truth: Truth,
    stated: CTFParameters,
    names: Sequence[str],
    grids: Sequence[tuple[int, float]],
    pixel: float,
) -> tuple[Table, dict[str, np.ndarray], Table]:
    """The particles without their poses, with the CTF `stated`; the columns of the truth, and the
    optics table."""
    groups = int(truth.optics_group.max()) + 1
    boxes, sizes = (np.array(column[:groups]) for column in zip(*grids, strict=True))
    first = torch.tensor([int(torch.nonzero(truth.optics_group == g)[0]) for g in range(groups)])
    optics: dict[str, Iterable[object]] = {
        "rlnOpticsGroup": np.arange(1, groups + 1),
        "rlnOpticsGroupName": [f"opticsGroup{g}" for g in range(1, groups + 1)],
        "rlnImagePixelSize": sizes,
        "rlnMicrographOriginalPixelSize": sizes,
        "rlnImageSize": boxes,
        "rlnImageDimensionality": np.full(groups, 2),
        **ctf_columns(stated.take(first), per_group=True),
    }
    particles: dict[str, Iterable[object]] = {
        "rlnImageName": names,
        "rlnMicrographName": [f"mic{m + 1:05d}.mrc" for m in truth.micrograph.tolist()],
        "rlnOpticsGroup": truth.optics_group.numpy() + 1,
        **ctf_columns(stated, per_group=False),
    }
    known = {
        "rlnAngleRot": truth.angles_deg[:, 0].numpy(),
        "rlnAngleTilt": truth.angles_deg[:, 1].numpy(),
        "rlnAnglePsi": truth.angles_deg[:, 2].numpy(),
        "rlnOriginXAngst": truth.shift_px[:, 0].numpy() * pixel,
        "rlnOriginYAngst": truth.shift_px[:, 1].numpy() * pixel,
        "rlnClassNumber": truth.state.numpy() + 1,
        "halfmapTruthJunk": truth.junk.numpy(),
    }
    return Table.from_columns(particles), known, Table.from_columns(optics)
