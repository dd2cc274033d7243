"""The sketch of a Gram matrix against its formulas, and swaps under it against exact swaps."""

import itertools

import pytest
import tiny
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_cli import call, refused, small  # noqa: F401 (fixtures)
from torch.utils.flop_counter import FlopCounterMode

from symprune import (
    NM,
    ExactSwap,
    Recipe,
    SketchSwap,
    StatsAccumulator,
    Unstructured,
    UserError,
    Wanda,
    prune,
)
from symprune.methods.refine.sketch_swap import approximate_gram
from symprune.methods.sketch import lacking, rank_in, signs, use_of
from symprune.methods.stats import Moments
from symprune.models.layers import linears_by_layer, named_linears
from symprune.pruning import stats_files
from symprune.pruning.calibrate import accumulate, collecting, gather
from symprune.pruning.cost import Cost, Shape
from symprune.pruning.runner import LayerRunner
from symprune.pruning.stream import StreamedRun, Streaming

F64 = torch.float64
USES = {"input_norm", "gram", *use_of(8)}


def case(seed=0, d_out=24, d_in=40, rank=8, dtype=F64, tokens=200):
    """A weight, inputs of unequal channels that move together and are not centred, and their statistics."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=F64)  # noqa: E731
    x = draw(4, tokens // 4, d_in // 2) @ draw(d_in // 2, d_in) + draw(4, tokens // 4, d_in)
    x = x * draw(d_in).exp() + draw(d_in)
    accumulator = StatsAccumulator(d_in, d_out, gram=True, rank=rank)
    accumulator.update(x.to(dtype))
    return draw(d_out, d_in).to(dtype), x.flatten(0, 1), accumulator.finish()


# The signs.


def split_mix(counter: int) -> int:
    """SplitMix64 in Python's whole numbers."""
    whole = 2**64 - 1
    x = (0x5EED + counter * 0x9E3779B97F4A7C15) & whole
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & whole
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & whole
    return x ^ (x >> 31)


