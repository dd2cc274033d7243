"""`Refit` and `SymmetricRefit`: the kept weights that lower the objective of a mask the most."""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from symprune.base.errors import UserError
from symprune.base.types import Mask, Weight
from symprune.methods.objective import Quadratic
from symprune.methods.stats import LayerStats
from symprune.methods.update.update import Update, damping_for, share, unit_diagonal, working

_ENTRIES_PER_PART = 2**22  # of a weight whose rows are by themselves, worked on at a time: memory is bounded
_WORKING = 8  # numbers that are held of such an entry, beside one for each residual that is remembered
_REMEMBERED = 2**27  # numbers of the residuals that are remembered, at most: 1 GiB in float64


@dataclass(frozen=True)
class Refit:
    """Least squares on the kept weights: ||X (w_hat - w)||^2 + damping * mean_j(g[j]) * ||w_hat - w||^2.

    Each row of the weight is a problem of its own, with the Gram matrix G = X^T X, g its diagonal, in common;
    all are solved at once by conjugate gradients, preconditioned with the diagonal, in one product with G an
    iteration. Each residual is made orthogonal to the earlier ones again: otherwise ten iterations let a last
    bit grow a millionfold, and what the next layers do hinges on the processor. A row stops at
    `max_iterations`, or when its preconditioned residual is `tolerance` of the first. No row's objective
    rises. The default damping was best on validation text, and 30 iterations better than convergence. Raises
    UserError for statistics without a Gram matrix.
    """

    damping: float = 0.001
    max_iterations: int = 30
    tolerance: float = 1e-3
    uses: ClassVar[tuple[str, ...]] = ("gram",)

    def __post_init__(self):
        _check(self, "damping")

    @torch.no_grad()
    def run(self, weight: Weight, mask: Mask, stats: LayerStats) -> Update:
        """The weight refit on its mask (True = kept), and what it took."""
        w, gram = working(weight, stats)
        quadratic = Quadratic(unit_diagonal(gram), None, 0.0, 1.0, 0.0, damping_for(self.damping, stats))
        return _in_parts(self, quadratic, w, mask, weight.dtype)

    def __call__(self, weight: Weight, mask: Mask, stats: LayerStats) -> Weight:
        return self.run(weight, mask, stats).weight


@dataclass(frozen=True)
class SymmetricRefit:
    """The kept weights that lower the symmetric objective with whole matrices; our own.

    vec(D)' (product H (x) G + inputs I (x) G + outputs H (x) I + identity I (x) I) vec(D), D = w_hat - w

    G = X^T X of the inputs and H, the Gram matrix of the loss gradients at the outputs, are scaled to a mean
    diagonal of 1, so the four coefficients are numbers without a unit. The defaults are (H + I) (x)
    (G + 0.01 I), best on validation text. Without product and outputs this is `Refit` with damping =
    identity / inputs; the product alone is the Kronecker-factored curvature of LLM Surgeon (arXiv
    2312.17244) and YAQA (arXiv 2505.22988).
    Solved for all rows together, as `Refit` solves each. Of a weight with more than 2**27 / max_iterations
    entries only the first residuals are held, so that there a last bit still grows. The objective never
    rises. Raises UserError for statistics that lack a matrix.
    """

    product: float = 1.0
    inputs: float = 1.0
    outputs: float = 0.01
    identity: float = 0.01
    max_iterations: int = 50
    tolerance: float = 1e-3

    def __post_init__(self):
        _check(self, "product", "inputs", "outputs", "identity")

    @property
    def uses(self) -> tuple[str, ...]:
        """The fields of the statistics that a call reads."""
        return ("gram", "gradient_gram") if self.product or self.outputs else ("gram",)

    @torch.no_grad()
    def run(self, weight: Weight, mask: Mask, stats: LayerStats) -> Update:
        """The weight refit on its mask (True = kept), and what it took."""
        w, gram = working(weight, stats)
        gradients = None
        if "gradient_gram" in self.uses:
            if stats.gradient_gram is None:
                raise UserError(
                    "symmetric_refit needs gradient_gram, the Gram matrix of the loss gradients: gather it on"
                    " the whole dense model, or take refit, which needs none"
                )
            gradients = unit_diagonal(stats.gradient_gram.to(w))
        # what is damping for the inputs alone grows where fewer tokens than inputs were seen
        more = damping_for(1.0, stats)
        coefficients = self.product, self.inputs, more * self.outputs, more * self.identity
        quadratic = Quadratic(unit_diagonal(gram), gradients, *coefficients)
        return _in_parts(self, quadratic, w, mask, weight.dtype)

    def __call__(self, weight: Weight, mask: Mask, stats: LayerStats) -> Weight:
        return self.run(weight, mask, stats).weight


def numbers_held(entries: int, iterations: int, together: bool) -> int:
    """How many numbers are held while a weight of so many entries is refit; together: all rows at once."""
    if not together:
        return min(entries, _ENTRIES_PER_PART) * _WORKING
    return entries * _WORKING + min(entries * iterations, _REMEMBERED)


