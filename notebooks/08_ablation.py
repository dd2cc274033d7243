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
# # Every part of R2-DSnoT, alone and together
#
# **Claims** (Yi and Richtárik). (a) Relative importance in one of the two phases helps, in both at once it hurts. (b) The regularisation
# changes little.
#
# **What would refute them.** A paired comparison on the same windows whose 95 % interval lies on the other side of zero.
#
# This notebook is also where the defaults of `R2DSnoT` are to be chosen. It therefore evaluates on the *validation* articles alone; the
# tables of the other notebooks use articles that play no part in the choice.

# %% tags=["parameters"]
profile = "smoke"
models = ["embedded"]
device = "cpu"
dtype = "float32"
calibration_corpus = "embedded"
n_calib = 2
seq_len = 64
seeds = [0]
evaluation_corpus = "embedded"
n_eval = 2
batch_size = 1
ablation_starts = ["wanda"]
gammas = [0.01]
digits = 2

# %%
from dataclasses import replace

from symprune import SCORES, DSnoT, R2DSnoT, Recipe, Unstructured
from symprune.experiment import Experiment
from symprune.figures import heat_map, save_figure
from symprune.tables import judge, paired, perplexity_table, save_table, save_verdicts

# %% [markdown]
# ## One part at a time
#
# Neutral is R2-DSnoT with every part off, which is DSnoT. Each row after it switches one part on; the last rows are combinations.

# %%
protocol = dict(
    profile=profile, models=models, device=device, dtype=dtype, calibration_corpus=calibration_corpus, n_calib=n_calib,
    seq_len=seq_len, evaluation_corpus=evaluation_corpus, n_eval=n_eval, batch_size=batch_size, propagate="dense",
)  # fmt: skip
experiment = Experiment(**protocol, seeds=seeds[:1], evaluation_split="validation")
neutral = R2DSnoT(relative="none", alpha=1.0, gamma_grow=0.0, gamma_prune=0.0, keep_sign=False)
parts = {
    "not refined": None,
    "neutral (DSnoT)": neutral,
    "keep_sign": replace(neutral, keep_sign=True),
    "relative in grow": replace(neutral, relative="grow"),
    "relative in prune": replace(neutral, relative="prune"),
    "relative in both": replace(neutral, relative="both"),
    "alpha = 0.5": replace(neutral, alpha=0.5),
    "gammas = 0.001": replace(neutral, gamma_grow=0.001, gamma_prune=0.001),
    "variance pooled": replace(neutral, variance="pooled"),
    "threshold relative to the initial error": replace(neutral, threshold_scale="initial"),
    "10 cycles": replace(neutral, max_cycles=10),
    "attention alone": replace(neutral, linears="attention"),
    "relative in grow, alpha = 0.5": replace(neutral, relative="grow", alpha=0.5),
    "relative in prune, alpha = 0.5": replace(neutral, relative="prune", alpha=0.5),
    "relative in both, alpha = 0.5": replace(neutral, relative="both", alpha=0.5),
    "relative in prune, alpha = 0.5, keep_sign": replace(neutral, relative="prune", alpha=0.5, keep_sign=True),
    "the default of R2DSnoT": R2DSnoT(),
}
starts = [SCORES[name]() for name in ablation_starts]

# %%
recipes = {Recipe(start, Unstructured(0.6), part): label for start in starts for label, part in parts.items()}
rows = experiment.run([None, *(Recipe(start, Unstructured(0.6), DSnoT()) for start in starts), *recipes])
rows["part"] = rows["recipe_key"].map({recipe.key: label for recipe, label in recipes.items()} | {"dense": "dense"}).fillna("DSnoT")
save_table(perplexity_table(rows, digits, index=["model", "part"], columns="method"), profile, "08_ablation", data=rows)

# %% [markdown]
# ## The regularisation, over decades
#
# gamma_grow against gamma_prune, everything else at its default; perplexity from the first start.

# %%
steps = [0.0, *gammas]
grid = experiment.run([Recipe(starts[0], Unstructured(0.6), R2DSnoT(gamma_grow=a, gamma_prune=b)) for a in steps for b in steps])
save_figure(heat_map(grid, "refine.gamma_prune", "refine.gamma_grow"), profile, "08_gammas", data=grid)

# %% [markdown]
# ## Checks

# %%
same = rows[rows["part"].isin(["DSnoT", "neutral (DSnoT)"])]
assert (same.groupby("method")["perplexity"].nunique() == 1).all(), "with neutral parameters R2-DSnoT is DSnoT"

# %% [markdown]
# ## Verdicts

# %% tags=["nbval-ignore-output"]
claims = [
    ("relative importance in growing alone loses less than none", "relative in grow", "neutral (DSnoT)"),
    ("relative importance in pruning alone loses less than none", "relative in prune", "neutral (DSnoT)"),
    ("relative importance in pruning alone loses less than in both", "relative in prune", "relative in both"),
    ("alpha = 0.5 loses less than alpha = 1", "alpha = 0.5", "neutral (DSnoT)"),
    ("stopping before the error changes sign loses less", "keep_sign", "neutral (DSnoT)"),
    ("refining all linears loses less than attention alone", "neutral (DSnoT)", "attention alone"),
]
verdicts = [
    judge(f"{model}, from {start}: {claim} (validation text)", paired(of[of["part"] == a], of[of["part"] == b]))
    for model in models
    for start in ablation_starts
    for claim, a, b in claims
    for of in [rows[(rows["model"] == model) & (rows["method"] == start)]]
]
save_verdicts(verdicts, profile, "08_ablation")
