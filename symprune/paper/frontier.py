"""What quality costs: recipes by what they leave of a model, and by the seconds and bytes that they take."""

from collections import Counter
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from symprune.base import paths
from symprune.base.records import Store
from symprune.measure import Protocol
from symprune.methods.recipe import Recipe
from symprune.models.load import DTYPES, locate
from symprune.paper.style import STYLE, Picture, method_style, plain_log_ticks
from symprune.pruning.checkpoint import skeleton
from symprune.pruning.cost import GIB, Cost, Shape, asked_by


def predicted_gib(
    rows: pd.DataFrame, recipes: Sequence[Recipe], protocol: Protocol, part: str = "in_memory"
) -> pd.Series:
    """GiB that pruning each row's model by its recipe, one of these, takes as the cost model has it.

    part: of a `Cost`, in bytes; the peak with the model in memory unless told otherwise.
    """
    shapes = {model: Shape.of(skeleton(locate(model), protocol.dtype)) for model in rows["model"].unique()}
    by_key = {recipe.key: recipe for recipe in recipes}
    cases = zip(rows["model"], rows["recipe_key"], strict=True)
    costs = [_cost(by_key[key], shapes[model], protocol) for model, key in cases]
    return pd.Series([getattr(cost, part) / GIB for cost in costs], index=rows.index)


def _cost(recipe: Recipe, shape: Shape, protocol: Protocol) -> Cost:
    return Cost(
        shape,
        protocol.n_calib,
        protocol.seq_len,
        DTYPES[protocol.dtype].itemsize,
        protocol.batch_size,
        {"pruned": 2, "dense": 1}[protocol.propagate] if recipe.uses else 0,
        computed=DTYPES[protocol.calibration_dtype or protocol.dtype].itemsize,
        **asked_by(recipe),
    )


def seconds_of_one_machine(rows: pd.DataFrame, profile: str) -> pd.Series:
    """`seconds_prune` of the records of one machine for each pattern, of a recipe's draws the least, nan for
    all others: seconds of two machines do not compare, and what else a machine ran only adds. It is the
    machine that measured most recipes, of several the one with most rows.
    """
    machines = {record.key: record.meta["machine"] for record in Store(paths.records(profile))}
    told = rows.assign(machine=rows["record"].map(machines))
    measured = told.groupby(["pattern", "machine"])["recipe_key"].agg(["nunique", "size"])
    ordered = measured.sort_values(["nunique", "size"]).reset_index("machine")
    chosen = ordered.groupby("pattern")["machine"].last()
    seconds = rows["seconds_prune"].where(told["machine"] == rows["pattern"].map(chosen))
    return seconds.where(seconds == seconds.groupby([rows["model"], rows["recipe_key"]]).transform("min"))


def frontier(rows: pd.DataFrame, axes: dict[str, str], value: str, label: str, hue: str) -> Picture:
    """A panel per model, pattern and cost: a point per value of `hue`, and a staircase through those that
    nothing beats in both.

    axes: column of a cost -> label of its axis. Rows are averaged over draws, as geometric means; what has no
    cost (nan) is left out.
    """
    panels = list(rows.groupby([c for c in ("model", "pattern") if c in rows], sort=False))
    alone = "model" not in rows or rows["model"].nunique() == 1
    names = list(rows[hue].unique())
    styles = _styles(names)
    with plt.rc_context(STYLE):
        fig, grid = plt.subplots(
            len(panels),
            len(axes),
            figsize=(3.3 * len(axes), 2.9 * len(panels)),
            squeeze=False,
            layout="constrained",
        )
        for (key, of), line in zip(panels, grid, strict=True):
            points = np.exp(np.log(of[[value, *axes]]).groupby(of[hue], sort=False).mean())
            for (cost, title), ax in zip(axes.items(), line, strict=True):
                for name in names:
                    if name in points.index:
                        at = points.loc[name]
                        ax.plot(
                            at[cost], at[value], markersize=8, markeredgewidth=0.8, label=name, **styles[name]
                        )
                best = unbeaten(points.dropna(subset=cost), cost, value)
                ax.step(best[cost], best[value], where="post", color="#999999", linewidth=1, zorder=0)
                ax.set(
                    xlabel=title,
                    ylabel=label,
                    title=key[-1] if alone else ", ".join(key),
                    xscale="log",
                    yscale="log",
                )
                plain_log_ticks(ax, "x")
                plain_log_ticks(ax, "y")
        handles, labels = grid[0][0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    spoken = "; ".join(
        f"{'' if len(panels) == 1 else ', '.join(key) + ', '}{name}: {of[of[hue] == name][value].mean():.4g}"
        for key, of in panels
        for name in of[hue].unique()
    )
    caption = (
        f"{label} against {' and against '.join(axes.values())}, both logarithmic, lower is better; geometric"
        " means over draws, of seconds the least. The line joins what nothing beats in both. Seconds compare"
        " within a panel: in each they are one machine's."
    )
    return Picture(fig, caption[:1].upper() + caption[1:], f"Points. {label}: {spoken}.")


def unbeaten(points: pd.DataFrame, cost: str, value: str) -> pd.DataFrame:
    """The rows than which no other has both a lower value and a cost as low, by rising cost."""
    ordered = points.sort_values([cost, value])
    return ordered[ordered[value] < ordered[value].astype(float).cummin().shift(fill_value=np.inf)]


_CALLED = {"swaps": "exact_swap", "both sides": "symmetric_refit", "sequential": "sparsegpt"}


def _styles(names: Sequence[str]) -> dict[str, dict]:
    """The look of what was done last; each further name that would look the same is filled in another way."""
    fills = ["full", "none", "left", "right", "top", "bottom"]
    styles: dict[str, dict] = {}
    seen: Counter[tuple[str, str]] = Counter()
    for name in names:
        last = name.rsplit(", ", 1)[-1]
        style = method_style(_CALLED.get(last, last))
        look = style["color"], style["marker"]
        styles[name] = style | {
            "fillstyle": fills[seen[look] % len(fills)],
            "markerfacecolor": style["color"],
            "markerfacecoloralt": "white",
            "linestyle": "none",
        }
        seen[look] += 1
    return styles
