"""What is done to a map before it is compared, deposited or refined against."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.alignment import Alignment, align, centre_of_mass_px, mirror, symmetrised
from halfmap.commands._beside import leave_record
from halfmap.commands._maps import (
    diameter_px,
    map_of,
    read_map_with_size,
    read_posed_particles,
    refuse_existing,
    write_poses_that_follow,
)
from halfmap.commands._options import (
    Annotated,
    DataDir,
    Option,
    OverwriteFile,
    Passthrough,
    Setting,
    check_symmetry,
)
from halfmap.commands._summaries import where
from halfmap.errors import InputError
from halfmap.fourier import filter_shells, lowpass
from halfmap.grey_scale import difference_map, normalise_background
from halfmap.io.mrc import same_pixel_size, write_map
from halfmap.masks import read_mask
from halfmap.options import command
from halfmap.plots.tiles import save_map_picture
from halfmap.resizing import crop_or_pad, fourier_resize, resampled_boxes
from halfmap.symmetries import symmetry_matrices
from halfmap.workspace.progress import drawing

# Maps are laid onto each other on shells up to 10 A, a third of the box and 32 shells: what is
# beyond turns them by less than their resolution
_ALIGNED_TO_ANGSTROM, _MOST_SHELLS = 10.0, 32
# Of the power of a map that lies off its axes, averaging over mates leaves little; that of one
# on them stays but for noise. The line is drawn at shells up to 20 A.
_AXES_COMPARED_ANGSTROM, _LEAST_ALIKE = 20.0, 0.5


@dataclass(frozen=True)
class VolumeWritten:
    """The map written, what was done to it in order, and the particles that followed."""

    path: Path
    steps: tuple[str, ...]
    particles_path: Path | None = None

    @property
    def lines(self) -> tuple[str, ...]:
        """What was done, a line each."""
        return self.steps

    @property
    def summary(self) -> str:
        followed = f", poses in {where(self.particles_path)}" if self.particles_path else ""
        return f"{where(self.path)}{followed}"


@dataclass(frozen=True)
class _Map:
    """A map at work: what was done so far, and the alignments that poses must follow, each with
    the pixel size its shift is in."""

    density: Float[Tensor, "N N N"]
    pixel: float
    steps: tuple[str, ...] = ()
    followed: tuple[tuple[Alignment, float], ...] = field(default=())

    @property
    def box(self) -> int:
        return self.density.shape[-1]

    def after(
        self,
        density: Float[Tensor, "M M M"],
        told: str,
        *,
        pixel: float | None = None,
        laid: Alignment | None = None,
    ) -> "_Map":
        size = self.pixel if pixel is None else pixel
        followed = self.followed if laid is None else (*self.followed, (laid, self.pixel))
        return _Map(density, size, (*self.steps, told), followed)


@command
def volume(
    map: Annotated[
        str | Path, Option("Map (MRC), or job folder", positional=True, metavar="MAP|JOB")
    ],
    out: Annotated[
        str | Path,
        Option("Map to write; a picture comes beside it", metavar="MAP", recorded=False),
    ],
    *,
    pixel_size_angstrom: Annotated[
        float | None,
        Option("Resample to this pixel size", unit="A", above=0, metavar="ANGSTROM", unset="no"),
    ] = None,
    like: Annotated[
        str | Path | None,
        Option("Resample to pixel size and box of this map", metavar="MAP", unset="no"),
    ] = None,
    flip_hand: Annotated[bool, Option("The mirror image")] = False,
    centre: Annotated[bool, Option("Shift the centre of mass to the centre of the box")] = False,
    box: Annotated[
        int | None,
        Option("Crop or pad to this box, about the centre", unit="px", at_least=8, unset="no"),
    ] = None,
    align_to: Annotated[
        str | Path | None,
        Option("Lay the map onto this one, which has its box", metavar="MAP", unset="no"),
    ] = None,
    either_hand: Annotated[
        bool,
        Option(
            "Take the mirror image where that agrees better with --align-to",
            needs=(Setting("align_to"),),
        ),
    ] = False,
    symmetry: Annotated[
        str | None,
        Option(
            "Average over this point group's mates, axes as RELION has them",
            metavar="G",
            check=check_symmetry,
            unset="no",
        ),
    ] = None,
    lowpass_angstrom: Annotated[
        float | None, Option("Low-pass at this resolution", unit="A", above=0, unset="no")
    ] = None,
    highpass_angstrom: Annotated[
        float | None, Option("High-pass at this resolution", unit="A", above=0, unset="no")
    ] = None,
    bfactor_angstrom2: Annotated[
        float | None,
        Option("B-factor: amplitudes times exp(-B s^2 / 4); negative sharpens", unset="no"),
    ] = None,
    normalise: Annotated[
        bool, Option("Background mean 0 and standard deviation 1, beyond the particle")
    ] = False,
    difference: Annotated[
        str | Path | None,
        Option(
            "Subtract this map, scaled to the first shell by shell; see --mask",
            metavar="MAP",
            unset="no",
        ),
    ] = None,
    mask: Annotated[
        str | Path | None,
        Option(
            "Mask in which maps are scaled and subtracted",
            metavar="MAP",
            unset="none",
            needs=(Setting("difference"),),
        ),
    ] = None,
    diameter_angstrom: Annotated[
        float | None,
        Option(
            "Diameter of the particle",
            unit="A",
            above=0,
            unset="measured in the map",
            needs=(Setting("normalise"), Setting("align_to")),
        ),
    ] = None,
    particles: Annotated[
        str | Path | None,
        Option(
            "Particles of the map; their poses follow, into a STAR beside --out", metavar="STAR"
        ),
    ] = None,
    data_dir: DataDir = None,
    passthrough: Passthrough = None,
    overwrite: OverwriteFile = False,
) -> VolumeWritten:
    """Change a map: resample, flip its hand, centre, crop or pad, align to another, symmetrise,
    filter, normalise, subtract another. What is asked for is done in this order.

    Example: halfmap volume refined/map.mrc --flip-hand --box 160 --out flipped.mrc

    Raises:
        InputError: nothing asked for, unreadable files, sizes that do not fit, a map off the axes
            of the symmetry, or `out` exists.
    """
    arguments, path, source = locals(), Path(out), map_of(map)
    star = None if particles is None else path.with_suffix(".star")
    refuse_existing([one for one in (path, star) if one is not None], overwrite=overwrite)
    work = _Map(*read_map_with_size(source))
    posed = None if particles is None else read_posed_particles(particles, data_dir, passthrough)
    work = _resampled(work, source, pixel_size_angstrom, like)
    if flip_hand:
        hand = Alignment(torch.eye(3), torch.zeros(3), True, 1.0)
        work = work.after(mirror(work.density), "flipped the hand", laid=hand)
    if centre:
        work = _centred(work)
    if box is not None:
        work = work.after(crop_or_pad(work.density, box, dimensions=3), f"box {work.box} -> {box}")
    if align_to is not None:
        work = _aligned(work, align_to, diameter_angstrom, either_hand=either_hand)
    if symmetry is not None:
        work = _symmetrised(work, source, symmetry)
    work = _filtered(work, lowpass_angstrom, highpass_angstrom, bfactor_angstrom2)
    if normalise:
        radius = diameter_px(diameter_angstrom, work.density, work.pixel) / 2
        level = normalise_background(work.density, radius_px=radius)
        work = work.after(level, "background normalised")
    if difference is not None:
        work = _subtracted(work, difference, mask)
    if not work.steps:
        raise InputError("volume: nothing to do; name a change, such as --flip-hand or --box 128")
    write_map(path, work.density.numpy(), work.pixel)
    with drawing(str(path.with_suffix(".png"))):
        picture = work.density.numpy()
        save_map_picture(path.with_suffix(".png"), picture, work.pixel, title=path.stem)
    if posed is not None and star is not None:
        write_poses_that_follow(posed, work.followed, star)
    written = VolumeWritten(path, work.steps, star)
    others = [path.with_suffix(".png"), path.with_suffix(".star")]
    done = "; ".join(work.steps)
    leave_record(volume, arguments, path, others if star else others[:1], summary=done)
    return written


def _resampled(
    work: _Map, source: Path, pixel_size_angstrom: float | None, like: str | Path | None
) -> _Map:
    """At another pixel size, or on the grid of another map."""
    if like is not None and pixel_size_angstrom is not None:
        raise InputError("--like and --pixel-size: expected one of them")
    if like is not None:
        other, wanted = read_map_with_size(Path(like))
        box = other.shape[-1]
    elif pixel_size_angstrom is not None:
        wanted = pixel_size_angstrom
        box = 2 * round(work.box * work.pixel / wanted / 2)
    else:
        return work
    ratio = wanted / work.pixel
    if not 0.05 < ratio < 20:
        raise InputError(
            f"{source}: pixel size {work.pixel:.4g} A, {wanted:.4g} A were asked for; expected at "
            "most 20 times more or less"
        )
    padded, resized = resampled_boxes(work.box, ratio)
    density = crop_or_pad(work.density, padded, dimensions=3)
    density = crop_or_pad(fourier_resize(density, resized, dimensions=3), box, dimensions=3)
    pixel = work.pixel * padded / resized
    told = f"pixel size {work.pixel:.4g} -> {pixel:.4g} A, box {work.box} -> {box}"
    return work.after(density, told, pixel=pixel)


def _centred(work: _Map) -> _Map:
    smooth = lowpass(work.density, 6 * work.pixel, work.pixel, dimensions=3)
    shift = centre_of_mass_px(smooth)
    laid = Alignment(torch.eye(3), shift, False, 1.0)
    moved = ", ".join(f"{-float(s) * work.pixel:.2f}" for s in shift)
    return work.after(
        laid.apply_to_map(work.density), f"shifted by ({moved}) A to the centre of mass", laid=laid
    )


def _aligned(
    work: _Map, onto: str | Path, diameter_angstrom: float | None, *, either_hand: bool
) -> _Map:
    target = _other_map(work, onto)
    shells = int(work.box * work.pixel / _ALIGNED_TO_ANGSTROM)
    radius = max(4, min(shells, work.box // 3, _MOST_SHELLS))
    across = diameter_px(diameter_angstrom, target, work.pixel)
    found = align(work.density, target, radius=radius, diameter_px=across, either_hand=either_hand)
    told = (
        f"laid onto {onto}, correlation {found.correlation:.3f} to "
        f"{work.box * work.pixel / radius:.3g} A{', mirrored' if found.mirrored else ''}"
    )
    return work.after(found.apply_to_map(work.density), told, laid=found)


def _other_map(work: _Map, path: str | Path) -> Float[Tensor, "N N N"]:
    """Another map on the grid of this one."""
    other, pixel = read_map_with_size(map_of(path))
    if other.shape[-1] != work.box or not same_pixel_size(pixel, work.pixel):
        raise InputError(
            f"{path}: {other.shape[-1]} voxels of {pixel:.4g} A, the map has {work.box} of "
            f"{work.pixel:.4g} A; add --like {path}"
        )
    return other


def _symmetrised(work: _Map, source: Path, group: str) -> _Map:
    matrices = symmetry_matrices(group)
    whole = symmetrised(work.density, matrices)
    n, coarse = len(matrices), max(_AXES_COMPARED_ANGSTROM, 3 * work.pixel)
    before, after = (
        lowpass(v - v.mean(), coarse, work.pixel, dimensions=3).square().sum()
        for v in (work.density, whole)
    )
    # the power of the mean of n maps that correlate by c with one another is (1 + (n - 1) c) / n
    alike = float((after / before * n - 1) / max(n - 1, 1)) if n > 1 else 1.0
    if alike < _LEAST_ALIKE:
        raise InputError(
            f"{source}: correlates by {alike:.2f} with its {group} mates at {coarse:.3g} A, "
            f"expected {_LEAST_ALIKE:g} or more; lay it on its axes first, with halfmap symmetry"
        )
    return work.after(whole, f"averaged over {group}, mates correlate by {alike:.3f}")


def _filtered(work: _Map, low: float | None, high: float | None, bfactor: float | None) -> _Map:
    for angstrom, name, keep in (
        (low, "low-passed", lambda v, smooth: smooth),
        (high, "high-passed", lambda v, smooth: v - smooth),
    ):
        if angstrom is not None:
            _check_resolution(work, angstrom)
            smooth = lowpass(work.density, angstrom, work.pixel, dimensions=3)
            work = work.after(keep(work.density, smooth), f"{name} at {angstrom:g} A")
    if bfactor is not None:
        s = torch.arange(work.box) / (work.box * work.pixel)
        gain = torch.exp(-bfactor * s.square() / 4)
        density = filter_shells(work.density, gain, dimensions=3)
        work = work.after(density, f"B-factor {bfactor:g} A^2")
    return work


def _check_resolution(work: _Map, angstrom: float) -> None:
    if not 2 * work.pixel <= angstrom <= work.box * work.pixel:
        raise InputError(
            f"--lowpass, --highpass {angstrom:g}: expected {2 * work.pixel:.3g} to "
            f"{work.box * work.pixel:.4g} A, which this map has"
        )


def _subtracted(work: _Map, other: str | Path, mask: str | Path | None) -> _Map:
    second = _other_map(work, other)
    inside = None if mask is None else read_mask(mask, work.box, work.pixel)
    density = difference_map(work.density, second, mask=inside)
    share = float(density.square().sum() / work.density.square().sum())
    return work.after(density, f"minus {other} scaled to it; {100 * share:.2f} % of power is left")
