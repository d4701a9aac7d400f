"""What a refinement must not keep to itself: that its resolution may be the start's, or that its
images do not know the map."""

from halfmap.commands._summaries import angstrom
from halfmap.engine.state import State

# mean log likelihood of an image with the map over without it: below, the map explains nothing
NOTHING_SEEN = 0.0


def doubts(
    state: State, resolution_angstrom: float, lowpass_angstrom: float, *, by_likelihood: bool
) -> tuple[str, ...]:
    """A line for each reason to doubt the resolution.

    Both halves are given the same start. What the images cannot contradict they keep of it, and
    agree on it: a resolution no finer than what the start was filtered to is no evidence of the
    images. And an image that meets a map of other images (`refine --folds`) is explained by it
    better than by noise alone, unless it holds no such particle.

    Args:
        lowpass_angstrom: what the starting map was filtered to.
        by_likelihood: whether the last iteration's scores are log likelihoods against maps that do
            not hold the image.
    """
    told: tuple[str, ...] = ()
    if resolution_angstrom >= lowpass_angstrom:
        told += (
            f"the halves agree to {angstrom(resolution_angstrom)}, no further than the start that "
            f"both were given ({angstrom(lowpass_angstrom)}): it may be the start that they agree "
            "on; try a coarser --initial-lowpass",
        )
    gain = state.history[-1].mean_log_likelihood
    if by_likelihood and gain < NOTHING_SEEN:
        told += (
            f"the map explains an image no better than noise alone does (log likelihood "
            f"{gain:.1f} in the mean): the images may hold no such particle, and the map may be "
            "what is left of the start",
        )
    return told
