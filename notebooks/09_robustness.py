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
# # What calibration decides
#
# The paper's reviewers asked how much rests on the calibration text. **Questions.** Does the corpus matter,
# and does text without language do as well? How many windows, and of which length? Is the spread over draws
# larger than the difference between methods? Does it matter whether a layer is calibrated on what pruned
# layers or dense layers send on? Do the masks differ where the perplexities do not?
#
# **Claim** (Yi and Richtárik). stochRIA is robust: it stays close to RIA. **What would refute it.** A paired
# comparison whose interval lies outside 5 % of RIA's perplexity.

# %% tags=["parameters"]
profile = "smoke"
models = ["embedded"]
device = "cpu"
dtype = "float64"
calibration_dtype = "float64"
n_calib = 2
seq_len = 64
seeds = [0]
evaluation_corpus = "embedded"
n_eval = 2
eval_seq_len = 64
batch_size = 2
calibration_corpora = ["embedded", "random"]
calibration_sizes = [1]
calibration_lengths = [64]
digits = 4

# %%
from dataclasses import replace

import pandas as pd
import torch

from symprune import RIA, Magnitude, Recipe, StochRIA, Unstructured, Wanda
from symprune.measure import Experiment, MaskOverlap, Protocol
from symprune.models import load_model, load_tokenizer
from symprune.paper.claims import family
from symprune.paper.differences import difference_dots, differences
from symprune.paper.figures import sweep_curves
from symprune.paper.style import save_figure
from symprune.paper.tables import perplexity_table, save_table, spread_table
from symprune.paper.verdicts import Claim, judge_all, save_verdicts
from symprune.pruning.calibrate import accumulate, gather
from symprune.text import calibration_windows

# %%
home = calibration_corpora[0]
protocol = Protocol.of(globals(), calibration_corpus=home, propagate="dense")
at_60 = Unstructured(0.6)
scores = [Wanda(), RIA(), StochRIA(beta=0.1)]
recipes = [Recipe(score, at_60) for score in scores]

# %% [markdown]
# ## Corpus
#
# Encyclopedia text (as evaluated), news, source code, and tokens drawn at random. 60 %, statistics of the
# dense model; mean ± standard deviation over draws of the windows. Magnitude pruning reads no calibration
# text: the level to beat.

# %%
on = {corpus: Experiment(replace(protocol, calibration_corpus=corpus)) for corpus in calibration_corpora}
rows = pd.concat([experiment.run(recipes) for experiment in on.values()], ignore_index=True)
reference = on[home].run([None, Recipe(Magnitude(), at_60)])
by_corpus = pd.concat([reference.assign(corpus="none"), rows], ignore_index=True)
save_table(
    perplexity_table(by_corpus, digits, index=["model", "corpus", "method"]),
    profile,
    "09_corpus",
    data=by_corpus,
)

# %%
of = differences(rows, "corpus", home, ["model", "method", "corpus"])
save_figure(difference_dots(of), profile, "09_corpus")

# %% [markdown]
# ## Overlap of masks
#
# Jaccard overlap of the weights kept, mean over linears; mean ± standard deviation over draws of the windows.
# Two random masks at 60 % overlap by 0.25. First between two draws from the same corpus, then between
# corpora.

# %%
drawn_anew = replace(protocol, seeds=[seed + 1000 for seed in seeds])
pairs = [(recipe, recipe) for recipe in recipes]
others = {
    f"{home}, drawn anew": drawn_anew,
    **{corpus: on[corpus].protocol for corpus in calibration_corpora[1:]},
}
overlap = pd.concat(
    [on[home].run(pairs, MaskOverlap(against=other)).assign(against=name) for name, other in others.items()]
)
save_table(
    spread_table(overlap, "jaccard", digits, ["model", "method"], "against"),
    profile,
    "09_overlap",
    data=overlap,
)

# %% [markdown]
# ## Number of windows
#
# Of `seq_len` tokens each; one curve per method over all draws.

# %%
by_size = [Experiment(replace(protocol, n_calib=size)).run(recipes[:2]) for size in calibration_sizes]
sizes = pd.concat(by_size, ignore_index=True)
save_table(
    perplexity_table(sizes, digits, index=["model", "n_calib"], columns="method"),
    profile,
    "09_samples",
    data=sizes,
)

