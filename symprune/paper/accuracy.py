"""Zero-shot accuracies of measured rows: as a table, and compared example by example."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from symprune.paper.tables import Verdict

_DRAWS = 10_000


def accuracies(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per model, method, refinement and task: accuracy averaged over calibration seeds, its standard error over examples.

    rows: of `Experiment.zero_shot`. The standard error (nan for one example) is that of examples answered by one fixed set of models.
    """
    cells = []
    for (model, method, refine, task), of in rows.groupby(["model", "method", "refine", "task"], sort=False):
        rightly = _rightly(of)
        error = rightly.std(ddof=1) / math.sqrt(len(rightly)) if len(rightly) > 1 else math.nan
        cells.append(
            {"model": model, "method": method, "refine": refine, "task": task, "acc": rightly.mean(), "stderr": error, "n": len(rightly)}
        )
    return pd.DataFrame(cells)


def accuracy_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracies in percent as `mean ± standard error over examples`, one row per model, method and refinement, a column per task.

    Where there are several tasks, the last column is their plain mean.
    """
    cells = accuracies(rows)
    tasks = list(cells["task"].unique())
    index = ["model", "method", "refine"]
    cells["cell"] = [_percent(acc, error) for acc, error in zip(cells["acc"], cells["stderr"], strict=True)]
    table = cells.pivot(index=index, columns="task", values="cell")[tasks]
    if len(tasks) > 1:
        groups = cells.groupby(index, sort=False)
        errors = groups["stderr"].apply(lambda of: math.sqrt((of**2).sum(skipna=False)) / len(of))
        table["mean"] = [_percent(groups["acc"].mean()[key], errors[key]) for key in table.index]
    table.columns.name = None
    return table.loc[list(dict.fromkeys(cells[index].itertuples(index=False, name=None)))]


@dataclass(frozen=True)
class PairedAccuracy:
    """The difference of two accuracies, a minus b, with a 95 % interval over examples.

    gained, lost: examples that a answers rightly and b wrongly, and the other way round; seeds averaged, so they may be fractions.
    """

    difference: float
    low: float
    high: float
    gained: float
    lost: float
    n: int
    n_tasks: int = 1

    @property
    def decided(self) -> bool:
        """Whether the interval leaves out 0."""
        return not self.low <= 0 <= self.high

    def __str__(self) -> str:
        over = f"{self.n} examples" + (f" of {self.n_tasks} tasks" if self.n_tasks > 1 else "")
        interval = f"95 % interval {100 * self.low:+.1f} to {100 * self.high:+.1f}"
        return f"{100 * self.difference:+.1f} points ({interval}, paired over {over}: {self.gained:.3g} gained, {self.lost:.3g} lost)"


def paired_accuracy(a: pd.DataFrame, b: pd.DataFrame) -> PairedAccuracy:
    """Compare two sets of rows on the same examples by a paired bootstrap: seeds averaged, examples drawn anew within each task.

    Of several tasks the plain mean is compared. The same numbers each time: the draws are seeded.
    Raises ValueError unless both sides hold the same tasks, with as many examples.
    """
    sides = [{task: _rightly(of) for task, of in rows.groupby("task", sort=False)} for rows in (a, b)]
    sizes = [{task: len(rightly) for task, rightly in side.items()} for side in sides]
    if sizes[0] != sizes[1] or not sizes[0]:
        raise ValueError(f"cannot pair {sizes[0]} with {sizes[1]}: both sides need the same tasks and examples")
    rng, means, draws = np.random.default_rng(0), [], []
    differences = {task: sides[0][task] - sides[1][task] for task in sides[0]}
    for difference in differences.values():
        # Few values occur: how often each is drawn says all that a draw of examples says.
        values, counts = np.unique(difference, return_counts=True)
        n = len(difference)
        means.append(difference.mean())
        draws.append(rng.multinomial(n, counts / n, size=_DRAWS) @ values / n)
    low, high = np.quantile(np.mean(draws, axis=0), [0.025, 0.975])
    every = np.concatenate(list(differences.values()))
    gained, lost = every.clip(min=0).sum(), (-every).clip(min=0).sum()
    return PairedAccuracy(float(np.mean(means)), float(low), float(high), float(gained), float(lost), len(every), len(means))


def judge_accuracy(claim: str, comparison: PairedAccuracy) -> Verdict:
    """The verdict on "a answers more examples rightly than b": decided only if the interval leaves out 0."""
    verdict = "undecided" if not comparison.decided else "reproduced" if comparison.difference > 0 else "not reproduced"
    return Verdict(claim, verdict, str(comparison))


def _rightly(rows: pd.DataFrame) -> np.ndarray:
    """How often each example is answered rightly, over the seeds."""
    if len({len(correct) for correct in rows["correct"]}) != 1:
        raise ValueError("the rows were not measured on as many examples")
    return np.mean([[int(digit) for digit in correct] for correct in rows["correct"]], axis=0)


def _percent(accuracy: float, error: float) -> str:
    return f"{100 * accuracy:.1f}" + ("" if math.isnan(error) else f" ± {100 * error:.1f}")
