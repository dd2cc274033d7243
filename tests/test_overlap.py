"""Overlap and evenness of masks, by counting and by hand."""

import math
from dataclasses import replace
from statistics import fmean

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from symprune import RIA, DSnoT, LpNorm, Magnitude, Recipe, StochRIA, Unstructured, UserError, Wanda, prune
from symprune.measure import Experiment, MaskOverlap, Protocol, ScoreTime
from symprune.methods.overlap import entropy_of_kept, jaccard
from symprune.models.load import load_model, load_tokenizer
from symprune.paper.differences import difference_curves, differences
from symprune.paper.tables import perplexity_table
from symprune.text.corpora import calibration_windows

sizes = st.integers(1, 7)


def random_mask(d_out: int, d_in: int, seed: int, kept: float = 0.4) -> torch.Tensor:
    return torch.rand(d_out, d_in, generator=torch.Generator().manual_seed(seed)) < kept


@given(sizes, sizes, st.integers(0, 99), st.integers(0, 99))
def test_jaccard_counts_kept_weights(d_out, d_in, seed, other):
    a, b = random_mask(d_out, d_in, seed), random_mask(d_out, d_in, other)
    kept_a, kept_b = ({tuple(ij) for ij in mask.nonzero().tolist()} for mask in (a, b))
    expected = len(kept_a & kept_b) / len(kept_a | kept_b) if kept_a | kept_b else 1
    assert jaccard(a, b) == jaccard(b, a) == expected
    assert jaccard(a, a) == 1


def test_jaccard_of_random_masks():
    """k / (2 - k) for masks that keep a fraction k at random."""
    assert jaccard(random_mask(500, 400, 0), random_mask(500, 400, 1)) == pytest.approx(0.25, abs=0.01)


@given(sizes, sizes, st.integers(0, 99), st.sampled_from([0, 1]))
def test_entropy_by_definition(d_out, d_in, seed, dim):
    mask = random_mask(d_out, d_in, seed)
    lines = mask.tolist() if dim == 0 else mask.t().tolist()
    total, entropy = sum(map(sum, lines)), 0.0
    for line in lines:
        if total and sum(line):
            entropy -= sum(line) / total * math.log(sum(line) / total)
    expected = entropy / math.log(len(lines)) if total and len(lines) > 1 else 1.0
    assert entropy_of_kept(mask, dim) == pytest.approx(expected, abs=1e-12)
    assert entropy_of_kept(mask, dim) == pytest.approx(entropy_of_kept(mask.t(), 1 - dim), abs=1e-12)


def test_entropy_at_its_ends():
    one_row = torch.zeros(4, 6, dtype=torch.bool)
    one_row[2] = True
    assert entropy_of_kept(one_row, 0) == 0
    assert entropy_of_kept(one_row, 1) == pytest.approx(1, abs=1e-12)


def test_unevenness_is_close_to_half_the_variance():
    """1 - H ~ var(n q) / (2 log n): what the docstring says of small differences."""
    mask = random_mask(300, 2000, 0)
    relative = mask.sum(dim=1).double() / mask.sum() * 300
    assert 1 - entropy_of_kept(mask, 0) == pytest.approx(
        relative.var(unbiased=False).item() / (2 * math.log(300)), rel=0.05
    )


@pytest.fixture
def experiment(checkpoint, corpus, tmp_path, monkeypatch) -> Experiment:
    monkeypatch.setenv("SYMPRUNE_OUTPUT", str(tmp_path))
    corpora = {"calibration_corpus": str(corpus), "evaluation_corpus": str(corpus)}
    sizes = {"n_calib": 2, "n_eval": 3, "seq_len": 32}
    return Experiment(Protocol("test", (str(checkpoint),), **corpora, **sizes, propagate="dense"))


def with_other(experiment: Experiment, **changes) -> Experiment:
    return Experiment(replace(experiment.protocol, **changes))


def test_masks_of_an_experiment_are_those_of_prune(experiment, monkeypatch):
    """Refined masks included; one record per pair and seed, found again without a model."""
    recipe, reference = Recipe(RIA(), Unstructured(0.5), DSnoT()), Recipe(Magnitude(), Unstructured(0.5))
    rows = experiment.run([(recipe, reference), (reference, reference)], MaskOverlap())
    assert list(zip(rows["method"], rows["refine"], strict=True)) == [
        ("ria", "dsnot"),
        ("ria", "dsnot"),
        ("magnitude", "none"),
    ]
    assert rows["seed"].tolist()[:2] == [0, 1]
    windows = calibration_windows(
        experiment.protocol.calibration_corpus, load_tokenizer(experiment.protocol.models[0]), 2, 32, seed=1
    )
    masks = [
        prune(load_model(experiment.protocol.models[0]), windows, r, "dense", keep_masks=True).masks
        for r in (recipe, reference)
    ]
    last = rows.iloc[1]
    assert last["jaccard"] == pytest.approx(
        fmean(jaccard(masks[0][name], masks[1][name]) for name in masks[0])
    )
    unevenness = [1 - entropy for entropy in last["linear_entropy_columns"]]
    expected = [1 - entropy_of_kept(mask, 1) for mask in masks[0].values()]
    assert unevenness == pytest.approx(expected, rel=5e-4, abs=1e-15)  # kept to four digits
    assert last["entropy_columns"] == pytest.approx(1 - fmean(expected), rel=5e-4)
    assert rows["jaccard"][2] == 1
    assert rows["record"].is_unique
    assert {record.key for record in experiment.store} == set(rows["record"])
    monkeypatch.setattr(MaskOverlap, "measure", None)  # whatever is on record is not measured again
    again = experiment.run([(recipe, reference)], MaskOverlap())
    assert again["record"].tolist() == rows["record"][:2].tolist()