# %%
perplexity_axis = {"perplexity": "perplexity (lower is better)"}
save_figure(
    sweep_curves(sizes, "n_calib", "calibration windows", perplexity_axis, scale="log", log_y=True),
    profile,
    "09_samples",
)

# %% [markdown]
# ## Length of the windows
#
# The same number of tokens (up to rounding) cut into windows of another length; evaluation windows stay as
# they are.

# %%
by_length = [
    Experiment(replace(protocol, seq_len=length, n_calib=max(1, n_calib * seq_len // length))).run(
        recipes[:2]
    )
    for length in calibration_lengths
]
lengths = pd.concat(by_length, ignore_index=True)
save_table(
    perplexity_table(lengths, digits, index=["model", "seq_len"], columns="method"),
    profile,
    "09_length",
    data=lengths,
)

# %% [markdown]
# ## Dense or pruned propagation
#
# `pruned`: a decoder layer is calibrated on what the pruned layers before it send on, as the published code
# does. `dense`: all on the dense model, which lets one pass serve any number of recipes.

# %%
sequential = Experiment(replace(protocol, propagate="pruned"))
by_propagation = pd.concat([rows[rows["corpus"] == home], sequential.run(recipes)], ignore_index=True)
save_table(
    perplexity_table(by_propagation, digits, index=["model", "propagate"], columns="method"),
    profile,
    "09_propagation",
    data=by_propagation,
)

# %% [markdown]
# ## Clients that share no text
#
# Statistics are sums over windows. Each of two clients gathers its own and hands on the sums; merged, they
# are those of all windows in one place, to the bit, and so are the masks. What a client reveals: counts,
# hashes, and per input channel the sums of x and of its squares within and between windows; `docs/scaling.md`
# says what that leaves private. The paper names this setting as future work.

# %%
model, tokenizer = load_model(models[0], dtype, device), load_tokenizer(models[0])
windows = calibration_windows(home, tokenizer, 2 * ((n_calib + 1) // 2), seq_len, seeds[0])
one, other = (accumulate(model, own, RIA().uses) for own in (windows[0::2], windows[1::2]))
together, in_one_place = one.merge(other).finish(), gather(model, windows, RIA().uses)
equal = [torch.equal(together[name].input_norm, in_one_place[name].input_norm) for name in in_one_place]
print(f"merged statistics equal those of the pooled text in {sum(equal)} of {len(equal)} linears")

# %% [markdown]
# ## Checks

# %%
assert all(equal), "sums are kept with twice float64's precision: an order of additions does not show"
assert (overlap[["jaccard"]] > 0.25).all(axis=None), "masks agree more than random ones would"
masked = by_corpus[by_corpus["method"] != "dense"]
assert masked.groupby("model")["sparsity"].nunique().eq(1).all(), "every mask of a model keeps as much"

# %% [markdown]
# ## Verdicts

# %%
elsewhere = rows["corpus"] != home
told = rows.assign(
    text=elsewhere.map({False: "home", True: "other"}),
    other=("against " + rows["corpus"]).where(elsewhere),
    calibrated="calibrated on " + rows["corpus"],
)
both = ["wanda", "ria"]
by_text, by_layers = (of[of["method"].isin(both)] for of in (told, by_propagation))
on_home = Claim(
    "home_text_below_other", f"calibrated on {home} loses less than on other text", "home", "other"
)
pruned = Claim(
    "pruned_propagation_below_dense", "pruned propagation loses less than dense", "pruned", "dense"
)
close = Claim(
    "stochria_close_to_ria",
    "stochria with beta = 0.1 stays within 5 % of ria",
    "stochria",
    "ria",
    margin=0.05,
)
of = family("09_robustness")
verdicts = [
    *judge_all(by_text, [on_home], ["model", "method", "other"], of, "text"),
    *judge_all(by_layers, [pruned], ["model", "method"], of, "propagate"),
    *judge_all(told, [close], ["model", "calibrated"], of),
]
save_verdicts(verdicts, profile, "09_robustness")
