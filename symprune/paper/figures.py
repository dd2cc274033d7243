"""Figures of measured rows that compare no two of them, each drawn by one function with its caption;
`style.save_figure` keeps it, `differences` has those that compare.
"""

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.transforms import ScaledTranslation

from symprune.paper.accuracy import accuracies, chance_of
from symprune.paper.compare import in_words, paired_accuracy
from symprune.paper.differences import differences
from symprune.paper.style import GREYS, METHODS, STYLE, Picture, method_style, plain_log_ticks
from symprune.paper.tables import summarise


def sweep_curves(
    frame: pd.DataFrame,
    x: str,
    label: str,
    values: dict[str, str],
    hue: str = "method",
    scale: str = "linear",
    log_y: bool = False,
    chance: dict[str, float] | None = None,
) -> Picture:
    """Values against a swept quantity: a panel per model and value, a curve per `hue`.

    values: column -> label of the axis. Rows without the quantity (x missing) are level lines. scale: of x,
    "linear" or "log". chance: value -> what chance alone would give, a line of dashes and dots. Ticks along x
    stand where something was measured.
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
            several = rows[x].nunique() > 1  # a single point spans no decade
            for (value, name), ax in zip(values.items(), row, strict=True):
                ax.set(xlabel=label, ylabel=name, title=model if len(models) > 1 else "")
                ax.set_xscale(scale if several else "linear")
                _sweep(ax, rows, x, value, hue)
                if chance and value in chance:
                    ax.axhline(chance[value], color="#606060", linewidth=1, linestyle="-.", label="chance")
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
    repeated = frame[frame[x].notna()].groupby([hue, x]).size().max() > 1
    caption = (
        f"{'; '.join(values.values())}, against {label}: means"
        + (", whiskers one standard deviation over repetitions" if repeated else " of one measurement each")
        + (". Level lines: what has no such setting" if frame[x].isna().any() else "")
        + (". Dashes and dots: what chance alone would give." if chance else ".")
    )
    return Picture(fig, _sentence(caption), _spoken(frame, x, label, values, hue))


def _sweep(ax: Axes, frame: pd.DataFrame, x: str, value: str, hue: str) -> None:
    swept, level = frame[frame[x].notna()], frame[frame[x].isna()]
    positions = sorted(swept[x].unique())
    styles = _hue_styles(hue, list(swept[hue].unique()))
    middle = (len(styles) - 1) / 2
    for place, (name, rows) in enumerate(summarise(swept, value, by=[hue, x]).groupby(hue, sort=False)):
        rows = rows.sort_values(x)
        aside = ScaledTranslation((place - middle) * 3 / 72, 0, ax.figure.dpi_scale_trans)  # 3 points each
        drawn = ax.errorbar(
            rows[x],
            rows["mean"],
            yerr=rows["std"].fillna(0),
            capsize=3,
            markersize=5,
            label=_hue_label(hue, name),
            **styles[name],
        )
        for artist in drawn.get_children():  # equal curves do not hide each other
            artist.set_transform(ax.transData + aside)
    for (method, name), rows in level.groupby(
        ["method", hue] if hue != "method" else ["method", "method"], sort=False, dropna=False
    ):
        of_a_curve = name in styles and hue != "method"
        colour = styles[name]["color"] if of_a_curve else method_style(method)["color"]
        label = f"{method}, {_hue_label(hue, name)}" if of_a_curve and len(styles) > 1 else method
        line = ":" if method == "dense" else "--"
        ax.axhline(rows[value].mean(), color=colour, linewidth=1, linestyle=line, label=label)
    labels = [f"{p:g}" if isinstance(p, float) else str(p) for p in positions]
    ax.set_xticks(positions, labels)  # where something was measured
    ax.set_xticks([], minor=True)


def _hue_styles(hue: str, names: list) -> dict:
    """A style for each curve: its method's own, or a grey where it is no method."""
    if hue == "method" or all(name in METHODS for name in names):
        return {name: method_style(name) for name in names}
    greys = [{"color": colour, "marker": marker} for colour, marker in GREYS]
    return {name: greys[place % len(greys)] for place, name in enumerate(names)}


def _hue_label(hue: str, name: object) -> str:
    if isinstance(name, str):
        return name
    return f"{hue.rsplit('.', 1)[-1]} = {name:g}" if isinstance(name, float) else f"{hue} = {name}"


