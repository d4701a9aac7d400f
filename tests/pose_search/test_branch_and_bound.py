"""Branch and bound against exhaustive search: what it prunes, how much of the domain it looks at,
and what it finds."""

from dataclasses import replace

import pytest
import torch

from halfmap.engine.pose_prior import uniform_prior
from halfmap.engine.state import Candidates, as_candidates, known_poses
from halfmap.fourier import half_plane, shift_phases
from halfmap.likelihood import (
    CORRELATION,
    LOG_LIKELIHOOD,
    ImageTerms,
    cross_terms,
    slice_power,
    squared_modulus,
)
from halfmap.pose_search.adaptive import prepare_search, search_globally
from halfmap.pose_search.bounds import FAILURE
from halfmap.pose_search.branch_and_bound import prepare_bounded, search_bounded
from halfmap.pose_search.pruning import bound_cells
from halfmap.pose_search.refinement import (
    PassSizes,
    SearchSettings,
    distinct_poses,
    refine_candidates,
)
from halfmap.pose_search.sampling import fine_order, search_grid, shift_grid
from halfmap.projection import extract_slices, prepare_references
from halfmap.so3 import angular_distance_deg, cell_of, children, compose
from halfmap.symmetries import Specimen, rotations_alone, symmetry_matrices

C1, C4 = symmetry_matrices("C1").float(), symmetry_matrices("C4").float()
RADIUS, RADIUS_PX, RANGE_PX = 15, 12.5, 3.0


def _settings(symmetry=C4, score=LOG_LIKELIHOOD, n_classes: int = 1) -> SearchSettings:
    prior = None
    if score is LOG_LIKELIHOOD:
        prior = uniform_prior(
            n_classes, 3, order=2, shift_sigma_px=RANGE_PX, device=torch.device("cpu")
        )
    return SearchSettings(
        Specimen(rotations_alone(symmetry), RADIUS_PX),
        shift_range_px=RANGE_PX,
        score=score,
        prior=prior,
    )


def _exhaustively(scene, settings: SearchSettings) -> tuple[Candidates, int]:
    """Every orientation of the grid and every shift on all shells, the eight best of each image
    refined; and how many poses that was."""
    references, plane = prepare_references(scene.volumes, RADIUS), half_plane(32, RADIUS)
    rotations = search_grid(settings, 3).children.flatten(0, 1)
    n, shifts = len(rotations), shift_grid(RANGE_PX, 32 / (4 * RADIUS), device=torch.device("cpu"))
    classes = torch.arange(len(references)).repeat_interleave(n)
    slices = extract_slices(
        references, rotations.repeat(len(references), 1, 1), plane, classes=classes
    )
    squared, phases = squared_modulus(slices).T.contiguous(), shift_phases(shifts, plane)
    parts = []
    for rows in torch.arange(len(scene.terms)).split(4):
        some = scene.terms.select_images(rows)
        most = cross_terms(some, phases, slices, plane).max(1)
        score = settings.score(most.values, slice_power(some, squared, plane))
        best = torch.topk(score, 200, dim=1)
        shift_px = shifts[most.indices.gather(1, best.indices)]
        evidence = (
            best.values if settings.score is LOG_LIKELIHOOD else best.values * best.values.abs() / 2
        )
        nowhere, nothing = torch.full_like(shift_px, torch.nan), torch.full_like(best.indices, -1)
        found = Candidates(
            rotations[best.indices % n],
            shift_px,
            best.indices // n,
            best.values,
            evidence,
            nothing,
            nowhere,
        )
        parts.append(
            refine_candidates(
                references,
                some,
                plane,
                distinct_poses(found, 8, 10.0),
                radius=RADIUS,
                first_radius=RADIUS,
                settings=settings,
                step_deg=7.5,
            ).best(1)
        )
    return Candidates(
        *(torch.cat(fields) for fields in zip(*(p.fields() for p in parts), strict=True))
    ), len(slices) * len(shifts)


def _cells_of(found: Candidates, settings: SearchSettings) -> torch.Tensor:
    """The numbers of the cells that hold each image's best pose, one for each symmetry mate whose
    cell is searched, else -1: (B, G)."""
    order, grid = fine_order(settings), search_grid(settings, 3)
    numbers = children(grid.cell_id, order - 1).flatten()
    place = torch.full((12 * 4**order * 6 * 2**order,), -1)
    place[numbers] = torch.arange(len(numbers))
    mates = torch.stack(
        [
            cell_of(compose(found.rotations[:, 0], mate), order)
            for mate in settings.specimen.symmetry.rotations
        ],
        1,
    )
    where = place[mates]
    return torch.where(where >= 0, where + found.classes * len(numbers), -1)


