"""The theory as tables: the methods in one formula, what removing one weight costs, and what removing many
does.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from symprune.base.types import Weight
from symprune.methods.masks import NM, Unstructured
from symprune.methods.norms import sample_size, sampled_norms
from symprune.methods.objective import Pair, objective, removal_cost
from symprune.methods.overlap import jaccard
from symprune.methods.pairs import FORMULAS, PAIRS
from symprune.methods.scores import SCORES, Magnitude, SymWanda, Wanda
from symprune.methods.stats import LayerStats, StatsAccumulator

LinearInputs = Float[Tensor, "tokens d_in"]
LinearOutputs = Float[Tensor, "tokens d_out"]
Scoring = Mapping[str, Any]  # by the name it is shown under: an instance of one of `SCORES`

_NAMES = {cls: name for name, cls in SCORES.items()}
_LINE = 16  # float32 entries in a cache line of 64 bytes


def methods_table():
    """The unified table (pandas): what each pair (X, Y) is built from, the pair, and the score that follows.

    Pairs and scores in LaTeX, A the inputs and B the outputs. Every score has |W| as a factor: "weight" says
    whether the pair holds W too.
    """
    import pandas as pd

    rows = []
    for name, cls in SCORES.items():
        formula, score = FORMULAS[name], cls()
        optional = any(field.name == "alpha" for field in fields(cls))
        rows.append(
            {
                "method": name,
                "weight": "yes" if "W" in formula.X + formula.Y or "ri" in formula.X else "no",
                "inputs": "if alpha > 0" if optional else "yes" if "input_norm" in score.uses else "no",
                "outputs": "yes" if "output_norm" in score.uses else "no",
                # A bar would end the cell of a Markdown table.
                **{
                    part: text.replace(r"\|", r"\Vert ").replace("|", r"\vert ")
                    for part, text in asdict(formula).items()
                },
            }
        )
    return pd.DataFrame(rows).set_index("method")


def removal_identity(
    weight: Weight, inputs: LinearInputs, outputs: LinearOutputs, scores: Scoring | None = None
):
    """How far g(W with (i, j) zeroed) - g(W) is from the score, at worst over (i, j), for each score and
    construction (pandas).

    Every weight is really zeroed and g really evaluated: for small layers, in float64. Where the score
    belongs to the squared objective, the root of its g is compared. scores: default every one of `SCORES` at
    its defaults. Relative to the score's own entry; where that is 0 the cost must be 0 too, or the deviation
    is infinite.
    """
    import pandas as pd

    weight, inputs, outputs = weight.double(), inputs.double(), outputs.double()
    stats, rows = statistics_of(inputs, outputs), []
    for name, score, construction, pair in _pairs(weight, inputs, outputs, scores):
        target, cost = score(weight, stats), torch.empty_like(weight)
        for j in range(weight.shape[1]):
            X, Y = pair.at(j)
            before = objective(weight, weight, X, Y, pair.squared)
            for i in range(weight.shape[0]):
                without = weight.clone()
                without[i, j] = 0
                cost[i, j] = objective(weight, without, X, Y, pair.squared) - before
        deviation = ((cost.sqrt() if pair.squared else cost) - target).abs()
        relative = torch.where(deviation > 0, deviation / target, 0)
        rows.append(
            {
                "method": name,
                "construction": construction,
                "absolute": float(deviation.max()),
                "relative": float(relative.max()),
            }
        )
    return pd.DataFrame(rows)


def mask_prediction(
    weight: Weight,
    inputs: LinearInputs,
    outputs: LinearOutputs,
    sparsities: Sequence[float],
    scores: Scoring | None = None,
):
    """What g is once a whole mask is applied, beside what the costs of its single removals predict (pandas).

    Each score prunes with its own mask (per output), and g is of its own pair (X, Y). By the triangle
    inequality g <= the sum of the removal costs. The squared g is the sum of the squared costs exactly where
    X's columns and Y's rows are orthogonal (identity, diagonals); elsewhere the products between removed
    weights of a row (of X) or a column (of Y) are what the sum leaves out.

    A pair that differs from weight to weight, (factor[j] X, factor[j] Y), is one pair (X, Y) for the weight
    times factor: the removal costs are the same, and g of the whole mask is defined by it. scores: default
    every one of `SCORES` at its defaults.
    """
    import pandas as pd

    stats, rows = statistics_of(inputs, outputs), []
    no_X, no_Y = weight.new_zeros(1, weight.shape[1]), weight.new_zeros(weight.shape[0], 1)
    for name, score, construction, pair in _pairs(weight, inputs, outputs, scores):
        scaled, ranking = weight * pair.factor, score(weight, stats)
        costs = [removal_cost(scaled, pair.X, pair.Y, squared).double() for squared in (False, True)]
        for sparsity in sparsities:
            mask = Unstructured(sparsity, "output")(ranking)
            pruned = scaled.masked_fill(~mask, 0)
            sides = (
                float(objective(scaled, pruned, pair.X, no_Y)),
                float(objective(scaled, pruned, no_X, pair.Y)),
            )
            total, total_squared = (float(cost[~mask].sum()) for cost in costs)
            rows.append(
                {
                    "method": name,
                    "construction": construction,
                    "sparsity": sparsity,
                    "g": sum(sides),
                    "sum": total,
                    "g_squared": sum(side**2 for side in sides),
                    "sum_squared": total_squared,
                }
            )
    frame = pd.DataFrame(rows)
    return frame.assign(
        ratio=frame["g"] / frame["sum"], ratio_squared=frame["g_squared"] / frame["sum_squared"]
    )


def symwanda_agreement(
    weight: Weight,
    inputs: LinearInputs,
    outputs: LinearOutputs,
    scales: Sequence[float],
    pattern: Unstructured | NM,
):
    """Jaccard overlap of SymWanda's mask with Wanda's and with Magnitude's while y is multiplied by each of
    `scales` (pandas).
    """
    import pandas as pd

    stats = statistics_of(inputs, outputs)
    wanda, magnitude = (pattern(score(weight, stats)) for score in (Wanda(), Magnitude()))
    rows = []
    for scale in scales:
        mask = pattern(SymWanda()(weight, replace(stats, output_norm=stats.output_norm * scale)))
        rows.append({"scale": scale, "wanda": jaccard(mask, wanda), "magnitude": jaccard(mask, magnitude)})
    return pd.DataFrame(rows)


def sampling_reads(
    weights: Sequence[Weight], betas: Sequence[float], samplings: Sequence[str], seed: int = 0
):
    """What the norms of stochRIA read, as fractions of all entries and of all cache lines (64 bytes of
    float32), counted (pandas).

    The row sample and the column sample are two reads; exact norms (beta = 1) take both sums from one. An
    entry counts where the gradient of the estimates with respect to it is not zero. What "weighted" reads for
    its pilot leaves no gradient: it is a "shared" sample, and is added. A line counts once for each of the
    two, as if it stayed in the cache for its next entry.
    """
    import pandas as pd

    rows = []
    for sampling in samplings:
        for beta in betas:
            counts = torch.zeros(2, dtype=torch.float64)
            for weight in weights:
                # no entry is zero: each one read has a gradient
                filled = weight.detach().float().abs().clamp(min=1e-12)
                for kind in (
                    {"weighted": ("weighted", "shared")}.get(sampling, (sampling,))
                    if beta < 1
                    else (sampling,)
                ):
                    counts += _count_reads(filled, beta, kind, seed)
            size = sum(weight.numel() for weight in weights)
            lines = sum(weight.shape[0] * -(-weight.shape[1] // _LINE) for weight in weights)
            rows.append(
                {
                    "sampling": sampling,
                    "beta": beta,
                    "entries": float(counts[0]) / size,
                    "lines": float(counts[1]) / lines,
                }
            )
    return pd.DataFrame(rows)


def statistics_of(inputs: LinearInputs, outputs: LinearOutputs) -> LayerStats:
    """What calibration gathers from these inputs and outputs of one linear."""
    accumulator = StatsAccumulator(inputs.shape[1], outputs.shape[1])
    accumulator.update(inputs, outputs)
    return accumulator.finish()


def _count_reads(weight: Weight, beta: float, sampling: str, seed: int) -> Float[Tensor, "2"]:
    leaf = weight.clone().requires_grad_()
    with torch.enable_grad():
        read = [
            torch.autograd.grad(norm.sum(), leaf, retain_graph=True)[0] != 0
            for norm in sampled_norms(leaf, beta, sampling, seed)
        ]
    if all(sample_size(n, beta) == n for n in weight.shape):
        read = [read[0] | read[1]]
    total = torch.zeros(2, dtype=torch.float64)
    for entries in read:
        padded = torch.nn.functional.pad(entries, (0, -weight.shape[1] % _LINE))
        total += torch.tensor(
            [int(entries.sum()), int(padded.reshape(-1, _LINE).any(dim=1).sum())], dtype=torch.float64
        )
    return total


def _pairs(
    weight: Weight, inputs: LinearInputs, outputs: LinearOutputs, scores: Scoring | None
) -> Iterator[tuple[str, Any, str, Pair]]:
    for name, score in ({name: cls() for name, cls in SCORES.items()} if scores is None else scores).items():
        for construction, build in PAIRS[_NAMES[type(score)]].items():
            yield name, score, construction, build(weight, inputs, outputs.t(), **asdict(score))
