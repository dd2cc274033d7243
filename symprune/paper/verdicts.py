"""Verdicts on claims: what a comparison decides, kept as data from which every sentence about it is made."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import pandas as pd

from symprune.base import paths
from symprune.base.errors import UserError
from symprune.base.files import write_whole
from symprune.paper.compare import ONE_DRAW, Paired, PairedAccuracy, in_words, paired, with_unit
from symprune.paper.tables import Whole

NOT_RUN = "not run here"
VERDICTS = ("reproduced", "not reproduced", "undecided", NOT_RUN)
_SHOWN = ["of", "claim", "verdict", "evidence"]


@dataclass(frozen=True)
class Claim:
    """That a loses (takes, ...) less than b or, with a margin, stays within it of b; of accuracies, that a
    answers more rightly than b.

    id: what claims.yaml calls it, the same in every profile. a, b: the values of a column that tell the two
    sides' rows.
    """

    id: str
    text: str
    a: Any
    b: Any
    margin: float | None = None


@dataclass(frozen=True)
class Verdict:
    """What was found of one case of a claim, and the numbers that decided.

    id, claim: of the `Claim`, in a notebook's own words where nothing is paired. of: the case, as claims.yaml
    names it. effect: how far a lies from b, as a fraction of b, or in points of accuracy; without an interval
    it is whatever `unit` says. low, high: its 95 % interval. unit: of what. over: how many pairs, of what.
    jointly: how many intervals hold together. draws: the effect in each draw of calibration text. model: on
    which it was measured. side: where the claim would have the effect, "lower", "higher", or "within" the
    margin. power: the smallest difference that would have been found with 80 %, or the smallest margin that
    could have been shown.
    """

    id: str
    of: str
    claim: str
    verdict: str
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    over: str = ""
    jointly: int = 1
    draws: tuple[float, ...] = ()
    note: str = ""
    model: str = ""
    side: str = ""
    margin: float | None = None
    power: float | None = None

    def __post_init__(self):
        if self.verdict not in VERDICTS:
            raise ValueError(f"a verdict is one of {', '.join(VERDICTS)}, not {self.verdict!r}")

    @property
    def draws_alike(self) -> int:
        """How many draws of calibration text came out on the side of the effect."""
        return sum(draw * self.effect > 0 for draw in self.draws)

    @property
    def evidence(self) -> str:
        """The numbers that decided, in words; of an undecided verdict what would have been found."""
        if self.low is None:
            return self.difference
        jointly = f" for {self.jointly} comparisons together" if self.jointly > 1 else ""
        side = "lower" if self.effect < 0 else "higher"
        draws = f"{side} in {self.draws_alike} of {len(self.draws)} draws" if self.draws else ""
        beside = "; ".join(filter(None, [f"paired over {self.over}", draws, self.note]))
        effect, low, high = (in_words(value, self.unit) for value in (self.effect, self.low, self.high))
        found = f"{with_unit(effect, self.unit)} (95 % interval {low} to {high}{jointly}, {beside})"
        return "; ".join(filter(None, [found, self.power_in_words]))

    @property
    def difference(self) -> str:
        """Effect and interval in words that say which way: "perplexity 8.0% lower (-11.3% to -4.6%)"."""
        if self.low is None:
            measured = "" if self.effect is None else f"{self.unit}: {self.effect:.2g} over {self.over}"
            return "; ".join(filter(None, [measured, self.note]))
        interval = " to ".join(in_words(value, self.unit) for value in (self.low, self.high))
        size = in_words(abs(self.effect), self.unit, sign="")
        if self.unit == "points":
            return f"{size} points {'fewer' if self.effect < 0 else 'more'} ({interval})"
        way = "as high" if size.endswith("times") else "lower" if self.effect < 0 else "higher"
        return f"{self.unit} {size} {way} ({interval})"

    @property
    def power_in_words(self) -> str:
        """What an undecided comparison would have found; empty for the others."""
        if self.verdict != "undecided" or self.power is None:
            return ""
        return would_have_been_found(self.power, self.side, self.unit)


def would_have_been_found(power: float, side: str, unit: str, least: float | None = None) -> str:
    """The power of a comparison in words, or of several from the least to this."""
    shown = "{:.1f}" if unit == "points" else "{:.1%}"
    sizes = dict.fromkeys(shown.format(size) for size in (least, power) if size is not None)
    size = " to ".join(sizes) + (" points" if unit == "points" else "")
    found = "could have been shown" if side == "within" else "would have been found"
    return f"{'a margin of ' if side == 'within' else ''}{size} {found} with 80 % probability"


def judge(claim: Claim, comparison: Paired, of: str = "") -> Verdict:
    """The verdict on "a has less of what is compared than b": decided only if the interval of the ratio
    leaves out 1.
    """
    verdict = _decision(comparison.decided, comparison.ratio < 1)
    return replace(_of_ratio(claim, of, verdict, comparison), side="lower", power=comparison.detectable)


def judge_close(claim: Claim, comparison: Paired, of: str = "") -> Verdict:
    """The verdict on "a stays close to b": the whole interval of the ratio lies within 1 ± the claim's
    margin, or the whole of it outside.

    A margin is a choice of this package: 5 % is about the spread of a perplexity over draws of calibration
    text.
    """
    inside = 1 - claim.margin <= comparison.low and comparison.high <= 1 + claim.margin
    outside = comparison.high < 1 - claim.margin or comparison.low > 1 + claim.margin
    verdict = _of_ratio(claim, of, _decision(inside or outside, inside), comparison)
    return replace(verdict, side="within", margin=claim.margin, power=comparison.showable)


def judge_accuracy(claim: Claim, comparison: PairedAccuracy, of: str = "") -> Verdict:
    """The verdict on "a answers more examples rightly than b": decided only if the interval of the difference
    leaves out 0.
    """
    if claim.margin is not None:
        raise ValueError(f"{claim.id!r} has a margin: how close accuracies are is not judged")
    verdict = _decision(comparison.decided, comparison.difference > 0)
    points = (100 * value for value in (comparison.difference, comparison.low, comparison.high))
    over = f"{comparison.n} examples" + (f" of {comparison.n_tasks} tasks" if comparison.n_tasks > 1 else "")
    over += f" and {comparison.n_draws} draws" if comparison.n_draws > 1 else ""
    note = f"{comparison.gained:.3g} gained, {comparison.lost:.3g} lost"
    note += f"; {ONE_DRAW}" if comparison.n_draws == 1 else ""
    words = "points", over, comparison.comparisons, (), note
    power = None if comparison.detectable is None else 100 * comparison.detectable
    return Verdict(claim.id, of, claim.text, verdict, *points, *words, side="higher", power=power)


def judge_all(
    rows: pd.DataFrame,
    claims: Sequence[Claim],
    by: Sequence[str],
    family: Callable[[str, str], int | None],
    column: str = "method",
    compare: Callable[[pd.DataFrame, pd.DataFrame, int], Paired | PairedAccuracy] = paired,
) -> list[Verdict]:
    """One verdict per claim and case: rows whose `column` is a's against those whose `column` is b's, within
    what `by` tells apart.

    A row without a value in one of `by` stands in every case of it: RIA has no sampling ratio. family: how
    many comparisons hold together with a claim's (by its id) in a case, None for a case that is not judged,
    see `symprune.paper.claims.family`; the model is no part of a case. compare: `paired` or one like it.
    Raises ValueError where a side of a claim has no rows.
    """
    by, verdicts = list(by), []
    for claim in claims:
        sides = rows[rows[column].isin([claim.a, claim.b])]
        cases = sides[by].dropna().drop_duplicates()
        if cases.empty:
            raise ValueError(
                f"no rows to judge {claim.id!r} by: {column} is neither {claim.a!r} nor {claim.b!r}"
            )
        for _, case in cases.iterrows():
            of = ", ".join(
                value if isinstance(value, str) else f"{name.split('.')[-1]} = {value:g}"
                for name, value in case.items()
                if name != "model"
            )
            if (together := family(claim.id, of)) is None:
                continue
            here = sides[(sides[by].eq(case) | sides[by].isna()).all(axis=1)]
            a, b = (here[here[column] == side] for side in (claim.a, claim.b))
            if a.empty or b.empty:
                raise ValueError(
                    f"{of}: no rows to judge {claim.id!r} by: {column} is never"
                    f" {(claim.a if a.empty else claim.b)!r}"
                )
            verdict = _judged(claim, compare(a, b, together), of)
            verdicts.append(replace(verdict, model=case.get("model", "")))
    return verdicts


def save_verdicts(verdicts: Sequence[Verdict], profile: str, notebook: str) -> Whole:
    """Keep a notebook's verdicts for the report, floats to six significant digits, and show them.

    Raises ValueError if two of them are about the same case of a claim.
    """
    cases = Counter((verdict.id, verdict.of, verdict.model) for verdict in verdicts)
    for (claim, of, _), times in cases.items():
        if times > 1:
            raise ValueError(f"{times} verdicts on {claim!r}, {of!r}: every case of a claim has one")
    kept = [_rounded(verdict) for verdict in verdicts]
    folder = paths.results(profile) / "verdicts"
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps([asdict(verdict) for verdict in kept], indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(folder / f"{notebook}.json", text + "\n")
    return Whole(_to_show(pd.DataFrame([_row(verdict) for verdict in kept], columns=[*_SHOWN, "model"])))


def load_verdicts(profile: str) -> pd.DataFrame:
    """Every verdict of a profile: the notebook, the fields, and evidence and difference in words.

    Raises UserError for a file that `save_verdicts` did not write.
    """
    rows = []
    for file in sorted((paths.results(profile) / "verdicts").glob("*.json")):
        try:
            verdicts = [
                Verdict(**{**kept, "draws": tuple(kept["draws"])})
                for kept in json.loads(file.read_text(encoding="utf-8"))
            ]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{file} holds no verdicts of this version: run {file.stem} again (symprune reproduce"
                " --again)"
            ) from error
        rows += [{"notebook": file.stem, **_row(verdict)} for verdict in verdicts]
    names = ["notebook", *(field.name for field in fields(Verdict)), "evidence", "difference"]
    return pd.DataFrame(rows, columns=names)


def verdict_page(verdicts: pd.DataFrame) -> str:
    """Markdown: how many claims came out how, then one table per notebook."""
    counts = ", ".join(
        f"{(verdicts['verdict'] == v).sum()} {v}" for v in VERDICTS if (verdicts["verdict"] == v).any()
    )
    parts = [f"**{counts or 'no verdicts yet'}**"]
    for notebook, rows in verdicts.groupby("notebook"):
        parts.append(f"### {notebook}\n\n{_to_show(rows).to_markdown(index=False)}")
    return "\n\n".join(parts)


def _decision(decided: bool, for_the_claim: bool) -> str:
    return "undecided" if not decided else "reproduced" if for_the_claim else "not reproduced"


def _judged(claim: Claim, comparison: Paired | PairedAccuracy, of: str) -> Verdict:
    if isinstance(comparison, PairedAccuracy):
        return judge_accuracy(claim, comparison, of)
    return judge(claim, comparison, of) if claim.margin is None else judge_close(claim, comparison, of)


def expect(holds: Any, what: str) -> None:
    """Print `what` as unexpected unless it holds, and go on: a surprising number is a finding, and no reason
    to lose a run.
    """
    if not holds:
        print(f"unexpected, not so here: {what}")


def _of_ratio(claim: Claim, of: str, verdict: str, comparison: Paired) -> Verdict:
    effects = (ratio - 1 for ratio in (comparison.ratio, comparison.low, comparison.high))
    units = comparison.over.replace("s", "", 1) if comparison.n == 1 else comparison.over
    over, draws = f"{comparison.n} {units}", tuple(ratio - 1 for ratio in comparison.draws)
    words = comparison.what, over, comparison.comparisons, draws, comparison.note
    return Verdict(claim.id, of, claim.text, verdict, *effects, *words)


def _rounded(verdict: Verdict) -> Verdict:
    def six_digits(value: float | None) -> float | None:
        return None if value is None else float(f"{value:.6g}")

    numbers = {name: six_digits(getattr(verdict, name)) for name in ("effect", "low", "high", "power")}
    return replace(verdict, **numbers, draws=tuple(map(six_digits, verdict.draws)))


def _row(verdict: Verdict) -> dict[str, Any]:
    return {**asdict(verdict), "evidence": verdict.evidence, "difference": verdict.difference}


def _to_show(rows: pd.DataFrame) -> pd.DataFrame:
    several = rows["model"].nunique() > 1
    return rows.assign(of=rows["model"] + ", " + rows["of"] if several else rows["of"])[_SHOWN]
