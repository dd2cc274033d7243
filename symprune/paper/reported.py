"""Figures that others reported, each with its source: shown beside ours, never averaged or mixed with
them.
"""

import functools
from pathlib import Path

import pandas as pd
import yaml

from symprune.paper.tables import decimals_of, summarise
from symprune.paper.verdicts import NOT_RUN


def reported_figures() -> pd.DataFrame:
    """One row per reported perplexity: model, pattern ("dense", "0.5", "2:4"), method, reported, seq_len
    (empty: not said), source.
    """
    rows = [
        {
            "model": model,
            "pattern": pattern,
            "method": method,
            "reported": value,
            "seq_len": part["seq_len"],
            "source": part["source"],
        }
        for part in _parts()
        for model, patterns in part["figures"].items()
        for pattern, methods in patterns.items()
        for method, value in methods.items()
    ]
    return pd.DataFrame(rows).astype({"seq_len": "Int64"})


def beside_reported(rows: pd.DataFrame, seq_len: int, digits: int = 4) -> pd.DataFrame:
    """Every reported figure, and ours where `rows` (of `Experiment.run`) hold one: mean over seeds, else "not
    run here".

    seq_len: that of our evaluation, to be held against the one reported. A reported "0.5" stands beside our
    "0.5 per output", though its comparison group may have been another; methods are matched with their
    default hyperparameters, refined masks are left out.
    """
    plain = rows[rows["refine"].isin(["none", "dense"])]
    ours = summarise(
        plain.assign(pattern=plain["pattern"].str.removesuffix(" per output")),
        by=["model", "pattern", "method"],
    )
    table = reported_figures().merge(ours, on=["model", "pattern", "method"], how="left")
    table["ours"] = [
        NOT_RUN if pd.isna(mean) else f"{mean:.{max(decimals_of(mean, digits), 0)}f}"
        for mean in table["mean"]
    ]
    table["our seq_len"] = [pd.NA if cell == NOT_RUN else seq_len for cell in table["ours"]]
    return table[
        ["model", "pattern", "method", "ours", "our seq_len", "reported", "seq_len", "source"]
    ].rename(columns={"seq_len": "reported seq_len"})


@functools.cache
def _parts() -> list[dict]:
    return yaml.safe_load(Path(__file__).with_name("reported.yaml").read_text(encoding="utf-8"))
