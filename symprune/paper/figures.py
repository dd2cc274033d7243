"""Figures in one style: the same method has the same colour and marker everywhere. With `tables`, the only
writer under figures/.
"""

import itertools
import math
import re
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from symprune.base import paths
from symprune.base.files import write_whole
from symprune.paper.accuracy import accuracies
from symprune.paper.tables import measurements, summarise

# Okabe and Ito's colours can be told apart with any common colour vision; markers tell them apart in print.
_COLOURS = [
    "#000000",
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#7F7F7F",
    "#8B5E00",
    "#B3A800",
]
_MARKERS = "osD^vP*X<>"
# Place in the lists above: scores, then refiners (which never share a legend with scores).
_PLACES = {
    name: place
    for names in (
        [
            "magnitude",
            "wanda",
            "ria",
            "stochria",
            "symwanda",
            "owanda",
            "ri",
            "symmetric",
            "lp_norm",
            "general_diagonal",
        ],
        ["none", "dsnot", "r2dsnot", "exact_swap"],
    )
    for place, name in enumerate(names)
}

STYLE = {
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "pdf.fonttype": 42,
}


def method_style(method: str) -> dict:
    """Colour and marker of a score or refiner by its name; variants of one family share the colour and are
    filled differently.
    """
    place = _PLACES.get(re.match(r"\w*", method)[0], len(_COLOURS) - 1)
    colour = _COLOURS[place]
    return {
        "color": colour,
        "marker": _MARKERS[place],
        "markerfacecolor": "white" if re.search("[(+]", method) else colour,
    }


def perplexity_dots(frame: pd.DataFrame, columns: str = "pattern", index: str = "method") -> Figure:
    """Perplexity by method, one panel per model and pattern: a dot per seed, mean and standard deviation, the
    dense model as a line.
    """
    models, patterns = frame["model"].unique(), [name for name in frame[columns].unique() if name != "dense"]
    is_dense = frame["method"] == "dense"
    methods = list(dict.fromkeys(frame.loc[~is_dense, index]))
    with plt.rc_context(STYLE):
        size = (
            0.065 * max(map(len, methods)) + 2.2 * len(patterns),
            0.5 + len(models) * (0.5 + 0.27 * len(methods)),
        )
        shape = len(models), len(patterns)
        fig, axes = plt.subplots(
            *shape, figsize=size, squeeze=False, sharex=True, sharey=True, layout="constrained"
        )
        for ax, (model, panel) in zip(axes.flat, itertools.product(models, patterns), strict=True):
            rows = frame[(frame["model"] == model) & (frame[columns] == panel)]
            dense = frame.loc[(frame["model"] == model) & is_dense, "perplexity"]
            for y, method in enumerate(methods):
                values, style = rows.loc[rows[index] == method, "perplexity"], method_style(method)
                ax.plot(values, [y] * len(values), linestyle="none", markersize=4.5, **style)
                if len(values) > 1:
                    ax.errorbar(
                        values.mean(),
                        y + 0.3,
                        xerr=values.std(),
                        color=style["color"],
                        capsize=2,
                        linewidth=1,
                    )
            if len(dense):
                ax.axvline(dense.iloc[0], color="black", linewidth=0.9, linestyle=":")
                ax.annotate(
                    "dense",
                    (dense.iloc[0], 0),
                    (3, 2),
                    ("data", "axes fraction"),
                    "offset points",
                    fontsize=7,
                )
            ax.set(
                xscale="log",
                yticks=range(len(methods)),
                yticklabels=methods,
                title=panel if len(models) == 1 else f"{model}\n{panel}",
            )
        axes[0][0].set_ylim(len(methods) - 0.4, -0.6)
        fig.supxlabel("perplexity (lower is better)", fontsize=9)
        _plain_log_ticks(axes[0][0], "x")
    return fig


def perplexity_curves(
    frame: pd.DataFrame,
    x: str,
    label: str,
    log_x: bool = False,
    hue: str = "method",
    categorical: bool = False,
) -> Figure:
    """Perplexity against a swept quantity, one curve per method (or `hue`), see `sweep_curves`."""
    return sweep_curves(
        frame, x, label, {"perplexity": "perplexity (lower is better)"}, hue, log_x, categorical, log_y=True
    )


