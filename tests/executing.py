"""A project of one notebook, and what its records say, for tests of who measures."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from symprune import NM, RIA, Magnitude, Recipe, Wanda
from symprune.measure import Experiment

MAGNITUDE, WANDA, RIA_NM = Recipe(Magnitude()), Recipe(Wanda()), Recipe(RIA(), NM(2, 4))
RECIPES = [None, MAGNITUDE, WANDA, RIA_NM]
TOY = [None, MAGNITUDE, WANDA, Recipe(RIA())]  # what the toy notebook asks first


@pytest.fixture
def protocol(protocol, tmp_path, monkeypatch) -> dict:
    """With a cache of its own that workers, who are other processes, are told of."""
    monkeypatch.setenv("SYMPRUNE_CACHE", str(tmp_path / "cache"))
    return protocol


def answers(experiment: Experiment) -> dict:
    """What the records of an experiment say, without times and places."""
    return {
        r.key: {name: value for name, value in r.metrics.items() if not name.startswith("seconds")}
        for r in experiment.store
    }


def command(*words: str, root: Path, **variables: str) -> subprocess.Popen:
    """`symprune` in a process of its own."""
    program = "import sys; from symprune.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "SYMPRUNE_ROOT": str(root), "OMP_NUM_THREADS": "1", **variables}
    return subprocess.Popen(
        [sys.executable, "-c", program, *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


NOTEBOOK = """# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% tags=["parameters"]
profile = "smoke"
models = []
calibration_corpus = ""

# %%
from dataclasses import replace
from symprune import RIA, Magnitude, Recipe, Wanda
from symprune.base import records
from symprune.measure import Experiment, Protocol
from symprune.paper.tables import save_table

put = records.Store.put


def logged(store, record):
    with open({log!r}, "a") as file:
        file.write(record.key + chr(10))
    return put(store, record)


records.Store.put = logged
protocol = Protocol.of(globals(), evaluation_corpus=calibration_corpus, n_calib=2, n_eval=2, seq_len=32)
experiment = Experiment(protocol)
rows = experiment.run([None, Recipe(Magnitude()), Recipe(Wanda()), Recipe(RIA())])

# %%
more = Experiment(replace(protocol, n_calib=3)).run([Recipe(Magnitude()), Recipe(Wanda())])
save_table(rows[["method", "seed", "perplexity", "record"]], profile, "02_toy")
save_table(more[["method", "seed", "perplexity", "record"]], profile, "02_more")
"""


@pytest.fixture
def project(tmp_path, checkpoint, corpus, monkeypatch) -> Path:
    """A project of one notebook with two experiments, which writes down the key of every record that it
    measures.
    """
    root = tmp_path / "project"
    for folder in ("notebooks", "papermill_params"):
        (root / folder).mkdir(parents=True)
    values = {"profile": "smoke", "models": [str(checkpoint)], "calibration_corpus": str(corpus)}
    (root / "papermill_params/smoke.yaml").write_text(yaml.safe_dump(values))
    (root / "notebooks/02_toy.py").write_text(NOTEBOOK.replace("{log!r}", repr(str(tmp_path / "measured"))))
    for name, folder in {
        "ROOT": root,
        "NOTEBOOKS": root / "notebooks",
        "PARAMS": root / "papermill_params",
    }.items():
        monkeypatch.setattr(f"symprune.base.paths.{name}", folder)
    return root
