"""Two sets of measured rows compared pair by pair: over articles and draws, linears, rounds, or the examples
of zero-shot tasks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from symprune.paper.crossed import Mean, crossed

BOUNDLESS = 1e6  # an effect above it is no bound: that of a single article, which says nothing of others
_FACTORS = 1.0  # from twice on, a factor is read more easily than percent
ONE_DRAW = "one draw: the draw is not covered"
_ROUNDING = 2e-5  # relative: five times what float32 made of the same pruned models on a GPU and a processor


@dataclass(frozen=True)
class Paired:
    """A paired comparison: what was measured of a over what was measured of b, with a 95 % interval.

    n, over: how many pairs, of what. comparisons: how many are made of which any may decide; the interval is
    widened so that all hold together with 95 % (Bonferroni). draws: the ratio with each draw of calibration
    text, if several. detectable: the smallest difference from 1 that would have been found with 80 %;
    showable: the smallest margin around 1 that could have been shown. note: what the interval leaves out.
    """

    ratio: float
    low: float
    high: float
    n: int
    comparisons: int = 1
    what: str = "perplexity"
    over: str = "articles"
    draws: tuple[float, ...] = ()
    detectable: float | None = None
    showable: float | None = None
    note: str = ""

    @property
    def decided(self) -> bool:
        """Whether the interval leaves out 1."""
        return not self.low <= 1 <= self.high


def in_words(effect: float, unit: str = "", sign: str = "+") -> str:
    """An effect, a fraction of what is compared: "+8.0%"; from twice on as a factor, to three digits: "13.1
    times"; points as they are. sign: "" for a size without a direction.
    """
    if unit == "points":
        return f"{effect:{sign}.1f}"
    if effect < _FACTORS:
        return f"{effect:{sign}.1%}"
    return "any height" if effect >= BOUNDLESS else f"{float(f'{1 + effect:.3g}'):,.10g} times"


def with_unit(words: str, unit: str) -> str:
    """ "+8.0% perplexity", "13.1 times the perplexity"."""
    return f"{words} the {unit}" if words.endswith("times") else f"{words} {unit}"


def paired(a: pd.DataFrame, b: pd.DataFrame, comparisons: int = 1) -> Paired:
    """Compare the perplexities of two sets of rows of `Experiment.run`, by `crossed` over articles and draws.

    A window belongs to the article of its first token; losses are averaged within an article and over rows of
    one draw (sampling seeds), and articles count alike. A side that reads no calibration text is the same in
    all draws. With one draw the interval covers articles alone, and says so; so it does of rows that do not
    tell their windows' articles, each of which then stands for itself. Raises ValueError if a side has no
    rows, or the rows were not measured on as many windows of the same articles, or on other draws.
    """
    articles = _articles(a, b)
    names, inverse = np.unique(articles, return_inverse=True)
    seeds = _draws(a, b)
    sides = [np.stack([_losses(rows, seed) for seed in seeds], axis=1) for rows in (a, b)]
    within = np.eye(len(names))[inverse].T
    cells = within @ (sides[0] - sides[1]) / within.sum(axis=1, keepdims=True)
    words = _told_draws("articles" if _told(a) else "windows", cells, seeds)
    if not _told(a):
        untold = "windows do not tell their articles: measured by another version"
        words["note"] = "; ".join(filter(None, [untold, words["note"]]))
    return _of_logs(crossed(cells), len(names), comparisons, **words)


def paired_unevenness(a: pd.DataFrame, b: pd.DataFrame, comparisons: int = 1, lines: str = "rows") -> Paired:
    """Compare how unevenly masks keep weights over "rows" or "columns", by 1 - normalised entropy, linear by
    linear.

    a, b: rows of `MaskOverlap`; linears are crossed with draws of calibration text, entropies
    averaged over the other repetitions.
    """
    seeds = _draws(a, b)
    logs = [
        [
            np.log(1 - np.mean(_of_draw(rows, seed)[f"linear_entropy_{lines}"].tolist(), axis=0))
            for seed in seeds
        ]
        for rows in (a, b)
    ]
    cells = np.subtract(*logs).T
    return _of_logs(
        crossed(cells),
        len(cells),
        comparisons,
        what=f"unevenness over {lines}",
        **_told_draws("linears", cells, seeds),
    )


def paired_times(a: pd.DataFrame, b: pd.DataFrame, comparisons: int = 1) -> Paired:
    """Compare how long two scores take, one row of `ScoreTime` each, round by round."""
    logs = [np.array(rows["log_ratios"].item()) for rows in (a, b)]
    return paired_logs(logs[0] - logs[1], comparisons, what="time", over="rounds")


def paired_logs(
    difference: Sequence[float] | np.ndarray,
    comparisons: int = 1,
    what: str = "perplexity",
    over: str = "windows",
) -> Paired:
    """The comparison that follows from log a - log b of each pair, by Student's t."""
    difference = np.asarray(difference, dtype=float)
    return _of_logs(crossed(difference[:, None]), len(difference), comparisons, what=what, over=over)


def _of_logs(mean: Mean, n: int, comparisons: int, **words) -> Paired:
    reach, exp = mean.reach(comparisons), (lambda x: math.exp(min(max(x, -700), 700)))
    power = (mean.detectable(comparisons), mean.showable(comparisons))
    detectable, showable = (None if math.isinf(x) else 1 - exp(-x) for x in power)
    bounds = (exp(mean.value + side * reach) for side in (-1, 1))
    return Paired(exp(mean.value), *bounds, n, comparisons, detectable=detectable, showable=showable, **words)


