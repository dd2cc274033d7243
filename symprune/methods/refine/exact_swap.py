"""Swaps by their exact effect on the reconstruction error, under a Gram matrix or what stands in its place.

The same idea as SparseSwaps (arXiv 2512.10922), which was published while this one was written; ours are the
swaps inside N:M blocks, the number of cycles chosen on validation text, and the sketch (`sketch_swap`).
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
from symprune.methods.refine.refinement import Refinement, check_cycles, later
from symprune.methods.stats import LayerStats, at_least_float32

ENTRIES_PER_PART = 2**22  # of a weight, worked on at a time so that memory stays bounded
PAIRS = ("greedy", "best")


@dataclass(frozen=True)
class ExactSwap:
    """Swaps by their exact effect on ||X (w_hat - w)||^2, from the Gram matrix of the inputs.

    With G = X^T X the Gram matrix and h = G (w_hat - w), growing k changes a row's objective by
    2 w[k] h[k] + w[k]^2 G[k, k], and pruning j after it by w[j]^2 G[j, j] - 2 w[j] (h[j] + w[k] G[j, k]).
    A cycle takes the best k, then the best j given it (N:M: the best pair of any block), while the sum is an
    improvement. No row's objective rises; but it is measured on the calibration inputs, which many cycles
    overfit: the default was best on validation text (notebook 10_swaps). G takes 4 * d_in^2 bytes in
    float32. linears: which the pipeline refines, "all", "attention" or "mlp". pair: "best" takes the best of
    all pairs in every cycle, d_in times the work of "greedy"; for N:M they are one. Source: SparseSwaps
    (arXiv 2512.10922), and our own before we knew it.
    """

    max_cycles: int = 10
    linears: str = "all"
    pair: str = later(before="greedy", default="greedy")
    uses: ClassVar[tuple[str, ...]] = ("gram",)

    def __post_init__(self):
        check_swaps(self.max_cycles, self.linears, self.pair)

    def run(
        self, weight: Weight, mask: Mask, stats: LayerStats, pattern: Unstructured | NM | None = None
    ) -> Refinement:
        """The refined mask and what it took; pattern: the one the mask follows (None: unstructured).

        Raises UserError if the statistics hold no Gram matrix, or an N:M pattern does not divide the row.
        """
        if stats.gram is None:
            raise UserError(
                "exact_swap needs the Gram matrix of the inputs: gather the statistics with gram=True"
            )
        return swap(weight, mask, stats.gram, pattern, self.max_cycles, self.pair)

    def __call__(
        self, weight: Weight, mask: Mask, stats: LayerStats, pattern: Unstructured | NM | None = None
    ) -> Mask:
        return self.run(weight, mask, stats, pattern).mask


def check_swaps(max_cycles: int, linears: str, pair: str) -> None:
    """Raise UserError unless these say how to swap."""
    check_cycles(max_cycles, linears)
    if pair not in PAIRS:
        raise unknown("pair", pair, PAIRS)


@torch.no_grad()
def swap(
    weight: Weight,
    mask: Mask,
    gram: Float[Tensor, "d_in d_in"],
    pattern: Unstructured | NM | None,
    max_cycles: int,
    pair: str = "greedy",
) -> Refinement:
    """The mask after at most max_cycles swaps in each row, each an improvement under this Gram matrix.

    Raises UserError if an N:M pattern does not divide the row.
    """
    d_out, d_in = weight.shape
    if pattern is not None:
        pattern.check(d_out, d_in)
    weight = at_least_float32(weight)
    gram = gram.to(weight)
    block = pattern.m if isinstance(pattern, NM) else None
    step = max(1, ENTRIES_PER_PART // d_in)
    parts = (
        _swap_rows(*rows, gram, block, max_cycles, pair)
        for rows in zip(weight.split(step), mask.split(step), strict=True)
    )
    return Refinement.of(*map(torch.cat, zip(*parts, strict=True)))


def _swap_rows(
    weight: Tensor, mask: Tensor, gram: Tensor, block: int | None, max_cycles: int, pair: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mask, swaps and objective before and after of some rows.

    A row without a swap that improves it is as it was, and stays so.
    """
    refined, rows = mask.clone(), torch.arange(len(weight), device=weight.device)
    cycles = torch.zeros_like(rows)
    difference = -(weight * ~mask)
    h = difference @ gram
    before = (h * difference).sum(dim=1)  # `objective` of the mask
    slope, cost = 2 * weight, weight.square() * gram.diagonal()
    crossed = block_products(weight, gram, block) if block else None
    # Added to a change, 0 or inf: inf where a weight cannot be grown, or cannot be pruned.
    no_grow, no_prune = ((~x).to(weight.dtype).reciprocal_().sub_(1) for x in (mask, ~mask))
    for _ in range(max_cycles):
        grow = torch.addcmul(cost, slope, h).add_(no_grow)
        if block is None and pair == "greedy":
            change, k = grow.min(dim=1)
            grown = torch.addcmul(h, weight[rows, k, None], gram[k])
            change_of_prune, j = torch.addcmul(cost, slope, grown, value=-1).add_(no_prune).min(dim=1)
            change += change_of_prune
        else:
            prune = torch.addcmul(cost, slope, h, value=-1).add_(no_prune)
            change, k, j = (
                best_of_all(weight, gram, grow, prune)
                if crossed is None
                else best_of_blocks(grow, prune, crossed)
            )
        better = change < -torch.finfo(weight.dtype).eps * before  # a smaller gain may be rounding
        if not better.any():
            break
        row, k, j = rows[better], k[better], j[better]
        h[row] += weight[row, k, None] * gram[k] - weight[row, j, None] * gram[j]
        refined[row, k], refined[row, j] = True, False
        no_grow[row, k], no_grow[row, j] = math.inf, 0.0
        no_prune[row, k], no_prune[row, j] = 0.0, math.inf
        cycles += better
    after = objective(weight, refined, gram)
    worse = after > before  # by rounding alone
    refined[worse], after[worse] = mask[worse], before[worse]
    return refined, cycles * ~worse, before, after


