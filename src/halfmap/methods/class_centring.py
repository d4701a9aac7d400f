"""Class images of 2D brought to the centre of their box, and their particles with them."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.engine.box_edges import have_seams, without_seams
from halfmap.engine.state import Poses

# a choice, of the box: no picker is so far off, and the particle would leave its image
FARTHEST_CENTRE = 0.25


def centring_shift_px(images: Float[Tensor, "K N N"]) -> Float[Tensor, "K 2"]:
    """By how many whole pixels (x, y) to move each class image so that the centre of mass of what
    is brighter than a fifth of its maximum is less than a pixel from the middle.

    A class inherits the position of the image it started from; off centre, the mask would cut it.
    """
    axis = (
        torch.arange(images.shape[-1], device=images.device, dtype=images.dtype)
        - images.shape[-1] // 2
    )
    bright = (images - 0.2 * images.amax((-2, -1), keepdim=True)).clamp(min=0)
    mass = bright.sum((-2, -1)).clamp(min=1e-20)
    centre = (
        torch.stack([(bright.sum(-2) * axis).sum(-1), (bright.sum(-1) * axis).sum(-1)], -1)
        / mass[:, None]
    )
    return -centre.trunc().cpu()


def bounded_centring_px(
    moved_px: Float[Tensor, "K 2"], poses: Poses, box: int
) -> Float[Tensor, "K 2"]:
    """The moves of class images, none for those whose particles would come to lie farther than
    `FARTHEST_CENTRE` of the box from where they were picked, in the mean over the class: it is
    junk that it would follow, a blob of ice at the rim, and out of its images in the end."""
    n = len(moved_px)
    own = torch.einsum("nji,nj->ni", poses.rotations[:, :2, :2], poses.shift_px)  # A^T shift
    total = torch.zeros(n, 2, dtype=own.dtype).index_add_(0, poses.classes, own)
    members = torch.bincount(poses.classes, minlength=n).clamp(min=1)
    offset = total / members[:, None]
    now, then = offset.norm(dim=1), (offset + moved_px.to(offset)).norm(dim=1)
    allowed = (then <= FARTHEST_CENTRE * box) | (then <= now)
    return moved_px * allowed[:, None].to(moved_px)


def moved_images(
    references: Float[Tensor, "H K N N"], shift_px: Int[Tensor, "K 2"], radius_px: float
) -> Float[Tensor, "H K N N"]:
    """Class images moved by whole pixels (x, y); what would come in at the other side, and inside
    the circle, is 0."""
    box = references.shape[-1]
    moved = references.clone()
    seams = have_seams(shift_px.float(), box, radius_px).tolist()
    for k, (x, y) in enumerate(shift_px.tolist()):
        images = references[:, k]
        if seams[k]:
            by = shift_px[k].to(references).expand(len(images), 2)
            images = without_seams(images, by)
        moved[:, k] = images.roll((y, x), (-2, -1))
    return moved
