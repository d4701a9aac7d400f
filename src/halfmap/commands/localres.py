"""The job `halfmap localres`: local resolution of two half maps, and the map filtered and sharpened
by it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from halfmap.commands._figures import counts_figure
from halfmap.commands._finishing import curves_in, mask_of_halves
from halfmap.commands._half_maps import read_half_maps
from halfmap.commands._job import open_job
from halfmap.commands._options import (
    Annotated,
    HalvesMask,
    HalvesOrJob,
    Option,
    OutFolder,
    Overwrite,
    Quiet,
)
from halfmap.commands._summaries import where
from halfmap.errors import InputError
from halfmap.io.mrc import write_map
from halfmap.local_resolution import (
    WINDOW_IN_RESOLUTIONS,
    local_fsc,
    locally_filtered,
    spread,
)
from halfmap.options import command
from halfmap.plots.local_resolution import save_local_resolution_plot
from halfmap.postprocessing import sharpen
from halfmap.resolution import resolution_at
from halfmap.workspace.figures import FIGURES, add_figures
from halfmap.workspace.progress import drawing


@dataclass(frozen=True)
class LocalResolutionResult:
    """Quantiles of the local resolution inside the mask (5 %, median, 95 %), and where it is."""

    folder: Path
    best_angstrom: float
    median_angstrom: float
    worst_angstrom: float
    windows: int
    window_angstrom: float

    @property
    def summary(self) -> str:
        return (
            f"local resolution {self.best_angstrom:.2f} to {self.worst_angstrom:.2f} A (5 to 95 %)"
            f", median {self.median_angstrom:.2f} A, {self.windows:,} windows of "
            f"{self.window_angstrom:.0f} A: {where(self.folder)}"
        )


@command
def localres(
    source: HalvesOrJob,
    out: OutFolder,
    *,
    mask: HalvesMask = None,
    window_angstrom: Annotated[
        float | None,
        Option("Diameter of the windows", unit="A", above=0, unset="12 times the map's resolution"),
    ] = None,
    b_factor: Annotated[
        float | None,
        Option(
            "B-factor of the sharpened map, in A^2; negative sharpens",
            metavar="A2",
            unset="each place its own",
        ),
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> LocalResolutionResult:
    """Local resolution by the FSC in windows, with significance; and the map filtered and sharpened
    by what each place supports.

    Example: halfmap localres refined --out local

    Raises:
        InputError: bad half maps or mask, a window that does not fit; nothing is written then.
    """
    arguments = locals()
    halves = read_half_maps(source)
    pixel = halves.pixel_size_angstrom
    solvent = mask_of_halves(mask, halves)
    curves = curves_in(halves.half1, halves.half2, pixel, solvent)
    resolution = resolution_at(curves.final, 0.143)
    if not np.isfinite(resolution):
        raise InputError(f"{halves.paths[0]}, {halves.paths[1]}: agree nowhere (FSC below 0.143)")
    extent = halves.box * pixel
    window = window_angstrom or min(extent, WINDOW_IN_RESOLUTIONS * resolution)
    if window > extent:
        raise InputError(f"--window {window:g}: expected at most the box, {extent:.1f} A")
    with open_job(localres, arguments) as run:
        run.progress.start_stage("windows", 0)
        local = local_fsc(
            halves.half1,
            halves.half2,
            pixel_size_angstrom=pixel,
            mask=solvent.values,
            window_angstrom=window,
            advance=run.progress.advance,
        )
        coarsest = float(local.resolutions_angstrom.max())
        found = spread(local, local.resolutions_angstrom, coarsest)
        b = sharpen(halves.half1, halves.half2, curves).b_factor if b_factor is None else b_factor
        run.progress.start_stage("filtered maps", 0)
        filtered = locally_filtered(halves.average, local)
        sharpened = locally_filtered(halves.average, local, b_factor=b, local_b=b_factor is None)
        folder = run.job.folder
        for name, volume in (
            ("local_resolution.mrc", found),
            ("map_locally_filtered.mrc", filtered),
            ("map_locally_sharpened.mrc", sharpened),
            ("mask.mrc", solvent.values),
        ):
            write_map(folder / name, volume.numpy(), pixel)
        with drawing("local_resolution.png"):
            save_local_resolution_plot(
                run.job.path("pictures/local_resolution.png"),
                filtered.numpy(),
                found.numpy(),
                solvent.values.numpy(),
                title=f"local resolution, {solvent.words}",
            )
        inside = found[solvent.values > 0.5].numpy()
        voxels = "voxels inside the mask"
        label = "local resolution (Å)"
        with drawing(FIGURES):
            add_figures(
                folder, counts_figure("Local resolution", label, voxels, inside, inside=0.98)
            )
        best, median, worst = (float(value) for value in np.quantile(inside, [0.05, 0.5, 0.95]))
        run.job.update(median_angstrom=median, best_angstrom=best, worst_angstrom=worst)
    return LocalResolutionResult(
        Path(out), best, median, worst, len(local.places), local.side * pixel
    )
