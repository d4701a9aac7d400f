"""What is wrong with an image, and single hot or dead pixels mended from their neighbourhood."""

from dataclasses import dataclass, field

import numpy as np

# Every image is asked this first, and nearly all pass: in Gaussian noise one pixel in 10^11 lies
# seven standard deviations out.
SUSPECT_DEVIATIONS = 7
# Distances are measured by their 99.5th percentile in the same image, 2.8 standard deviations of
# Gaussian noise; a particle covers more than 0.5 % of its box, so it is never an outlier of itself.
TYPICAL_PERCENTILE = 99.5
HOT = 10.0  # times that, 28 standard deviations: no noise, whatever is around it
# A pixel that stands alone is known at less, 10 standard deviations: what a microscope shows is
# never one pixel with nothing beside it, which half of its height would be.
HOT_ALONE, BESIDE = 3.5, 0.5
GLOW = 2.0  # of pixels that touch a hot one: resampled images have the hot pixel in them too
LARGEST_SPOT = 9  # pixels that touch: one pixel and its neighbours; more is no pixel's fault
MOST_REPAIRED, SHARE_REPAIRED = 8, 0.002  # pixels, or this share of the image if that is more
REACH = 2  # of the neighbourhood, 5 x 5 pixels, whose median takes a hot pixel's place
_AROUND = np.ones((3, 3), bool)


@dataclass(frozen=True)
class Examined:
    """Of each image that has a fault, by its row: the reason if it is beyond repair, else its hot
    pixels (places in the flattened image)."""

    bad: dict[int, str] = field(default_factory=dict)
    hot: dict[int, np.ndarray] = field(default_factory=dict)


def examine(image: np.ndarray) -> tuple[str, np.ndarray]:
    """Why an image (N, N) is unusable ("" where it is not), and the hot pixels that can be mended
    (places in the flattened image).

    - NaN or infinite pixels; a constant image;
    - hot pixels in spots of more than nine, or more of them than 8 and 0.2 % of the image.
    """
    none = np.empty(0, np.int64)
    if not np.isfinite(image).all():
        return f"{np.count_nonzero(~np.isfinite(image))} NaN or infinite pixels", none
    low, high = float(image.min()), float(image.max())
    mean, deviation = float(image.mean(dtype=np.float64)), float(image.std(dtype=np.float64))
    if low == high:
        return f"constant image (every pixel is {low:g})", none
    if max(high - mean, mean - low) < SUSPECT_DEVIATIONS * deviation:
        return "", none
    distance = np.abs(image - np.median(image))
    typical = float(np.percentile(distance, TYPICAL_PERCENTILE))
    if typical <= 0:
        return "", none
    from scipy.ndimage import label  # most data sets have no hot pixel

    hot, strict = _hot_pixels(image, distance, typical)
    spots, _ = label(hot, structure=_AROUND)
    largest = int(np.bincount(spots[hot]).max()) if hot.any() else 0
    most = max(MOST_REPAIRED, SHARE_REPAIRED * image.size)
    if strict and (largest > LARGEST_SPOT or np.count_nonzero(hot) > most):
        how_far = f"up to {distance.max() / typical:.0f} times the image's 99.5th percentile"
        return f"{np.count_nonzero(hot)} hot pixels ({how_far})", none
    return "", np.flatnonzero(hot & (spots > 0)) if largest <= LARGEST_SPOT else none


def _hot_pixels(image: np.ndarray, distance: np.ndarray, typical: float) -> tuple[np.ndarray, bool]:
    """Where hot pixels are, with what glows around them, and whether any of them is hot whatever
    is around it."""
    from scipy.ndimage import median_filter

    strict = distance > HOT * typical
    beside = _AROUND.copy()
    beside[1, 1] = False
    local = np.abs(image - median_filter(image, footprint=beside, mode="reflect"))
    stands_out = local > HOT_ALONE * np.percentile(local, TYPICAL_PERCENTILE)
    alone = stands_out & (distance > HOT_ALONE * typical) & ~strict
    for y, x in np.argwhere(alone):
        ring = distance[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        alone[y, x] = np.count_nonzero(ring > BESIDE * distance[y, x]) == 1  # itself
    glow = np.zeros_like(strict)
    for y, x in np.argwhere(strict):
        part = (slice(max(0, y - 1), y + 2), slice(max(0, x - 1), x + 2))
        glow[part] |= distance[part] > GLOW * typical
    return strict | alone | glow, bool(strict.any())


def mend(image: np.ndarray, hot: np.ndarray) -> None:
    """Put the median of the 5 x 5 neighbourhood, without other hot pixels, in place of each hot
    one."""
    box = image.shape[-1]
    good = np.ones(image.shape, bool)
    good.flat[hot] = False
    values = []
    for place in hot:
        y, x = divmod(int(place), box)
        reach = REACH
        part = good[:0, :0]
        while not part.any():  # a spot of nine in a corner fills its neighbourhood
            rows = slice(max(0, y - reach), y + reach + 1)
            columns = slice(max(0, x - reach), x + reach + 1)
            part = good[rows, columns]
            reach += 1
        values.append(np.median(image[rows, columns][part]))
    image.flat[hot] = values
