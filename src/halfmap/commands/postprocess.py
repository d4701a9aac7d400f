"""The job `halfmap postprocess`: a sharpened map from two half maps, and a resolution freed of what
the mask put in."""

import math
from dataclasses import dataclass
from pathlib import Path

from halfmap.commands._finishing import (
    MASK,
    SHARPENED,
    FscMask,
    Place,
    curves_in,
    mask_of_halves,
    own_mask,
    save_half_map_plot,
    sharpen_into,
)
from halfmap.commands._half_maps import HalfMaps, read_half_maps
from halfmap.commands._job import open_job
from halfmap.commands._options import (
    Annotated,
    HalvesMask,
    HalvesOrJob,
    Option,
    OutFolder,
    Overwrite,
    Quiet,
    Setting,
)
from halfmap.commands._summaries import angstrom, resolved, where
from halfmap.errors import InputError
from halfmap.fsc_files import write_fsc_star
from halfmap.io.mrc import write_map
from halfmap.masks import whole_sphere
from halfmap.options import command
from halfmap.postprocessing import SharpeningOptions, read_mtf
from halfmap.resolution import resolution_at


@dataclass(frozen=True)
class PostprocessResult:
    """Where the sharpened map is, its resolution (FSC 0.143, corrected for the mask), B-factor in
    A^2, and what is to be said."""

    folder: Path
    map_path: Path
    resolution_angstrom: float
    unmasked_angstrom: float
    b_factor: float
    mask: str
    notes: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        return (
            f"{resolved(self.resolution_angstrom)} (FSC 0.143, mask-corrected, {self.mask}; "
            f"unmasked {angstrom(self.unmasked_angstrom)}), B = {self.b_factor:.1f} A^2: "
            f"{where(self.map_path)}"
        )


@command
def postprocess(
    source: HalvesOrJob,
    out: OutFolder,
    *,
    mask: HalvesMask = None,
    b_factor: Annotated[
        float | None,
        Option(
            "B-factor to sharpen with, in A^2; negative sharpens",
            metavar="A2",
            unset="by a Guinier fit",
        ),
    ] = None,
    fit_from_angstrom: Annotated[
        float,
        Option(
            "Coarsest resolution of the Guinier fit",
            unit="A",
            above=0,
            idle_beside=(Setting("b_factor"),),
        ),
    ] = 10.0,
    fit_to_angstrom: Annotated[
        float | None,
        Option(
            "Finest resolution of the Guinier fit",
            unit="A",
            above=0,
            unset="the resolution",
            idle_beside=(Setting("b_factor"),),
        ),
    ] = None,
    lowpass_angstrom: Annotated[
        float | None, Option("Low-pass of the map", unit="A", above=0, unset="the resolution")
    ] = None,
    fsc_weighting: Annotated[bool, Option("Weight the map by its FSC")] = True,
    mtf: Annotated[
        str | Path | None,
        Option("The detector's MTF, a STAR file in RELION's format", metavar="STAR", unset="none"),
    ] = None,
    mtf_pixel_size_angstrom: Annotated[
        float | None,
        Option(
            "Pixel size of the detector, before images were binned",
            unit="A",
            above=0,
            flag="--mtf-pixel-size",
            unset="the map's",
            needs=(Setting("mtf"),),
        ),
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> PostprocessResult:
    """Sharpen the average of two half maps, and measure the resolution corrected for the mask by
    phase randomisation.

    Example: halfmap postprocess refined --mtf mtf_k3.star --out sharpened

    Raises:
        InputError: bad half maps or mask, no MTF, nothing in which the halves agree; nothing is
            written then.
    """
    arguments = locals()
    halves = read_half_maps(source)
    pixel = halves.pixel_size_angstrom
    curve = None if mtf is None else read_mtf(mtf, mtf_pixel_size_angstrom or pixel)
    options = SharpeningOptions(
        b_factor, fit_from_angstrom, fit_to_angstrom, lowpass_angstrom, fsc_weighting, curve
    )
    solvent = mask_of_halves(mask, halves)
    curves = curves_in(halves.half1, halves.half2, pixel, solvent)
    resolution = resolution_at(curves.final, 0.143)
    if not math.isfinite(resolution):
        raise InputError(
            f"{halves.paths[0]} and {halves.paths[1]}: agree nowhere (FSC below 0.143 from the "
            "first shell on); are they the two halves of one map?"
        )
    with open_job(postprocess, arguments) as run:
        place = Place(run.job.folder, run.job.path("pictures/fsc.png").parent)
        run.progress.start_stage("sharpening", 0)
        sharpened = sharpen_into(
            place,
            (halves.half1, halves.half2),
            curves,
            half_paths=halves.paths,
            options=options,
            mtf_name=mtf,
        )
        write_map(place.folder / MASK, solvent.values.numpy(), pixel)
        masked = (sharpened.density * solvent.values).numpy()
        write_map(place.folder / "map_sharpened_masked.mrc", masked, pixel)
        write_fsc_star(place.folder / "fsc.star", curves)
        save_half_map_plot(place.pictures / "fsc.png", curves, title="half maps")
        run.job.update(resolution_angstrom=resolution, b_factor_angstrom2=sharpened.b_factor)
    return PostprocessResult(
        Path(out),
        Path(out, SHARPENED),
        resolution,
        resolution_at(curves.unmasked, 0.143),
        sharpened.b_factor,
        solvent.words,
        (*_remarks(halves, solvent), *sharpened.notes),
    )


LEFT_OUT = 0.25  # share of the density that stands out of the noise which a mask may leave out


def _remarks(halves: HalfMaps, mask: FscMask) -> tuple[str, ...]:
    """That a mask cuts the particle, which is not always meant."""
    sphere = whole_sphere(halves.box)
    particle = own_mask(halves.half1, halves.half2, halves.pixel_size_angstrom, sphere, "").values
    density = halves.average.clamp_min(0) * (particle > 0.99)
    outside = float((density * (1 - mask.values)).sum() / density.sum().clamp_min(1e-30))
    if outside <= LEFT_OUT:
        return ()
    return (
        f"{mask.words} leaves out {100 * outside:.0f} % of what stands out of the noise: its "
        "resolution is that of the part inside",
    )
