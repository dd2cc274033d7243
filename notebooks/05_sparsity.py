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
# # From 40 % to 80 %
#
# **Claims** (Yi and Richtárik). (a) Wanda and RIA degrade at higher sparsity, and stochRIA, which reads a
# tenth of the entries, stays close to RIA there. (b) R2-DSnoT, started from RIA, loses less than RIA.
#
# **What would refute them.** A paired comparison on the same evaluation windows whose interval lies on the
# other side of zero.

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
propagate = "pruned"
evaluation_corpus = "embedded"
n_eval = 2
eval_seq_len = 64
batch_size = 2
sparsity_sweep = {"0.6": [0]}
digits = 4

# %%
from symprune import RIA, Magnitude, R2DSnoT, Recipe, StochRIA, Wanda
from symprune.measure import Experiment, Protocol
from symprune.methods.recipe import parse_pattern
from symprune.paper.claims import family
from symprune.paper.differences import difference_curves, differences
from symprune.paper.style import save_figure
from symprune.paper.tables import crossings, perplexity_table, save_table
from symprune.paper.verdicts import Claim, expect, judge_all, save_verdicts

# %% [markdown]
# ## Protocol
#
# One axis for all methods; scores compete within an output row. Perplexities at 70 % and above are those of a
# model that no longer works: they tell which method breaks it less, not that one could be used.

# %%
seeds_of = {parse_pattern(text): drawn for text, drawn in sparsity_sweep.items()}
scores = [Magnitude(), Wanda(), RIA(), StochRIA(beta=0.1)]
refined = R2DSnoT(max_cycles=50, cycles_for_width=4096)

# %%
recipes = {
    recipe: drawn
    for pattern, drawn in seeds_of.items()
    for recipe in (*(Recipe(score, pattern) for score in scores), Recipe(RIA(), pattern, refined))
}
rows = Experiment(Protocol.of(globals())).run([None, *recipes], seeds=recipes)
rows.loc[rows["refine"].str.startswith("r2dsnot"), "method"] = "ria + r2dsnot"
rows["draws"] = rows.groupby("pattern")["seed"].transform("nunique")
heading = rows["pattern"] + ", draws: " + rows["draws"].astype(str)
rows["heading"] = heading.where(rows["method"] != "dense", "dense")

# %% [markdown]
# ## Table
#
# Mean ± standard deviation over draws of calibration text; each sparsity has its own draws.

# %%
table = perplexity_table(rows, digits, index=["model", "method"], columns="heading")
save_table(table, profile, "05_sparsity", data=rows)

# %% [markdown]
# ## Figure
#
# Every method against Wanda at the same sparsity; magnitude pruning loses so much more that it has an axis of
# its own.

# %%
rows["swept"] = rows["sparsity"].where(rows["method"] != "dense").round(2)
of = differences(rows[rows["method"] != "dense"], "method", "wanda", ["model", "method", "swept"])
save_figure(difference_curves(of, "sparsity"), profile, "05_sparsity")

# %% [markdown]
# ## Relative degradation
#
# Perplexity over that of the dense model.

# %%
dense = rows[rows["method"] == "dense"].set_index("model")["perplexity"]
relative = rows[rows["method"] != "dense"].assign(perplexity=rows["perplexity"] / rows["model"].map(dense))
table = perplexity_table(relative, digits, index=["model", "method"], columns="heading")
save_table(table, profile, "05_relative_degradation")

# %% [markdown]
# ## Where curves cross
#
# Between which neighbouring sparsities two methods change places (mean over draws), and where the straight
# lines between log-perplexities meet.

# %%
save_table(crossings(rows, x="swept").set_index("model"), profile, "05_crossings")

# %% [markdown]
# ## Checks

# %%
for (model, method, seed), of in rows[rows["method"] != "dense"].groupby(
    ["model", "method", "seed"], dropna=False
):
    expect(
        of.sort_values("swept")["perplexity"].is_monotonic_increasing,
        f"{model}, {method}, seed {seed}: more removed, more lost",
    )

# %% [markdown]
# ## Verdicts
#
# Of what notebooks 02 and 06 do not judge already: each comparison is judged once.

# %%
claims = [
    Claim("ria_below_wanda", "ria loses less than wanda", "ria", "wanda"),
    Claim("stochria_below_ria", "stochria with beta = 0.1 loses less than ria", "stochria", "ria"),
    Claim("r2dsnot_below_ria", "R2-DSnoT from ria loses less than ria", "ria + r2dsnot", "ria"),
    Claim(
        "stochria_close_to_ria",
        "stochria with beta = 0.1 stays within 5 % of ria",
        "stochria",
        "ria",
        margin=0.05,
    ),
]
verdicts = judge_all(rows, claims, by=["model", "pattern"], family=family("05_sparsity"))
save_verdicts(verdicts, profile, "05_sparsity")
