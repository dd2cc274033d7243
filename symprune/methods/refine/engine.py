"""The engine of DSnoT and R2-DSnoT: the swaps of all rows at once.

A refiner gives the engine the criteria of some rows (`RowCriteria`) and says when a row stops (`Limits`). The
engine lists for each row the best weights to grow and to prune, for either sign of its error, and walks along
the lists.

Few weights of a row ever move. So the engine sorts a window of the 2 max_cycles + 1 best candidates, and the
whole row only where the window ends too early. The masks are the same. At 60 % and 50 cycles the window is a
gain of 2.3 to 5 times on linears of SmolLM2-135M (576 to 1536 inputs) and of 8 to 10 times at 4096 inputs on
one thread, and of 1.4 to 2.8 and 5.5 times on two threads (benchmarks/refine.py).
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from symprune.base.types import Mask
from symprune.methods.refine.refinement import Refinement

ENTRIES_PER_PART = 2**18  # of a weight, worked on at a time: they stay in the processor's cache
_ON_A_GPU = 2**24  # its launches cost more than its memory: as many as fit beside what scoring takes


@dataclass(frozen=True)
class RowCriteria:
    """What the engine knows of some rows. The lowest criterion moves first, an infinite one never."""

    contribution: Float[Tensor, "rows d_in"]  # of each weight to its row's error, while it is removed
    error: Float[Tensor, " rows"]
    grow: Float[Tensor, "rows d_in"]
    prune: Float[Tensor, "rows d_in"]


@dataclass(frozen=True)
class Limits:
    """When a row stops: after max_cycles, at |e| <= threshold, or before a swap that keep_sign forbids."""

    max_cycles: int
    threshold: float
    threshold_scale: str  # "absolute", or the threshold is a fraction of the "initial" |e|
    keep_sign: bool  # e never changes its sign


@dataclass(frozen=True)
class Swaps:
    """Each row's swaps in order: L columns for e > 0, then L for e < 0; change 0 where there is none."""

    grow: Int[Tensor, "rows swaps"]
    prune: Int[Tensor, "rows swaps"]
    change: Float[Tensor, "rows swaps"]  # of e: contribution of the pruned minus that of the grown
    error: Float[Tensor, " rows"]

    @classmethod
    def cat(cls, parts: Iterable["Swaps"]) -> "Swaps":
        return cls(*map(torch.cat, zip(*(vars(part).values() for part in parts), strict=True)))


