"""From measured rows to the tables people read, and to verdicts; with `figures`, the only writer under figures/."""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from symprune.base import paths
from symprune.base.files import write_whole

NOT_RUN = "not run here"
VERDICTS = ("reproduced", "not reproduced", "undecided", NOT_RUN)


def summarise(frame: pd.DataFrame, value: str = "perplexity", by: Sequence[str] = ("model", "pattern", "method", "refine")) -> pd.DataFrame:
    """Mean, standard deviation over calibration seeds (divides by n - 1; nan for one measurement) and their number."""
    groups = frame.groupby(list(by), sort=False, dropna=False)[value]
    return groups.agg(["mean", "std", "count"]).rename(columns={"count": "n"}).reset_index()


def perplexity_table(frame: pd.DataFrame, digits: int = 4, index: Sequence[str] = ("method",), columns: str = "pattern") -> pd.DataFrame:
    """Perplexities as `mean ± standard deviation`, one row per method and one column per pattern; the dense model stands in every column.

    Without a deviation where there was one measurement: the dense model, and methods that use no calibration data. In a sweep
    (an index such as "score.p") a row without the swept hyperparameter goes by its method's name.
    """
    frame = frame.reset_index(drop=True)
    names = [name for name in frame[columns].unique() if name != "dense" and pd.notna(name)]
    dense = frame["method"] == "dense"
    rows = pd.concat([frame[~dense], *(frame[dense].assign(**{columns: name}) for name in names)]).sort_index(kind="stable")
    return spread_table(rows if names else frame[dense], "perplexity", digits, index, columns)


def spread_table(frame: pd.DataFrame, value: str, digits: int, index: Sequence[str], columns: str) -> pd.DataFrame:
    """A value as `mean ± standard deviation` over repetitions, rows and columns in the order of the frame."""
    frame, names = named(frame, index), [name for name in frame[columns].unique() if pd.notna(name)]
    summary = summarise(frame, value, by=[*dict.fromkeys([*index, columns])])
    summary["cell"] = [mean_and_std(mean, std, digits) for mean, std in zip(summary["mean"], summary["std"], strict=True)]
    order = list(dict.fromkeys(map(tuple, frame[list(index)].itertuples(index=False))))
    table = summary.pivot(index=list(index), columns=columns, values="cell").reindex(columns=names).fillna("")
    table = table.loc[[key if len(index) > 1 else key[0] for key in order]]
    table.columns.name = None
    return table


def crossings(frame: pd.DataFrame, x: str) -> pd.DataFrame:
    """Where two methods' mean log-perplexities change places along x: one row per crossing, at the meeting point of straight lines.

    Columns model, `lower before`, `lower after`, `between`, `at`; rows without x (the dense model) take no part.
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
    """The frame with the method's name in these columns where they are empty: hyperparameters that it does not have."""
    return frame.assign(**{name: frame[name].astype(object).where(frame[name].notna(), frame["method"]) for name in columns})


def mean_and_std(mean: float, std: float, digits: int) -> str:
    """`12.34 ± 0.56`, `digits` significant digits of the mean, and as many decimals for the deviation."""
    decimals = decimals_of(mean, digits)
    text = f"{round(mean, decimals):.{max(decimals, 0)}f}"
    return text if std is None or math.isnan(std) else f"{text} ± {round(std, decimals):.{max(decimals, 0)}f}"


def decimals_of(value: float, digits: int) -> int:
    """How many decimals show `digits` significant digits of a value (negative: it is rounded left of the point)."""
    return digits - 1 - math.floor(math.log10(abs(value))) if value and math.isfinite(value) else 0


@dataclass(frozen=True)
class Paired:
    """A paired comparison over evaluation windows: perplexity of a over perplexity of b, with a 95 % interval.

    comparisons: how many are made of which any may decide; the interval is widened so that all hold together with 95 %
    (Bonferroni). what, over: what else is compared, over what else. draws: the ratio with each draw of calibration text, if several.
    """

    ratio: float
    low: float
    high: float
    n_windows: int
    comparisons: int = 1
    what: str = "perplexity"
    over: str = "windows"
    draws: tuple[float, ...] = ()

    @property
    def decided(self) -> bool:
        """Whether the interval leaves out 1."""
        return not self.low <= 1 <= self.high

    def __str__(self) -> str:
        interval = f"{self.low - 1:+.1%} to {self.high - 1:+.1%}"
        jointly = f" for {self.comparisons} comparisons together" if self.comparisons > 1 else ""
        paired_over = f"paired over {self.n_windows} {self.over}"
        lower = f"; lower in {sum(ratio < 1 for ratio in self.draws)} of {len(self.draws)} draws" if self.draws else ""
        return f"{self.ratio - 1:+.1%} {self.what} (95 % interval {interval}{jointly}, {paired_over}{lower})"


