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
# # Quickstart
#
# Prune a real language model in five lines: load it, draw calibration text, choose a recipe, prune, measure.
#
# The model is SmolLM2-135M-Instruct and the text is Wikipedia; both were installed as Python packages,
# nothing is downloaded. Perplexity is taken of 16 windows of 128 tokens: enough to tell a pruned model from
# the dense one, too few to tell methods apart, which is what the notebooks that follow are for.

# %% tags=["parameters"]
profile = "smoke"
dtype = "float64"
calibration_dtype = "float64"
n_calib = 2
seq_len = 64
digits = 4

# %%
from symprune import NM, RIA, Recipe, Unstructured, calibrating_in, perplexity, prune
from symprune.models import copy_weights, load_model, load_tokenizer, restore_weights
from symprune.paper.compare import paired_logs
from symprune.paper.mask_figure import kept_weights
from symprune.text import calibration_windows, evaluation_windows

# %% [markdown]
# ## Load
#
# A model is named `embedded`, a local folder, or a hub id. Calibration windows are random stretches of
# articles kept for calibration; evaluation windows come from other articles.

# %%
model, tokenizer = load_model("embedded", dtype), load_tokenizer("embedded")
calibration = calibration_windows("embedded", tokenizer, n_calib, seq_len, seed=0)
evaluation = evaluation_windows("embedded", tokenizer, seq_len=128, n_windows=16)
print(tokenizer.decode(calibration[0][:48]))

# %% [markdown]
# ## The dense model
#
# Perplexity by the pruning papers' convention. The result is a float that also knows the loss of each window.

# %%
dense = perplexity(model, evaluation)
print(f"dense perplexity {dense:.{digits}g} over {dense.n_windows} windows, {dense.n_tokens} tokens")

# %% [markdown]
# ## Prune
#
# A recipe is a score, a pattern and, if wanted, a refinement. RIA at 60 %: in every row of every linear, the
# 60 % of the weights with the lowest scores go; computed in float64, they are the same on every processor.
# Rows of 576 weights lose exactly `floor(0.6 * 576) = 345` of
# them, so the total is a little under 60 %.

# %%
pristine = copy_weights(model)
with calibrating_in(calibration_dtype):
    report = prune(model, calibration, Recipe(RIA(alpha=0.5), Unstructured(sparsity=0.6)), keep_masks=True)
report

# %% [markdown]
# Every row keeps as many weights as every other. Columns do not: inputs that are large keep more of theirs.

# %%
kept_weights(report.masks[report.linears[0].name], report.linears[0].name)

# %% [markdown]
# Windows differ far more from each other than models do, so models are compared window by window. The
# interval covers the choice of the evaluation text.

# %%
pruned = perplexity(model, evaluation)
lost = paired_logs([after - before for after, before in zip(pruned.losses, dense.losses, strict=True)])
print(
    f"pruned perplexity {pruned:.{digits}g}: {lost.ratio:.2f} times that of the dense model,"
    f" 95 % interval {lost.low:.2f} to {lost.high:.2f}"
)

# %% [markdown]
# ## Another pattern
#
# 2:4 keeps two of every four consecutive inputs. The weights are put back first: pruning works in place.
# The report draws how much of its outputs each linear loses on the calibration text.

# %%
restore_weights(model, pristine)
with calibrating_in(calibration_dtype):
    report = prune(model, calibration, Recipe(RIA(alpha=0.5), NM(2, 4)))
print(f"{report.sparsity:.2%} of the weights removed")
blocks = perplexity(model, evaluation)
lost = paired_logs([after - before for after, before in zip(blocks.losses, dense.losses, strict=True)])
print(
    f"pruned perplexity {blocks:.{digits}g}: {lost.ratio:.2f} times that of the dense model,"
    f" 95 % interval {lost.low:.2f} to {lost.high:.2f}"
)
report.plot()

# %% [markdown]
# ## What pruning does not do
#
# A pruned model is saved with its zeros written out: the file is not smaller, and on ordinary hardware
# inference is not faster. What it gives is a mask, and the measured cost of that mask. The following
# notebooks measure it for every method.

# %%
assert lost.low > 1 and dense < pruned, "60 % of the weights cannot go unnoticed"
