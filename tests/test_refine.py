"""Refinement against a literal per-row loop in plain Python, and ExactSwap against brute force."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from symprune.base.errors import UserError
from symprune.methods.masks import NM, Unstructured
from symprune.methods.refine import REFINERS, dsnot, engine, exact_swap
from symprune.methods.refine.dsnot import AS_PUBLISHED, DSnoT, R2DSnoT
from symprune.methods.refine.exact_swap import ExactSwap
from symprune.methods.refine.sketch_swap import SketchSwap
from symprune.methods.stats import LayerStats, StatsAccumulator

F64 = torch.float64
NEUTRAL = {"relative": "none", "alpha": 1.0, "gamma_grow": 0.0, "gamma_prune": 0.0}


# The definition, one row and one cycle at a time.


def literal(weight, mask, stats, refiner, block=None):
    """The refined mask by lists, loops and the formulas alone."""
    get = lambda name, neutral: getattr(refiner, name, neutral)  # noqa: E731
    relative, alpha, p = get("relative", "none"), get("alpha", 1.0), get("p", 1.0)
    gamma_grow, gamma_prune = get("gamma_grow", 0.0), get("gamma_prune", 0.0)
    w, m, x = weight.tolist(), stats.input_mean.tolist(), stats.input_norm.tolist()
    v = (stats.input_var_within if refiner.variance == "within" else stats.input_var).tolist()
    n_rows, n = weight.shape
    row_sum = [sum(abs(a) for a in row) for row in w]
    column_sum = [sum(abs(row[j]) for row in w) for j in range(n)]
    inverse = lambda a: 1 / a if a > 0 else 0.0  # noqa: E731
    per_channel = [
        min(abs(m[j]) / max(v[j] ** refiner.power, torch.finfo(F64).tiny), math.sqrt(torch.finfo(F64).max))
        for j in range(n)
    ]

    def norm(sizes):
        return max(sizes, default=0.0) if p == math.inf else sum(a**p for a in sizes) ** (1 / p)

    result = []
    for i in range(n_rows):
        start = mask[i].tolist()
        k = [w[i][j] * (m[j] * (stats.n_tokens / stats.n_samples)) * (x[j] > 0) for j in range(n)]
        d = [abs(w[i][j]) * (inverse(row_sum[i]) + inverse(column_sum[j])) for j in range(n)]
        kept_sizes = {j: abs(w[i][j]) for j in range(n) if start[j]}

        def grow_criterion(j, sign, i=i, k=k, d=d, kept_sizes=kept_sizes):
            g = d[j] if relative in ("grow", "both") else abs(w[i][j])
            term = math.copysign(g * per_channel[j], k[j]) * sign
            return term + (gamma_grow * norm([*kept_sizes.values(), abs(w[i][j])]) if gamma_grow else 0.0)

        def prune_criterion(j, i=i, d=d, kept_sizes=kept_sizes):
            term = (d[j] if relative in ("prune", "both") else abs(w[i][j])) * x[j] ** alpha
            return term + (
                gamma_prune * norm([a for q, a in kept_sizes.items() if q != j]) if gamma_prune else 0.0
            )

        kept, used = list(start), set()
        e = sum(k[j] for j in range(n) if not kept[j])
        threshold = refiner.threshold * (abs(e) if refiner.threshold_scale == "initial" else 1.0)
        for _ in range(refiner.max_cycles):
            if not abs(e) > threshold:
                break
            sign = 1 if e > 0 else -1
            prunable = [j for j in range(n) if kept[j] and j not in used and sign * k[j] < 0]
            growable = [j for j in range(n) if not kept[j] and j not in used and sign * k[j] > 0]
            if block:
                growable = [j for j in growable if any(q // block == j // block for q in prunable)]
            if not growable or not prunable:
                break
            grown = max(growable, key=lambda j: (grow_criterion(j, sign), -j))
            if block:
                prunable = [j for j in prunable if j // block == grown // block]
            pruned = min(prunable, key=lambda j: (prune_criterion(j), j))
            step = k[pruned] - k[grown]
            if refiner.keep_sign and (e + step) * sign < 0:
                break
            kept[grown], kept[pruned] = True, False
            used |= {grown, pruned}
            e += step
        result.append(kept)
    return torch.tensor(result).view_as(mask)


def random_case(seed, d_out, d_in, dtype=F64, pattern=None):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=F64)  # noqa: E731
    weight = draw(d_out, d_in) * draw(d_out, 1).exp()
    scale = draw(d_in).exp()
    mean, spread = scale * draw(d_in) / 2, scale * (draw(d_in) / 4).exp()
    within, pooled = spread.square(), spread.square() * (1 + draw(d_in).square() / 8)
    norm = (512 * (pooled + mean.square())).sqrt()
    stats = LayerStats(*(t.to(dtype) for t in (norm, mean, pooled, within)), None, 512, 8)
    weight = weight.to(dtype)
    return weight, (pattern or Unstructured(0.6))(weight.abs() * stats.input_norm), stats


def refiners():
    """Every parameter away from its default at least once, alone and together."""
    yield DSnoT()
    yield DSnoT(variance="pooled", power=0.5)
    yield DSnoT(power=0.0, threshold=0.0, max_cycles=200)
    yield DSnoT(keep_sign=True)
    yield DSnoT(threshold=0.2, threshold_scale="initial", max_cycles=4)
    yield R2DSnoT()
    yield AS_PUBLISHED
    for relative in dsnot.RELATIVE:
        yield R2DSnoT(relative=relative, keep_sign=relative == "both")
    for p in (0.5, 1.0, 2.0, math.inf):
        yield R2DSnoT(gamma_grow=0.3, gamma_prune=2.0, p=p)
    yield R2DSnoT(relative="grow", alpha=0.0, gamma_prune=0.5, power=2.0, max_cycles=7)


@pytest.mark.parametrize("refiner", list(refiners()), ids=str)
@pytest.mark.parametrize(
    "pattern", [Unstructured(0.6), Unstructured(0.3, "layer"), NM(2, 4), NM(4, 8), NM(1, 4)], ids=str
)
def test_masks_equal_the_literal_loop(refiner, pattern):
    moved = 0
    for seed, (d_out, d_in) in enumerate([(6, 8), (8, 48), (10, 96)]):
        weight, mask, stats = random_case(seed, d_out, d_in, pattern=pattern)
        expected = literal(weight, mask, stats, refiner, pattern.m if isinstance(pattern, NM) else None)
        refinement = refiner.run(weight, mask, stats, pattern)
        assert torch.equal(refinement.mask, expected)
        assert torch.equal(refiner(weight, mask, stats, pattern), expected)
        differing = (expected != mask).sum(1)
        assert refinement.n_rows == int((differing > 0).sum())
        assert refinement.swaps == int(differing.sum()) // 2  # a swapped weight never moves again
        assert refinement.cycles == int(differing.max()) // 2
        moved += refinement.swaps
    assert moved > 0


def test_masks_equal_the_literal_loop_on_hundreds_of_rows():
    weight, mask, stats = random_case(0, 400, 160)
    for refiner in (DSnoT(), R2DSnoT(relative="both", keep_sign=True)):
        assert torch.equal(refiner(weight, mask, stats), literal(weight, mask, stats, refiner))


small = st.integers(-3, 3).map(float)


@st.composite
def exact_cases(draw):
    """Small whole numbers: arithmetic without rounding, full of ties, zeros, dead channels and channels
    without variance.
    """
    block = draw(st.sampled_from([None, None, 2, 4]))
    d_out, d_in = draw(st.integers(1, 4)), draw(st.integers(1, 10)) * (block or 1)
    column = lambda values: torch.tensor(draw(st.lists(values, min_size=d_in, max_size=d_in)), dtype=F64)  # noqa: E731
    weight = torch.stack([column(small) for _ in range(d_out)])
    mask = torch.stack([column(st.booleans()) for _ in range(d_out)]).bool()
    mean, norm = column(small), column(st.integers(0, 4).map(float))
    variances = column(st.sampled_from([0.0, 0.5, 1.0, 2.0])), column(st.sampled_from([0.0, 0.25, 1.0]))
    common = {
        "power": draw(st.sampled_from([0.0, 1.0])),
        "variance": draw(st.sampled_from(["within", "pooled"])),
        "threshold": draw(st.sampled_from([0.0, 0.5, 3.0])),
        "threshold_scale": draw(st.sampled_from(["absolute", "initial"])),
        "max_cycles": draw(st.sampled_from([0, 1, 2, 5, 50])),
        "keep_sign": draw(st.booleans()),
    }
    own = {
        "relative": draw(st.sampled_from(dsnot.RELATIVE)),
        "alpha": draw(st.sampled_from([0.0, 1.0])),
        "gamma_grow": draw(st.sampled_from([0.0, 0.5])),
        "gamma_prune": draw(st.sampled_from([0.0, 2.0])),
        "p": draw(st.sampled_from([1.0, math.inf])),
    }
    refiner = draw(st.sampled_from([DSnoT(**common), R2DSnoT(**common, **own)]))
    return weight, mask, LayerStats(norm, mean, *variances, None, 8, 2), refiner, block


@settings(max_examples=500, deadline=None)
@given(exact_cases())
def test_ties_zeros_and_dead_channels_follow_the_literal_loop(case):
    weight, mask, stats, refiner, block = case
    pattern = NM(1, block) if block else None
    assert torch.equal(refiner(weight, mask, stats, pattern), literal(weight, mask, stats, refiner, block))


@pytest.mark.parametrize(
    ("d_out", "d_in"), [(40, 120), (120, 12)], ids=["beyond the window", "more rows than columns"]
)
def test_many_ties_go_to_the_lower_index(d_out, d_in):
    g = torch.Generator().manual_seed(0)
    weight = torch.randint(-2, 3, (d_out, d_in), generator=g).to(F64)
    mask = torch.rand(d_out, d_in, generator=g) < 0.5
    ones = torch.ones(d_in, dtype=F64)
    stats = LayerStats(ones, ones, ones, ones, None, 4, 2)
    for refiner in (DSnoT(max_cycles=3), DSnoT(), DSnoT(max_cycles=20, keep_sign=True)):
        for pattern in (None, NM(2, 4)):
            block = pattern and pattern.m
            assert torch.equal(
                refiner(weight, mask, stats, pattern), literal(weight, mask, stats, refiner, block)
            )


@pytest.mark.parametrize("pattern", [Unstructured(0.5), NM(2, 4)], ids=str)
def test_a_dead_channel_among_few_candidates_follows_the_literal_loop(pattern):
    weight, mask, stats = random_case(13, 400, 8, pattern=pattern)
    mask[:, 3] = mask[:, 0]  # kept or removed, for all that it is dead
    stats = replace(stats, input_norm=stats.input_norm * (torch.arange(8) != 3))
    refiner = DSnoT(max_cycles=2, threshold=0.0)  # a window of five
    refined = refiner(weight, mask, stats, pattern)
    assert torch.equal(
        refined, literal(weight, mask, stats, refiner, pattern.m if isinstance(pattern, NM) else None)
    )
    assert not torch.equal(refined, mask)


@pytest.mark.parametrize("pattern", [Unstructured(0.6), NM(2, 4)], ids=str)
def test_numpy_and_torch_select_the_same(pattern, monkeypatch):
    weight, mask, stats = random_case(12, 60, 200, torch.float32, pattern)
    for refiner in (DSnoT(), R2DSnoT(), DSnoT(max_cycles=5), DSnoT(max_cycles=500)):
        with monkeypatch.context() as patch:
            patch.setattr(engine, "numpy_is_faster", lambda values: True)
            by_numpy = refiner(weight, mask, stats, pattern)
            patch.setattr(engine, "numpy_is_faster", lambda values: False)
            assert torch.equal(refiner(weight, mask, stats, pattern), by_numpy)


@pytest.mark.parametrize("seed", range(6))
def test_equals_at_the_end_of_the_window_that_no_partner_is_left_for(seed):
    g = torch.Generator().manual_seed(seed)
    weight = torch.randint(-2, 3, (200, 64), generator=g).to(F64)
    mask, ones = torch.rand(200, 64, generator=g) < 0.5, torch.ones(64, dtype=F64)
    stats = LayerStats(ones, ones, ones, ones, None, 4, 2)
    for cycles in (2, 5):
        refiner = DSnoT(max_cycles=cycles)
        expected = literal(weight, mask, stats, refiner, 4)
        assert torch.equal(refiner(weight, mask, stats, NM(2, 4)), expected)


@pytest.mark.parametrize("pattern", [Unstructured(0.6), NM(2, 4)], ids=str)
def test_rows_sorted_in_full_give_what_the_window_gives(pattern):
    weight, mask, stats = random_case(14, 60, 200, torch.float32, pattern)
    for refiner in (R2DSnoT(), R2DSnoT(max_cycles=9, keep_sign=True), AS_PUBLISHED):
        criteria = dsnot.Criteria.of(refiner, weight, mask, stats)
        block = pattern.m if isinstance(pattern, NM) else None
        in_full = engine.refine(criteria, mask, refiner.limits(200), block, window=False)
        windowed = refiner.run(weight, mask, stats, pattern)
        assert torch.equal(in_full.mask, windowed.mask)
        assert in_full.summary() == windowed.summary()


def test_parts_of_a_matrix_give_what_the_whole_gives(monkeypatch):
    weight, mask, stats = random_case(1, 50, 64)
    whole = R2DSnoT()(weight, mask, stats)
    monkeypatch.setattr(engine, "ENTRIES_PER_PART", 7 * 64)
    assert torch.equal(R2DSnoT()(weight, mask, stats), whole)


# R2-DSnoT and DSnoT, counts, and the edges.


@pytest.mark.parametrize("pattern", [Unstructured(0.6), NM(2, 4)], ids=str)
@pytest.mark.parametrize(
    "common",
    [{}, {"keep_sign": True}, {"variance": "pooled", "power": 0.5, "max_cycles": 9, "threshold": 1.0}],
    ids=str,
)
def test_neutral_r2dsnot_is_dsnot(pattern, common):
    weight, mask, stats = random_case(2, 64, 128, torch.float32, pattern)
    dsnot = DSnoT(**common)(weight, mask, stats, pattern)
    assert torch.equal(R2DSnoT(**NEUTRAL, **common)(weight, mask, stats, pattern), dsnot)
    assert not torch.equal(R2DSnoT(relative="both", alpha=0.5, **common)(weight, mask, stats, pattern), dsnot)


def with_gram(stats, d_in, seed=0):
    x = torch.randn(4, 60, d_in, dtype=F64, generator=torch.Generator().manual_seed(seed)) + 0.3
    acc = StatsAccumulator(d_in, 1, gram=True, rank=64)
    acc.update(x @ torch.randn(d_in, d_in, dtype=F64, generator=torch.Generator().manual_seed(1)))
    return acc.finish().to(stats.input_norm.dtype)


@pytest.mark.parametrize("name", REFINERS)
@pytest.mark.parametrize(
    "pattern", [None, Unstructured(0.6), Unstructured(0.7, "layer"), NM(2, 4), NM(3, 16)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_counts_stay(name, pattern, dtype):
    weight, mask, stats = random_case(3, 40, 64, torch.float32, pattern)
    stats = with_gram(stats, 64)
    refined = REFINERS[name]()(weight.to(dtype), mask, stats, pattern)
    assert torch.equal(refined.sum(1), mask.sum(1))
    assert not torch.equal(refined, mask)
    if isinstance(pattern, NM):
        assert (refined.view(-1, pattern.m).sum(1) == pattern.n).all()


@pytest.mark.parametrize("name", REFINERS)
def test_no_cycles_return_the_start(name):
    weight, mask, stats = random_case(4, 10, 40)
    before = mask.clone()
    refinement = REFINERS[name](max_cycles=0).run(weight, mask, with_gram(stats, 40))
    assert torch.equal(refinement.mask, mask)
    assert (refinement.n_rows, refinement.cycles, refinement.swaps) == (0, 0, 0)
    assert refinement.error_before == refinement.error_after > 0
    REFINERS[name]()(weight, mask, with_gram(stats, 40))
    assert torch.equal(mask, before)  # never changed in place


@pytest.mark.parametrize(
    "refiner", [DSnoT(), R2DSnoT(), R2DSnoT(p=math.inf, relative="both"), ExactSwap(), SketchSwap()], ids=str
)
@pytest.mark.parametrize("pattern", [None, NM(2, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_nothing_happens_where_nothing_can(refiner, pattern, dtype):
    weight, mask, stats = random_case(5, 12, 24, dtype)
    stats = with_gram(stats, 24)
    zero = torch.zeros(24, dtype=dtype)
    nothing = torch.zeros(24, 24, dtype=dtype), None, torch.zeros(24, 24, dtype=F64)
    silent = LayerStats(zero, zero, zero, zero, None, 240, 4, *nothing)
    unseen = LayerStats(zero, zero, zero, zero, None, 0, 0, *nothing)
    for same in (torch.ones_like(mask), torch.zeros_like(mask)):
        assert torch.equal(refiner(weight, same, stats, pattern), same)
    for without in (silent, unseen):
        assert torch.equal(refiner(weight, mask, without, pattern), mask)
    dead = torch.zeros_like(weight)
    assert torch.equal(refiner(dead, mask, stats, pattern), mask)


def test_a_row_without_a_legal_candidate_stays():
    ones = torch.ones(6, dtype=F64)
    stats = LayerStats(ones, ones, ones, ones, None, 4, 1)
    # row 0 keeps nothing that brings e back
    weight = torch.tensor([[1.0, 2, 3, 4, 5, 6], [1, 2, -3, 4, 5, 6]], dtype=F64)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]]).bool()
    refined = DSnoT()(weight, mask, stats)
    assert torch.equal(refined[0], mask[0])
    assert refined[1].tolist() == [False, True, False, True, True, True]
    blocks = DSnoT()(weight, mask, stats, NM(1, 2))
    assert torch.equal(blocks, mask)  # -3 is in another block


@pytest.mark.parametrize("single", ["kept", "removed"])
@pytest.mark.parametrize(
    "refiner", [DSnoT(threshold=0.0), R2DSnoT(p=math.inf), R2DSnoT(p=2.0, relative="both")], ids=str
)
def test_a_single_kept_or_removed_weight(single, refiner):
    weight, mask, stats = random_case(6, 40, 24)
    one = torch.zeros_like(mask).scatter_(1, torch.arange(40)[:, None] % 24, True)
    mask = one if single == "kept" else ~one
    refined = refiner(weight, mask, stats)
    assert torch.equal(refined, literal(weight, mask, stats, refiner))
    assert torch.equal(refined.sum(1), mask.sum(1))
    assert not torch.equal(refined, mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_channel_without_variance_grows_first(dtype):
    weight, mask, stats = random_case(7, 30, 24, dtype)
    variance = stats.input_var_within.clone()
    variance[::3] = 0
    stats = LayerStats(stats.input_norm, stats.input_mean, variance, variance, None, 512, 8)
    refiner = DSnoT(max_cycles=1)
    refined = refiner(weight, mask, stats)
    k = weight * stats.input_mean
    e = (k * ~mask).sum(1, keepdim=True)
    could_grow = ((~mask) & (k * e > 0))[:, ::3].any(1)
    grown = refined & ~mask
    assert grown.any()
    assert (grown[:, ::3].any(1) | ~could_grow | ~grown.any(1)).all()
    if dtype == F64:
        assert torch.equal(refined, literal(weight, mask, stats, refiner))


def test_float32_differs_from_float64_in_few_rows():
    """At most 2 % of rows: a row differs only if rounding changes a comparison of nearly equal criteria, or
    of e with its bound.
    """
    weight, mask, stats = random_case(8, 1000, 256)
    for refiner in (DSnoT(), R2DSnoT(relative="both")):
        single = refiner(weight.float(), mask, stats.to(torch.float32))
        assert (single != refiner(weight, mask, stats)).any(1).float().mean() <= 0.02


def test_the_error_reported_is_that_of_the_masks():
    weight, mask, stats = random_case(9, 40, 96)
    # without it, |e| may end above where it began
    refinement = DSnoT(keep_sign=True).run(weight, mask, stats)
    error = lambda kept: ((weight * ~kept) @ (stats.input_mean * 64)).abs().mean().item()  # noqa: E731
    assert refinement.error_before == pytest.approx(error(mask))
    assert refinement.error_after == pytest.approx(error(refinement.mask))
    assert refinement.error_after < refinement.error_before
    assert set(refinement.summary()) == {"n_rows", "cycles", "swaps", "error_before", "error_after"}


def test_a_relative_threshold_does_not_depend_on_the_scale():
    weight, mask, stats = random_case(10, 60, 96)
    scale = 2.0**12
    scaled = LayerStats(
        stats.input_norm * scale,
        stats.input_mean * scale,
        *[v * scale**2 for v in (stats.input_var, stats.input_var_within)],
        None,
        512,
        8,
    )
    free, fixed = DSnoT(threshold_scale="initial"), DSnoT(threshold=5.0)
    assert torch.equal(free(weight, mask, scaled), free(weight, mask, stats))
    assert not torch.equal(fixed(weight, mask, scaled), fixed(weight, mask, stats))


@pytest.mark.parametrize("cls", [DSnoT, R2DSnoT])
@pytest.mark.parametrize(
    ("cycles", "width", "d_in", "expected"),
    [
        (50, 4096, 576, 7),
        (50, 4096, 1536, 19),
        (50, 4096, 4096, 50),
        (3, 40, 160, 12),
        (3, 64, 32, 2),
        (1, 10_000, 32, 1),  # rounded to nothing it would leave the linear out
        (0, 4096, 576, 0),
    ],
)
def test_cycles_go_with_the_width_they_are_meant_for(cls, cycles, width, d_in, expected):
    weight, mask, stats = random_case(15, 3, d_in)
    scaled = cls(max_cycles=cycles, cycles_for_width=width, threshold=0.0)
    assert torch.equal(
        scaled(weight, mask, stats), cls(max_cycles=expected, threshold=0.0)(weight, mask, stats)
    )


@pytest.mark.parametrize(
    ("kwargs", "word"),
    [
        ({"relative": "growing"}, "grow"),
        ({"variance": "sample"}, "variance"),
        ({"threshold_scale": "relative"}, "threshold_scale"),
        ({"linears": "atention"}, "attention"),
        ({"alpha": -1.0}, "alpha"),
        ({"power": math.nan}, "power"),
        ({"gamma_grow": math.inf}, "gamma_grow"),
        ({"gamma_prune": -0.1}, "gamma_prune"),
        ({"threshold": -0.1}, "threshold"),
        ({"p": 0.0}, "p of"),
        ({"max_cycles": -1}, "max_cycles"),
        ({"cycles_for_width": 0}, "cycles_for_width"),
        ({"rank": -1}, "rank"),
        ({"pair": "any"}, "greedy"),
    ],
)
def test_a_bad_hyperparameter_is_named(kwargs, word):
    for cls in (DSnoT, R2DSnoT, ExactSwap, SketchSwap):
        if set(kwargs) <= set(cls.__dataclass_fields__):
            with pytest.raises(UserError, match=word):
                cls(**kwargs)


@pytest.mark.parametrize("name", REFINERS)
def test_a_pattern_that_does_not_divide_the_row_is_refused(name):
    weight, mask, stats = random_case(11, 4, 10)
    with pytest.raises(UserError, match="divides"):
        REFINERS[name]()(weight, mask, with_gram(stats, 10), NM(2, 4))


def test_uses_names_what_is_read():
    assert DSnoT().uses == ("input_norm", "input_mean", "input_var_within")
    assert R2DSnoT(variance="pooled").uses == ("input_norm", "input_mean", "input_var")
    assert ExactSwap.uses == ("gram",)
    assert SketchSwap(rank=7).uses == ("input_norm", "input_mean", "sketch7")
    assert SketchSwap(rank=0).uses == ("input_norm", "input_mean")


# ExactSwap.


def quadratic(weight, mask, x):
    return (x @ (weight * ~mask).T).square().sum(0)


def gram_case(seed, d_out, d_in, tokens=50, dtype=F64):
    g = torch.Generator().manual_seed(seed)
    x = (
        torch.randn(tokens, d_in, generator=g, dtype=F64) @ torch.randn(d_in, d_in, generator=g, dtype=F64)
        + 0.5
    )
    weight = torch.randn(d_out, d_in, generator=g, dtype=F64)
    acc = StatsAccumulator(d_in, d_out, gram=True)
    acc.update(x)
    return weight.to(dtype), x, acc.finish().to(dtype)


@pytest.mark.parametrize("pattern", [Unstructured(0.6), NM(2, 4), NM(1, 8)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_exact_swap_never_raises_its_objective(pattern, dtype):
    weight, x, stats = gram_case(0, 60, 32, dtype=dtype)
    mask = pattern(weight.abs() * stats.input_norm)
    last = quadratic(weight.double(), mask, x)
    start, rounding = last, 1 + 100 * torch.finfo(dtype).eps
    for cycles in (1, 2, 5, 25, 200):
        refinement = ExactSwap(max_cycles=cycles).run(weight, mask, stats, pattern)
        now = quadratic(weight.double(), refinement.mask, x)
        assert (now <= last * rounding).all()
        assert refinement.error_before == pytest.approx(start.mean().item(), rel=1e-5)
        assert refinement.error_after == pytest.approx(now.mean().item(), rel=1e-4)
        assert refinement.cycles <= cycles
        last = now
    assert last.sum() < 0.9 * start.sum()


@pytest.mark.parametrize("pair", ["greedy", "best"])
@pytest.mark.parametrize("block", [None, 4, 2])
def test_exact_swap_against_brute_force_over_all_pairs(block, pair, monkeypatch):
    monkeypatch.setattr(exact_swap, "ENTRIES_PER_PART", 3 * 64)  # three rows of all pairs at a time
    apart = 0
    for seed in range(10):
        weight, x, stats = gram_case(seed, 8, 8)
        pattern = NM(block // 2, block) if block else Unstructured(0.5)
        mask = pattern(weight.abs() * stats.input_norm)
        refined = ExactSwap(max_cycles=1, pair=pair)(weight, mask, stats, pattern)
        apart += int((refined != ExactSwap(max_cycles=1)(weight, mask, stats, pattern)).any(1).sum())
        for w, start, end in zip(weight, mask, refined, strict=True):

            def cost(kept, w=w, x=x):
                return quadratic(w[None], kept[None], x).item()

            def grown(k, start=start):
                return start | (torch.arange(8) == k)

            pairs = [
                (cost(grown(k) & (torch.arange(8) != j)), k, j)
                for k, j in itertools.product(
                    (~start).nonzero().flatten().tolist(), start.nonzero().flatten().tolist()
                )
                if not block or k // block == j // block
            ]
            if not block and pair == "greedy":  # the best weight to grow comes first, alone
                best = min((~start).nonzero().flatten().tolist(), key=lambda k: cost(grown(k)))
                pairs = [pair for pair in pairs if pair[1] == best]
            lowest, k, j = min(pairs)
            if lowest < cost(start):
                assert (end ^ start).nonzero().flatten().tolist() == sorted((k, j))
            else:
                assert torch.equal(end, start)
    assert (apart > 0) == (pair == "best" and not block)


def test_exact_swap_goes_on_until_no_swap_of_its_kind_is_left():
    weight, _, stats = gram_case(1, 30, 24)
    mask = Unstructured(0.6)(weight.abs())
    done = ExactSwap(max_cycles=1000).run(weight, mask, stats)
    assert done.cycles < 1000
    assert torch.equal(ExactSwap(max_cycles=1)(weight, done.mask, stats), done.mask)
    assert done.n_rows == int((done.mask != mask).any(1).sum())


def test_exact_swap_in_parts_and_without_a_gram_matrix(monkeypatch):
    weight, _, stats = gram_case(2, 30, 24)
    mask = Unstructured(0.6)(weight.abs())
    whole = ExactSwap()(weight, mask, stats)
    monkeypatch.setattr(exact_swap, "ENTRIES_PER_PART", 5 * 24)
    assert torch.equal(ExactSwap()(weight, mask, stats), whole)
    with pytest.raises(UserError, match="gram=True"):
        ExactSwap()(weight, mask, random_case(0, 30, 24)[2])


def test_exact_swap_leaves_a_row_that_no_swap_improves():
    x = torch.ones(5, 2, dtype=F64)  # two channels that are one: either may stay
    acc = StatsAccumulator(2, 1, gram=True)
    acc.update(x)
    mask = torch.tensor([[True, False], [False, True]])
    refinement = ExactSwap().run(torch.ones(2, 2, dtype=F64), mask, acc.finish())
    assert torch.equal(refinement.mask, mask)
    # one weight of 1 is missing at each of 5 tokens
    assert refinement.error_before == refinement.error_after == 5


@pytest.mark.parametrize("pattern", [Unstructured(0.6), NM(2, 4)], ids=str)
def test_exact_swap_does_not_depend_on_the_scale(pattern):
    weight, _, stats = gram_case(3, 30, 24)
    mask = pattern(weight.abs())
    expected = ExactSwap()(weight, mask, stats, pattern)
    assert not torch.equal(expected, mask)
    for scale in (2.0**-60, 2.0**60):
        assert torch.equal(
            ExactSwap()(weight, mask, replace(stats, gram=stats.gram * scale), pattern), expected
        )


def test_a_row_that_rounding_made_worse_is_as_it_was(monkeypatch):
    weight, _, stats = gram_case(4, 30, 24)
    mask = Unstructured(0.6)(weight.abs())
    undisturbed = ExactSwap().run(weight, mask, stats)
    alone = ExactSwap().run(weight[7:8], mask[7:8], stats)
    true = exact_swap.objective  # of the masks after
    monkeypatch.setattr(exact_swap, "objective", lambda *given: true(*given) + 1e6 * (torch.arange(30) == 7))
    refinement = ExactSwap().run(weight, mask, stats)
    assert torch.equal(refinement.mask[7], mask[7])
    assert not torch.equal(undisturbed.mask[7], mask[7])
    others = torch.arange(30) != 7
    assert torch.equal(refinement.mask[others], undisturbed.mask[others])
    assert refinement.n_rows == undisturbed.n_rows - 1
    assert refinement.swaps == undisturbed.swaps - alone.swaps
    assert refinement.error_after == pytest.approx(quadratic_mean(weight, refinement.mask, stats.gram))


def quadratic_mean(weight, mask, gram):
    removed = (weight * ~mask).tolist()
    return sum(
        a * b * gram[i, j].item() for row in removed for i, a in enumerate(row) for j, b in enumerate(row)
    ) / len(removed)