def objective(weight: Weight, mask: Mask, gram: Float[Tensor, "d_in d_in"]) -> Float[Tensor, " d_out"]:
    """||X (w_hat - w)||^2 of each row, w_hat the weight with the mask applied."""
    difference = weight * ~mask
    return ((difference @ gram) * difference).sum(dim=1)


def block_products(
    weight: Weight, gram: Float[Tensor, "d_in d_in"], block: int
) -> Float[Tensor, "d_out blocks block block"]:
    """2 w[k] w[j] G[k, j] for every two inputs of a block: what a swap changes beside its two steps alone."""
    start = torch.arange(0, weight.shape[1], block, device=weight.device)
    member = start[:, None] + torch.arange(block, device=weight.device)
    inner = gram[member[:, :, None], member[:, None, :]]  # [blocks, block, block]
    w = weight.reshape(len(weight), -1, block)
    return 2 * w[..., :, None] * w[..., None, :] * inner


def best_of_blocks(
    grow: Weight, prune: Weight, crossed: Float[Tensor, "d_out blocks block block"]
) -> tuple[Float[Tensor, " d_out"], Int[Tensor, " d_out"], Int[Tensor, " d_out"]]:
    """The change, the weight grown and the weight pruned of each row's best swap inside a block.

    grow, prune: the change that each step makes alone; crossed: what `block_products` gives.
    """
    block = crossed.shape[-1]
    grow, prune = (x.reshape(crossed.shape[:3]) for x in (grow, prune))
    pairs = grow[..., :, None] + prune[..., None, :]
    change, best = pairs.sub_(crossed).flatten(1).min(dim=1)
    first = best // block**2 * block
    return change, first + best // block % block, first + best % block


def best_of_all(
    weight: Weight, gram: Float[Tensor, "d_in d_in"], grow: Weight, prune: Weight
) -> tuple[Float[Tensor, " d_out"], Int[Tensor, " d_out"], Int[Tensor, " d_out"]]:
    """What `best_of_blocks` gives where a whole row is one block, a few rows at a time."""
    found, d_in = [], weight.shape[1]
    step = max(1, ENTRIES_PER_PART // d_in**2)
    for w, g, p in zip(*(x.split(step) for x in (weight, grow, prune)), strict=True):
        pairs = torch.mul(gram, -2 * w[:, :, None]).mul_(w[:, None, :])
        change, best = pairs.add_(g[:, :, None]).add_(p[:, None, :]).flatten(1).min(dim=1)
        found.append((change, best // d_in, best % d_in))
    change, k, j = map(torch.cat, zip(*found, strict=True))
    return change, k, j
