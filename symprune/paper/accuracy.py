"""Zero-shot accuracies of measured rows, as a table."""

import math

import pandas as pd

from symprune.paper.compare import rightly

# One over the number of choices; the tasks of ARC have four with few exceptions.
_CHANCE = {
    "boolq": 1 / 2,
    "rte": 1 / 2,
    "winogrande": 1 / 2,
    "hellaswag": 1 / 4,
    "arc_easy": 1 / 4,
    "arc_challenge": 1 / 4,
    "openbookqa": 1 / 4,
    "continuation": 1 / 4,
}

_INDEX = ["model", "pattern", "method", "refine"]


def chance_of(task: str) -> float | None:
    """How often guessing is right; None for a task whose number of choices is not known here."""
    return _CHANCE.get(task)


def accuracies(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per model, pattern, method, refinement and task: accuracy averaged over calibration seeds, its
    standard error over examples.

    rows: of `Accuracy`. The standard error (nan for one example) is that of examples answered by
    one fixed set of models.
    """
    cells = []
    for key, of in rows.groupby([*_INDEX, "task"], sort=False):
        answers = rightly(of)
        error = answers.std(ddof=1) / math.sqrt(len(answers)) if len(answers) > 1 else math.nan
        cells.append((*key, answers.mean(), error, len(answers)))
    return pd.DataFrame(cells, columns=[*_INDEX, "task", "acc", "stderr", "n"])


def accuracy_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracies in percent as `mean ± standard error over examples`, one row per model, pattern,
    method and refinement, a column per task.

    Where there are several tasks, the last column is their plain mean.
    """
    cells = accuracies(rows)
    tasks = list(cells["task"].unique())
    cells["cell"] = [_percent(acc, error) for acc, error in zip(cells["acc"], cells["stderr"], strict=True)]
    table = cells.pivot(index=_INDEX, columns="task", values="cell")[tasks]
    if len(tasks) > 1:
        groups = cells.groupby(_INDEX, sort=False)
        errors = groups["stderr"].apply(lambda of: math.sqrt((of**2).sum(skipna=False)) / len(of))
        table["mean"] = [_percent(groups["acc"].mean()[key], errors[key]) for key in table.index]
    table.columns.name = None
    return table.loc[list(dict.fromkeys(cells[_INDEX].itertuples(index=False, name=None)))]


def _percent(accuracy: float, error: float) -> str:
    return f"{100 * accuracy:.1f}" + ("" if math.isnan(error) else f" ± {100 * error:.1f}")
