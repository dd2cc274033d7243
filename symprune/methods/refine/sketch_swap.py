"""`SketchSwap`: exact swaps where no Gram matrix can be kept."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from symprune.base.errors import UserError
from symprune.base.types import Mask, Weight
from symprune.methods.masks import NM, Unstructured
from symprune.methods.refine.exact_swap import check_swaps, swap
from symprune.methods.refine.refinement import Refinement
from symprune.methods.sketch import factor_of, use_of
from symprune.methods.stats import LayerStats


@dataclass(frozen=True)
class SketchSwap:
    """`ExactSwap` under a sketch of the Gram matrix, from statistics of d_in * rank numbers; our own.

    G is replaced by n mu mu^T + F F^T with its own diagonal: the mean exact, F of `rank` columns from the
    sketch (`symprune.methods.sketch`). rank: 0, the mean and the diagonal alone, to d_in, which is G. The
    matrix is formed for a linear while it is refined, 4 * d_in^2 bytes in float32, and then let go: the
    gain is in what is gathered, streamed, stored and merged. For models whose Gram matrices do not fit: more
    columns come closer to ExactSwap, which loses less (notebook 10_swaps). The other fields are its.
    """

    rank: int = 128
    max_cycles: int = 10
    linears: str = "all"
    pair: str = "greedy"

    def __post_init__(self):
        check_swaps(self.max_cycles, self.linears, self.pair)
        if self.rank < 0:
            raise UserError(f"rank must not be negative, not {self.rank}")

    @property
    def uses(self) -> tuple[str, ...]:
        """The fields of the statistics that a call reads, and the columns of the sketch."""
        return ("input_norm", "input_mean", *use_of(self.rank))

    def run(
        self, weight: Weight, mask: Mask, stats: LayerStats, pattern: Unstructured | NM | None = None
    ) -> Refinement:
        """The refined mask and what it took; pattern: the one the mask follows (None: unstructured).

        Raises UserError if the statistics hold no sketch of this rank, or an N:M pattern does not divide the
        row.
        """
        wanted, held = min(self.rank, weight.shape[1]), 0 if stats.sketch is None else stats.sketch.shape[1]
        if held < wanted:
            raise UserError(
                f"sketch_swap needs a sketch of {wanted} columns, the statistics hold {held}: gather them"
                f" with rank={self.rank}"
            )
        gram = approximate_gram(stats, self.rank)
        return swap(weight, mask, gram, pattern, self.max_cycles, self.pair)

    def __call__(
        self, weight: Weight, mask: Mask, stats: LayerStats, pattern: Unstructured | NM | None = None
    ) -> Mask:
        return self.run(weight, mask, stats, pattern).mask


def approximate_gram(stats: LayerStats, rank: int) -> Float[Tensor, "d_in d_in"]:
    """n mu mu^T + F F^T, its diagonal raised to the exact one: positive semidefinite whatever the rank.

    Where rounding has put a channel above its own norm (a nearly singular sketch in float32), it is shrunk.
    0 leaves F out, and all that is not mean is diagonal; d_in gives G. In the dtype of the norms; beside the
    result and F nothing of its size is held.
    """
    norm, sketch = stats.input_norm, stats.sketch
    root = stats.input_mean[:, None] * stats.n_tokens**0.5
    if sketch is None or rank == 0:
        gram = root @ root.T
    elif sketch.shape[1] == len(norm) <= rank:
        gram = torch.addmm(sketch.to(norm), root, root.T)
    else:
        factor = torch.cat((factor_of(sketch, rank, torch.finfo(norm.dtype).eps).to(norm), root), dim=1)
        excess = factor.square().sum(dim=1) / norm.square()
        factor = torch.where(excess[:, None] > 1, factor / excess.sqrt()[:, None], factor)
        gram = factor @ factor.T
    diagonal = gram.diagonal()
    diagonal.copy_(diagonal.maximum(norm.square()))
    return gram
