"""Experimental images: what the depositors' poses are worth in halfmap's hands, against what RELION
reached with them."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from halfmap import reconstruct
from halfmap.commands import _halves, _inputs, _setup
from halfmap.engine.preprocessing import load_batch
from halfmap.engine.residuals import initial_noise
from halfmap.pose_search.adaptive import prepare_search, search_globally
from halfmap.pose_search.refinement import SearchSettings
from halfmap.projection import prepare_references
from halfmap.workspace.progress import Progress

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import truth

pytestmark = pytest.mark.shared


def test_deposited_poses_give_the_resolution_that_relion_gives(shared_data, tmp_path) -> None:
    """1,430 CTF-premultiplied tilt images of ribosomes. RELION 5 with the same poses: 28.6 A
    between halves, 29.6 A (all images) and 37.5 A (half 1) to the published map, inside a soft
    sphere of 150 A."""
    folder = shared_data / "real_ribosome"
    out = tmp_path / "map.mrc"
    reconstruct(
        folder / "deposited_poses.star", out, halves=True, diameter_angstrom=300.0, quiet=True
    )
    published, pixel = truth.read_volume(folder / "published_map.mrc")
    whole, half1, half2 = (
        truth.read_volume(tmp_path / name)[0]
        for name in ("map.mrc", "map_half1.mrc", "map_half2.mrc")
    )
    mask = truth.soft_sphere(len(published), 150 / pixel)

    def resolution(a: np.ndarray, b: np.ndarray, threshold: float) -> float:
        return truth.resolution_at(truth.fsc(a, b, mask), threshold, len(a), pixel)

    assert resolution(half1, half2, 0.143) < 28.6 + 0.2
    assert resolution(whole, published, 0.5) < 29.6 + 0.2
    assert (
        resolution(half1, published, 0.5) < 37.5 + 1.0
    )  # a flat stretch of the curve: 0.01 of FSC is 1 A
    # the published map's grey scale is its own, but white must be white
    assert np.corrcoef((whole * mask).ravel(), (published * mask).ravel())[0, 1] > 0.8


def test_global_search_finds_real_trpv1_images(shared_data, tmp_path) -> None:
    """10 images of TRPV1: at least 3 within 15 degrees of the deposited pose, where chance puts 0.4
    %, and with its shift."""
    images = shared_data / "images"
    text = (images / "trpv1_trpv1_small_stack.star").read_text()
    star = tmp_path / "particles.star"
    star.write_text(re.sub(r"@\S+", f"@{images / 'trpv1_small_stack.mrcs'}", text))
    data = _inputs.read_particles(star, data_dir=None, ctf=True)
    half = _halves.divide_into_halves(data, 1)
    with Progress("test", quiet=True) as progress:
        problem = _setup.make_problem(
            data,
            half,
            device=torch.device("cpu"),
            radius_px=85 / data.pixel_size_angstrom,
            symmetry="C4",
            dimensions=3,
            n_classes=1,
            matched_to="own",
            ctf=True,
            learn_norm_and_scale=False,
            memory=None,
            progress=progress,
        )
    rows, centre = torch.arange(len(data)), torch.zeros(len(data), 2)
    noise = initial_noise(
        data, rows, problem.plane, problem.n_groups, problem.images, batch_size=len(data)
    )
    terms = load_batch(data, rows, problem.plane, noise, centre, problem.images).scored
    radius = round(data.box * data.pixel_size_angstrom / 15)
    references = prepare_references(
        torch.from_numpy(truth.read_volume(images / "trpv1_volume.mrc")[0])[None], radius
    )
    plan = prepare_search(references, SearchSettings(problem.specimen), radius)
    found = search_globally(plan, terms, centre, problem.plane, radius).best(1)

    deposited = truth.read_poses(star)
    relative = np.einsum(
        "nji,njk->nik", deposited.rotations, found.rotations[:, 0].double().numpy()
    )
    angles = truth.angle_of(np.einsum("gji,njk->ngik", truth.point_group("C4"), relative)).min(1)
    shifts = np.linalg.norm(
        found.shift_px[:, 0].numpy() * data.pixel_size_angstrom - deposited.origins_angstrom, axis=1
    )
    right = angles < 15
    assert right.sum() >= 3, np.sort(angles)
    assert np.median(shifts[right]) < 3
