"""What the jobs on volumes, `refine` and `class3d`, have in common: their options, and everything
up to the first iteration."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.commands import _inputs, _setup
from halfmap.commands._centre import laid_about, mask_about
from halfmap.commands._contrast import tell_contrast
from halfmap.commands._options import Search
from halfmap.engine.image_model import NoiseSpectra
from halfmap.engine.problem import Problem
from halfmap.engine.residuals import initial_noise
from halfmap.engine.state import State
from halfmap.fourier import largest_radius
from halfmap.methods.registry import ML
from halfmap.methods.settings import Settings
from halfmap.particles import Contrast
from halfmap.workspace.job import Job
from halfmap.workspace.progress import Progress

INITIAL_LOWPASS_ANGSTROM = 60.0  # RELION's default
ANGULAR_STEP_DEG = _setup.ANGULAR_STEP_DEG
JOIN_HALVES_ANGSTROM = 40.0  # RELION's default
THRESHOLD = 0.143  # correlation of half maps that sets the resolution
LOCAL_RANGE_DEG = 5.0
SEARCHES: tuple[str, ...] = get_args(Search)


@dataclass(frozen=True)
class VolumeOptions:
    """The user's options, as `halfmap.refine` documents them; None takes the default."""

    method: str
    search: str
    symmetry: str
    diameter_angstrom: float | None
    initial_lowpass_angstrom: float | None
    mask: str | Path | None
    iterations: int | None
    angular_step_deg: float | None
    shift_range_px: float
    shift_step_px: float
    local: bool
    local_range_deg: float | None
    sigma_rotation_deg: float | None
    sigma_shift_angstrom: float | None
    wiener_constant: float | None
    tau_fudge: float | None
    ctf: bool
    pixel_size_angstrom: float | None
    box: int | None
    data_dir: str | Path | None
    passthrough: str | Path | Sequence[str | Path] | None
    contrast: Contrast | None
    seed: int
    memory: int | None

    @property
    def lowpass_angstrom(self) -> float:
        return self.initial_lowpass_angstrom or INITIAL_LOWPASS_ANGSTROM

    @property
    def range_deg(self) -> float:
        """Of a local search: three standard deviations of the rotation."""
        if self.sigma_rotation_deg is not None:
            return 3 * self.sigma_rotation_deg
        return self.local_range_deg or LOCAL_RANGE_DEG


def volume_options(arguments: Mapping[str, Any]) -> VolumeOptions:
    """Those of a command's arguments that have the names of the fields."""
    return VolumeOptions(**{one.name: arguments[one.name] for one in fields(VolumeOptions)})


@dataclass(frozen=True)
class OpenedVolumes:
    """A job ready for its first iteration; `start` are the starting maps, low-passed and masked."""

    problem: Problem
    settings: Settings
    start: Float[Tensor, "K N N N"]


def open_volumes(
    particles: str | Path,
    maps: Sequence[str | Path],
    options: VolumeOptions,
    job: Job,
    progress: Progress,
    *,
    classes: int,
    matched_to: Literal["own", "other"],
    device: torch.device,
    folds: int = 1,
    poses_kept: bool = False,
    centre_angstrom: tuple[float, float, float] | None = None,
    relaxed_symmetry: str | None = None,
) -> OpenedVolumes:
    """Read and check everything, cheap checks first; each image meets its own half's references in
    `refine`, made without its own fold, and the other half's in `class3d`. With a centre poses,
    maps and mask are laid about it.

    Raises:
        InputError: any bad input, in one line.
    """
    data = _inputs.read_particles(
        particles,
        data_dir=options.data_dir,
        ctf=options.ctf,
        pixel_size_angstrom=options.pixel_size_angstrom,
        box=options.box,
        passthrough=options.passthrough,
        contrast=options.contrast,
    )
    if options.local:
        _inputs.require_orientations(data, "--local")
    elif not poses_kept:
        _inputs.refuse_expanded(data)
    start = _inputs.read_references(
        maps, data, lowpass_angstrom=options.lowpass_angstrom, device=device, progress=progress
    )
    laid = None
    if centre_angstrom is not None:
        groups = [options.symmetry, *([relaxed_symmetry] if relaxed_symmetry else [])]
        data, laid = laid_about(centre_angstrom, data, groups)
        start = torch.stack([laid.apply_to_map(volume) for volume in start])
    radius_px = _inputs.particle_radius_px(options.diameter_angstrom, data, start[0])
    solvent = _inputs.solvent_mask(
        options.mask,
        data,
        radius_px,
        dimensions=3,
        device=device,
        progress=progress,
        moved=None if laid is None else partial(mask_about, laid),
    )
    problem = _setup.open_problem(
        data,
        job,
        progress,
        radius_px=radius_px,
        symmetry=options.symmetry,
        dimensions=3,
        n_classes=classes,
        matched_to=matched_to,
        ctf=options.ctf,
        learn_norm_and_scale=options.method == ML,
        memory=options.memory,
        seed=options.seed,
        device=device,
        folds=folds,
        angular_step_deg=options.angular_step_deg or ANGULAR_STEP_DEG,
    )
    tell_contrast(problem, progress, start[0])
    search = _setup.search_settings(
        problem,
        options.angular_step_deg or ANGULAR_STEP_DEG,
        options.shift_range_px,
        options.shift_step_px,
        local_range_deg=options.range_deg if options.local else None,
    )
    if options.sigma_shift_angstrom is not None and search.restraint is not None:
        sigma_px = options.sigma_shift_angstrom / data.pixel_size_angstrom
        search = replace(search, restraint=replace(search.restraint, sigma_px=sigma_px))
    anchor = _inputs.poses_of(data) if options.local else None
    join = JOIN_HALVES_ANGSTROM if matched_to == "other" or options.method == ML else None
    settings = Settings(
        search,
        THRESHOLD,
        reference_mask=solvent,
        fsc_mask=solvent,
        wiener_constant=options.wiener_constant,
        tau_fudge=options.tau_fudge or 1.0,
        anchor=anchor,
        join_halves_angstrom=join,
        branch_and_bound=options.search == SEARCHES[1],
    )
    return OpenedVolumes(problem, settings, start * solvent)


def first_state(
    problem: Problem, references: Float[Tensor, "H K N N N"], lowpass_angstrom: float
) -> State:
    """Iteration 0: starting references, the same for each part of the data and of as many parts as
    the memory allows, scored inside the resolution they were filtered to; the file's poses; noise
    from the power."""
    data = problem.particles
    used = torch.nonzero(problem.half >= 0)[:, 0]
    noise = initial_noise(
        data, used, problem.plane, problem.n_groups, problem.images, batch_size=problem.batch_size
    )
    shells = math.ceil(data.box * data.pixel_size_angstrom / lowpass_angstrom) + 1
    radius = min(largest_radius(data.box), max(3, shells))
    curves = torch.zeros(problem.n_classes, problem.plane.radius + 1)
    if problem.matched_to == "own":
        references = references[: 2 * problem.folds_at(radius)]
    return State(
        iteration=0,
        references=references.cpu(),
        poses=_inputs.poses_of(data).in_one_class(),
        radius=radius,
        curves=curves,
        statistics=(NoiseSpectra(noise.cpu()),),
    )