def paired(a: pd.DataFrame, b: pd.DataFrame, comparisons: int = 1) -> Paired:
    """Compare two sets of rows of `Experiment.run`, losses averaged over seeds, by Student's t of their differences per window.

    The interval covers the choice of evaluation text. What the draw of calibration text does is told beside it, as the ratio of each seed
    (a side that reads none is the same in all), and as the spread in the tables.
    Raises ValueError if a side has no rows, or the rows were not measured on as many windows.
    """
    if len({len(losses) for rows in (a, b) for losses in rows["window_losses"]}) != 1 or a.empty or b.empty:
        raise ValueError(f"cannot pair {len(a)} rows with {len(b)}: both sides need rows, all on the same evaluation windows")
    losses = [np.mean(np.array(rows["window_losses"].tolist()), axis=0) for rows in (a, b)]
    return replace(paired_logs(losses[0] - losses[1], comparisons), draws=_ratio_of_each_draw(a, b))


def _ratio_of_each_draw(a: pd.DataFrame, b: pd.DataFrame) -> tuple[float, ...]:
    def loss(rows: pd.DataFrame, seed: float) -> float:
        return rows.loc[rows["seed"].isna() | (rows["seed"] == seed), "window_losses"].map(np.mean).mean()

    seeds = sorted({*a["seed"].dropna(), *b["seed"].dropna()})
    logs = [loss(a, seed) - loss(b, seed) for seed in seeds]
    return tuple(np.exp(logs).tolist()) if len(seeds) > 1 and not np.isnan(logs).any() else ()


def paired_logs(difference: Sequence[float] | np.ndarray, comparisons: int = 1, what: str = "perplexity", over: str = "windows") -> Paired:
    """The comparison that follows from log a - log b of each pair, by Student's t."""
    from scipy import stats

    difference = np.asarray(difference, dtype=float)
    n = len(difference)
    mean, error = float(difference.mean()), float(difference.std(ddof=1) / math.sqrt(n)) if n > 1 else math.inf
    reach = float(stats.t.ppf(1 - 0.025 / comparisons, n - 1)) * error if n > 1 else math.inf
    bounds = [math.exp(min(max(x, -700), 700)) for x in (mean, mean - reach, mean + reach)]
    return Paired(*bounds, n_windows=n, comparisons=comparisons, what=what, over=over)


def paired_unevenness(a: pd.DataFrame, b: pd.DataFrame, lines: str) -> Paired:
    """Compare how unevenly masks keep weights over "rows" or "columns", by 1 - normalised entropy, linear by linear.

    a, b: rows of `Experiment.compare_masks`; entropies are averaged over repetitions.
    """
    logs = [np.log(1 - np.array(rows[f"linear_entropy_{lines}"].tolist()).mean(axis=0)) for rows in (a, b)]
    return paired_logs(logs[0] - logs[1], what=f"unevenness over {lines}", over="linears")


@dataclass(frozen=True)
class Verdict:
    """A claim, what was found of it here, and the numbers that decided."""

    claim: str
    verdict: str
    evidence: str

    def __post_init__(self):
        if self.verdict not in VERDICTS:
            raise ValueError(f"a verdict is one of {', '.join(VERDICTS)}, not {self.verdict!r}")


def judge(claim: str, comparison: Paired) -> Verdict:
    """The verdict on "a has lower perplexity than b": decided only if the interval of the ratio leaves out 1."""
    verdict = "undecided" if not comparison.decided else "reproduced" if comparison.ratio < 1 else "not reproduced"
    return Verdict(claim, verdict, str(comparison))


def judge_close(claim: str, comparison: Paired, margin: float = 0.05) -> Verdict:
    """The verdict on "a is as good as b": the whole interval of the ratio lies within 1 ± margin, or the whole of it outside.

    The margin is a choice of this package: about the spread of a perplexity over draws of calibration text.
    """
    inside = 1 - margin <= comparison.low and comparison.high <= 1 + margin
    outside = comparison.high < 1 - margin or comparison.low > 1 + margin
    return Verdict(claim, "reproduced" if inside else "not reproduced" if outside else "undecided", str(comparison))


