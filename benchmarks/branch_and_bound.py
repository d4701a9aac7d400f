"""Branch and bound beside the adaptive grid and exhaustive search: what each evaluates, takes and
finds."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

import truth
from common import Report
from datasets import phantom_map, phantom_particles
from halfmap.engine.image_model import noise_variance
from halfmap.engine.pose_prior import uniform_prior
from halfmap.engine.preprocessing import load_batch
from halfmap.engine.state import Candidates
from halfmap.fourier import half_plane, lowpass, shift_phases
from halfmap.likelihood import (
    LOG_LIKELIHOOD,
    ImageTerms,
    cross_terms,
    log_likelihood_score,
    slice_power,
    squared_modulus,
)
from halfmap.pose_search.adaptive import prepare_search, search_globally
from halfmap.pose_search.bounds import FAILURE
from halfmap.pose_search.branch_and_bound import prepare_bounded, search_bounded
from halfmap.pose_search.coarse_to_fine import best_cells
from halfmap.pose_search.pruning import bound_cells
from halfmap.pose_search.refinement import SearchSettings, distinct_poses, refine_candidates
from halfmap.pose_search.sampling import fine_order, search_grid, shift_grid
from halfmap.projection import FourierReferences, extract_slices, prepare_references
from halfmap.so3 import cell_of, children, compose
from inside import cpu_seconds, on_true_maps, open_job, shells_of, step
from refine_simulated import refined

BOX, IMAGES, PIXEL, RESOLUTION = 64, 200, 3.5, 12.0
SNRS = (0.5, 0.1, 0.02)
WORSE = 0.5  # of log weight, by which an image's best pose is worse than that of exhaustive search


@dataclass(frozen=True)
class Scene:
    """Images ready to be searched, the references, and the truth."""

    references: FourierReferences
    terms: ImageTerms
    settings: SearchSettings
    radius: int
    rotations: np.ndarray


def branch_and_bound() -> Report:
    """The three searches on the same images and against the same map: 200 images of the embedded
    phantom (C1, 64^2, 3.5 A) at each of three noise levels, log likelihood against the true map
    low-passed to and scored to 12 A, all orientations at 7.5 degrees and shifts up to 5 pixels.
    Exhaustive search scores every cell on all shells at shifts as fine as these ask for and refines
    the best eight. One thread. Evaluations are poses scored for an image before any refinement, and
    Fourier samples those poses cost. Then whole refinements, as in `trpv1` and `ribo`, with either
    search."""
    report = Report()
    for snr in SNRS:
        _compare(report, snr)
    for name, lowpass_angstrom, diameter_angstrom, symmetry in (
        ("trpv1", 40, 170, "C4"),
        ("ribo", 60, 270, "C1"),
    ):
        _refine(report, name, lowpass_angstrom, diameter_angstrom, symmetry)
    return report


def _scene(snr: float) -> Scene:
    folder = phantom_particles(f"accuracy_{snr:g}", n=IMAGES, box=BOX, snr=snr, seed=81)
    opened = open_job(
        folder / "particles.star", [phantom_map(BOX)], diameter_angstrom=170, lowpass_angstrom=20
    )
    true_map, radius = (
        torch.from_numpy(truth.read_volume(phantom_map(BOX))[0]),
        shells_of(BOX, PIXEL, RESOLUTION),
    )
    reference = lowpass(true_map, RESOLUTION, PIXEL, dimensions=3)[None]
    state = step(opened, opened.state).after
    state = step(
        opened, on_true_maps(opened, state, true_map[None], opened.problem.plane.radius)
    ).after  # for the noise
    state = on_true_maps(opened, state, reference, radius)
    plane, search = opened.problem.plane, opened.settings.search
    prior = uniform_prior(
        1,
        3,
        order=fine_order(search) - 1,
        shift_sigma_px=search.shift_range_px / 2,
        device=torch.device("cpu"),
    )
    settings = replace(search, score=LOG_LIKELIHOOD, prior=prior)
    shift_px = opened.true_poses.shift_px
    rows = torch.nonzero(shift_px.norm(dim=1) < search.shift_range_px - 0.5)[
        :, 0
    ]  # the others are out of every search's reach
    terms = load_batch(
        opened.problem.particles,
        rows,
        plane,
        noise_variance(state),
        torch.zeros(len(rows), 2),
        opened.problem.images,
    ).scored
    references = prepare_references(state.references[0], radius)
    return Scene(
        references, terms, settings, radius, opened.true_poses.rotations[rows].double().numpy()
    )


def _compare(report: Report, snr: float) -> None:
    scene = _scene(snr)
    plane, centre = half_plane(BOX, BOX // 2 - 1), torch.zeros(len(scene.terms), 2)
    adaptive = prepare_search(scene.references, scene.settings, scene.radius)
    bounded = prepare_bounded(scene.references, scene.settings, scene.radius)
    assert bounded.table is not None  # slices are cut once, before time is taken
    searches: dict[str, Callable[[], Candidates]] = {
        "adaptive": lambda: search_globally(adaptive, scene.terms, centre, plane, scene.radius),
        "branch and bound": lambda: search_bounded(
            bounded, scene.terms, centre, plane, scene.radius
        ),
        "exhaustive": lambda: _exhaustively(scene),
    }
    found, cost = {}, {}
    for name, search in searches.items():
        cost[name], candidates = cpu_seconds(search)
        found[name] = candidates.best(1)
    left = bound_cells(bounded, scene.terms, centre, plane, scene.radius).levels
    counts = (
        best_cells(adaptive, scene.terms, centre, plane)[1].float().mean()
        * adaptive.grid.children.shape[1]
    )
    n_cells = len(bounded.classes)
    poses = {
        "adaptive": [
            (len(adaptive.slices) * len(adaptive.shifts[0]), adaptive.planes[0]),
            (float(counts) * len(adaptive.shifts[1]), adaptive.planes[1]),
        ],
        "branch and bound": [
            (float(one.scored.float().mean()), level.plane)
            for one, level in zip(left, bounded.levels, strict=True)
        ],
        "exhaustive": [(n_cells * len(_shifts(scene)), half_plane(BOX, scene.radius))],
    }
    exhaustive = found["exhaustive"]
    for name, best in found.items():
        angle = truth.angle_of(
            best.rotations[:, 0].double().numpy() @ scene.rotations.transpose(0, 2, 1)
        )
        scored = sum(count for count, _ in poses[name])
        samples = sum(count * len(level) for count, level in poses[name]) / 1e6
        ms = 1e3 * cost[name] / len(angle)
        worse = float((exhaustive.log_weight[:, 0] - best.log_weight[:, 0] > WORSE).float().mean())
        label = f"SNR {snr:g}, {name}"
        report.add(
            f"{label}: poses, samples an image",
            f"{scored:,.0f}, {samples:,.1f} million",
            f"{n_cells:,} cells",
        )
        report.add(
            f"{label}: CPU ms an image",
            f"{ms:.1f}",
            f"{1e3 * cost['exhaustive'] / len(angle) / ms:.1f} times less than exhaustive",
        )
        report.add(
            f"{label}: pose error, median; beyond 10 deg",
            f"{np.median(angle):.2f} deg; {np.mean(angle > 10):.1%}",
        )
        report.add(
            f"{label}: worse than exhaustive by {WORSE} of log weight", f"{worse:.1%} of images"
        )
        report.numbers[label] = {
            "poses": scored,
            "samples_million": samples,
            "cpu_ms": ms,
            "error_deg": float(np.median(angle)),
            "beyond_10_deg": float(np.mean(angle > 10)),
            "worse": worse,
        }
    pruned = [
        float((~_holds(one.cells, one.log_weight, exhaustive, scene.settings)).float().mean())
        for one in left
    ]
    kept = [float(one.counts.float().mean()) for one in left]
    report.add(
        f"SNR {snr:g}, branch and bound: cells that survive",
        ", then ".join(f"{n / n_cells:.2%}" for n in kept),
        f"best cell pruned in {max(pruned):.1%} of {len(angle)} images; stated: at most "
        f"{FAILURE:.1%}",
    )
    report.numbers[f"SNR {snr:g}"] = {"pruned": pruned, "survive": kept, "images": len(angle)}


def _shifts(scene: Scene) -> torch.Tensor:
    return shift_grid(
        scene.settings.shift_range_px, BOX / (4 * scene.radius), device=torch.device("cpu")
    )


def _exhaustively(scene: Scene) -> Candidates:
    """Every orientation of the grid and every shift on all shells; the best eight distinct ones
    refined."""
    plane = half_plane(BOX, scene.radius)
    rotations = search_grid(scene.settings, 3).children.flatten(0, 1)
    slices, shifts = extract_slices(scene.references, rotations, plane), _shifts(scene)
    squared, phases = squared_modulus(slices).T.contiguous(), shift_phases(shifts, plane)
    parts = []
    for rows in torch.arange(len(scene.terms)).split(4):
        some = scene.terms.select_images(rows)
        inside = ImageTerms(some.data[:, : len(plane)], some.power[:, : len(plane)])
        most = cross_terms(inside, phases, slices, plane).max(1)
        score = log_likelihood_score(most.values, slice_power(inside, squared, plane))
        best = torch.topk(score, 200, dim=1)
        shift_px = shifts[most.indices.gather(1, best.indices)]
        none, nan = torch.full_like(best.indices, -1), torch.full_like(shift_px, torch.nan)
        found = Candidates(
            rotations[best.indices],
            shift_px,
            torch.zeros_like(none),
            best.values,
            best.values,
            none,
            nan,
        )
        parts.append(
            refine_candidates(
                scene.references,
                some,
                half_plane(BOX, BOX // 2 - 1),
                distinct_poses(found, 8, 10.0),
                radius=scene.radius,
                first_radius=scene.radius,
                settings=scene.settings,
                step_deg=7.5,
            ).best(1)
        )
    return Candidates(
        *(torch.cat(fields) for fields in zip(*(p.fields() for p in parts), strict=True))
    )


def _holds(
    cells: torch.Tensor, log_weight: torch.Tensor, best: Candidates, settings: SearchSettings
) -> torch.Tensor:
    """Whether the cell of each image's best pose is among those that survive."""
    order, grid = fine_order(settings), search_grid(settings, 3)
    numbers = children(grid.cell_id, order - 1).flatten()
    place = torch.full((12 * 4**order * 6 * 2**order,), -1)
    place[numbers] = torch.arange(len(numbers))
    mates = torch.stack(
        [
            place[cell_of(compose(best.rotations[:, 0], mate), order)]
            for mate in settings.specimen.symmetry.rotations
        ],
        1,
    )
    return ((cells[:, :, None] == mates[:, None]).any(2) & torch.isfinite(log_weight)).any(1)


def _refine(
    report: Report, name: str, lowpass_angstrom: float, diameter_angstrom: float, symmetry: str
) -> None:
    """Whole jobs, by maximum likelihood."""
    costs = {}
    for search in ("adaptive", "branch-and-bound"):
        outcome = refined(
            report,
            name,
            ("--search", search),
            lowpass_angstrom=lowpass_angstrom,
            diameter_angstrom=diameter_angstrom,
            symmetry=symmetry,
        )
        cost = outcome.cost
        costs[search] = cost.cpu_s
        report.add(
            f"refine {name}, {search}: CPU s; FSC 0.5 to the truth; pose error",
            f"{cost.cpu_s:.0f}; {outcome.to_truth_angstrom:.2f} A; {outcome.error_deg:.2f} / "
            f"{outcome.p90_deg:.2f} deg",
            f"{cost.cpu_s / costs['adaptive']:.1f} times the adaptive grid's CPU",
        )
        report.numbers[f"{name} {search}"] = {
            "cpu_s": cost.cpu_s,
            "fsc_half_angstrom": outcome.to_truth_angstrom,
            "error_deg": outcome.error_deg,
            "p90_deg": outcome.p90_deg,
        }
