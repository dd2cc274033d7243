"""A verdict is data: what a comparison decides of a claim, and the sentence that follows from its fields."""

import json
from dataclasses import replace

import pandas as pd
import pytest

from symprune import UserError
from symprune.paper.compare import Paired, paired, paired_accuracy
from symprune.paper.verdicts import (
    Claim,
    Verdict,
    expect,
    judge,
    judge_accuracy,
    judge_all,
    judge_close,
    load_verdicts,
    save_verdicts,
    verdict_page,
)

LESS = Claim("a_below_b", "a loses less than b", "a", "b")
CLOSE = Claim("a_close_to_b", "a stays within 5 % of b", "a", "b", margin=0.05)
MORE = Claim("a_above_b", "a answers more rightly than b", "a", "b")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SYMPRUNE_OUTPUT", str(tmp_path))
    return tmp_path / "results/test/verdicts"


def answers(correct: str, seed: int | None = None) -> pd.DataFrame:
    return pd.DataFrame([{"task": "t", "correct": correct, "seed": seed}])


@pytest.mark.parametrize(
    ("low", "ratio", "high", "verdict"),
    [
        (0.8, 0.9, 0.95, "reproduced"),
        (1.05, 1.1, 1.2, "not reproduced"),
        (0.9, 0.95, 1.1, "undecided"),
        (0.9, 1.0, 1.0, "undecided"),
    ],
)
def test_a_claim_is_decided_only_if_the_interval_leaves_out_one(low, ratio, high, verdict):
    beside = {"draws": (0.75, 1.25), "detectable": 0.07, "showable": 0.09, "note": "a note"}
    found = Paired(ratio, low, high, 12, comparisons=3, **beside)
    judged = judge(LESS, found, "2:4")
    assert (judged.id, judged.of, judged.claim, judged.verdict) == (
        "a_below_b",
        "2:4",
        "a loses less than b",
        verdict,
    )
    assert [judged.effect, judged.low, judged.high] == pytest.approx([ratio - 1, low - 1, high - 1])
    assert (judged.unit, judged.over, judged.jointly, judged.draws, judged.note) == (
        "perplexity",
        "12 articles",
        3,
        (-0.25, 0.25),
        "a note",
    )
    assert (judged.side, judged.margin, judged.power) == ("lower", None, 0.07)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.96, 1.04, "reproduced"),
        (0.97, 0.99, "reproduced"),
        (0.94, 1.01, "undecided"),
        (0.99, 1.06, "undecided"),
        (0.8, 1.2, "undecided"),
        (0.8, 0.9, "not reproduced"),
        (1.06, 1.2, "not reproduced"),
    ],
)
def test_a_is_close_to_b_if_the_whole_interval_lies_within_the_margin(low, high, verdict):
    judged = judge_close(CLOSE, Paired((low + high) / 2, low, high, 12, detectable=0.07, showable=0.09))
    assert judged.verdict == verdict
    assert (judged.side, judged.margin, judged.power) == ("within", 0.05, 0.09)


@pytest.mark.parametrize(
    ("a", "b", "verdict"), [("1" * 30, "0" * 30, "reproduced"), ("0" * 30, "1" * 30, "not reproduced")]
)
def test_a_verdict_on_accuracies_needs_an_interval_without_zero(a, b, verdict):
    assert judge_accuracy(MORE, paired_accuracy(answers(a), answers(b))).verdict == verdict
    assert judge_accuracy(MORE, paired_accuracy(answers(a), answers(a))).verdict == "undecided"
    assert (
        judge_accuracy(MORE, paired_accuracy(answers("10" * 15), answers("01" * 15))).verdict == "undecided"
    )
    with pytest.raises(ValueError, match="'a_close_to_b' has a margin"):
        judge_accuracy(CLOSE, paired_accuracy(answers(a), answers(b)))


