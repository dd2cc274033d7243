"""Figures of measured rows, each drawn by one function and returned; `style.save_figure` keeps it."""

import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from symprune.paper.accuracy import accuracies
from symprune.paper.style import COLOURS, MARKERS, STYLE, method_style, plain_log_ticks
from symprune.paper.tables import summarise


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
        plain_log_ticks(axes[0][0], "x")
    return fig


def perplexity_curves(
    frame: pd.DataFrame,
    x: str,
    label: str,
    hue: str = "method",
    scale: str = "linear",
) -> Figure:
    """Perplexity against a swept quantity, one curve per method (or `hue`), see `sweep_curves`."""
    values = {"perplexity": "perplexity (lower is better)"}
    return sweep_curves(frame, x, label, values, hue, scale, log_y=True)


def sweep_curves(
    frame: pd.DataFrame,
    x: str,
    label: str,
    values: dict[str, str],
    hue: str = "method",
    scale: str = "linear",
    log_y: bool = False,
) -> Figure:
    """Values against a swept quantity: a panel per model and value, a curve per `hue`.

    Bars are one standard deviation over repetitions. values: column -> label of the axis. Rows without the
    quantity (x missing) are level lines. scale: of x, "linear", "log", or "categorical" (equally spaced, in
    order, so that infinity has a place). Ticks along x stand where something was measured.
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
            decades = scale == "log" and rows[x].nunique() > 1  # a single point spans no decade
            for (value, name), ax in zip(values.items(), row, strict=True):
                ax.set(xlabel=label, ylabel=name, title=model if len(models) > 1 else "")
                ax.set_xscale("log" if decades else "linear")
                _sweep(ax, rows, x, value, hue, scale == "categorical")
                if log_y:
                    ax.set_yscale("log")
                    plain_log_ticks(ax, "y")
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
        for colour, marker in zip(COLOURS[1:], MARKERS[1:], strict=True)
        if colour not in taken
    ]
    return {name: free[place % len(free)] for place, name in enumerate(names)}


def _hue_label(hue: str, name: object) -> str:
    if isinstance(name, str):
        return name
    return f"{hue.rsplit('.', 1)[-1]} = {name:g}" if isinstance(name, float) else f"{hue} = {name}"


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
