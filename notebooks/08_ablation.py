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
# **Claims** (Yi and Richtárik). (a) Relative importance in one of the two phases helps, in both at once it
# hurts. (b) The regularisation changes little.
#
# **What would refute them.** A paired comparison on the same windows whose interval lies on the other side of
# zero.
#
# This notebook is also where the defaults of `R2DSnoT` are chosen. It therefore evaluates on the *validation*
# articles alone; the tables of the other notebooks use articles that play no part in the choice.

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
refinement_starts = ["wanda"]
ablated = ["keep_sign"]
gammas = []
doses = [1]
digits = 4

# %%
from dataclasses import replace

from symprune import SCORES, DSnoT, R2DSnoT, Recipe, Unstructured
from symprune.measure import Experiment, Protocol
from symprune.methods.refine import AS_PUBLISHED
from symprune.paper.claims import family
from symprune.paper.compare import one_perplexity
from symprune.paper.differences import difference_dots, differences
from symprune.paper.figures import heat_map
from symprune.paper.style import save_figure
from symprune.paper.tables import perplexity_table, save_table
from symprune.paper.verdicts import Claim, judge_all, save_verdicts

# %% [markdown]
# ## One part at a time
#
# `neutral` is R2-DSnoT with every part off, which is DSnoT. Parts are switched on alone, then on top of
# `keep_sign`. 60 %, statistics of the dense model. 50 cycles in every linear, unless a dose is named: the
# paper's is 50 for 4096 inputs, in proportion to a linear's width.

# %%
on_validation = Protocol.of(globals(), evaluation_split="validation")
experiment = Experiment(replace(on_validation, propagate="dense", seeds=ablation_seeds))
off = {"relative": "none", "alpha": 1.0, "gamma_grow": 0.0, "gamma_prune": 0.0, "keep_sign": False}
neutral = R2DSnoT(**off, max_cycles=50, cycles_for_width=None)
signed = replace(neutral, keep_sign=True)
every_part = {
    "relative grow": replace(neutral, relative="grow"),
    "relative prune": replace(neutral, relative="prune"),
    "relative both": replace(neutral, relative="both"),
    "alpha 0.5": replace(neutral, alpha=0.5),
    "as published": AS_PUBLISHED,
    "as published, p 0.5": replace(AS_PUBLISHED, p=0.5),
    "as published, p 2": replace(AS_PUBLISHED, p=2.0),
    "keep_sign": signed,
    "keep_sign, relative grow": replace(signed, relative="grow"),
    "keep_sign, relative prune": replace(signed, relative="prune"),
    "keep_sign, relative both": replace(signed, relative="both"),
    "keep_sign, alpha 0.5": replace(signed, alpha=0.5),
    "keep_sign, gammas 0.001": replace(signed, gamma_grow=0.001, gamma_prune=0.001),
    "keep_sign, power 0": replace(signed, power=0.0),
    "keep_sign, variance pooled": replace(signed, variance="pooled"),
    "keep_sign, relative threshold": replace(signed, threshold_scale="initial"),
    "keep_sign, 10 cycles": replace(signed, max_cycles=10),
    "paper's dose": replace(neutral, cycles_for_width=4096),
    "paper's dose, relative prune": replace(neutral, relative="prune", cycles_for_width=4096),
    "paper's dose, keep_sign": replace(signed, cycles_for_width=4096),
    "3 for 576": replace(neutral, max_cycles=3, cycles_for_width=576),
    "1 for 576": replace(neutral, max_cycles=1, cycles_for_width=576),
    "keep_sign, attention alone": replace(signed, linears="attention"),
}
parts = {"none": None, "neutral": neutral, **{name: every_part[name] for name in ablated}}
starts = [SCORES[name]() for name in refinement_starts]

# %%
recipes = {Recipe(start, Unstructured(0.6), part): name for start in starts for name, part in parts.items()}
plain = DSnoT(max_cycles=50, cycles_for_width=None)
rows = experiment.run([None, *(Recipe(start, Unstructured(0.6), plain) for start in starts), *recipes])
rows["part"] = (
    rows["recipe_key"]
    .map({recipe.key: name for recipe, name in recipes.items()} | {"dense": "dense"})
    .fillna("dsnot")
)
save_table(
    perplexity_table(rows, digits, index=["model", "part"], columns="method"),
    profile,
    "08_ablation",
    data=rows,
)

# %% [markdown]
# ## The choice
#
# The defaults of `R2DSnoT` were chosen on these validation articles, with three draws of calibration text:
# relative importance in pruning alone, alpha = 1, no gammas, `keep_sign` off. The table shows whether it
# holds here.

# %% [markdown]
# ## The regularisation, over decades
#
# gamma_grow against gamma_prune, all else at the defaults of `R2DSnoT`, from the last initial mask.