def test_a_verdict_on_accuracies_says_in_points_what_it_rests_on():
    judged = judge_accuracy(MORE, paired_accuracy(answers("1100" * 10, 0), answers("1010" * 10)), "m")
    assert (judged.unit, judged.side, judged.over) == ("points", "higher", "40 examples")
    assert judged.note == "10 gained, 10 lost; one draw: the draw is not covered"
    assert judged.power == pytest.approx(100 * (2.0227 + 0.8509) * (0.5 / 39) ** 0.5, rel=1e-3)
    a = pd.concat([answers("1" * 40, seed) for seed in range(3)])
    assert judge_accuracy(MORE, paired_accuracy(a, answers("0" * 40))).over == "40 examples and 3 draws"


def test_a_verdict_is_one_of_four_words():
    with pytest.raises(ValueError, match="not 'probably'"):
        Verdict("id", "of", "claim", "probably")


INTERVAL = {"effect": -0.08, "low": -0.113, "high": -0.046, "unit": "perplexity", "over": "8 windows"}
POINTS = {"effect": 2.5, "low": 0.0, "high": 7.54, "unit": "points", "over": "400 examples of 7 tasks"}


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        (INTERVAL, "-8.0% perplexity (95 % interval -11.3% to -4.6%, paired over 8 windows)"),
        (
            {**INTERVAL, "draws": (-0.1, -0.01, 0.02), "jointly": 16},
            (
                "-8.0% perplexity (95 % interval -11.3% to -4.6% for 16 comparisons together, paired over 8"
                " windows; lower in 2 of 3 draws)"
            ),
        ),
        (
            {
                "effect": 12.05,
                "low": 3.0,
                "high": 41.2,
                "unit": "time",
                "over": "7 rounds",
                "draws": (1.0, 2.0),
            },
            (
                "13.1 times the time (95 % interval 4 times to 42.2 times, paired over 7 rounds; higher in 2"
                " of 2 draws)"
            ),
        ),
        (
            {**POINTS, "note": "1.33 gained, 1 lost"},
            (
                "+2.5 points (95 % interval +0.0 to +7.5, paired over 400 examples of 7 tasks; 1.33 gained, 1"
                " lost)"
            ),
        ),
        (
            {"effect": 4.93e-16, "unit": "largest deviation", "over": "31 pairs"},
            "largest deviation: 4.9e-16 over 31 pairs",
        ),
        (
            {"effect": 1.0, "unit": "share", "over": "7 linears", "note": "per layer 0"},
            "share: 1 over 7 linears; per layer 0",
        ),
        ({}, ""),
        (
            {**INTERVAL, "side": "lower", "power": 0.0213},
            (
                "-8.0% perplexity (95 % interval -11.3% to -4.6%, paired over 8 windows); 2.1% would have"
                " been found with 80 % probability"
            ),
        ),
        (
            {**POINTS, "side": "higher", "power": 8.04},
            (
                "+2.5 points (95 % interval +0.0 to +7.5, paired over 400 examples of 7 tasks); 8.0 points"
                " would have been found with 80 % probability"
            ),
        ),
        (
            {**INTERVAL, "side": "within", "margin": 0.05, "power": 0.14},
            (
                "-8.0% perplexity (95 % interval -11.3% to -4.6%, paired over 8 windows); a margin of 14.0%"
                " could have been shown with 80 % probability"
            ),
        ),
    ],
)
def test_the_sentence_follows_from_the_fields(numbers, sentence):
    assert Verdict("id", "of", "claim", "undecided", **numbers).evidence == sentence


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        (INTERVAL, "perplexity 8.0% lower (-11.3% to -4.6%)"),
        ({**INTERVAL, "effect": 0.08}, "perplexity 8.0% higher (-11.3% to -4.6%)"),
        (
            {**INTERVAL, "effect": 12.05, "low": 3.0, "high": 41.2},
            "perplexity 13.1 times as high (4 times to 42.2 times)",
        ),
        (POINTS, "2.5 points more (+0.0 to +7.5)"),
        ({**POINTS, "effect": -2.5}, "2.5 points fewer (+0.0 to +7.5)"),
        ({"effect": 1.0, "unit": "share", "over": "7 linears"}, "share: 1 over 7 linears"),
    ],
)
def test_a_difference_says_which_way(numbers, words):
    assert Verdict("id", "of", "claim", "reproduced", **numbers).difference == words


def test_what_is_decided_needs_no_power():
    decided = Verdict("id", "of", "claim", "reproduced", **INTERVAL, side="lower", power=0.02)
    assert "would have been found" not in decided.evidence