def save_verdicts(verdicts: Sequence[Verdict], profile: str, notebook: str) -> pd.DataFrame:
    """Keep a notebook's verdicts for the report, and show them."""
    folder = paths.results(profile) / "verdicts"
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / f"{notebook}.json", json.dumps([asdict(v) for v in verdicts], indent=1, ensure_ascii=False) + "\n")
    return pd.DataFrame([asdict(v) for v in verdicts])


def load_verdicts(profile: str) -> pd.DataFrame:
    """Every verdict of a profile, by notebook."""
    rows = []
    for file in sorted((paths.results(profile) / "verdicts").glob("*.json")):
        rows += [{"notebook": file.stem, **verdict} for verdict in json.loads(file.read_text())]
    return pd.DataFrame(rows, columns=["notebook", "claim", "verdict", "evidence"])


def verdict_page(verdicts: pd.DataFrame) -> str:
    """Markdown: how many claims came out how, then one table per notebook."""
    counts = ", ".join(f"{(verdicts['verdict'] == v).sum()} {v}" for v in VERDICTS if (verdicts["verdict"] == v).any())
    parts = [f"**{counts or 'no verdicts yet'}**"]
    for notebook, rows in verdicts.groupby("notebook"):
        parts.append(f"### {notebook}\n\n{rows[['claim', 'verdict', 'evidence']].to_markdown(index=False)}")
    return "\n\n".join(parts)


def save_table(table: pd.DataFrame, profile: str, name: str, data: pd.DataFrame | None = None) -> pd.DataFrame:
    """Write table_<name>.md as shown and table_<name>.csv (of `data`, unrounded, if given); returns the table to be shown.

    Below the table, its file states the protocol under which `data` was measured.
    """
    folder = paths.figures(profile)
    folder.mkdir(parents=True, exist_ok=True)
    text = table.reset_index().to_markdown(index=False, disable_numparse=True) + "\n"
    if data is not None and (stated := protocol(data)):
        text += f"\n*{stated}*\n"
    write_whole(folder / f"table_{name}.md", text)
    write_whole(folder / f"table_{name}.csv", (table.reset_index() if data is None else measurements(data)).to_csv(index=False))
    return table


def protocol(rows: pd.DataFrame) -> str:
    """How measured rows came about, in one line: evaluation text, calibration text, draws, propagation, dtype; "" if rows do not say.

    A quantity that differs between rows is listed with all its values.
    """

    def listed(of: pd.DataFrame, name: str) -> str:
        return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in dict.fromkeys(of[name].dropna()))

    parts = []
    if "evaluated_on" in rows:
        corpus, n_windows, seq_len = (listed(rows, name) for name in ("evaluated_on", "n_windows", "eval_seq_len"))
        parts.append(f"Evaluated on {corpus}: {n_windows} windows of {seq_len} tokens.")
    if "task" in rows:
        parts.append(f"Evaluated on {listed(rows, 'task')}: {listed(rows, 'n')} examples.")
    if "propagate" in rows and len(calibrated := rows[rows["propagate"].notna()]):
        corpus, n_windows, seq_len, *how = (listed(calibrated, name) for name in ("corpus", "n_calib", "seq_len", "seed", "propagate"))
        parts.append(f"Calibrated on {corpus}: {n_windows} windows of {seq_len} tokens, seed {how[0]}, {how[1]} propagation.")
    if "dtype" in rows:
        parts.append(f"{listed(rows, 'dtype')}.".capitalize())
    return " ".join(parts)


def measurements(rows: pd.DataFrame) -> pd.DataFrame:
    """What of measured rows goes into a CSV: all but what there is of every window, example or linear, which the records keep."""
    return rows.drop(columns=[name for name in rows if name in ("window_losses", "correct", "recipe_key") or name.startswith("linear_")])


def saved_by(profile: str, notebook: str) -> list[Path]:
    """Every table and figure that a notebook saved: their names begin with its number."""
    return sorted(file for kind in ("fig", "table") for file in paths.figures(profile).glob(f"{kind}_{notebook[:2]}_*"))


def saved_tables(profile: str) -> dict[str, str]:
    """Markdown of every saved table, by name."""
    return {file.stem.removeprefix("table_"): file.read_text() for file in sorted(paths.figures(profile).glob("table_*.md"))}


def saved_figures(profile: str) -> list[Path]:
    """The PNG of every saved figure."""
    return sorted(paths.figures(profile).glob("fig_*.png"))
