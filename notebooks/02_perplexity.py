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
# # Perplexity of pruned models
#
# **Claims.** (a) At 50 % and 60 % unstructured and at 2:4, Wanda loses far less than magnitude pruning (Sun
# et al.). (b) RIA loses less than Wanda (Zhang et al.). (c) RIA with alpha = 0.5 loses less than with alpha =
# 1. (d) stochRIA with a tenth of the entries stays close to RIA (Yi and Richtárik).
#
# **What would refute them.** A paired comparison on the same evaluation windows whose 95 % interval lies on
# the other side of zero. An interval that holds zero leaves a claim undecided.
#
# All hyperparameters here are the papers' (alpha = 0.5, beta = 0.1): nothing was chosen on this text.

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
central_seeds = [0]
propagate = "pruned"
evaluation_corpus = "embedded"
n_eval = 2
eval_seq_len = 64
batch_size = 2
sparsities = [0.6]
groups = ["output", "layer"]
semi_structured = ["2:4"]
dense_lengths = []
digits = 4

# %%
from dataclasses import replace

import pandas as pd

from symprune import (
    RI,
    RIA,
    GeneralDiagonal,
    Magnitude,
    OWanda,
    Recipe,
    StochRIA,
    Symmetric,
    SymWanda,
    Unstructured,
    Wanda,
)
from symprune.measure import Experiment, Protocol
from symprune.methods.recipe import parse_pattern, pattern_label
from symprune.paper.claims import family
from symprune.paper.compare import one_perplexity
from symprune.paper.differences import difference_dots, differences
from symprune.paper.reported import agreement_in_sign, beside_reported
from symprune.paper.style import save_figure
from symprune.paper.tables import Whole, divergence_table, perplexity_table, save_table
from symprune.paper.verdicts import Claim, expect, judge_all, save_verdicts

# %% [markdown]
# ## Protocol
#
# Every linear inside the decoder layers is pruned; embeddings, norms and the output head are not. Calibration
# windows are drawn anew for each seed. With `propagate = "pruned"` a layer is calibrated on what the pruned
# layers before it send on, as the references do. Scores compete within an output row (`per output`) unless
# the table says `per layer`.

# %%
protocol = Protocol.of(globals(), seeds=central_seeds)
patterns = [Unstructured(sparsity) for sparsity in sparsities] + [
    parse_pattern(text) for text in semi_structured
]
scores = [Magnitude(), Wanda(), RIA(alpha=0.5), RIA(alpha=1.0), StochRIA(beta=0.1)]

# %%
experiment = Experiment(protocol)
rows = experiment.run([None, *(Recipe(score, pattern) for pattern in patterns for score in scores)])
Whole(rows[["model", "method", "pattern", "sparsity", "seed"]].round(4))

# %% [markdown]
# ## Table
#
# Mean and standard deviation over calibration seeds. The dense model and magnitude pruning use no calibration
# data: one number each.

# %%
save_table(perplexity_table(rows, digits, index=["model", "method"]), profile, "02_perplexity", data=rows)

# %% [markdown]
# ## Beside the dense model
#
# The same forward passes, prediction by prediction: the divergence of the pruned model's prediction from the
# dense one's in nats per token, and in brackets how often both would choose the same next token.

# %%
save_table(divergence_table(rows, index=["model", "method"]), profile, "02_divergence", data=rows)

# %% [markdown]
# ## Figure
#
# Every method against Wanda on the same windows, at the two highest sparsities and the N:M patterns.

# %%
drawn = [*(pattern_label(Unstructured(s)) for s in sorted(sparsities)[-2:]), *semi_structured]
of = differences(rows[rows["pattern"].isin(drawn)], "method", "wanda", ["model", "pattern", "method"])
save_figure(difference_dots(of), profile, "02_perplexity")

# %% [markdown]
# ## The dense model over the whole split
#
# Every window of the evaluation text, by the length of the windows (`dense_lengths`): the number to compare
# with other people's. A model is left out where it has fewer positions. The grid above uses windows spread
# evenly over the same text.

# %%
if dense_lengths:
    whole_splits = [Experiment(whole).run([None]) for whole in protocol.over_whole_splits(dense_lengths)]
    dense = pd.concat(whole_splits, ignore_index=True)
    shown = dense[
        ["model", "evaluated_on", "eval_seq_len", "n_windows", "perplexity", "perplexity_stderr"]
    ].round(3)
    save_table(shown.set_index("model"), profile, "02_dense", data=dense)

# %% [markdown]
# ## Beside what others reported
#
# Perplexities on WikiText-2 that can be checked at their source, and ours where this profile runs the same
# model. They are not averaged with ours, and where windows are of another length they are not to be compared
# digit by digit.

# %%
side_by_side = beside_reported(rows, protocol.eval_seq_len)
save_table(side_by_side.set_index(["model", "pattern", "method"]), profile, "02_reported")