def test_masks_of_experts_that_no_token_reached_are_those_of_prune(experiment, tokenizer, tmp_path):
    """Their scores would be all zero, and their masks only ties."""
    name = str(tmp_path / "mixture")
    tiny.model(
        "mixtral", vocab_size=len(tokenizer), num_local_experts=16, num_experts_per_tok=1
    ).save_pretrained(name)
    tokenizer.save_pretrained(name)
    experiment = with_other(experiment, models=(name,), n_calib=1, seq_len=8, eval_seq_len=8, seeds=(0,))
    recipe, reference = Recipe(Wanda(), Unstructured(0.5), DSnoT()), Recipe(Magnitude(), Unstructured(0.5))
    (row,) = experiment.run([(recipe, reference)], MaskOverlap()).to_dict("records")
    windows = calibration_windows(experiment.protocol.calibration_corpus, tokenizer, 1, 8, seed=0)
    report, other = (
        prune(load_model(name), windows, r, "dense", keep_masks=True) for r in (recipe, reference)
    )
    assert len(report.unreached) >= 8 * 3, "eight tokens reach eight experts of sixteen at most"
    overlaps = {linear: jaccard(report.masks[linear], other.masks[linear]) for linear in report.masks}
    assert row["jaccard"] == pytest.approx(fmean(overlaps.values()))
    assert all(overlaps[linear] == 1 for linear in report.unreached)


def test_masks_are_compared_on_the_dense_model_only(experiment):
    pair = Recipe(RIA()), Recipe(Magnitude())
    with pytest.raises(UserError, match="propagate 'dense'"):
        with_other(experiment, propagate="pruned").run([pair], MaskOverlap())
    with pytest.raises(UserError, match="propagate 'dense'"):
        experiment.run([pair], MaskOverlap(against=replace(experiment.protocol, propagate="pruned")))


def test_references_may_be_calibrated_otherwise(experiment):
    """Seed by seed against another experiment: the overlap of masks calibrated on different windows."""
    recipe = Recipe(Wanda(), Unstructured(0.5))
    other = replace(experiment.protocol, n_calib=1, seeds=(2, 3))
    rows = experiment.run([(recipe, recipe)], MaskOverlap(against=other))
    tokenizer = load_tokenizer(experiment.protocol.models[0])
    for row, seeds in zip(rows.to_dict("records"), [(0, 2), (1, 3)], strict=True):
        windows = (
            calibration_windows(experiment.protocol.calibration_corpus, tokenizer, n, 32, seed)
            for n, seed in zip((2, 1), seeds, strict=True)
        )
        ours, theirs = (
            prune(load_model(experiment.protocol.models[0]), w, recipe, "dense", keep_masks=True).masks
            for w in windows
        )
        assert row["jaccard"] == pytest.approx(fmean(jaccard(ours[name], theirs[name]) for name in ours))
        assert 0.4 < row["jaccard"] < 1
    with pytest.raises(ValueError, match="no partner for 0"):
        experiment.run([(recipe, recipe)], MaskOverlap(against=replace(other, seeds=(2,))))
    with pytest.raises(ValueError, match="no partner for 5"):
        experiment.run([(recipe, recipe)], MaskOverlap(against=other), seeds={(recipe, recipe): [5]})


def test_a_pair_may_have_draws_of_its_own(experiment):
    pair = Recipe(Wanda(), Unstructured(0.5)), Recipe(RIA(), Unstructured(0.5))
    rows = experiment.run([pair], MaskOverlap(), seeds={pair: [5]})
    there = with_other(experiment, seeds=(5,)).run([pair], MaskOverlap())
    assert rows["seed"].tolist() == [5]
    assert rows["record"].tolist() == there["record"].tolist()


def test_timings_are_kept_round_by_round(experiment):
    scores, measurement = (RIA(), StochRIA(beta=0.25), Magnitude()), ScoreTime(repeats=3, n_layers=1)
    rows = experiment.run([scores], measurement)
    assert rows["method"].tolist() == ["ria", "stochria(beta=0.25)", "magnitude"]
    assert rows["ratio"][0] == 1
    assert (rows["seconds"] > 0).all()
    assert rows["log_ratios"].map(len).tolist() == [3, 3, 3]
    assert rows["score.beta"].tolist()[1] == 0.25
    (record,) = experiment.store
    assert len(record.metrics["linears"]) == 7, "one decoder layer of seven linears"
    assert experiment.run([scores], measurement).equals(rows), "found, not timed again"


def test_sweeps_can_be_pivoted_and_drawn(experiment):
    recipes = [Recipe(LpNorm(p=p, alpha=alpha)) for alpha in (0.0, 0.5) for p in (1.0, math.inf)]
    rows = experiment.run([None, *recipes])
    table = perplexity_table(rows, index=["score.p"], columns="score.alpha")
    assert list(table.index) == ["dense", 1.0, math.inf]
    assert list(table.columns) == [0.0, 0.5]
    assert (table.loc["dense"] == table.loc["dense", 0.0]).all()
    of = differences(rows[rows["method"] != "dense"], "score.p", 1.0, ["model", "score.alpha", "score.p"])
    (ax, *_) = difference_curves(of, "p").figure.axes
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["∞"]
    assert of.rows["score.alpha"].tolist() == [0.0, 0.5]