def _spoken(frame: pd.DataFrame, x: str, label: str, values: dict[str, str], hue: str) -> str:
    """What the curves show, in words: where each begins and ends."""
    parts = []
    for value, name in values.items():
        means = frame[frame[x].notna()].groupby([hue, x], sort=False)[value].mean()
        for curve, of in means.groupby(hue, sort=False):
            of = of.droplevel(hue).sort_index()
            ends = f"{of.iloc[0]:.3g} at {of.index[0]:g}, {of.iloc[-1]:.3g} at {of.index[-1]:g}"
            parts.append(f"{name}, {_hue_label(hue, curve)}: {ends}")
    return f"Curves against {label}. {'; '.join(parts)}."


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def heat_map(frame: pd.DataFrame, x: str, y: str) -> Picture:
    """Perplexity where two hyperparameters meet, against where both are 0, written into the cells."""
    neither = (frame[x] == 0) & (frame[y] == 0)
    cells = frame.assign(**{name: frame[name].mask(neither) for name in (x, y)}, both=neither, of="all")
    found = differences(cells, "both", True, ["of", y, x]) if len(frame) > 1 else None
    rows = [] if found is None else found.rows.to_dict("records")
    table = frame.pivot_table(index=y, columns=x, values="perplexity", sort=True)
    effects = pd.DataFrame(0.0, index=table.index, columns=table.columns)
    decided = []
    for row in rows:
        effects.loc[row[y], row[x]] = row["effect"]
        if not row["low"] <= 0 <= row["high"]:
            decided.append((row[y], row[x]))
    logs = np.log1p(effects.to_numpy())
    reach = max(float(np.abs(logs).max()), 0.01)
    with plt.rc_context(STYLE | {"axes.grid": False}):
        size = 1.6 + 0.85 * table.shape[1], 1.1 + 0.5 * table.shape[0]
        fig, ax = plt.subplots(figsize=size, layout="constrained")
        ax.imshow(logs, cmap="PuOr_r", aspect="auto", vmin=-reach, vmax=reach)
        for (i, j), effect in np.ndenumerate(effects.to_numpy()):
            here = effects.index[i], effects.columns[j]
            text = f"{table.to_numpy()[i, j]:.4g}" if here == (0, 0) else in_words(effect)
            colour = "white" if abs(logs[i, j]) > 0.6 * reach else "black"
            weight = "bold" if here in decided else "normal"
            ax.text(j, i, text, ha="center", va="center", fontsize=8, color=colour, weight=weight)
        names = [name.rsplit(".", 1)[-1] for name in (x, y)]
        ax.set_xticks(range(table.shape[1]), [f"{v:g}" for v in table.columns])
        ax.set_yticks(range(table.shape[0]), [f"{v:g}" for v in table.index])
        ax.set(xlabel=names[0], ylabel=names[1])
    caption = (
        f"Perplexity by {names[0]} and {names[1]}: at 0 and 0 the perplexity itself, elsewhere the difference"
        " from it (purple: less is lost, orange: more). Bold: the 95 % interval leaves out zero, all holding"
        " together."
    )
    told = "; ".join(
        f"{names[1]} {row[y]:g}, {names[0]} {row[x]:g}: {in_words(row['effect'])}" for row in rows
    )
    return Picture(fig, caption, f"Heat map of differences of perplexity. {told}.")


def accuracy_dots(frame: pd.DataFrame) -> Picture:
    """Zero-shot accuracy of each start and refinement beside chance and the dense model; and the difference
    from the start, with its interval.

    frame: rows of `Accuracy`; of several tasks the plain mean.
    """
    pruned = frame[frame["method"] != "dense"]
    tasks, models = list(frame["task"].unique()), list(frame["model"].unique())
    cases = list(dict.fromkeys(zip(pruned["method"], pruned["refine"], strict=True)))
    names = [start if refine == "none" else f"{start} + {refine}" for start, refine in cases]
    chances = [chance_of(task) for task in tasks]
    n_compared = sum(refine != "none" for _, refine in cases) * len(models)
    told = []
    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(
            len(models),
            2,
            figsize=(6.4, (1.1 + 0.24 * len(cases)) * len(models)),
            sharey="row",
            squeeze=False,
            layout="constrained",
        )
        for model, (left, right) in zip(models, axes, strict=True):
            of = frame[frame["model"] == model]
            for place, ((start, refine), name) in enumerate(zip(cases, names, strict=True)):
                mine = of[(of["method"] == start) & (of["refine"] == refine)]
                mean, error = _percent(mine)
                shape = {"capsize": 2.5, "elinewidth": 1, "markersize": 5, **method_style(name)}
                left.errorbar(mean, place, xerr=1.96 * error, **shape)
                told.append(f"{name} {mean:.1f} %")
                if refine != "none":
                    base = of[(of["method"] == start) & (of["refine"] == "none")]
                    found = paired_accuracy(mine, base, n_compared)
                    effect, low, high = 100 * np.array([found.difference, found.low, found.high])
                    right.errorbar(effect, place, xerr=[[effect - low], [high - effect]], **shape)
                    told[-1] += f" ({effect:+.1f} points against {start}, {low:+.1f} to {high:+.1f})"
            if not (dense := of[of["method"] == "dense"]).empty:
                left.axvline(_percent(dense)[0], color="black", linewidth=1, linestyle=":", label="dense")
                told.append(f"dense {_percent(dense)[0]:.1f} %")
            if None not in chances:
                chance = 100 * float(np.mean([each for each in chances if each is not None]))
                left.axvline(chance, color="#606060", linewidth=1, linestyle="-.", label="chance")
                told.append(f"chance {chance:.1f} %")
            reach = 1.08 * max(map(abs, right.get_xlim()))
            right.axvspan(0, reach, color=METHODS["r2dsnot"][0], alpha=0.07, linewidth=0)
            right.axvline(0, color="#4D4D4D", linewidth=1)
            right.set(xlim=(-reach, reach), xlabel="points against the start\n(right: more)")
            left.set(yticks=range(len(cases)), yticklabels=names, title=model if len(models) > 1 else "")
            left.set(xlabel="accuracy, %" if len(tasks) == 1 else f"accuracy, %, mean of {len(tasks)} tasks")
            left.set_ylim(len(cases) - 0.4, -0.6)
        fig.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    caption = (
        f"Zero-shot accuracy ({', '.join(tasks)}). Left: dots are accuracies, whiskers 95 % intervals over"
        " examples, dotted the dense model, dashes and dots what guessing would give. Right: the difference"
        f" from the start, whiskers its 95 % interval, paired over examples, widened so that all {n_compared}"
        " hold together. Shaded: more is answered rightly than by the start."
    )
    return Picture(fig, caption, f"Dots with intervals. {'; '.join(told)}.")


def _percent(rows: pd.DataFrame) -> tuple[float, float]:
    """Accuracy in percent, the mean of the tasks, and its standard error over examples (0 where there is
    none).
    """
    cells = accuracies(rows)
    error = math.sqrt((cells["stderr"].fillna(0) ** 2).sum()) / len(cells)
    return 100 * cells["acc"].mean(), 100 * error
