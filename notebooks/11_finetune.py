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
# # After fine-tuning
#
# **Question.** A model pruned to 2:4 is fine-tuned by LoRA on a little text. Merging the adapters fills its
# zeros again. What is left of the gain once the masks are applied to the merged model?
#
# **What would refute the use of it.** A merged and masked model that is no better than the pruned one.

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
finetune_windows = 2
finetune_rank = 2
digits = 4

# %%
from symprune import NM, Recipe, Wanda
from symprune.measure import Experiment, FineTuned, Protocol
from symprune.paper.compare import paired_logs
from symprune.paper.tables import save_table, spread_table

# %% [markdown]
# ## Protocol
#
# Wanda, 2:4. Adapters (peft's LoRA) on every pruned linear, one step of AdamW on each of a few windows of the
# calibration split. The masks are applied as `symprune apply --other-weights` applies them. Every stage is
# read on the same evaluation windows.

# %%
experiment = Experiment(Protocol.of(globals()))
rows = experiment.run([Recipe(Wanda(), NM(2, 4))], FineTuned(finetune_windows, finetune_rank))
made = ["dense", "pruned", "fine-tuned, merged", "masked again"]
rows = rows.set_index("stage").loc[made].reset_index()  # in the order in which they were made

# %% [markdown]
# ## Perplexity
#
# With the share of zeros among the weights of the pruned linears; the dense model has a few of its own.

# %%
stages = rows.assign(zeros=rows["zeros"].map("{:.1%}".format))
save_table(
    spread_table(stages, "perplexity", digits, index=["model", "stage", "zeros"], columns="pattern"),
    profile,
    "11_finetune",
    data=rows,
)

# %% [markdown]
# ## Checks
#
# The merged model is dense; masked again it keeps two of every four weights, as the pruned one does.

# %%
zeros = rows.groupby("stage")["zeros"]
assert (zeros.max()[["dense", "fine-tuned, merged"]] < 0.01).all()
assert (zeros.min()[["pruned", "masked again"]] >= 0.5).all()

# %% [markdown]
# ## Reading
#
# Window by window on the first model and draw, each stage against the pruned model; intervals cover the
# choice of the evaluation text. The adapters were trained without regard to the masks, so a part of what they
# learnt lies in weights that are removed again: methods that mask the adapters as they train keep more.

# %%
first = rows[(rows["model"] == models[0]) & (rows["seed"] == seeds[0])].set_index("stage")["window_losses"]
for stage in ("dense", "fine-tuned, merged", "masked again"):
    change = paired_logs([a - b for a, b in zip(first[stage], first["pruned"], strict=True)])
    print(f"{stage}: {change.ratio:.2f} times the perplexity of the pruned model")
