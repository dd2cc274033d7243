"""From scores to masks: which weights a pattern keeps. True = kept."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from symprune.base.errors import UserError, unknown
from symprune.base.types import Mask, Scores, Weight

GROUPS = ("output", "layer")

_ROWS = 256  # of scores that tie, at a time: counting takes more memory than scoring
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of a weight


@dataclass(frozen=True)
class Unstructured:
    """Remove exactly floor(sparsity * group size) of the lowest scores in each group.

    Among equal scores the lower index goes first. group: the set in which scores compete. "output" = each row
    on its own (Wanda, DSnoT), "layer" = the whole matrix (RIA's code).
    """

    sparsity: float = 0.5
    group: str = "output"

    def __post_init__(self):
        if not 0 <= self.sparsity < 1:
            raise UserError(f"sparsity is the fraction removed and must lie in [0, 1), not {self.sparsity}")
        if self.group not in GROUPS:
            raise unknown("group", self.group, GROUPS)

    def check(self, d_out: int, d_in: int) -> None:
        """Any matrix will do."""

    def __call__(self, scores: Scores) -> Mask:
        groups = scores if self.group == "output" else scores.reshape(1, -1)
        return keep_highest(groups, math.floor(self.sparsity * groups.shape[1])).view(scores.shape)


@dataclass(frozen=True)
class NM:
    """Keep the n highest scores of every m consecutive inputs of a row ("2:4" keeps 2 of 4).

    Among equal scores the lower index goes first. Raises UserError unless 0 < n <= m and m divides d_in.
    """

    n: int = 2
    m: int = 4

    def __post_init__(self):
        if not 0 < self.n <= self.m:
            raise UserError(f"an N:M pattern keeps n of every m weights, 0 < n <= m, not {self.n}:{self.m}")

    @property
    def sparsity(self) -> float:
        """The fraction removed."""
        return 1 - self.n / self.m

    def check(self, d_out: int, d_in: int) -> None:
        """Raise UserError unless m divides d_in."""
        if d_in % self.m:
            raise UserError(f"{self.n}:{self.m} needs an input width that {self.m} divides, not {d_in}")

    def __call__(self, scores: Scores) -> Mask:
        self.check(*scores.shape)
        blocks = scores.reshape(-1, self.m)
        if self.m > 16:
            return keep_highest(blocks, self.m - self.n).view(scores.shape)
        _refuse_nan(blocks)
        columns = blocks.t().contiguous()
        # removed_before[j] counts the entries of j's block that go before it: m (m - 1) / 2 comparisons.
        removed_before = torch.zeros(columns.shape, dtype=torch.int8, device=scores.device)
        for i in range(self.m):
            for j in range(i + 1, self.m):
                i_first = columns[i] <= columns[j]
                removed_before[j] += i_first
                removed_before[i] += ~i_first
        return (removed_before >= self.m - self.n).t().reshape(scores.shape)


PATTERNS = {"unstructured": Unstructured, "nm": NM}


def keep_highest(groups: Float[Tensor, "groups size"], n_removed: int) -> Bool[Tensor, "groups size"]:
    """Mask of each row without its n_removed lowest scores; among equals the lower index goes first.

    Raises ValueError on NaN, which has no rank.
    """
    _refuse_nan(groups)
    if n_removed == 0:
        return torch.ones_like(groups, dtype=torch.bool)
    threshold = _kth_lowest(groups, n_removed)
    keep = groups > threshold
    # so many scores equal to the threshold stay: the last
    surplus = groups.shape[1] - n_removed - keep.sum(dim=1, dtype=torch.int32)
    for tied_rows in surplus.nonzero().squeeze(1).split(_ROWS):
        tied = groups[tied_rows] == threshold[tied_rows]
        from_the_end = tied.flip(1).cumsum(1, dtype=torch.int32).flip(1)
        keep[tied_rows] |= tied & (from_the_end <= surplus[tied_rows, None])
    return keep


def zero_removed(weight: Weight, mask: Mask) -> None:
    """Zero in place what the mask removes; what the mask keeps keeps every bit."""
    # As integers, times 0 or 1: no branch, and no negative zero.
    weight.view(_INTEGERS[weight.element_size()]).mul_(mask)


def _kth_lowest(groups: Float[Tensor, "groups size"], k: int) -> Float[Tensor, "groups 1"]:
    if groups.device.type == "cpu" and groups.dtype in (torch.float32, torch.float64):
        # The same value from numpy's vectorised selection, measured about ten times as fast as torch's
        # kthvalue on a processor. (Rows dealt out to threads: slower, they meet OpenMP's, who wait busily.)
        return torch.from_numpy(np.partition(groups.detach().numpy(), k - 1, axis=1)[:, k - 1 : k].copy())
    return groups.kthvalue(k, dim=1, keepdim=True).values


def _refuse_nan(scores: Tensor) -> None:
    # NaN survives addition, so one sum finds it; inf - inf cannot arise, for no score is negative.
    if torch.isnan(scores.sum()):
        raise ValueError("scores hold NaN, which has no rank")
