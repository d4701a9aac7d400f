"""Particles outside the range of shifts are seen, and found there."""

import pytest
import torch

from halfmap.likelihood import LOG_LIKELIHOOD
from halfmap.methods.search_schedule import at_edge, searched_again
from halfmap.pose_search.adaptive import prepare_search, search_globally
from halfmap.pose_search.centring import particles_outside
from halfmap.pose_search.refinement import SearchSettings
from halfmap.projection import prepare_references
from halfmap.simulation.phantom import phantom
from halfmap.so3 import angular_distance_deg
from halfmap.symmetries import Specimen, point_group
from scenes import BOX, PIXEL, make_scene

REACH = 2.0


@pytest.fixture(scope="module")
def volume() -> torch.Tensor:
    return phantom(BOX, PIXEL, symmetry="C4")[None]


def _search(volume: torch.Tensor):
    specimen = Specimen(point_group("C4"), 13.0)
    settings = SearchSettings(
        specimen, angular_step_deg=15.0, shift_range_px=REACH, score=LOG_LIKELIHOOD
    )
    return prepare_search(prepare_references(volume, 12), settings, 12)


def test_particles_out_of_range_are_seen_and_others_are_left_alone(volume):
    scene = make_scene(volume, 80, snr=0.3, shift_rms_px=3.0)
    far = scene.shift_px.norm(dim=1)
    rows, centre = particles_outside(
        _search(volume), scene.terms, torch.zeros(80, 2), scene.plane, reach_px=REACH
    )
    seen = torch.zeros(80, dtype=torch.bool).index_fill_(0, rows, True)
    assert seen[far > REACH + 1.5].float().mean() > 0.8
    assert seen[far < REACH - 0.5].float().mean() < 0.1
    assert (centre - scene.shift_px[rows]).norm(dim=1).median() < 2.0  # the grid's step


def test_poses_of_displaced_particles_are_found_only_by_searching_there(volume):
    scene, search = make_scene(volume, 60, snr=0.5, shift_rms_px=4.0), _search(volume)
    centre = torch.zeros(60, 2)
    mates = point_group("C4").rotations

    def around(terms, centre_px, known):
        return search_globally(search, terms, centre_px, scene.plane, 12, known=known)

    def right(found) -> torch.Tensor:
        best = found.best(1).rotations[:, 0]
        return angular_distance_deg(best, scene.rotations, symmetry=mates) < 10

    found = around(scene.terms, centre, None)
    out = scene.shift_px.norm(dim=1) > REACH + 1.5
    assert out.sum() > 15
    before = right(found)
    rows, there = particles_outside(search, scene.terms, centre, scene.plane, reach_px=REACH)
    found = searched_again(around, scene.terms, found, rows, there)
    centres = torch.stack([centre, centre.index_copy(0, rows, there)], 1)
    found = searched_again(around, scene.terms, found, *at_edge(found, centres, REACH))
    after = right(found)
    assert before[out].float().mean() < 0.6
    assert after[out].float().mean() > 0.8
    assert after[~out].float().mean() >= before[~out].float().mean()


def test_at_edge_tells_the_images_whose_best_shift_lies_there(volume):
    scene = make_scene(volume, 40, shift_rms_px=3.0)
    search = _search(volume)
    found = search_globally(search, scene.terms, torch.zeros(40, 2), scene.plane, 12)
    rows, centre = at_edge(found, torch.zeros(40, 1, 2), REACH)
    best = found.best(1).shift_px[:, 0]
    assert torch.equal(rows, torch.nonzero(best.norm(dim=1) > 0.9 * REACH)[:, 0])
    assert torch.equal(centre, best[rows])
    assert 0 < len(rows) < 40


def test_what_a_second_search_did_not_better_is_not_at_its_edge(volume):
    """Only the first centre is right: the best shift is far from the second, and in the middle of
    what was searched."""
    scene = make_scene(volume, 20, shift_rms_px=0.3)
    found = search_globally(_search(volume), scene.terms, torch.zeros(20, 2), scene.plane, 12)
    elsewhere = torch.full((20, 2), 2 * REACH)
    assert len(at_edge(found, elsewhere[:, None], REACH)[0]) > 15
    both = torch.stack([torch.zeros(20, 2), elsewhere], 1)
    assert not len(at_edge(found, both, REACH)[0])