@pytest.mark.parametrize(("effect", "alike"), [(-0.1, 2), (0.1, 1), (0.0, 0)])
def test_draws_are_alike_that_came_out_on_the_side_of_the_effect(effect, alike):
    assert (
        Verdict("id", "of", "claim", "undecided", effect=effect, draws=(-0.2, -0.1, 0.0, 0.3)).draws_alike
        == alike
    )


def measured(*rows: tuple[str, str, float | None, list[float]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["method", "pattern", "score.beta", "window_losses"])
    return frame.assign(model="m", seed=None, articles=[[0, 1]] * len(frame))


GRID = measured(
    ("dense", "dense", None, [1.0, 1.0]),
    ("a", "50%", None, [1.5, 1.75]),
    ("b", "50%", None, [2.0, 2.5]),
    ("a", "2:4", None, [4.0, 3.0]),
    ("b", "2:4", None, [2.0, 2.5]),
)


def of_four(claim: str, case: str) -> int:
    return 4


def test_all_are_judged_as_each_by_hand_claim_by_claim_and_case_by_case():
    verdicts = judge_all(GRID, [LESS, CLOSE], by=["model", "pattern"], family=of_four)
    at_50, at_24 = (paired(GRID[i : i + 1], GRID[i + 1 : i + 2], comparisons=4) for i in (1, 3))
    expected = [
        judge(LESS, at_50, "50%"),
        judge(LESS, at_24, "2:4"),
        judge_close(CLOSE, at_50, "50%"),
        judge_close(CLOSE, at_24, "2:4"),
    ]
    assert verdicts == [replace(verdict, model="m") for verdict in expected]


def test_a_case_that_no_family_names_is_not_judged_and_the_family_says_how_many_hold_together():
    sizes = {("a_below_b", "2:4"): 7, ("a_close_to_b", "50%"): 2}
    asked = lambda claim, case: sizes.get((claim, case))  # noqa: E731
    verdicts = judge_all(GRID, [LESS, CLOSE], by=["model", "pattern"], family=asked)
    assert {(verdict.id, verdict.of): verdict.jointly for verdict in verdicts} == sizes
    with_a_gap = judge_all(GRID[:4], [LESS], by=["model", "pattern"], family=lambda claim, case: None)
    assert with_a_gap == []


def test_a_row_without_a_value_stands_in_every_case_and_numbers_go_by_their_names():
    rows = measured(
        ("a", "50%", 0.1, [1.0, 1.25]), ("a", "50%", 0.5, [2.0, 3.0]), ("b", "50%", None, [1.5, 2.5])
    )
    verdicts = judge_all(rows, [LESS], by=["pattern", "score.beta"], family=of_four)
    assert verdicts == [
        judge(LESS, paired(rows[i : i + 1], rows[2:], 4), f"50%, beta = {beta}")
        for i, beta in enumerate([0.1, 0.5])
    ]


def test_what_is_compared_and_which_column_tells_the_sides_can_be_chosen():
    rows = pd.concat([answers("1" * 30).assign(side="a"), answers("0" * 30).assign(side="b")]).assign(
        model="m"
    )
    verdicts = judge_all(rows, [MORE], ["model"], of_four, column="side", compare=paired_accuracy)
    judged = judge_accuracy(MORE, paired_accuracy(rows[:1], rows[1:], 4), "")
    assert verdicts == [replace(judged, model="m")]
    assert (verdicts[0].verdict, verdicts[0].effect, verdicts[0].over, verdicts[0].note) == (
        "reproduced",
        100,
        "30 examples",
        "30 gained, 0 lost",
    )


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (GRID[:1], "no rows to judge 'a_below_b' by: method is neither 'a' nor 'b'"),
        (GRID[:4], "2:4: no rows to judge 'a_below_b' by: method is never 'b'"),
        (GRID[2:], "50%: no rows to judge 'a_below_b' by: method is never 'a'"),
    ],
)
def test_a_claim_without_rows_never_becomes_a_verdict(rows, told):
    with pytest.raises(ValueError, match=told):
        judge_all(rows, [LESS], by=["model", "pattern"], family=of_four)


