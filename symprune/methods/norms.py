"""Row and column lp norms of a weight, exact and sampled, and the relative importance built from them."""

import hashlib
import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from symprune.base.errors import unknown
from symprune.base.types import Scores, Weight

Rows = Float[Tensor, " d_out"]
Columns = Float[Tensor, " d_in"]


def row_norm(weight: Weight, p: float = 1.0) -> Rows:
    """r_p[i] = (sum_j |W[i, j]|^p)^(1/p); p may be infinite, or below 1 (then a quasi-norm)."""
    return _norm(weight, _powers(weight, p), p, dim=1)


def column_norm(weight: Weight, p: float = 1.0) -> Columns:
    """c_p[j] = (sum_i |W[i, j]|^p)^(1/p); p may be infinite, or below 1 (then a quasi-norm)."""
    return _norm(weight, _powers(weight, p), p, dim=0)


def row_column_norms(weight: Weight, p: float = 1.0, out: Weight | None = None) -> tuple[Rows, Columns]:
    """(r_p, c_p): the row and the column norms.

    The powers |W|^p are taken once for both; out: memory for them, which the caller may use again.
    """
    powers = _powers(weight, p, out)
    return _norm(weight, powers, p, dim=1), _norm(weight, powers, p, dim=0)


def safe_reciprocal(norm: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """1 / norm where norm > 0, else 0, so that a dead row or column scores 0 and never NaN or inf."""
    # A subnormal norm would overflow to inf: the largest finite value ranks the same.
    limit = torch.finfo(norm.dtype).max
    return torch.where(norm > 0, norm.reciprocal().clamp(max=limit), 0)


def unit_mean(norm: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """norm divided by its mean; all zeros stay zeros."""
    return norm * safe_reciprocal(norm.mean().reshape(1))


def relative_importance(
    weight: Weight,
    row: Rows | None = None,
    column: Columns | None = None,
    factor: Columns | None = None,
    a: Columns | None = None,
    b: Rows | None = None,
    out: Scores | None = None,
) -> Scores:
    """D[i, j] = |W[i, j]| (a[j] / column[j] + b[i] / row[i]) factor[j].

    row, column: norms of the weight, exact or sampled (default: its l1 norms); where one is 0 its term is 0.
    factor, a, b: default 1. out: memory that may be used for the result.
    """
    # fresh memory costs more than a pass over it: one piece for every step
    out = torch.empty_like(weight) if out is None else out
    if row is None or column is None:
        r_1, c_1 = row_column_norms(weight, out=out)
        row, column = r_1 if row is None else row, c_1 if column is None else column
    if float(torch.minimum(row.amin(), column.amin())) < torch.finfo(row.dtype).tiny ** 0.5:
        # Something is dead, or so small that its reciprocal could overflow where |W| / norm does not.
        by_column, by_row = _quotient(weight, column), _quotient(weight, row[:, None])
        scores = by_column * (1 if a is None else a) + by_row * (1 if b is None else b[:, None])
        return scores if factor is None else scores * factor
    row, column = row.reciprocal() if b is None else b / row, column.reciprocal() if a is None else a / column
    row = row[:, None]
    scale = (
        torch.add(column, row, out=out)
        if factor is None
        else torch.addcmul(column * factor, row, factor, out=out)
    )
    return scale.mul_(weight).abs_()  # scale >= 0


def root_sum_of_squares(row: Rows, column: Columns, out: Scores | None = None) -> Scores:
    """sqrt(column[j]^2 + row[i]^2), without overflow or underflow; out: memory for it."""
    (smallest, largest), info = torch.cat([row, column]).aminmax(), torch.finfo(row.dtype)
    if smallest > (info.tiny / info.eps) ** 0.5 and largest < info.max**0.5 / 2:
        return torch.add(column.square(), row.square()[:, None], out=out).sqrt_()
    return torch.hypot(column, row[:, None], out=out)  # three times as slow


def sample_size(n: int, beta: float) -> int:
    """tau = beta n rounded to the nearest integer (halves up), at least 1 and at most n."""
    return min(n, max(1, math.floor(beta * n + 0.5)))


def sampled_norms(
    weight: Weight, beta: float, sampling: str = "independent", seed: int = 0
) -> tuple[Rows, Columns]:
    """Unbiased estimates (r_1, c_1) of the row and column l1 norms, each from a fraction beta of the entries.

    sampling: a key of `SAMPLERS`. A row or column of which every entry is read (always so for beta = 1) has
    its exact norm. The indices depend on the seed and the shape alone (and for "weighted" on the ratios of
    the weights), on every device. Raises UserError if sampling is not known.
    """
    if sampling not in SAMPLERS:
        raise unknown("sampling", sampling, SAMPLERS)
    d_out, d_in = weight.shape
    exact_row, exact_column = sample_size(d_in, beta) == d_in, sample_size(d_out, beta) == d_out
    if exact_row and exact_column:
        return row_column_norms(weight)
    # A plain seed would give a 576 x 576 and a 1536 x 576 weight the same first indices.
    digest = hashlib.blake2b(f"{seed} {d_out} {d_in}".encode(), digest_size=7).digest()
    generator = Generator().manual_seed(int.from_bytes(digest, "big"))
    row, column = SAMPLERS[sampling](weight, beta, generator)
    return row_norm(weight) if exact_row else row, column_norm(weight) if exact_column else column


def independent(weight: Weight, beta: float, generator: Generator) -> tuple[Rows, Columns]:
    """For every row and every column its own simple random sample of distinct entries."""
    return _uniform_sum(weight, beta, generator, _distinct), _uniform_sum(
        weight.t(), beta, generator, _distinct
    )


def stratified(weight: Weight, beta: float, generator: Generator) -> tuple[Rows, Columns]:
    """Each row and column gets one uniform draw from each of tau equally long stretches of its index."""
    return _uniform_sum(weight, beta, generator, _one_per_stratum), _uniform_sum(
        weight.t(), beta, generator, _one_per_stratum
    )


def shared(weight: Weight, beta: float, generator: Generator) -> tuple[Rows, Columns]:
    """One index set for all: tau random whole rows for the columns, a cyclic run of tau inputs for the rows.

    Both read memory in contiguous stretches and draw almost nothing; the price is an error that all rows
    (columns) have in common.
    """
    d_out, d_in = weight.shape
    tau_out, tau_in = sample_size(d_out, beta), sample_size(d_in, beta)
    rows = torch.randperm(d_out, generator=generator)[:tau_out].sort().values
    start = int(torch.randint(d_in, (), generator=generator))
    row = weight[:, start : start + tau_in].abs().sum(dim=1)
    if start + tau_in > d_in:
        row += weight[:, : start + tau_in - d_in].abs().sum(dim=1)
    column = weight[rows.to(weight.device)].abs_().sum(dim=0)
    return row * (d_in / tau_in), column * (d_out / tau_out)


def weighted(weight: Weight, beta: float, generator: Generator) -> tuple[Rows, Columns]:
    """Importance sampling with probabilities close to proportional to |W|, each draw weighted by 1 / (tau q).

    With q exactly proportional to |W[i, :]| one draw would give the exact norm, but q would need that very
    norm. The nearest thing that costs little is the rank-one guess |W[i, j]| ~ r[i] c[j]: input j is drawn,
    with replacement, with q[j] = c[j] / (2 sum c) + 1 / (2 d_in), c being a pilot estimate by `shared`;
    likewise the outputs of a column. The uniform half bounds the weights: the variance is at most twice that
    of uniform draws with replacement. Reads 2 beta of the entries.
    """
    row, column = shared(weight, beta, generator)
    return _importance_sum(weight, beta, generator, column), _importance_sum(weight.t(), beta, generator, row)


SAMPLERS: dict[str, Callable[[Weight, float, Generator], tuple[Rows, Columns]]] = {
    "independent": independent,
    "shared": shared,
    "weighted": weighted,
    "stratified": stratified,
}


def _powers(weight: Weight, p: float, out: Weight | None = None) -> Weight:
    """|W|^p, or |W| where p is infinite.

    An elementwise power and a sum are several times as fast as `torch.linalg.vector_norm`.
    """
    if math.isnan(p) or p <= 0:
        raise ValueError(f"p of an lp norm must be positive (inf is allowed), not {p}")
    if p in (2, 4):
        square = torch.square(weight, out=out)
        return square if p == 2 else square.square_()
    size = torch.abs(weight, out=out)
    return size if p in (1, math.inf) else size.pow_(p)


def _norm(weight: Weight, powers: Weight, p: float, dim: int) -> Float[Tensor, " n"]:
    if p == math.inf:
        return powers.amax(dim)
    total = powers.sum(dim)
    if p == 1:
        return total
    info = torch.finfo(total.dtype)
    smallest, largest = total.aminmax()
    if smallest <= info.tiny * powers.shape[dim] / info.eps or largest == math.inf:
        # Powers over- or underflow, or the line is dead: each line is measured in units of its largest entry.
        unit = weight.abs().amax(dim, keepdim=True)
        total = _powers(torch.where(unit > 0, weight / unit, 0), p).sum(dim)
        return total.pow(1 / p) * unit.squeeze(dim)
    return total.pow(1 / p)


def _quotient(weight: Weight, norm: Tensor) -> Scores:
    return torch.where(norm > 0, weight.abs() / norm, 0).clamp(max=torch.finfo(norm.dtype).max / 4)


def _uniform_sum(
    lines: Float[Tensor, "lines n"], beta: float, generator: Generator, draw: Callable
) -> Float[Tensor, " lines"]:
    """(n / tau) times the sum of tau entries of each line."""
    n = lines.shape[1]
    tau = sample_size(n, beta)
    if lines.device.type == "cpu":
        index = draw(lines.shape[0], n, tau, generator)
    else:
        index = _drawn_before(draw, lines.shape[0], n, tau, generator).to(lines.device).long()
    return lines.gather(1, index).abs_().sum(dim=1) * (n / tau)


_DRAWN: dict[tuple, tuple[Tensor, Tensor]] = {}  # what was drawn last, and the generator's state afterwards


def _drawn_before(
    draw: Callable, lines: int, n: int, tau: int, generator: Generator
) -> Int[Tensor, "lines tau"]:
    """What `draw` gives, as int32, drawn once for all weights of a shape.

    Drawing takes a processor seconds where a GPU needs milliseconds for the rest. (On a processor each weight
    draws anew: there it is part of what scoring costs.)
    """
    key = draw, lines, n, tau, generator.get_state().numpy().tobytes()
    if key not in _DRAWN:
        while len(_DRAWN) >= 12:  # rows and columns of six shapes
            _DRAWN.pop(next(iter(_DRAWN)))
        _DRAWN[key] = draw(lines, n, tau, generator).int(), generator.get_state()
    index, state = _DRAWN[key]
    generator.set_state(state)
    return index


def _importance_sum(
    lines: Float[Tensor, "lines n"], beta: float, generator: Generator, size: Float[Tensor, " n"]
) -> Float[Tensor, " lines"]:
    """The mean of |entry| / q over tau draws with replacement from q, which is half proportional to size."""
    n = lines.shape[1]
    # Index j fills q[j] times as many places of a table: a draw is one look-up, and q is exact.
    places = ((unit_mean(size.double().cpu()) + 1) * 16).long() + 1
    table = torch.arange(n).repeat_interleave(places)
    index = table[torch.randint(len(table), (lines.shape[0], sample_size(n, beta)), generator=generator)].to(
        lines.device
    )
    inverse = (len(table) / places).to(lines)
    return (lines.gather(1, index).abs_() * inverse[index]).mean(dim=1)


def _distinct(lines: int, n: int, tau: int, generator: Generator) -> Int[Tensor, "lines tau"]:
    """Simple random samples without replacement by Floyd's algorithm, all lines in step.

    Where the sample is more than half, the rest is drawn instead.
    """
    drawn = min(tau, n - tau)
    taken, indices = torch.zeros(lines, n, dtype=torch.bool), torch.empty(drawn, lines, 1, dtype=torch.long)
    for index, last in zip(indices, range(n - drawn, n), strict=True):
        torch.randint(last + 1, (lines, 1), generator=generator, out=index)
        index.masked_fill_(taken.gather(1, index), last)
        taken.scatter_(1, index, True)
    return indices.squeeze(2).t() if drawn == tau else (~taken).nonzero()[:, 1].view(lines, tau)


def _one_per_stratum(lines: int, n: int, tau: int, generator: Generator) -> Int[Tensor, "lines tau"]:
    """The floor of one uniform point in each of [t n / tau, (t + 1) n / tau).

    An index on a border may come twice; its chance stays tau / n.
    """
    point = (
        torch.rand(lines, tau, dtype=torch.float64, generator=generator).add_(torch.arange(tau)).mul_(n / tau)
    )
    return point.long().clamp_(max=n - 1)
