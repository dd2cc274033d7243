"""The swaps that every row makes, found for all rows at once: the engine of DSnoT and R2-DSnoT."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Swaps:
    """The swaps of each row in order: columns [0, L) for e > 0 and [L, 2 L) for e < 0, change 0 where there
    is none.
    """

    grow: Int[Tensor, "rows swaps"]
    prune: Int[Tensor, "rows swaps"]
    change: Float[Tensor, "rows swaps"]  # of e, k[pruned] - k[grown]
    error: Float[Tensor, " rows"]

    @classmethod
    def cat(cls, parts: Iterable["Swaps"]) -> "Swaps":
        return cls(*map(torch.cat, zip(*(vars(part).values() for part in parts), strict=True)))


def swap_lists(
    k: Tensor, error: Tensor, grow: Tensor, prune: Tensor, *, width: int, length: int, block: int | None
) -> Swaps:
    """The first `length` swaps of each row for either sign of e, or as many of them as its `width` best
    candidates tell.
    """
    index, criterion = candidates(grow, width)
    partners = None
    if block is not None:
        partners, found = block_partners(k, grow, prune, index, block)
        criterion = criterion * found
    in_order = best_first if width < grow.shape[1] else best_first_of_all
    place, grown = in_order(criterion, k.gather(1, index).sign_(), length, sinks=True)
    if partners is None:
        others, criterion = candidates(prune, width)
        other_place, pruned = in_order(criterion, k.gather(1, others).sign_().neg_(), length, sinks=False)
        found, other = grown & pruned, others.gather(1, other_place)
    else:
        found, other = grown, partners.gather(1, place)
    index = index.gather(1, place)
    change = k.gather(1, other) - k.gather(1, index)
    return Swaps(index, other, change * found, error)


def candidates(
    criterion: Float[Tensor, "rows d_in"], width: int
) -> tuple[Int[Tensor, "rows n"], Float[Tensor, "rows n"]]:
    """Where each row's `width` lowest are, in any order, and their values; all of them in order if it has no
    more.
    """
    if width >= criterion.shape[1]:
        return torch.arange(criterion.shape[1], device=criterion.device).expand_as(criterion), criterion
    if numpy_is_faster(criterion):
        index = torch.from_numpy(np.argpartition(criterion.numpy(), width - 1, axis=1)[:, :width].copy())
    else:
        index = criterion.topk(width, dim=1, largest=False, sorted=False).indices
    return index, criterion.gather(1, index)


def best_first(
    criterion: Float[Tensor, "rows n"], sign: Float[Tensor, "rows n"], length: int, *, sinks: bool
) -> tuple[Int[Tensor, "rows swaps"], Bool[Tensor, "rows swaps"]]:
    """Where the best `length` of sign + and then those of sign - are, best first, and in which of these
    places there is one.

    sinks: the criterion is negative (grow), not positive (prune). The lists end before the first of equals
    and before the worst value, for a selection may have ended among equals, and orders them anyhow.
    """
    n = criterion.shape[1]
    criterion = criterion.clamp(max=torch.finfo(criterion.dtype).max)  # the worst value, and never inf * 0
    value = criterion * sign
    order = (
        torch.from_numpy(np.argsort(value.numpy(), axis=1))
        if numpy_is_faster(value)
        else value.argsort(dim=1)
    )
    value = value.gather(1, order)
    bound = criterion.amax(dim=1)
    equal = value[:, 1:] == value[:, :-1]
    row = equal.any(dim=1).nonzero().squeeze(1)
    if len(row):
        equals = torch.where(equal[row], value[row, 1:].abs() * (-1 if sinks else 1), math.inf)
        bound[row] = torch.minimum(bound[row], equals.amin(dim=1))
    bound = bound[:, None]
    below, above = (value < bound).sum(1, keepdim=True), (value > -bound).sum(1, keepdim=True)
    if sinks:  # sorted, the best of sign + come first and the best of sign - last
        first, last, n_up, n_down = 0, n - 1, below, above
    else:  # here both begin in the middle
        first, last = (value <= 0).sum(1, keepdim=True), (value < 0).sum(1, keepdim=True) - 1
        n_up, n_down = below - first, above - (n - 1 - last)
    t = torch.arange(length, device=order.device)
    place = torch.cat(((first + t).expand_as(t + below), (last - t).expand_as(t + below)), dim=1).clamp_(
        0, n - 1
    )
    return order.gather(1, place), torch.cat((t < n_up, t < n_down), dim=1)


def best_first_of_all(
    criterion: Float[Tensor, "rows d_in"], sign: Float[Tensor, "rows d_in"], length: int, *, sinks: bool
) -> tuple[Int[Tensor, "rows swaps"], Bool[Tensor, "rows swaps"]]:
    """`best_first` without its doubts: every row sorted in full, equals by lower index."""
    order = criterion.argsort(dim=1, stable=True)
    sign = (sign * (criterion < (0 if sinks else math.inf))).gather(1, order)
    nowhere = torch.full_like(order, 2 * length)
    for side, start in ((sign > 0, 0), (sign < 0, length)):
        rank = side.cumsum(1) - 1
        nowhere = torch.where(side & (rank < length), rank + start, nowhere)
    place = order.new_full((len(order), 2 * length + 1), -1).scatter_(1, nowhere, order)[:, :-1]
    return place.clamp(min=0), place >= 0


def numpy_is_faster(values: Tensor) -> bool:
    """On few threads numpy's vectorised selection and sort are several times as fast as torch's."""
    return values.device.type == "cpu" and torch.get_num_threads() <= 4


def walk(
    swaps: Swaps, threshold: Float[Tensor, " rows"], max_cycles: int, keep_sign: bool
) -> tuple[Bool[Tensor, "rows swaps"], Float[Tensor, " rows"], Bool[Tensor, " rows"]]:
    """Which swaps each row makes, its error afterwards, and whether it came to the end of a list."""
    n_rows, columns = swaps.change.shape
    length, change, error = columns // 2, swaps.change.flatten(), swaps.error.clone()
    start = torch.arange(n_rows, device=error.device) * columns
    up, down = start.clone(), start + length  # where each row's next swap is, for either sign of its error
    # No row needs a flag for having stopped: without a swap nothing changes, so whatever stopped it stops it
    # again.
    for cycle in range(max_cycles):
        positive = error > 0
        step = change[torch.where(positive, up, down)]
        go = error.abs() > threshold
        if keep_sign:
            go &= (error + step) * error >= 0
        if cycle % 8 == 7 and not go.any():
            break
        error += step * go
        up += go & positive
        down += go > positive
    n_swaps = torch.stack((up - start, down - start - length), dim=1)[..., None]
    found = (swaps.change != 0).view(n_rows, 2, length)
    taken = found & (torch.arange(length, device=error.device) < n_swaps)
    return taken.flatten(1), error, (n_swaps > found.sum(2, keepdim=True)).any(1).squeeze(1)


def block_partners(
    k: Tensor, grow: Tensor, prune: Tensor, grown: Int[Tensor, "rows n"], block: int
) -> tuple[Int[Tensor, "rows n"], Bool[Tensor, "rows n"]]:
    """The weight pruned for each one grown, and whether there is one: the t-th grown of a block and sign
    takes the t-th that it offers.
    """
    # [rows, n, block]
    members = (grown - grown % block)[..., None] + torch.arange(block, device=grown.device)
    flat = members.flatten(1)
    helps = k.gather(1, flat).view(members.shape) * k.gather(1, grown)[..., None]
    rivals, offers = (criterion.gather(1, flat).view(members.shape) for criterion in (grow, prune))
    own = grow.gather(1, grown)[..., None]
    earlier = (helps > 0) & ((rivals < own) | ((rivals == own) & (members < grown[..., None])))
    offers = torch.where(helps < 0, offers, math.inf)
    turn = earlier.sum(2, keepdim=True)
    partner = members.gather(2, offers.argsort(dim=2, stable=True).gather(2, turn))
    return partner.squeeze(2), offers.isfinite().sum(2) > turn.squeeze(2)
