"""What the engine's search makes of single images whose poses are known: rank of the known pose in
the grid, and global search once."""

from dataclasses import dataclass

import numpy as np
import torch

from halfmap.commands import _halves, _inputs, _setup
from halfmap.engine.preprocessing import load_batch
from halfmap.engine.problem import Problem
from halfmap.engine.residuals import initial_noise
from halfmap.fourier import half_plane, shift_phases
from halfmap.likelihood import (
    CORRELATION,
    LOG_LIKELIHOOD,
    ImageTerms,
    cross_terms,
    slice_power,
)
from halfmap.particles import Particles, load_particles
from halfmap.pose_search.adaptive import prepare_search, search_globally
from halfmap.pose_search.refinement import SearchSettings
from halfmap.pose_search.sampling import shift_grid
from halfmap.projection import extract_slices, prepare_references
from halfmap.so3 import orientation_grid
from halfmap.workspace.progress import Progress

BATCH = 64


@dataclass(frozen=True)
class Known:
    """A data set with its poses, as the engine sees it; sigma^2 is estimated from the images'
    power."""

    particles: Particles
    problem: Problem
    noise_variance: torch.Tensor
    symmetry: str


def load(star, *, symmetry: str, diameter_angstrom: float) -> Known:
    particles = load_particles(star)
    radius_px = _inputs.particle_radius_px(diameter_angstrom, particles, None)
    with Progress("benchmark", quiet=True) as progress:
        problem = _setup.make_problem(
            particles,
            _halves.divide_into_halves(particles, 1),
            device=torch.device("cpu"),
            radius_px=radius_px,
            symmetry=symmetry,
            dimensions=3,
            n_classes=1,
            matched_to="own",
            ctf=True,
            learn_norm_and_scale=False,
            memory=None,
            progress=progress,
        )
    everyone = torch.arange(len(particles))
    noise = initial_noise(
        particles, everyone, problem.plane, problem.n_groups, problem.images, batch_size=BATCH
    )
    return Known(particles, problem, noise, symmetry)


def batch_terms(known: Known, rows: torch.Tensor, shift_px: torch.Tensor) -> ImageTerms:
    """Terms of the E-step, the mask centred by the shifts given."""
    return load_batch(
        known.particles,
        rows,
        known.problem.plane,
        known.noise_variance,
        shift_px,
        known.problem.images,
    ).scored


def ranks_of_poses(
    known: Known,
    volumes: torch.Tensor,
    resolution_angstrom: float,
    *,
    shift_range_px: float,
    score: str = "correlation",
) -> np.ndarray:
    """Share of the 7.5-degree grid's orientations that score better than each image's known pose,
    each at its best shift, (n,).

    Images of half 1 are scored against `volumes[1]`, those of half 2 against `volumes[0]`, so that
    no image meets itself. Shifts are searched around the known one. `score` is "correlation", or
    "likelihood" where the volumes are on the images' grey scale."""
    particles, problem = known.particles, known.problem
    radius = round(particles.box * particles.pixel_size_angstrom / resolution_angstrom)
    plane = half_plane(particles.box, radius)
    grid = orientation_grid(3, problem.symmetry.rotations.double()).rotations
    phases = shift_phases(shift_grid(shift_range_px, 1.0, device=torch.device("cpu")), plane)
    judge = {"correlation": CORRELATION, "likelihood": LOG_LIKELIHOOD}[score]
    poses, ranks = _inputs.poses_of(particles), np.empty(len(particles))
    for half in range(2):
        slices = extract_slices(prepare_references(volumes[1 - half][None], radius), grid, plane)
        squared = (slices.real**2 + slices.imag**2).T.contiguous()
        own = prepare_references(volumes[1 - half][None], radius)
        for rows in torch.nonzero(problem.half == half)[:, 0].split(BATCH):
            here = poses.select_images(rows)
            terms = batch_terms(known, rows, here.shift_px)
            n = len(plane)
            inside = ImageTerms(
                terms.data[:, :n] * shift_phases(here.shift_px, plane), terms.power[:, :n]
            )
            everywhere = judge(
                cross_terms(inside, phases, slices, plane).amax(1),
                slice_power(inside, squared, plane),
            )
            known_slices = extract_slices(own, here.rotations, plane)
            for i in range(len(rows)):
                one, mine = inside.select_images(torch.tensor([i])), known_slices[i : i + 1]
                power = slice_power(one, (mine.real**2 + mine.imag**2).T.contiguous(), plane)
                value = judge(cross_terms(one, phases, mine, plane).amax(1), power)
                ranks[int(rows[i])] = float((everywhere[i] > value[0, 0]).double().mean())
    return ranks


def search_once(
    known: Known, volume: torch.Tensor, resolution_angstrom: float
) -> tuple[np.ndarray, np.ndarray]:
    """Each image's best pose by the engine's global search against one map: rotations (n, 3, 3) and
    origins in Angstrom (n, 2)."""
    particles, problem = known.particles, known.problem
    radius = round(particles.box * particles.pixel_size_angstrom / resolution_angstrom)
    settings = SearchSettings(problem.specimen)
    plan = prepare_search(prepare_references(volume[None], radius), settings, radius)
    rows = torch.arange(len(particles))
    centre = torch.zeros(len(rows), 2)
    best = search_globally(
        plan, batch_terms(known, rows, centre), centre, problem.plane, radius
    ).best(1)
    return best.rotations[:, 0].double().numpy(), best.shift_px[
        :, 0
    ].double().numpy() * particles.pixel_size_angstrom
