"""What was asked, once each, and what was found: claims.yaml beside the verdicts of a profile."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import yaml

from symprune.paper.compare import BOUNDLESS
from symprune.paper.verdicts import NOT_RUN, load_verdicts, would_have_been_found

MIXED = "mixed"
MARKS = ("reproduced", "not reproduced", MIXED, "undecided", NOT_RUN)


@dataclass(frozen=True)
class ClaimFound:
    """A claim or question, and what a profile's verdicts say of it.

    id, by ("paper", "reviewers", "ours"), asked, answer, tables, figures, notebooks: as claims.yaml has them.
    mark: one of `MARKS`, over all cases of its family that were run: "reproduced" if every case is (of a
    claim that holds if `any` does: if one is), "not reproduced" if some are contradicted and none is
    reproduced, "mixed" if some are reproduced and others are not, "undecided" if none is decided.
    reproduced, contradicted, undecided, not_run: how many cases. sentence: all of it in words, made from
    these fields and those of the verdicts.
    effect, low, high: the median over the cases that were run (of logarithms where `unit` is a ratio's), and
    an interval, the medians of their ends, that holds with 95 % because those of the cases hold together;
    fractions, or points of accuracy if unit is "points"; None without intervals of one unit. side: where the
    claim would have it, "lower", "higher", or "within" `margin` of zero. power: the smallest difference that
    would have been found with 80 % in each undecided case (of "within": the smallest margin that could have
    been shown).
    verdicts: ids of the verdicts behind it, "notebook/comparison/case", with "@model" where several are run.
    """

    id: str
    by: str
    asked: str
    mark: str
    sentence: str
    reproduced: int
    contradicted: int
    undecided: int
    not_run: int
    effect: float | None
    low: float | None
    high: float | None
    unit: str
    side: str
    margin: float | None
    power: float | None
    verdicts: tuple[str, ...]
    answer: str
    notebooks: tuple[str, ...]
    tables: tuple[str, ...]
    figures: tuple[str, ...]


@functools.cache
def asked() -> list[dict[str, Any]]:
    """Claims and questions, as claims.yaml has them."""
    return yaml.safe_load(Path(__file__).with_name("claims.yaml").read_text(encoding="utf-8"))["claims"]


def cases_of(entry: dict[str, Any]) -> list[tuple[str, str, str | None]]:
    """The family of an entry of claims.yaml: (notebook, comparison, case), None for whatever the notebook
    calls its one case.
    """
    cases: list[tuple[str, str, str | None]] = []
    for block in entry.get("family", ()):
        named: list[str | None] = [", ".join(parts) for parts in itertools.product(*block.get("cases", []))]
        if "cases" not in block:
            named = [None]
        cases += itertools.product([block["notebook"]], block["comparisons"], named)
    return cases


def family(notebook: str) -> Callable[[str, str], int | None]:
    """(comparison, case) -> how many comparisons its family holds, None if no family names it in this
    notebook; for `judge_all`.
    """
    families = [(len(cases), set(cases)) for cases in map(cases_of, asked())]

    def size(comparison: str, case: str) -> int | None:
        return next((n for n, of in families if (notebook, comparison, case) in of), None)

    return size


def claims_of(profile: str) -> list[ClaimFound]:
    """Every claim and question in the order of claims.yaml, with what the verdicts of a profile say of it."""
    verdicts = load_verdicts(profile)
    n_models = max(verdicts["model"].replace("", None).nunique(), 1)
    own = {entry["id"]: _rows(cases_of(entry), verdicts) for entry in asked()}
    entries = {entry["id"]: entry for entry in asked()}
    claims = []
    for id_, entry in entries.items():
        of = [id_] if entry.get("family") else entry.get("see", [])
        rows = pd.concat([own[other] for other in of]) if of else verdicts[:0]
        n_cases = sum(
            n_models if case is not None else 1 for other in of for _, _, case in cases_of(entries[other])
        )
        claims.append(_found(entry, rows, n_cases, n_models > 1))
    return claims


def _rows(cases: Sequence[tuple[str, str, str | None]], verdicts: pd.DataFrame) -> pd.DataFrame:
    named = set(cases)
    keep = [
        (row.notebook, row.id, row.of) in named or (row.notebook, row.id, None) in named
        for row in verdicts.itertuples()
    ]
    return verdicts[pd.Series(keep, index=verdicts.index, dtype=bool)]


def _found(entry: dict[str, Any], rows: pd.DataFrame, n_cases: int, name_models: bool) -> ClaimFound:
    counts = [int((rows["verdict"] == v).sum()) for v in ("reproduced", "not reproduced", "undecided")]
    not_run = n_cases - sum(counts)
    holds_for_any = entry.get("holds") == "any"
    one_kind = rows.groupby(["unit", "side", "margin"], dropna=False).ngroups == 1
    effect, low, high = _median_effect(rows, holds_for_any) if one_kind else (None, None, None)
    first = rows.iloc[0] if one_kind else pd.Series({"unit": "", "side": "", "margin": None})
    powers = rows.loc[one_kind & (rows["verdict"] == "undecided"), "power"].dropna().astype(float)
    ids = tuple(
        f"{r.notebook}/{r.id}/{r.of}" + (f"@{r.model}" if name_models else "") for r in rows.itertuples()
    )
    blocks = entry.get("family", [])
    return ClaimFound(
        id=entry["id"],
        by=entry["by"],
        asked=entry["asked"],
        mark=_mark(counts, holds_for_any),
        sentence=_sentence(counts, not_run, rows, powers),
        reproduced=counts[0],
        contradicted=counts[1],
        undecided=counts[2],
        not_run=not_run,
        effect=effect,
        low=low,
        high=high,
        unit=first["unit"],
        side=first["side"],
        margin=None if pd.isna(first["margin"]) else float(first["margin"]),
        power=float(powers.max()) if len(powers) else None,
        verdicts=ids,
        answer=entry.get("answer", ""),
        notebooks=tuple(dict.fromkeys([*(block["notebook"] for block in blocks), *rows["notebook"]])),
        tables=tuple(entry.get("tables", ())),
        figures=tuple(entry.get("figures", ())),
    )


def _mark(counts: Sequence[int], holds_for_any: bool) -> str:
    (reproduced, contradicted, _), run = counts, sum(counts)
    if run == 0:
        return NOT_RUN
    if reproduced == run or (holds_for_any and reproduced):
        return "reproduced"
    if holds_for_any:
        return "not reproduced" if contradicted == run else "undecided"
    if reproduced:
        return MIXED
    return "not reproduced" if contradicted else "undecided"


def _median_effect(rows: pd.DataFrame, best: bool) -> tuple[float | None, float | None, float | None]:
    """Over cases: the median, or the best of them. All intervals hold together, so that these hold too. A
    mean would be of the one case that is unlike the others, such as a model that no longer works.
    """
    rows = rows.dropna(subset=["effect", "low", "high"])
    rows = rows[rows["high"].astype(float) < BOUNDLESS]
    if rows.empty:
        return None, None, None
    if best:
        bound = rows["low"] if rows["side"].iloc[0] == "higher" else -rows["high"]
        rows = rows.loc[[bound.astype(float).idxmax()]]
    values = [rows[name].astype(float) for name in ("effect", "low", "high")]
    if rows["unit"].iloc[0] == "points":
        medians = [median(of) for of in values]
    else:
        logs = [median(of.map(lambda x: math.log(max(1 + x, 1e-300)))) for of in values]
        medians = [math.exp(min(log, 700)) - 1 for log in logs]
    return medians[0], medians[1], medians[2]


def _sentence(counts: Sequence[int], not_run: int, rows: pd.DataFrame, powers: pd.Series) -> str:
    run = sum(counts)
    if not run:
        return f"{NOT_RUN.capitalize()}."
    ways = zip(("reproduced in", "contradicted in", "undecided in"), counts, strict=True)
    counted = ", ".join(f"{way} {n}" for way, n in ways if n) + f" of {run} cases"
    told = [rows["verdict"].iloc[0] if run == 1 else counted]
    told[0] += f" ({not_run} more not run here)" if not_run else ""
    told_of = {"reproduced": "most in its favour", "not reproduced": "most against it"}
    for verdict, most in (told_of if counts[0] or counts[1] else {"undecided": "the largest"}).items():
        of = rows[rows["verdict"] == verdict]
        if len(of):
            row = of.loc[of["effect"].astype(float).abs().idxmax()]
            told.append(": ".join(filter(None, [most * (run > 1), row["of"], row["difference"]])))
    if len(powers):
        side, unit = rows["side"].iloc[0], rows["unit"].iloc[0]
        told.append(would_have_been_found(powers.max(), side, unit, least=powers.min()))
    return (text := "; ".join(told))[0].upper() + text[1:] + "."
