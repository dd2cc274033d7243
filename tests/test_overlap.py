"""Overlap and evenness of masks, by counting and by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from symprune.overlap import entropy_of_kept, jaccard

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
    assert 1 - entropy_of_kept(mask, 0) == pytest.approx(relative.var(unbiased=False).item() / (2 * math.log(300)), rel=0.05)
