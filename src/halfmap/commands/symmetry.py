"""The symmetry of a map."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.asymmetry import (
    CORNERS_UNDERSTATE,
    Departure,
    departure_from,
    held_symmetry,
    noise_like_corners,
)
from halfmap.commands._beside import leave_record
from halfmap.commands._half_maps import read_half_maps
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
from halfmap.io.mrc import same_pixel_size, write_map
from halfmap.masks import soft_sphere
from halfmap.options import command
from halfmap.plots.tiles import save_map_picture
from halfmap.resolution import fourier_shell_correlation
from halfmap.symmetry_search import (
    LEAST_SHARE,
    FoundSymmetry,
    GroupScore,
    expected_by_shell,
    find_symmetry,
    mean_over_slices,
    usable_radius,
)
from halfmap.workspace.progress import drawing

_SHOWN = 6  # groups in the table


@dataclass(frozen=True)
class MapSymmetry:
    """The group found and how it compares, up to which resolution, and what was written."""

    found: FoundSymmetry
    resolution_angstrom: float
    path: Path | None = None
    particles_path: Path | None = None
    departure: Departure | None = None
    pixel_size_angstrom: float = 1.0

    @property
    def group(self) -> str:
        """The point group, C1 if there is none."""
        return self.found.group

    @property
    def lines(self) -> tuple[str, ...]:
        """The best groups tried, and what noise and chance allow."""
        head = "group    correlation   lowest of an operator   of what noise allows"
        rows = [
            f"{one.group:8}{one.mean:12.3f}{one.weakest:24.3f}"
            f"{100 * one.mean / self.found.expected:21.0f} %"
            for one in self.found.scores[:_SHOWN]
        ]
        chance = f"{'none':8}{self.found.by_chance:12.3f}   (turned at random)"
        told = self.warning
        return (head, *rows, chance, *([] if told is None else [told]))

    @property
    def warning(self) -> str | None:
        """Where a part of the map does not follow the group, if one surely does not."""
        if self.departure is None or not self.departure.sure:
            return None
        x, y, z = (self.pixel_size_angstrom * one for one in self.departure.place_px)
        group = self.group if self.found.nearly is None else self.found.nearly.group
        return (
            f"but a part does not follow {group}: at {x:.0f}, {y:.0f}, {z:.0f} A (x, y, z "
            f"from the map's corner) it differs from the mean of its mates by "
            f"{self.departure.deviations:.0f} times the noise, {self.departure.of_highest:.0%} of "
            f"the highest density; where that is a ligand or a subunit, reconstruct in C1, or "
            f"halfmap refine --relax-symmetry {group}"
        )

    @property
    def summary(self) -> str:
        """The group with its score against the next best and against none."""
        best, second = self.found.best, self.found.runner_up
        other = f"next best {second.group} {second.mean:.3f}, " if second else ""
        allowed = f"symmetric at this noise {self.found.expected:.3f}"
        chance = f"by chance {self.found.by_chance:.3f}"
        compared = f"compared to {self.resolution_angstrom:.3g} A"
        nearly = self.found.nearly
        but = "" if nearly is None else f" but for a part {nearly.group} ({nearly.mean:.3f})"
        if best is None:
            return f"C1, no symmetry{but} ({other}{allowed}, {chance}; {compared})"
        told = f"{best.group}, correlation {best.mean:.3f} ({other}{allowed}, {chance}; {compared})"
        if nearly is not None:
            told += f",{but}"
        elif self.warning is not None:
            told += f", but for a part that does not follow {best.group}"
        files = [where(one) for one in (self.path, self.particles_path) if one is not None]
        return told + (f": {' and '.join(files)}" if files else "")


@command
def symmetry(
    map: Annotated[
        str | Path,
        Option(
            "Map of any frame (MRC), or job folder, whose half maps then tell the noise",
            positional=True,
            metavar="MAP|JOB",
        ),
    ],
    out: Annotated[
        str | Path | None,
        Option("Map laid with its axes where RELION has them", metavar="MAP", recorded=False),
    ] = None,
    *,
    group: Annotated[
        str | None,
        Option(
            "Look for the axes of this group alone, such as D2 or I1",
            flag="--symmetry",
            metavar="G",
            check=check_symmetry,
            unset="C2 to C12, D2 to D12, T, O and I",
        ),
    ] = None,
    particles: Annotated[
        str | Path | None,
        Option(
            "Particles of the map; their poses follow it, into a STAR beside --out",
            metavar="STAR",
            needs=(Setting("out"),),
        ),
    ] = None,
    resolution_angstrom: Annotated[
        float | None,
        Option("Compare up to this resolution", unit="A", above=0, unset="where noise begins"),
    ] = None,
    diameter_angstrom: Annotated[
        float | None,
        Option("Diameter of the particle", unit="A", above=0, unset="measured in the map"),
    ] = None,
    data_dir: DataDir = None,
    passthrough: Passthrough = None,
    overwrite: OverwriteFile = False,
) -> MapSymmetry:
    """Find the point group of a map (C, D, T, O, I) and its axes, with a score against the next
    best group and against no symmetry; lay the map on RELION's axes, and its poses with it.

    Every operator of the group must bring the map onto itself as well as the best one does, within
    noise: a group that holds only nearly is not taken, nor one that a part of the map breaks, such
    as a ligand on one subunit; a line says where that is. C1 is an answer too.

    Example: halfmap symmetry initial/map.mrc --out laid.mrc

    Raises:
        InputError: unreadable files, --particles without --out, a map without the symmetry asked
            for, or without any to be laid by; `out` exists.
    """
    arguments, path = locals(), None if out is None else Path(out)
    star = path.with_suffix(".star") if path is not None and particles is not None else None
    refuse_existing([one for one in (path, star) if one is not None], overwrite=overwrite)
    if group is not None and group.strip().upper() in ("C1", "D1"):
        raise InputError(f"--symmetry {group}: expected a group with an axis along z, or none")
    volume, pixel = read_map_with_size(map_of(map))
    posed = None if particles is None else read_posed_particles(particles, data_dir, passthrough)
    found, radius = _found(map, volume, pixel, group, resolution_angstrom, diameter_angstrom)
    departs = _departures(map, volume, pixel, radius, diameter_angstrom)
    if group is None:
        found, departure = held_symmetry(found, departs)
    else:
        departure = None if found.best is None else departs(found.best)
    reached = MapSymmetry(found, volume.shape[-1] * pixel / radius, path, star, departure, pixel)
    if found.best is None and (group is not None or path is not None):
        raise InputError(_nothing_there(map, reached, group))
    if path is not None and found.best is not None:
        laid = found.best.placed.apply_to_map(volume)
        write_map(path, laid.numpy(), pixel)
        with drawing(str(path.with_suffix(".png"))):
            title = f"{path.stem}, {found.group}, correlation {found.best.mean:.3f}"
            save_map_picture(path.with_suffix(".png"), laid.numpy(), pixel, title=title)
        if posed is not None and star is not None:
            write_poses_that_follow(posed, [(found.best.placed, pixel)], star)
        others = [path.with_suffix(".png"), *([] if star is None else [star])]
        leave_record(symmetry, arguments, path, others, summary=reached.summary)
    return reached


def _found(
    source: str | Path,
    volume: Float[Tensor, "N N N"],
    pixel: float,
    group: str | None,
    resolution_angstrom: float | None,
    diameter_angstrom: float | None,
) -> tuple[FoundSymmetry, int]:
    """The symmetry, and on how many shells it was looked for."""
    box = volume.shape[-1]
    across = diameter_px(diameter_angstrom, volume, pixel)
    by_shell = expected_by_shell(volume, diameter_px=across)
    if Path(source).is_dir():
        by_shell = torch.where(by_shell > 0, _expected_of_halves(source, across, pixel), 0.0)
    radius = usable_radius(by_shell, box)
    if resolution_angstrom is not None:
        radius = round(box * pixel / resolution_angstrom)
        width, most = box * pixel, box // 2 - 1
        if not 3 <= radius <= most:
            raise InputError(
                f"--resolution {resolution_angstrom:g}: expected {width / most:.3g} to "
                f"{width / 3:.4g} A, which this map has"
            )
    found = find_symmetry(
        volume,
        radius=radius,
        diameter_px=across,
        asked=None if group is None else group.strip().upper(),
        expected=mean_over_slices(by_shell, radius),
    )
    return found, radius


def _departures(
    source: str | Path,
    volume: Float[Tensor, "N N N"],
    pixel: float,
    radius: int,
    diameter_angstrom: float | None,
) -> Callable[[GroupScore], Departure | None]:
    """Where the map departs from a group laid on it, beyond the noise that a job's half maps show
    or, without them, that of the box's corners; None where neither tells it."""
    across = diameter_px(diameter_angstrom, volume, pixel)
    noise: Float[Tensor, "N N N"] | None
    if Path(source).is_dir():
        halves = read_half_maps(source)
        volume, noise = halves.average, (halves.half1 - halves.half2) / 2
    else:
        alike = noise_like_corners(volume)
        noise = None if alike is None else CORNERS_UNDERSTATE * alike

    def departs(one: GroupScore) -> Departure | None:
        if noise is None:
            return None
        return departure_from(
            volume, noise, one.placed, one.group, radius=radius, diameter_px=across
        )

    return departs


