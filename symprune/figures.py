"""Figures in one style: the same method has the same colour and marker everywhere. With `tables`, the only writer under figures/."""

import math
import re
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from symprune import paths
from symprune.results import write_whole
from symprune.tables import measurements, summarise

# Okabe and Ito's colours can be told apart with any common colour vision; markers tell them apart in print.
_COLOURS = ["#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#8B5E00", "#B3A800"]
_MARKERS = "osD^vP*X<>"
# Place in the lists above: scores, then refiners (which never share a legend with scores).
_PLACES = {
    name: place
    for names in (
        ["magnitude", "wanda", "ria", "stochria", "symwanda", "owanda", "ri", "symmetric", "lp_norm", "general_diagonal"],
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
    """Colour and marker of a score or refiner by its name; variants of one family share the colour and are filled differently."""
    place = _PLACES.get(re.match(r"\w*", method)[0], len(_COLOURS) - 1)
    return {"color": _COLOURS[place], "marker": _MARKERS[place], "markerfacecolor": "white" if "(" in method else _COLOURS[place]}


def perplexity_dots(frame: pd.DataFrame, columns: str = "pattern", index: str = "method") -> Figure:
    """Perplexity by method, one panel per pattern: a dot per seed, mean and standard deviation, the dense model as a line."""
    panels = [name for name in frame[columns].unique() if name != "dense"]
    is_dense = frame["method"] == "dense"
    dense, methods = frame.loc[is_dense, "perplexity"], list(dict.fromkeys(frame.loc[~is_dense, index]))
    with plt.rc_context(STYLE):
        size = (0.065 * max(map(len, methods)) + 2.2 * len(panels), 1.0 + 0.27 * len(methods))
        fig, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, sharex=True, sharey=True, layout="constrained")
        for ax, panel in zip(axes[0], panels, strict=True):
            rows = frame[frame[columns] == panel]
            for y, method in enumerate(methods):
                values, style = rows.loc[rows[index] == method, "perplexity"], method_style(method)
                ax.plot(values, [y] * len(values), linestyle="none", markersize=4.5, **style)
                if len(values) > 1:
                    ax.errorbar(values.mean(), y + 0.3, xerr=values.std(), color=style["color"], capsize=2, linewidth=1)
            if len(dense):
                ax.axvline(dense.iloc[0], color="black", linewidth=0.9, linestyle=":", label="dense")
            ax.set(xscale="log", yticks=range(len(methods)), yticklabels=methods, title=panel)
        axes[0][0].invert_yaxis()
        axes[0][-1].legend(loc="lower right", fontsize=7)
        fig.supxlabel("perplexity (lower is better)", fontsize=9)
        _plain_log_ticks(axes[0][0], "x")
    return fig


def perplexity_curves(frame: pd.DataFrame, x: str, label: str, log_x: bool = False, hue: str = "method") -> Figure:
    """Perplexity against a swept quantity, one curve per method, bars of one standard deviation over seeds."""
    with plt.rc_context(STYLE):
        fig, ax = plt.subplots(figsize=(4.6, 3.2), layout="constrained")
        for name, rows in summarise(frame, by=[hue, x]).groupby(hue, sort=False):
            ax.errorbar(rows[x], rows["mean"], yerr=rows["std"].fillna(0), capsize=3, label=name, markersize=5, **method_style(name))
        ax.set(xlabel=label, ylabel="perplexity (lower is better)", yscale="log")
        if log_x:
            ax.set_xscale("log")
        _plain_log_ticks(ax, "y")
        ax.legend(fontsize=8)
    return fig


def heat_map(frame: pd.DataFrame, x: str, y: str) -> Figure:
    """Perplexity where two hyperparameters meet, written into the cells; darker is worse."""
    table = frame.pivot_table(index=y, columns=x, values="perplexity", sort=True)
    with plt.rc_context(STYLE | {"axes.grid": False}):
        fig, ax = plt.subplots(figsize=(1.6 + 0.75 * table.shape[1], 1.1 + 0.5 * table.shape[0]), layout="constrained")
        image = ax.imshow(table, cmap="Oranges", aspect="auto")
        middle = (table.to_numpy().min() + table.to_numpy().max()) / 2
        for (i, j), value in np.ndenumerate(table.to_numpy()):
            ax.text(j, i, f"{value:.4g}", ha="center", va="center", fontsize=8, color="white" if value > middle else "black")
        ax.set(xticks=range(table.shape[1]), xticklabels=[f"{v:g}" for v in table.columns], xlabel=x.rsplit(".", 1)[-1])
        ax.set(yticks=range(table.shape[0]), yticklabels=[f"{v:g}" for v in table.index], ylabel=y.rsplit(".", 1)[-1])
        fig.colorbar(image, label="perplexity")
    return fig


def save_figure(fig: Figure, profile: str, name: str, data: pd.DataFrame | None = None) -> Figure:
    """Write fig_<name>.png and .pdf, the same bytes for the same figure, and as .csv the data that no table holds; returns the figure."""
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
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis = ax.xaxis if which == "x" else ax.yaxis
    low, high = ax.get_xlim() if which == "x" else ax.get_ylim()
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps: Sequence[int] = (1, 2, 5) if math.log10(high / low) < 1.5 else (1, 3) if math.log10(high / low) < 2.2 else (1,)
    axis.set_major_locator(FixedLocator([tick for d in decades for step in steps if low <= (tick := step * 10.0**d) <= high]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axis.set_minor_locator(NullLocator())
