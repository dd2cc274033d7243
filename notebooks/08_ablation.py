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
# This notebook is also where the defaults of `R2DSnoT` come from. It therefore evaluates on the *validation* articles alone; the tables of
# the other notebooks use articles that played no part in the choice.

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
# `neutral` is R2-DSnoT with every part off, which is DSnoT; each row after it switches one part on; the last rows are combinations.

# %%
protocol = dict(
    profile=profile, models=models, device=device, dtype=dtype, calibration_corpus=calibration_corpus, n_calib=n_calib,
    seq_len=seq_len, evaluation_corpus=evaluation_corpus, n_eval=n_eval, batch_size=batch_size, propagate="dense",
)  # fmt: skip
experiment = Experiment(**protocol, seeds=seeds[:1], evaluation_split="validation")
neutral = R2DSnoT(relative="none", alpha=1.0, gamma_grow=0.0, gamma_prune=0.0, keep_sign=False)
parts = [
    replace(neutral, keep_sign=True),
    replace(neutral, relative="grow"),
    replace(neutral, relative="prune"),
    replace(neutral, relative="both"),
    replace(neutral, alpha=0.5),
    replace(neutral, gamma_grow=0.001, gamma_prune=0.001),
    replace(neutral, variance="pooled"),
    replace(neutral, threshold_scale="initial"),
    replace(neutral, max_cycles=10),
    replace(neutral, linears="attention"),
    replace(neutral, relative="prune", alpha=0.5),
    replace(neutral, relative="prune", alpha=0.5, keep_sign=True),
    replace(neutral, relative="both", alpha=0.5, keep_sign=True),
    R2DSnoT(),
]
starts = [SCORES[name]() for name in ablation_starts]

# %%
rows = experiment.run([None, *(Recipe(s, Unstructured(0.6), r) for r in dict.fromkeys([None, DSnoT(), neutral, *parts]) for s in starts)])
save_table(perplexity_table(rows, digits, index=["model", "refine"], columns="method"), profile, "08_ablation", data=rows)

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
same = rows[rows["refine"].isin(["dsnot"]) | (rows["recipe_key"].isin([Recipe(s, Unstructured(0.6), neutral).key for s in starts]))]
assert (same.groupby("method")["perplexity"].nunique() == 1).all(), "with neutral parameters R2-DSnoT is DSnoT"

# %% [markdown]
# ## Verdicts

# %% tags=["nbval-ignore-output"]
by_key = dict(iter(rows.groupby("recipe_key")))
claims = [
    ("relative importance in growing alone loses less than none", replace(neutral, relative="grow"), neutral),
    ("relative importance in pruning alone loses less than none", replace(neutral, relative="prune"), neutral),
    ("relative importance in both loses more than in pruning alone", replace(neutral, relative="prune"), replace(neutral, relative="both")),
    ("alpha = 0.5 loses less than alpha = 1", replace(neutral, alpha=0.5), neutral),
    ("stopping before the error changes sign loses less", replace(neutral, keep_sign=True), neutral),
    ("refining all linears loses less than attention alone", neutral, replace(neutral, linears="attention")),
]
verdicts = [
    judge(
        f"from {start}: {claim} (validation)",
        paired(*(by_key[Recipe(SCORES[start](), Unstructured(0.6), refine).key] for refine in (a, b))),
    )
    for start in ablation_starts
    for claim, a, b in claims
]
save_verdicts(verdicts, profile, "08_ablation")
