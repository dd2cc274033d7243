"""What a refinement reports, and what every refiner checks."""

from dataclasses import dataclass, field
from typing import Any

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

    mask: Mask = field(repr=False)
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


def later(before: Any, default: Any) -> Any:
    """A field that came after the first records, which were all measured as if it were `before`.

    A recipe with that value does not speak of it, so that records keep their names.
    """
    return field(default=default, metadata={"before": before})


def cycles_of(max_cycles: int, width: int | None, d_in: int) -> int:
    """The cycles of a linear with d_in inputs: max_cycles * d_in / width, rounded (None: max_cycles).

    At least one where max_cycles is not zero, so that no linear is left out because it is narrow.
    """
    if width is None or max_cycles == 0:
        return max_cycles
    return max(1, (2 * max_cycles * d_in + width) // (2 * width))


def check_cycles(max_cycles: int, linears: str, width: int | None = None) -> None:
    """Raise UserError unless max_cycles is not negative, linears is known, and width is at least 1."""
    if max_cycles < 0:
        raise UserError(f"max_cycles must not be negative, not {max_cycles}")
    if width is not None and width < 1:
        raise UserError(f"cycles_for_width must be at least 1, not {width}")
    if linears not in LINEARS:
        raise unknown("linears", linears, LINEARS)
