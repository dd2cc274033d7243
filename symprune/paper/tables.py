"""From measured rows to the tables people read; with `figures`, the only writer under figures/."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from symprune.base import paths
from symprune.base.files import write_whole


@dataclass(frozen=True)
class Whole:
    """A table that a notebook shows with every row and all of every cell: HTML that wraps, and plain text."""

    frame: pd.DataFrame

    def __repr__(self) -> str:
        return self.frame.to_string()

    def _repr_html_(self) -> str:
        with pd.option_context("display.max_colwidth", None):
            html = self.frame.to_html(notebook=True)
        wrapping = "text-align: left; white-space: normal; overflow-wrap: break-word; vertical-align: top"
        return html.replace("<td>", f'<td style="{wrapping}">')


def summarise(
    frame: pd.DataFrame,
    value: str = "perplexity",
    by: Sequence[str] = ("model", "pattern", "method", "refine"),
) -> pd.DataFrame:
    """Mean, standard deviation over calibration seeds (divides by n - 1; nan for one measurement) and their
    number.
    """
    groups = frame.groupby(list(by), sort=False, dropna=False)[value]
    return groups.agg(["mean", "std", "count"]).rename(columns={"count": "n"}).reset_index()


def perplexity_table(
    frame: pd.DataFrame, digits: int = 4, index: Sequence[str] = ("method",), columns: str = "pattern"
) -> pd.DataFrame:
    """Perplexities as `mean ± standard deviation`, one row per method and one column per pattern; the dense
    model stands in every column.

    Without a deviation where there was one measurement: the dense model, and methods that use no calibration
    data. In a sweep (an index such as "score.p") a row without the swept hyperparameter goes by its method's
    name.
    """
    frame = frame.reset_index(drop=True)
    names = [name for name in frame[columns].unique() if name != "dense" and pd.notna(name)]
    dense = frame["method"] == "dense"
    rows = pd.concat([frame[~dense], *(frame[dense].assign(**{columns: name}) for name in names)]).sort_index(
        kind="stable"
    )
    return spread_table(rows if names else frame[dense], "perplexity", digits, index, columns)


def spread_table(
    frame: pd.DataFrame, value: str, digits: int, index: Sequence[str], columns: str
) -> pd.DataFrame:
    """A value as `mean ± standard deviation` over repetitions, rows and columns in the order of the frame."""
    frame, names = named(frame, index), [name for name in frame[columns].unique() if pd.notna(name)]
    summary = summarise(frame, value, by=[*dict.fromkeys([*index, columns])])
    summary["cell"] = [
        mean_and_std(mean, std, digits) for mean, std in zip(summary["mean"], summary["std"], strict=True)
    ]
    order = list(dict.fromkeys(map(tuple, frame[list(index)].itertuples(index=False))))
    table = summary.pivot(index=list(index), columns=columns, values="cell").reindex(columns=names).fillna("")
    table = table.loc[[key if len(index) > 1 else key[0] for key in order]]
    table.columns.name = None
    return table


def divergence_table(
    frame: pd.DataFrame, index: Sequence[str] = ("method",), columns: str = "pattern"
) -> pd.DataFrame:
    """Divergence from the dense model in nats per token, and in brackets how often both have the same first
    choice: means ± standard deviations over repetitions; the dense model itself has no row.
    """
    pruned = frame[frame["method"] != "dense"].assign(percent=100 * frame["agreement"])
    kl, percent = (spread_table(pruned, name, 3, index, columns) for name in ("kl", "percent"))
    return kl.where(kl == "", kl + " (" + percent + " %)")


def crossings(frame: pd.DataFrame, x: str) -> pd.DataFrame:
    """Where two methods' mean log-perplexities change places along x: one row per crossing, at the meeting
    point of straight lines.

    Columns model, `lower before`, `lower after`, `between`, `at`; rows without x (the dense model) take no
    part.
    """
    swept = frame[frame[x].notna()]
    logs = np.log(swept["perplexity"]).groupby([swept["model"], swept["method"], swept[x]], sort=False).mean()
    found = []
    for model, of in logs.groupby("model", sort=False):
        curves = of.droplevel("model").unstack(x).sort_index(axis=1)
        at = curves.columns.to_numpy()
        for a, b in itertools.combinations(dict.fromkeys(of.index.get_level_values("method")), 2):
            gap = (curves.loc[a] - curves.loc[b]).to_numpy()
            for i in np.flatnonzero(gap[:-1] * gap[1:] < 0):
                before, after = (a, b) if gap[i] < 0 else (b, a)
                meeting = at[i] + (at[i + 1] - at[i]) * gap[i] / (gap[i] - gap[i + 1])
                found.append((model, before, after, f"{at[i]:g} and {at[i + 1]:g}", round(float(meeting), 3)))
    return pd.DataFrame(found, columns=["model", "lower before", "lower after", "between", "at"])


def named(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """The frame with the method's name in these columns where they are empty: hyperparameters that it does
    not have.
    """
    return frame.assign(
        **{name: frame[name].astype(object).where(frame[name].notna(), frame["method"]) for name in columns}
    )


def mean_and_std(mean: float, std: float, digits: int) -> str:
    """`12.34 ± 0.56`, `digits` significant digits of the mean, and as many decimals for the deviation."""
    decimals = decimals_of(mean, digits)
    text = f"{round(mean, decimals):.{max(decimals, 0)}f}"
    return text if std is None or math.isnan(std) else f"{text} ± {round(std, decimals):.{max(decimals, 0)}f}"


def decimals_of(value: float, digits: int) -> int:
    """How many decimals show `digits` significant digits of a value (negative: it is rounded left of the
    point).
    """
    return digits - 1 - math.floor(math.log10(abs(value))) if value and math.isfinite(value) else 0


def save_table(table: pd.DataFrame, profile: str, name: str, data: pd.DataFrame | None = None) -> Whole:
    """Write table_<name>.md as shown and table_<name>.csv (of `data`, unrounded, if given); returns the table
    to be shown whole.

    Below the table, its file states the protocol under which `data` was measured.
    """
    folder = paths.figures(profile)
    folder.mkdir(parents=True, exist_ok=True)
    text = table.reset_index().to_markdown(index=False, disable_numparse=True) + "\n"
    if data is not None and (stated := protocol(data)):
        text += f"\n*{stated}*\n"
    write_whole(folder / f"table_{name}.md", text)
    write_whole(
        folder / f"table_{name}.csv",
        (table.reset_index() if data is None else measurements(data)).to_csv(index=False),
    )
    return Whole(table)


def protocol(rows: pd.DataFrame) -> str:
    """How measured rows came about, in one line: evaluation text, calibration text, draws, propagation,
    dtype; "" if rows do not say.

    A quantity that differs between rows is listed with all its values.
    """

    def listed(of: pd.DataFrame, name: str) -> str:
        return ", ".join(
            f"{value:g}" if isinstance(value, float) else str(value)
            for value in dict.fromkeys(of[name].dropna())
        )

    parts = []
    if "evaluated_on" in rows:
        corpus, n_windows, seq_len = (
            listed(rows, name) for name in ("evaluated_on", "n_windows", "eval_seq_len")
        )
        told = rows["articles"].dropna() if "articles" in rows else []
        n_articles = ", ".join(str(n) for n in dict.fromkeys(len(set(of)) for of in told))
        of_articles = f", of {n_articles} articles" if n_articles else ""
        parts.append(f"Evaluated on {corpus}: {n_windows} windows of {seq_len} tokens{of_articles}.")
    if "task" in rows:
        parts.append(f"Evaluated on {listed(rows, 'task')}: {listed(rows, 'n')} examples.")
    if "propagate" in rows and len(calibrated := rows[rows["propagate"].notna()]):
        corpus, n_windows, seq_len, *how = (
            listed(calibrated, name) for name in ("corpus", "n_calib", "seq_len", "seed", "propagate")
        )
        parts.append(
            f"Calibrated on {corpus}: {n_windows} windows of {seq_len} tokens, seed {how[0]}, {how[1]}"
            " propagation."
        )
    if "dtype" in rows:
        parts.append(f"{listed(rows, 'dtype')}.".capitalize())
    return " ".join(parts)


def measurements(rows: pd.DataFrame) -> pd.DataFrame:
    """What of measured rows goes into a CSV: all but what there is of every window, example or linear, which
    the records keep.
    """
    return rows.drop(
        columns=[
            name
            for name in rows
            if name in ("window_losses", "articles", "correct", "recipe_key") or name.startswith("linear_")
        ]
    )


def saved_by(profile: str, notebook: str) -> list[Path]:
    """Every table and figure that a notebook saved: their names begin with its number."""
    return sorted(
        file for kind in ("fig", "table") for file in paths.figures(profile).glob(f"{kind}_{notebook[:2]}_*")
    )
