"""Statistics against their definitions in float64, however the stream is cut."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from symprune import StatsAccumulator
from symprune.methods.stats import LinearSums, Moments
from symprune.methods.sums import Sum

VECTORS = ("input_norm", "input_mean", "input_var", "input_var_within", "output_norm")


def definition(samples: list[torch.Tensor], outputs: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every statistic as a formula over explicit loops."""
    tokens = [token for sample in samples for token in sample.tolist()]
    d, n = len(tokens[0]), len(tokens)
    mean = [sum(t[j] for t in tokens) / n for j in range(d)]
    within = [
        sum(
            sum((t[j] - sum(u[j] for u in s) / len(s)) ** 2 for t in s) for s in (x.tolist() for x in samples)
        )
        / n
        for j in range(d)
    ]
    out = [token for sample in outputs for token in sample.tolist()]
    vectors = {
        "input_norm": [sum(t[j] ** 2 for t in tokens) ** 0.5 for j in range(d)],
        "input_mean": mean,
        "input_var": [sum((t[j] - mean[j]) ** 2 for t in tokens) / n for j in range(d)],
        "input_var_within": within,
        "output_norm": [sum(t[i] ** 2 for t in out) ** 0.5 for i in range(len(out[0]))],
    }
    return {name: torch.tensor(vector, dtype=torch.float64) for name, vector in vectors.items()}


lengths = st.lists(st.integers(1, 6), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    lengths=lengths,
    cut=st.integers(0, 5),
    seed=st.integers(0, 2**16),
    offset=st.sampled_from([0.0, 1.0, 1e4]),
)
def test_statistics_equal_their_definition_and_merging_equals_one_stream(lengths, cut, seed, offset):
    generator = torch.Generator().manual_seed(seed)
    samples = [torch.randn(n, 3, generator=generator, dtype=torch.float64) + offset for n in lengths]
    outputs = [torch.randn(n, 2, generator=generator, dtype=torch.float64) for n in lengths]
    halves = StatsAccumulator(3, 2), StatsAccumulator(3, 2)
    whole = StatsAccumulator(3, 2)
    for i, (x, y) in enumerate(zip(samples, outputs, strict=True)):
        whole.update(x, y)
        halves[i >= cut].update(x, y)
    halves[0].merge(halves[1])
    expected = definition(samples, outputs)
    for accumulator in (whole, halves[0]):
        stats = accumulator.finish()
        assert (stats.n_tokens, stats.n_samples) == (sum(lengths), len(lengths))
        for name in VECTORS:
            found = getattr(stats, name)
            assert found.dtype == torch.float64
            # The pooled variance is a difference of sums of the size of the squared mean.
            slack = 1e-12 * (1 + offset**2) if name == "input_var" else 1e-9
            torch.testing.assert_close(found, expected[name], rtol=1e-9, atol=slack)


# Of these no sum needs more than 106 bits, so none may lose anything.
within_reach = st.floats(2.0**-7, 2.0**30).flatmap(lambda x: st.sampled_from([x, -x, 0.0]))


@settings(max_examples=100, deadline=None)
@given(values=st.lists(within_reach, min_size=1, max_size=20), cut=st.integers(0, 20))
def test_a_sum_keeps_what_its_rounding_left_over(values, cut):
    parts = [Sum.of(torch.zeros(1)), Sum.of(torch.zeros(1))]
    for i, value in enumerate(values):
        parts[i < cut] += Sum.of(torch.tensor([value], dtype=torch.float64))
    found = parts[0] + parts[1]
    assert Fraction(found.high.item()) + Fraction(found.low.item()) == sum(map(Fraction, values))
    assert found.high.item() == math.fsum(values)


def test_a_batch_is_its_samples():
    x, y = torch.randn(4, 7, 5), torch.randn(4, 7, 2)
    batch, one_by_one = StatsAccumulator(5, 2), StatsAccumulator(5, 2)
    batch.update(x, y)
    for sample, out in zip(x, y, strict=True):
        one_by_one.update(sample, out)
    for name in VECTORS:
        torch.testing.assert_close(
            getattr(batch.finish(), name), getattr(one_by_one.finish(), name), rtol=1e-6, atol=1e-7
        )


