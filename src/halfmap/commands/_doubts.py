"""What a job must not keep to itself: that its resolution may be the start's, or that its images do
not know the map, or their classes."""

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


def doubted_classes(said: float, borne_out: float, n_classes: int, differ: bool) -> tuple[str, ...]:
    """A line where classes are not what they were found to be: `said` is the mean probability of
    the images' classes after classification, `borne_out` what is left of it on split noise, where
    half sets `differ`, or do not, in the same way between classes."""
    if not differ:
        return (
            f"the images do not tell these classes apart: they said {said:.2f} of their class in "
            f"the mean, by noise; each has {1 / n_classes:.2f} now, and the maps are one",
        )
    if borne_out < said:
        return (
            f"the images tell these classes less surely than they said: {borne_out:.2f} of their "
            f"class in the mean, not {said:.2f}, is borne out where noise cannot confirm itself",
        )
    return ()