def test_a_verdict_is_kept_with_six_digits_and_read_back_as_it_was_kept(folder):
    draws = (-0.1234567, -0.07)
    verdict = Verdict(
        "id",
        "±1 %",
        "c",
        "reproduced",
        -0.08765432,
        -1 / 3,
        -1e-9 / 3,
        "perplexity",
        "8 windows",
        2,
        draws,
        "a note",
    )
    bare = Verdict("id", "", "c", "not run here")
    shown = save_verdicts([verdict, bare], "test", "02_perplexity").frame
    first, second = json.loads((folder / "02_perplexity.json").read_text())
    assert [first[name] for name in ("effect", "low", "high")] == [-0.0876543, -0.333333, -3.33333e-10]
    assert first["draws"] == [-0.123457, -0.07]
    assert (second["effect"], second["draws"], second["jointly"]) == (None, [], 1)
    found = load_verdicts("test").drop(columns=["notebook", "evidence", "difference"]).to_dict("records")
    read = Verdict(**found[0])
    assert {name: value for name, value in found[0].items() if name != "draws"} == {
        k: v for k, v in first.items() if k != "draws"
    }
    save_verdicts([read], "test", "03_again")
    assert json.loads((folder / "03_again.json").read_text()) == [first]
    assert list(shown) == ["of", "claim", "verdict", "evidence"]
    assert shown["evidence"].tolist() == [read.evidence, ""] == load_verdicts("test")["evidence"].tolist()[:2]


def test_a_case_of_a_claim_has_one_verdict(folder):
    twice = [Verdict("id", of, "c", "undecided", model="m") for of in ("one", "two", "one")]
    save_verdicts([*twice[:2], replace(twice[0], model="another")], "test", "01_of_two_models")
    (folder / "01_of_two_models.json").unlink()
    folder.rmdir()
    with pytest.raises(ValueError, match="2 verdicts on 'id', 'one': every case of a claim has one"):
        save_verdicts(twice, "test", "02_perplexity")
    assert not folder.exists()
    save_verdicts(twice[:2], "test", "02_perplexity")


@pytest.mark.parametrize(
    "text", ["{", '[{"claim": "c", "verdict": "undecided", "evidence": "-1 %"}]', "[1]", '{"a": 1}']
)
def test_a_file_of_another_version_says_which_notebook_to_run_again(folder, text):
    save_verdicts([], "test", "02_perplexity")
    (folder / "02_perplexity.json").write_text(text)
    with pytest.raises(
        UserError, match=r"02_perplexity\.json holds no verdicts of this version: run 02_perplexity again"
    ):
        load_verdicts("test")


def test_verdicts_are_gathered_on_a_page_by_notebook(folder):
    save_verdicts([Verdict("a", "m", "±1 % better", "reproduced", **INTERVAL)], "test", "02_perplexity")
    save_verdicts([Verdict("c", "m", "c", "undecided"), Verdict("d", "m", "d", "undecided")], "test", "03_lp")
    found = load_verdicts("test")
    assert found["notebook"].tolist() == ["02_perplexity", "03_lp", "03_lp"]
    page = verdict_page(found)
    assert page.startswith("**1 reproduced, 2 undecided**")
    assert "±1 % better" in page
    assert "-8.0% perplexity (95 % interval" in page
    assert page.index("### 02_perplexity") < page.index("### 03_lp")
    assert verdict_page(load_verdicts("none")) == "**no verdicts yet**"


def test_what_is_not_as_expected_is_printed_and_nothing_stops(capsys):
    expect(True, "more removed, more lost")
    assert capsys.readouterr().out == ""
    expect(False, "more removed, more lost")
    assert capsys.readouterr().out == "unexpected, not so here: more removed, more lost\n"


def test_models_are_named_where_there_are_several(folder):
    of_two = [Verdict("a", "2:4", "c", "undecided", model=model) for model in ("one", "two")]
    assert save_verdicts(of_two, "test", "02_perplexity").frame["of"].tolist() == ["one, 2:4", "two, 2:4"]
    assert save_verdicts(of_two[:1], "test", "02_perplexity").frame["of"].tolist() == ["2:4"]
