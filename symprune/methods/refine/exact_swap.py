"""`ExactSwap`: the refiner that knows the whole Gram matrix of the inputs."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from symprune.base.errors import UserError
from symprune.base.types import Mask, Weight
from symprune.methods.masks import NM, Unstructured
from symprune.methods.refine.refinement import Refinement, check_cycles
from symprune.methods.stats import LayerStats, at_least_float32

ENTRIES_PER_PART = 2**22  # of a weight, worked on at a time so that memory stays bounded


@dataclass(frozen=True)
class ExactSwap:
    """Swaps by their exact effect on ||X (w_hat - w)||^2, from the Gram matrix of the inputs; our own.

    With G = X^T X the Gram matrix and h = G (w_hat - w), growing k changes a row's objective by
    2 w[k] h[k] + w[k]^2 G[k, k], and pruning j after it by w[j]^2 G[j, j] - 2 w[j] (h[j] + w[k] G[j, k]).
    A cycle takes the best k, then the best j given it (N:M: the best pair of any block), while the sum is an
    improvement. No row's objective rises; but it is measured on the calibration inputs, which many cycles
    overfit: the default was best on validation text (notebook 08_ablation). G takes 4 * d_in^2 bytes in
    float32. linears: which the pipeline refines, "all", "attention" or "mlp".
    """

    max_cycles: int = 10
    linears: str = "all"
    uses: ClassVar[tuple[str, ...]] = ("gram",)

    def __post_init__(self):
        check_cycles(self.max_cycles, self.linears)

    @torch.no_grad()
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
        d_out, d_in = weight.shape
        if pattern is not None:
            pattern.check(d_out, d_in)
        weight = at_least_float32(weight)
        gram = stats.gram.to(weight)
        block = pattern.m if isinstance(pattern, NM) else None
        step = max(1, ENTRIES_PER_PART // d_in)
        parts = (
            self._refine(*rows, gram, block)
            for rows in zip(weight.split(step), mask.split(step), strict=True)
        )
        return Refinement.of(*map(torch.cat, zip(*parts, strict=True)))

    def __call__(
        self, weight: Weight, mask: Mask, stats: LayerStats, pattern: Unstructured | NM | None = None
    ) -> Mask:
        return self.run(weight, mask, stats, pattern).mask

    def _refine(
        self, weight: Tensor, mask: Tensor, gram: Tensor, block: int | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mask, swaps and objective before and after of some rows.

        A row without a swap that improves it is as it was, and stays so.
        """
        refined, rows = mask.clone(), torch.arange(len(weight), device=weight.device)
        cycles = torch.zeros_like(rows)
        h = -(weight * ~mask) @ gram
        before = objective(weight, mask, gram)
        slope, cost = 2 * weight, weight.square() * gram.diagonal()
        # Added to a change, 0 or inf: inf where a weight cannot be grown, or cannot be pruned.
        no_grow, no_prune = ((~x).to(weight.dtype).reciprocal_().sub_(1) for x in (mask, ~mask))
        for _ in range(self.max_cycles):
            grow = torch.addcmul(cost, slope, h).add_(no_grow)
            if block is None:
                change, k = grow.min(dim=1)
                grown = torch.addcmul(h, weight[rows, k, None], gram[k])
                change_of_prune, j = torch.addcmul(cost, slope, grown, value=-1).add_(no_prune).min(dim=1)
                change += change_of_prune
            else:
                change, k, j = best_of_blocks(
                    weight, gram, grow, torch.addcmul(cost, slope, h, value=-1).add_(no_prune), block
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


def best_of_blocks(
    weight: Weight, gram: Float[Tensor, "d_in d_in"], grow: Weight, prune: Weight, block: int
) -> tuple[Float[Tensor, " d_out"], Int[Tensor, " d_out"], Int[Tensor, " d_out"]]:
    """The change, the weight grown and the weight pruned of each row's best swap inside a block.

    grow, prune: the change that each step makes alone.
    """
    shape = (len(weight), -1, block)
    w, grow, prune = (x.reshape(shape) for x in (weight, grow, prune))
    start = torch.arange(0, weight.shape[1], block, device=weight.device)
    member = start[:, None] + torch.arange(block, device=weight.device)
    inner = gram[member[:, :, None], member[:, None, :]]  # [blocks, block, block]
    pairs = grow[..., :, None] + prune[..., None, :] - 2 * w[..., :, None] * w[..., None, :] * inner
    change, best = pairs.flatten(1).min(dim=1)
    first = best // block**2 * block
    return change, first + best // block % block, first + best % block