def test_signs_are_the_same_everywhere_and_for_ever():
    shown = ["".join("-+"[int(s > 0)] for s in row) for row in signs(100, 12)[:4]]
    assert shown == ["----+-+--+++", "++-++-+++--+", "----+--+----", "-++++--+-+++"]
    found = signs(300, 70)
    for j, c in itertools.product((0, 1, 299), range(70)):
        bit = split_mix((j + 1) * 2**32 + c // 64) >> c % 64 & 1
        assert found[j, c] == 1 - 2 * bit, (j, c)


def test_signs_are_even_and_unlike_each_other():
    found = signs(4096, 128)
    assert set(found.unique().tolist()) == {-1.0, 1.0}
    products = found.T @ found / 64  # of unlike columns standard normal, or nearly
    assert (products.diagonal() == 64).all()
    assert products.fill_diagonal_(0).abs().max() < 5.5
    assert found.sum(0).abs().max() / 64 < 5
    assert found.sum(1).abs().max() / 128**0.5 < 5.5


def test_a_smaller_omega_is_the_first_columns_of_a_larger_one():
    assert torch.equal(signs(200, 9), signs(200, 130)[:, :9])
    assert torch.equal(signs(200, 200), torch.eye(200, dtype=F64))
    assert signs(200, 9, torch.float32).dtype == torch.float32


def test_names_of_sketches():
    assert rank_in({"input_norm", "sketch64", "sketch8"}) == 64
    assert rank_in({"input_norm", "gram", "sketch", "sketch0", "sketch-8", "sketches8", "sketch08"}) == 0
    assert use_of(0) == ()
    assert lacking({"sketch8", "gram"}, {"sketch64", "gram"}) == []
    assert lacking({"sketch64", "gram"}, {"sketch8", "input_norm"}) == ["gram", "sketch64"]


# The statistic.


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
def test_the_sketch_is_that_of_the_inputs_without_their_mean(dtype):
    _, x, stats = case(dtype=dtype)
    centred = x - x.mean(0)
    expected = centred.T @ (centred @ signs(40, 8))
    torch.testing.assert_close(
        stats.sketch, expected, rtol=0, atol=(1e-12 if dtype == F64 else 1e-5) * expected.abs().max().item()
    )
    assert stats.sketch.dtype == F64


def test_two_streams_merge_to_the_bits_of_one_and_a_group_parts_with_its_sketch():
    x = torch.randn(6, 9, 40)
    whole = StatsAccumulator(40, 3, rank=8)
    for sample in x:
        whole.update(sample)
    for cut, backwards in itertools.product((1, 2, 5), (False, True)):
        parts = StatsAccumulator(40, 3, rank=8), StatsAccumulator(40, 3, rank=8)
        for i in reversed(range(6)) if backwards else range(6):
            parts[i >= cut].update(x[i])
        parts[0].merge(parts[1])
        assert torch.equal(parts[0].finish().sketch, whole.finish().sketch)
    for rank in (0, 4):
        with pytest.raises(ValueError, match=f"8 and {rank} columns"):
            whole.add(Moments.of(x, rank=rank))
    assert StatsAccumulator(40, 3).finish().sketch is None
    assert not StatsAccumulator(40, 3, rank=8).finish().sketch.any()


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_every_linear_of_a_model_gets_the_sketch_of_its_own_inputs(family):
    found = gather(tiny.model(family), tiny.windows(3), USES)
    for name, stats in found.items():
        omega = signs(len(stats.input_norm), 8)
        mean = stats.input_mean.double() * stats.n_tokens**0.5
        expected = (stats.gram.double() - torch.outer(mean, mean)) @ omega
        atol = 1e-5 * float(stats.gram.abs().max()) + 1e-12
        torch.testing.assert_close(stats.sketch, expected, rtol=0, atol=atol, msg=name)


def test_files_of_shards_merge_to_the_bits_of_one_go(tmp_path):
    uses = frozenset({"input_norm", *use_of(8)})
    asked = stats_files.asked("w", uses, dtype="float32", device="cpu", seq_len=12)
    assert asked["gathered"] == ["sketch8"]
    windows = tiny.windows(5)
    for i, part in enumerate(windows.split(2)):
        sums = accumulate(tiny.model("mixtral"), part, uses)
        stats_files.save(tmp_path / f"{i}", stats_files.Calibration(sums, asked, [{"windows": str(i)}]))
    found = stats_files.merge([stats_files.load(tmp_path / f"{i}") for i in (2, 0, 1)]).statistics
    whole = gather(tiny.model("mixtral"), windows, uses)
    assert all(torch.equal(found[name].sketch, stats.sketch) for name, stats in whole.items())
    other = asked | {"gathered": ["sketch16"]}
    with pytest.raises(UserError, match="different gathered"):
        stats_files.merge(
            [stats_files.Calibration(sums, a, [{"windows": w}]) for a, w in ((asked, "a"), (other, "b"))]
        )


# The matrix that stands for G.


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_the_matrix_is_what_its_formula_says(rank):
    _, x, stats = case()
    n, mean = len(x), x.mean(0)
    scatter, omega = (x - mean).T @ (x - mean), signs(40, rank)
    sketch = scatter @ omega
    expected = n * torch.outer(mean, mean) + sketch @ torch.linalg.inv(omega.T @ sketch) @ sketch.T
    expected.fill_diagonal_(0)
    expected += torch.diag(x.square().sum(0))
    torch.testing.assert_close(approximate_gram(stats, rank), expected, rtol=1e-9, atol=1e-6)


def test_from_no_column_to_all_of_them():
    weight, x, stats = case(rank=40)
    none, half, almost, whole = (approximate_gram(stats, rank) for rank in (0, 20, 39, 40))
    mean = x.mean(0)
    assert torch.allclose(none - torch.diag(none.diagonal()), _hollow(len(x) * torch.outer(mean, mean)))
    torch.testing.assert_close(whole, x.T @ x, rtol=1e-12, atol=1e-9)
    size = (x.T @ x).norm()
    away = [float((near - whole).norm() / size) for near in (almost, half, none)]
    assert away[0] < 0.1 * away[1] < 0.1 * away[2] < 0.1
    for pattern in (Unstructured(0.6), NM(2, 4)):
        mask = Wanda()(weight, stats)
        mask = pattern(mask)
        exact = ExactSwap()(weight, mask, stats, pattern)
        assert torch.equal(SketchSwap(rank=40)(weight, mask, stats, pattern), exact)
        assert torch.equal(SketchSwap(rank=999)(weight, mask, stats, pattern), exact)
        assert not torch.equal(SketchSwap(rank=0)(weight, mask, stats, pattern), exact)
    few = case(rank=8)[2]  # a sketch of all columns holds the smaller ones
    torch.testing.assert_close(approximate_gram(stats, 8), approximate_gram(few, 8), rtol=1e-9, atol=1e-6)


def _hollow(matrix):
    return matrix - torch.diag(matrix.diagonal())


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rank=st.integers(0, 12),
    tokens=st.sampled_from([4, 8, 200]),  # fewer than the columns, for one: what is sketched has no full rank
    dtype=st.sampled_from([F64, torch.float32]),
    dead=st.booleans(),
)
@example(seed=262, rank=7, tokens=8, dtype=torch.float32, dead=False)  # nearly singular
def test_the_matrix_keeps_the_diagonal_and_is_never_negative(seed, rank, tokens, dtype, dead):
    _, x, _ = case(seed, 2, 20, 12, dtype, tokens)
    x[:, 3] *= not dead
    accumulator = StatsAccumulator(20, 2, rank=12)
    accumulator.update(x.to(dtype).view(4, -1, 20))
    stats = accumulator.finish()
    gram = approximate_gram(stats, rank).double()
    rounding = 1e-11 if dtype == F64 else 1e-4
    torch.testing.assert_close(gram.diagonal(), stats.input_norm.double().square(), rtol=rounding, atol=1e-4)
    torch.testing.assert_close(gram, gram.T, rtol=1e-6, atol=rounding * float(gram.diagonal().max()))
    assert torch.linalg.eigvalsh(gram)[0] > -rounding * gram.diagonal().max()