# %% [markdown]
# ## Every score, and the comparison group
#
# Published comparisons change the comparison group along with the score: RIA's code ranks its "wanda"
# baseline over the whole matrix, Wanda's own code row by row. Here every score stands in both columns, so
# that a gain can be told from a change of group. Statistics of the dense model, at the highest sparsity of
# this profile, one draw.
#
# For the scores with an output side, Y is the linear's output activations, or, in the rows marked
# *gradients*, the gradient of the loss with respect to them.

# %%
outputs_used = [
    OWanda(),
    SymWanda(),
    SymWanda(balance="unit-mean"),
    GeneralDiagonal(),
    GeneralDiagonal(balance="unit-mean"),
]
wide = [
    Magnitude(),
    Wanda(),
    RI(),
    RIA(alpha=0.5),
    RIA(alpha=1.0),
    StochRIA(beta=0.1),
    Symmetric(),
    Symmetric(squared=True),
    *outputs_used,
]
grouped = [Unstructured(max(sparsities), group) for group in groups]

# %%
on_the_dense_model = replace(protocol, propagate="dense", seeds=seeds[:1])
by_group = Experiment(on_the_dense_model).run(
    [None, *(Recipe(score, group) for score in wide for group in grouped)]
)

# %%
with_gradients = Experiment(replace(on_the_dense_model, output_side="gradients"))
balanced = [OWanda(), SymWanda(balance="unit-mean"), GeneralDiagonal(balance="unit-mean")]
gradient_rows = with_gradients.run([None, *(Recipe(score, group) for score in balanced for group in grouped)])
gradient_rows = gradient_rows[gradient_rows["method"] != "dense"].copy()
gradient_rows["method"] += ", gradients"

# %%
by_group = pd.concat([by_group, gradient_rows], ignore_index=True)
if groups:
    save_table(
        perplexity_table(by_group, digits, index=["model", "method"]),
        profile,
        "02_score_by_group",
        data=by_group,
    )

# %%
if groups:
    compared = by_group[by_group["method"] != "dense"]
    of = differences(compared, "method", "wanda", ["model", "pattern", "method"])
    save_figure(difference_dots(of), profile, "02_score_by_group")

# %% [markdown]
# ## Checks
#
# What must hold exactly, whatever the numbers are; and what is told if it is not as expected.

# %%
for pattern in patterns:
    removed = rows.loc[rows["pattern"] == pattern_label(pattern), "sparsity"]
    assert (removed <= pattern.sparsity + 1e-9).all() and (removed > pattern.sparsity - 0.01).all(), (
        "every mask removes what was asked"
    )
for model in models:
    at_most_sparse = rows[
        (rows["model"] == model)
        & rows["pattern"].isin(["dense", pattern_label(Unstructured(max(sparsities)))])
    ]
    mean = at_most_sparse.groupby("method")["perplexity"].mean()
    expect(
        1.5 * mean["dense"] < mean["wanda"] < mean["magnitude"] / 1.5,
        f"dense < wanda < magnitude by a wide margin, {model}",
    )
per_output = by_group[by_group["pattern"] == pattern_label(Unstructured(max(sparsities)))]
constant = per_output[per_output["method"].isin(["owanda", "magnitude"])]
assert one_perplexity(constant, ["model"]), "within a row y is constant: OWanda is magnitude pruning"

# %% [markdown]
# ## Verdicts
#
# Losses are averaged within an article of the evaluation text; articles are crossed with draws of calibration
# text, so that the interval covers the choice of both on this model (with one draw: of articles alone). The
# intervals of a claim's cases hold together; `symprune/paper/claims.yaml` fixes these beforehand. Nothing
# carries over to the paper's models, which this profile does not run.

# %%
claims = [
    Claim("wanda_below_magnitude", "wanda loses less than magnitude", "wanda", "magnitude"),
    Claim("ria_below_wanda", "ria loses less than wanda", "ria", "wanda"),
    Claim(
        "ria_alpha_half_below_one",
        "ria with alpha = 0.5 loses less than with alpha = 1",
        "ria",
        "ria(alpha=1.0)",
    ),
    Claim("stochria_below_ria", "stochria with beta = 0.1 loses less than ria", "stochria", "ria"),
    Claim(
        "stochria_close_to_ria",
        "stochria with beta = 0.1 stays within 5 % of ria",
        "stochria",
        "ria",
        margin=0.05,
    ),
]
verdicts = judge_all(rows, claims, by=["model", "pattern"], family=family("02_perplexity"))
save_verdicts(verdicts, profile, "02_perplexity")

# %% [markdown]
# ## Agreement in sign
#
# The same pairs on models of 7B and more, as others reported them; an agreement is one of direction, no more.

# %%
pairs = {claim.id: (claim.a, claim.b) for claim in claims if claim.margin is None}
save_table(agreement_in_sign(verdicts, pairs).set_index(["pair", "pattern"]), profile, "02_agreement")
