"""Gamma over the sphere: how sure an image is of its viewing direction, for the lecture's
pictures."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.errors import InputError
from halfmap.fourier import HalfPlane, half_plane, shift_phases
from halfmap.likelihood import (
    ImageTerms,
    cross_terms,
    log_likelihood_score,
    slice_power,
    squared_modulus,
)
from halfmap.pose_search.sampling import shift_grid
from halfmap.projection import FourierReferences, extract_slices
from halfmap.so3 import compose, direction_pixels, grid_step_deg, orientation_grid, rotations_of

SAMPLES_PER_TILE = 8_000_000  # samples of slices at a time, 64 MB
SCORES_PER_TILE = 8_000_000  # scores at a time, 32 MB


def direction_posterior(
    references: FourierReferences,
    terms: ImageTerms,
    plane: HalfPlane,
    *,
    radius: int,
    symmetry: Float[Tensor, "G 3 3"],
    order: int = 3,
    shift_range_px: float = 5.0,
    shift_step_px: float = 1.0,
    centre_px: Float[Tensor, "B 2"] | None = None,
    samples_per_tile: int = SAMPLES_PER_TILE,
) -> Float[Tensor, "B D"]:
    """Posterior of each image over viewing directions d, everything else summed out:

        Gamma_i(d) = sum_(k, psi, t) exp(a - b / 2) / sum_(d, k, psi, t) exp(a - b / 2),

    over classes k, in-plane angles psi and shifts t with uniform priors, a and b the scores of
    `likelihood` on shells 1..radius.

    The D = 12 4^order directions are HEALPix's pixels in nested order (768 of 7.5 degrees at order
    3), the whole sphere; with `symmetry` only an asymmetric unit is scored, and each pixel outside
    takes the value of its mate inside. Shifts form a disc of `shift_range_px` about `centre_px` (x,
    y; zero if not given). Every orientation is scored, in the log domain and in tiles of bounded
    memory (`samples_per_tile` of slices).

    The posterior is that of the grid: a cell is judged by its centre. Where the radius lets the
    score change within a cell (beyond `search.radius_of_step` shells), a true peak between centres
    is seen lower than it is; take a finer order or fewer shells. A reference must be on the images'
    grey scale: b grows as its square, and one too strong makes every image sure of the weakest
    slice.

    >>> from halfmap.fourier import half_plane
    >>> from halfmap.projection import prepare_references
    >>> from halfmap.simulation.forward_model import Recipe, draw_truth
    >>> from halfmap.simulation.in_memory import simulate_images
    >>> from halfmap.simulation.phantom import phantom
    >>> plane, volume = half_plane(32, 5), phantom(32, 6.0)
    >>> truth = draw_truth(Recipe(2, seed=1, shift_rms_px=0.0))
    >>> terms = simulate_images([volume], truth, pixel_size_angstrom=6.0, snr=0.1).terms(plane)
    >>> posterior = direction_posterior(
    ...     prepare_references(volume[None], 5), terms, plane,
    ...     radius=5, symmetry=torch.eye(3)[None], order=1, shift_range_px=0.0,
    ... )
    >>> posterior.shape, bool((posterior.sum(1) - 1).abs().max() < 1e-4)
    (torch.Size([2, 48]), True)

    Raises `InputError` for 2D references and for a radius beyond theirs. Lecture: `Gamma_i(phi) =
    P(X_i | V, phi) / int P(X_i | V, phi)`.
    """
    if references.dimensions != 3:
        raise InputError(
            "references: expected volumes, got class images, which have no viewing direction; use "
            "their class probabilities"
        )
    largest = min(references.radius, plane.radius)
    if not 1 <= radius <= largest:
        raise InputError(
            f"argument radius: expected 1 to {largest} Fourier pixels, as references and images "
            f"were prepared, got {radius}"
        )
    level = half_plane(plane.box, radius, plane.kx.device)
    moved = terms.data[:, : len(level)]
    if centre_px is not None:
        moved = moved * shift_phases(centre_px, level)
    inside = ImageTerms(moved, terms.power[:, : len(level)])
    phases = shift_phases(shift_grid(shift_range_px, shift_step_px, device=plane.kx.device), level)

    n_psi, n_classes = _in_plane_count(order), len(references)
    cells = orientation_grid(order, symmetry).cell_id.view(-1, n_psi)
    slices_each = n_psi * n_classes
    at_once = max(
        1,
        min(samples_per_tile // len(level), SCORES_PER_TILE // (len(terms) * len(phases)))
        // slices_each,
    )
    log_density = torch.cat(
        [
            _of_directions(references, inside, phases, level, tile, order)
            for tile in cells.split(at_once)
        ],
        dim=1,
    )
    sphere = log_density[:, _mates(cells[:, 0] // n_psi, symmetry, order).to(log_density.device)]
    return torch.softmax(sphere, dim=1)


def effective_number(posterior: Float[Tensor, "*B D"]) -> Float[Tensor, "*B"]:
    """`exp(-sum p log p)`: how many directions the posterior is spread over, 1 where it is certain,
    D where it is uniform."""
    return torch.special.entr(posterior).sum(-1).exp()


def _of_directions(
    references: FourierReferences,
    terms: ImageTerms,
    phases: Tensor,
    level: HalfPlane,
    cells: Int[Tensor, "d p"],
    order: int,
) -> Float[Tensor, "B d"]:
    """log sum_(k, psi, t) exp(a - b / 2) of a tile of directions, given by their cells."""
    n_classes, device = len(references), level.kx.device
    rotations = rotations_of(cells.flatten(), order).to(device).repeat(n_classes, 1, 1)
    classes = torch.arange(n_classes, device=device).repeat_interleave(cells.numel())
    slices = extract_slices(references, rotations, level, classes=classes)
    cross = cross_terms(terms, phases, slices, level).logsumexp(1)  # b does not depend on the shift
    score = log_likelihood_score(cross, slice_power(terms, squared_modulus(slices).T, level))
    return score.view(len(terms), n_classes, *cells.shape).logsumexp((1, 3))


def _mates(
    pixels: Int[Tensor, " d"], symmetry: Float[Tensor, "G 3 3"], order: int
) -> Int[Tensor, " D"]:
    """For each pixel of the sphere, the place in `pixels` of itself or else of a symmetry mate."""
    n_psi = _in_plane_count(order)
    sphere = torch.arange(12 * 4**order)
    centres = rotations_of(sphere * n_psi, order)
    mates = torch.stack(
        [direction_pixels(compose(centres, s), order) for s in symmetry.to(centres)]
    )  # the identity first
    place = torch.full_like(sphere, -1)
    place[pixels] = torch.arange(len(pixels))
    return place[mates.gather(0, (place[mates] >= 0).int().argmax(0, keepdim=True))[0]]


def _in_plane_count(order: int) -> int:
    return round(360 / grid_step_deg(order))
