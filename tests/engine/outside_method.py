"""A job run by a method and a statistic that the package knows nothing of (docs/examples), as a
program of its own: `python outside_method.py PARTICLES MAP FOLDER`. It goes on where the folder
has a checkpoint."""

import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "examples"))

from momentum import with_momentum

from halfmap.commands import _inputs
from halfmap.engine.checkpoint import state_from_arrays, state_to_arrays
from halfmap.engine.image_model import NoiseSpectra
from halfmap.engine.loop import run
from halfmap.engine.preprocessing import ImageSettings
from halfmap.engine.problem import Problem
from halfmap.engine.residuals import initial_noise
from halfmap.engine.state import State
from halfmap.fourier import lowpass
from halfmap.io.mrc import read_map
from halfmap.masks import soft_sphere
from halfmap.methods.maximum_likelihood import maximum_likelihood
from halfmap.methods.settings import Settings
from halfmap.particles import load_particles
from halfmap.pose_search.refinement import SearchSettings
from halfmap.symmetries import Specimen, point_group
from halfmap.workspace.job import Job

ITERATIONS, RADIUS_PX = 4, 13.0


def main(star: str, volume: str, folder: str) -> None:
    torch.set_num_threads(1)
    particles, channel = load_particles(star), Specimen(point_group("C4"), RADIUS_PX)
    images = ImageSettings(RADIUS_PX, True, False, torch.device("cpu"))
    half = torch.arange(len(particles)) % 2
    problem = Problem(particles, images, half, "own", channel, 3, 1, 64, learn_norm_and_scale=True)
    mask = soft_sphere(particles.box, radius_px=RADIUS_PX, edge_px=2)
    search = SearchSettings(channel, angular_step_deg=15.0, shift_range_px=2.0)
    method = with_momentum(
        maximum_likelihood(problem, Settings(search, 0.143, mask, mask)), share=0.3
    )
    resume = Path(folder, "job.json").exists()
    with Job.create("outside", {}, folder, seed=1, resume=resume) as job:
        saved = job.load_checkpoint()
        state = method.start(first(problem, volume)) if saved is None else state_from_arrays(*saved)
        for new, _ in run(problem, method, state, iterations=ITERATIONS):
            job.event(**new.history[-1].event())
            job.save_checkpoint(*state_to_arrays(new))
            print(f"iteration {new.iteration}", flush=True)
            time.sleep(0.3)  # a moment for whoever wants to kill this program


def first(problem: Problem, volume: str) -> State:
    particles = problem.particles
    density = torch.from_numpy(read_map(volume)[0].copy())[None, None]
    start = lowpass(density, 40.0, particles.pixel_size_angstrom, dimensions=3)
    noise = initial_noise(
        particles, problem.used, problem.plane, problem.n_groups, problem.images, batch_size=64
    )
    return State(
        iteration=0,
        references=start.repeat(2, 1, 1, 1, 1),
        poses=_inputs.poses_of(particles).in_one_class(),
        radius=6,
        curves=torch.zeros(1, problem.plane.radius + 1),
        statistics=(NoiseSpectra(noise),),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