# %%
steps = [0.0, *gammas]
grid = experiment.run(
    [
        Recipe(starts[-1], Unstructured(0.6), R2DSnoT(gamma_grow=a, gamma_prune=b))
        for a in steps
        for b in steps
    ]
)
save_figure(heat_map(grid, "refine.gamma_prune", "refine.gamma_grow"), profile, "08_gammas", data=grid)

# %% [markdown]
# ## The dose
#
# Cycles in proportion to the width, of so many for 576 inputs, propagated through pruned layers: is there a
# dose at which a refinement gains? From the last two initial masks, against which all are compared.

# %%
kinds = {
    "dsnot": neutral,
    "r2dsnot, relative prune": replace(neutral, relative="prune"),
    "r2dsnot, relative both, keep_sign": replace(signed, relative="both"),
}
dosed = {
    f"{name}, {dose}": replace(kind, max_cycles=dose, cycles_for_width=576)
    for dose in doses
    for name, kind in kinds.items()
}
of_dose = {
    Recipe(start, Unstructured(0.6), kind): name
    for start in starts[-2:]
    for name, kind in {"none": None, **dosed}.items()
}
if doses:
    dosage = Experiment(replace(on_validation, propagate="pruned")).run(list(of_dose))
    dosage["dose"] = dosage["recipe_key"].map({recipe.key: name for recipe, name in of_dose.items()})
    save_table(
        perplexity_table(dosage, digits, index=["model", "dose"], columns="method"),
        profile,
        "08_doses",
        data=dosage,
    )
    of = differences(dosage, "dose", "none", ["model", "method", "dose"], name="the start")
    save_figure(difference_dots(of), profile, "08_doses")

# %% [markdown]
# ## Checks

# %%
same = rows[rows["part"].isin(["dsnot", "neutral"])]
assert one_perplexity(same, ["model", "method", "seed"]), "with neutral parameters R2-DSnoT is DSnoT"

# %% [markdown]
# ## Verdicts
#
# On validation text. Each part against the row that lacks it, where this profile measures both.

# %%
relative, with_sign = "relative importance", "with keep_sign"
all_linears, attention, gammas_on = "keep_sign", "keep_sign, attention alone", "keep_sign, gammas 0.001"
grow, prune, both = (f"keep_sign, relative {phase}" for phase in ("grow", "prune", "both"))
in_place = "in the regularisation in place of 1 changes less than 5 %"
claims = [
    Claim("grow_below_none", f"{relative} in growing alone loses less than none", "relative grow", "neutral"),
    Claim(
        "prune_below_none", f"{relative} in pruning alone loses less than none", "relative prune", "neutral"
    ),
    Claim(
        "grow_below_both",
        f"{relative} in growing alone loses less than in both",
        "relative grow",
        "relative both",
    ),
    Claim(
        "prune_below_both",
        f"{relative} in pruning alone loses less than in both",
        "relative prune",
        "relative both",
    ),
    Claim("none_below_both", f"no {relative} loses less than in both", "neutral", "relative both"),
    Claim("alpha_half_below_one", "alpha = 0.5 loses less than alpha = 1", "alpha 0.5", "neutral"),
    Claim(
        "signed_below_unsigned", "stopping before the error changes sign loses less", "keep_sign", "neutral"
    ),
    Claim(
        "signed_grow_below_none",
        f"{with_sign}, {relative} in growing loses less than none",
        grow,
        "keep_sign",
    ),
    Claim(
        "signed_prune_below_none",
        f"{with_sign}, {relative} in pruning loses less than none",
        prune,
        "keep_sign",
    ),
    Claim(
        "signed_prune_below_both", f"{with_sign}, {relative} in pruning loses less than in both", prune, both
    ),
    Claim(
        "signed_gammas_below_none",
        f"{with_sign}, the regularisation loses less than none",
        gammas_on,
        "keep_sign",
    ),
    Claim(
        "signed_all_below_attention",
        f"{with_sign}, all linears lose less than attention alone",
        all_linears,
        attention,
    ),
]
little = [
    Claim(
        "signed_gammas_change_little",
        f"{with_sign}, the regularisation of 0.001 changes less than 5 %",
        gammas_on,
        "keep_sign",
        margin=0.05,
    ),
    Claim(
        "p_half_changes_little",
        f"as published, p = 0.5 {in_place}",
        "as published, p 0.5",
        "as published",
        0.05,
    ),
    Claim(
        "p_two_changes_little", f"as published, p = 2 {in_place}", "as published, p 2", "as published", 0.05
    ),
]
ablation = rows.assign(start="from " + rows["method"])
measured = [claim for claim in [*claims, *little] if {claim.a, claim.b} <= parts.keys()]
verdicts = judge_all(ablation, measured, ["model", "start"], family("08_ablation"), column="part")
save_verdicts(verdicts, profile, "08_ablation")
