"""Records that other code measured are reused only where this code measures the same."""

import json
import shutil
from dataclasses import replace

import pytest

import symprune.base.code as code
from symprune import RIA, LpNorm, Magnitude, Recipe, Unstructured, Wanda
from symprune.base import records
from symprune.base.records import Record, Store
from symprune.measure import Experiment, MaskOverlap, Protocol, ScoreTime, WindowLosses
from symprune.measure import same_code as module
from symprune.measure.asked_again import cell_of, verify_records
from symprune.methods import scores

P2, P1 = Recipe(LpNorm(p=2.0)), Recipe(LpNorm(p=1.0))
SPARSE, WANDA = Recipe(LpNorm(p=2.0), Unstructured(0.6)), Recipe(Wanda())
SUBJECTS = [None, P1, P2, SPARSE, WANDA]


@pytest.fixture
def told(monkeypatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(module, "tell", lines.append)
    return lines


@pytest.fixture
def measured(monkeypatch) -> list[str]:
    seen, measure = [], WindowLosses.measure

    def watched(self, bench, recipe, seed):
        seen.append(recipe.label if recipe else "dense")
        return measure(self, bench, recipe, seed)

    monkeypatch.setattr(WindowLosses, "measure", watched)
    return seen


def other_code(monkeypatch, digest: str = "other") -> None:
    for place in (records, module):
        monkeypatch.setattr(place, "code_digest", lambda: digest)


def run(protocol, *measurements, subjects=SUBJECTS):
    return Experiment(Protocol(**{**protocol, "seeds": [0, 1]})).run(subjects, *measurements)


def test_the_digest_is_of_what_code_says_and_of_nothing_else(tmp_path):
    for folder in code.ANSWERING:
        (tmp_path / folder).mkdir()
    (tmp_path / "cli").mkdir()
    file = tmp_path / "methods/a.py"

    def digest(source: str) -> str:
        file.write_text(source)
        return code.code_digest.__wrapped__(tmp_path)

    plain = digest("def f(p):\n    return p\n")
    assert (
        digest('"""A module."""\n\n\ndef f(p):\n    """A function."""\n    return p  # as it is\n') == plain
    )
    (tmp_path / "cli/b.py").write_text("x = 1\n")
    assert digest("def f(p):\n    return p\n") == plain
    assert digest("def f(p):\n    return p + 0\n") != plain
    file.rename(tmp_path / "methods/b.py")
    assert code.code_digest.__wrapped__(tmp_path) != plain


def test_an_equal_refactoring_is_accepted_after_a_sample_and_remembered(
    protocol, measured, told, monkeypatch
):
    first = run(protocol)
    assert len(measured) == 6  # only wanda reads calibration text
    assert told == []
    other_code(monkeypatch)
    measured.clear()
    again = run(protocol)
    # dense comes as one of its model, or not at all: every kind once, far from every record
    assert {P1.label, WANDA.label} <= set(measured)
    assert {P2.label, SPARSE.label} & set(measured)
    assert SPARSE.label in measured  # the only one of its pattern
    assert len(measured) <= 4
    assert told == [
        f"6 records are of other code: {len(measured)} of them are measured again",
        "they are equal",
    ]
    assert again["record"].tolist() == first["record"].tolist()
    assert again["perplexity"].tolist() == first["perplexity"].tolist()
    measured.clear()
    run(protocol)  # another experiment, as another process
    assert measured == []
    other_code(monkeypatch, "yet another")
    run(protocol)
    assert measured != []


def test_a_broken_score_is_found_and_all_its_records_are_measured_anew(protocol, measured, told, monkeypatch):
    before = run(protocol)
    other_code(monkeypatch)
    real = scores.row_column_norms
    monkeypatch.setattr(
        scores, "row_column_norms", lambda weight, p=1.0, out=None: real(weight, 3.0 if p == 2 else p, out)
    )
    measured.clear()
    after = run(protocol)
    assert measured.count(P2.label) == 1
    assert measured.count(SPARSE.label) == 1
    assert measured.count(P1.label) == 1  # for the sample
    assert "otherwise: measured anew" in told[-1]
    assert "score lp_norm(p=2" in told[-1]
    assert "lp_norm(p=1" not in told[-1]
    assert "wanda" not in told[-1]
    changed = [a != b for a, b in zip(before["perplexity"], after["perplexity"], strict=True)]
    assert changed == [False, False, True, True, False, False]
    fresh = run({**protocol, "profile": "fresh"})
    assert fresh["perplexity"].tolist() == after["perplexity"].tolist()


def test_records_from_before_there_were_digests_are_of_other_code(protocol, measured, told):
    experiment = Experiment(Protocol(**protocol))
    record = experiment.record(protocol["models"][0], P2)
    meta = {name: value for name, value in record.meta.items() if name not in ("code", "processor")}
    experiment.store.put(replace(record, meta=meta))
    measured.clear()
    Experiment(Protocol(**protocol)).record(protocol["models"][0], P2)
    assert measured == [P2.label]
    assert told[-1] == "they are equal"


def test_replay_measures_nothing_and_says_so_once(protocol, measured, told, monkeypatch):
    first = run(protocol)
    other_code(monkeypatch)
    monkeypatch.setenv("SYMPRUNE_REPLAY", "1")
    measured.clear()
    assert run(protocol)["perplexity"].tolist() == first["perplexity"].tolist()
    assert measured == []
    assert told == ["6 of 6 records were measured by other code"]


def test_seconds_of_other_code_are_measured_anew_and_not_compared(protocol, told, monkeypatch):
    times = ScoreTime(repeats=1, n_layers=1)
    dense = {**protocol, "propagate": "dense"}
    pair = (Magnitude(), RIA())
    run(dense, times, subjects=[pair])
    (before,) = Store(Experiment(Protocol(**protocol)).store.folder)
    other_code(monkeypatch)
    run(dense, times, subjects=[pair])
    (after,) = Store(Experiment(Protocol(**protocol)).store.folder)
    assert before.key == after.key
    assert (before.meta["code"] != "other", after.meta["code"]) == (True, "other")
    assert told == []


def record(machine: str = "m", **metrics) -> Record:
    meta = {"versions": {"torch": "2"}, "machine": machine, "processor": "AVX2, 1 threads"}
    return Record({"asked": 1}, metrics, meta)


@pytest.mark.parametrize(
    ("old", "new", "here", "elsewhere"),
    [
        ({"x": 1.0}, {"x": 1.0}, None, None),
        ({"x": 1.0}, {"x": 1.0 + 1e-15}, "x", None),
        ({"x": 1.0}, {"x": 1.0011}, "x", "x"),
        ({"x": [1.0, 2.0]}, {"x": [1.0, 2.001]}, "x", None),
        ({"x": [1.0]}, {"x": [1.0, 2.0]}, "x", "x"),
        ({"x": {"a": 1.0}}, {"x": {"b": 1.0}}, "x", "x"),
        ({"x": "0110"}, {"x": "0111"}, "x", "x"),
        ({}, {"x": 1.0}, "x", "x"),
        ({"x": 1.0, "gone": 2}, {"x": 1.0}, None, None),
        ({"seconds_prune": 1.0}, {"seconds_prune": 2.0}, None, None),
    ],
)
def test_numbers_agree_to_the_bit_on_one_processor_and_to_a_thousandth_elsewhere(old, new, here, elsewhere):
    assert module.first_difference(record(**old), record(**new)) == here
    assert module.first_difference(record("another", **old), record(**new)) == elsewhere


def test_what_was_found_lies_beside_the_records_and_is_no_record(protocol, told, monkeypatch):
    experiment = Experiment(Protocol(**protocol))
    experiment.record(protocol["models"][0], P2)
    other_code(monkeypatch)
    Experiment(Protocol(**protocol)).record(protocol["models"][0], P2)
    (file,) = (experiment.store.folder / ".code").glob("*.json")
    assert all(json.loads(file.read_text()).popitem()[1].values())
    assert len(list(experiment.store)) == 1
    shutil.rmtree(file.parent)
    Experiment(Protocol(**protocol)).record(protocol["models"][0], P2)
    assert told.count("they are equal") == 2


def test_records_become_the_questions_that_they_answer_and_are_measured_again(protocol, measured):
    dense = Protocol(**{**protocol, "propagate": "dense", "calibration_dtype": "float64", "n_eval": None})
    experiment = Experiment(dense)
    other = replace(dense, n_calib=1, seeds=(5, 6))
    experiment.run([None, P2, WANDA])
    experiment.run([(WANDA, P1)], MaskOverlap(), MaskOverlap(against=other))
    experiment.run([(Magnitude(), RIA())], ScoreTime(repeats=1, n_layers=1))
    found = {record.key: cell_of(Protocol(**protocol), record) for record in experiment.store}
    assert [cell for cell in found.values() if cell is None] == [None]  # seconds
    for key, (its, cell) in ((key, pair) for key, pair in found.items() if pair):
        assert records.run_key(its.question(cell)) == key
    kept = list(experiment.store)
    measured.clear()
    assert verify_records(dense, kept) == (2, [])  # an overlap has two scores, a perplexity the third
    assert measured == [P2.label]
    spoilt = [
        replace(r, metrics={**r.metrics, "perplexity": r.metrics.get("perplexity", 0) + 1}) for r in kept
    ]
    n, findings = verify_records(dense, spoilt)
    assert n == 2
    assert any("perplexity is measured otherwise (measurement WindowLosses" in line for line in findings)


def test_a_record_of_another_text_cannot_be_asked_again(protocol):
    record = Experiment(Protocol(**protocol)).record(protocol["models"][0], WANDA)
    run = {**record.run, "evaluation": {**record.run["evaluation"], "windows": "0" * 16}}
    with pytest.raises(ValueError, match="its text, weights or profile are other ones now"):
        cell_of(Protocol(**protocol), replace(record, run=run))