def refine(
    criteria: Callable[[Int[Tensor, " rows"]], RowCriteria],
    mask: Mask,
    limits: Limits,
    block: int | None = None,
    window: bool = True,
) -> Refinement:
    """The mask refined row by row, and what it took.

    criteria: gives the criteria of the rows that it is called with. block: m of an N:M pattern, whose swaps
    stay inside a block. window: False sorts every row in full from the start, which gives the same mask.
    """
    d_out, d_in = mask.shape
    width = min(2 * limits.max_cycles + 1, d_in) if window else d_in
    refined, rows = mask.flatten().clone(), torch.arange(d_out, device=mask.device)
    cycles = torch.zeros_like(rows)
    before, after = torch.zeros(2, d_out, dtype=torch.float64, device=mask.device)
    entries = ENTRIES_PER_PART if mask.device.type == "cpu" else _ON_A_GPU
    while len(rows):
        parts = rows.split(max(1, entries // d_in))
        swaps = Swaps.cat(swap_lists(criteria(part), width, limits.max_cycles, block) for part in parts)
        taken, error, ran_out = walk(swaps, limits)
        undecided = ran_out & (width < d_in)
        taken &= ~undecided[:, None]
        for moved, now in ((swaps.grow, True), (swaps.prune, False)):
            refined.index_fill_(0, (moved + rows[:, None] * d_in).masked_select(taken), now)
        before[rows], after[rows] = swaps.error.abs().double(), error.abs().double()
        cycles[rows] = taken.sum(1)
        rows, width = rows[undecided], d_in
    return Refinement.of(refined.view(d_out, d_in), cycles, before, after)


def swap_lists(criteria: RowCriteria, width: int, length: int, block: int | None) -> Swaps:
    """The first `length` swaps of each row for either sign of e, as far as `width` candidates tell."""
    contribution = criteria.contribution
    index, criterion = candidates(criteria.grow, width)
    if block is None:
        place, found = best_first(criterion, contribution.gather(1, index).sign_(), length)
        other, criterion = candidates(criteria.prune, width)
        other_place, other_found = best_first(criterion, contribution.gather(1, other).sign_().neg_(), length)
        other, found = other.gather(1, other_place), found & other_found
    else:
        partners, has_partner = block_partners(criteria, index, block)
        criterion = criterion.masked_fill(~has_partner, math.inf)
        place, found = best_first(criterion, contribution.gather(1, index).sign_(), length)
        other = partners.gather(1, place)
    grown = index.gather(1, place)
    change = contribution.gather(1, other) - contribution.gather(1, grown)
    return Swaps(grown, other, change * found, criteria.error)


def candidates(
    criterion: Float[Tensor, "rows d_in"], width: int
) -> tuple[Int[Tensor, "rows n"], Float[Tensor, "rows n"]]:
    """Where the `width` lowest of each row are, from left to right, and their values.

    The highest of these values come out as infinite: the row may hold an equal one that stands further left.
    """
    if width >= criterion.shape[1]:
        return torch.arange(criterion.shape[1], device=criterion.device).expand_as(criterion), criterion
    if numpy_is_faster(criterion):
        lowest = np.argpartition(criterion.numpy(), width - 1, axis=1)[:, :width]
        index = torch.from_numpy(np.sort(lowest, axis=1))
    else:
        index = criterion.topk(width, dim=1, largest=False, sorted=False).indices.sort(dim=1).values
    values = criterion.gather(1, index)
    return index, values.masked_fill_(values >= values.amax(dim=1, keepdim=True), math.inf)


def numpy_is_faster(values: Tensor) -> bool:
    """Whether numpy's vectorised selection beats torch's, on few threads two to four times."""
    return values.device.type == "cpu" and torch.get_num_threads() <= 4


def best_first(
    criterion: Float[Tensor, "rows n"], sign: Float[Tensor, "rows n"], length: int
) -> tuple[Int[Tensor, "rows swaps"], Bool[Tensor, "rows swaps"]]:
    """Where the `length` lowest of sign + and then of sign - are, and whether there is one.

    Equals come from left to right. Where a row has fewer than `length` columns, both lists are that short.
    """
    lists = []
    for side in (1, -1):
        own = criterion.masked_fill(sign != side, math.inf)
        place = own.argsort(dim=1, stable=True)[:, :length]
        lists.append((place, own.gather(1, place) < math.inf))
    (up, found_up), (down, found_down) = lists
    return torch.cat((up, down), dim=1), torch.cat((found_up, found_down), dim=1)


def block_partners(
    criteria: RowCriteria, grown: Int[Tensor, "rows n"], block: int
) -> tuple[Int[Tensor, "rows n"], Bool[Tensor, "rows n"]]:
    """The weight pruned for each one grown, and whether there is one.

    The t-th weight that a block grows for one sign of e takes the t-th that the block offers to prune.
    """
    # [rows, n, block]: the members of each grown weight's own block
    members = (grown - grown % block)[..., None] + torch.arange(block, device=grown.device)
    flat = members.flatten(1)
    contribution, rivals, offers = (
        values.gather(1, flat).view(members.shape)
        for values in (criteria.contribution, criteria.grow, criteria.prune)
    )
    own = criteria.grow.gather(1, grown)[..., None]
    same_sign = contribution * criteria.contribution.gather(1, grown)[..., None]
    earlier = (same_sign > 0) & ((rivals < own) | ((rivals == own) & (members < grown[..., None])))
    offers = torch.where(same_sign < 0, offers, math.inf)
    turn = earlier.sum(2, keepdim=True)
    partner = members.gather(2, offers.argsort(dim=2, stable=True).gather(2, turn))
    return partner.squeeze(2), offers.isfinite().sum(2) > turn.squeeze(2)


def walk(
    swaps: Swaps, limits: Limits
) -> tuple[Bool[Tensor, "rows swaps"], Float[Tensor, " rows"], Bool[Tensor, " rows"]]:
    """Which swaps each row makes, its error afterwards, and whether it ran out of swaps in a list."""
    n_rows, columns = swaps.change.shape
    length, change, error = columns // 2, swaps.change.flatten(), swaps.error.clone()
    threshold = limits.threshold * (error.abs() if limits.threshold_scale == "initial" else 1.0)
    start = torch.arange(n_rows, device=error.device) * columns
    up, down = start.clone(), start + length  # where each row's next swap is, for either sign of its error
    ran_out = torch.zeros_like(error, dtype=torch.bool)
    # A row needs no flag for having stopped: without a swap nothing changes, and it stops again.
    for cycle in range(limits.max_cycles):
        positive = error > 0
        step = change[torch.where(positive, up, down)]
        go = error.abs() > threshold
        if limits.keep_sign:
            go &= (error + step) * error >= 0
        ran_out |= go & (step == 0)
        go &= step != 0
        if cycle % 8 == 7 and not go.any():
            break
        error += step * go
        up += go & positive
        down += go > positive
    n_swaps = torch.stack((up - start, down - start - length), dim=1)[..., None]
    taken = torch.arange(length, device=error.device) < n_swaps
    return taken.flatten(1), error, ran_out
