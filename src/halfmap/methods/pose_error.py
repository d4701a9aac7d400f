"""How far off the references put poses, measured between the half sets.

An image's best pose errs by its own noise, which its posterior knows, and by what is wrong with the
references, which its posterior takes for the truth. Errors of a map that poses can follow (a part
turned a little, a contour moved) are the ones that poses know least of, so that the variance of the
map's Fourier coefficients (`engine.reference_variance`) tells little of them. The half maps are two
references whose errors are independent: put in place of each other they move the poses by

    d = H^-1 (g' - g),    <d^T H d> = 2 r n

g and g' the gradients of the log likelihood at the best pose with either half's references, H its
Hessian, n the parameters (5), and r the variance of a pose that comes of the references over that
which comes of its noise. Both add up, as if there were 1 + r times the noise: the posterior is
taken so.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.distributed import all_sum
from halfmap.engine.image_model import PoseError
from halfmap.engine.method import Iteration, Update, WeighedBatch
from halfmap.engine.state import State
from halfmap.pose_search.gauss_newton import gauss_newton_system, pose_equations
from halfmap.projection import FourierReferences, prepare_references

IMAGES = 300  # of each half: five numbers of each tell r to a few per cent


@dataclass
class _Sum:
    total: Float[Tensor, " 2"]  # of d^T H d / 2 n and of images, by the weight of the best pose
    weakened: float  # by which H is smaller than that of the noise alone
    # the part that is being added, and the other half's references, prepared for it
    other: tuple[int, FourierReferences] | None = None


class PoseErrorStatistic:
    """The mean of `d^T H d / 2 n` over images of each half, weighed by how sure they are; for maps
    whose images are compared with their own half."""

    name = "pose error"

    def empty(self, iteration: Iteration) -> _Sum:
        before = iteration.state.find(PoseError)
        weakened = 1.0 if before is None else 1 / (1 + float(before.ratio))
        total = torch.zeros(2, dtype=torch.float64, device=iteration.problem.device)
        return _Sum(total, weakened)

    def add(self, partial: _Sum, weighed: WeighedBatch) -> _Sum:
        iteration = weighed.iteration
        problem, folds = iteration.problem, iteration.problem.n_folds
        part = int(iteration.part[weighed.batch.index[0]])
        if part % folds or len(iteration.parts) != 2 * folds:
            return partial
        asked = torch.isin(weighed.batch.index.cpu(), iteration.members(part)[:IMAGES])
        best = weighed.candidates.best(1)
        weight = torch.softmax(weighed.candidates.log_weight, 1).amax(1)
        image = torch.nonzero(asked.to(weight.device))[:, 0]
        if not len(image):
            return partial
        if partial.other is None or partial.other[0] != part:
            partial.other = None  # one set at a time
            others = iteration.state.references[problem.reference_set(folds - part)]
            prepared = prepare_references(
                others.to(problem.device), iteration.scored.radius, box=problem.particles.box
            )
            partial.other = part, prepared
        best = best.select_images(image)

        def equations(references: FourierReferences) -> tuple[Tensor, Tensor]:
            sums = pose_equations(
                references,
                weighed.batch.scored,
                iteration.scored,
                len(iteration.scored),
                image=image,
                rotations=best.rotations[:, 0],
                shift_px=best.shift_px[:, 0],
                classes=best.classes[:, 0],
            )
            return gauss_newton_system(sums, free_scale=False)

        own, hessian = equations(weighed.references)
        moved = (equations(partial.other[1])[0] - own).double()
        size = hessian.double().diagonal(dim1=1, dim2=2).amax(1)[:, None, None]
        ridge = 1e-6 * size * torch.eye(5, dtype=torch.float64, device=size.device)
        squared = (moved * torch.linalg.solve(hessian.double() + ridge, moved)).sum(1) / 10
        sure = weight[image].double()  # of an unsure image the best pose may be none
        partial.total += torch.stack([(sure * squared).sum(), sure.sum()])
        return partial

    def reduce(self, partial: _Sum) -> _Sum:
        return _Sum(all_sum(partial.total), partial.weakened)

    def finish(self, partial: _Sum, iteration: Iteration, update: Update, state: State) -> State:
        total, images = partial.total.tolist()
        ratio = total / max(images, 1e-6) / partial.weakened
        return state.keeping(PoseError(torch.tensor(ratio)))
