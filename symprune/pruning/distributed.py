"""Calibration over the ranks of torch.distributed: each has some of the windows, all end with one sum."""

from collections.abc import Collection

import torch
import torch.distributed as dist
from torch import Tensor

from symprune.base.errors import UserError
from symprune.base.types import Windows
from symprune.methods.stats import LayerStats, LinearSums, Moments
from symprune.methods.sums import Sum
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
    return all_reduce(accumulate(model, windows.tensor_split(n_ranks)[rank], uses, **options)).finish()


def all_reduce(sums: LinearSums) -> LinearSums:
    """The sums over what all ranks have seen, on every rank; linears that share a sum on all ranks share it.

    Sums are gathered and added with their rounding errors, in the order of the ranks; Gram matrices are
    reduced in float64, in place.
    """
    names = list(sums.shapes)
    device = next(iter(sums.moments.values())).total.device if names else "cpu"
    about = [
        (names.index(group), name in sums.output_squares, sums.moments[group].dtype == torch.float64)
        for name, group in sums.group_of.items()
    ]
    of_ranks = _over_ranks(torch.tensor(about, dtype=torch.int64, device=device))  # [ranks, linears, 3]
    first: dict[tuple[int, ...], str] = {}  # the first linear of those that are in one group on every rank
    reduced = LinearSums(sums.shapes, {}, {})
    for name, groups, outputs, float64 in zip(names, *of_ranks.permute(2, 1, 0).tolist(), strict=True):
        group = reduced.group_of[name] = first.setdefault(tuple(groups), name)
        if group == name:
            dtype = torch.float64 if all(float64) else torch.float32
            reduced.moments[name] = _reduced(sums.moments[sums.group_of[name]], dtype)
        if any(outputs):  # a rank none of whose tokens reached an expert has nothing to add
            d_out, _ = sums.shapes[name]
            nothing = Sum.of(torch.zeros(d_out, device=reduced.moments[group].total.device))
            reduced.output_squares[name] = _added(sums.output_squares.get(name, nothing))
        if name in sums.gradient_grams:  # of every rank's
            reduced.gradient_grams[name] = sums.gradient_grams[name].clone()
            dist.all_reduce(reduced.gradient_grams[name])
    return reduced


def _reduced(moments: Moments, dtype: torch.dtype) -> Moments:
    counts = torch.tensor([moments.n_tokens, moments.n_samples], device=moments.total.device)
    n_tokens, n_samples = _over_ranks(counts).sum(dim=0).tolist()
    gram = moments.gram
    if gram is not None:
        gram = gram.clone()
        dist.all_reduce(gram)
    sketch = None if moments.sketch is None else _added(moments.sketch)
    return Moments(n_tokens, n_samples, _added(moments.sums), gram, dtype, sketch)


def _added(part: Sum) -> Sum:
    first, *others = (Sum(*pair) for pair in _over_ranks(torch.stack((part.high, part.low))))
    for other in others:
        first += other
    return first


def _over_ranks(tensor: Tensor) -> Tensor:
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor)
    return torch.stack(parts)
