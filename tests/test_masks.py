"""Masks against a stable sort of every group, counts exact, ties by index."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from symprune import NM, Unstructured, UserError
from symprune.methods.masks import zero_removed


def removed_by_stable_sort(scores: list[float], n: int) -> set[int]:
    """The n lowest, the lower index first among equals: Python's sort is stable."""
    return set(sorted(range(len(scores)), key=lambda j: scores[j])[:n])


def literal(scores: torch.Tensor, groups: list[list[tuple[int, int]]], n_removed: list[int]) -> torch.Tensor:
    mask = torch.ones(scores.shape, dtype=torch.bool)
    for group, n in zip(groups, n_removed, strict=True):
        for index in removed_by_stable_sort([scores[i, j].item() for i, j in group], n):
            mask[group[index]] = False
    return mask


# Few distinct values, so that ties are the rule; infinities are legal scores.
value = st.sampled_from([0.0, 0.0, 1.0, 1.0, 2.0, 3.5, 1e-40, 1e30, math.inf])


@st.composite
def score_matrices(draw, multiple: int = 1):
    d_out, d_in = draw(st.integers(1, 6)), multiple * draw(st.integers(1, 24 // multiple))
    return torch.tensor(draw(st.lists(value, min_size=d_out * d_in, max_size=d_out * d_in))).view(d_out, d_in)


@settings(max_examples=200, deadline=None)
@given(
    scores=score_matrices(),
    sparsity=st.floats(0, 1, exclude_max=True),
    group=st.sampled_from(["output", "layer"]),
)
def test_unstructured_removes_exactly_the_lowest_of_each_group(scores, sparsity, group):
    d_out, d_in = scores.shape
    rows = [[(i, j) for j in range(d_in)] for i in range(d_out)]
    groups = rows if group == "output" else [[index for row in rows for index in row]]
    expected = literal(scores, groups, [math.floor(sparsity * len(g)) for g in groups])
    assert torch.equal(Unstructured(sparsity, group)(scores), expected)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), m=st.sampled_from([1, 2, 4, 8, 24]))
def test_nm_keeps_the_highest_n_of_every_block(data, m):
    n = data.draw(st.integers(1, m))
    scores = data.draw(score_matrices(multiple=m))
    d_out, d_in = scores.shape
    groups = [[(i, b + j) for j in range(m)] for i in range(d_out) for b in range(0, d_in, m)]
    mask = NM(n, m)(scores)
    assert torch.equal(mask, literal(scores, groups, [m - n] * len(groups)))
    assert (mask.view(-1, m).sum(1) == n).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "pattern", [Unstructured(0.6), Unstructured(0.5, "layer"), NM(2, 4), NM(4, 8), NM(8, 32)]
)
def test_large_matrices_with_many_ties_agree_with_torch_stable_sort(pattern, dtype):
    scores = torch.randint(0, 40, (64, 576), generator=torch.Generator().manual_seed(0)).to(dtype)
    size = {
        Unstructured: scores.shape[1] if getattr(pattern, "group", "") == "output" else scores.numel(),
        NM: getattr(pattern, "m", 0),
    }
    groups = scores.reshape(-1, size[type(pattern)])
    n_removed = math.floor(pattern.sparsity * groups.shape[1])
    expected = torch.ones_like(groups, dtype=torch.bool).scatter(
        1, groups.sort(dim=1, stable=True).indices[:, :n_removed], False
    )
    assert torch.equal(pattern(scores), expected.view(scores.shape))


def test_scores_are_left_as_they_were():
    scores = torch.rand(4, 8)
    before = scores.clone()
    for pattern in (Unstructured(0.5), Unstructured(0.5, "layer"), NM(2, 4)):
        pattern(scores)
    assert torch.equal(scores, before)


@pytest.mark.parametrize("pattern", [Unstructured(0.5), Unstructured(0.5, "layer"), NM(2, 4), NM(8, 32)])
def test_nan_has_no_rank(pattern):
    scores = torch.rand(2, 32)
    scores[1, 5] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        pattern(scores)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, math.nan])
def test_sparsity_outside_its_range_is_refused(sparsity):
    with pytest.raises(UserError, match="sparsity"):
        Unstructured(sparsity)


@pytest.mark.parametrize(("n", "m"), [(0, 4), (5, 4), (-1, 4), (0, 0)])
def test_impossible_nm_is_refused(n, m):
    with pytest.raises(UserError, match="n of every m"):
        NM(n, m)


def test_a_width_that_m_does_not_divide_is_refused():
    with pytest.raises(UserError, match="4 divides, not 6"):
        NM(2, 4)(torch.rand(2, 6))


def test_an_unknown_group_names_the_nearest():
    with pytest.raises(UserError, match="did you mean output"):
        Unstructured(0.5, "outputs")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("transposed", [False, True])
def test_what_is_kept_keeps_every_bit_and_what_is_removed_is_plain_zero(dtype, transposed):
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    values = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    values[0, :4] = torch.tensor([-0.0, 0.0, torch.finfo(dtype).tiny, -torch.finfo(dtype).max], dtype=dtype)
    mask = torch.rand(6, 8, generator=torch.Generator().manual_seed(1)) > 0.5
    mask[0] = torch.tensor([True] * 4 + [False] * 4)
    weight = values.t().contiguous().t() if transposed else values.clone()
    zero_removed(weight, mask)
    for i in range(6):
        for j in range(8):
            expected = values[i, j].view(integers) if mask[i, j] else 0
            assert weight[i, j].view(integers) == expected
