"""Strength of signal and noise in each image: what was put in comes back, and junk harms nobody."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import halfmap
from halfmap.engine.accumulation import expected_images
from halfmap.engine.checkpoint import state_from_arrays, state_to_arrays
from halfmap.engine.image_model import NoiseSpectra, NormAndScale, noise_variance
from halfmap.engine.loop import iterate, sum_at_poses
from halfmap.engine.method import Iteration, Method, Update
from halfmap.engine.noise import NoiseStatistic
from halfmap.engine.norm_and_scale import (
    NormAndScaleStatistic,
    next_norm,
    next_scale,
    norm_outliers,
)
from halfmap.engine.posterior_weights import assign_hard
from halfmap.engine.preprocessing import Batch, ImageSettings
from halfmap.engine.problem import Problem, scale_groups
from halfmap.engine.residuals import noise_from_sums, residuals, shell_sums
from halfmap.engine.state import (
    Poses,
    PosteriorWeights,
    State,
    as_candidates,
    known_poses,
)
from halfmap.fourier import half_plane
from halfmap.io.mrc import open_stack
from halfmap.io.stack_writer import StackWriter
from halfmap.likelihood import image_terms
from halfmap.masks import soft_sphere
from halfmap.particles import load_particles
from halfmap.projection import Sums
from halfmap.reconstruction import shell_weight, wiener_update
from halfmap.so3 import euler_to_matrix
from halfmap.symmetries import Specimen, point_group

N, BOX, PIXEL, PER_MICROGRAPH, RADIUS = 160, 32, 6.0, 20, 12
ALL = torch.ones(N, dtype=torch.bool)

# --- the updates ----------------------------------------------------------------------------------


def test_an_outlier_gets_a_large_norm_and_changes_nobody_elses():
    generator = torch.Generator().manual_seed(0)
    misfit, group = 1 + 0.1 * torch.rand(N, generator=generator), torch.arange(N) % 2
    calm, level = next_norm(None, misfit, group, ALL)
    for junk in (4.0, 1e6):
        wild = misfit.clone()
        wild[7] = junk
        norm, wild_level = next_norm(None, wild, group, ALL)
        assert norm[7] == pytest.approx((junk / wild_level[1].item()) ** 0.5)
        others = torch.arange(N) != 7
        torch.testing.assert_close(
            norm[others], calm[others], rtol=1e-2, atol=0
        )  # the median moves by half a rank
        torch.testing.assert_close(wild_level, level, rtol=1e-2, atol=0)
        assert norm_outliers(norm[ALL]) == 1
    assert norm_outliers(calm[ALL]) == 0


def test_noise_levels_of_groups_go_into_their_sigma_not_into_norms():
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(N) % 2
    misfit = (1 + 0.05 * torch.rand(N, generator=generator)) * torch.tensor([1.0, 9.0])[group]
    norm, level = next_norm(torch.ones(N), misfit, group, ALL)
    assert norm.min() > 0.95
    assert norm.max() < 1.05
    assert level[1] / level[0] == pytest.approx(9, rel=0.05)


def test_norms_do_not_run_away_and_unused_images_keep_theirs():
    """nu^2 q is a measured power: whatever nu was before, the next one is the same; a blank does
    not outweigh the rest."""
    power, used = torch.rand(N, generator=torch.Generator().manual_seed(0)) + 0.5, ALL.clone()
    used[3], power[5] = False, 0.0
    for before in (torch.ones(N), torch.linspace(0.2, 30.0, N)):
        norm, level = next_norm(before, power / before**2, torch.zeros(N, dtype=torch.long), used)
        inside = used & (power > 0)
        torch.testing.assert_close(
            norm[inside].clamp(min=0.21), (power[inside] / level).sqrt().clamp(min=0.21)
        )
        assert norm[3] == before[3]
        assert norm[5] == pytest.approx(0.2)


def test_scales_are_ratios_shrunk_by_what_is_known():
    """A group is believed as far as its power goes beyond the prior's 1 / 0.2^2 = 25; the mean over
    the images is 1."""
    group = torch.tensor([0] * 30 + [1] * 30 + [2])
    true, grey = torch.tensor([0.6, 1.4, 5.0]), 7.0  # the references' own scale drops out
    power = torch.full((61,), 400.0)
    power[60] = 1.0
    used, before = torch.ones(61, dtype=torch.bool), torch.tensor([0.9, 1.1, 1.0])
    scale = next_scale(
        before,
        (grey * true * before)[group] * power,
        (before**2)[group] * power,
        group,
        used,
        first=False,
    )
    assert scale[1] / scale[0] == pytest.approx(1.4 / 0.6, rel=1e-2)
    assert scale[2] == pytest.approx((5.0 + 25) / 26, rel=0.02)
    assert scale[group].mean() == pytest.approx(1, rel=1e-6)
    junk = next_scale(None, torch.where(group == 0, -power, power), power, group, used, first=False)
    assert 0.1 < junk.min() < 0.21
    assert (next_scale(None, power, power, group, used, first=True) == 1).all()


def test_scale_groups_are_micrographs_of_enough_images():
    optics = np.array([0, 0, 1, 1] * 10)
    many = np.repeat([0, 1, 2, 3], 10)
    assert torch.equal(scale_groups(many, optics), torch.from_numpy(many))
    assert torch.equal(
        scale_groups(np.arange(40), optics), torch.from_numpy(optics)
    )  # one image each
    assert torch.equal(
        scale_groups(np.zeros(40, int), optics), torch.from_numpy(optics)
    )  # no micrographs known


def test_noise_under_uncertain_poses_is_that_of_the_posterior():
    """Images of one of 16 slices, too noisy to tell which: weighted by Gamma, the residual is
    sigma^2; by the best one alone, less."""
    plane, generator, n, m = half_plane(24, 8), torch.Generator().manual_seed(0), 4000, 16

    def draw(count: int) -> torch.Tensor:
        return torch.complex(
            torch.randn(count, len(plane), generator=generator),
            torch.randn(count, len(plane), generator=generator),
        )

    shells = torch.arange(9.0)
    sigma2 = (40 + 20 * shells)[None][:, plane.shell]
    slices, zero = 0.8 * draw(m), torch.zeros(n)
    slices[:, 0] = 0
    images = slices[torch.randint(0, m, (n,), generator=generator)] + draw(n) * (sigma2 / 2).sqrt()
    ones = torch.ones(n, len(plane))
    terms = image_terms(images, ones, sigma2.expand(n, -1), premultiplied=zero, with_mean=True)
    batch = Batch(
        torch.arange(n),
        torch.zeros(n, dtype=torch.long),
        terms,
        terms,
        images,
        ones,
        zero,
        sigma2,
        torch.ones(n),
    )
    weight = plane.hermitian_weight
    score = torch.stack(
        [-(weight * (images - r).abs() ** 2 / sigma2).sum(1) / 2 for r in slices], 1
    )
    posterior = torch.softmax(score, 1)
    assert 0.2 < posterior.amax(1).median() < 0.95

    def found(gamma_weight: torch.Tensor) -> torch.Tensor:
        image, reference = torch.arange(n).repeat_interleave(m), torch.arange(m).repeat(n)
        rotations = torch.eye(3).repeat(m, 1, 1)
        gamma = PosteriorWeights(
            image,
            reference,
            torch.zeros(m * n, 2),
            gamma_weight.flatten(),
            rotations,
            torch.zeros(m, dtype=torch.long),
        )
        expected = expected_images(slices, gamma, n, plane)
        left = residuals(batch, expected, plane, fit=False, robust=False)
        return noise_from_sums(shell_sums(left.noise, plane))[0]

    expected = 40 + 20 * shells
    right, hard = found(posterior), found((posterior == posterior.amax(1, keepdim=True)).float())
    size = torch.bincount(plane.shell)

    def bias(sigma: torch.Tensor) -> float:
        return float((size * (sigma / expected - 1))[1:].sum() / size[1:].sum())

    assert abs(bias(right)) < 0.004
    assert bias(hard) < bias(right) - 0.005


# --- in an iteration ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("intensity") / "sim"
    return halfmap.simulate(
        "phantom",
        out,
        n=N,
        snr=0.3,
        box=BOX,
        pixel_size_angstrom=PIXEL,
        shift_rms_px=0.5,
        seed=3,
        optics_groups=2,
        particles_per_micrograph=PER_MICROGRAPH,
        quiet=True,
    ).folder


@pytest.fixture(scope="module")
def truth(folder: Path) -> Poses:
    known = load_particles(folder / "truth.star")
    rotations = euler_to_matrix(torch.from_numpy(known.rotations_deg)).float()
    return known_poses(
        rotations,
        torch.from_numpy(known.shift_angstrom / PIXEL).float(),
        torch.zeros(N, dtype=torch.long),
    )


Change = Callable[[np.ndarray], np.ndarray]


def _changed(folder: Path, out: Path, change: Change, *, intensity: bool) -> Problem:
    """The data set with its images changed."""
    text = (folder / "particles.star").read_text()
    name = next(word for word in text.split() if word.endswith(".mrcs")).split("@")[1]
    out.mkdir(exist_ok=True)
    stack = open_stack(folder / name)
    images = stack.read(np.arange(len(stack)))
    with StackWriter(out / name, PIXEL) as stack:
        stack.append(change(images))
    (out / "particles.star").write_text(text)
    settings = ImageSettings(13.0, True, False, torch.device("cpu"))
    return Problem(
        load_particles(out / "particles.star"),
        settings,
        torch.arange(N) % 2,
        "shared",
        Specimen(point_group("C4"), 13.0),
        3,
        1,
        48,
        learn_norm_and_scale=intensity,
    )


def _stay(problem: Problem) -> Method:
    """Poses as they are; the update a Wiener filter of both halves."""

    def update(iteration: Iteration, poses: Poses, halves: list[Sums]) -> Update:
        total, state = halves[0] + halves[1], iteration.state
        best = wiener_update(total, 0.03 * shell_weight(total))[None]
        return Update(references=best, curves=state.curves, radius=state.radius)

    learnt = (NormAndScaleStatistic(),) if problem.learn_norm_and_scale else ()
    return Method(
        prepare=lambda references, state: lambda batch, poses: as_candidates(poses),
        assign=assign_hard,
        update=update,
        converged=lambda state: False,
        statistics=(NoiseStatistic(), *learnt),
    )


def _start(problem: Problem, poses: Poses, iteration: int) -> State:
    """From the map that the images themselves make."""
    ones = torch.ones(problem.n_groups, problem.plane.radius + 1)
    halves = sum_at_poses(problem, poses, BOX**2 * ones)
    reference = wiener_update(halves[0] + halves[1], 0.03 * shell_weight(halves[0] + halves[1]))
    return State(
        iteration=iteration,
        references=reference[None],
        poses=poses,
        radius=RADIUS,
        curves=torch.zeros(1, problem.plane.radius + 1),
        statistics=(NoiseSpectra(BOX**2 * ones),),
    )


def _strength(state: State) -> NormAndScale:
    found = state.find(NormAndScale)
    assert found is not None
    return found


def test_groups_half_and_twice_as_bright_are_found(folder, truth, tmp_path):
    """Whole micrographs times 0.5 and 2: scales and norms follow, and the noise spectrum of each
    optics group is that of the others."""
    factor = np.array([1.0, 1.0, 0.5, 0.5, 2.0, 2.0, 1.0, 1.0], np.float32)[
        np.arange(N) // PER_MICROGRAPH
    ]
    problem = _changed(
        folder, tmp_path / "changed", lambda images: images * factor[:, None, None], intensity=True
    )
    assert torch.equal(problem.scale_group, torch.arange(N) // PER_MICROGRAPH)
    state = _start(problem, truth, 1)
    for _ in range(4):
        state, _ = iterate(problem, _stay(problem), state)
    learnt = _strength(state)
    first = learnt.scale[[0, 1, 6, 7]].mean()
    torch.testing.assert_close(
        learnt.scale[2:6] / first, torch.tensor([0.5, 0.5, 2.0, 2.0]), rtol=0.15, atol=0
    )
    assert learnt.scale[problem.scale_group].mean() == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(learnt.norm, torch.from_numpy(factor), rtol=0.25, atol=0)
    torch.testing.assert_close(
        noise_variance(state)[:, 3:RADIUS],
        torch.full((2, RADIUS - 3), float(BOX**2)),
        rtol=0.2,
        atol=0,
    )
    again = _strength(state_from_arrays(*state_to_arrays(state)))
    assert torch.equal(again.norm, learnt.norm)
    assert torch.equal(again.scale, learnt.scale)


def test_junk_is_told_and_harms_nobody(folder, truth, tmp_path):
    """Ten images with a bright blob and rough noise all over: large norms, a map nearer to the
    clean one, the others' norms unchanged."""
    junk = np.arange(5, N, 16)
    y, x = np.mgrid[:BOX, :BOX] - BOX // 2

    def spoil(images: np.ndarray) -> np.ndarray:
        rng, out = np.random.default_rng(0), images.copy()
        for i in junk:
            centre = rng.uniform(-8, 8, 2)
            out[i] += 20 * np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / 18) + rng.normal(
                size=(BOX, BOX), scale=5
            )
        return out

    mask = soft_sphere(BOX, radius_px=13, edge_px=2)
    maps, states = {}, {}
    for name, change, intensity in (
        ("clean", lambda i: i, True),
        ("with", spoil, True),
        ("without", spoil, False),
    ):
        problem = _changed(folder, tmp_path / name, change, intensity=intensity)
        state = _start(problem, truth, 1)
        for _ in range(3):
            state, _ = iterate(problem, _stay(problem), state)
        maps[name], states[name] = state.references[0, 0] * mask, state
    clean, spoilt = _strength(states["clean"]).norm, _strength(states["with"]).norm
    assert clean is not None
    assert spoilt is not None
    assert spoilt[junk].min() > 3
    others = torch.ones(N, dtype=torch.bool)
    others[junk] = False
    torch.testing.assert_close(spoilt[others], clean[others], rtol=0.05, atol=0)
    torch.testing.assert_close(
        noise_variance(states["with"])[:, 1:RADIUS],
        noise_variance(states["clean"])[:, 1:RADIUS],
        rtol=0.1,
        atol=0,
    )
    assert _strength(states["with"]).outliers == len(junk)
    assert _strength(states["clean"]).outliers == 0
    away = {
        name: float((maps[name] - maps["clean"]).norm() / maps["clean"].norm()) for name in maps
    }
    assert away["with"] < 0.35 * away["without"]


def test_without_intensity_nothing_is_learnt(folder, truth, tmp_path):
    problem = _changed(folder, tmp_path / "same", lambda images: images, intensity=False)
    state, _ = iterate(problem, _stay(problem), _start(problem, truth, 1))
    assert state.find(NormAndScale) is None


def test_the_first_iteration_does_not_believe_the_references_grey_scale(folder, truth, tmp_path):
    """A reference 30 times too bright: the noise of the first iteration is as if it were not, and
    the scales stay 1."""
    problem = _changed(folder, tmp_path / "bright", lambda images: images, intensity=True)
    start = _start(problem, truth, 0)
    fair, _ = iterate(problem, _stay(problem), start)
    bright, _ = iterate(problem, _stay(problem), replace(start, references=30 * start.references))
    torch.testing.assert_close(noise_variance(fair), noise_variance(bright), rtol=1e-3, atol=0)
    assert (_strength(bright).scale == 1).all()
