"""What claims.yaml asks is asked once; what is found of a claim follows from its verdicts' fields."""

import ast
import math
from collections import Counter

import pytest

from symprune.base import paths
from symprune.paper import claims
from symprune.paper.claims import MARKS, asked, cases_of, claims_of, family
from symprune.paper.notebooks import notebook_names
from symprune.paper.verdicts import Verdict, save_verdicts

ENTRIES = [
    {
        "id": "below",
        "by": "paper",
        "asked": "a loses less than b.",
        "family": [
            {"notebook": "02_perplexity", "comparisons": ["a_below_b"], "cases": [["50%", "2:4", "4:8"]]},
            {
                "notebook": "05_sparsity",
                "comparisons": ["a_below_b", "c_below_b"],
                "cases": [["x"], ["1", "2"]],
            },
        ],
        "tables": ["02_perplexity"],
    },
    {
        "id": "some",
        "by": "reviewers",
        "asked": "Can another p be better?",
        "holds": "any",
        "family": [{"notebook": "03_lp_norm", "comparisons": ["other_p"], "cases": [["p = 2", "p = 3"]]}],
    },
    {
        "id": "exact",
        "by": "paper",
        "asked": "?",
        "family": [{"notebook": "01_methods", "comparisons": ["id"]}],
    },
    {"id": "seen", "by": "reviewers", "asked": "How?", "see": ["below", "some"]},
    {"id": "answered", "by": "reviewers", "asked": "Where?", "answer": "Elsewhere."},
]


@pytest.fixture
def profile(tmp_path, monkeypatch) -> str:
    monkeypatch.setenv("SYMPRUNE_OUTPUT", str(tmp_path))
    monkeypatch.setattr(claims, "asked", lambda: ENTRIES)
    return "mine"


def verdict(of: str, word: str, effect: float = -0.1, id_: str = "a_below_b", **changes) -> Verdict:
    numbers = {
        "low": effect - 0.02,
        "high": effect + 0.03,
        "unit": "perplexity",
        "side": "lower",
        "model": "m",
    }
    return Verdict(id_, of, "a loses less than b", word, effect, **{**numbers, **changes})


def found(profile: str, **verdicts: list[Verdict]) -> dict[str, claims.ClaimFound]:
    for notebook, of in verdicts.items():
        save_verdicts(of, profile, {"n1": "01_methods", "n2": "02_perplexity", "n3": "03_lp_norm"}[notebook])
    return {claim.id: claim for claim in claims_of(profile)}


# claims.yaml


def test_every_claim_has_a_name_of_its_own_and_says_who_asks():
    assert len({entry["id"] for entry in asked()}) == len(asked())
    for entry in asked():
        assert entry["by"] in ("paper", "reviewers", "ours")
        assert entry.keys() <= {"id", "by", "asked", "answer", "holds", "family", "see", "tables", "figures"}
        assert entry.get("holds") in (None, "any")
        assert {block["notebook"] for block in entry.get("family", ())} <= set(notebook_names())
        assert set(entry.get("see", ())) <= {other["id"] for other in asked()} - {entry["id"]}
        assert entry.get("family") or entry.get("see") or entry.get("answer")


def test_a_comparison_stands_in_one_family_and_is_judged_in_one_notebook():
    times = Counter(case for entry in asked() for case in cases_of(entry))
    assert max(times.values()) == 1
    notebooks = Counter((id_, of) for _, id_, of in times if of is not None)
    assert max(notebooks.values()) == 1


def test_every_comparison_is_one_that_its_notebook_makes():
    for entry in asked():
        for block in entry.get("family", ()):
            source = ast.parse((paths.NOTEBOOKS / f"{block['notebook']}.py").read_text())
            texts = {node.value for node in ast.walk(source) if isinstance(node, ast.Constant)}
            assert set(block["comparisons"]) <= texts, block


