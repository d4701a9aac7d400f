"""The job `halfmap ctfrefine`: transfer functions refined at known poses."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from halfmap.commands import _inputs, _setup
from halfmap.commands._ctf_pictures import draw_micrographs, draw_wavefronts, kinds_shown
from halfmap.commands._figures import counts_figure
from halfmap.commands._finishing import MASK
from halfmap.commands._job import OpenJob, open_job
from halfmap.commands._options import (
    Annotated,
    Contrast,
    DataDir,
    Device,
    Diameter,
    Folds,
    Literal,
    Memory,
    Option,
    OutFolder,
    Overwrite,
    ParticlesFile,
    Passthrough,
    Quiet,
    Resume,
    Seed,
    Setting,
    Symmetry,
    Threads,
)
from halfmap.commands._volumes import first_state
from halfmap.ctf_parameters import CTFParameters
from halfmap.distributed import is_first
from halfmap.engine.problem import Problem
from halfmap.engine.state import State
from halfmap.errors import InputError
from halfmap.io.mrc import write_map
from halfmap.masks import resampled
from halfmap.methods.aberration_fit import TETRAFOIL, TREFOIL, mean_defocus
from halfmap.methods.ctf_refinement import OwnMask, Step, Wanted, passes, refine_ctf
from halfmap.methods.settings import Settings
from halfmap.options import command
from halfmap.particles import Particles
from halfmap.pose_search.refinement import SearchSettings
from halfmap.workspace.figures import FIGURES, Figure, add_figures
from halfmap.workspace.job import Job
from halfmap.workspace.progress import Progress, drawing

THRESHOLD = 0.143  # correlation of the half maps to which images are compared with them


@dataclass(frozen=True)
class CtfRefined:
    """The particles with their new transfer functions, and what was found."""

    folder: Path
    particles_path: Path
    found: tuple[str, ...]

    @property
    def summary(self) -> str:
        return "; ".join((*self.found, str(self.particles_path)))


@command
def ctfrefine(
    particles: ParticlesFile,
    out: OutFolder,
    *,
    symmetry: Symmetry = "C1",
    defocus: Annotated[
        Literal["particle", "micrograph", "none"],
        Option("Whose defocus is refined; particles of a micrograph share what they cannot tell"),
    ] = "particle",
    astigmatism: Annotated[bool, Option("Refine the astigmatism of each micrograph")] = False,
    beam_tilt: Annotated[bool, Option("Refine the beam tilt of each optics group")] = False,
    trefoil: Annotated[bool, Option("Refine the trefoil of each optics group")] = False,
    spherical_aberration: Annotated[
        bool, Option("Refine the spherical aberration of each optics group")
    ] = False,
    tetrafoil: Annotated[bool, Option("Refine the tetrafoil of each optics group")] = False,
    magnification: Annotated[
        bool, Option("Refine the magnification matrix of each optics group")
    ] = False,
    defocus_range_angstrom: Annotated[
        float,
        Option(
            "Largest change of defocus, and of astigmatism",
            unit="A",
            above=0,
            needs=(Setting("defocus", other_than=("none",)), Setting("astigmatism")),
        ),
    ] = 2000.0,
    rounds: Annotated[
        int, Option("How often all that is asked for is refined in turn", at_least=1, metavar="N")
    ] = 2,
    diameter_angstrom: Diameter = None,
    mask: Annotated[
        str | Path | None,
        Option(
            "Mask (MRC, values 0 to 1) that maps are cut out with",
            metavar="MAP",
            unset="made of the half maps",
        ),
    ] = None,
    folds: Folds = 4,
    data_dir: DataDir = None,
    passthrough: Passthrough = None,
    contrast: Contrast = None,
    seed: Seed = 1,
    device: Device = "auto",
    threads: Threads = None,
    memory: Memory = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    quiet: Quiet = False,
) -> CtfRefined:
    """Refine defocus, astigmatism and aberrations of particles whose poses are known.

    Each image is compared with a map of its half that it is no part of, at its pose, cut out with
    the mask given or with one that is made of the half maps (`mask.mrc`):
    `argmax log P(X | V, phi, C)` over the parameters of C. `particles.star` in the job folder holds
    the new ones in RELION's columns; go on with `halfmap refine --local`, or `halfmap reconstruct`.
    A job that was stopped starts again.

    Example: halfmap ctfrefine --particles refined/particles.star --out ctf --beam-tilt

    Raises:
        InputError: any bad input, in one line.
    """
    arguments = locals()
    wanted = Wanted(
        defocus=defocus,
        astigmatism=astigmatism,
        beam_tilt=beam_tilt,
        trefoil=trefoil,
        spherical=spherical_aberration,
        tetrafoil=tetrafoil,
        magnification=magnification,
        range_angstrom=defocus_range_angstrom,
        rounds=rounds,
    )
    if not wanted.stages:
        raise InputError(
            "--defocus none: nothing is left to refine; name --astigmatism, --beam-tilt, "
            "--trefoil, --spherical-aberration, --tetrafoil or --magnification"
        )
    with open_job(ctfrefine, arguments) as run:
        data = _read(particles, arguments)
        opened = _opened(data, run, arguments)
        found = _refine(opened, wanted, run.job, run.progress, with_own_mask=mask is None)
        run.job.update(found=list(found), particles=len(data))
    return CtfRefined(Path(out), Path(out, "particles.star"), found)


@dataclass(frozen=True)
class Opened:
    """A job ready for its first pass."""

    problem: Problem
    settings: Settings
    state: State


def _read(particles: str | Path, arguments: Mapping[str, Any]) -> Particles:
    where = {name: arguments[name] for name in ("data_dir", "passthrough", "contrast")}
    data = _inputs.read_particles(particles, ctf=True, **where)
    _inputs.require_orientations(data, "ctfrefine")
    stored = np.flatnonzero(data.transfer.premultiplied)
    if len(stored):
        raise InputError(
            f"{particles}: row {stored[0] + 1}: the image is CTF-premultiplied, so that its CTF is "
            "fixed; give the images as they were before"
        )
    return data


def _opened(data: Particles, run: OpenJob, arguments: Mapping[str, Any]) -> Opened:
    device = run.device
    radius_px = _inputs.particle_radius_px(arguments["diameter_angstrom"], data, None)
    solvent = _inputs.solvent_mask(
        arguments["mask"], data, radius_px, dimensions=3, device=device, progress=run.progress
    )
    problem = _setup.open_problem(
        data,
        run.job,
        run.progress,
        radius_px=radius_px,
        symmetry=arguments["symmetry"],
        dimensions=3,
        n_classes=1,
        matched_to="own",
        ctf=True,
        learn_norm_and_scale=False,
        memory=arguments["memory"],
        seed=arguments["seed"],
        device=device,
        folds=arguments["folds"],
    )
    settings = Settings(
        SearchSettings(problem.specimen), THRESHOLD, reference_mask=solvent, fsc_mask=solvent
    )
    box, pixel = data.box, data.pixel_size_angstrom
    no_maps = torch.zeros(
        problem.n_parts, 1, box, box, box
    )  # the first pass makes them, to Nyquist
    return Opened(problem, settings, first_state(problem, no_maps, 2 * pixel))


def _refine(
    opened: Opened, wanted: Wanted, job: Job, progress: Progress, *, with_own_mask: bool
) -> tuple[str, ...]:
    """Stage by stage, told as they are done; the particles are written at the end."""
    problem, settings = opened.problem, opened.settings
    used = problem.used.numpy()
    measured = 1 if kinds_shown(wanted) else 0  # a pass more, for the picture of the wavefront
    progress.start_stage("refining the CTF", (passes(wanted) + measured) * len(used))
    last = None
    steps = refine_ctf(
        problem, settings, opened.state, wanted, progress.advance, with_own_mask=with_own_mask
    )
    for step in steps:
        words = _change(step, last.problem if last else problem, used)
        progress.note(words)
        job.event(iteration=step.state.iteration, round=step.round, stage=step.stage, words=words)
        last = step
    assert last is not None
    _write(job, last, used)
    given = problem.particles.transfer
    draw_wavefronts(job, given, last, wanted, progress.advance)
    if is_first():
        draw_micrographs(job, given, last.problem, wanted, used)
        with drawing(FIGURES):
            old, new = problem.particles, last.problem.particles
            add_figures(job.folder, *_figures(old, new, wanted, used))
    return _found(problem.particles, last.problem.particles, wanted, used)


def _change(step: Step, before: Problem, used: np.ndarray) -> str:
    """What a stage changed, in words."""
    old, new = before.particles.transfer, step.problem.particles.transfer
    name = {
        "odd": "beam tilt and trefoil",
        "even": "spherical aberration and tetrafoil",
    }.get(step.stage, step.stage)
    if not step.told:
        return f"{name}, round {step.round}: images do not tell it from noise; left as it was"
    change = np.median(np.abs(mean_defocus(new) - mean_defocus(old))[used])
    by = f": defocus changed by {change:.0f} A (median)" if step.stage == "defocus" else ""
    return f"{name} refined, round {step.round}{by}"


def _found(
    before: Particles, after: Particles, wanted: Wanted, used: np.ndarray
) -> tuple[str, ...]:
    """One line for the defocus, and one for each optics group whose aberrations were refined."""
    old, new = before.transfer.take(used), after.transfer.take(used)
    lines = []
    if wanted.defocus != "none":
        change = mean_defocus(new) - mean_defocus(old)
        lines.append(
            f"defocus changed by {np.median(np.abs(change)):.0f} A (median; mean "
            f"{change.mean():+.0f} A)"
        )
    if wanted.astigmatism:
        half = (new.defocus_u_angstrom - new.defocus_v_angstrom) / 2
        lines.append(f"astigmatism {2 * np.median(half):.0f} A (median)")
    for group in np.unique(after.optics_group[used]):
        row = new.take(np.flatnonzero(after.optics_group[used] == group)[:1])
        told = [words(row) for name, words in _ABERRATIONS.items() if getattr(wanted, name)]
        if told:
            number = after.optics_group_number(int(group))
            lines.append(f"optics group {number}: {', '.join(told)}")
    return tuple(lines)


def _figures(
    before: Particles, after: Particles, wanted: Wanted, used: np.ndarray
) -> Iterator[Figure]:
    """How much the defocus changed, and how much astigmatism there is, particle by particle."""
    old, new = before.transfer.take(used), after.transfer.take(used)
    if wanted.defocus != "none":
        change = mean_defocus(new) - mean_defocus(old)
        title, label = "Change of defocus", "new less old defocus (Å)"
        yield counts_figure(title, label, "particles", np.asarray(change), inside=0.99)
    if wanted.astigmatism:
        half = np.asarray(new.defocus_u_angstrom - new.defocus_v_angstrom) / 2
        label = "difference of the two defoci (Å)"
        yield counts_figure("Astigmatism", label, "particles", 2 * half, inside=0.99)


def _coefficients(zernike: np.ndarray, places: tuple[int, ...]) -> str:
    """Two of a row of coefficients, which ends with the last that is not 0."""
    return ", ".join(f"{zernike[n] if n < len(zernike) else 0:.2f}" for n in places)


_ABERRATIONS: dict[str, Callable[[CTFParameters], str]] = {
    "beam_tilt": lambda p: (
        f"beam tilt {p.beam_tilt_x_mrad[0]:.3f}, {p.beam_tilt_y_mrad[0]:.3f} mrad"
    ),
    "trefoil": lambda p: f"trefoil {_coefficients(p.odd_zernike[0], TREFOIL)}",
    "spherical": lambda p: f"spherical aberration {p.spherical_aberration_mm[0]:.3f} mm",
    "tetrafoil": lambda p: f"tetrafoil {_coefficients(p.even_zernike[0], TETRAFOIL)}",
    "magnification": lambda p: (
        f"magnification {p.magnification_xx[0]:.4f} {p.magnification_xy[0]:.4f} "
        f"{p.magnification_yx[0]:.4f} {p.magnification_yy[0]:.4f}"
    ),
}


def _write(job: Job, last: Step, used: np.ndarray) -> None:
    """`particles.star`: the new parameters, and shifts where beam tilts had hidden in them; and
    `mask.mrc`, if maps were cut out with one of their own."""
    if not is_first():
        return
    if isinstance(own := last.state.method, OwnMask):
        box, pixel = last.problem.particles.box, last.problem.particles.pixel_size_angstrom
        write_map(job.path(MASK), resampled(own.values, box).numpy(), pixel)
    data, shift_px = last.problem.particles, last.state.poses.shift_px
    shift_angstrom = shift_px.double().numpy() * data.pixel_size_angstrom
    data.take(used).with_results(
        rotations_deg=data.rotations_deg[used],
        shift_angstrom=shift_angstrom[used],
        class_number=data.class_number[used],
        half_set=data.half_set[used],
    ).write_star(job.path("particles.star"))
