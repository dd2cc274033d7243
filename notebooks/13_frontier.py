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
# # What quality costs: a mask, a better mask, and what is done to the weights that stay
#
# **Questions** (ours). Swaps of the mask, least squares on the kept weights (*refit*), and the same under the
# symmetric objective with whole matrices (*both sides*, notebook 01): does each lower the perplexity, alone
# and after the others, and what does it cost in seconds and in memory? SparseGPT (Frantar and Alistarh) is
# the peer: its mask and its sweep over the columns, written from its equations.
#
# **What would refute them.** A paired comparison on the same windows whose interval lies on the other side of
# zero.

# %% tags=["parameters"]
profile = "smoke"
models = ["embedded"]
device = "cpu"
dtype = "float64"
calibration_dtype = "float64"
calibration_corpus = "embedded"
seq_len = 64
propagate = "pruned"
evaluation_corpus = "embedded"
n_eval = 2
eval_seq_len = 64
batch_size = 2
frontier_patterns = {"0.6": [0]}
frontier_windows = [2]
frontier_windows_seeds = [0]
updated_masks = ["ria"]
updates = ["none", "refit"]
peers = ["wanda"]
frontier_swaps = 1
refit_iterations = 2
digits = 4

# %%
import pandas as pd

from symprune import RIA, ExactSwap, Recipe, Refit, SymmetricRefit, Wanda
from symprune.measure import Experiment, Protocol
from symprune.methods.recipe import parse_pattern
from symprune.methods.update import Sequential, SparseGPT
from symprune.paper.claims import family
from symprune.paper.differences import difference_dots, differences
from symprune.paper.frontier import frontier, predicted_gib, seconds_of_one_machine
from symprune.paper.style import save_figure
from symprune.paper.tables import divergence_table, perplexity_table, save_table
from symprune.paper.verdicts import Claim, judge_all, save_verdicts

# %% [markdown]
# ## Protocol
#
# Masks within output rows from RIA with alpha = 1. With propagation the next layer sees the updated weights.
# H, which both sides need, is of the dense model. Damping and coefficients are the defaults, chosen on
# validation text ([updates](../docs/updates.md)); iterations are the profile's. Each pattern has its own
# draws of calibration text.

# %%
protocol = Protocol.of(globals(), n_calib=frontier_windows[0])
masks = {
    "wanda": (Wanda(), None),
    "ria": (RIA(alpha=1.0), None),
    "ria, swaps": (RIA(alpha=1.0), ExactSwap(max_cycles=frontier_swaps)),
    "sparsegpt": (SparseGPT(), None),
}
kinds = {
    "none": None,
    "refit": Refit(max_iterations=refit_iterations),
    "both sides": SymmetricRefit(max_iterations=refit_iterations),
    "sequential": Sequential(),
}
seeds_of = {parse_pattern(text): drawn for text, drawn in frontier_patterns.items()}
cells = [(mask, update) for mask in updated_masks for update in updates]
cells += [(peer, "sequential" if peer == "sparsegpt" else "none") for peer in peers]
recipes = {
    Recipe(masks[mask][0], pattern, masks[mask][1], kinds[update]): (mask, update)
    for pattern in seeds_of
    for mask, update in cells
}
rows = Experiment(protocol).run(
    [None, *recipes], seeds={recipe: seeds_of[recipe.pattern] for recipe in recipes}
)
of = rows["recipe_key"].map({recipe.key: cell for recipe, cell in recipes.items()})
rows = rows.assign(
    mask=[cell[0] if isinstance(cell, tuple) else "dense" for cell in of],
    update=[cell[1] if isinstance(cell, tuple) else "none" for cell in of],
    draws=rows.groupby("pattern")["seed"].transform("nunique"),
)
rows["way"] = [
    mask if kept == "none" else f"{mask}, {kept}"
    for mask, kept in zip(rows["mask"], rows["update"], strict=True)
]

# %% [markdown]
# ## Masks against updates

# %%
save_table(
    perplexity_table(rows, digits, index=["model", "pattern", "draws", "mask"], columns="update"),
    profile,
    "13_frontier",
    data=rows,
)

