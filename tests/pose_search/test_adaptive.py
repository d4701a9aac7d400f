"""Global search: known poses found, coarse-to-fine against exhaustive search, symmetry, classes,
candidates kept apart."""

import math
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
    correlation_score,
    cross_terms,
    log_likelihood_score,
    slice_power,
)
from halfmap.pose_search.adaptive import prepare_search, search_globally
from halfmap.pose_search.coarse_to_fine import best_cells, best_children, coarse_scores
from halfmap.pose_search.refinement import (
    FOLLOWED_CANDIDATES,
    PassSizes,
    SearchSettings,
    distinct_poses,
    holding,
)
from halfmap.pose_search.sampling import radius_of_step, search_grid, shift_grid
from halfmap.pose_search.search_plan import GlobalSearch, terms_on_level
from halfmap.projection import extract_slices, prepare_references
from halfmap.so3 import (
    angular_distance_deg,
    compose,
    random_rotations,
    rotation_vector_to_matrix,
)
from halfmap.symmetries import Specimen, rotations_alone, symmetry_matrices

C1, C4 = symmetry_matrices("C1"), symmetry_matrices("C4")
RADIUS_PX = 12.5  # the phantom is 148 A across


def _settings(symmetry=C4, **options) -> SearchSettings:
    return SearchSettings(
        Specimen(rotations_alone(symmetry), RADIUS_PX), **{"shift_range_px": 4.0, **options}
    )


def _search(scene, settings, *, radius: int = 15, references=None):
    references = prepare_references(scene.volumes if references is None else references, radius)
    centre = torch.zeros(len(scene.rotations), 2)
    return search_globally(
        prepare_search(references, settings, radius), scene.terms, centre, scene.plane, radius
    ).best(1)


def _errors(found: Candidates, scene, symmetry=C4):
    angle = angular_distance_deg(found.rotations[:, 0], scene.rotations, symmetry=symmetry)
    return angle, (found.shift_px[:, 0] - scene.shift_px).norm(dim=1)


# --- what is searched -----------------------------------------------------------------------------