@pytest.mark.parametrize(
    ("leading", "n_samples"),
    [((), 1), ((7,), 1), ((3, 4), 3), ((3, 2, 4), 3), ((1, 2, 4), 1), ((2, 3, 2, 2), 2)],
)
def test_whatever_lies_between_the_samples_and_the_width_are_tokens(leading, n_samples):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(*leading, d, generator=generator, dtype=torch.float64) for d in (3, 2))
    accumulator = StatsAccumulator(3, 2, gram=True)
    accumulator.update(x, y)
    stats = accumulator.finish()
    samples = [x] if x.dim() < 3 else list(x)
    tokens = [list(_vectors(sample.tolist())) for sample in samples]
    outputs = [torch.tensor(list(_vectors(y.tolist())), dtype=torch.float64)]
    expected = definition([torch.tensor(sample, dtype=torch.float64) for sample in tokens], outputs)
    assert (stats.n_samples, stats.n_tokens) == (n_samples, sum(map(len, tokens)))
    for name in VECTORS:
        torch.testing.assert_close(getattr(stats, name), expected[name], rtol=1e-9, atol=1e-9)
    flat = [token for sample in tokens for token in sample]
    gram = [[sum(t[i] * t[j] for t in flat) for j in range(3)] for i in range(3)]
    torch.testing.assert_close(stats.gram, torch.tensor(gram, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def _vectors(nested: list):
    """The innermost lists, in order."""
    if isinstance(nested[0], float):
        yield nested
    else:
        for part in nested:
            yield from _vectors(part)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32_or_better(dtype):
    x = torch.full((4096, 2), 0.1, dtype=dtype)  # a half precision sum would stall
    accumulator = StatsAccumulator(2, 1)
    accumulator.update(x)
    stats = accumulator.finish()
    assert stats.input_norm.dtype == torch.float32
    torch.testing.assert_close(
        stats.input_norm, (x.double().square().sum(0).sqrt()).float(), rtol=1e-6, atol=0
    )


def test_a_small_spread_around_a_large_mean_survives_float32():
    x = 1000 + 0.01 * torch.randn(512, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    accumulator = StatsAccumulator(3, 1)
    accumulator.update(x.float())
    torch.testing.assert_close(
        accumulator.finish().input_var_within.double(),
        x.float().double().var(0, correction=0),
        rtol=1e-2,
        atol=0,
    )


def test_nothing_seen_is_all_zero():
    stats = StatsAccumulator(3, 2).finish()
    assert stats.n_tokens == 0
    assert stats.output_norm is None
    assert not stats.input_norm.any()
    assert not stats.input_var.any()


@pytest.mark.parametrize("shape", [(0, 3), (0, 4, 3), (2, 0, 3)], ids=str)
def test_a_stretch_without_tokens_changes_nothing(shape):
    accumulator = StatsAccumulator(3, 2)
    accumulator.update(torch.ones(2, 5, 3))
    before = accumulator.finish()
    accumulator.update(torch.ones(shape))
    after = accumulator.finish()
    assert (after.n_tokens, after.n_samples) == (before.n_tokens, before.n_samples) == (10, 2)
    assert torch.equal(after.input_mean, before.input_mean)
    assert torch.equal(after.input_norm, before.input_norm)


def test_updates_that_are_not_of_this_linear_are_refused():
    accumulator = StatsAccumulator(3, 2)
    with pytest.raises(ValueError, match="width 4"):
        accumulator.update(torch.ones(5, 4))
    with pytest.raises(ValueError, match="width 3"):
        accumulator.update(torch.ones(5, 3), torch.ones(5, 3))


def test_merging_a_stream_with_outputs_into_one_without_is_refused():
    a, b = StatsAccumulator(2, 2), StatsAccumulator(2, 2)
    a.update(torch.ones(1, 2))
    b.update(torch.ones(1, 2), torch.ones(1, 2))
    with pytest.raises(ValueError, match="outputs"):
        a.merge(b)


def test_statistics_move_between_devices_and_dtypes():
    accumulator = StatsAccumulator(2, 2)
    accumulator.update(torch.ones(3, 2), torch.ones(3, 2))
    moved = accumulator.finish().to(torch.float64)
    assert moved.input_norm.dtype == moved.output_norm.dtype == torch.float64
    assert moved.n_tokens == 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_gram_matrix_is_exact_and_merges(dtype):
    x = (torch.randn(6, 20, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1).to(
        dtype
    )
    parts = [StatsAccumulator(12, 3, gram=True) for _ in range(3)]
    parts[0].update(x[:1])
    parts[1].update(x[1:4])
    parts[2].update(x[4:, :7])
    parts[2].add(Moments.of(x[4:, 7:], gram=True))
    for part in parts[1:]:
        parts[0].merge(part)
    stats = parts[0].finish()
    flat = x.double().flatten(0, 1)
    torch.testing.assert_close(stats.gram.double(), flat.T @ flat, rtol=1e-5, atol=1e-4)
    assert stats.gram.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(stats.gram.diagonal().sqrt(), stats.input_norm)


def test_the_gram_matrix_is_there_only_if_asked_for():
    x = torch.randn(2, 5, 12)
    with_it, without = StatsAccumulator(12, 3, gram=True), StatsAccumulator(12, 3)
    with_it.update(x)
    without.update(x)
    assert without.finish().gram is None
    assert with_it.finish().gram.nbytes == 4 * 12**2
    assert StatsAccumulator(12, 3, gram=True).finish().gram.count_nonzero() == 0
    with pytest.raises(ValueError, match=r"X\^T X"):
        with_it.merge(without)
    with pytest.raises(ValueError, match=r"X\^T X"):
        without.add(Moments.of(x, gram=True))


def sums_of(*received: tuple[str, torch.Tensor], names: str = "abc") -> LinearSums:
    """Sums of linears of one width: each time, the names of some and what they received."""
    sums = LinearSums.of_nothing(
        dict.fromkeys(names, (2, 4)), dict.fromkeys(names, torch.device("cpu")), True
    )
    for linears, inputs in received:
        sums.add(list(linears), Moments.of(inputs, gram=True))
    return sums


def test_linears_are_in_one_group_for_as_long_as_they_receive_the_same():
    x, y = torch.randn(2, 5, 4)
    assert sums_of().group_of == {"a": "a", "b": "a", "c": "a"}
    assert sums_of(("abc", x), ("abc", y)).group_of == {"a": "a", "b": "a", "c": "a"}
    parted = sums_of(("abc", x), ("ab", y))
    assert parted.group_of == {"a": "a", "b": "a", "c": "c"}
    assert parted.moments.keys() == {"a", "c"}
    assert sums_of(("bc", x)).group_of == {"a": "a", "b": "b", "c": "b"}
    assert sums_of(("ac", x), ("c", y)).group_of == {"a": "a", "b": "b", "c": "c"}
    for name, seen in {"a": [x, y], "b": [x, y], "c": [x]}.items():
        flat = torch.cat(seen)
        torch.testing.assert_close(parted.finish()[name].gram, flat.T @ flat)
        assert parted.finish()[name].n_tokens == len(flat)


def test_what_a_whole_group_receives_is_added_to_its_gram_matrix_in_place():
    x, y = torch.randn(2, 5, 4)
    sums = sums_of(("abc", x))
    place = sums.moments["a"].gram.data_ptr()
    sums.add(["a", "b", "c"], Moments.of(y, gram=True))
    assert sums.moments["a"].gram.data_ptr() == place
    sums.add(["b"], Moments.of(y, gram=True))
    assert sums.moments["a"].gram.data_ptr() == place
    assert sums.moments["b"].gram.data_ptr() != place


def test_merged_linears_share_only_what_they_share_on_both_sides():
    x, y = torch.randn(2, 5, 4)
    one, other = sums_of(("abc", x)), sums_of(("ab", y), ("c", x))
    merged = one.merge(other)
    assert merged.group_of == {"a": "a", "b": "a", "c": "c"}
    flat = torch.cat((x, x))
    torch.testing.assert_close(merged.finish()["c"].gram, flat.T @ flat)
    assert one.finish()["a"].n_tokens == 5  # as it was


def test_statistics_of_float64_stay_as_they_are_when_more_is_added():
    accumulator = StatsAccumulator(3, 2, gram=True)
    accumulator.update(torch.ones(2, 3, dtype=torch.float64))
    stats = accumulator.finish()
    accumulator.update(torch.ones(2, 3, dtype=torch.float64))
    assert (stats.gram == 2).all()