# %% [markdown]
# Beside the dense model: divergence in nats per token, and in brackets how often both would choose the same
# next token.

# %%
save_table(
    divergence_table(rows, index=["model", "pattern", "mask"], columns="update"),
    profile,
    "13_divergence",
    data=rows,
)

# %% [markdown]
# ## Against the mask alone

# %%
pruned = rows[rows["mask"] != "dense"]
save_figure(
    difference_dots(differences(pruned, "way", "ria", ["model", "pattern", "way"], name="RIA's mask alone")),
    profile,
    "13_differences",
)

# %% [markdown]
# ## Quality against seconds and memory
#
# Means over draws. Seconds are of the whole pruning, statistics and H included, of its draws the least, for
# what else the machine ran only adds. They compare within a pattern: of the one machine that measured most of
# its recipes (nan: not measured there). Bytes are the cost model's prediction of the peak with the model in
# memory ([scaling](../docs/scaling.md)).

# %% tags=["nbval-ignore-output"]
costs = pruned.assign(
    gib=predicted_gib(pruned, list(recipes), protocol),
    seconds_prune=seconds_of_one_machine(pruned, profile),
)
columns = ["perplexity", "kl", "agreement", "seconds_prune", "gib"]
shown = costs.groupby(["model", "pattern", "way"], sort=False)[columns].mean()
save_table(shown.round(3), profile, "13_costs", data=costs)

# %% tags=["nbval-ignore-output"]
axes = {"seconds_prune": "seconds", "gib": "GiB at the peak, predicted"}
save_figure(frontier(costs, axes, "perplexity", "perplexity", "way"), profile, "13_frontier")

# %% [markdown]
# ## More calibration text
#
# Does an update gain from it where a mask does not? The first pattern, by calibration windows, on
# the draws of `frontier_windows_seeds`.

# %%
first = next(iter(seeds_of))
sizes = {
    n: Experiment(Protocol.of(globals(), seeds=frontier_windows_seeds, n_calib=n)).run(
        [recipe for recipe, cell in recipes.items() if cell in cells[:2] and recipe.pattern == first]
    )
    for n in frontier_windows
}
by_size = pd.concat([of.assign(windows=n) for n, of in sizes.items()])
by_size["update"] = by_size["update"].fillna("none") if "update" in by_size else "none"
save_table(
    perplexity_table(by_size, digits, index=["model", "update"], columns="windows"),
    profile,
    "13_calibration",
    data=by_size,
)

# %% [markdown]
# ## Checks

# %%
assert pruned.groupby(["model", "pattern"])["sparsity"].agg(lambda s: s.max() - s.min()).lt(1e-3).all(), (
    "an update keeps the zeros, and every mask of a pattern as many weights"
)

# %% [markdown]
# ## Verdicts

# %%
claims = [
    Claim("refit_below_mask", "Refit loses less than the mask alone", "ria, refit", "ria"),
    Claim(
        "both_sides_below_refit",
        "Refit on both sides loses less than on one",
        "ria, both sides",
        "ria, refit",
    ),
    Claim("swaps_refit_below_refit", "Swaps before a refit gain", "ria, swaps, refit", "ria, refit"),
    Claim("swaps_refit_below_swaps", "A refit after swaps gains", "ria, swaps, refit", "ria, swaps"),
    Claim(
        "swaps_both_sides_below_swaps_refit",
        "After swaps, refit on both sides loses less than on one",
        "ria, swaps, both sides",
        "ria, swaps, refit",
    ),
    Claim(
        "refit_below_sparsegpt",
        "Refit of RIA's mask loses less than SparseGPT",
        "ria, refit",
        "sparsegpt, sequential",
    ),
    Claim(
        "swaps_refit_below_sparsegpt",
        "Swaps and refit lose less than SparseGPT",
        "ria, swaps, refit",
        "sparsegpt, sequential",
    ),
]
measured = set(pruned["way"])
judged = [claim for claim in claims if {claim.a, claim.b} <= measured]
save_verdicts(
    judge_all(pruned, judged, ["model", "pattern"], family("13_frontier"), "way"), profile, "13_frontier"
)
