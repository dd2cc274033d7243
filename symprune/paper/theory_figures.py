"""Figures of the theory: how single removals predict a mask, and what lies between Wanda and magnitude."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from symprune.paper.style import STYLE, Picture, method_style, plain_log_ticks


def prediction_dots(frame: pd.DataFrame) -> Picture:
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
            plain_log_ticks(ax, "x")
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
    caption = (
        "The objective g of a whole mask over what single removals predict: left over the sum of their costs,"
        " right squared, over the sum of their squares. Dots are medians over linears, darker where more is"
        " removed; dotted: what was predicted came true."
    )
    largest = medians[medians["sparsity"] == sparsities[-1]]
    told = (
        f"{value}: from {largest[column].min():.2g} to {largest[column].max():.2g}"
        for value, column in (("g over the sum", "ratio"), ("squared", "ratio_squared"))
    )
    return Picture(fig, caption, f"Dots by method. At {sparsities[-1]:.0%} removed, {'; '.join(told)}.")


def agreement_curves(frame: pd.DataFrame) -> Picture:
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
    caption = (
        "Jaccard overlap of SymWanda's masks with Wanda's and with magnitude pruning's, against the factor on"
        " y: means over linears, the band from the smallest to the largest."
    )
    means = frame.groupby("scale")[["wanda", "magnitude"]].mean()
    told = "; ".join(
        f"at {scale:g}: {row['wanda']:.2f} with wanda, {row['magnitude']:.2f} with magnitude"
        for scale, row in means.iloc[[0, -1]].iterrows()
    )
    return Picture(fig, caption, f"Two curves of overlap. {told}.")
