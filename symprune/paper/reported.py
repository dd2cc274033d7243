"""Figures that others reported, each with its source: shown beside ours, never averaged or mixed with
them.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import yaml

from symprune.paper.compare import in_words
from symprune.paper.tables import decimals_of, summarise
from symprune.paper.verdicts import NOT_RUN, Verdict


def reported_figures() -> pd.DataFrame:
    """One row per reported perplexity: model, pattern ("dense", "0.5", "2:4"), method, reported, deviation
    (over runs; empty: not said), seq_len (likewise), source.
    """
    rows = [
        {
            "model": model,
            "pattern": pattern,
            "method": method,
            **dict(
                zip(("reported", "deviation"), value if isinstance(value, list) else (value,), strict=False)
            ),
            "seq_len": part["seq_len"],
            "source": part["source"],
        }
        for part in _parts()
        for model, patterns in part["figures"].items()
        for pattern, methods in patterns.items()
        for method, value in methods.items()
    ]
    return pd.DataFrame(rows).astype({"seq_len": "Int64"})


def agreement_in_sign(verdicts: Sequence[Verdict], pairs: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    """Each pairwise verdict of ours beside what others reported of the same pair on models of 7B and more.

    pairs: by the verdict's id, the methods a and b whose perplexities were compared; ids that are not there
    are left out, as are patterns that nobody reported, and what was not run here. Effects are a over b,
    minus 1. agrees: "yes" or "no" by the sign of the effects, "undecided" where ours is.
    """
    figures, rows = reported_figures(), []
    large = figures["model"].map(lambda model: float(re.findall(r"-([\d.]+)b", model.lower())[0]) >= 7)
    for verdict in verdicts:
        if verdict.effect is None:
            continue
        a, b = pairs.get(verdict.id, ("", ""))
        of = [part.removesuffix(" per output") for part in verdict.of.split(", ")]
        here = figures[large & figures["pattern"].isin(of)]
        sides = (here[here["method"] == method].drop(columns=["method", "seq_len"]) for method in (a, b))
        for pair in pd.merge(*sides, on=["model", "pattern", "source"]).itertuples():
            theirs = pair.reported_x / pair.reported_y - 1
            agrees = "yes" if theirs * verdict.effect > 0 else "no"
            rows.append(
                {
                    "pair": f"{a} / {b}",
                    "pattern": pair.pattern,
                    "ours": in_words(verdict.effect),
                    "model": pair.model,
                    "reported": in_words(theirs),
                    "agrees": "undecided" if verdict.verdict == "undecided" else agrees,
                    "source": pair.source,
                }
            )
    return pd.DataFrame(rows, columns=["pair", "pattern", "ours", "model", "reported", "agrees", "source"])


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
