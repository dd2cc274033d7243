"""SparseGPT (Frantar and Alistarh, arXiv 2301.00774): its mask, a choice, and its update of any mask.

Columns are settled from the first to the last. Removing w[j] changes the columns that are not settled by
-w[j] / P[0, 0] P[0, :], P the inverse of the Gram matrix of column j and those after it: the change that
costs the least, w[j]^2 / P[0, 0]. With the upper Cholesky factor U of the inverse of the whole damped Gram
matrix, U[j, j:] = P[0, :] / P[0, 0]^(1/2) for every j at once. Changes reach the columns after a block when
the block is settled.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from symprune.base.errors import UserError
from symprune.base.types import Mask, Scores, Weight
from symprune.methods.masks import NM, Unstructured, keep_highest
from symprune.methods.objective import Quadratic
from symprune.methods.stats import LayerStats
from symprune.methods.update.update import Update, damping_for, share, unit_diagonal, working

Chooser = Callable[[Scores, int, int], Mask]  # of the costs of columns from the first to before the second


@dataclass(frozen=True)
class SparseGPT:
    """The mask of SparseGPT: inside each block of columns, by what removing costs in the sweep; no score.

    An unstructured pattern removes from every block the same fraction, per output row by row, per layer over
    the block (as published), and in all as many as the pattern says; N:M is chosen block by block of m. The
    weights that the sweep has changed are not kept: `Sequential` on this mask makes them again, to the same.
    damping: of the mean of G's diagonal. block: columns.
    """

    damping: float = 0.01
    block: int = 128
    uses: ClassVar[tuple[str, ...]] = ("gram",)

    def __post_init__(self):
        _check(self)

    @torch.no_grad()
    def choose(self, weight: Weight, stats: LayerStats, pattern: Unstructured | NM) -> Mask:
        """The mask (True = kept); where no token came, that of magnitude. Raises UserError without G."""
        w, gram = working(weight, stats)
        if not gram.diagonal().any():
            return pattern(w.abs())
        stretch = pattern.m if isinstance(pattern, NM) else self.block
        return sweep(w, _factor(gram, self.damping, stats), self.block, stretch, _chooser(pattern, w))[1]


@dataclass(frozen=True)
class Sequential:
    """The kept weights as SparseGPT leaves them, on any mask: each removal is made good by later columns.

    On the mask of `SparseGPT` this is SparseGPT. damping: of the mean of G's diagonal. block: columns, which
    only the order of additions depends on.
    """

    damping: float = 0.01
    block: int = 128
    uses: ClassVar[tuple[str, ...]] = ("gram",)

    def __post_init__(self):
        _check(self)

    @torch.no_grad()
    def run(self, weight: Weight, mask: Mask, stats: LayerStats) -> Update:
        """The weight updated on its mask, and what it took; UserError for statistics without G."""
        w, gram = working(weight, stats)
        updated = torch.where(mask, w, 0.0)
        if gram.diagonal().any() and not mask.all():
            factor = _factor(gram, self.damping, stats)
            swept, _ = sweep(w, factor, self.block, self.block, lambda _, start, end: mask[:, start:end])
            updated = torch.where(mask.all(dim=1, keepdim=True), w, swept)
        objective = Quadratic(unit_diagonal(gram), None, 0.0, 1.0, 0.0, damping_for(self.damping, stats))
        before, after, whole = map(objective.value, (torch.where(mask, 0.0, w), updated - w, w))
        return Update(updated.to(weight.dtype), 1, share(before, whole), share(after, whole))

    def __call__(self, weight: Weight, mask: Mask, stats: LayerStats) -> Weight:
        return self.run(weight, mask, stats).weight


def sweep(
    weight: Weight, factor: Float[Tensor, "d_in d_in"], block: int, stretch: int, choose: Chooser
) -> tuple[Weight, Mask]:
    """The weight after the sweep, and the mask that was chosen at the start of each stretch of columns."""
    weight, mask = weight.clone(), torch.ones_like(weight, dtype=torch.bool)
    d_in = weight.shape[1]
    block = max(block // stretch, 1) * stretch
    for start in range(0, d_in, block):
        end = min(start + block, d_in)
        here, errors = weight[:, start:end], torch.zeros_like(weight[:, start:end])
        inner = factor[start:end, start:end]
        scale, divisor = inner.diagonal(), torch.empty_like(here)
        for column in range(end - start):
            if column % stretch == 0:
                part = slice(column, min(column + stretch, end - start))
                cost = (here[:, part] / scale[part]).square()
                kept = choose(cost, start + part.start, start + part.stop)
                mask[:, start:end][:, part] = kept
                divisor[:, part] = torch.where(kept, math.inf, scale[part])  # a kept weight errs by 0
            error = torch.div(here[:, column], divisor[:, column], out=errors[:, column])
            here[:, column:].addr_(error, inner[column, column:], alpha=-1)
        here.mul_(mask[:, start:end])  # removed weights are zero, not what rounding left of them
        weight[:, end:].addmm_(errors, factor[start:end, end:], alpha=-1)
    return weight, mask


def _factor(gram: Float[Tensor, "d d"], damping: float, stats: LayerStats) -> Float[Tensor, "d d"]:
    """The upper Cholesky factor of the inverse of the damped Gram matrix, computed in float64."""
    damped = unit_diagonal(gram.double())
    damped.diagonal().add_(damping_for(damping, stats))
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        return torch.linalg.cholesky(inverse, upper=True).to(gram)
    except torch.linalg.LinAlgError as error:
        raise UserError(
            f"the Gram matrix of {len(gram)} inputs cannot be inverted with damping {damping}: raise it, or"
            " calibrate on more text"
        ) from error


def _chooser(pattern: Unstructured | NM, weight: Weight) -> Chooser:
    if not isinstance(pattern, Unstructured):
        return lambda cost, start, end: pattern(cost)
    d_out, d_in = weight.shape
    by_row = pattern.group == "output"
    removed = math.floor(pattern.sparsity * (d_in if by_row else d_out * d_in))

    def choose(cost: Scores, start: int, end: int) -> Mask:
        quota = removed * end // d_in - removed * start // d_in
        return keep_highest(cost if by_row else cost.reshape(1, -1), quota).view(cost.shape)

    return choose


def _check(update: SparseGPT | Sequential) -> None:
    if not 0 <= update.damping < math.inf:
        raise UserError(f"damping must be finite and not negative, not {update.damping}")
    if update.block < 1:
        raise UserError(f"a block has at least 1 column, not {update.block}")
