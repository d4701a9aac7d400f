"""The few most probable poses of each image, with their weights: what expectation-maximisation
carries from one iteration to the next where a posterior has more than one peak."""

from dataclasses import dataclass

from halfmap.engine.method import Iteration, Update, WeighedBatch
from halfmap.engine.particle_values import ByParticle, gather_over_processes, recentred_poses
from halfmap.engine.state import Candidates, State, as_candidates

MOST_POSES = 4  # of an image that are carried and, where probable, refined on all shells


@dataclass(frozen=True)
class SignificantPoses:
    """Up to n poses of each of N particles."""

    candidates: Candidates


def significant_poses(state: State) -> Candidates:
    """The significant poses of all particles; each particle's best pose where no more are kept."""
    kept = state.find(SignificantPoses)
    return as_candidates(state.poses) if kept is None else kept.candidates


class SignificantPosesStatistic(ByParticle[Candidates]):
    """Keeps the best `MOST_POSES` candidates of every image."""

    name = "significant poses"

    def add(self, partial: list, weighed: WeighedBatch) -> list:
        best = weighed.candidates.best(MOST_POSES).padded(MOST_POSES)
        partial.append((weighed.batch.index.cpu(), best.to("cpu")))
        return partial

    def finish(self, partial: list, iteration: Iteration, update: Update, state: State) -> State:
        before = significant_poses(iteration.state)
        found = gather_over_processes(before, partial, iteration.half >= 0)
        if update.recentring_px is not None:
            found = recentred_poses(found, update.recentring_px)
        return state.keeping(SignificantPoses(found))
