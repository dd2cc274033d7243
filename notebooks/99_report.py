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
# # Report
#
# What was claimed, what was found here, and every table and figure behind it. Each number comes from a
# record: a JSON file in `results/<profile>/records`, whose name stands in the CSV beside each table. The same
# page in Markdown: `results/<profile>/report.md`; links lead from that folder.

# %% tags=["parameters"]
profile = "smoke"

# %%
from IPython.display import Image, Markdown, display

from symprune.paper.report import claims_page, save_report
from symprune.paper.tables import saved_figures, saved_tables
from symprune.paper.verdicts import load_verdicts, verdict_page

# %% [markdown]
# ## Claims and questions
#
# *reproduced*: the 95 % interval of a paired comparison lies on the claim's side. *not reproduced*: it lies
# on the other side. *undecided*: it holds both. The protocol (model, text, sizes) is this profile's; nothing
# was run on the paper's models unless their names stand in the tables.

# %% tags=["nbval-ignore-output"]
save_report(profile)
display(Markdown(claims_page(profile)))

# %% [markdown]
# ## Every verdict

# %% tags=["nbval-ignore-output"]
display(Markdown(verdict_page(load_verdicts(profile))))

# %% [markdown]
# ## Tables

# %% tags=["nbval-ignore-output"]
for name, table in saved_tables(profile).items():
    display(Markdown(f"### {name}\n\n{table}"))

# %% [markdown]
# ## Figures

# %% tags=["nbval-ignore-output"]
for path in saved_figures(profile):
    display(Markdown(f"### {path.stem.removeprefix('fig_')}"), Image(path))

# %%
assert saved_tables(profile) and saved_figures(profile), (
    "run the other notebooks first: this one gathers what they wrote"
)
