"""Training-free refinement of a mask: grow removed weights and prune kept ones, row by row, with no weight changed.

A refiner takes the weight, a mask (True = kept) and the statistics its `uses` names, and returns a mask that keeps as many
weights in every row, and for an N:M pattern in every block. `DSnoT` and `R2DSnoT` are two parameter sets of one engine.

Row i has the error e = sum of k[j] over its removed weights, k[j] = W[i, j] * s[j], s[j] the sum of channel j over a sample. While
|e| > threshold, a cycle grows a removed j with e * k[j] > 0 and prunes a kept j with e * k[j] < 0: both bring e back. The sign
of k splits the weights of a row into those that can move while e > 0 and those that can move while e < 0, and the criteria do
not change on the way. So the t-th swap that a row makes while e > 0 is known from the start, and so it is for e < 0: the
engine finds two lists of max_cycles swaps for each row, without sorting it, then walks all rows at once.

Where this differs from DSnoT's published code: a row whose right-signed candidates are used up stops (there, a wrong-signed
one is taken, or the row loses its count), and equal criteria go to the lower index (there, to whatever the sort leaves first).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from symprune._types import Mask, Weight
from symprune.errors import UserError, unknown
from symprune.masks import NM, Unstructured
from symprune.norms import column_norm, row_norm, safe_reciprocal
from symprune.stats import LayerStats, at_least_float32
from symprune.swap import ExactSwap, Refinement, check_cycles

RELATIVE = ("none", "grow", "prune", "both")
THRESHOLD_SCALES = ("absolute", "initial")
PART = 2**18  # entries of a weight worked on at a time: they stay in the processor's cache
VARIANCES = {"within": "input_var_within", "pooled": "input_var"}


@dataclass(frozen=True)
class DSnoT:
    """Dynamic Sparse no Training (Zhang et al., arXiv 2310.08915); x, m, v are the norm, mean and variance of the inputs.

    grow:  argmax over removed j of sign(e) * W[i, j] * m[j] / v[j]^power;   prune: argmin over kept j of |W[i, j]| * x[j].
    N:M: the weight pruned is the lowest of the grown one's own block; a candidate whose block offers none is passed over.

    power: of the variance; a channel without variance is certain, and first. variance: "within" = the mean variance inside a
    sample (published code), "pooled" = over all tokens. threshold: on |e|, "absolute" (published; a sum over a sample's tokens,
    so not scale free) or a fraction of the "initial" |e|. keep_sign: a row stops before e would change sign. linears: which
    linears the pipeline refines, "attention" (the published code's silent default), "mlp" or "all".
    """

    power: float = 1.0
    variance: str = "within"
    threshold: float = 0.1
    threshold_scale: str = "absolute"
    max_cycles: int = 50
    keep_sign: bool = False
    linears: str = "all"

    def __post_init__(self):
        _as_r2dsnot(self)

    @property
    def uses(self) -> tuple[str, ...]:
        """The fields of the statistics that a call reads."""
        return _as_r2dsnot(self).uses

    def run(self, weight: Weight, mask: Mask, stats: LayerStats, pattern: Unstructured | NM | None = None) -> Refinement:
        """The refined mask and what it took; pattern: the one the mask follows (None: unstructured)."""
        return _as_r2dsnot(self).run(weight, mask, stats, pattern)

    def __call__(self, weight: Weight, mask: Mask, stats: LayerStats, pattern: Unstructured | NM | None = None) -> Mask:
        return self.run(weight, mask, stats, pattern).mask


@dataclass(frozen=True)
class R2DSnoT:
    """DSnoT with relative importance and a regularised decision boundary (Yi and Richtarik, arXiv 2501.18980).

    D[i, j] = |W[i, j]| * (1 / ||W[i, :]||_1 + 1 / ||W[:, j]||_1)
    grow:   argmax over removed j of   sign(e) * G[i, j] * m[j] / v[j]^power + gamma_grow * R[i, j]
    prune:  argmin over kept j of      P[i, j] * x[j]^alpha + gamma_prune * R[i, j]

    relative: where D replaces |W| (G = sign(W) * D, P = D): "none", "grow", "prune" or "both". R[i, j]: the lp norm of the kept
    weights of row i with j grown, or with j pruned; our reading, so that the term acts, and always of the mask at the start, so
    that no cycle changes a criterion. The other fields are DSnoT's, which relative="none", alpha=1 and no gammas reproduce.
    """

    relative: str = "prune"
    alpha: float = 0.5
    gamma_grow: float = 0.001
    gamma_prune: float = 0.001
    p: float = 1.0
    power: float = 1.0
    variance: str = "within"
    threshold: float = 0.1
    threshold_scale: str = "absolute"
    max_cycles: int = 50
    keep_sign: bool = False
    linears: str = "all"

    def __post_init__(self):
        for name, known in {"relative": RELATIVE, "variance": VARIANCES, "threshold_scale": THRESHOLD_SCALES}.items():
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        for name in ("alpha", "power", "gamma_grow", "gamma_prune", "threshold"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} must be finite and not negative, not {getattr(self, name)}")
        if not self.p > 0:
            raise UserError(f"p of an lp norm must be positive (inf is allowed), not {self.p}")
        check_cycles(self.max_cycles, self.linears)

    @property
    def uses(self) -> tuple[str, ...]:
        """The fields of the statistics that a call reads."""
        return ("input_norm", "input_mean", VARIANCES[self.variance])

    @torch.no_grad()
    def run(self, weight: Weight, mask: Mask, stats: LayerStats, pattern: Unstructured | NM | None = None) -> Refinement:
        """The refined mask and what it took; pattern: the one the mask follows (None: unstructured).

        Raises UserError if an N:M pattern does not divide the row.
        """
        d_out, d_in = weight.shape
        if pattern is not None:
            pattern.check(d_out, d_in)
        block = pattern.m if isinstance(pattern, NM) else None
        criteria = Criteria.of(self, at_least_float32(weight), mask, stats)
        refined, cycles = mask.clone(), torch.zeros(d_out, dtype=torch.long, device=weight.device)
        before, after = torch.zeros(2, d_out, dtype=criteria.weight.dtype, device=weight.device)
        # A window on the best candidates of both signs together decides nearly every row: only what it leaves open is sorted.
        rows, width = torch.arange(d_out, device=weight.device), self.max_cycles * 5 // 4 + 16
        while len(rows):
            swaps = Swaps.cat(swap_lists(*criteria(part), width, self.max_cycles, block) for part in rows.split(max(1, PART // d_in)))
            scale = swaps.error.abs() if self.threshold_scale == "initial" else torch.ones_like(swaps.error)
            taken, error, dry = walk(swaps, self.threshold * scale, self.max_cycles, self.keep_sign)
            undecided = dry & swaps.open
            row, t = (taken & ~undecided[:, None]).nonzero(as_tuple=True)
            refined[rows[row], swaps.grow[row, t]] = True
            refined[rows[row], swaps.prune[row, t]] = False
            before[rows], after[rows], cycles[rows] = swaps.error.abs(), error.abs(), taken.sum(1)
            rows, width = rows[undecided], d_in
        return Refinement.of(refined, cycles, before, after)

    def __call__(self, weight: Weight, mask: Mask, stats: LayerStats, pattern: Unstructured | NM | None = None) -> Mask:
        return self.run(weight, mask, stats, pattern).mask


REFINERS = {"dsnot": DSnoT, "r2dsnot": R2DSnoT, "exact_swap": ExactSwap}


def _as_r2dsnot(dsnot: DSnoT) -> R2DSnoT:
    return R2DSnoT(relative="none", alpha=1.0, gamma_grow=0.0, gamma_prune=0.0, **vars(dsnot))


@dataclass(frozen=True)
class Criteria:
    """The criteria of one linear, given for some of its rows at a time so that memory stays bounded.

    size_grow[j] = |m[j]| / v[j]^power and size_prune[j] = x[j]^alpha are what a channel multiplies |W| or D by; sums[j] is s[j].
    """

    refiner: R2DSnoT
    weight: Weight
    mask: Mask
    sums: Float[Tensor, " d_in"]
    by_grow: Float[Tensor, " d_in"]
    by_prune: Float[Tensor, " d_in"]
    of_row: Float[Tensor, " d_out"]
    of_column: Float[Tensor, " d_in"]

    @classmethod
    def of(cls, refiner: R2DSnoT, weight: Weight, mask: Mask, stats: LayerStats) -> "Criteria":
        norm, mean, variance = (getattr(stats, name).to(weight) for name in refiner.uses)
        finite = torch.finfo(weight.dtype)
        # No variance, no doubt: such a channel grows first, by a factor so capped that no criterion overflows.
        by_grow = (mean.abs() / variance.pow(refiner.power).clamp(min=finite.tiny)).clamp(max=math.sqrt(finite.max))
        sums = mean * (stats.n_tokens / max(stats.n_samples, 1))
        importance = safe_reciprocal(row_norm(weight)), safe_reciprocal(column_norm(weight))
        return cls(refiner, weight, mask, sums, by_grow, norm.pow(refiner.alpha), *importance)

    def __call__(self, rows: Int[Tensor, " rows"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """k [rows, d_in], e [rows], and the two criteria [2, rows, d_in]: lowest first, inf for what is not a candidate."""
        refiner, weight, mask = self.refiner, self.weight[rows], self.mask[rows]
        # Arithmetic on 0 and 1 instead of torch.where, which is ten times as slow on a CPU; channels without k are nobody's candidate.
        alive = (self.sums != 0).to(weight.dtype)
        kept = mask * alive
        removed = alive - kept
        size = weight.abs()
        relative = size * (self.of_row[rows, None] + self.of_column) if refiner.relative != "none" else size
        criteria = torch.empty(2, *weight.shape, dtype=weight.dtype, device=weight.device)
        torch.mul(relative if refiner.relative in ("grow", "both") else size, -self.by_grow, out=criteria[0])
        torch.mul(relative if refiner.relative in ("prune", "both") else size, self.by_prune, out=criteria[1])
        if refiner.gamma_grow:
            criteria[0] -= refiner.gamma_grow * norm_with(size, mask, refiner.p)
        if refiner.gamma_prune:
            criteria[1] += refiner.gamma_prune * norm_without(size, mask, refiner.p)
        error = torch.mul(weight, removed) @ self.sums
        criteria[0] += removed.reciprocal_().sub_(1)
        criteria[1] += kept.reciprocal_().sub_(1)
        return weight, self.sums, error, criteria


@dataclass(frozen=True)
class Swaps:
    """The swaps of each row in order: columns [0, L) for e > 0 and [L, 2 L) for e < 0, change 0 where there is none.

    open: the lists of this row may end although the row holds more candidates.
    """

    grow: Int[Tensor, "rows swaps"]
    prune: Int[Tensor, "rows swaps"]
    change: Float[Tensor, "rows swaps"]  # of e, k[pruned] - k[grown]
    error: Float[Tensor, " rows"]
    open: Bool[Tensor, " rows"]

    @classmethod
    def cat(cls, parts: Iterable["Swaps"]) -> "Swaps":
        return cls(*map(torch.cat, zip(*(vars(part).values() for part in parts), strict=True)))


def swap_lists(weight: Tensor, sums: Tensor, error: Tensor, criteria: Tensor, width: int, length: int, block: int | None) -> Swaps:
    """The first `length` swaps of each row for either sign of e, from the `width` best candidates."""
    n_kinds = 2 if block is None else 1
    index, certain, more = zip(*(lowest(criterion, width) for criterion in criteria[:n_kinds]), strict=True)
    index, certain, more = torch.stack(index), torch.stack(certain), torch.stack(more).any(0)
    k = weight.expand(n_kinds, -1, -1).gather(2, index) * sums[index]
    if block is not None:
        partner, found = block_partners(weight, sums, criteria, index[0], k[0], block)
        index, certain = torch.stack((index[0], partner)), certain & found
        k = torch.stack((k[0], weight.gather(1, partner) * sums[partner]))
    # The swap for e > 0 grows k > 0 and prunes k < 0; each candidate's place is its rank among those of its own sign.
    helps = k * k.new_tensor((1, -1)).view(2, 1, 1)
    up, down = certain & (helps > 0), certain & (helps < 0)
    rank_up, rank_down = up.cumsum(2) - 1, down.cumsum(2) - 1
    nowhere = 2 * length
    place = torch.where(up & (rank_up < length), rank_up, nowhere)
    place = torch.where(down & (rank_down < length), rank_down + length, place)
    shape = (2, len(error), 2 * length + 1)
    chosen = index.new_zeros(shape).scatter_(2, place, index)[..., :-1]
    k = k.new_zeros(shape).scatter_(2, place, k)[..., :-1]
    return Swaps(*chosen, (k[1] - k[0]) * (k != 0).all(0), error, more)


def walk(
    swaps: Swaps, threshold: Float[Tensor, " rows"], max_cycles: int, keep_sign: bool
) -> tuple[Bool[Tensor, "rows swaps"], Float[Tensor, " rows"], Bool[Tensor, " rows"]]:
    """Which swaps each row makes, its error afterwards, and whether it came to the end of a list."""
    n_rows, columns = swaps.change.shape
    length, change = columns // 2, swaps.change.flatten()
    error, up, made = swaps.error.clone(), *torch.zeros(2, n_rows, dtype=torch.long, device=swaps.error.device)
    start = torch.arange(n_rows, device=error.device) * columns
    # No row needs a flag for having stopped: without a swap nothing changes, so whatever stopped it stops it again.
    for _ in range(max_cycles):
        positive = error > 0
        step = change[start + torch.where(positive, up, length + made - up)]
        go = error.abs() > threshold
        if keep_sign:
            go &= (error + step) * error >= 0
        if not go.any():
            break
        error += step * go
        up += positive & go
        made += go
    n_swaps = torch.stack((up, made - up), dim=1)[..., None]
    found = (swaps.change != 0).view(n_rows, 2, length)
    taken = found & (torch.arange(length, device=error.device) < n_swaps)
    return taken.flatten(1), error, (n_swaps > found.sum(2, keepdim=True)).any(1).squeeze(1)


def lowest(criterion: Float[Tensor, "rows d_in"], width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Each row's `width` lowest in order of (criterion, index), whether each is certain, whether the row has finite ones beyond.

    Uncertain are the infinite, and those that equal the first one left out: which of them comes first is not decided here.
    """
    if width + 1 >= criterion.shape[1]:
        values, index = criterion.sort(dim=1, stable=True)
        return index, values.isfinite(), torch.zeros_like(index[:, 0], dtype=torch.bool)
    if criterion.is_cuda or torch.get_num_threads() > 4:
        index = criterion.topk(width + 1, dim=1, largest=False, sorted=False).indices.sort(dim=1).values
        values, order = criterion.gather(1, index).sort(dim=1, stable=True)
        index = index.gather(1, order)
    else:  # on few threads numpy selects three times as fast as torch
        keys = criterion.numpy()
        index = np.sort(np.argpartition(keys, width, axis=1)[:, : width + 1], axis=1)
        values = np.take_along_axis(keys, index, axis=1)
        order = np.argsort(values, axis=1, kind="stable")
        index, values = (torch.from_numpy(np.take_along_axis(x, order, axis=1)) for x in (index, values))
    last = values[:, -1:]
    return index[:, :-1], values[:, :-1] < last, last.squeeze(1).isfinite()


def block_partners(
    weight: Tensor, sums: Tensor, criteria: Tensor, grown: Int[Tensor, "rows n"], k: Float[Tensor, "rows n"], block: int
) -> tuple[Int[Tensor, "rows n"], Bool[Tensor, "rows n"]]:
    """The weight pruned for each one grown, and whether there is one: the t-th grown of a block and sign takes the t-th that it offers."""
    members = (grown - grown % block)[..., None] + torch.arange(block, device=grown.device)  # [rows, n, block]
    flat = members.flatten(1)
    helps = (weight.gather(1, flat) * sums[flat]).view(members.shape) * k[..., None]
    grow, prune = (criterion.gather(1, flat).view(members.shape) for criterion in criteria)
    own = criteria[0].gather(1, grown)[..., None]
    before = (helps > 0) & ((grow < own) | ((grow == own) & (members < grown[..., None])))
    offered = torch.where(helps < 0, prune, math.inf)
    turn = before.sum(2, keepdim=True)
    partner = members.gather(2, offered.argsort(dim=2, stable=True).gather(2, turn))
    return partner.squeeze(2), offered.isfinite().sum(2) > turn.squeeze(2)


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
