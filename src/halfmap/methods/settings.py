"""The choices that a method leaves to the user, whichever method it is."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from halfmap.engine.state import Poses
from halfmap.pose_search.refinement import SearchSettings
from halfmap.symmetries import SymmetryOperators


@dataclass(frozen=True)
class Settings:
    """With an `anchor`, poses are refined locally, held near it by the search's restraint; never
    globally.

    `relaxed_symmetry` are operators that nearly hold: each image is then looked at from all mates
    of the pose it has, and which of them it is has a posterior like everything else.
    `resolution_threshold` is the correlation that sets the resolution: 0.143 between independent
    halves; 0.5 where both halves were aligned to one reference, whose noise they then share.
    `tau_fudge` is RELION's T, by which the expected SSNR is multiplied. Independent halves share
    what lies below `join_halves_angstrom`, once they agree beyond it. Orientations are searched by
    branch and bound, or on the adaptive grid; with `poses_known` they are not searched at all, and
    only classes are. References are multiplied by `reference_mask`; the
    correlation of halves is taken inside `fsc_mask`; classes differ inside `focus_mask` only;
    images have a mask of their own (`ImageSettings`).
    """

    search: SearchSettings
    resolution_threshold: float
    reference_mask: Float[Tensor, "*box"]
    fsc_mask: Float[Tensor, "*box"]
    wiener_constant: float | None = None
    anchor: Poses | None = None
    tau_fudge: float = 1.0
    join_halves_angstrom: float | None = None
    branch_and_bound: bool = False
    relaxed_symmetry: SymmetryOperators | None = None
    poses_known: bool = False
    focus_mask: Float[Tensor, "*box"] | None = None
