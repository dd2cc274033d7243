"""The symmetric objective g, what removing one weight costs under it, and its family with whole matrices.

    g(Wp) = ||X (Wp - W)^T||_F + ||Y^T (Wp - W)||_F             X [tokens, d_in], Y [d_out, d]

Zeroing the single weight (i, j) costs exactly |W[i, j]| (x[j] + y[i]), x[j] = ||X[:, j]||_2, y[i] = ||Y[i,
:]||_2. Every score is this formula with a particular pair (`symprune.methods.pairs`). Source: arXiv
2501.18980; in PyTorch's layout, the transpose of the paper's.

Squared, with G = X^T X and H = Y Y^T, g is tr(D G D^T) + tr(D^T H D) of the change D. `Quadratic` holds it
with the product of both sides and with damping, which are of one family.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from symprune.base.types import Mask, Scores, Weight
from symprune.methods.stats import LayerStats, at_least_float32

InputSide = Float[Tensor, "tokens d_in"]
OutputSide = Float[Tensor, "d_out d"]
_ROWS = 256  # of a weight at a time, where copies of all would be too large


def objective(
    weight: Weight, pruned: Weight, X: InputSide, Y: OutputSide, squared: bool = False
) -> Float[Tensor, ""]:
    """g = ||X (pruned - weight)^T||_F + ||Y^T (pruned - weight)||_F, each norm squared if `squared`."""
    change = pruned - weight
    by_input, by_output = (X @ change.t()).square().sum(), (Y.t() @ change).square().sum()
    return by_input + by_output if squared else by_input.sqrt() + by_output.sqrt()


def removal_cost(weight: Weight, X: InputSide, Y: OutputSide, squared: bool = False) -> Scores:
    """g after zeroing the weight (i, j) alone: |W| (x[j] + y[i]), or W^2 (x[j]^2 + y[i]^2) if `squared`."""
    x, y = X.norm(dim=0), Y.norm(dim=1)[:, None]
    return weight.square() * (x.square() + y.square()) if squared else weight.abs() * (x + y)


def relative_loss(weight: Weight, new: Weight, mask: Mask, stats: LayerStats) -> float:
    """||X (new * mask - weight)^T||_F / ||X weight^T||_F over the inputs behind the statistics.

    Exact if they hold the Gram matrix; if not, inputs are taken as uncorrelated, and ||X D^T||_F^2 as the sum
    of D[i, j]^2 x[j]^2. It is 0 where X weight^T is.
    """
    lost = whole = 0.0
    gram = None if stats.gram is None else stats.gram.to(weight.device, at_least_float32(weight[:0]).dtype)
    energy = stats.input_norm.to(weight.device).double().square()
    for rows in zip(*(of.split(_ROWS) for of in (weight, new, mask)), strict=True):  # copies stay small
        before, after = at_least_float32(rows[0]), at_least_float32(rows[1]) * rows[2]
        lost += _squared_outputs(after - before, gram, energy)
        whole += _squared_outputs(before, gram, energy)
    return math.sqrt(max(lost, 0.0) / whole) if whole > 0 else 0.0


def _squared_outputs(weight: Weight, gram: Tensor | None, energy: Tensor) -> float:
    """||X weight^T||_F^2, as `relative_loss` takes it; energy: of each input, for want of the Gram matrix."""
    if gram is None:
        return float(weight.square().sum(dim=0).double() @ energy)
    return float((weight @ gram).mul_(weight).sum(dtype=torch.float64))


@dataclass(frozen=True)
class Pair:
    """An explicit (X, Y); the pair of the weight (i, j) is (factor[j] X, factor[j] Y).

    The factor is 1 except where activations multiply both sides.
    """

    X: InputSide
    Y: OutputSide
    factor: Float[Tensor, " d_in"]
    squared: bool = False  # the score is the root of the squared objective's cost

    def at(self, j: int) -> tuple[InputSide, OutputSide]:
        """The pair of the weights of input channel j."""
        return self.factor[j] * self.X, self.factor[j] * self.Y

    def cost(self, weight: Weight) -> Scores:
        """The score that this pair stands for: every removal cost, in closed form."""
        cost = removal_cost(weight, self.X, self.Y, self.squared)
        return self.factor * (cost.sqrt() if self.squared else cost)


@dataclass(frozen=True)
class Quadratic:
    """tr(D^T (c H D G + s D G + t H D + m D)) of a change D [d_out, d_in] of a weight; our own.

    With vec stacking rows that is vec(D)^T A vec(D), A = c H (x) G + s I (x) G + t H (x) I + m I (x) I. In it
    are magnitude (m alone), Wanda (s), OWanda (t), the squared symmetric objective (s = t = 1), the
    Kronecker-factored curvature of LLM Surgeon (arXiv 2312.17244) and YAQA (arXiv 2505.22988) (c), and
    damping: G + b I is s = 1, m = b, a symmetric objective with Y = b^(1/2) I, and (H + a I) (x) (G + b I)
    is c = 1, s = a, t = b, m = a b. H: None where c and t are 0, so that every row of D is by itself.
    """

    G: Float[Tensor, "d_in d_in"]
    H: Float[Tensor, "d_out d_out"] | None = None
    c: float = 0.0
    s: float = 0.0
    t: float = 0.0
    m: float = 0.0

    def gradient(self, change: Weight) -> Weight:
        """Half the gradient at a change: A vec(D), from a product with G and one with H."""
        by_input = change @ self.G
        if self.H is None:
            return by_input.mul_(self.s).add_(change, alpha=self.m)
        both = self.H @ torch.add(self.t * change, by_input, alpha=self.c)
        return both.add_(by_input, alpha=self.s).add_(change, alpha=self.m)

    def diagonal(self, d_out: int) -> Weight:
        """The diagonal of A: c h[i] g[j] + s g[j] + t h[i] + m, h and g the diagonals of H and G."""
        g = self.G.diagonal()
        if self.H is None:
            return (self.s * g + self.m).expand(d_out, -1)
        h = self.H.diagonal()[:, None]
        return self.c * h * g + self.s * g + self.t * h + self.m

    def removal_cost(self, weight: Weight) -> Scores:
        """The objective after zeroing the weight (i, j) alone: W[i, j]^2 times the diagonal.

        Where H is diagonal, c and t alone scale each row: within a row neither a mask nor the weights that
        lower the objective the most depend on H.
        """
        return weight.square() * self.diagonal(len(weight))

    def inner(self, a: Weight, b: Weight) -> Float[Tensor, "rows 1"]:
        """<a, b> of each row, or where rows are not by themselves of all: a single row."""
        products = (a * b).sum(dim=1, keepdim=True)
        return products if self.H is None else products.sum(dim=0, keepdim=True)

    def value(self, change: Weight) -> Float[Tensor, "rows 1"]:
        """The objective of each row, or of all."""
        return self.inner(change, self.gradient(change))


def squared_counterexample() -> Float[Tensor, "2 2"]:
    """A 2 x 2 weight whose relative importance is no removal cost of the squared objective, whatever X and Y.

    The squared cost is W[i, j]^2 (x[j]^2 + y[i]^2). For it to equal RI[i, j]^2 at every (i, j) it takes
    x[j]^2 + y[i]^2 = (1 / c_1[j] + 1 / r_1[i])^2 =: T[i, j]: a term of the column plus a term of the row, so
    that T[0, 0] + T[1, 1] = T[0, 1] + T[1, 0]. But the difference of the two sides is
    2 (1 / c_1[0] - 1 / c_1[1]) (1 / r_1[0] - 1 / r_1[1]), which is 0 only if two columns or two rows have
    equal norms. Here c_1 = (4, 6), r_1 = (3, 7), and it is 2 (1/12) (4/21) = 2/63. `additive_gap(T)` is a
    quarter of that.
    """
    return torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)


def additive_gap(target: Float[Tensor, "d_out d_in"]) -> float:
    """The largest deviation of target[i, j] from its best fit (least squares) by column[j] + row[i].

    It is 0 if and only if the target is such a sum.
    """
    fit = target.mean(dim=0) + target.mean(dim=1, keepdim=True) - target.mean()
    return float((target - fit).abs().max())