def test_a_family_is_as_large_as_its_products(profile):
    assert len(cases_of(ENTRIES[0])) == 3 + 2 * 2
    assert family("02_perplexity")("a_below_b", "2:4") == 7
    assert family("05_sparsity")("c_below_b", "x, 2") == 7
    assert family("03_lp_norm")("other_p", "p = 3") == 2
    for notebook, id_, of in (("05_sparsity", "a_below_b", "2:4"), ("02_perplexity", "a_below_b", "60%")):
        assert family(notebook)(id_, of) is None


# What is found


def test_where_nothing_was_run_all_of_it_stays_visible(profile):
    of = found(profile)
    assert [claim.mark for claim in of.values()] == ["not run here"] * 5
    assert (of["below"].not_run, of["below"].sentence, of["below"].verdicts) == (7, "Not run here.", ())
    assert (of["below"].effect, of["below"].power, of["below"].notebooks) == (
        None,
        None,
        ("02_perplexity", "05_sparsity"),
    )
    assert of["answered"].answer == "Elsewhere."


@pytest.mark.parametrize(
    ("words", "mark", "sentence"),
    [
        (["reproduced"] * 3, "reproduced", "Reproduced in 3 of 3 cases (4 more not run here)"),
        (
            ["not reproduced", "undecided", "undecided"],
            "not reproduced",
            "Contradicted in 1, undecided in 2 of 3 cases (4 more not run here)",
        ),
        (
            ["reproduced", "not reproduced", "undecided"],
            "mixed",
            "Reproduced in 1, contradicted in 1, undecided in 1 of 3 cases (4 more not run here)",
        ),
        (["reproduced", "undecided"], "mixed", "Reproduced in 1, undecided in 1 of 2 cases (5 more"),
        (["undecided"], "undecided", "Undecided (6 more not run here); 50%: perplexity 10.0% lower"),
    ],
)
def test_the_mark_is_over_all_cases(profile, words, mark, sentence):
    of = [verdict(case, word) for case, word in zip(["50%", "2:4", "4:8"], words, strict=False)]
    claim = found(profile, n2=of)["below"]
    assert claim.mark == mark
    assert claim.sentence.startswith(sentence)
    counted = claim.reproduced + claim.contradicted + claim.undecided
    assert (counted, claim.not_run) == (len(words), 7 - len(words))
    assert claim.verdicts[0] == "02_perplexity/a_below_b/50%"


@pytest.mark.parametrize(
    ("words", "mark"),
    [
        (["not reproduced", "reproduced"], "reproduced"),
        (["not reproduced", "not reproduced"], "not reproduced"),
        (["not reproduced", "undecided"], "undecided"),
    ],
)
def test_what_can_be_is_shown_by_one_case_and_refuted_by_all(profile, words, mark):
    of = [
        verdict(case, word, effect, "other_p")
        for case, word, effect in zip(["p = 2", "p = 3"], words, [12.05, -0.1], strict=True)
    ]
    claim = found(profile, n3=of)["some"]
    assert claim.mark == mark
    assert claim.effect == pytest.approx(-0.1), "of such a claim the best case is shown, not the median"


def test_one_case_unlike_the_others_is_not_the_effect_of_a_claim(profile):
    of = [verdict("50%", "undecided", 0.01), verdict("2:4", "undecided", 0.03, power=0.02)]
    of += [verdict("4:8", "undecided", -0.9, power=0.07)]
    claim = found(profile, n2=of)["below"]
    assert [claim.effect, claim.low, claim.high] == pytest.approx([0.01, -0.01, 0.04])
    assert claim.sentence.endswith(
        "the largest: 4:8: perplexity 90.0% lower (-92.0% to -87.0%); 2.0% to 7.0% would have been found with"
        " 80 % probability."
    )