# Swaps under it.


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6), rank=st.integers(0, 8), pattern=st.sampled_from([Unstructured(0.6), NM(2, 4)])
)
def test_no_row_ends_higher_under_the_matrix_than_it_began(seed, rank, pattern):
    weight, _, stats = case(seed)
    gram = approximate_gram(stats, rank)
    mask, last = pattern(Wanda()(weight, stats)), None
    for cycles in (0, 1, 2, 30):
        refined = SketchSwap(rank, cycles)(weight, mask, stats, pattern)
        removed = weight * ~refined
        now = torch.einsum("ij,jk,ik->i", removed, gram, removed)
        assert last is None or (now <= last * (1 + 1e-12)).all()
        last = now


def test_a_sketch_that_is_missing_or_too_small_is_told():
    weight, _, stats = case(rank=8)
    mask = Unstructured(0.5)(weight.abs())
    with pytest.raises(UserError, match=r"9 columns, the statistics hold 8.*rank=9"):
        SketchSwap(rank=9)(weight, mask, stats)
    with pytest.raises(UserError, match=r"40 columns, the statistics hold 0"):
        SketchSwap(rank=64)(weight, mask, case(rank=0)[2])


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_streamed_or_in_memory_from_windows_or_statistics_the_masks_are_the_same(family, tmp_path):
    model, windows = tiny.model(family), tiny.windows(3)
    recipe = Recipe(Wanda(), Unstructured(0.6), SketchSwap(rank=8, max_cycles=3))
    larger = gather(model, windows, {"input_norm", *use_of(12)})
    model.save_pretrained(tmp_path / "model")
    whole = prune(model, windows, recipe, "dense", keep_masks=True)
    assert sum(linear.refined["swaps"] for linear in whole.linears if linear.refined) > 0
    again = prune(tiny.model(family), larger, recipe, "dense", keep_masks=True)
    assert all(torch.equal(again.masks[name], mask) for name, mask in whole.masks.items())
    how = Streaming(keep_masks=True)
    with StreamedRun(str(tmp_path / "model"), windows, recipe, "dense", how).into(tmp_path / "out") as (
        _,
        report,
    ):
        assert [(x.name, x.kept, x.refined) for x in report.linears] == [
            (x.name, x.kept, x.refined) for x in whole.linears
        ]


def test_the_command_line_gathers_a_sketch_and_says_where_one_is_lacking(capsys, small, refused):  # noqa: F811
    _, model, *text = small[:-2]
    assert call(capsys, "calibrate", model, *text, "--gather", "sketch8", "--out", "s")[0] == 0
    prune_with = ["prune", model, "--statistics", "s", "--masks", "m", "--refine"]
    assert call(capsys, *prune_with[:-2], "m", "--refine", "sketch_swap(rank=4)")[0] == 0
    error = refused(*prune_with[:-2], "n", "--refine", "sketch_swap(rank=9)")
    assert error.count("sketch9") == 2
    assert "--gather sketch9" in error
    assert "sketch64" in refused("calibrate", model, *text, "--gather", "sketch", "--out", "t")


# The cost model.


def test_operations_of_a_sketch_are_those_that_torch_counts():
    model, windows = tiny.model(), tiny.windows(4, 12)

    def counted(uses):
        runner = LayerRunner(model, windows)
        with FlopCounterMode(display=False) as counter:
            for index, linears in enumerate(linears_by_layer(model)):
                with collecting(linears, uses):
                    runner.run(index)
        return counter.get_total_flops()

    shape, sizes = Shape.of(model), (4, 12)
    more = Cost(shape, *sizes, passes=1, rank=8).operations - Cost(shape, *sizes, passes=1).operations
    taken = counted({"sketch8"}) - counted({"input_norm"})
    assert 0.9 < more / taken < 1.1


def test_the_cost_model_knows_the_bytes_of_a_sketch():
    shape = Shape.of(tiny.model())
    sums = accumulate(tiny.model(), tiny.windows(2), {"sketch8"})
    held = sum(2 * moments.sketch.high.nbytes for moments in sums.moments.values())
    assert held == 3 * 16 * 8 * sum(Cost(shape, 4, 12).inputs)
    without, with_it = (Cost(shape, 4, 12, rank=rank) for rank in (0, 8))
    assert with_it.grams - without.grams >= held / 3
    assert (
        with_it.scoring - without.scoring
        == 4 * max(weight.weight.shape[1] for weight in named_linears(tiny.model()).values()) ** 2
    )
    assert Cost(shape, 4, 12, rank=8, passes=0).grams == 0
