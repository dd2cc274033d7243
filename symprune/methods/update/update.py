"""What an update reports, and what updates do alike."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from symprune.base.errors import UserError
from symprune.base.types import Weight
from symprune.methods.stats import LayerStats, at_least_float32


@dataclass(frozen=True)
class Update:
    """The weight that a linear has from now on, zero where its mask removes, and what that took.

    iterations: the most of any row. error_before, error_after: the update's own objective of the masked and
    of the updated weight, as a share of what removing every weight would cost.
    """

    weight: Weight = field(repr=False)
    iterations: int
    error_before: float
    error_after: float

    def summary(self) -> dict[str, float]:
        """The figures without the weight."""
        return {name: value for name, value in vars(self).items() if name != "weight"}


def working(weight: Weight, stats: LayerStats) -> tuple[Weight, Float[Tensor, "d_in d_in"]]:
    """The weight and the Gram matrix of the inputs in one precision, float64 if either is."""
    if stats.gram is None:
        raise UserError("an update needs the Gram matrix of the inputs: gather the statistics with gram=True")
    weight = at_least_float32(weight.detach())
    dtype = torch.promote_types(weight.dtype, stats.gram.dtype)
    return weight.to(dtype), stats.gram.to(weight.device, dtype)


def damping_for(damping: float, stats: LayerStats) -> float:
    """The damping, and in proportion more where fewer tokens than inputs were seen: there G lacks rank."""
    return damping * max(1.0, len(stats.input_norm) / max(stats.n_tokens, 1))


def unit_diagonal(gram: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """A Gram matrix scaled to a mean diagonal of 1; zero as it is."""
    mean = gram.diagonal().mean()
    return gram / mean if mean > 0 else gram


def share(part: Float[Tensor, "rows 1"], whole: Float[Tensor, "rows 1"]) -> float:
    """The sum of one as a share of the other's; 0 where there is nothing."""
    total = float(whole.double().sum())
    return float(part.double().sum()) / total if total > 0 else 0.0