def test_the_effect_of_two_is_the_mean_of_logarithms_and_the_interval_that_of_intervals_that_hold_together(
    profile,
):
    claim = found(profile, n2=[verdict("50%", "reproduced", -0.5), verdict("2:4", "undecided", 1.0)])["below"]
    expected = [math.sqrt(a * b) - 1 for a, b in ((0.5, 2.0), (0.48, 1.98), (0.53, 2.03))]
    assert [claim.effect, claim.low, claim.high] == pytest.approx(expected)
    assert (claim.unit, claim.side, claim.margin) == ("perplexity", "lower", None)
    points = [verdict(of, "undecided", e, unit="points", side="higher") for of, e in (("50%", 1), ("2:4", 4))]
    claim = found(profile, n2=points)["below"]
    assert (claim.effect, claim.unit, claim.side) == (2.5, "points", "higher")


def test_effects_of_two_kinds_have_no_mean(profile):
    within = verdict("2:4", "reproduced", 0.01, side="within", margin=0.05)
    claim = found(profile, n2=[verdict("50%", "undecided", power=0.1), within])["below"]
    assert (claim.effect, claim.low, claim.unit, claim.side, claim.power) == (None, None, "", "", None)


def test_the_farthest_decided_cases_are_told_with_their_side(profile):
    of = [
        verdict("50%", "reproduced", -0.08),
        verdict("2:4", "not reproduced", 12.05),
        verdict("4:8", "undecided", -0.9, power=0.021),
    ]
    assert found(profile, n2=of)["below"].sentence == (
        "Reproduced in 1, contradicted in 1, undecided in 1 of 3 cases (4 more not run here); most in its"
        " favour: 50%: perplexity 8.0% lower (-10.0% to -5.0%); most against it: 2:4: perplexity 13.1 times"
        " as high (13 times to 13.1 times); 2.1% would have been found with 80 % probability."
    )


def test_the_power_of_a_claim_is_that_of_its_weakest_undecided_case(profile):
    of = [
        verdict("50%", "undecided", power=0.02),
        verdict("2:4", "undecided", power=0.07),
        verdict("4:8", "reproduced", power=0.5),
    ]
    assert found(profile, n2=of)["below"].power == 0.07


def test_an_interval_without_a_bound_has_no_part_in_the_mean(profile):
    boundless = verdict("2:4", "undecided", 0.5, low=-1.0, high=1e304)
    claim = found(profile, n2=[verdict("50%", "undecided", -0.1), boundless])["below"]
    assert [claim.effect, claim.low, claim.high] == pytest.approx([-0.1, -0.12, -0.07])
    assert boundless.difference == "perplexity 50.0% higher (-100.0% to any height)"
    alone = found(profile, n2=[boundless])["below"]
    assert (alone.mark, alone.effect, alone.low, alone.high) == ("undecided", None, None, None)


def test_what_is_exact_is_told_without_a_difference(profile):
    exact = Verdict("id", "any", "c", "reproduced", 1e-16, unit="largest deviation", over="3 pairs")
    claim = found(profile, n1=[exact])["exact"]
    assert (claim.mark, claim.not_run, claim.effect) == ("reproduced", 0, None)
    assert claim.sentence == "Reproduced; any: largest deviation: 1e-16 over 3 pairs."


def test_another_model_repeats_the_family(profile):
    of = [verdict("50%", "reproduced", model=model) for model in ("one", "two")]
    claim = found(profile, n2=of)["below"]
    assert (claim.reproduced, claim.not_run) == (2, 12)
    assert claim.verdicts == ("02_perplexity/a_below_b/50%@one", "02_perplexity/a_below_b/50%@two")


def test_a_question_without_a_family_is_answered_by_the_claims_it_names(profile):
    of = found(profile, n2=[verdict("50%", "reproduced")], n3=[verdict("p = 2", "reproduced", id_="other_p")])
    assert (of["seen"].mark, of["seen"].reproduced, of["seen"].not_run) == ("reproduced", 2, 7)
    assert of["seen"].notebooks == ("02_perplexity", "03_lp_norm")
    assert all(claim.mark in MARKS for claim in of.values())
