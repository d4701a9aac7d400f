"""Make a mask."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.commands._beside import leave_record
from halfmap.commands._half_maps import HalfMaps, read_half_maps
from halfmap.commands._options import (
    Annotated,
    Literal,
    Option,
    OverwriteFile,
    Sequence,
    Setting,
    check_length,
    check_positive_length,
    parse_length,
)
from halfmap.commands._summaries import where
from halfmap.errors import InputError
from halfmap.io.mrc import origin_angstrom, read_density, write_map
from halfmap.mask_making import (
    LOWPASS_ANGSTROM,
    combine_masks,
    mask_from_atoms,
    mask_from_density,
)
from halfmap.masks import reaches_edge, read_mask, whole_sphere
from halfmap.options import command, is_given, options_of
from halfmap.plots.tiles import save_map_picture
from halfmap.resolution import fourier_shell_correlation, resolution_at
from halfmap.simulation.atomic_models import Atoms, read_atoms
from halfmap.workspace.progress import drawing

MODEL_SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif")
# options that say nothing of the other kind of source
_OF_DENSITIES = ("threshold", "lowpass_angstrom", "parts")
_OF_MODELS = ("like", "atom_radius_angstrom", "centred")


@dataclass(frozen=True)
class MaskMade:
    """The mask file, the share of the box inside it, and how it came about."""

    path: Path
    share: float
    how: str
    threshold: float | None = None

    @property
    def summary(self) -> str:
        return f"{100 * self.share:.1f} % of the box, {self.how}: {where(self.path)}"


@command
def mask(
    source: Annotated[
        str | Path | Sequence[str | Path],
        Option(
            "Map, two half maps, job folder, or PDB/mmCIF model; with --combine two masks or more",
            positional=True,
            metavar="MAP|HALF1 HALF2|JOB|MODEL|MASK...",
        ),
    ],
    out: Annotated[
        str | Path,
        Option(
            "Mask to write (.mrc); a picture (.png) comes beside it", metavar="MAP", recorded=False
        ),
    ],
    *,
    threshold: Annotated[
        float | None,
        Option(
            "Density at which the map, low-passed, is cut",
            metavar="X",
            unset="what noise as outside the particle exceeds nowhere",
            idle_beside=(Setting("combine"),),
        ),
    ] = None,
    lowpass_angstrom: Annotated[
        float | None,
        Option(
            "Low-pass before the threshold, 0 for none",
            unit="A",
            at_least=0,
            unset="15 A, or what half maps support",
            idle_beside=(Setting("combine"),),
        ),
    ] = None,
    parts: Annotated[
        int | None,
        Option(
            "Connected parts to keep, the largest first",
            at_least=1,
            metavar="N",
            unset="those of a tenth of the largest or more",
            idle_beside=(Setting("combine"),),
        ),
    ] = None,
    extend: Annotated[
        str,
        Option(
            "Dilation, in pixels or Angstrom; negative takes off",
            metavar="3px|6A",
            check=check_length,
            idle_beside=(Setting("combine"),),
        ),
    ] = "3px",
    soft_edge: Annotated[
        str,
        Option(
            "Width of the soft edge outside that, in pixels or Angstrom",
            metavar="6px|8A",
            check=check_positive_length,
            idle_beside=(Setting("combine"),),
        ),
    ] = "6px",
    combine: Annotated[
        Literal["union", "intersection", "difference"] | None,
        Option("Combine masks; difference is the first without the others", unset="no"),
    ] = None,
    like: Annotated[
        str | Path | None,
        Option(
            "Map whose box, pixel size and frame the mask of a model has",
            metavar="MAP",
            idle_beside=(Setting("combine"),),
        ),
    ] = None,
    atom_radius_angstrom: Annotated[
        float,
        Option(
            "What counts as inside around each atom of a model",
            unit="A",
            above=0,
            idle_beside=(Setting("combine"),),
        ),
    ] = 3.0,
    centred: Annotated[
        bool,
        Option(
            "Lay the model's centre of mass onto the centre of the box, as halfmap simulate does",
            idle_beside=(Setting("combine"),),
        ),
    ] = False,
    overwrite: OverwriteFile = False,
) -> MaskMade:
    """Make a soft mask from a map, two half maps, a job or an atomic model; or combine masks.

    Example: halfmap mask refined --out mask.mrc

    Raises:
        InputError: a file cannot be read or does not fit, nothing exceeds the threshold, the mask
            is cut by the box, or `out` exists.
    """
    arguments, path = locals(), Path(out)
    _check_out(path, overwrite=overwrite)
    sources = [Path(source)] if isinstance(source, str | Path) else [Path(one) for one in source]
    model = len(sources) == 1 and _is_model(sources[0])
    if combine is None:
        _refuse_idle(arguments, _OF_DENSITIES if model else _OF_MODELS, sources[0])
    lengths = _Lengths(extend, soft_edge)
    if combine is not None:
        values, pixel, how, used = *_combined(sources, combine), None
    elif model:
        values, pixel, how = _of_model(
            sources[0], like, lengths, radius_angstrom=atom_radius_angstrom, centred=centred
        )
        used = None
    else:
        density, pixel, smooth_angstrom = _density(sources, lowpass_angstrom)
        made = mask_from_density(
            density,
            pixel_size_angstrom=pixel,
            threshold=threshold,
            lowpass_angstrom=smooth_angstrom,
            parts=parts,
            extend_px=lengths.extend_px(pixel),
            edge_px=lengths.edge_px(pixel),
        )
        if made is None:
            raise InputError(_nothing(sources, density, threshold))
        values, used = made.values, made.threshold
        how = (
            f"above {made.threshold:.4g} at {made.lowpass_angstrom:.3g} A, {made.parts} of "
            f"{made.parts_found} connected parts"
        )
    _check_usable(values, combine)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_map(path, values.numpy(), pixel)
    with drawing(path.with_suffix(".png")):
        save_map_picture(path.with_suffix(".png"), values.numpy(), pixel, title=f"{path.name}")
    made_mask = MaskMade(path, float(values.mean()), how, used)
    leave_record(mask, arguments, path, [path.with_suffix(".png")], summary=made_mask.summary)
    return made_mask


@dataclass(frozen=True)
class _Lengths:
    """Dilation and soft edge as they were typed."""

    extend: str
    soft_edge: str

    def extend_px(self, pixel_size_angstrom: float) -> float:
        return _pixels(self.extend, pixel_size_angstrom)

    def edge_px(self, pixel_size_angstrom: float) -> float:
        return _pixels(self.soft_edge, pixel_size_angstrom)


def _pixels(length: str, pixel_size_angstrom: float) -> float:
    value, unit = parse_length(length)
    return value if unit == "px" else value / pixel_size_angstrom


def _refuse_idle(arguments: Mapping[str, Any], idle: Sequence[str], source: Path) -> None:
    """Refuse options that say nothing of such a source.

    Raises:
        InputError: naming the option and the file.
    """
    for one in options_of(mask):
        if one.name in idle and is_given(one, arguments[one.name]):
            of = "a model" if idle is _OF_MODELS else "a map"
            raise InputError(f"{one.flag}: has no effect on {source}, it is for {of}; leave it out")


def _check_out(path: Path, *, overwrite: bool) -> None:
    if path.suffix != ".mrc":
        raise InputError(f"--out {path}: expected the name of a map to write, ending in .mrc")
    if path.exists() and not overwrite:
        raise InputError(
            f"{path}: the file exists; choose another name with --out, or --overwrite it"
        )


def _is_model(path: Path) -> bool:
    return (path.with_suffix("").suffix.lower() in MODEL_SUFFIXES and path.suffix == ".gz") or (
        path.suffix.lower() in MODEL_SUFFIXES
    )


def _density(
    sources: list[Path], lowpass_angstrom: float | None
) -> tuple[Float[Tensor, "N N N"], float, float]:
    """The density, its pixel size, and the low-pass; of half maps one that they support."""
    if len(sources) == 1 and not sources[0].is_dir():
        volume, pixel = read_density(sources[0])
        if pixel <= 0:
            raise InputError(f"{sources[0]}: the header has no pixel size; write one into it")
        smooth = LOWPASS_ANGSTROM if lowpass_angstrom is None else lowpass_angstrom
        return torch.from_numpy(volume), pixel, smooth
    halves = read_half_maps(sources)
    if lowpass_angstrom is None:
        lowpass_angstrom = _supported(halves)
    return halves.average, halves.pixel_size_angstrom, lowpass_angstrom


def _supported(halves: HalfMaps) -> float:
    curve = fourier_shell_correlation(
        halves.half1,
        halves.half2,
        pixel_size_angstrom=halves.pixel_size_angstrom,
        mask=whole_sphere(halves.box),
    )
    coarsest = halves.box * halves.pixel_size_angstrom / 2
    return min(coarsest, max(LOWPASS_ANGSTROM, resolution_at(curve, 0.143)))


def _nothing(sources: list[Path], density: Float[Tensor, "N N N"], threshold: float | None) -> str:
    names = " and ".join(str(one) for one in sources)
    if threshold is None:
        return f"{names}: nothing stands out of the noise outside; give a --threshold"
    return (
        f"--threshold {threshold:g}: nothing in {names} exceeds it, low-passed; its values run "
        f"from {float(density.min()):.4g} to {float(density.max()):.4g} before the low-pass"
    )


def _combined(
    paths: list[Path], how: Literal["union", "intersection", "difference"]
) -> tuple[Float[Tensor, "N N N"], float, str]:
    if len(paths) < 2:
        raise InputError(f"--combine {how}: expected two masks or more, got {len(paths)}")
    first, pixel = read_density(paths[0])
    masks = torch.stack([read_mask(path, len(first), pixel) for path in paths])
    return combine_masks(masks, how), pixel, f"{how} of {len(paths)} masks"


def _of_model(
    path: Path,
    like: str | Path | None,
    lengths: _Lengths,
    *,
    radius_angstrom: float,
    centred: bool,
) -> tuple[Float[Tensor, "N N N"], float, str]:
    """Mask of a model in the frame of a map."""
    if like is None:
        raise InputError(f"{path}: a model needs --like MAP, whose box and frame the mask takes")
    atoms = read_atoms(path)
    volume, pixel = read_density(like)
    if pixel <= 0:
        raise InputError(f"{like}: the header has no pixel size; write one into it")
    box = len(volume)
    positions = _positions_px(atoms, like, box, pixel, centred=centred)
    values = mask_from_atoms(
        torch.from_numpy(positions).float(),
        box,
        radius_px=radius_angstrom / pixel + lengths.extend_px(pixel),
        edge_px=lengths.edge_px(pixel),
    )
    return values, pixel, f"around {len(positions):,} atoms of {path.name}"


def _positions_px(
    atoms: Atoms, like: str | Path, box: int, pixel: float, *, centred: bool
) -> np.ndarray:
    if centred:
        return atoms.centred().positions / pixel + box // 2
    return (atoms.positions - np.array(origin_angstrom(like))) / pixel


def _check_usable(values: Float[Tensor, "N N N"], combine: str | None) -> None:
    if not bool((values > 0.5).any()):
        raise InputError(
            f"mask: nothing is left inside{f' of the {combine}' if combine else ''}; "
            "give a larger --extend or another --threshold"
        )
    if reaches_edge(values):
        raise InputError(
            "mask: is cut by the box, whose faces it reaches; give a higher --threshold, a smaller "
            "--extend or --soft-edge, or pad the map"
        )