def sweep_curves(
    frame: pd.DataFrame,
    x: str,
    label: str,
    values: dict[str, str],
    hue: str = "method",
    log_x: bool = False,
    categorical: bool = False,
    log_y: bool = False,
) -> Figure:
    """Values against a swept quantity: a panel per model and value, a curve per `hue`, bars of one standard
    deviation over repetitions.

    values: column -> label of the axis. Rows without the quantity (x missing) are level lines. categorical:
    equally spaced, in order, so that infinity has a place. Ticks along x stand where something was measured.
    """
    models = list(frame["model"].unique()) if "model" in frame else [None]
    with plt.rc_context(STYLE):
        size = (4.6, 3.2) if len(values) == 1 else (3.3 * len(values), 3.0)
        fig, axes = plt.subplots(
            len(models),
            len(values),
            figsize=(size[0], size[1] * len(models)),
            squeeze=False,
            layout="constrained",
        )
        for model, row in zip(models, axes, strict=True):
            rows = frame if model is None else frame[frame["model"] == model]
            decades = log_x and not categorical and rows[x].nunique() > 1  # a single point spans no decade
            for (value, name), ax in zip(values.items(), row, strict=True):
                ax.set(xlabel=label, ylabel=name, title=model if len(models) > 1 else "")
                ax.set_xscale("log" if decades else "linear")
                _sweep(ax, rows, x, value, hue, categorical)
                if log_y:
                    ax.set_yscale("log")
                    _plain_log_ticks(ax, "y")
        handles, labels = axes[0][0].get_legend_handles_labels()
        fig.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=min(4 if len(values) > 1 else 3, len(labels)),
            fontsize=8,
        )
    return fig


def _sweep(ax: Axes, frame: pd.DataFrame, x: str, value: str, hue: str, categorical: bool) -> None:
    swept, level = frame[frame[x].notna()], frame[frame[x].isna()]
    positions = sorted(swept[x].unique())
    styles = _hue_styles(hue, list(swept[hue].unique()), list(level["method"].unique()))
    for name, rows in summarise(swept, value, by=[hue, x]).groupby(hue, sort=False):
        rows = rows.sort_values(x)
        at = [positions.index(v) for v in rows[x]] if categorical else rows[x]
        ax.errorbar(
            at,
            rows["mean"],
            yerr=rows["std"].fillna(0),
            capsize=3,
            markersize=5,
            label=_hue_label(hue, name),
            **styles[name],
        )
    for (method, name), rows in level.groupby(
        ["method", hue] if hue != "method" else ["method", "method"], sort=False, dropna=False
    ):
        of_a_curve = name in styles and hue != "method"
        colour = (
            styles[name]["color"]
            if of_a_curve
            else "black"
            if method == "dense"
            else method_style(method)["color"]
        )
        label = f"{method}, {_hue_label(hue, name)}" if of_a_curve and len(styles) > 1 else method
        ax.axhline(
            rows[value].mean(),
            color=colour,
            linewidth=1,
            linestyle=":" if method == "dense" else "--",
            label=label,
        )
    labels = ["∞" if p == math.inf else f"{p:g}" if isinstance(p, float) else str(p) for p in positions]
    ax.set_xticks(range(len(positions)) if categorical else positions, labels)  # where something was measured
    ax.set_xticks([], minor=True)


def _hue_styles(hue: str, names: list, methods: list[str]) -> dict:
    """A style for each curve: its method's own, or one that none of the methods drawn beside it has."""
    if hue == "method":
        return {name: method_style(name) for name in names}
    taken = {method_style(method)["color"] for method in methods}
    free = [
        {"color": colour, "marker": marker}
        for colour, marker in zip(_COLOURS[1:], _MARKERS[1:], strict=True)
        if colour not in taken
    ]
    return {name: free[place % len(free)] for place, name in enumerate(names)}


def _hue_label(hue: str, name: object) -> str:
    if isinstance(name, str):
        return name
    return f"{hue.rsplit('.', 1)[-1]} = {name:g}" if isinstance(name, float) else f"{hue} = {name}"


