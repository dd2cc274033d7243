"""The scores: how much each weight of a linear matters, by one frozen dataclass for each method.

Notation: W [d_out, d_in] the weight, x = stats.input_norm [d_in], y = stats.output_norm [d_out], r_p[i] and
c_p[j] the lp norms of row i and column j of W. A call takes (W, stats) and returns S [d_out, d_in],
non-negative, in the weight's dtype but at least float32; a weight in a dead row or column scores 0. `uses`
names the fields of the statistics that a call reads. A call raises ValueError if it needs output norms that
were not gathered, or if the statistics are of another shape of linear.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from symprune.base.errors import UserError, unknown
from symprune.base.types import Scores, Weight
from symprune.methods.norms import (
    SAMPLERS,
    relative_importance,
    root_sum_of_squares,
    row_column_norms,
    sampled_norms,
)
from symprune.methods.score_inputs import (
    BALANCES,
    activations,
    check_alpha,
    check_balance,
    fields_for,
    inputs,
    outputs,
    working,
)
from symprune.methods.stats import LayerStats


@dataclass(frozen=True)
class Magnitude:
    """The size of the weight alone.

    S[i, j] = |W[i, j]|
    """

    uses: ClassVar[tuple[str, ...]] = ()

    def __call__(self, weight: Weight, stats: LayerStats | None) -> Scores:
        return working(weight).abs()


@dataclass(frozen=True)
class Wanda:
    """Weights and input activations (Sun et al., arXiv 2306.11695).

    S[i, j] = |W[i, j]| x[j]
    """

    uses: ClassVar[tuple[str, ...]] = ("input_norm",)

    def __call__(self, weight: Weight, stats: LayerStats) -> Scores:
        weight = working(weight)
        return (weight * inputs(weight, stats)).abs_()


@dataclass(frozen=True)
class OWanda:
    """Weights and the output side: the mirror image of Wanda (arXiv 2501.18980, X = 0).

    S[i, j] = |W[i, j]| y[i]

    Within one row y[i] is a constant, so in the group "output" the mask is that of Magnitude.
    """

    uses: ClassVar[tuple[str, ...]] = ("output_norm",)

    def __call__(self, weight: Weight, stats: LayerStats) -> Scores:
        weight = working(weight)
        return (weight * outputs(weight, stats, self)[:, None]).abs_()


@dataclass(frozen=True)
class SymWanda:
    """Weights, input activations and the output side: the general symmetric score (arXiv 2501.18980).

    S[i, j] = |W[i, j]| (x[j] + y[i])

    Without output norms y = 0, which is Wanda. balance: "none", or "unit-mean" to divide x and y by their
    means first, so that the number of calibration tokens and the scale of the outputs do not decide which
    side speaks. Raises UserError on another balance.
    """

    balance: str = "none"
    uses: ClassVar[tuple[str, ...]] = ("input_norm", "output_norm")

    def __post_init__(self):
        check_balance(self.balance)

    def __call__(self, weight: Weight, stats: LayerStats) -> Scores:
        weight, balanced = working(weight), BALANCES[self.balance]
        x = balanced(inputs(weight, stats))
        if stats.output_norm is None:
            return (weight * x).abs_()
        y = balanced(outputs(weight, stats, self))
        return (x + y[:, None]).mul_(weight).abs_()


@dataclass(frozen=True)
class Symmetric:
    """The symmetric objective with the weight itself on both sides, no activations (arXiv 2501.18980).

    S[i, j] = |W[i, j]| (c_2[j] + r_2[i])

    squared: |W[i, j]| sqrt(c_2[j]^2 + r_2[i]^2), the root of the squared objective's cost.
    """

    squared: bool = False
    uses: ClassVar[tuple[str, ...]] = ()

    def __call__(self, weight: Weight, stats: LayerStats | None) -> Scores:
        weight = working(weight)
        out = torch.empty_like(weight)
        row, column = row_column_norms(weight, p=2.0, out=out)
        if self.squared:
            return root_sum_of_squares(row, column, out).mul_(weight).abs_()
        return torch.add(column, row[:, None], out=out).mul_(weight).abs_()


@dataclass(frozen=True)
class RI:
    """Relative importance (Zhang et al., ICLR 2024, openreview Tr0lPx9woF).

    S[i, j] = |W[i, j]| (1 / c_1[j] + 1 / r_1[i])
    """

    uses: ClassVar[tuple[str, ...]] = ()

    def __call__(self, weight: Weight, stats: LayerStats | None) -> Scores:
        return relative_importance(working(weight))


@dataclass(frozen=True)
class RIA:
    """Relative importance and activations (Zhang et al., ICLR 2024, openreview Tr0lPx9woF).

    S[i, j] = |W[i, j]| (1 / c_1[j] + 1 / r_1[i]) x[j]^alpha

    alpha = 0 reads no activations and is RI. Raises UserError if alpha is negative.
    """

    alpha: float = 0.5

    def __post_init__(self):
        check_alpha(self.alpha)

    @property
    def uses(self) -> tuple[str, ...]:
        return fields_for(self.alpha)

    def __call__(self, weight: Weight, stats: LayerStats | None) -> Scores:
        weight = working(weight)
        return relative_importance(weight, factor=activations(weight, stats, self.alpha))


@dataclass(frozen=True)
class LpNorm:
    """Relative importance in any lp norm, with or without activations (arXiv 2501.18980).

    S[i, j] = |W[i, j]| (1 / c_p[j] + 1 / r_p[i]) x[j]^alpha

    p in (0, inf]; p = 1 is RIA. alpha = 0, the default, reads no activations, as in the paper's derivation.
    Raises UserError if p is not positive or alpha is negative.
    """

    p: float = 1.0
    alpha: float = 0.0

    def __post_init__(self):
        if not self.p > 0:
            raise UserError(f"p of an lp norm must be positive (inf is allowed), not {self.p}")
        check_alpha(self.alpha)

    @property
    def uses(self) -> tuple[str, ...]:
        return fields_for(self.alpha)

    def __call__(self, weight: Weight, stats: LayerStats | None) -> Scores:
        weight = working(weight)
        out = torch.empty_like(weight)
        row, column = row_column_norms(weight, self.p, out)
        return relative_importance(weight, row, column, activations(weight, stats, self.alpha), out=out)


@dataclass(frozen=True)
class StochRIA:
    """RIA with row and column l1 norms estimated from a fraction beta of their entries (arXiv 2501.18980).

    S[i, j] = |W[i, j]| (1 / ĉ_1[j] + 1 / r̂_1[i]) x[j]^alpha

    The estimates are unbiased (rescaled by n / tau); beta = 1 is exactly RIA. sampling: "independent" (the
    paper's), "shared", "weighted" or "stratified", see `symprune.methods.norms`. The same seed and shape give
    the same indices. A row or column whose sample is all zeros contributes nothing, as a dead one. Raises
    UserError on beta outside (0, 1], a negative alpha, or another sampling.
    """

    beta: float = 0.1
    alpha: float = 0.5
    sampling: str = "independent"
    seed: int = 0

    def __post_init__(self):
        if not 0 < self.beta <= 1:
            raise UserError(
                f"beta is the fraction of entries sampled and must lie in (0, 1], not {self.beta}"
            )
        check_alpha(self.alpha)
        if self.sampling not in SAMPLERS:
            raise unknown("sampling", self.sampling, SAMPLERS)

    @property
    def uses(self) -> tuple[str, ...]:
        return fields_for(self.alpha)

    def __call__(self, weight: Weight, stats: LayerStats | None) -> Scores:
        weight = working(weight)
        row, column = sampled_norms(weight, self.beta, self.sampling, self.seed)
        scores = relative_importance(weight, row, column, activations(weight, stats, self.alpha))
        return scores.clamp_(max=torch.finfo(scores.dtype).max)  # a sample can miss what makes |W| large


@dataclass(frozen=True)
class GeneralDiagonal:
    """The symmetric objective with X = A diag(1 / c_1) and Y = diag(1 / r_1) B (arXiv 2501.18980).

    S[i, j] = |W[i, j]| (a[j] / c_1[j] + b[i] / r_1[i]);  a, b the norms of A's columns and B's rows

    A is the inputs and B the outputs, so a = x and b = y. balance: "none", or "unit-mean" to divide a and b
    by their means first. With a = b = 1 this is RI. Raises UserError on another balance.
    """

    balance: str = "none"
    uses: ClassVar[tuple[str, ...]] = ("input_norm", "output_norm")

    def __post_init__(self):
        check_balance(self.balance)

    def __call__(self, weight: Weight, stats: LayerStats) -> Scores:
        weight, balanced = working(weight), BALANCES[self.balance]
        a, b = balanced(inputs(weight, stats)), balanced(outputs(weight, stats, self))
        return relative_importance(weight, a=a, b=b)


SCORES: dict[str, type] = {
    "magnitude": Magnitude,
    "wanda": Wanda,
    "owanda": OWanda,
    "symwanda": SymWanda,
    "symmetric": Symmetric,
    "ri": RI,
    "ria": RIA,
    "lp_norm": LpNorm,
    "stochria": StochRIA,
    "general_diagonal": GeneralDiagonal,
}
