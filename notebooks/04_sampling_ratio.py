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
# # How much of the weight must be read
#
# **Claims** (Yi and Richtárik). stochRIA estimates the row and column norms of RIA from a fraction beta of
# their entries. (a) A tenth of the entries is enough to be as good as RIA, on the whole better. (b) Sampling
# keeps diversity: what is kept spreads more evenly. (c) Sampling makes scoring cheaper.
#
# **What would refute them.** (a) A paired comparison on the same windows in which stochRIA loses more. (b)
# Kept weights that spread over rows and columns no more evenly than RIA's. (c) A measured run time no shorter
# than RIA's.

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
evaluation_corpus = "embedded"
n_eval = 2
eval_seq_len = 64
batch_size = 2
sparsities = [0.6]
betas = [0.1, 1.0]
sampling_seeds = [0, 1]
digits = 4

# %%
import functools

from symprune import RIA, Magnitude, Recipe, StochRIA, Unstructured, Wanda
from symprune.measure import Experiment, MaskOverlap, Protocol, ScoreTime
from symprune.methods.norms import SAMPLERS
from symprune.methods.recipe import pattern_label
from symprune.models import decoder_layers, load_model, prunable_linears, weight_view
from symprune.paper.claims import family
from symprune.paper.compare import one_perplexity, paired_times, paired_unevenness
from symprune.paper.differences import difference_curves, differences
from symprune.paper.figures import sweep_curves
from symprune.paper.style import save_figure
from symprune.paper.tables import perplexity_table, save_table, spread_table
from symprune.paper.theory import sampling_reads
from symprune.paper.verdicts import Claim, judge_all, save_verdicts

# %% [markdown]
# ## Protocol
#
# The highest sparsity of this profile, statistics of the dense model from each draw of calibration windows.
# What else varies from one measurement to the next is which entries are sampled. `independent` sampling, the
# paper's, unless said otherwise.

# %%
experiment = Experiment(Protocol.of(globals(), propagate="dense"))
by_row, by_layer = (Unstructured(max(sparsities), group) for group in ("output", "layer"))
partial = sorted(beta for beta in betas if beta < 1)
nearest = min(partial, key=lambda beta: abs(beta - 0.1))  # to the paper's
sampled = [StochRIA(beta=beta, seed=seed) for beta in partial for seed in sampling_seeds] + [
    StochRIA(beta=1.0)
]

# %% [markdown]
# ## Perplexity
#
# Mean and standard deviation over calibration and sampling seeds together. With beta = 1 nothing is sampled.

# %%
rows = experiment.run([None, Recipe(RIA(), by_row), *(Recipe(score, by_row) for score in sampled)])
table = perplexity_table(rows, digits, index=["model", "score.beta"]).rename_axis(["model", "beta"])
save_table(table, profile, "04_sampling_ratio", data=rows)

# %%
sampled_or_not = rows[rows["method"] != "dense"]
of = differences(sampled_or_not, "method", "ria", ["model", "score.sampling", "score.beta"])
save_figure(difference_curves(of, "fraction of the entries sampled, beta"), profile, "04_sampling_ratio")

# %% [markdown]
# ## Which weights are kept
#
# Jaccard overlap of stochRIA's masks with RIA's, mean over linears, then over calibration and sampling seeds;
# two random masks would share (1 - sparsity) / (1 + sparsity) of their kept weights. *Unevenness* is 1 minus
# the normalised entropy of the kept weights over rows or columns: 0 where every row (column) keeps as many.
# Within an output row all rows keep as many, by construction.

# %%
groups = [by_row, by_layer]
others = [Magnitude(), Wanda(), RIA()]
samplings = [
    StochRIA(beta=beta, sampling=name) for name in SAMPLERS for beta in [nearest] if name != "independent"
]
with_ria = [
    (Recipe(score, group), Recipe(RIA(), group))
    for group in groups
    for score in [*others, *sampled, *samplings]
]
first, *rest = sampling_seeds
with_first_seed = [
    (Recipe(StochRIA(beta=beta, seed=seed), group), Recipe(StochRIA(beta=beta, seed=first), group))
    for group in groups
    for beta in partial
    for seed in rest
]
compared = experiment.run([*with_ria, *with_first_seed], MaskOverlap())
masks, between = (
    compared[compared["reference"].str.startswith("ria")],
    compared[compared["reference"].str.startswith("stochria")],
)
masks = masks.assign(
    **{f"uneven_{lines}": (1 - masks[f"entropy_{lines}"]).round(9) for lines in ("rows", "columns")}
)
measures = {
    "jaccard": "overlap with RIA",
    "uneven_rows": "unevenness over rows",
    "uneven_columns": "unevenness over columns",
}
keys = ["model", "pattern", "score.sampling", "score.beta"]
beta_shown = masks["score.beta"].map("{:g}".format, na_action="ignore").astype(object).fillna("")
each = (
    masks.assign(**{"score.beta": beta_shown})
    .rename(columns=measures)
    .melt([*keys, "method"], [*measures.values()], "measure")
)
overlap = spread_table(each, "value", 3, keys, "measure").rename_axis(
    ["model", "pattern", "sampling", "beta"]
)
save_table(overlap, profile, "04_masks", data=masks)

# %%
independent = masks[masks["method"].isin(["ria"]) | (masks["score.sampling"] == "independent")]
beta_axis = "fraction sampled, beta"
chance = (1 - max(sparsities)) / (1 + max(sparsities))
save_figure(
    sweep_curves(
        independent,
        "score.beta",
        beta_axis,
        measures,
        hue="pattern",
        scale="log",
        chance={"jaccard": chance},
    ),
    profile,
    "04_masks",
)

