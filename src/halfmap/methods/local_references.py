"""References filtered by place: a step between the M-step and the next E-step, put onto any method
from outside."""

from dataclasses import replace

from halfmap.engine.method import Iteration, Method, Update
from halfmap.engine.problem import Problem
from halfmap.engine.state import Poses
from halfmap.local_regularisation import local_gains, regularised_locally
from halfmap.masks import resampled
from halfmap.methods.reference_update import total
from halfmap.methods.settings import Settings
from halfmap.projection import Sums
from halfmap.reconstruction import unregularised


def with_local_regularisation(method: Method, settings: Settings) -> Method:
    """The same method of one map in 3D, whose new references are filtered, place by place, by what
    its half maps have in common there.

    FSC, resolution and the radius that is scored next are what they were: they are those of half
    maps that nobody has filtered.
    """

    def update(iteration: Iteration, poses: Poses, parts: list[Sums]) -> Update:
        new = method.update(iteration, poses, parts)
        filter_references(iteration.problem, settings, new, parts)
        return new

    return replace(method, update=update)


def filter_references(problem: Problem, settings: Settings, new: Update, parts: list[Sums]) -> None:
    """Multiplies all sets of references of an update by the gains of the two half maps that `parts`
    add up to; in place, for there may be no room for another set.

    Some 26 densities are held at once, when the update has given back the sums of a set of
    references and what transforms took, which is more (`engine.memory`).
    """
    box, n = new.references.shape[-1], problem.n_folds
    halves = [unregularised(total(half), box=box)[0] for half in (parts[:n], parts[n:])]
    share = problem.with_reference_sets(len(new.references)).share_compared
    gains = local_gains(
        *halves,
        mask=resampled(settings.fsc_mask, box),
        radius=parts[0].radius,
        share=share * settings.tau_fudge,
        operators=len(problem.symmetry),
    )
    del halves
    outside = resampled(settings.reference_mask, box) == 0
    for reference in new.references[:, 0]:
        reference.copy_(regularised_locally(reference, gains).masked_fill_(outside, 0.0))
