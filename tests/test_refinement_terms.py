"""Both terms of a row's expected squared error, and when a swap lowers it, against the tokens themselves."""

import itertools

import pandas as pd
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from symprune import DSnoT, ExactSwap, Recipe, StatsAccumulator, Unstructured
from symprune.base.records import Record
from symprune.measure.bench import Bench, Loaded
from symprune.measure.protocol import Protocol
from symprune.measure.refinement_terms import RefinementTerms, error_terms, swap_lowers

F64 = torch.float64


def case(seed, d_out=3, d_in=6, tokens=9):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=F64)  # noqa: E731
    x = draw(tokens, d_in) @ draw(d_in, d_in) + 2 * draw(d_in)
    accumulator = StatsAccumulator(d_in, d_out, gram=True)
    accumulator.update(x)
    return draw(d_out, d_in), x, accumulator.finish(), torch.rand(d_out, d_in, generator=g) < 0.5


def errors(row, kept, x):
    """A row's error at every token, by a loop."""
    return [sum(float(w * t) for w, t, k in zip(row, token, kept, strict=True) if not k) for token in x]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_terms_are_the_squared_mean_and_the_variance_of_the_error(seed):
    weight, x, stats, mask = case(seed)
    first, rest = error_terms(weight, mask, stats)
    for i in range(3):
        error = torch.tensor(errors(weight[i], mask[i], x), dtype=F64)
        torch.testing.assert_close(first[i], error.mean() ** 2)
        torch.testing.assert_close(rest[i], error.var(correction=0), rtol=1e-6, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_swap_lowers_the_error_if_and_only_if_the_condition_says_so(seed):
    weight, x, stats, mask = case(seed, d_out=1)
    before = sum(e**2 for e in errors(weight[0], mask[0], x))
    said = []
    for k, j in itertools.product(range(6), range(6)):
        if mask[0, k] or not mask[0, j]:
            continue
        after = mask.clone()
        after[0, k], after[0, j] = True, False
        now = sum(e**2 for e in errors(weight[0], after[0], x))
        said.append(bool(swap_lowers(weight, mask, after, stats)[0]))
        assert said[-1] == (now < before), (k, j)
    assert not swap_lowers(weight, mask, mask, stats).any()


def test_the_condition_is_met_by_some_swaps_of_dsnot_and_by_all_exact_ones():
    found = []
    for seed in range(20):
        weight, _, stats, mask = case(seed, 20, 12, 40)
        exact = ExactSwap(max_cycles=1)(weight, mask, stats)
        assert torch.equal(swap_lowers(weight, mask, exact, stats), (exact != mask).any(1))
        dsnot = DSnoT(max_cycles=1, threshold=0.0)(weight, mask, stats)
        moved = (dsnot != mask).any(1)
        found += swap_lowers(weight, mask, dsnot, stats)[moved].tolist()
    assert 0.05 < sum(found) / len(found) < 0.95


def test_a_path_is_recorded_by_linear_and_told_by_kind():
    model = tiny.model(dtype=F64)

    class Small(Bench):
        loaded, model_name = Loaded(model), {"name": "tiny"}

        def calibration_windows(self, seed):
            return tiny.windows(3)

        def calibration_name(self, uses, seed):
            return {"corpus": "random", "seed": seed}

    bench = Small(Protocol("none", ["tiny"]), "tiny")
    recipes = tuple(
        Recipe("wanda", Unstructured(0.5), refine) for refine in (DSnoT(threshold=0.0), ExactSwap())
    )
    terms = RefinementTerms(cycles=(0, 1, 3), n_layers=2)
    metrics = terms.measure(bench, recipes, 0)
    assert {name.split(".")[2] for name in metrics["linears"]} == {"0", "2"}
    rows = pd.DataFrame(terms.rows(Record(terms.question(bench, recipes, 0), metrics, {})))
    assert len(rows) == 2 * 7 * 3
    start = rows[rows["cycles"] == 0]
    assert (start["mean term"] + start["spread term"]).tolist() == pytest.approx([1.0] * 14)
    assert (start["swaps"] == 0).all()
    assert start["lowering"].isna().all()
    exact = rows[rows["refine"] == "exact_swap"].assign(error=lambda r: r["mean term"] + r["spread term"])
    for _, path in exact.groupby("linear"):
        assert path["error"].is_monotonic_decreasing
        assert path["swaps"].is_monotonic_increasing
        assert (path["lowering"].dropna() == 1).all()
    assert rows.groupby("linear")["mean share"].nunique().eq(1).all()
    assert rows["mean share"].between(0, 1).all()
    assert set(rows["refine"]) == {"dsnot", "exact_swap"}
