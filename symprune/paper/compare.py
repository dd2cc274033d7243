"""Two sets of measured rows compared pair by pair: over evaluation windows, linears, rounds, or the examples
of zero-shot tasks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

_DRAWS = 10_000


@dataclass(frozen=True)
class Paired:
    """A paired comparison: what was measured of a over what was measured of b, with a 95 % interval.

    n, over: how many pairs, of what. comparisons: how many are made of which any may decide; the interval is
    widened so that all hold together with 95 % (Bonferroni). draws: the ratio with each draw of calibration
    text, if several.
    """

    ratio: float
    low: float
    high: float
    n: int
    comparisons: int = 1
    what: str = "perplexity"
    over: str = "windows"
    draws: tuple[float, ...] = ()

    @property
    def decided(self) -> bool:
        """Whether the interval leaves out 1."""
        return not self.low <= 1 <= self.high


def paired(a: pd.DataFrame, b: pd.DataFrame, comparisons: int = 1) -> Paired:
    """Compare the perplexities of two sets of rows of `Experiment.run`, losses averaged over seeds, by
    Student's t over windows.

    The interval covers the choice of evaluation text. What the draw of calibration text does is told beside
    it, as the ratio of each seed (a side that reads none is the same in all), and as the spread in the
    tables. Raises ValueError if a side has no rows, or the rows were not measured on as many windows.
    """
    if len({len(losses) for rows in (a, b) for losses in rows["window_losses"]}) != 1 or a.empty or b.empty:
        raise ValueError(
            f"cannot pair {len(a)} rows with {len(b)}: both sides need rows, all on the same evaluation"
            " windows"
        )
    losses = [np.mean(np.array(rows["window_losses"].tolist()), axis=0) for rows in (a, b)]
    return replace(paired_logs(losses[0] - losses[1], comparisons), draws=_ratio_of_each_draw(a, b))


def paired_unevenness(a: pd.DataFrame, b: pd.DataFrame, comparisons: int = 1, lines: str = "rows") -> Paired:
    """Compare how unevenly masks keep weights over "rows" or "columns", by 1 - normalised entropy, linear by
    linear.

    a, b: rows of `Experiment.compare_masks`; entropies are averaged over repetitions.
    """
    logs = [np.log(1 - np.array(rows[f"linear_entropy_{lines}"].tolist()).mean(axis=0)) for rows in (a, b)]
    return paired_logs(logs[0] - logs[1], comparisons, what=f"unevenness over {lines}", over="linears")


def paired_times(a: pd.DataFrame, b: pd.DataFrame, comparisons: int = 1) -> Paired:
    """Compare how long two scores take, one row of `Experiment.time_scores` each, round by round."""
    logs = [np.array(rows["log_ratios"].item()) for rows in (a, b)]
    return paired_logs(logs[0] - logs[1], comparisons, what="time", over="rounds")


def paired_logs(
    difference: Sequence[float] | np.ndarray,
    comparisons: int = 1,
    what: str = "perplexity",
    over: str = "windows",
) -> Paired:
    """The comparison that follows from log a - log b of each pair, by Student's t."""
    from scipy import stats

    difference = np.asarray(difference, dtype=float)
    n = len(difference)
    mean, error = (
        float(difference.mean()),
        float(difference.std(ddof=1) / math.sqrt(n)) if n > 1 else math.inf,
    )
    reach = float(stats.t.ppf(1 - 0.025 / comparisons, n - 1)) * error if n > 1 else math.inf
    bounds = [math.exp(min(max(x, -700), 700)) for x in (mean, mean - reach, mean + reach)]
    return Paired(*bounds, n=n, comparisons=comparisons, what=what, over=over)


@dataclass(frozen=True)
class PairedAccuracy:
    """The difference of two accuracies, a minus b, with a 95 % interval over examples.

    gained, lost: examples that a answers rightly and b wrongly, and the other way round; seeds averaged, so
    they may be fractions. comparisons: as in `Paired`.
    """

    difference: float
    low: float
    high: float
    gained: float
    lost: float
    n: int
    n_tasks: int = 1
    comparisons: int = 1

    @property
    def decided(self) -> bool:
        """Whether the interval leaves out 0."""
        return not self.low <= 0 <= self.high


def paired_accuracy(a: pd.DataFrame, b: pd.DataFrame, comparisons: int = 1) -> PairedAccuracy:
    """Compare two sets of rows on the same examples by a paired bootstrap: seeds averaged, examples drawn
    anew within each task.

    Of several tasks the plain mean is compared. The same numbers each time: the draws are seeded.
    Raises ValueError unless both sides hold the same tasks, with as many examples.
    """
    sides = [{task: rightly(of) for task, of in rows.groupby("task", sort=False)} for rows in (a, b)]
    sizes = [{task: len(answers) for task, answers in side.items()} for side in sides]
    if sizes[0] != sizes[1] or not sizes[0]:
        raise ValueError(
            f"cannot pair {sizes[0]} with {sizes[1]}: both sides need the same tasks and examples"
        )
    rng, means, draws = np.random.default_rng(0), [], []
    differences = {task: sides[0][task] - sides[1][task] for task in sides[0]}
    for difference in differences.values():
        # Few values occur: how often each is drawn says all that a draw of examples says.
        values, counts = np.unique(difference, return_counts=True)
        n = len(difference)
        means.append(difference.mean())
        draws.append(rng.multinomial(n, counts / n, size=_DRAWS) @ values / n)
    low, high = np.quantile(np.mean(draws, axis=0), [0.025 / comparisons, 1 - 0.025 / comparisons])
    every = np.concatenate(list(differences.values()))
    gained, lost = every.clip(min=0).sum(), (-every).clip(min=0).sum()
    return PairedAccuracy(
        float(np.mean(means)),
        float(low),
        float(high),
        float(gained),
        float(lost),
        len(every),
        len(means),
        comparisons,
    )


def rightly(rows: pd.DataFrame) -> np.ndarray:
    """How often each example is answered rightly, over the seeds; raises ValueError if the rows hold
    different numbers of examples.
    """
    if len({len(correct) for correct in rows["correct"]}) != 1:
        raise ValueError("the rows were not measured on as many examples")
    return np.mean([[int(digit) for digit in correct] for correct in rows["correct"]], axis=0)


def _ratio_of_each_draw(a: pd.DataFrame, b: pd.DataFrame) -> tuple[float, ...]:
    def loss(rows: pd.DataFrame, seed: float) -> float:
        return rows.loc[rows["seed"].isna() | (rows["seed"] == seed), "window_losses"].map(np.mean).mean()

    seeds = sorted({*a["seed"].dropna(), *b["seed"].dropna()})
    logs = [loss(a, seed) - loss(b, seed) for seed in seeds]
    return tuple(np.exp(logs).tolist()) if len(seeds) > 1 and not np.isnan(logs).any() else ()
