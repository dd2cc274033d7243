"""The theory, executed: zeroing one weight costs its score, under the explicit (X, Y) of every method."""

from dataclasses import asdict

import pytest
import torch
from test_scores import CASES
from torch import Tensor

from symprune.methods.masks import Unstructured
from symprune.methods.norms import row_column_norms
from symprune.methods.objective import (
    Quadratic,
    additive_gap,
    objective,
    removal_cost,
    squared_counterexample,
)
from symprune.methods.pairs import CONSTRUCTIONS, FORMULAS, PAIRS, random_directions
from symprune.methods.scores import RI, SCORES, LpNorm
from symprune.methods.stats import LayerStats, StatsAccumulator

IDENTITIES = [
    pytest.param(score, build, id=f"{score!r} {construction}")
    for name, scores in CASES.items()
    for score in scores
    for construction, build in PAIRS[name].items()
]


def layer(
    d_out: int = 6, d_in: int = 9, tokens: int = 15, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, LayerStats]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(d_out, d_in, generator=generator, dtype=torch.float64)
    inputs = torch.randn(tokens, d_in, generator=generator, dtype=torch.float64) * torch.arange(1, d_in + 1)
    acc = StatsAccumulator(d_in, d_out)
    acc.update(inputs, inputs @ weight.t())
    return weight, inputs, (inputs @ weight.t()).t(), acc.finish()


def without(weight: Tensor, i: int, j: int) -> Tensor:
    pruned = weight.clone()
    pruned[i, j] = 0
    return pruned


def test_every_score_has_pairs_and_formulas():
    assert list(PAIRS) == list(FORMULAS) == list(SCORES)
    assert len(PAIRS["ri"]) == 3
    assert len(PAIRS["lp_norm"]) == 2
    assert all(
        cell.count("$") % 2 == 0 and cell.count("{") == cell.count("}")
        for f in FORMULAS.values()
        for cell in asdict(f).values()
    )


@pytest.mark.parametrize(("score", "build"), IDENTITIES)
@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (1, 5), (5, 1)])
def test_removal_identity(score, build, shape):
    """g(W without (i, j)) - g(W) == S[i, j] for every (i, j); the root of it where the score is the squared
    objective's.
    """
    weight, inputs, outputs, stats = layer(*shape)
    pair = build(weight, inputs, outputs, **asdict(score))
    assert pair.X.shape[1] == shape[1]
    assert pair.Y.shape[0] == shape[0]
    cost = torch.empty_like(weight)
    for j in range(shape[1]):
        X, Y = pair.at(j)
        before = objective(weight, weight, X, Y, pair.squared)
        for i in range(shape[0]):
            cost[i, j] = objective(weight, without(weight, i, j), X, Y, pair.squared) - before
    if pair.squared:
        cost = cost.sqrt()
    scores = score(weight, stats)
    torch.testing.assert_close(cost, scores, rtol=1e-10, atol=0)
    torch.testing.assert_close(pair.cost(weight), scores, rtol=1e-10, atol=0)


@pytest.mark.parametrize(("score", "build"), IDENTITIES)
def test_removal_identity_with_dead_rows_and_columns(score, build):
    weight, inputs, _, _ = layer()
    weight[1], weight[:, 4], inputs[:, 6] = 0, 0, 0
    acc = StatsAccumulator(9, 6)
    acc.update(inputs, inputs @ weight.t())
    pair = build(weight, inputs, (inputs @ weight.t()).t(), **asdict(score))
    torch.testing.assert_close(pair.cost(weight), score(weight, acc.finish()), rtol=1e-10, atol=0)


def test_objective_by_definition():
    weight, X, _, _ = layer()
    generator = torch.Generator().manual_seed(1)
    Y, pruned = (
        torch.randn(6, 4, generator=generator).double(),
        torch.randn(6, 9, generator=generator).double(),
    )
    D = (pruned - weight).tolist()
    input_sq = sum(sum(x[j] * D[i][j] for j in range(9)) ** 2 for x in X.tolist() for i in range(6))
    output_sq = sum(sum(Y[i, k].item() * D[i][j] for i in range(6)) ** 2 for k in range(4) for j in range(9))
    assert objective(weight, pruned, X, Y).item() == pytest.approx(input_sq**0.5 + output_sq**0.5, rel=1e-12)
    assert objective(weight, pruned, X, Y, squared=True).item() == pytest.approx(
        input_sq + output_sq, rel=1e-12
    )
    assert objective(weight, weight, X, Y) == 0


@pytest.mark.parametrize("squared", [False, True])
def test_removal_cost_is_what_removal_costs(squared):
    weight, X, Y, _ = layer()
    cost = removal_cost(weight, X, Y, squared)
    for i in range(6):
        for j in range(9):
            assert objective(weight, without(weight, i, j), X, Y, squared).item() == pytest.approx(
                cost[i, j].item(), rel=1e-12
            )


@pytest.mark.parametrize("construction", CONSTRUCTIONS)
def test_constructions_have_the_norms_asked_for(construction):
    norms = torch.tensor([0.0, 1.0, 2.5, 1e-3], dtype=torch.float64)
    torch.testing.assert_close(CONSTRUCTIONS[construction](norms).norm(dim=0), norms, rtol=1e-14, atol=0)


def test_different_pairs_give_one_score():
    """A score fixes the norms of (X, Y) and nothing else: g itself differs between constructions once two
    weights go.
    """
    weight, inputs, outputs, _ = layer()
    pairs = [build(weight, inputs, outputs) for build in PAIRS["ri"].values()]
    for pair in pairs[1:]:
        torch.testing.assert_close(pair.cost(weight), pairs[0].cost(weight), rtol=1e-12, atol=0)
    two_gone = without(without(weight, 0, 0), 0, 1)
    costs = [objective(weight, two_gone, pair.X, pair.Y).item() for pair in pairs]
    assert len({round(cost, 9) for cost in costs}) == 3