@dataclass(frozen=True)
class PairedAccuracy:
    """The difference of two accuracies, a minus b, with a 95 % interval over examples and draws.

    gained, lost: examples that a answers rightly and b wrongly, and the other way round; draws averaged, so
    they may be fractions. n_draws: of calibration text, 0 if neither side reads any. comparisons, detectable:
    as in `Paired`.
    """

    difference: float
    low: float
    high: float
    gained: float
    lost: float
    n: int
    n_tasks: int = 1
    n_draws: int = 0
    comparisons: int = 1
    detectable: float | None = None

    @property
    def decided(self) -> bool:
        """Whether the interval leaves out 0."""
        return not self.low <= 0 <= self.high


def paired_accuracy(a: pd.DataFrame, b: pd.DataFrame, comparisons: int = 1) -> PairedAccuracy:
    """Compare two sets of rows on the same examples, by `crossed` over examples and draws.

    Of several tasks the plain mean is compared. Raises ValueError unless both sides hold the same tasks, with
    as many examples, and the same draws where they have any.
    """
    sides = [{task: rightly(of) for task, of in rows.groupby("task", sort=False)} for rows in (a, b)]
    sizes = [{task: len(answers) for task, answers in side.items()} for side in sides]
    if sizes[0] != sizes[1] or not sizes[0]:
        raise ValueError(
            f"cannot pair {sizes[0]} with {sizes[1]}: both sides need the same tasks and examples"
        )
    seeds = _draws(a, b)
    cells = []
    for task in sizes[0]:
        each = [
            np.stack([rightly(_of_draw(rows[rows["task"] == task], seed)) for seed in seeds], axis=1)
            for rows in (a, b)
        ]
        cells.append(each[0] - each[1])
    mean = crossed(*cells)
    reach, detectable = mean.reach(comparisons), mean.detectable(comparisons)
    every = np.concatenate(cells)
    return PairedAccuracy(
        mean.value,
        max(mean.value - reach, -1.0),
        min(mean.value + reach, 1.0),
        gained=float(every.clip(min=0).mean(axis=1).sum()),
        lost=float((-every).clip(min=0).mean(axis=1).sum()),
        n=len(every),
        n_tasks=len(cells),
        n_draws=len(seeds) if seeds != [None] else 0,
        comparisons=comparisons,
        detectable=None if math.isinf(detectable) else detectable,
    )


def one_perplexity(rows: pd.DataFrame, by: Sequence[str]) -> bool:
    """Whether all rows that agree in `by` have one perplexity, but for what rounding does.

    Equal masks give equal bits on one machine; records may be of two, whose sums are of another order.
    """
    of = rows.groupby(list(by), dropna=False)["perplexity"]
    return bool((of.max() <= (1 + _ROUNDING) * of.min()).all())


def rightly(rows: pd.DataFrame) -> np.ndarray:
    """How often each example is answered rightly, over the seeds; raises ValueError if the rows hold
    different numbers of examples.
    """
    if len({len(correct) for correct in rows["correct"]}) != 1:
        raise ValueError("the rows were not measured on as many examples")
    return np.mean([[int(digit) for digit in correct] for correct in rows["correct"]], axis=0)


def _draws(a: pd.DataFrame, b: pd.DataFrame) -> list[float | None]:
    """The draws of calibration text of either side; of two that read none, the only one."""
    return sorted({*a["seed"].dropna(), *b["seed"].dropna()}) or [None]


def _told_draws(units: str, cells: np.ndarray, seeds: Sequence[float | None]) -> dict[str, Any]:
    """What a comparison of units crossed with draws says of the draws."""
    if len(seeds) == 1:
        return {"over": units, "note": "" if seeds[0] is None else ONE_DRAW}
    ratios = tuple(np.exp(cells.mean(axis=0)).tolist())
    return {"over": f"{units} and {len(seeds)} draws", "draws": ratios, "note": ""}


def _of_draw(rows: pd.DataFrame, seed: float | None) -> pd.DataFrame:
    """The rows of one draw: all of a side that has none; raises ValueError if there are none of this one."""
    if rows["seed"].isna().all():
        return rows
    if (of := rows[rows["seed"] == seed]).empty:
        raise ValueError(f"cannot pair rows of other draws: draw {seed} is missing on one side")
    return of


def _losses(rows: pd.DataFrame, seed: float | None) -> np.ndarray:
    return np.mean(_of_draw(rows, seed)["window_losses"].tolist(), axis=0)


def _told(rows: pd.DataFrame) -> bool:
    return "articles" in rows and all(isinstance(articles, list) for articles in rows["articles"])


def _articles(a: pd.DataFrame, b: pd.DataFrame) -> list[int]:
    """The article of each window, the same in all rows; of rows that do not tell, each window its own."""
    sizes = {len(losses) for rows in (a, b) for losses in rows["window_losses"]}
    if len(sizes) != 1 or a.empty or b.empty:
        raise ValueError(
            f"cannot pair {len(a)} rows with {len(b)}: both sides need rows, all on the same evaluation"
            " windows"
        )
    if _told(a) != _told(b):
        raise ValueError("cannot pair rows of which only one side tells its windows' articles")
    if not _told(a):
        return list(range(sizes.pop()))
    if len(told := {tuple(articles) for rows in (a, b) for articles in rows["articles"]}) != 1:
        raise ValueError("cannot pair rows: their windows are of other articles")
    return list(told.pop())