class Solved(NamedTuple):
    """The refit weight of some rows, its objective before, after and of no weight at all, and iterations."""

    weight: Weight
    before: Tensor
    after: Tensor
    whole: Tensor
    iterations: int


def _in_parts(
    update: Refit | SymmetricRefit, quadratic: Quadratic, weight: Weight, mask: Mask, dtype: torch.dtype
) -> Update:
    """The update of a linear, of some rows at a time where rows are by themselves."""
    (d_out, d_in), step = weight.shape, len(weight)
    if quadratic.H is None:
        held = numbers_held(d_out * d_in, update.max_iterations, together=False)
        step = max(1, held // (_WORKING + min(update.max_iterations, d_in)) // d_in)
    rows = zip(weight.split(step), mask.split(step), strict=True)
    parts = [_solve(update, quadratic, *part, dtype) for part in rows]
    weights, before, after, whole, iterations = zip(*parts, strict=True)
    every = torch.cat(whole)
    shares = share(torch.cat(before), every), share(torch.cat(after), every)
    return Update(torch.cat(weights), max(iterations), *shares)


def _solve(
    update: Refit | SymmetricRefit, quadratic: Quadratic, weight: Weight, mask: Mask, dtype: torch.dtype
) -> Solved:
    """The weight refit on its mask, in `dtype`, by preconditioned conjugate gradients.

    Whatever the rounding to `dtype` did, no objective is higher than that of the masked weight, which is
    returned where it would be; where the mask removes nothing that counts, the weight is returned as it is.
    """
    kept = mask.to(weight.dtype)
    change = weight * (kept - 1)  # what the mask does: -w where it removes
    residual = quadratic.gradient(change)
    before = quadratic.inner(change, residual)
    residual.mul_(-kept)
    precondition = kept / quadratic.diagonal(len(weight)).clamp(min=torch.finfo(weight.dtype).tiny)
    step = residual * precondition
    slope = first = quadratic.inner(residual, step)
    past = _Past(precondition, len(slope), update.max_iterations)
    iterations = 0
    while iterations < update.max_iterations and bool((slope > update.tolerance**2 * first).any()):
        iterations += 1
        bent = quadratic.gradient(step).mul_(kept)
        curvature = quadratic.inner(step, bent)
        length = torch.where(curvature > 0, slope / curvature, 0.0)
        change.addcmul_(step, length)
        past.remember(residual, slope)
        residual.addcmul_(bent, length, value=-1)
        past.make_orthogonal(residual)
        bent = torch.mul(residual, precondition, out=bent)
        slope, last = quadratic.inner(residual, bent), slope
        step.mul_(torch.where(last > 0, slope / last, 0.0)).add_(bent)
    refit = (weight + change).mul_(kept).to(dtype)
    after = quadratic.value(refit.to(weight.dtype) - weight)
    better = (after < before).expand(len(weight), 1)
    refit = torch.where(better, refit, torch.where(mask, weight, 0.0).to(dtype))
    whole = quadratic.value(weight)
    return Solved(refit, before, torch.minimum(before, after), whole, iterations)


class _Past:
    """The residuals of each problem, to which exact arithmetic would make the next ones orthogonal under the
    preconditioner; the first of them where all would be more than _REMEMBERED numbers.
    """

    def __init__(self, precondition: Weight, problems: int, most: int):
        self._precondition, self._n = precondition.reshape(problems, -1), 0
        entries = self._precondition.shape[1]
        most = min(most, entries, _REMEMBERED // precondition.numel())  # no more than entries are orthogonal
        self._residuals = precondition.new_empty(problems, most, entries)
        self._slopes = precondition.new_empty(problems, most, 1)

    def remember(self, residual: Weight, slope: Tensor) -> None:
        """Keep a residual, and its product with itself under the preconditioner."""
        if self._n < self._residuals.shape[1]:
            self._residuals[:, self._n] = residual.view_as(self._precondition)
            self._slopes[:, self._n] = slope
            self._n += 1

    def make_orthogonal(self, residual: Weight) -> None:
        """Take from a residual, in place, what it has of those that were kept."""
        residuals, slopes = self._residuals[:, : self._n], self._slopes[:, : self._n]
        flat = residual.view_as(self._precondition)
        along = residuals @ (flat * self._precondition).unsqueeze(2)
        shares = torch.where(slopes > 0, along / slopes, 0.0)
        flat.sub_((shares.mT @ residuals).squeeze(1))


def _check(update: Refit | SymmetricRefit, *coefficients: str) -> None:
    for name in (*coefficients, "tolerance"):
        if not 0 <= getattr(update, name) < math.inf:
            raise UserError(f"{name} must be finite and not negative, not {getattr(update, name)}")
    if update.max_iterations < 0:
        raise UserError(f"max_iterations must not be negative, not {update.max_iterations}")
