"""A model whose dense perplexity is not the expected one is not pruned, and what cannot be compared is
recorded with a warning.
"""

import json
import warnings

import pytest

from symprune import Magnitude, Recipe, UserError
from symprune.base import paths
from symprune.measure import Accuracy, Experiment, Protocol, WindowLosses, dense_gate
from symprune.measure import bench as module

RECIPE = Recipe(Magnitude())
PROTOCOL = {"split": "evaluation", "seq_len": 32, "n_eval": 3}


@pytest.fixture
def protocol(protocol, checkpoint, tokenizer, tmp_path, monkeypatch) -> dict:
    """An experiment on a model that goes by the name of one of the hub."""
    (tmp_path / "hub/some").mkdir(parents=True)
    (tmp_path / "hub/some/model").symlink_to(checkpoint)
    monkeypatch.setattr("symprune.models.load_tokenizer", lambda _: tokenizer)  # read once for all tests
    monkeypatch.setenv("SYMPRUNE_DATA", str(tmp_path / "hub"))
    return {**protocol, "models": ["some/model"], "seeds": [0]}


@pytest.fixture
def expect(corpus, monkeypatch):
    """Stores the perplexity expected of some/model."""

    def store(perplexity: float, tolerance: float = 0.01) -> None:
        entry = {"perplexity": perplexity, "tolerance": tolerance, "source": "a table"}
        entries = [{"model": "some/model", "protocol": {"corpus": str(corpus), **PROTOCOL}, **entry}]
        monkeypatch.setattr(dense_gate, "_entries", lambda: entries)

    return store


@pytest.fixture
def dense(protocol, checkpoint) -> float:
    """What the model's perplexity is, measured from its folder."""
    folder = Experiment(Protocol(**{**protocol, "models": [str(checkpoint)], "profile": "folder"}))
    return folder.record(str(checkpoint)).metrics["perplexity"]


@pytest.mark.parametrize("factor", [1.02, 0.98])
def test_outside_the_tolerance_nothing_is_pruned_and_nothing_goes_on_record(
    protocol, expect, dense, monkeypatch, factor
):
    def never(*_, **__):
        raise AssertionError("not to be pruned")

    monkeypatch.setattr(module, "prune", never)
    expect(dense * factor)
    experiment = Experiment(Protocol(**protocol))
    for run in (
        lambda: experiment.record("some/model", RECIPE),
        lambda: experiment.run([RECIPE], Accuracy("continuation", limit=1)),
    ):
        with pytest.raises(UserError) as caught:
            run()
        line = str(caught.value)
        assert "\n" not in line
        for part in (
            "some/model",
            f"{dense:.2f}",
            f"{dense * factor:.2f}",
            "a table",
            "nothing is pruned",
            "weights",
            "tokenizer",
            "BOS",
            "dtype",
        ):
            assert part in line
    assert list(experiment.store) == []


def test_within_the_tolerance_the_dense_model_is_measured_first_and_once(
    protocol, expect, dense, monkeypatch
):
    order, real = [], WindowLosses.measure
    monkeypatch.setattr(WindowLosses, "measure", lambda *of: order.append(of[2]) or real(*of))
    expect(dense * 1.02, tolerance=0.03)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        experiment = Experiment(Protocol(**protocol))
        experiment.record("some/model", RECIPE)
        assert experiment.record("some/model", None).metrics["perplexity"] == dense
        Experiment(Protocol(**protocol)).record(
            "some/model", Recipe(Magnitude(), RECIPE.pattern.__class__(0.7))
        )
    assert [recipe is None for recipe in order] == [True, False, False]


def test_a_perplexity_that_is_infinite_is_outside(protocol, expect, corpus):
    expect(20.0)
    for value in (float("inf"), float("nan")):
        with pytest.raises(UserError, match="nothing is pruned"):
            dense_gate.check_dense("some/model", Protocol(**protocol), value, bos=True)


def test_a_model_of_the_hub_without_a_stored_value_is_recorded_with_a_warning(protocol, dense):
    experiment = Experiment(Protocol(**protocol))
    with pytest.warns(UserWarning, match=f"no dense perplexity is stored for some/model .* {dense:.2f}"):
        experiment.record("some/model", RECIPE)
    assert sorted(record.run["recipe"] is None for record in experiment.store) == [False, True]


def test_of_a_folder_nothing_is_expected_and_the_dense_model_is_not_measured(protocol, checkpoint):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        experiment = Experiment(Protocol(**{**protocol, "models": [str(checkpoint)]}))
        experiment.record(str(checkpoint), RECIPE)
    assert len(list(experiment.store)) == 1


def test_stored_values_are_unambiguous_and_that_of_the_embedded_model_is_the_published_one():
    entries = dense_gate._entries()
    assert len({json.dumps([entry["model"], entry["protocol"]], sort_keys=True) for entry in entries}) == len(
        entries
    )
    for entry in entries:
        assert entry.keys() == {"model", "protocol", "perplexity", "tolerance", "source"}
        assert entry["protocol"].keys() == {"corpus", "split", "seq_len", "n_eval"}
        assert entry["perplexity"] > 1
        assert 0 < entry["tolerance"] <= 0.02


def test_the_values_stored_for_the_embedded_model_are_the_published_ones():
    stored = {
        (e["protocol"]["seq_len"], e["protocol"]["n_eval"]): e["perplexity"]
        for e in dense_gate._entries()
        if e["model"] == "embedded"
    }
    compared = 0
    for file in paths.ROOT.glob("results/*/records.jsonl"):
        for record in map(json.loads, file.read_text().splitlines()):
            run, evaluation = record["run"], record["run"].get("evaluation", {})
            size = evaluation.get("seq_len"), evaluation.get("n_windows")
            if (
                run["model"]["name"] == "embedded"
                and run.get("recipe") is None
                and evaluation.get("split") == "evaluation"
                and size in stored
            ):
                assert record["metrics"]["perplexity"] == pytest.approx(stored[size], rel=1e-3)
                compared += 1
    assert compared