def prediction_dots(frame: pd.DataFrame) -> Figure:
    """How far g of a whole mask is from what single removals predict: a row per method and construction, a
    dot per sparsity.

    Left g over the sum of the costs, right the squared g over the sum of the squared costs; medians over
    linears, darker is sparser.
    """
    medians = (
        frame.groupby(["method", "construction", "sparsity"], sort=False)[["ratio", "ratio_squared"]]
        .median()
        .reset_index()
    )
    names = list(dict.fromkeys(zip(medians["method"], medians["construction"], strict=True)))
    sparsities = sorted(medians["sparsity"].unique())
    shades = plt.get_cmap("Blues")(np.linspace(0.35, 1, len(sparsities)))
    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(
            1, 2, figsize=(7.2, 0.9 + 0.22 * len(names)), sharey=True, layout="constrained"
        )
        for ax, value, label in zip(
            axes,
            ("ratio", "ratio_squared"),
            ("$g$ / sum of costs", "squared $g$ / sum of squared costs"),
            strict=True,
        ):
            for shade, sparsity in zip(shades, sparsities, strict=True):
                rows = medians[medians["sparsity"] == sparsity]
                at = [names.index(name) for name in zip(rows["method"], rows["construction"], strict=True)]
                ax.plot(
                    rows[value],
                    at,
                    linestyle="none",
                    marker="o",
                    markersize=4.5,
                    color=shade,
                    label=f"{sparsity:.0%} removed",
                )
            ax.axvline(1, color="black", linewidth=0.9, linestyle=":")
            ax.set(xscale="log", xlabel=label)
            _plain_log_ticks(ax, "x")
        axes[0].set(
            yticks=range(len(names)),
            yticklabels=[f"{method}: {construction}" for method, construction in names],
        )
        axes[0].invert_yaxis()
        fig.legend(
            *axes[1].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=len(sparsities),
            fontsize=8,
        )
    return fig


def agreement_curves(frame: pd.DataFrame) -> Figure:
    """Overlap of SymWanda's masks with Wanda's and with magnitude pruning's against the scale of y: mean over
    linears, and their range.
    """
    with plt.rc_context(STYLE):
        fig, ax = plt.subplots(figsize=(4.6, 2.8), layout="constrained")
        for name in ("wanda", "magnitude"):
            by_scale, style = frame.groupby("scale")[name], method_style(name)
            ax.plot(by_scale.mean(), label=f"with {name}", markersize=5, **style)
            ax.fill_between(
                by_scale.mean().index,
                by_scale.min(),
                by_scale.max(),
                color=style["color"],
                alpha=0.12,
                linewidth=0,
            )
        smallest = frame.loc[frame["scale"] > 0, "scale"].min()
        ax.set_xscale("symlog", linthresh=smallest)
        ax.set(xlabel="factor on y", ylabel="Jaccard overlap of masks", ylim=(None, 1.02), xlim=(0, None))
        ax.legend(fontsize=8)
    return fig


def heat_map(frame: pd.DataFrame, x: str, y: str) -> Figure:
    """Perplexity where two hyperparameters meet, written into the cells; darker is worse."""
    table = frame.pivot_table(index=y, columns=x, values="perplexity", sort=True)
    with plt.rc_context(STYLE | {"axes.grid": False}):
        fig, ax = plt.subplots(
            figsize=(1.6 + 0.75 * table.shape[1], 1.1 + 0.5 * table.shape[0]), layout="constrained"
        )
        image = ax.imshow(table, cmap="Oranges", aspect="auto")
        middle = (table.to_numpy().min() + table.to_numpy().max()) / 2
        for (i, j), value in np.ndenumerate(table.to_numpy()):
            ax.text(
                j,
                i,
                f"{value:.4g}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if value > middle else "black",
            )
        ax.set(
            xticks=range(table.shape[1]),
            xticklabels=[f"{v:g}" for v in table.columns],
            xlabel=x.rsplit(".", 1)[-1],
        )
        ax.set(
            yticks=range(table.shape[0]),
            yticklabels=[f"{v:g}" for v in table.index],
            ylabel=y.rsplit(".", 1)[-1],
        )
        fig.colorbar(image, label="perplexity")
    return fig


