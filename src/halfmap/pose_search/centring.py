"""Where in an image the particle lies, before its orientation is known.

The mean slice over all orientations is a round disc. Beside the disc at shift t the image has the
score of that shift; a particle outside the range of a search shows there.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.fourier import HalfPlane, shift_phases
from halfmap.likelihood import ImageTerms, cross_terms, slice_power, squared_modulus
from halfmap.pose_search.sampling import shift_grid, shift_step
from halfmap.pose_search.search_plan import GlobalSearch, terms_on_level

# Of a search's range, how far out the disc is looked for; and by how much log likelihood it must be
# clearer outside than inside: at odds of 7 a search there is worth its time
LOOKED_FOR, CLEARER = 3.0, 2.0


def particles_outside(
    search: GlobalSearch,
    terms: ImageTerms,
    centre_px: Float[Tensor, "B 2"],
    plane: HalfPlane,
    *,
    reach_px: float,
) -> tuple[Int[Tensor, " b"], Float[Tensor, "b 2"]]:
    """The images whose particle is likelier to lie farther than `reach_px` from `centre_px`, and
    the shift that centres it there."""
    level, score = search.planes[0], search.settings.score
    shifts = shift_grid(
        LOOKED_FOR * reach_px, shift_step(search.shifts[0]), device=centre_px.device
    )
    disc = search.slices.view(len(search.references), -1, len(level)).mean(1)
    inside = terms_on_level(terms, centre_px, plane, level)
    # discs are few and images many: discs are moved, the other way
    moved = (disc[:, None] * shift_phases(-shifts, level)).flatten(0, 1)
    still = shift_phases(torch.zeros_like(shifts[:1]), level)
    cross = cross_terms(inside, still, moved, level)[:, 0].unflatten(1, (len(disc), len(shifts)))
    power = slice_power(inside, squared_modulus(disc).T.contiguous(), level)
    evidence = score.log_evidence(score(cross, power[..., None])).amax(1)
    far = shifts.norm(dim=1) > reach_px
    out = evidence.masked_fill(~far, -torch.inf).max(1)
    rows = torch.nonzero(out.values > evidence[:, ~far].amax(1) + CLEARER)[:, 0]
    return rows, centre_px[rows] + shifts[out.indices[rows]]