def test_random_directions_follow_the_seed():
    norms = torch.ones(5, dtype=torch.float64)
    assert torch.equal(random_directions(norms, 1), random_directions(norms, 1))
    assert not torch.equal(random_directions(norms, 1), random_directions(norms, 2))


def test_no_squared_pair_gives_relative_importance():
    weight = squared_counterexample()
    r_1, c_1 = row_column_norms(weight)
    target = (1 / c_1 + 1 / r_1[:, None]).square()
    assert target[0, 0] + target[1, 1] - target[0, 1] - target[1, 0] == pytest.approx(2 / 63, rel=1e-12)
    assert additive_gap(target) == pytest.approx(1 / 126, rel=1e-12)
    # The target is what a squared cost would have to be, divided by W^2 ...
    _, _, _, stats = layer(2, 2)
    torch.testing.assert_close(RI()(weight, stats).square() / weight.square(), target, rtol=1e-12, atol=0)
    # ... and what any squared cost is has no gap.
    for seed in range(20):
        _, X, Y, _ = layer(2, 2, seed=seed)
        cost = removal_cost(weight, X, Y, squared=True) / weight.square()
        assert additive_gap(cost) < 1e-12 * cost.max()


def test_no_gap_where_columns_have_equal_norms():
    """The condition is not impossible always: equal columns (or rows) leave nothing to mix."""
    weight = torch.tensor([[1.0, 1.0], [3.0, 3.0]], dtype=torch.float64)
    r_1, c_1 = row_column_norms(weight)
    assert additive_gap((1 / c_1 + 1 / r_1[:, None]).square()) < 1e-15
    weight, _, _, stats = layer()
    assert additive_gap(LpNorm(p=2)(weight, stats) / weight.abs()) < 1e-12, (
        "unsquared, every relative importance is such a sum"
    )


# The family with whole matrices.

MEMBERS = {  # (c, s, t, m)
    "magnitude": (0, 0, 0, 1),
    "wanda": (0, 1, 0, 0),
    "owanda": (0, 0, 1, 0),
    "symmetric": (0, 1, 1, 0),
    "product": (1, 0, 0, 0),
    "damped": (0, 1, 0, 0.3),
    "all": (0.7, 0.2, 0.5, 0.1),
}


def matrices() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weight, X, Y, _ = layer()
    return weight, X, Y, torch.randn(6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("member", MEMBERS)
def test_the_family_is_its_kronecker_products(member):
    (weight, X, Y, change), (c, s, t, m) = matrices(), MEMBERS[member]
    G, H, left, right = X.t() @ X, Y @ Y.t(), torch.eye(6).double(), torch.eye(9).double()
    A = (
        c * torch.kron(H, G)
        + s * torch.kron(left, G)
        + t * torch.kron(H, right)
        + m * torch.kron(left, right)
    )
    quadratic, d = Quadratic(G, H, c, s, t, m), change.flatten()
    torch.testing.assert_close(quadratic.value(change).sum(), d @ A @ d)
    torch.testing.assert_close(quadratic.gradient(change).flatten(), A @ d)
    torch.testing.assert_close(quadratic.diagonal(6).flatten(), A.diagonal())
    for i, j in [(0, 0), (5, 8), (2, 7)]:
        alone = (without(weight, i, j) - weight).flatten()
        torch.testing.assert_close(quadratic.removal_cost(weight)[i, j], alone @ A @ alone)
    if not c and not t:  # rows are by themselves
        apart = Quadratic(G, None, c, s, t, m)
        torch.testing.assert_close(apart.gradient(change), quadratic.gradient(change))
        torch.testing.assert_close(apart.diagonal(6), quadratic.diagonal(6))
        rows = torch.stack([row @ (s * G + m * right) @ row for row in change])
        torch.testing.assert_close(apart.value(change)[:, 0], rows)


def test_the_squared_symmetric_objective_and_damping_are_members():
    weight, X, Y, change = matrices()
    G, H = X.t() @ X, Y @ Y.t()
    expected = objective(weight, weight + change, X, Y, squared=True)
    torch.testing.assert_close(Quadratic(G, H, s=1, t=1).value(change)[0, 0], expected)
    torch.testing.assert_close(
        Quadratic(G, H, s=1, t=1).removal_cost(weight), removal_cost(weight, X, Y, squared=True)
    )
    root = 0.3**0.5 * torch.eye(6).double()
    damped = objective(weight, weight + change, X, root, squared=True)
    torch.testing.assert_close(Quadratic(G, s=1, m=0.3).value(change).sum(), damped)
    a, b = 0.2, 0.7
    expanded = Quadratic(G, H, 1, a, b, a * b)
    both = Quadratic(G + b * torch.eye(9).double(), H + a * torch.eye(6).double(), c=1)
    torch.testing.assert_close(expanded.gradient(change), both.gradient(change))


def test_a_diagonal_of_the_outputs_scales_rows_and_changes_no_mask_within_them():
    weight, X, Y, _ = matrices()
    G, H = X.t() @ X, Y @ Y.t()
    h = H.diagonal()
    cost = Quadratic(G, h.diag(), c=1).removal_cost(weight)
    torch.testing.assert_close(cost, h[:, None] * Quadratic(G, s=1).removal_cost(weight))
    by_row, by_layer = Unstructured(0.5), Unstructured(0.5, "layer")
    assert torch.equal(by_row(cost), by_row(Quadratic(G, s=1).removal_cost(weight)))
    assert not torch.equal(by_layer(cost), by_layer(Quadratic(G, s=1).removal_cost(weight)))
