"""Exact norms against their definition, and the sampled ones: unbiased, exact when everything is sampled,
seeded.
"""

import math

import pytest
import torch
from torch import Tensor

from symprune.base.errors import UserError
from symprune.methods.norms import (
    SAMPLERS,
    _distinct,
    _drawn_before,
    _one_per_stratum,
    column_norm,
    relative_importance,
    root_sum_of_squares,
    row_column_norms,
    row_norm,
    safe_reciprocal,
    sample_size,
    sampled_norms,
    unit_mean,
)

PS = (0.5, 0.9, 1.0, 1.5, 2.0, 3.0, 4.0, math.inf)


def random_weight(d_out: int = 7, d_in: int = 12, seed: int = 0) -> Tensor:
    weight = torch.randn(d_out, d_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return weight * torch.arange(1, d_in + 1) * torch.arange(1, d_out + 1)[:, None]


def by_loop(values: list[float], p: float) -> float:
    largest = max(abs(v) for v in values)
    if p == math.inf or largest == 0:
        return largest
    return largest * sum((abs(v) / largest) ** p for v in values) ** (1 / p)


@pytest.mark.parametrize("p", PS)
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e-42, 1e30, 0.0], ids=lambda s: f"scale {s}")
def test_exact_norms(p, scale):
    """Also where |W|^p over- or underflows in float32 though the norm does not."""
    weight = (random_weight() * scale).float()
    rows = [by_loop(row, p) for row in weight.double().tolist()]
    columns = [by_loop(column, p) for column in weight.double().t().tolist()]
    row, column = row_column_norms(weight, p)
    assert torch.equal(row, row_norm(weight, p))
    assert torch.equal(column, column_norm(weight, p))
    torch.testing.assert_close(row.double(), torch.tensor(rows, dtype=torch.float64), rtol=2e-6, atol=1e-43)
    torch.testing.assert_close(
        column.double(), torch.tensor(columns, dtype=torch.float64), rtol=2e-6, atol=1e-43
    )


@pytest.mark.parametrize("p", PS)
def test_rows_of_very_different_scale(p):
    weight = torch.tensor([[1e-30, 2e-30], [0.0, 0.0], [1.0, -2.0], [1e25, 1e20]], dtype=torch.float32)
    expected = torch.tensor([by_loop(row, p) for row in weight.double().tolist()], dtype=torch.float64)
    torch.testing.assert_close(row_norm(weight, p).double(), expected, rtol=2e-6, atol=0)


@pytest.mark.parametrize("p", [0.0, -1.0, math.nan])
def test_p_must_be_positive(p):
    with pytest.raises(ValueError, match="p of an lp norm must be positive"):
        row_column_norms(random_weight(), p)


def test_safe_reciprocal():
    norm = torch.tensor([0.0, 2.0, 1e-42, 1e38])
    result = safe_reciprocal(norm)
    assert result[0] == 0
    assert result[1] == 0.5
    assert result.isfinite().all()


def test_unit_mean():
    assert unit_mean(torch.tensor([1.0, 3.0])).tolist() == [0.5, 1.5]
    assert unit_mean(torch.zeros(3)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_root_sum_of_squares(scale):
    row, column = torch.tensor([3.0, 0.0, 1.0]) * scale, torch.tensor([4.0, 0.0]) * scale
    expected = torch.hypot(column.double(), row.double()[:, None])
    torch.testing.assert_close(root_sum_of_squares(row, column).double(), expected, rtol=1e-6, atol=0)


def test_relative_importance_of_tiny_weights_is_that_of_the_weights():
    weight = random_weight().float()
    exact = relative_importance(weight)
    torch.testing.assert_close(relative_importance(weight * 2.0**-100), exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(relative_importance(weight * 2.0**-130), exact, rtol=1e-3, atol=0)
    mixed = weight.clone()
    mixed[2] *= 2.0**-100
    assert relative_importance(mixed).isfinite().all()


# ---- sampled norms
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "beta", "tau"),
    [(10, 0.1, 1), (30, 0.1, 3), (576, 0.1, 58), (5, 0.01, 1), (5, 0.5, 3), (7, 1.0, 7), (1, 0.1, 1)],
)
def test_sample_size(n, beta, tau):
    assert sample_size(n, beta) == tau


@pytest.mark.parametrize("sampling", SAMPLERS)
@pytest.mark.parametrize("shape", [(7, 12), (1, 9), (9, 1), (1, 1)])
def test_every_entry_sampled_is_exact(sampling, shape):
    weight = random_weight(*shape)
    for row, column in (sampled_norms(weight, 1.0, sampling), sampled_norms(weight.float(), 1.0, sampling)):
        exact_row, exact_column = row_column_norms(weight.to(row.dtype))
        assert torch.equal(row, exact_row)
        assert torch.equal(column, exact_column)


