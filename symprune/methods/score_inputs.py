"""What the scores read of a weight and its statistics, and the hyperparameters that they share."""

import math
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from symprune.base.errors import UserError, unknown
from symprune.base.types import Weight
from symprune.methods.norms import unit_mean
from symprune.methods.stats import LayerStats, at_least_float32

BALANCES: dict[str, Callable[[Tensor], Tensor]] = {"none": lambda norm: norm, "unit-mean": unit_mean}


def working(weight: Weight) -> Weight:
    """The weight that a score computes with: without a gradient, and at least float32."""
    return at_least_float32(weight.detach())


def inputs(weight: Weight, stats: LayerStats | None) -> Float[Tensor, " d_in"]:
    """x, the norms of the inputs; raises ValueError if they are of another width."""
    if stats is None:
        raise ValueError("the score needs input_norm: give the statistics of the inputs")
    return _of_size(stats.input_norm, weight.shape[1], "inputs").to(weight)


def outputs(weight: Weight, stats: LayerStats, score: object) -> Float[Tensor, " d_out"]:
    """y, the norms of the outputs; raises ValueError if there are none, or if they are of another width."""
    if stats.output_norm is None:
        raise ValueError(
            f"{type(score).__name__} needs output_norm, which was not gathered: give the outputs to"
            " StatsAccumulator.update"
        )
    return _of_size(stats.output_norm, weight.shape[0], "outputs").to(weight)


def activations(weight: Weight, stats: LayerStats | None, alpha: float) -> Float[Tensor, " d_in"] | None:
    """x^alpha, or None for alpha = 0: then activations are not read at all."""
    return None if alpha == 0 else inputs(weight, stats).pow(alpha)


def fields_for(alpha: float) -> tuple[str, ...]:
    """The fields of the statistics that `activations` reads."""
    return () if alpha == 0 else ("input_norm",)


def check_alpha(alpha: float) -> None:
    """Raise UserError unless alpha is finite and not negative."""
    if not 0 <= alpha < math.inf:
        raise UserError(f"alpha is the exponent of the activations and must be at least 0, not {alpha}")


def check_balance(balance: str) -> None:
    """Raise UserError unless the balance is one of `BALANCES`."""
    if balance not in BALANCES:
        raise unknown("balance", balance, BALANCES)


def _of_size(norm: Float[Tensor, " n"], size: int, what: str) -> Float[Tensor, " n"]:
    if len(norm) != size:
        raise ValueError(f"the statistics are of {len(norm)} {what}, the weight has {size}")
    return norm
