"""The image model that is learnt, `X_i = s_g C_i S_t R + nu_i N`, and images prepared by it."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.engine.box_edges import SEEN_PX, have_seams
from halfmap.engine.preprocessing import Batch, load_batch
from halfmap.engine.split_noise import SplitNoise
from halfmap.engine.state import State
from halfmap.errors import InputError
from halfmap.fourier import HalfPlane
from halfmap.likelihood import ImageTerms

if TYPE_CHECKING:
    from halfmap.engine.problem import Problem


@dataclass(frozen=True)
class NoiseSpectra:
    """Noise variance sigma^2 of a Fourier coefficient, by noise group and shell."""

    variance: Float[Tensor, "G S"]


@dataclass(frozen=True)
class ReferenceVariance:
    """Variance of the references' Fourier coefficients, by shell: what they do not know counts as
    noise when an image is compared with them."""

    variance: Float[Tensor, " S"]


@dataclass(frozen=True)
class PoseError:
    """The variance of a pose that comes of errors of the references, over that which comes of the
    image's noise (`methods.pose_error`)."""

    ratio: Float[Tensor, ""]


@dataclass(frozen=True)
class NormAndScale:
    """How strong noise is in each image (nu), and signal in each scale group (s); and of the last
    iteration the number of images whose norm is an outlier."""

    norm: Float[Tensor, " N"]
    scale: Float[Tensor, " Q"]
    outliers: int = 0


def noise_variance(state: State) -> Float[Tensor, "G S"]:
    """The noise spectra of a state.

    Raises `InputError` where it has none: every first state is given some (`initial_noise`).
    """
    spectra = state.find(NoiseSpectra)
    if spectra is None:
        raise InputError("state: expected noise spectra in it, found none; see initial_noise")
    return spectra.variance


def whole_images_at(
    problem: "Problem",
    state: State,
    batch: Batch,
    plane: HalfPlane,
    shift_px: Float[Tensor, "B 2"],
) -> ImageTerms:
    """The terms of the M-step of images that were found at another place than they were loaded
    for: read again, where a seam of their box lies inside the circle here or lay there."""
    box, radius_px = plane.box, problem.images.mask_radius_px
    before = state.poses.shift_px[batch.index.cpu()].to(shift_px.device)
    moved = (shift_px - before).abs().amax(dim=1) > SEEN_PX
    seams = have_seams(shift_px, box, radius_px) | have_seams(before, box, radius_px)
    rows = torch.nonzero(moved & seams)[:, 0]
    if not len(rows):
        return batch.whole
    again = load_images(
        problem, state, batch.index[rows].cpu(), plane, radius=1, centre=shift_px[rows]
    )
    return replace(batch.whole, data=batch.whole.data.index_copy(0, rows, again.whole.data))


def load_images(
    problem: "Problem",
    state: State,
    index: Int[Tensor, " B"],
    plane: HalfPlane,
    *,
    radius: int | None = None,
    centre: Float[Tensor, "B 2"] | None = None,
    split: SplitNoise | None = None,
) -> Batch:
    """Images of the particles `index`, weighted by the state's image model on a half-plane; scored
    on shells up to `radius`, the mask around each particle's present place, or its `centre`; with
    `split`, scored and summed with different noise."""
    strength = state.find(NormAndScale)
    norm = None if strength is None else strength.norm[index]
    scale = None if strength is None else strength.scale[problem.scale_group[index]]
    references, poses = state.find(ReferenceVariance), state.find(PoseError)
    centre = state.poses.shift_px[index] if centre is None else centre
    batch = load_batch(
        problem.particles,
        index,
        plane,
        noise_variance(state).to(problem.device),
        centre.to(problem.device),
        problem.images,
        scored_radius=radius,
        norm=norm,
        scale=scale,
        reference_variance=None if references is None else references.variance,
        split=split,
    )
    if poses is None:
        return batch
    return replace(batch, scored=batch.scored.weakened(1 / (1 + float(poses.ratio))))
