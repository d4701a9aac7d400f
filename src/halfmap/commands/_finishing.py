"""From half maps to files: the mask of the FSC, the sharpened map, RELION's table and the pictures.
What `refine` does by itself at its end, `postprocess` does by command."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from halfmap.commands._figures import cones_figure, guinier_figure
from halfmap.commands._half_maps import HalfMaps
from halfmap.commands._summaries import angstrom
from halfmap.errors import InputError
from halfmap.io.mrc import write_map
from halfmap.io.star import write_star
from halfmap.io.table import Table
from halfmap.mask_making import mask_from_half_maps
from halfmap.masks import read_fsc_mask, whole_sphere
from halfmap.orientation_diagnostics import (
    ConicalFsc,
    Sampling,
    conical_fsc,
    fourier_sampling,
    viewing_directions,
    warning_in_words,
)
from halfmap.plots.curves import save_fsc_plot
from halfmap.plots.directional import save_directional_plot
from halfmap.plots.guinier import save_guinier_plot
from halfmap.plots.tiles import save_map_picture
from halfmap.postprocessing import Sharpened, SharpeningOptions, sharpen, write_postprocess_star
from halfmap.resolution import RANDOMISED, HalfMapCurves, half_map_curves, resolution_at
from halfmap.workspace.figures import FIGURES, add_figures
from halfmap.workspace.progress import Progress, drawing

ORIENTATIONS = "orientations.star"
SHARPENED, TABLE, MASK = "map_sharpened.mrc", "postprocess.star", "mask.mrc"


@dataclass(frozen=True)
class FscMask:
    """The mask (N, N, N) in which an FSC is taken, the name of its file, and what it is in
    words."""

    values: Float[Tensor, "N N N"]
    name: str
    words: str


def own_mask(
    half1: Float[Tensor, "N N N"],
    half2: Float[Tensor, "N N N"],
    pixel_size_angstrom: float,
    sphere: Float[Tensor, "N N N"],
    sphere_words: str,
) -> FscMask:
    """A mask made of the half maps, inside a sphere; the sphere itself where nothing stands out of
    the noise. Its file is `mask.mrc`."""
    made = mask_from_half_maps(half1, half2, pixel_size_angstrom=pixel_size_angstrom, within=sphere)
    if made is None:
        return FscMask(sphere, MASK, f"{sphere_words}, as nothing stands out of the noise")
    return FscMask(made.values, MASK, f"mask {MASK}")


def curves_in(
    half1: Float[Tensor, "N N N"],
    half2: Float[Tensor, "N N N"],
    pixel_size_angstrom: float,
    mask: FscMask,
) -> HalfMapCurves:
    """All curves of two half maps in a mask, whose file they name."""
    curves = half_map_curves(
        half1, half2, pixel_size_angstrom=pixel_size_angstrom, mask=mask.values
    )
    return replace(curves, mask_name=mask.name)


@dataclass(frozen=True)
class Place:
    """Where results go: maps and tables in `folder`, pictures in `pictures`."""

    folder: Path
    pictures: Path


def sharpen_into(
    place: Place,
    halves: tuple[Float[Tensor, "N N N"], Float[Tensor, "N N N"]],
    curves: HalfMapCurves,
    *,
    half_paths: tuple[str | Path, str | Path],
    options: SharpeningOptions | None = None,
    mtf_name: str | Path | None = None,
    words: str = "",
) -> Sharpened:
    """Sharpen, and write `map_sharpened.mrc`, `postprocess.star` and their pictures, whose titles
    hold the `words` too.

    Raises:
        InputError: as `sharpen`; nothing is written then.
    """
    options = options or SharpeningOptions()
    sharpened = sharpen(*halves, curves, options)
    pixel = curves.unmasked.pixel_size_angstrom
    density = sharpened.density.numpy()
    write_map(place.folder / SHARPENED, density, pixel)
    write_postprocess_star(
        place.folder / TABLE, curves, sharpened, half_paths=half_paths, mtf_name=mtf_name
    )
    with drawing("guinier.png"):
        save_guinier_plot(
            place.pictures / "guinier.png", sharpened, given=options.b_factor is not None
        )
    with drawing(FIGURES):
        add_figures(place.folder, guinier_figure(sharpened))
    with drawing("map_sharpened.png"):
        save_map_picture(
            place.pictures / "map_sharpened.png",
            density,
            pixel,
            title=f"map_sharpened, B = {sharpened.b_factor:.0f} Å², "
            f"low-passed at {angstrom(sharpened.lowpass_angstrom)}"
            + (f", {words}" if words else ""),
        )
    return sharpened


def diagnose_into(
    place: Place,
    halves: tuple[Float[Tensor, "N N N"], Float[Tensor, "N N N"]],
    pixel_size_angstrom: float,
    mask: FscMask,
    *,
    rotations: Float[Tensor, "n 3 3"] | None,
    symmetry: Float[Tensor, "G 3 3"],
) -> tuple[ConicalFsc, Sampling | None, tuple[str, ...]]:
    """FSC in cones and sampling by the views, in `orientations.star` and `directional_fsc.png`;
    and the warning, if there is one."""
    cones = conical_fsc(*halves, pixel_size_angstrom=pixel_size_angstrom, mask=mask.values)
    sampling = None
    if rotations is not None and len(rotations):
        sampling = fourier_sampling(viewing_directions(rotations.double(), symmetry.double()))
    write_orientations_star(place.folder / ORIENTATIONS, cones, sampling, mask_name=mask.name)
    with drawing("directional_fsc.png"):
        save_directional_plot(
            place.pictures / "directional_fsc.png", cones, sampling, mask=mask.name
        )
    with drawing(FIGURES):
        add_figures(place.folder, cones_figure(cones))
    warning = warning_in_words(cones)
    return cones, sampling, (warning,) if warning else ()


def write_orientations_star(
    path: Path, cones: ConicalFsc, sampling: Sampling | None, *, mask_name: str
) -> None:
    """The numbers, and a row for each cone."""
    found = cones.resolutions_angstrom.numpy()
    general: dict[str, float | str] = {
        "halfmapConicalFscAreaRatio": cones.cfar,
        "halfmapBestDirectionAngstrom": float(found.min()),
        "halfmapWorstDirectionAngstrom": min(float(found.max()), 999.0),
        "halfmapAnisotropyOfResolution": cones.anisotropy,
        "rlnMaskName": mask_name,
    }
    if sampling is not None:
        general |= {
            "halfmapSamplingCompensationFactor": sampling.scf_star,
            "halfmapDirectionsNeverMet": sampling.missing,
        }
    columns = {
        **{f"halfmapAxis{name}": cones.axes[:, n].numpy() for n, name in enumerate("XYZ")},
        "halfmapConicalFscArea": cones.areas.numpy(),
        "rlnAngstromResolution": found.clip(max=999.0),
    }
    one_row = Table.from_columns({name: [value] for name, value in general.items()}, is_loop=False)
    write_star(path, {"general": one_row, "cones": Table.from_columns(columns)})


def mask_of_halves(mask: str | Path | None, halves: HalfMaps) -> FscMask:
    """The mask given, that of the job, or one made of the half maps."""
    if mask is None and halves.job is not None and (halves.job / MASK).exists():
        mask = halves.job / MASK
    if mask is not None:
        values = read_fsc_mask(mask, halves.box, halves.pixel_size_angstrom)
        return FscMask(values, str(mask), f"mask {Path(mask).name}")
    sphere = whole_sphere(halves.box)
    return own_mask(
        halves.half1, halves.half2, halves.pixel_size_angstrom, sphere, "the largest sphere"
    )


def save_half_map_plot(path: Path, curves: HalfMapCurves, *, title: str) -> None:
    """The curves of two half maps with the mask's name in the title."""
    inside = f", mask {Path(curves.mask_name).name}" if curves.mask_name else ""
    with drawing(path):
        save_fsc_plot(
            path,
            curves.named,
            title=f"{title}{inside}",
            reference=0.143,
            unmarked=(RANDOMISED,),
        )


def resolution_in_words(curves: HalfMapCurves) -> str:
    """`3.42 A`, or `no resolution`."""
    return angstrom(resolution_at(curves.final, 0.143))


@contextmanager
def finishing(what: str, progress: Progress) -> Iterator[None]:
    """Around what comes after the maps are safe: bad luck there is one note, and the job goes
    on."""
    try:
        yield
    except InputError as error:
        progress.note(f"no {what}: {error}")
