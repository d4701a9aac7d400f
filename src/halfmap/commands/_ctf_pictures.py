"""What `ctfrefine` shows: wavefronts of optics groups, defocus and astigmatism of micrographs."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from halfmap.ctf_parameters import CTFParameters
from halfmap.distributed import is_first
from halfmap.engine.problem import Problem
from halfmap.methods.aberration_fit import mean_defocus
from halfmap.methods.ctf_refinement import Step, Wanted
from halfmap.methods.wavefront import Wavefront, measure_wavefront
from halfmap.plots.wavefront import PhaseError, save_micrograph_plot, save_wavefront_plot
from halfmap.workspace.figures import FIGURES, Figure, add_figures
from halfmap.workspace.job import Job
from halfmap.workspace.progress import drawing

ODD, EVEN = ("beam tilt, trefoil", "spherical aberration, tetrafoil")
WAVEFRONT, MICROGRAPHS = "pictures/aberrations.png", "pictures/micrographs.png"


def kinds_shown(wanted: Wanted) -> dict[str, str]:
    """Which errors of the wavefront were fitted, by kind, and what they are called."""
    asked = {
        "odd": wanted.beam_tilt or wanted.trefoil,
        "even": wanted.spherical or wanted.tetrafoil,
    }
    return {kind: {"odd": ODD, "even": EVEN}[kind] for kind, one in asked.items() if one}


def draw_wavefronts(
    job: Job,
    given: CTFParameters,
    last: Step,
    wanted: Wanted,
    advance: Callable[[int], None],
) -> None:
    """Measure and draw the errors of the wavefront that were asked for; all processes measure."""
    kinds = kinds_shown(wanted)
    if not kinds:
        return
    found = measure_wavefront(last.problem, last.state, given, advance)
    shown = [
        PhaseError(
            f"optics group {one.group}: {kinds[one.kind]}",
            one.measured,
            one.fitted,
            1 / one.edge_per_angstrom,
        )
        for one in sorted(found, key=lambda one: one.group)
        if one.kind in kinds
    ]
    if is_first():
        with drawing(WAVEFRONT):
            save_wavefront_plot(job.path(WAVEFRONT), shown)
        with drawing(FIGURES):
            add_figures(
                job.folder, *(_along_x(one, kinds[one.kind]) for one in found if one.kind in kinds)
            )


def _along_x(one: Wavefront, name: str) -> Figure:
    """The phases along kx and ky, as curves."""
    middle = one.fitted.shape[0] // 2
    x = np.arange(middle + 1) / middle * one.edge_per_angstrom
    curves = {
        "measured, along x": one.measured[middle, middle:],
        "fitted, along x": one.fitted[middle, middle:],
        "measured, along y": one.measured[middle:, middle],
        "fitted, along y": one.fitted[middle:, middle],
    }
    return Figure(
        f"Phase error of optics group {one.group} ({name})",
        "resolution (Å)",
        "phase error found (rad)",
        x.tolist(),
        {label: values.tolist() for label, values in curves.items()},
        x_kind="resolution",
        lines={"0": 0.0},
    )


def draw_micrographs(
    job: Job, before: CTFParameters, problem: Problem, wanted: Wanted, used: np.ndarray
) -> None:
    """Draw what the micrographs' defocus and astigmatism changed by."""
    group = problem.scale_group.numpy()[used]
    old, new = before.take(used), problem.particles.transfer.take(used)
    defocus = astigmatism = None
    if wanted.defocus != "none":
        change = np.asarray(mean_defocus(new) - mean_defocus(old))
        defocus = by_group(change, group, (0.1, 0.5, 0.9))
    if wanted.astigmatism:
        earlier, now = (first_of_group(_vector(one), group) for one in (old, new))
        astigmatism = (earlier, now)
    if defocus is None and astigmatism is None:
        return
    with drawing(MICROGRAPHS):
        save_micrograph_plot(job.path(MICROGRAPHS), defocus, astigmatism)
    if defocus is not None:
        with drawing(FIGURES):
            add_figures(job.folder, _defocus_figure(defocus))


def by_group(
    values: Float[np.ndarray, " n"], group: Int[np.ndarray, " n"], shares: Sequence[float]
) -> Float[np.ndarray, "M q"]:
    """Quantiles of the values of each group that there is, in the order of their numbers."""
    return np.array([np.quantile(values[group == g], shares) for g in np.unique(group)])


def first_of_group(
    values: Float[np.ndarray, "n d"], group: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "M d"]:
    """The first row of each group."""
    return values[np.unique(group, return_index=True)[1]]


def _vector(p: CTFParameters) -> Float[np.ndarray, "n 2"]:
    apart = np.asarray(p.defocus_u_angstrom - p.defocus_v_angstrom)
    twice = np.radians(2 * np.asarray(p.defocus_angle_deg))
    return np.stack([apart * np.cos(twice), apart * np.sin(twice)], 1)


def _defocus_figure(defocus: Float[np.ndarray, "M 3"]) -> Figure:
    names = ("lowest tenth of its particles", "median", "highest tenth")
    curves = dict(zip(names, defocus.T.tolist(), strict=True))
    number = list(range(1, len(defocus) + 1))
    return Figure(
        "Change of defocus by micrograph",
        "micrograph, in the order of the file",
        "new less old defocus (Å)",
        number,
        curves,
        lines={"0": 0.0},
    )