def _expected_of_halves(job: str | Path, across: float, pixel: float) -> Float[Tensor, " S"]:
    """Correlation of the whole map with a copy of other noise, `2 FSC / (1 + FSC)` of its halves in
    the sphere."""
    halves = read_half_maps(job)
    if not same_pixel_size(halves.pixel_size_angstrom, pixel):
        raise InputError(f"{job}: map.mrc and the half maps have different pixel sizes")
    sphere = soft_sphere(halves.box, radius_px=across / 2, edge_px=2)
    fsc = fourier_shell_correlation(
        halves.half1, halves.half2, pixel_size_angstrom=pixel, mask=sphere
    ).correlation.clamp(0, 1)
    return 2 * fsc / (1 + fsc)


def _nothing_there(source: str | Path, reached: MapSymmetry, group: str | None) -> str:
    best = max(reached.found.scores, key=lambda one: one.mean)
    asked = f"no {group.strip().upper()} symmetry" if group is not None else "no symmetry"
    if (nearly := reached.found.nearly) is not None:
        return (
            f"{source}: no symmetry found, but for a part {nearly.group}; --symmetry "
            f"{nearly.group} lays it on those axes all the same; nothing was written"
        )
    return (
        f"{source}: {asked} found: its best correlation with symmetry mates is {best.mean:.3f} "
        f"({best.group}), at least {LEAST_SHARE * reached.found.expected:.3f} was expected at this "
        f"noise; nothing was written"
    )
