"""DSnoT and R2-DSnoT: grow removed weights and prune kept ones, row by row, without changing a weight.

A refiner takes the weight, a mask (True = kept) and the statistics that its `uses` names, and returns a mask
that keeps as many weights in every row, and for an N:M pattern in every block. `DSnoT` and `R2DSnoT` are two
parameter sets of one engine.

A weight contributes k[j] = W[i, j] * s[j] to its row's output, where s[j] is the sum of channel j over a
sample. The error of row i is e = the sum of k[j] over its removed weights. While |e| > threshold, a cycle
grows a removed j with e * k[j] > 0 and prunes a kept j with e * k[j] < 0: both bring e back.

The sign of k splits the weights of a row into those that can move while e > 0 and those that can move while e
< 0, and no swap changes a criterion. So the t-th swap that a row makes while e > 0 is known from the start,
and so is the t-th while e < 0. The engine lists both for each row, then walks all rows at once.

Two things differ from DSnoT's published code. A row whose candidates of the right sign are used up stops
(there, it takes one of the wrong sign, or loses its count). Equal criteria go to the lower index (there, to
whatever the sort leaves first).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from symprune.base.errors import UserError, unknown
from symprune.base.types import Mask, Weight
from symprune.methods.masks import NM, Unstructured
from symprune.methods.norms import column_norm, row_norm, safe_reciprocal
from symprune.methods.refine.engine import Limits, RowCriteria, refine
from symprune.methods.refine.refinement import Refinement, check_cycles, cycles_of, later
from symprune.methods.stats import LayerStats, at_least_float32

RELATIVE = ("none", "grow", "prune", "both")
THRESHOLD_SCALES = ("absolute", "initial")
VARIANCES = {"within": "input_var_within", "pooled": "input_var"}
# Told where one is used with its defaults, which no measurement on validation text has earned yet.
ADVICE = (
    "with its defaults it raised the perplexity of Wanda's and RIA's masks of 60 % wherever we measured it,"
    " and lowered that of magnitude's alone; sketch_swap and exact_swap lowered those of Wanda and RIA"
)


@dataclass(frozen=True)
class DSnoT:
    """Dynamic Sparse no Training (Zhang et al., arXiv 2310.08915).

    x, m and v are the norm, mean and variance of the inputs.

    grow:   argmax over removed j of  sign(e) * W[i, j] * m[j] / v[j]^power
    prune:  argmin over kept j of     |W[i, j]| * x[j]

    N:M: the weight pruned is the lowest of the grown one's own block; a candidate whose block offers none is
    passed over.

    power: of the variance; a channel without variance is certain, and first. variance: "within" = the mean
    variance inside a sample (published code), "pooled" = over all tokens. threshold: on |e|, "absolute"
    (published; a sum over a sample's tokens, so not scale free) or a fraction of the "initial" |e|.
    max_cycles: of every linear, or of one with `cycles_for_width` inputs: one with d_in inputs then gets
    max_cycles * d_in / cycles_for_width, rounded, at least 1. The published 50 are for 4096 inputs and more.
    keep_sign: a row stops before e would change sign. linears: which linears the pipeline refines,
    "attention" (the published code's silent default), "mlp" or "all".

    It lowers the square of the row's expected error and not the spread around it, which after 50 cycles on
    576 inputs has risen by more: notebook 12_why_refinement.
    """

    power: float = 1.0
    variance: str = "within"
    threshold: float = 0.1
    threshold_scale: str = "absolute"
    max_cycles: int = 50
    keep_sign: bool = False
    linears: str = "all"
    cycles_for_width: int | None = later(before=None, default=None)
    advice: ClassVar[str] = ADVICE

    def __post_init__(self):
        _as_r2dsnot(self)

    @property
    def uses(self) -> tuple[str, ...]:
        """The fields of the statistics that a call reads."""
        return _as_r2dsnot(self).uses

    def run(
        self, weight: Weight, mask: Mask, stats: LayerStats, pattern: Unstructured | NM | None = None
    ) -> Refinement:
        """The refined mask and what it took; pattern: the one the mask follows (None: unstructured)."""
        return _as_r2dsnot(self).run(weight, mask, stats, pattern)

    def __call__(
        self, weight: Weight, mask: Mask, stats: LayerStats, pattern: Unstructured | NM | None = None
    ) -> Mask:
        return self.run(weight, mask, stats, pattern).mask


@dataclass(frozen=True)
class R2DSnoT:
    """DSnoT with relative importance and a regularised criterion (Yi and Richtarik, arXiv 2501.18980).

    D[i, j] = |W[i, j]| * (1 / ||W[i, :]||_1 + 1 / ||W[:, j]||_1)
    grow:   argmax over removed j of   sign(e) * G[i, j] * m[j] / v[j]^power + gamma_grow * R[i, j]
    prune:  argmin over kept j of      P[i, j] * x[j]^alpha + gamma_prune * R[i, j]

    relative: where D replaces |W| (G = sign(W) * D, P = D): "none", "grow", "prune" or "both". R[i, j]: the
    norm `p` of the kept weights of row i with j grown, or with j pruned; our reading, so that the term acts,
    and always of the mask at the start, so that no cycle changes a criterion; without gammas p is idle. The
    other fields are DSnoT's, which relative="none", alpha=1 and no gammas reproduce.

    What the paper varies has our defaults, the best on validation text from three initial masks (notebook
    08_ablation); `AS_PUBLISHED` has the paper's. keep_sign=True is better from Wanda and RIA, worse from
    magnitude.
    """

    relative: str = "prune"
    alpha: float = 1.0
    gamma_grow: float = 0.0
    gamma_prune: float = 0.0
    p: float = 1.0
    power: float = 1.0
    variance: str = "within"
    threshold: float = 0.1
    threshold_scale: str = "absolute"
    max_cycles: int = 50
    keep_sign: bool = False
    linears: str = "all"
    cycles_for_width: int | None = later(before=None, default=None)
    advice: ClassVar[str] = ADVICE

    def __post_init__(self):
        for name, known in {
            "relative": RELATIVE,
            "variance": VARIANCES,
            "threshold_scale": THRESHOLD_SCALES,
        }.items():
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        for name in ("alpha", "power", "gamma_grow", "gamma_prune", "threshold"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} must be finite and not negative, not {getattr(self, name)}")
        if not self.p > 0:
            raise UserError(f"p of an lp norm must be positive (inf is allowed), not {self.p}")
        check_cycles(self.max_cycles, self.linears, self.cycles_for_width)

    @property
    def uses(self) -> tuple[str, ...]:
        """The fields of the statistics that a call reads."""
        return ("input_norm", "input_mean", VARIANCES[self.variance])

    def limits(self, d_in: int) -> Limits:
        """When a row of d_in weights stops."""
        cycles = cycles_of(self.max_cycles, self.cycles_for_width, d_in)
        return Limits(cycles, self.threshold, self.threshold_scale, self.keep_sign)

    @torch.no_grad()
    def run(
        self, weight: Weight, mask: Mask, stats: LayerStats, pattern: Unstructured | NM | None = None
    ) -> Refinement:
        """The refined mask and what it took; pattern: the one the mask follows (None: unstructured).

        Raises UserError if an N:M pattern does not divide the row.
        """
        d_out, d_in = weight.shape
        if pattern is not None:
            pattern.check(d_out, d_in)
        block = pattern.m if isinstance(pattern, NM) else None
        criteria = Criteria.of(self, at_least_float32(weight), mask, stats)
        return refine(criteria, mask, self.limits(d_in), block)

    def __call__(
        self, weight: Weight, mask: Mask, stats: LayerStats, pattern: Unstructured | NM | None = None
    ) -> Mask:
        return self.run(weight, mask, stats, pattern).mask


AS_PUBLISHED = R2DSnoT(relative="prune", alpha=0.5, gamma_grow=0.001, gamma_prune=0.001)


def _as_r2dsnot(dsnot: DSnoT) -> R2DSnoT:
    return R2DSnoT(relative="none", alpha=1.0, gamma_grow=0.0, gamma_prune=0.0, **vars(dsnot))


@dataclass(frozen=True)
class Criteria:
    """The criteria of one linear, given for some of its rows at a time so that memory stays bounded."""

    refiner: R2DSnoT
    weight: Weight
    mask: Mask
    sums: Float[Tensor, " d_in"]  # s[j], 0 for a channel whose norm is 0
    by_grow: Float[Tensor, " d_in"]  # |m[j]| / v[j]^power, the factor of |W| or D
    by_prune: Float[Tensor, " d_in"]  # x[j]^alpha, the factor of |W| or D
    of_row: Float[Tensor, " d_out"] | None  # 1 / ||W[i, :]||_1, where the refiner reads relative importance
    of_column: Float[Tensor, " d_in"] | None  # 1 / ||W[:, j]||_1, likewise

    @classmethod
    def of(cls, refiner: R2DSnoT, weight: Weight, mask: Mask, stats: LayerStats) -> "Criteria":
        norm, mean, variance = (getattr(stats, name).to(weight) for name in refiner.uses)
        finite = torch.finfo(weight.dtype)
        # A channel without variance is certain and grows first; no criterion overflows.
        by_grow = mean.abs() / variance.pow(refiner.power).clamp(min=finite.tiny)
        by_grow = by_grow.clamp(max=math.sqrt(finite.max))
        sums = mean * (stats.n_tokens / max(stats.n_samples, 1)) * (norm > 0)
        of_row = of_column = None
        if refiner.relative != "none":
            of_row, of_column = safe_reciprocal(row_norm(weight)), safe_reciprocal(column_norm(weight))
        return cls(refiner, weight, mask, sums, by_grow, norm.pow(refiner.alpha), of_row, of_column)

    def __call__(self, rows: Int[Tensor, " rows"]) -> RowCriteria:
        """The criteria of these rows, for the engine."""
        refiner, weight, mask = self.refiner, self.weight[rows], self.mask[rows]
        # Arithmetic on 0 and 1 instead of torch.where, which is ten times as slow on a processor.
        alive = (self.sums != 0).to(weight.dtype)
        kept = mask.view(torch.uint8).to(weight.dtype).mul_(alive)
        removed = alive - kept
        size = relative = weight.abs()
        if self.of_row is not None and self.of_column is not None:
            relative = size * (self.of_row[rows, None] + self.of_column)
        grow = (relative if refiner.relative in ("grow", "both") else size) * -self.by_grow
        prune = (relative if refiner.relative in ("prune", "both") else size) * self.by_prune
        if refiner.gamma_grow:
            grow -= refiner.gamma_grow * norm_with(size, mask, refiner.p)
        if refiner.gamma_prune:
            prune += refiner.gamma_prune * norm_without(size, mask, refiner.p)
        contribution = torch.mul(weight, self.sums, out=weight)  # indexed by rows, so a copy
        error = (contribution * removed).sum(dim=1)
        grow, prune = grow.add_(zero_or_infinite(removed)), prune.add_(zero_or_infinite(kept))
        return RowCriteria(contribution, error, grow, prune)


def zero_or_infinite(can_move: Tensor) -> Tensor:
    """In place: 0 where a weight can move (1), infinity where it cannot (0)."""
    return can_move.reciprocal_().sub_(1)


def norm_with(size: Tensor, mask: Mask, p: float) -> Tensor:
    """The lp norm of each row's kept weights, were j among them."""
    if p == math.inf:
        return (size * mask).amax(dim=1, keepdim=True).maximum(size)
    powers = size**p
    return ((powers * mask).sum(dim=1, keepdim=True) + powers) ** (1 / p)


def norm_without(size: Tensor, mask: Mask, p: float) -> Tensor:
    """The lp norm of each row's kept weights, were j not among them."""
    if p == math.inf:
        kept = torch.nn.functional.pad(size * mask, (0, 1))  # a row of one weight has a second largest too
        largest, second = kept.topk(2, dim=1).values.split(1, dim=1)
        return torch.where(size == largest, second, largest)
    powers = size**p
    return ((powers * mask).sum(dim=1, keepdim=True) - powers).clamp_(min=0) ** (1 / p)