def test_shift_grid_is_a_disc_of_whole_steps():
    shifts = shift_grid(5.0, 1.0, device=torch.device("cpu"))
    expected = {(x, y) for x in range(-5, 6) for y in range(-5, 6) if x * x + y * y <= 25}
    assert {(x, y) for x, y in shifts.tolist()} == expected
    assert len(shifts) == len(expected)
    assert shift_grid(0.0, 1.0, device=torch.device("cpu")).tolist() == [[0.0, 0.0]]
    fine = shift_grid(1.0, 0.3, device=torch.device("cpu"))
    assert fine.norm(dim=1).max() <= 1.0 + 1e-6
    torch.testing.assert_close(fine.sum(0), torch.zeros(2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("step_deg", [30.0, 15.0])
def test_a_grid_resolves_the_shells_on_which_neighbours_still_agree(channel, step_deg):
    """Slices half a step apart, as a pose in a cell may be from its centre: on the outermost shell
    that the step resolves they are alike, twice as far out they are not."""
    shells, plane = radius_of_step(step_deg, 32, RADIUS_PX), half_plane(32, 15)
    generator = torch.Generator().manual_seed(4)
    rotations = random_rotations(200, generator).float()
    axes = torch.nn.functional.normalize(torch.randn(200, 3, generator=generator), dim=1)
    turned = compose(rotation_vector_to_matrix(axes * math.radians(step_deg / 2)), rotations)
    references = prepare_references(channel, 15)
    a, b = (extract_slices(references, r, plane) for r in (rotations, turned))

    def agreement(shell: int) -> float:
        here = plane.shell == shell
        cross = (a * b.conj()).real[:, here].sum()
        return float(
            cross / (a[:, here].abs().square().sum() * b[:, here].abs().square().sum()).sqrt()
        )

    assert agreement(shells) > 0.65
    assert agreement(min(15, 2 * shells)) < 0.5


def test_the_shells_resolved_go_with_the_step_and_the_particles_size():
    shells = radius_of_step(15.0, 64, 20.0)
    assert radius_of_step(7.5, 64, 20.0) in (2 * shells - 1, 2 * shells)
    assert radius_of_step(15.0, 128, 40.0) == shells  # the same molecule sampled twice as finely
    assert radius_of_step(15.0, 64, 10.0) in (2 * shells - 1, 2 * shells)


@pytest.mark.parametrize(
    ("asked", "coarse", "fine"),
    [(15.0, 30.0, 15.0), (7.5, 15.0, 7.5), (10.0, 15.0, 7.5), (90.0, 60.0, 30.0)],
)
def test_grid_in_3d(asked, coarse, fine):
    grid = search_grid(_settings(C1, angular_step_deg=asked), 3)
    assert grid.coarse_step_deg == pytest.approx(coarse)
    assert grid.fine_step_deg == pytest.approx(fine)
    assert grid.fine_step_deg <= max(asked, 30.0)
    assert grid.children.shape == (len(grid.coarse), 8, 3, 3)
    away = angular_distance_deg(grid.children, grid.coarse[:, None])
    assert away.max() < grid.coarse_step_deg
    some = random_rotations(40, torch.Generator().manual_seed(0)).float()
    nearest = angular_distance_deg(some[:, None], grid.children.flatten(0, 1)).amin(1)
    assert nearest.max() < 1.1 * grid.fine_step_deg


def test_grid_in_2d_covers_the_circle_evenly():
    grid = search_grid(_settings(C1, angular_step_deg=7.0), 2)
    fine = grid.children.flatten(0, 1)
    assert grid.fine_step_deg <= 7.0
    torch.testing.assert_close(
        fine[:, 2], torch.tensor([0.0, 0.0, 1.0]).expand(len(fine), 3), atol=1e-6, rtol=0
    )
    psi = torch.rad2deg(torch.atan2(fine[:, 0, 1], fine[:, 0, 0])).sort().values
    gaps = torch.diff(torch.cat([psi, psi[:1] + 360]))
    torch.testing.assert_close(gaps, torch.full_like(gaps, grid.fine_step_deg), rtol=0, atol=1e-2)


# --- what is found --------------------------------------------------------------------------------


@pytest.mark.parametrize("score", [CORRELATION, LOG_LIKELIHOOD])
def test_without_noise_every_pose_is_found(channel, scene_of, score):
    scene = scene_of(channel, 60)
    angle, shift = _errors(_search(scene, _settings(score=score)), scene)
    assert angle.max() < 0.3
    assert shift.max() < 0.05


def test_in_noise_most_poses_are_found(channel, scene_of):
    scene = scene_of(channel, 150, snr=0.1)
    angle, shift = _errors(_search(scene, _settings()), scene)
    assert (angle < 5).float().mean() > 0.9
    assert angle.median() < 3
    assert shift.median() < 0.3


def test_pure_noise_gives_no_preferred_pose(channel, scene_of):
    scene = scene_of(channel, 150, snr=1e-6)
    angle, _ = _errors(_search(scene, _settings()), scene)
    assert (angle < 10).float().mean() < 0.1


def test_shifts_are_searched_around_the_given_centre(channel, scene_of):
    scene = scene_of(channel, 30, shift_rms_px=6.0)
    centre = scene.shift_px.round() + torch.tensor([1.0, -1.0])
    plan = prepare_search(prepare_references(channel, 15), _settings(shift_range_px=2.0), 15)
    found = search_globally(plan, scene.terms, centre, scene.plane, 15).best(1)
    angle, shift = _errors(found, scene)
    assert angle.max() < 0.3
    assert shift.max() < 0.05


def test_in_2d_the_turn_and_the_shift_are_found(view, scene_of):
    scene = scene_of(view, 80, snr=0.2)
    found = _search(scene, _settings(C1))
    angle, shift = _errors(found, scene, C1)
    assert (angle < 5).float().mean() > 0.97
    assert shift.median() < 0.3
    torch.testing.assert_close(
        found.rotations[:, 0, 2], torch.tensor([0.0, 0.0, 1.0]).expand(80, 3), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("score", [CORRELATION, LOG_LIKELIHOOD])
def test_the_right_one_of_two_conformations_is_found(states, scene_of, score):
    scene = scene_of(states, 100, snr=0.5)
    found = _search(scene, _settings(score=score))
    assert (found.classes[:, 0] == scene.classes).float().mean() > 0.95
    angle, _ = _errors(found, scene)
    assert (angle < 5).float().mean() > 0.95


def test_a_quarter_of_the_sphere_is_enough_for_c4(channel, scene_of):
    """The reduced grid has about a quarter of the cells and finds what the whole grid finds, up to
    the symmetry."""
    scene = scene_of(channel, 40, snr=0.2)
    whole, reduced = _search(scene, _settings(C1)), _search(scene, _settings(C4))
    cells = [len(search_grid(_settings(s), 3).coarse) for s in (C1, C4)]
    assert 0.2 < cells[1] / cells[0] < 0.4
    apart = angular_distance_deg(whole.rotations[:, 0], reduced.rotations[:, 0], symmetry=C4)
    assert (apart < 0.5).float().mean() > 0.9
    assert reduced.score.mean() > 0.995 * whole.score.mean()


def test_coarse_to_fine_ends_in_the_cell_that_exhaustive_search_finds(channel, scene_of):
    """All fine cells and shifts scored on the fine level's shells: the best is among those that the
    search looked at."""
    scene = scene_of(channel, 120, snr=0.2)
    settings = _settings(C4)
    references = prepare_references(channel, 15)
    plan = prepare_search(references, settings, 15)
    centre = torch.zeros(120, 2)
    cells, counts = best_cells(plan, scene.terms, centre, scene.plane)
    level = plan.planes[1]
    fine = plan.grid.children.flatten(0, 1)
    slices = extract_slices(references, fine, level)
    terms = ImageTerms(scene.terms.data[:, : len(level)], scene.terms.power[:, : len(level)])
    cross = cross_terms(terms, shift_phases(plan.shifts[1], level), slices, level).amax(1)
    score = correlation_score(cross, slice_power(terms, (slices.abs() ** 2).T.contiguous(), level))
    best = score.argmax(1) // plan.grid.children.shape[1]
    assert counts.float().mean() < len(plan.grid.coarse) / 20
    assert (cells == best[:, None]).any(1).float().mean() > 0.95
    found = best_children(plan, scene.terms, centre, scene.plane, cells, counts).best(1).score[:, 0]
    rounding = 5e-3 * score.amax(
        1
    )  # `fast_products`: inputs are bfloat16 where the machine has units for them
    assert (found <= score.amax(1) + rounding).all()
    assert (found > score.amax(1) - rounding).float().mean() > 0.95


def test_the_posterior_on_the_finer_grid_is_that_of_all_its_cells(channel, scene_of):
    """With every coarse cell kept, each image's log likelihood is that of all fine cells and shifts
    together; with the usual few little is lost."""
    scene, radius = scene_of(channel, 30, snr=0.1), 9
    prior = uniform_prior(1, 3, order=2, shift_sigma_px=2.0, device=torch.device("cpu"))
    references, centre = prepare_references(channel, radius), torch.zeros(30, 2)
    found = {}
    for share, significance in ((1.0, 1.0), (1 / 48, 0.999)):
        settings = _settings(
            score=LOG_LIKELIHOOD,
            prior=prior,
            posterior_on_grid=True,
            largest_cell_share=share,
            significance=significance,
        )
        plan = prepare_search(references, settings, radius)
        assert plan.fine_grid_resolves
        assert not plan.coarse_grid_resolves
        found[share] = search_globally(plan, scene.terms, centre, scene.plane, radius)
    level, cells = plan.planes[1], plan.grid.children.flatten(0, 1)
    slices = extract_slices(references, cells, level)
    terms = ImageTerms(scene.terms.data[:, : len(level)], scene.terms.power[:, : len(level)])
    power = slice_power(terms, (slices.abs() ** 2).T.contiguous(), level)
    score = log_likelihood_score(
        cross_terms(terms, shift_phases(plan.shifts[1], level), slices, level), power[:, None]
    )
    step = float(torch.cdist(plan.shifts[1], plan.shifts[1]).fill_diagonal_(math.inf).min())
    exact = torch.logsumexp((score + prior.of_shift(plan.shifts[1])[None, :, None]).flatten(1), 1)
    exact = exact + math.log(step**2 * plan.grid.child_fraction)
    total = torch.logsumexp(found[1.0].log_weight, 1)
    torch.testing.assert_close(
        total, exact, atol=0.2, rtol=0
    )  # scores are rounded to bfloat16 where the machine has it
    assert (total - torch.logsumexp(found[1 / 48].log_weight, 1)).abs().median() < 0.05


def test_annealed_scores_are_resolved_by_a_coarser_grid(channel):
    """Peaks of scores times beta are wider by its inverse root: a quarter of the score, twice the
    shells."""
    prior = uniform_prior(1, 3, order=2, shift_sigma_px=2.0, device=torch.device("cpu"))
    finest = radius_of_step(15.0, 32, RADIUS_PX)
    settings = _settings(score=LOG_LIKELIHOOD, prior=prior)
    references = prepare_references(channel, 15)
    assert prepare_search(references, settings, finest).coarse_grid_resolves
    assert not prepare_search(references, settings, 2 * finest).coarse_grid_resolves
    assert prepare_search(
        references, _settings(score=LOG_LIKELIHOOD, prior=prior, beta=0.25), 2 * finest
    ).coarse_grid_resolves


def test_a_table_of_fine_slices_only_saves_time(channel, scene_of):
    scene = scene_of(channel, 20, snr=0.2)
    with_table = _search(scene, _settings())
    without = _search(scene, _settings(passes=PassSizes(table_bytes=0)))
    torch.testing.assert_close(with_table.rotations, without.rotations, rtol=0, atol=1e-4)
    torch.testing.assert_close(with_table.score, without.score, rtol=1e-4, atol=0)


def test_tiling_changes_nothing(states, scene_of):
    scene = scene_of(states, 30, snr=0.2)
    plan = prepare_search(prepare_references(states, 15), _settings(), 15)
    whole, _ = best_cells(plan, scene.terms, torch.zeros(30, 2), scene.plane)
    seven = PassSizes(scores=7 * len(plan.shifts[0]) * len(plan.slices))
    plan = replace(plan, settings=replace(plan.settings, passes=seven))
    parts, _ = best_cells(plan, scene.terms, torch.zeros(30, 2), scene.plane)
    same = (
        (whole.sort(1).values == parts.sort(1).values).float().mean()
    )  # a product of another shape may round otherwise
    assert same > 0.99


def test_more_classes_share_the_cells_that_are_kept(states):
    one = prepare_search(prepare_references(states[:1], 8), _settings(), 8)
    two = prepare_search(prepare_references(states, 8), _settings(), 8)
    assert len(two.slices) == 2 * len(one.slices)
    assert two.kept == max(16, math.ceil(2 * len(one.grid.coarse) * _settings().largest_cell_share))


# --- what is kept -------------------------------------------------------------------------------


def _prior(classes: list[float]):
    prior = uniform_prior(2, 3, order=2, shift_sigma_px=2.0, device=torch.device("cpu"))
    return replace(prior, classes=torch.tensor(classes).log())


def test_cells_that_the_prior_excludes_are_not_looked_at(channel, scene_of):
    """Two classes of one map: the images cannot tell them apart, the prior does."""
    scene, twins = (
        scene_of(channel, 12, snr=0.2),
        prepare_references(channel.repeat(2, 1, 1, 1), 15),
    )
    settings = _settings(score=LOG_LIKELIHOOD, prior=_prior([1e-20, 1 - 1e-20]))
    plan = prepare_search(twins, settings, 15)
    cells, counts = best_cells(plan, scene.terms, torch.zeros(12, 2), scene.plane)
    used = torch.arange(cells.shape[1]) < counts[:, None]
    assert (cells[used] >= len(plan.grid.coarse)).all()


def test_as_many_cells_are_kept_as_hold_the_share_asked_for(channel, scene_of):
    scene = scene_of(channel, 60, snr=0.02)
    settings = _settings(score=LOG_LIKELIHOOD, largest_cell_share=1.0, significance=0.95)
    plan = prepare_search(prepare_references(channel, 15), settings, 15)
    centre = torch.zeros(60, 2)
    _, counts = best_cells(plan, scene.terms, centre, scene.plane)
    score = torch.cat(list(coarse_scores(plan, scene.terms, centre, scene.plane)))
    share = torch.softmax(score, 1).sort(1, descending=True).values.cumsum(1)
    held = share.gather(1, counts[:, None] - 1)[:, 0]
    assert (held > 0.95 - 1e-4).all()
    more = counts > 4  # the fewest of every image
    assert more.float().mean() > 0.2
    assert (share.gather(1, counts[:, None] - 2)[:, 0][more] < 0.95 + 1e-4).all()


def test_the_level_between_drops_children_and_keeps_the_best(channel, scene_of):
    """Of images whose coarse posterior is wide, the level between lets few children on; the best of
    all is nearly always among them."""
    scene = scene_of(channel, 60, snr=0.02)
    settings = _settings(score=LOG_LIKELIHOOD, n_refined=4)
    plan = prepare_search(prepare_references(channel, 15), settings, 15)
    assert plan.planes[0].radius < plan.sieve.plane.radius < plan.planes[1].radius
    without = replace(plan, sieve=None)
    cells, counts = best_cells(plan, scene.terms, torch.zeros(60, 2), scene.plane)
    assert counts.float().mean() > 40
    scored: list[int] = []

    def found(search) -> torch.Tensor:
        arguments = (search, scene.terms, torch.zeros(60, 2), scene.plane, cells, counts)
        return best_children(*arguments).best(1).score[:, 0]

    slices_and_power = GlobalSearch.slices_and_power

    def counting(self, children, terms, plane):
        if plane.radius == plan.planes[1].radius:
            scored.append(children.numel())
        return slices_and_power(self, children, terms, plane)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GlobalSearch, "slices_and_power", counting)
        sifted = found(plan)
        few, scored[:] = sum(scored), []
        everything = found(without)
    assert few < sum(scored) / 3
    assert (sifted > everything - 1).float().mean() > 0.95


def test_little_of_a_posterior_is_lost_with_candidates_that_are_not_refined(channel, scene_of):
    """What a search that refines all candidates finds beside the default's, as a share of the whole:
    by that much every probability is too large. With 24 candidates of every image it is more."""
    scene = scene_of(channel, 60, snr=0.05)
    settings = _settings(score=LOG_LIKELIHOOD, prior=_flat_prior())
    references, centre = prepare_references(channel, 15), torch.zeros(60, 2)

    def evidence(**limits) -> torch.Tensor:
        plan = prepare_search(references, replace(settings, **limits), 15)
        found = search_globally(plan, scene.terms, centre, scene.plane, 15)
        return torch.logsumexp(found.log_weight, 1)

    whole = evidence(n_refined=200, followed_share=1.0)
    lost, lost_of_few = (
        (1 - torch.exp(e - whole)).mean() for e in (evidence(), evidence(most_refined=24))
    )
    assert lost < 0.005 < 0.01 < lost_of_few


def test_children_are_those_of_an_images_own_cells(channel, scene_of):
    """Images that keep one cell go together with one that keeps many."""
    scene, prior = scene_of(channel, 4, snr=0.2), _prior([0.5, 0.5])
    settings = _settings(score=LOG_LIKELIHOOD, prior=prior, n_refined=64)
    plan = replace(prepare_search(prepare_references(channel, 15), settings, 15), sieve=None)
    cells, _ = best_cells(plan, scene.terms, torch.zeros(4, 2), scene.plane)
    counts = torch.tensor([1, 1, 1, cells.shape[1]])
    found = best_children(plan, scene.terms, torch.zeros(4, 2), scene.plane, cells, counts)
    own = plan.grid.children[cells[:3, 0]]
    away = angular_distance_deg(found.rotations[:3, :, None], own[:, None]).amin(2)
    assert (away[torch.isfinite(found.log_weight[:3])] < 0.1).all()
    assert torch.isfinite(found.log_weight[3]).sum() > torch.isfinite(found.log_weight[0]).sum()


def test_a_cells_number_is_that_of_its_rotation(channel, scene_of):
    scene, prior = scene_of(channel, 10, snr=0.1), _prior([0.5, 0.5])
    settings = _settings(score=LOG_LIKELIHOOD, prior=prior, posterior_on_grid=True)
    plan = prepare_search(prepare_references(channel, 9), settings, 9)
    assert plan.fine_grid_resolves
    found = search_globally(plan, scene.terms, torch.zeros(10, 2), scene.plane, 9)
    torch.testing.assert_close(plan.grid.children.flatten(0, 1)[found.cell], found.rotations)


def test_a_known_pose_out_of_the_searchs_reach_is_kept(channel, scene_of):
    scene = scene_of(channel, 12, shift_rms_px=9.0)
    far = scene.shift_px.norm(dim=1) > 6
    assert far.sum() > 4
    known = as_candidates(known_poses(scene.rotations, scene.shift_px, scene.classes))
    plan = prepare_search(prepare_references(channel, 15), _settings(shift_range_px=1.0), 15)
    found = search_globally(
        plan, scene.terms, torch.zeros(12, 2), scene.plane, 15, known=known
    ).best(1)
    angle, shift = _errors(found, scene)
    assert angle[far].max() < 0.5
    assert shift[far].max() < 0.1


def _flat_prior():
    return uniform_prior(1, 3, order=2, shift_sigma_px=2.0, device="cpu")


# --- candidates -----------------------------------------------------------------------------------


def _candidates(n: int, spread_deg: float, classes: int = 1) -> Candidates:
    generator = torch.Generator().manual_seed(2)
    vector = torch.randn(3, n, 3, generator=generator) * math.radians(spread_deg)
    shift_px, score = (
        torch.randn(3, n, 2, generator=generator),
        torch.randn(3, n, generator=generator),
    )
    numbers = torch.arange(n).expand(3, n)
    unknown = torch.full_like(shift_px, torch.nan)
    return Candidates(
        rotation_vector_to_matrix(vector),
        shift_px,
        numbers % classes,
        score,
        score,
        numbers,
        unknown,
    )


def test_distinct_candidates_lie_apart_and_start_with_the_best():
    candidates = _candidates(200, 40.0)
    found = distinct_poses(candidates, 5, 20.0)
    torch.testing.assert_close(found.score[:, 0], candidates.score.amax(1))
    apart = angular_distance_deg(found.rotations[:, :, None], found.rotations[:, None])
    assert (apart + 1000 * torch.eye(5)).min() > 20.0
    assert (torch.diff(found.score, dim=1) <= 0).all()
    for image in range(3):  # greedily: whatever beats the one taken lies near an earlier one
        for place in range(1, 5):
            better = candidates.score[image] > found.score[image, place]
            near = (
                angular_distance_deg(
                    candidates.rotations[image][:, None], found.rotations[image, :place]
                ).amin(1)
                <= 20.0 + 1e-2
            )
            assert near[better].all()


def test_as_many_distinct_candidates_as_hold_the_posterior():
    """An image whose four best hold it gets no more, one with an even posterior gets all asked
    for, each in the order of `n` alone."""
    candidates = _candidates(60, 60.0)
    weight = torch.full((3, 60), -20.0)
    weight[0, :4] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    weight[1:] = candidates.log_weight[1:]
    candidates = replace(candidates, log_weight=weight)
    found = distinct_poses(candidates, 4, 5.0, most=12, share=0.999)
    number = torch.isfinite(found.log_weight).sum(1)
    assert number.tolist() == [4, 12, 12]
    alone = distinct_poses(candidates, 12, 5.0)
    torch.testing.assert_close(found.rotations[1:], alone.rotations[1:])
    torch.testing.assert_close(found.log_weight[1:], alone.log_weight[1:])


def test_followed_candidates_hold_the_share_asked_for():
    candidates = _candidates(60, 60.0)
    sharp = candidates.log_weight.clone()
    sharp[0] *= 30
    candidates = replace(candidates, log_weight=sharp)
    found = holding(candidates, 0.9, fewest=FOLLOWED_CANDIDATES)
    number = torch.isfinite(found.log_weight).sum(1)
    share = torch.exp(torch.logsumexp(found.log_weight, 1) - torch.logsumexp(sharp, 1))
    assert number[0] == FOLLOWED_CANDIDATES < number[1]
    assert (share > 0.9 - 1e-4).all()
    fewer = found.best(int(number[1]) - 1).log_weight[1]
    assert torch.exp(torch.logsumexp(fewer, 0) - torch.logsumexp(sharp[1], 0)) < 0.9


def test_candidates_of_other_classes_may_lie_close():
    found = distinct_poses(_candidates(60, 0.5, classes=3), 3, 20.0)
    assert found.classes.sort(1).values.tolist() == [[0, 1, 2]] * 3


def test_too_few_distinct_candidates_do_no_harm():
    candidates = _candidates(10, 0.5)
    found = distinct_poses(candidates, 4, 20.0)
    assert found.score.shape == (3, 4)
    torch.testing.assert_close(found.score[:, 0], candidates.score.amax(1))
    assert distinct_poses(candidates, 50, 1e-3).score.shape == (3, 10)


def test_power_is_the_same_from_a_product_with_all_children_and_from_an_images_own(
    channel, scene_of
):
    scene = scene_of(channel, 4, snr=0.2)
    plan = prepare_search(prepare_references(channel, 15), _settings(score=LOG_LIKELIHOOD), 15)
    level = plan.planes[1]
    terms = terms_on_level(scene.terms, torch.zeros(4, 2), scene.plane, level)
    everything = torch.arange(len(plan.children[1])).expand(4, -1)
    few = everything[:, : len(everything[0]) // 64]
    of_all = plan.slices_and_power(everything, terms, level)
    of_own = plan.slices_and_power(few, terms, level)
    assert torch.equal(of_own[0], of_all[0][:, : few.shape[1]])
    torch.testing.assert_close(of_own[1], of_all[1][:, : few.shape[1]], rtol=1e-4, atol=1e-3)