# %% [markdown]
# Two sampling seeds against each other: how much of a mask is the luck of the draw.

# %%
luck = spread_table(between, "jaccard", 3, ["model", "score.beta"], "pattern").rename_axis(["model", "beta"])
save_table(luck, profile, "04_between_seeds", data=between)

# %% [markdown]
# ## What is read
#
# Counted on the linears of one decoder layer: distinct entries read by the row sample and by the column
# sample, and the cache lines (64 bytes, 16 weights of float32) that they lie in, both as multiples of one
# pass over the weight. Memory is read in lines: a scattered sample of a tenth of the entries touches four
# lines in five, once for the rows and once for the columns, which is more than the whole weight. Only
# `shared`, which reads contiguous stretches, reads less where it counts. `weighted` reads a pilot sample as
# well.

# %%
model = load_model(models[0], dtype)
reads = sampling_reads(
    [weight_view(x) for x in prunable_linears(decoder_layers(model)[0]).values()],
    [*partial, 1.0],
    list(SAMPLERS),
)
del model
shown = reads.pivot(index="sampling", columns="beta", values=["entries", "lines"]).loc[list(SAMPLERS)]
shown.columns = [f"{what}, beta = {beta:g}" for what, beta in shown.columns]
save_table(shown.round(2), profile, "04_reads", data=reads)

# %% [markdown]
# ## What it costs
#
# Seconds to score the linears of three decoder layers, the scores run one after the other in each round,
# medians over rounds; the ratio is to RIA within the round. Magnitude and Wanda compute no norms: no way of
# computing them can be faster than that. The numbers are of the machine that ran this profile, and a record
# keeps every round.

# %% tags=["nbval-ignore-output"]
variants = [StochRIA(beta=beta, sampling=name) for name in SAMPLERS for beta in partial]
times = experiment.run([(RIA(), Magnitude(), Wanda(), *variants)], ScoreTime(repeats=7))
cost = times.merge(reads.rename(columns={"sampling": "score.sampling", "beta": "score.beta"}), how="left")
shown = cost[["model", "method", "seconds", "ratio", "entries", "lines"]].set_index(["model", "method"])
save_table(
    shown.map("{:.3g}".format).replace("nan", ""), profile, "04_time", data=cost.drop(columns="log_ratios")
)

# %%
axes = {"ratio": "time, RIA = 1 (lower is better)"}
save_figure(
    sweep_curves(times, "score.beta", beta_axis, axes, hue="score.sampling", scale="log", log_y=True),
    profile,
    "04_time",
)

# %% [markdown]
# ## Checks

# %%
exact = masks[masks["score.beta"] == 1]
assert (exact["jaccard"] == 1).all(), "beta = 1 is RIA"
whole = rows[(rows["score.beta"] == 1) | (rows["method"] == "ria")]
assert whole["method"].nunique() == 2 and one_perplexity(whole, ["model", "seed"]), "beta = 1 is RIA"
assert (masks.loc[masks["pattern"] == pattern_label(by_row), "uneven_rows"].abs() < 1e-9).all(), (
    "per output every row keeps as many"
)
by_beta = independent.groupby(["model", "pattern", "score.beta"])["jaccard"].mean()
assert by_beta.groupby(["model", "pattern"]).is_monotonic_increasing.all(), "more samples, closer to RIA"
assert (by_beta > 2 * chance).all(), "far closer than chance"

# %% [markdown]
# ## Verdicts
#
# (a) paired over articles crossed with draws of calibration text, losses averaged over sampling seeds; (b)
# over linears crossed with draws, unevenness averaged over sampling seeds, at the sampling ratio nearest to
# the paper's 0.1; (c) paired over rounds. The intervals of each hold together.

# %%
fewer, nearby, timed = (
    frame.assign(score=frame["method"].str.partition("(")[0])  # whatever its ratio and its seed
    for frame in (
        rows[rows["score.beta"] != 1],
        independent[independent["score.beta"].fillna(nearest) == nearest],
        times,
    )
)
free = nearby[nearby["pattern"] == pattern_label(by_layer)]  # per output every row keeps as many
over_columns, over_rows = (functools.partial(paired_unevenness, lines=lines) for lines in ("columns", "rows"))
less = Claim("stochria_below_ria", "stochria loses less than ria", "stochria", "ria")
even_columns = Claim(
    "stochria_more_even_over_columns",
    "stochria keeps weights more evenly over columns than ria",
    "stochria",
    "ria",
)
even_rows = Claim(
    "stochria_more_even_over_rows", "stochria keeps weights more evenly over rows than ria", "stochria", "ria"
)
faster = Claim("stochria_faster_than_ria", "stochria is scored in less time than ria", "stochria", "ria")

# %% tags=["nbval-ignore-output"]
of = family("04_sampling_ratio")
verdicts = [
    *judge_all(fewer, [less], ["model", "score.beta"], of, "score"),
    *judge_all(nearby, [even_columns], ["model", "pattern"], of, "score", over_columns),
    *judge_all(free, [even_rows], ["model", "pattern"], of, "score", over_rows),
    *judge_all(timed, [faster], ["model", "score.sampling", "score.beta"], of, "score", paired_times),
]
save_verdicts(verdicts, profile, "04_sampling_ratio")
