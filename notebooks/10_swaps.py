# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Swaps by their exact effect: how many, how exact, how far from the whole Gram matrix
#
# **Questions** (ours). `ExactSwap` knows the Gram matrix G of a linear's inputs, `SketchSwap` a few columns
# of a sketch of it, the exact mean and the exact diagonal. How many columns are enough, and what do they
# save? How many swaps of a row pay?
#
# **What would refute them.** A paired comparison on the same windows whose interval lies on the other side of
# zero.
#
# The defaults of both are chosen here, so this notebook evaluates on the *validation* articles alone.

# %% tags=["parameters"]
profile = "smoke"
models = ["embedded"]
device = "cpu"
dtype = "float64"
calibration_dtype = "float64"
calibration_corpus = "embedded"
n_calib = 2
seq_len = 64
seeds = [0]
ablation_seeds = [0]
evaluation_corpus = "embedded"
n_eval = 2
eval_seq_len = 64
batch_size = 2
swapped_masks = ["wanda"]
swapped_patterns = ["0.6"]
swap_cycles = 1
swap_cycle_sweep = [1]
sketch_ranks = [16]
digits = 4

# %%
from dataclasses import replace

from symprune import RIA, ExactSwap, Recipe, SketchSwap, Wanda
from symprune.measure import Experiment, Protocol
from symprune.methods.recipe import method_label, parse_pattern
from symprune.paper.claims import family
from symprune.paper.differences import difference_curves, difference_dots, differences
from symprune.paper.frontier import predicted_gib, seconds_of_one_machine
from symprune.paper.style import save_figure
from symprune.paper.tables import perplexity_table, save_table
from symprune.paper.verdicts import Claim, judge_all, save_verdicts

# %% [markdown]
# ## Protocol
#
# Statistics of the dense model. Masks of Wanda, and of RIA with alpha = 1. At most `swap_cycles` swaps of a
# row.

# %%
protocol = Protocol.of(globals(), propagate="dense", evaluation_split="validation")
scores = {"wanda": Wanda(), "ria": RIA(alpha=1.0)}
masks = [
    Recipe(scores[name], parse_pattern(pattern)) for name in swapped_masks for pattern in swapped_patterns
]

# %% [markdown]
# ## How many columns of a sketch
#
# Rank 0: the mean and the diagonal alone, which is what DSnoT tries to move. `exact_swap`: the whole matrix.

# %%
ways = [None, *(SketchSwap(rank, swap_cycles) for rank in sketch_ranks), ExactSwap(swap_cycles)]
swapped = {replace(mask, refine=way): mask for mask in masks for way in ways}
rows = Experiment(protocol).run(list(swapped))
rows["mask"] = rows["recipe_key"].map({recipe.key: mask.label for recipe, mask in swapped.items()})
save_table(
    perplexity_table(rows, digits, index=["model", "refine"], columns="mask"), profile, "10_ranks", data=rows
)

# %% [markdown]
# Against the mask that each started from.

# %%
of = differences(rows, "refine", "none", ["model", "mask", "refine"], name="the start")
save_figure(difference_dots(of), profile, "10_ranks")

# %% [markdown]
# ## What they cost
#
# MiB of a decoder layer's Gram matrices or sketches while they are gathered, as the cost model has it
# ([scaling](../docs/scaling.md)); seconds of masks and swaps, the least of all masks of a pattern, on the
# machine that measured most of these recipes. `benchmarks/sketch.py` times statistics, too.

# %% tags=["nbval-ignore-output"]
costs = rows.assign(
    mib=1024 * predicted_gib(rows, list(swapped), protocol, "grams"),
    seconds_prune=seconds_of_one_machine(rows, profile),
)
shown = costs.groupby(["model", "pattern", "refine"], sort=False)[["mib", "seconds_prune"]].min()
save_table(shown.round(1), profile, "10_costs", data=costs)

# %% [markdown]
# ## How many swaps
#
# `ExactSwap` lowers its objective on the calibration text with every cycle, `SketchSwap` that under its
# sketch; the validation text says when to stop. From the first mask.

# %%
swappers = [ExactSwap(max_cycles=n) for n in swap_cycle_sweep]
swappers += [SketchSwap(rank=64, max_cycles=n) for n in swap_cycle_sweep]
by_cycles = Experiment(replace(protocol, seeds=tuple(ablation_seeds))).run(
    [masks[0], *(replace(masks[0], refine=swapper) for swapper in swappers)]
)
by_cycles["swaps"] = by_cycles["refine"].str.extract(r"^(\w+)")[0].where(by_cycles["refine"] != "none")
of = differences(by_cycles, "refine", "none", ["model", "swaps", "refine.max_cycles"], name="the start")
save_figure(difference_curves(of, "cycles"), profile, "10_cycles", data=by_cycles)

# %% [markdown]
# ## Checks

# %%
assert rows.groupby(["model", "pattern"])["sparsity"].nunique().eq(1).all(), "a swap keeps every count"

# %% [markdown]
# ## Verdicts
#
# On validation text.

# %%
sketch, exact = (method_label(way) for way in (SketchSwap(max_cycles=swap_cycles), ExactSwap(swap_cycles)))
claims = [
    Claim("sketch_swap_of_128_below_start", "128 columns lose less than the initial mask", sketch, "none"),
    Claim("sketch_swap_of_128_close", "128 columns stay within 3 % of the whole matrix", sketch, exact, 0.03),
]
measured = [claim for claim in claims if SketchSwap().rank in sketch_ranks]
save_verdicts(judge_all(rows, measured, ["model", "mask"], family("10_swaps"), "refine"), profile, "10_swaps")
