"""The methods that a user can name."""

from halfmap.engine.method import Method
from halfmap.engine.problem import Problem
from halfmap.methods.maximum_likelihood import maximum_likelihood
from halfmap.methods.projection_matching import projection_matching
from halfmap.methods.settings import Settings

ML = "ml"
IN_3D = (ML, "projection-matching")
IN_2D = (ML, "template")


def make_method(name: str, problem: Problem, settings: Settings) -> Method:
    """The method of that name, ready for the engine."""
    return (
        maximum_likelihood(problem, settings)
        if name == ML
        else projection_matching(problem, settings)
    )
