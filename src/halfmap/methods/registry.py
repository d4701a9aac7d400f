"""The methods that a user can name."""

from halfmap.engine.method import Method
from halfmap.engine.problem import Problem
from halfmap.errors import InputError
from halfmap.methods.maximum_likelihood import maximum_likelihood
from halfmap.methods.projection_matching import projection_matching
from halfmap.methods.settings import Settings

ML = "ml"
IN_3D = (ML, "projection-matching")
IN_2D = (ML, "template")


def check_method(
    name: str, known: tuple[str, ...], *, tau_fudge: float | None, wiener_constant: float | None
) -> None:
    """Refuse a method that does not exist, and options that it does not have.

    Raises:
        InputError: naming the option.
    """
    if name not in known:
        raise InputError(f"--method {name}: expected one of {', '.join(known)}")
    if name == ML and wiener_constant is not None:
        raise InputError(
            f"--wiener-constant {wiener_constant:g}: is for --method {known[1]}; maximum "
            "likelihood takes --tau-fudge"
        )
    if name != ML and tau_fudge is not None:
        raise InputError(
            f"--tau-fudge {tau_fudge:g}: is for --method {ML}; {name} takes --wiener-constant"
        )


def make_method(name: str, problem: Problem, settings: Settings) -> Method:
    """The method of that name, ready for the engine."""
    return (
        maximum_likelihood(problem, settings)
        if name == ML
        else projection_matching(problem, settings)
    )
