"""What a refinement reports, and what every refiner checks."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from symprune.base.errors import UserError, unknown
from symprune.base.types import Mask

LINEARS = ("all", "attention", "mlp")


@dataclass(frozen=True)
class Refinement:
    """A refined mask and what it took.

    n_rows: with at least one swap. cycles: the most of any row. error_before, error_after: the mean over the
    rows of the refiner's own error, which is |sum of removed contributions| for DSnoT and R2DSnoT, and
    ||X (w_hat - w)||^2 for ExactSwap.
    """

    mask: Mask
    n_rows: int
    cycles: int
    swaps: int
    error_before: float
    error_after: float

    @classmethod
    def of(
        cls,
        mask: Mask,
        cycles: Int[Tensor, " d_out"],
        before: Float[Tensor, " d_out"],
        after: Float[Tensor, " d_out"],
    ) -> "Refinement":
        """The report from each row's swaps (one a cycle) and errors."""
        counts = (int((cycles > 0).sum()), int(cycles.max()), int(cycles.sum()))
        return cls(mask, *counts, float(before.double().mean()), float(after.double().mean()))

    def summary(self) -> dict[str, float]:
        """The figures without the mask."""
        return {name: value for name, value in vars(self).items() if name != "mask"}


def check_cycles(max_cycles: int, linears: str) -> None:
    """Raise UserError unless max_cycles is not negative and linears is known."""
    if max_cycles < 0:
        raise UserError(f"max_cycles must not be negative, not {max_cycles}")
    if linears not in LINEARS:
        raise unknown("linears", linears, LINEARS)
