"""Calibration over the ranks of torch.distributed: each runs the model on its share of the windows, all end
with the same sums.
"""

from collections.abc import Collection, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from symprune.base.errors import UserError
from symprune.base.types import Windows
from symprune.methods.stats import LayerStats, Moments, StatsAccumulator, Sum, finish
from symprune.pruning.calibrate import accumulate


def gather(
    model: torch.nn.Module, windows: Windows, uses: Collection[str] = ("input_norm",), **options
) -> dict[str, LayerStats]:
    """`symprune.pruning.calibrate.gather` over the ranks of the default process group, with the same options.

    Every rank is given all windows and the same model, and returns the same statistics: those of one process
    to the bit, as `symprune.pruning.stats_files.merge` says. Raises UserError unless there are as many
    windows as ranks.
    """
    rank, n_ranks = dist.get_rank(), dist.get_world_size()
    if len(windows) < n_ranks:
        raise UserError(f"{len(windows)} windows cannot be shared out to {n_ranks} ranks: raise n_calib")
    return finish(all_reduce(accumulate(model, windows.tensor_split(n_ranks)[rank], uses, **options)))


def all_reduce(sums: Mapping[str, StatsAccumulator]) -> dict[str, StatsAccumulator]:
    """The sums over what all ranks have seen, on every rank; linears that share moments go on sharing them.

    Sums are gathered and added with their rounding errors, in the order of the ranks; Gram matrices are
    reduced in float64.
    """
    reduced: dict[int, Moments] = {}
    result = {}
    for name, held in sums.items():
        m = held.moments
        if id(m) not in reduced:
            counts = _over_ranks(
                torch.tensor([m.n_tokens, m.n_samples], dtype=torch.float64, device=m.total.device)
            ).sum(dim=0)
            if m.gram is not None:
                dist.all_reduce(m.gram)
            reduced[id(m)] = Moments(*map(int, counts.tolist()), _added(m.sums), m.gram)
        whole = result[name] = StatsAccumulator(held.d_in, held.d_out, m.total.device)
        whole.hold(reduced[id(m)], held.dtype)
        whole.output_sq = None if held.output_sq is None else _added(held.output_sq)
    return result


def _added(part: Sum) -> Sum:
    first, *others = (Sum(*pair) for pair in _over_ranks(torch.stack((part.high, part.low))))
    for other in others:
        first += other
    return first


def _over_ranks(tensor: Tensor) -> Tensor:
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor)
    return torch.stack(parts)