@pytest.mark.parametrize("sampling", SAMPLERS)
@pytest.mark.parametrize("beta", [0.1, 0.35, 0.6, 0.9])
def test_estimates_are_unbiased(sampling, beta):
    """The mean over many seeds lies within 4.5 standard errors of the exact norm, for each of the 19 rows and
    columns.
    """
    weight = random_weight()
    estimates = [sampled_norms(weight, beta, sampling, seed) for seed in range(1500)]
    for side, exact in enumerate(row_column_norms(weight)):
        values = torch.stack([estimate[side] for estimate in estimates])
        error, spread = values.mean(dim=0) - exact, values.std(dim=0) / len(values) ** 0.5
        assert (spread > 0).all(), "it is an estimate"
        assert (error.abs() < 4.5 * spread).all(), (error / spread).tolist()


def test_independent_samples_have_the_variance_of_simple_random_samples():
    """n^2 (1 - tau / n) s^2 / tau: samples without replacement, and every set equally likely; 0.12 is 5
    standard errors of a variance.
    """
    weight = random_weight(3, 10)
    for beta in (0.3, 0.7):
        values = torch.stack([sampled_norms(weight, beta, "independent", seed)[0] for seed in range(4000)])
        tau = sample_size(10, beta)
        expected = 100 * (1 - tau / 10) * weight.abs().var(dim=1) / tau
        torch.testing.assert_close(values.var(dim=0), expected, rtol=0.12, atol=0)


@pytest.mark.parametrize("tau", [1, 4, 9, 16, 19, 20])
def test_distinct_indices(tau):
    index = _distinct(200, 20, tau, torch.Generator().manual_seed(0))
    assert index.shape == (200, tau)
    assert all(len(set(line)) == tau and min(line) >= 0 and max(line) < 20 for line in index.tolist())
    counts = torch.bincount(index.reshape(-1), minlength=20).double()
    expected, spread = 200 * tau / 20, (200 * tau / 20 * (1 - tau / 20)) ** 0.5
    assert ((counts - expected).abs() <= 4.5 * spread).all()


def test_one_index_from_each_stratum():
    index = _one_per_stratum(300, 12, 4, torch.Generator().manual_seed(0))
    assert torch.equal(index // 3, torch.arange(4).expand(300, 4))
    assert torch.equal(
        _one_per_stratum(5, 7, 7, torch.Generator().manual_seed(0)), torch.arange(7).expand(5, 7)
    )


def test_strata_help_where_the_size_follows_the_index():
    weight = torch.arange(1.0, 101.0, dtype=torch.float64).repeat(4, 1)
    assert spread_of("stratified", weight, side=0) < 0.3 * spread_of("independent", weight, side=0)


@pytest.mark.parametrize("draw", [_distinct, _one_per_stratum])
def test_what_a_gpu_is_given_again_is_what_would_be_drawn(draw):
    """With the generator left where drawing leaves it, for what is drawn next; another state draws anew."""
    for seed in (0, 1, 0):
        drawing, given = (torch.Generator().manual_seed(seed) for _ in range(2))
        for lines, n, tau in ((5, 40, 4), (40, 5, 1), (5, 40, 30)):
            expected = draw(lines, n, tau, drawing)
            assert torch.equal(_drawn_before(draw, lines, n, tau, given).long(), expected)
        assert torch.equal(drawing.get_state(), given.get_state())


def test_importance_helps_where_a_few_channels_hold_the_weight():
    weight = torch.rand(40, 100, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight[:, ::20] *= 50
    assert spread_of("weighted", weight, side=0) < 0.5 * spread_of("independent", weight, side=0)


def spread_of(sampling: str, weight: Tensor, side: int) -> float:
    return float(
        torch.stack([sampled_norms(weight, 0.1, sampling, seed)[side] for seed in range(200)])
        .std(dim=0)
        .mean()
    )


def test_shared_samples_err_alike():
    """One index set for all rows: on a rank-one weight the estimates are the exact norms times one common
    factor.
    """
    weight = torch.outer(torch.arange(1.0, 6.0), torch.arange(1.0, 31.0)).double()
    row, column = sampled_norms(weight, 0.2, "shared", seed=3)
    for estimate, exact in zip((row, column), row_column_norms(weight), strict=True):
        ratio = estimate / exact
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-12, atol=0)


def test_independent_rows_draw_their_own_indices():
    weight = torch.arange(1.0, 31.0, dtype=torch.float64).repeat(20, 1)
    for sampling in ("independent", "stratified", "weighted"):
        assert len(set(sampled_norms(weight, 0.2, sampling)[0].tolist())) >= 10


@pytest.mark.parametrize("sampling", SAMPLERS)
def test_seeded_by_seed_and_shape(sampling):
    weight = random_weight(30, 40)
    first, again, other = (sampled_norms(weight, 0.2, sampling, seed) for seed in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    doubled = sampled_norms(weight * 2, 0.2, sampling, 5)
    assert all(torch.equal(2 * a, b) for a, b in zip(first, doubled, strict=True)), (
        "the indices do not depend on the scale"
    )


@pytest.mark.parametrize("sampling", SAMPLERS)
def test_zero_weight_has_zero_norms(sampling):
    row, column = sampled_norms(torch.zeros(6, 9), 0.3, sampling)
    assert not row.any()
    assert not column.any()


def test_unknown_sampling():
    with pytest.raises(UserError, match="did you mean shared"):
        sampled_norms(random_weight(), 0.5, "share")
