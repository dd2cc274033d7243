"""What one set of rows loses more or less than another, with its interval: as data, and as the figures that
show what is claimed.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from symprune.paper.compare import in_words, paired
from symprune.paper.style import GREYS, METHODS, STYLE, Picture, method_style, plain_log_ticks

APART = 1.0  # what loses more than this beyond its reference (+100 %) would hide all else: a panel of its own
_WIDTH = 5.8  # inches, of a figure that is still read on a narrow page


@dataclass(frozen=True)
class Differences:
    """Perplexity against a reference's: a row per case with `effect`, `low`, `high` (fractions of the
    reference), `draws` and `base` (the reference's own perplexity).

    by: the columns that name a case, panels first. reference: in words.
    """

    rows: pd.DataFrame
    by: list[str]
    reference: str
    over: str

    @property
    def measured(self) -> str:
        """What dots, whiskers and ticks are, in words."""
        together = f", widened so that all {len(self.rows)} hold together" if len(self.rows) > 1 else ""
        draws = " Small ticks: each draw of calibration text." if any(map(len, self.rows["draws"])) else ""
        return (
            f"Perplexity against that of {self.reference}: dots are the difference in percent, whiskers its"
            f" 95 % interval (paired over {self.over}){together}.{draws} Shaded: less is lost than by"
            f" {self.reference}."
        )


def differences(
    rows: pd.DataFrame, column: str, reference: object, by: Sequence[str], name: str = ""
) -> Differences:
    """Every case of `by` against the rows whose `column` is `reference` and that are alike in all else of
    `by`.

    by: its last column is what varies within a panel. A reference without a value in one of them stands in
    every case of it. name: of the reference, in words ("": its value). Intervals hold together with 95 %.
    Raises ValueError where a case has no reference.
    """
    within = [each for each in by if each != column]
    is_reference = rows[column] == reference
    cases = rows[~is_reference].groupby(list(by), sort=False)
    found, over = [], ""
    for case, of in cases:
        values = dict(zip(by, case, strict=True))
        of_case = pd.Series({each: values[each] for each in within}, dtype=object)
        alike = rows[within].eq(of_case) | rows[within].isna()
        base = rows[is_reference & alike.all(axis=1)]
        if base.empty:
            raise ValueError(f"{values}: there is no {column} = {reference!r} to compare with")
        comparison = paired(of, base, cases.ngroups)
        over = "; ".join(filter(None, [comparison.over, comparison.note]))
        ratios = comparison.ratio, comparison.low, comparison.high
        effects = dict(zip(("effect", "low", "high"), (ratio - 1 for ratio in ratios), strict=True))
        draws = tuple(ratio - 1 for ratio in comparison.draws)
        found.append(values | effects | {"draws": draws, "base": base["perplexity"].mean()})
    columns = [*by, "effect", "low", "high", "draws", "base"]
    return Differences(pd.DataFrame(found, columns=columns), list(by), name or str(reference), over)


def difference_dots(of: Differences) -> Picture:
    """A panel per case of all but the last column, a dot with its interval per value of the last; what loses
    more than twice the reference stands to the right, on a logarithmic axis of its own.
    """
    panels = list(of.rows.groupby(of.by[:-1], sort=False))
    names = {key: list(rows[of.by[-1]]) for key, rows in panels}
    far = of.rows["effect"] > APART
    heights = [len(names[key]) + 1.6 for key, _ in panels]
    near = of.rows[~far]
    dots = [near["effect"].reindex(rows.index).abs().max() for _, rows in panels]  # nan: all of them are far
    own = [dot > 5 * max(np.nanmin([*dots, APART]), 0.05) for dot in dots]
    alike = [rows for (_, rows), alone in zip(panels, own, strict=True) if not alone]
    shared = _reach(pd.concat(alike).pipe(lambda rows: rows[rows["effect"] <= APART]))
    longest = max(len(_shown(name)) for name in of.rows[of.by[-1]])
    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(
            len(panels),
            1 + far.any(),
            figsize=(_WIDTH + 0.06 * max(0, longest - 18), 0.5 + 0.2 * sum(heights)),
            height_ratios=heights,
            width_ratios=[5, 2] if far.any() else [1],
            sharey="row",
            squeeze=False,
            layout="constrained",
        )
        one_model = of.rows["model"].nunique() == 1 if "model" in of.rows else False
        for (key, rows), line, alone in zip(panels, axes, own, strict=True):
            told = [
                value for name, value in zip(of.by, key, strict=False) if not (one_model and name == "model")
            ]
            title = ", ".join(map(str, told)) + f" ({of.reference}: {rows['base'].iloc[0]:.4g})"
            line[0].set_title(title + (", an axis of its own" if alone else ""), loc="left", fontsize=9)
            for place, (_, row) in enumerate(rows.iterrows()):
                ax = line[int(far[row.name])]
                _dot(ax, row, place, _style(row[list(reversed(of.by))]), "x", bool(far[row.name]))
            _side(line[0], _reach(rows[~far[rows.index]]) if alone else shared, "x")
            line[0].set(yticks=range(len(rows)), yticklabels=[_shown(name) for name in names[key]])
            line[0].set_ylim(len(rows) - 0.4, -0.6)
        axes[-1][0].set_xlabel(f"against {of.reference} (left: less is lost)")
        if far.any():
            apart = of.rows[far]
            for ax in axes[:, 1]:
                _apart(ax, apart, "x")
            axes[-1][1].set_xlabel("times")
    caption = of.measured + (
        f" To the right, on a logarithmic axis: what has more than twice the perplexity of {of.reference}."
        if far.any()
        else ""
    )
    return Picture(fig, caption + _cut(fig), f"Dots with intervals. {spoken(of)}")


def difference_curves(of: Differences, label: str) -> Picture:
    """Differences along the last column, equally spaced, a curve per case of the one before; one that loses
    more than twice the reference somewhere has a panel of its own, on a logarithmic axis.
    """
    x, hue = of.by[-1], of.by[-2]
    models = list(of.rows["model"].unique()) if "model" in of.by[:-2] else [None]
    at = sorted(of.rows[x].unique())
    far = of.rows.groupby(hue, sort=False)["effect"].transform("max") > APART
    with plt.rc_context(STYLE):
        shape = len(models), 1 + far.any()
        fig, axes = plt.subplots(
            *shape,
            figsize=(_WIDTH, 0.4 + 2.9 * len(models)),
            squeeze=False,
            width_ratios=[5, 2][: 1 + far.any()],
            layout="constrained",
        )
        curves = list(of.rows[hue].unique())
        for model, line in zip(models, axes, strict=True):
            rows = of.rows if model is None else of.rows[of.rows["model"] == model]
            for place, curve in enumerate(curves):
                mine = rows[rows[hue] == curve].sort_values(x)
                offset = 0.12 * (place - (len(curves) - 1) / 2) if len(curves) > 1 else 0.0
                style = _curve_style(hue, curve, place)
                for ax, points in ((line[0], mine[~far[mine.index]]), (line[-1], mine[far[mine.index]])):
                    places = [at.index(value) + offset for value in points[x]]
                    for position, (index, row) in zip(places, points.iterrows(), strict=True):
                        _dot(ax, row, position, style, "y", bool(far[index]))
                    if len(points):
                        heights = points["effect"] + far[points.index]
                        ax.plot(places, heights, label=_of(hue, curve), markersize=5, **style)
            _side(line[0], _reach(rows[~far[rows.index]]), "y")
            line[0].set_ylabel(f"perplexity against {of.reference}\n(below: less is lost)")
            if far.any():
                _apart(line[1], rows[far[rows.index]], "y")
                line[1].set_ylabel(f"times that of {of.reference}, log axis")
            for ax in line:
                ax.set_xticks(range(len(at)), [_shown(value) for value in at])
                ax.set(xlim=(-0.5, len(at) - 0.5), title=model if len(models) > 1 else "")
                ax.grid(axis="x", visible=False)
            line[0].set_xlabel(label)
        if len(curves) > 1 or far.any():
            entries = [ax.get_legend_handles_labels() for ax in axes[0]]
            handles, labels = ([each for entry in entries for each in entry[i]] for i in (0, 1))
            fig.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    outside = ", ".join(_of(hue, curve) for curve in of.rows.loc[far, hue].unique())
    apart = f" On a panel of its own, logarithmic: {outside}."
    caption = of.measured + (apart if far.any() else "") + _cut(fig)
    return Picture(fig, caption, f"Curves with intervals along {label}. {spoken(of)}")


def spoken(of: Differences, most: int = 14) -> str:
    """The differences in words, all of them where they are few, else the smallest and the largest of each
    panel.
    """
    parts = []
    few = len(of.rows) <= most
    for key, rows in of.rows.groupby(of.by[:-1], sort=False):
        shown = (
            rows if few else rows.loc[list(dict.fromkeys([rows["effect"].idxmin(), rows["effect"].idxmax()]))]
        )
        cells = [
            "{} {} ({} to {})".format(_shown(case), *map(in_words, numbers))
            for case, *numbers in shown[[of.by[-1], "effect", "low", "high"]].itertuples(index=False)
        ]
        between = "" if few else "from "
        parts.append(f"{', '.join(map(_shown, key))}: {between}{(', ' if few else ' to ').join(cells)}")
    return f"Perplexity against {of.reference}; {'; '.join(parts)}."


def _dot(ax: Axes, row: pd.Series, place: float, style: dict, along: str, far: bool) -> None:
    """A dot with its whisker and a tick per draw; far: on a logarithmic axis, as the factor 1 + effect."""
    one = int(far)
    values = np.array([row["effect"], row["low"], row["high"]]) + one
    whisker: dict[str, Any] = {f"{along}err": [[values[0] - values[1]], [values[2] - values[0]]], **style}
    at = (values[:1], [place]) if along == "x" else ([place], values[:1])
    ax.errorbar(*at, capsize=2.5, elinewidth=1, markersize=5, **whisker)
    draws = np.array(row["draws"]) + one
    tick: dict[str, Any] = {
        "linestyle": "none",
        "marker": "|" if along == "x" else "_",
        "markersize": 4,
        "alpha": 0.6,
    }
    places = [place] * len(draws)
    ax.plot(*((draws, places) if along == "x" else (places, draws)), color=style["color"], **tick)


def _reach(rows: pd.DataFrame) -> float:
    """How far an axis around 0 must go for dots and whiskers, at most to twice the reference and at least to
    twice what the dots need where an interval says nothing.
    """
    if rows.empty:
        return 0.0
    dots, whiskers = rows["effect"].abs().max(), rows[["low", "high"]].abs().max(axis=None)
    return float(min(whiskers, max(5 * dots, 0.02), APART))


def _side(ax: Axes, reach: float, along: str) -> None:
    """The axis of differences, with its zero and the side on which less is lost."""
    limits = (-1.08 * (reach or 0.1), 1.08 * (reach or 0.1))
    ax.set(**{f"{along}lim": limits})
    shade, line = (ax.axvspan, ax.axvline) if along == "x" else (ax.axhspan, ax.axhline)
    shade(limits[0], 0, color="#009E73", alpha=0.07, linewidth=0)
    line(0, color="#4D4D4D", linewidth=1)
    axis = ax.xaxis if along == "x" else ax.yaxis
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(PercentFormatter(1, decimals=0 if reach > 0.04 else 1))


def _apart(ax: Axes, rows: pd.DataFrame, along: str) -> None:
    """The logarithmic axis of factors."""
    factors = 1 + rows["effect"]
    low, high = min(1.5, factors.min() / 1.3), max(factors.max() * 1.6, 4)
    ax.set(**{f"{along}scale": "log", f"{along}lim": (max(low, 0.5), high)})
    if low < 1:
        (ax.axvline if along == "x" else ax.axhline)(1, color="#4D4D4D", linewidth=1)
    plain_log_ticks(ax, along)


def _curve_style(hue: str, curve: object, place: int) -> dict:
    if _is_method(curve):
        return method_style(str(curve))
    colour, marker = GREYS[place % len(GREYS)]
    return {"color": colour, "marker": marker, "markerfacecolor": colour}


def _style(case: pd.Series) -> dict:
    """Of the first value of a case that is a method."""
    return method_style(next((str(value) for value in case if _is_method(value)), ""))


def _is_method(value: object) -> bool:
    name = re.match(r"\w*", str(value).rsplit(" + ", 1)[-1])
    return name is not None and name[0] in METHODS


def _cut(fig: Figure) -> str:
    """Said where a whisker is longer than its panel."""
    for ax in fig.axes:
        for container in cast(list[ErrorbarContainer], ax.containers):
            for bars in container.lines[2]:
                box = bars.get_datalim(ax.transData)
                for ends, limits in ((box.intervalx, ax.get_xlim()), (box.intervaly, ax.get_ylim())):
                    if min(ends) < min(limits) or max(ends) > max(limits):
                        return " Whiskers are cut at the edge of a panel."
    return ""


def _of(column: str, value: object) -> str:
    return value if isinstance(value, str) else f"{column.rsplit('.', 1)[-1]} = {_shown(value)}"


def _shown(value: object) -> str:
    if isinstance(value, float | np.floating):
        return "∞" if np.isinf(value) else f"{value:g}"
    return str(value)