@pytest.mark.parametrize(
    ("snr", "n", "share"), [(0.5, 600, 0.01), (0.2, 600, 0.05), (0.05, 200, 1.2)]
)
def test_the_best_cell_is_pruned_no_more_often_than_stated(channel, scene_of, snr, n, share):
    """Of 600 images 0.6 may fail, so that more than 3 are not to be expected (chance: 0.3 %). Left
    out are images whose shift is out of reach, and those of which branch and bound finds a better
    pose than exhaustive search did."""
    scene, settings, centre = scene_of(channel, n, snr=snr, seed=4), _settings(), torch.zeros(n, 2)
    exhaustive, n_poses = _exhaustively(scene, settings)
    search = prepare_bounded(prepare_references(channel, RADIUS), settings, RADIUS)
    bounded = bound_cells(search, scene.terms, centre, scene.plane, RADIUS)
    found = search_bounded(search, scene.terms, centre, scene.plane, RADIUS).best(1)
    gained = found.log_weight[:, 0] - exhaustive.log_weight[:, 0]
    within = (exhaustive.shift_px[:, 0].norm(dim=1) <= RANGE_PX) & (gained < 5)
    assert within.float().mean() > 0.95
    best_cells = _cells_of(exhaustive, settings)
    assert (best_cells >= 0).any(1).all()
    for left in bounded.levels:
        here = (left.cells[:, :, None] == best_cells[:, None]).any(2) & torch.isfinite(
            left.log_weight
        )
        assert int((within & ~here.any(1)).sum()) <= 3
    # a mode's weight depends on the modes beside it that were found: a lost pose scores less, too
    scored_less = found.score[:, 0] - exhaustive.score[:, 0] < -0.5
    assert int(((gained < -0.5) & scored_less).sum()) <= 3
    assert n * FAILURE < 1
    scored = [float(left.scored.float().mean()) / n_poses for left in bounded.levels]
    assert scored[0] < 0.65  # on two thirds of the shells
    assert scored[1] < share  # of what exhaustive search scores on all shells


def test_more_noise_more_cells(channel, scene_of):
    settings, centre = _settings(), torch.zeros(60, 2)
    search = prepare_bounded(prepare_references(channel, RADIUS), settings, RADIUS)
    counts = [
        bound_cells(
            search, scene_of(channel, 60, snr=snr).terms, centre, half_plane(32, 15), RADIUS
        )
        for snr in (1.0, 0.2, 0.05)
    ]
    means = [[float(left.counts.float().mean()) for left in bounded.levels] for bounded in counts]
    for level in (0, 1):
        assert means[0][level] < means[1][level] < means[2][level]
    for first, second in means:
        assert second <= first


@pytest.mark.parametrize("score", [CORRELATION, LOG_LIKELIHOOD])
def test_poses_and_states_are_found(states, scene_of, score):
    """On any grey scale where images are compared by correlation."""
    scene, settings = scene_of(states, 100, snr=0.5), _settings(score=score, n_classes=2)
    scale = 7.0 if score is CORRELATION else 1.0
    search = prepare_bounded(prepare_references(scale * states, RADIUS), settings, RADIUS)
    found = search_bounded(search, scene.terms, torch.zeros(100, 2), scene.plane, RADIUS).best(1)
    assert (found.classes[:, 0] == scene.classes).float().mean() > 0.95
    assert (
        angular_distance_deg(found.rotations[:, 0], scene.rotations, symmetry=C4) < 5
    ).float().mean() > 0.98
    assert (found.shift_px[:, 0] - scene.shift_px).norm(dim=1).median() < 0.3


def test_evidence_is_that_of_the_adaptive_search_or_better(channel, scene_of):
    """The same modes, the same Laplace integrals; now and then one of the two searches follows a
    second optimum that the other does not."""
    scene, settings, centre = scene_of(channel, 100, snr=0.2), _settings(), torch.zeros(100, 2)
    references = prepare_references(channel, RADIUS)
    bounded = search_bounded(
        prepare_bounded(references, settings, RADIUS), scene.terms, centre, scene.plane, RADIUS
    )
    adaptive = search_globally(
        prepare_search(references, settings, RADIUS), scene.terms, centre, scene.plane, RADIUS
    )
    gained = torch.logsumexp(bounded.log_weight, 1) - torch.logsumexp(adaptive.log_weight, 1)
    assert gained.abs().median() < 0.05
    assert (gained.abs() < 1).float().mean() > 0.95
    assert gained.min() > -1


def test_known_poses_compete_and_are_kept(channel, scene_of):
    scene, settings, centre = scene_of(channel, 40, snr=0.2), _settings(), torch.zeros(40, 2)
    search = prepare_bounded(prepare_references(channel, RADIUS), settings, RADIUS)
    known = as_candidates(known_poses(scene.rotations, scene.shift_px, scene.classes))
    found = search_bounded(search, scene.terms, centre, scene.plane, RADIUS, known=known).best(1)
    assert (
        angular_distance_deg(found.rotations[:, 0], scene.rotations, symmetry=C4) < 5
    ).float().mean() > 0.95


def test_tables_tiles_and_groups_only_save_time(channel, scene_of):
    scene, settings, centre = scene_of(channel, 20, snr=0.1), _settings(), torch.zeros(20, 2)
    references = prepare_references(channel, RADIUS)
    whole = search_bounded(
        prepare_bounded(references, settings, RADIUS), scene.terms, centre, scene.plane, RADIUS
    ).best(1)
    small = PassSizes(samples=1_000_000, cells=7 * 9216, poses=50, table_bytes=0)
    settings = replace(settings, passes=small)
    parts = search_bounded(
        prepare_bounded(references, settings, RADIUS), scene.terms, centre, scene.plane, RADIUS
    ).best(1)
    torch.testing.assert_close(whole.log_weight, parts.log_weight, rtol=1e-3, atol=0.05)


def test_images_of_nothing_keep_everything_and_do_not_fail(channel, scene_of):
    scene, settings = scene_of(channel, 4, snr=0.2), _settings()
    blank = replace(scene.terms, data=torch.zeros_like(scene.terms.data))
    search = prepare_bounded(prepare_references(channel, RADIUS), settings, RADIUS)
    found = search_bounded(
        search, ImageTerms(blank.data, blank.power), torch.zeros(4, 2), scene.plane, RADIUS
    )
    assert torch.isfinite(found.log_weight.amax(1)).all()