def accuracy_bars(frame: pd.DataFrame) -> Figure:
    """Zero-shot accuracy by method and refinement, one panel per model and task: bars of one standard error,
    the dense model as a line.

    frame: rows of `Experiment.zero_shot`. Bars begin at 0.
    """
    cells = accuracies(frame)
    models, tasks = cells["model"].unique(), cells["task"].unique()
    pruned = cells[cells["method"] != "dense"]
    methods, refinements = list(pruned["method"].unique()), list(pruned["refine"].unique())
    width, n_columns = 0.8 / len(refinements), min(len(tasks), 4)
    n_rows = math.ceil(len(tasks) / n_columns)
    with plt.rc_context(STYLE):
        size = (0.8 + 2.6 * n_columns, (0.5 + 2.2 * n_rows) * len(models))
        fig, axes = plt.subplots(
            len(models) * n_rows, n_columns, figsize=size, squeeze=False, sharey=True, layout="constrained"
        )
        grid = axes.reshape(len(models), -1)
        for ax in grid[:, len(tasks) :].flat:
            ax.set_visible(False)
        for ax, (model, task) in zip(
            grid[:, : len(tasks)].flat, itertools.product(models, tasks), strict=True
        ):
            of = cells[(cells["model"] == model) & (cells["task"] == task)].set_index(["method", "refine"])
            for place, refine in enumerate(refinements):
                present = [method for method in methods if (method, refine) in of.index]
                values = of.loc[[(method, refine) for method in present]]
                at = [
                    methods.index(method) + (place - (len(refinements) - 1) / 2) * width for method in present
                ]
                errors = values["stderr"].fillna(0)
                ax.bar(
                    at,
                    values["acc"],
                    width,
                    yerr=errors,
                    capsize=2,
                    color=method_style(refine)["color"],
                    alpha=0.75,
                    label=refine,
                )
            if ("dense", "dense") in of.index:
                ax.axhline(
                    of.loc[("dense", "dense"), "acc"],
                    color="black",
                    linewidth=0.9,
                    linestyle=":",
                    label="dense",
                )
            ax.set(
                xticks=range(len(methods)),
                xticklabels=methods,
                title=task if len(models) == 1 else f"{model}\n{task}",
            )
        axes[0][0].set_ylim(bottom=0)  # once all bars are drawn: it ends the scaling of every panel
        axes[0][0].set_ylabel("accuracy (higher is better)")
        fig.legend(
            *axes[0][0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=len(refinements) + 1,
            fontsize=8,
        )
    return fig


def save_figure(fig: Figure, profile: str, name: str, data: pd.DataFrame | None = None) -> Figure:
    """Write fig_<name>.png and .pdf, the same bytes for the same figure, and as .csv the data that no table
    holds; returns the figure.
    """
    folder = paths.figures(profile)
    folder.mkdir(parents=True, exist_ok=True)
    fig.savefig(folder / f"fig_{name}.png", metadata={"Software": None})
    fig.savefig(folder / f"fig_{name}.pdf", metadata={"CreationDate": None})
    if data is not None:
        write_whole(folder / f"fig_{name}.csv", measurements(data).to_csv(index=False))
    plt.close(fig)  # the caller shows it once, by returning it
    return fig


def _plain_log_ticks(ax: Axes, which: str) -> None:
    """Ticks at round numbers within the axis, written out, few enough not to collide."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    axis = ax.xaxis if which == "x" else ax.yaxis
    low, high = ax.get_xlim() if which == "x" else ax.get_ylim()
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps: Sequence[int] = (
        (1, 2, 5) if math.log10(high / low) < 1.5 else (1, 3) if math.log10(high / low) < 2.2 else (1,)
    )
    ticks = [tick for d in decades for step in steps if low <= (tick := step * 10.0**d) <= high]
    if len(ticks) < 3 and high < 10 * low:  # a narrow range: evenly spaced instead
        ticks = [tick for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}" if value >= 1 else f"{value:g}"))
    axis.set_minor_locator(NullLocator())
