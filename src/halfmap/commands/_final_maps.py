"""The maps of the last iteration, as they are written."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.commands._finishing import MASK, FscMask, curves_in, own_mask, save_half_map_plot
from halfmap.commands._summaries import OPTIMISTIC, mask_in_words, resolved
from halfmap.distributed import is_first
from halfmap.engine.image_model import noise_variance
from halfmap.engine.loop import sum_at_significant_poses
from halfmap.engine.method import Method
from halfmap.engine.problem import Problem
from halfmap.engine.state import State
from halfmap.fsc_files import write_fsc_star
from halfmap.io.mrc import write_map
from halfmap.masks import inside_box, is_mask_of
from halfmap.methods.reference_update import regularised, trusted_ssnr
from halfmap.methods.settings import Settings
from halfmap.plots.tiles import save_map_picture
from halfmap.projection import Sums
from halfmap.reconstruction import unregularised
from halfmap.resolution import HalfMapCurves, resolution_at
from halfmap.workspace.progress import Progress, drawing


@dataclass(frozen=True)
class FinalMaps:
    """Maps (K, N, N, N), their half maps (neither filtered nor masked), and the half maps'
    curves in a mask."""

    maps: Float[Tensor, "K N N N"]
    halves: Float[Tensor, "2 K N N N"]
    curves: list[HalfMapCurves]
    mask: FscMask

    @property
    def resolutions_angstrom(self) -> tuple[float, ...]:
        return tuple(resolution_at(curve.final, 0.143) for curve in self.curves)


def last_maps(
    problem: Problem,
    settings: Settings,
    method: Method,
    state: State,
    progress: Progress,
    mask: str | Path | None,
) -> FinalMaps:
    """The final maps of the last state: both halves summed to the last shell, at the poses and
    weights it holds, class by class. `mask` is the file that the settings' masks are of, if there
    is one."""
    progress.start_stage("final maps", problem.n_classes * int((problem.half >= 0).sum()))
    shape = problem.n_classes, *([problem.particles.box] * 3)
    maps, halves, curves = torch.empty(shape), torch.empty(2, *shape), []
    inside = fsc_mask(problem, settings, mask)
    for k in range(problem.n_classes):  # one at a time: their sums are the largest of a job
        sums = sum_at_significant_poses(
            problem, method.assign, state, advance=progress.advance, only_class=k
        )
        one = final_maps(problem, settings, sums, noise_variance(state), inside)
        maps[k], halves[:, k] = one.maps[0], one.halves[:, 0]
        curves += one.curves
    return FinalMaps(maps, halves, curves, inside)


def final_maps(
    problem: Problem,
    settings: Settings,
    sums: list[Sums],
    variance: Float[Tensor, "G S"],
    inside: FscMask,
) -> FinalMaps:
    """Reconstruct every class: `num / (k + den)` over both halves, k from the half maps' FSC inside
    the mask, or the constant asked for. The sums of the first half become those of both."""
    box, total = problem.particles.box, sums[0]
    halves = torch.empty(2, len(total.den), *([box] * total.dimensions))
    for n in range(2):
        halves[n] = unregularised(sums[n])
    total.num.add_(sums[1].num)
    total.den.add_(sums[1].den)
    sums.clear()  # nobody needs them any more: there may be no room for both and for what follows
    pixel = problem.particles.pixel_size_angstrom
    curves = [curves_in(a, b, pixel, inside) for a, b in zip(*halves, strict=True)]
    fsc = torch.stack([c.final.correlation for c in curves]).to(total.den)[:, : total.radius + 1]
    maps = regularised(
        total, settings, variance.to(total.den.device), trusted_ssnr(fsc, of_sum=True)
    )
    return FinalMaps(maps.cpu(), halves, curves, inside)


def fsc_mask(problem: Problem, settings: Settings, mask: str | Path | None) -> FscMask:
    """The settings' mask of the FSC under the name of the user's file. A sphere, and what is no
    longer that file (moved, on another grid, ended inside the box), the job writes: `postprocess`
    takes it up again, and refuses one that the box cuts."""
    values = settings.fsc_mask.cpu()
    if mask is None:
        return FscMask(inside_box(values), MASK, mask_in_words(problem, None))
    name = str(mask) if is_mask_of(mask, values) else MASK
    return FscMask(values, name, mask_in_words(problem, name))


def in_own_mask(final: FinalMaps, pixel_size_angstrom: float) -> FinalMaps:
    """The same maps of one class, their FSC in a mask made of the half maps, inside the sphere that
    they were refined in; the maps' regularisation stays what the sphere gave."""
    half1, half2 = final.halves[:, 0]
    mask = own_mask(half1, half2, pixel_size_angstrom, final.mask.values, final.mask.words)
    return replace(final, curves=[curves_in(half1, half2, pixel_size_angstrom, mask)], mask=mask)


def write_map_files(
    final: FinalMaps,
    k: int,
    pixel_size_angstrom: float,
    *,
    map_path: Path,
    prefix: str,
    pictures: str,
    words: str,
    mask_path: Path | None = None,
    with_halves: bool = True,
    optimistic: bool = False,
) -> None:
    """Map k and its picture; with halves `{prefix}half1.mrc`, `{prefix}half2.mrc`,
    `{prefix}fsc.star`, the mask of the FSC unless it is the user's own file (`{prefix}mask.mrc`,
    or `mask_path`) and the curve's picture too. `words`: what it is made of (`made_of`).
    `optimistic`: the halves share references, and title and table say so."""
    if not is_first():
        return
    curves, resolution = final.curves[k], final.resolutions_angstrom[k]
    remark = f", {OPTIMISTIC}" if optimistic else ""
    write_map(map_path, final.maps[k].numpy(), pixel_size_angstrom)
    picture = f"{pictures}{map_path.stem}.png"
    with drawing(picture):
        title = f"{map_path.stem}, {resolved(resolution)} at FSC 0.143{remark}, {words}"
        save_map_picture(picture, final.maps[k].numpy(), pixel_size_angstrom, title=title)
    if not with_halves:
        return
    for h in range(2):
        write_map(Path(f"{prefix}half{h + 1}.mrc"), final.halves[h, k].numpy(), pixel_size_angstrom)
    if final.mask.name == MASK:
        place = mask_path or Path(f"{prefix}{MASK}")
        curves = replace(curves, mask_name=place.name)
        if k == 0:
            write_map(place, final.mask.values.numpy(), pixel_size_angstrom)
    write_fsc_star(f"{prefix}fsc.star", curves, optimistic=optimistic)
    plot = Path(f"{pictures}{Path(prefix + 'fsc').name}.png")
    save_half_map_plot(plot, curves, title=f"{map_path.stem}{remark}, {words}")
