"""What happens at the edges of a box when its image is centred.

An image is moved by phases, so that what leaves the box on one side comes in at the other: the
seam is a straight edge in the class average or map, with the wrong surroundings beyond it. Where it
would lie inside the particle's circle, what would come in is taken out, and the image fades towards
the edge that it had.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

FADE_PX = 5.0  # width of the raised cosine, as that of the particle's mask
LEAVE_PX = 2.0  # and of the other, at the far edge of the box, outside the circle
SEEN_PX = 1.0  # a seam not farther than this inside the circle is in the mask's own edge


def have_seams(shift_px: Float[Tensor, "B 2"], box: int, radius_px: float) -> Bool[Tensor, " B"]:
    """Whether the image that a shift centres has its seam inside the circle."""
    return (shift_px.abs() > box / 2 - radius_px + SEEN_PX).any(dim=1)


def without_seams(
    images: Float[Tensor, "B N N"], shift_px: Float[Tensor, "B 2"]
) -> Float[Tensor, "B N N"]:
    """Images that fade to 0 towards the sides which their shifts move into the box, with 0 where
    the opposite sides would come in.

    Of an axis that moves by s > 0: `cos` from 0 at the first pixel to 1 at `FADE_PX`, and from 1 at
    N - s to 0 within `LEAVE_PX` farther; for s < 0 mirrored; 1 for s = 0.
    """
    x, y = (_fade(shift_px[:, axis], images.shape[-1]) for axis in (0, 1))
    return images * y[:, :, None] * x[:, None, :]


def _fade(shift_px: Float[Tensor, " B"], box: int) -> Float[Tensor, "B N"]:
    place = torch.arange(box, device=shift_px.device, dtype=torch.float32)
    size = shift_px.abs()[:, None]
    enters = ((place + 1) / (FADE_PX + 1)).clamp(max=1).expand(len(size), box)
    leaves = 1 - ((place - (box - 1 - size)) / size.clamp(1, LEAVE_PX)).clamp(0, 1)
    fade = 0.25 * (1 - torch.cos(torch.pi * enters)) * (1 - torch.cos(torch.pi * leaves))
    mirrored = torch.where(shift_px[:, None] < 0, fade.flip(1), fade)
    return torch.where(size < 1, 1.0, mirrored)
