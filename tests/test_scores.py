"""Every score against its definition as loops, and the properties that all scores share."""

import json
import math
from dataclasses import asdict, dataclass, fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from symprune.base.errors import UserError
from symprune.methods.masks import NM, Unstructured
from symprune.methods.norms import SAMPLERS, row_column_norms, sampled_norms
from symprune.methods.scores import (
    RI,
    RIA,
    SCORES,
    GeneralDiagonal,
    LpNorm,
    Magnitude,
    OWanda,
    StochRIA,
    Symmetric,
    SymWanda,
    Wanda,
)
from symprune.methods.stats import LayerStats, StatsAccumulator

CASES = {
    "magnitude": [Magnitude()],
    "wanda": [Wanda()],
    "owanda": [OWanda()],
    "symwanda": [SymWanda(), SymWanda(balance="unit-mean")],
    "symmetric": [Symmetric(), Symmetric(squared=True)],
    "ri": [RI()],
    "ria": [RIA(), RIA(alpha=1.0), RIA(alpha=0.0)],
    "lp_norm": [
        LpNorm(),
        *(LpNorm(p=p, alpha=a) for p in (0.5, 2.0, 3.0, 4.0, math.inf) for a in (0.0, 0.5)),
    ],
    "stochria": [
        StochRIA(),
        *(
            StochRIA(beta=b, alpha=a, sampling=s, seed=3)
            for b, a in ((0.4, 0.0), (1.0, 0.5))
            for s in SAMPLERS
        ),
    ],
    "general_diagonal": [GeneralDiagonal(), GeneralDiagonal(balance="unit-mean")],
}
ALL = [pytest.param(score, id=repr(score)) for scores in CASES.values() for score in scores]


# ---- the definitions, one weight at a time, in float64
# --------------------------------------------------------------------------


def lp(values: list[float], p: float) -> float:
    largest = max(abs(v) for v in values)
    if p == math.inf or largest == 0:
        return largest
    return largest * sum((abs(v) / largest) ** p for v in values) ** (1 / p)


def inverse(value: float) -> float:
    return 1 / value if value > 0 else 0.0


def norms(w, p):
    return [lp(row, p) for row in w], [lp(column, p) for column in zip(*w, strict=True)]


def over(size, value):
    """size / value, and 0 over a dead norm, with no reciprocal in between that could overflow."""
    return size / value if value > 0 else 0.0


def balanced(values, balance):
    return values if balance == "none" else [over(v, sum(values) / len(values)) for v in values]


def relative(w, i, j, r, c, activation=1.0):
    return (over(abs(w[i][j]), c[j]) + over(abs(w[i][j]), r[i])) * activation


def symmetric(w, i, j, squared):
    r, c = norms(w, 2)
    return abs(w[i][j]) * (math.hypot(c[j], r[i]) if squared else c[j] + r[i])


def symwanda(w, x, y, i, j, balance):
    return abs(w[i][j]) * (balanced(x, balance)[j] + balanced(y, balance)[i])


def stochria(w, x, i, j, beta, alpha, sampling, seed):
    estimates = (
        norms(w, 1)
        if beta == 1
        else (v.tolist() for v in sampled_norms(torch.tensor(w, dtype=torch.float64), beta, sampling, seed))
    )
    return relative(w, i, j, *estimates, x[j] ** alpha)


def general_diagonal(w, x, y, i, j, balance):
    a, b = balanced(x, balance), balanced(y, balance)
    r, c = norms(w, 1)
    return over(abs(w[i][j]), c[j]) * a[j] + over(abs(w[i][j]), r[i]) * b[i]


LOOPS = {
    "magnitude": lambda w, x, y, i, j: abs(w[i][j]),
    "wanda": lambda w, x, y, i, j: abs(w[i][j]) * x[j],
    "owanda": lambda w, x, y, i, j: abs(w[i][j]) * y[i],
    "symwanda": symwanda,
    "symmetric": lambda w, x, y, i, j, squared: symmetric(w, i, j, squared),
    "ri": lambda w, x, y, i, j: relative(w, i, j, *norms(w, 1)),
    "ria": lambda w, x, y, i, j, alpha: relative(w, i, j, *norms(w, 1), x[j] ** alpha),
    "lp_norm": lambda w, x, y, i, j, p, alpha: relative(w, i, j, *norms(w, p), x[j] ** alpha),
    "stochria": lambda w, x, y, i, j, **kw: stochria(w, x, i, j, **kw),
    "general_diagonal": general_diagonal,
}


def name_of(score) -> str:
    return next(name for name, kind in SCORES.items() if type(score) is kind)


def by_loops(score, weight: Tensor, stats: LayerStats) -> Tensor:
    w, x, y = (v.double().tolist() for v in (weight, stats.input_norm, stats.output_norm))
    define, d_out, d_in = LOOPS[name_of(score)], *weight.shape
    rows = [[define(w, x, y, i, j, **asdict(score)) for j in range(d_in)] for i in range(d_out)]
    return torch.tensor(rows, dtype=torch.float64)


# ---- material
# ----------------------------------------------------------------------------------------------------


def calibrated(weight: Tensor, seed: int = 1, tokens: int = 40) -> LayerStats:
    inputs = torch.randn(
        tokens, weight.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    inputs *= torch.arange(1, weight.shape[1] + 1)
    acc = StatsAccumulator(weight.shape[1], weight.shape[0])
    acc.update(inputs, inputs @ weight.double().t())
    return acc.finish()


def with_norms(x: Tensor, y: Tensor | None) -> LayerStats:
    return LayerStats(x, x, x, x, y, n_tokens=1, n_samples=1)


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(8, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# ---- the conformance test: every entry, no skips
# --------------------------------------------------------------------------------


def test_every_score_has_cases_and_a_definition():
    assert list(CASES) == list(SCORES) == list(LOOPS)
    assert all(type(score) is SCORES[name] for name, scores in CASES.items() for score in scores)
    assert all(SCORES[name]() == scores[0] for name, scores in CASES.items()), "the first case is the default"


@pytest.mark.parametrize("score", ALL)
def test_equals_its_definition(score, weight):
    stats = calibrated(weight)
    torch.testing.assert_close(score(weight, stats), by_loops(score, weight, stats), rtol=1e-12, atol=0)


@pytest.mark.parametrize("score", ALL)
def test_shape_finite_nonnegative(score, weight):
    scores = score(weight, calibrated(weight))
    assert scores.shape == weight.shape
    assert scores.dtype == torch.float64
    assert scores.isfinite().all()
    assert (scores >= 0).all()


@pytest.mark.parametrize("score", ALL)
def test_dead_rows_and_columns_score_zero(score, weight):
    weight[2], weight[:, 5] = 0, 0
    scores = score(weight, calibrated(weight))
    assert (scores[2] == 0).all()
    assert (scores[:, 5] == 0).all()
    rest = scores[torch.arange(8) != 2][:, torch.arange(12) != 5]
    torch.testing.assert_close(scores, by_loops(score, weight, calibrated(weight)), rtol=1e-12, atol=0)
    assert rest.sum() > 0


@pytest.mark.parametrize("score", ALL)
def test_dead_inputs_and_outputs(score, weight):
    """x[j] = 0 or y[i] = 0 with live weights: what the definition says, with 0^alpha = 0 and no activations
    at alpha = 0.
    """
    stats = calibrated(weight)
    stats.input_norm[3], stats.output_norm[4] = 0, 0
    scores = score(weight, stats)
    torch.testing.assert_close(scores, by_loops(score, weight, stats), rtol=1e-12, atol=0)
    silent = with_norms(torch.zeros(12, dtype=torch.float64), torch.zeros(8, dtype=torch.float64))
    assert score(weight, silent).isfinite().all()


@pytest.mark.parametrize("score", ALL)
def test_permutation_equivariance(score, weight):
    """Renumbering outputs and inputs renumbers the scores; a sample at beta < 1 is tied to the indices, so
    there it holds in law only.
    """
    if isinstance(score, StochRIA):
        score = replace(score, beta=1.0)
    stats = calibrated(weight)
    generator = torch.Generator().manual_seed(4)
    rows, columns = torch.randperm(8, generator=generator), torch.randperm(12, generator=generator)
    moved = with_norms(stats.input_norm[columns], stats.output_norm[rows])
    expected = score(weight, stats)[rows][:, columns]
    torch.testing.assert_close(score(weight[rows][:, columns], moved), expected, rtol=1e-12, atol=0)


def degrees(score) -> tuple[float, float]:
    """Declared degree of homogeneity in W, and in X and Y together."""
    balanced = 0 if getattr(score, "balance", "none") == "unit-mean" else 1
    return {
        "magnitude": (1, 0),
        "wanda": (1, 1),
        "owanda": (1, 1),
        "symwanda": (1, balanced),
        "symmetric": (2, 0),
        "ri": (0, 0),
        "ria": (0, getattr(score, "alpha", 0)),
        "lp_norm": (0, getattr(score, "alpha", 0)),
        "stochria": (0, getattr(score, "alpha", 0)),
        "general_diagonal": (0, balanced),
    }[name_of(score)]


@pytest.mark.parametrize("score", ALL)
@pytest.mark.parametrize("factor", [0.37, 129.0])
def test_degree_of_homogeneity(score, weight, factor):
    stats = calibrated(weight)
    in_weight, in_stats = degrees(score)
    scaled = with_norms(stats.input_norm * factor, stats.output_norm * factor)
    scores = score(weight, stats)
    torch.testing.assert_close(score(weight * -factor, stats), scores * factor**in_weight, rtol=1e-11, atol=0)
    torch.testing.assert_close(score(weight, scaled), scores * factor**in_stats, rtol=1e-11, atol=0)


@pytest.mark.parametrize("score", ALL)
def test_deterministic_and_inputs_untouched(score, weight):
    stats = calibrated(weight)
    given_tensors = [weight, stats.input_norm, stats.output_norm]
    copies, versions = [t.clone() for t in given_tensors], [t._version for t in given_tensors]
    state = torch.get_rng_state()
    first, second = score(weight, stats), score(weight, stats)
    assert torch.equal(first, second)
    assert first.data_ptr() != weight.data_ptr(), "the scores are the caller's to change"
    assert versions == [t._version for t in given_tensors]
    assert all(torch.equal(t, copy) for t, copy in zip(given_tensors, copies, strict=True))
    assert torch.equal(state, torch.get_rng_state()), "the global generator is not touched"


@pytest.mark.parametrize("score", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_scored_in_float32(score, weight, dtype):
    stats = calibrated(weight).to(torch.float32)
    half = weight.to(dtype)
    scores = score(half, stats)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, score(half.float(), stats))
    torch.testing.assert_close(scores.double(), by_loops(score, half, stats), rtol=1e-5, atol=0)


@pytest.mark.parametrize("score", ALL)
def test_parameters_and_views(score, weight):
    """A weight that requires gradients gives plain scores, and memory layout does not matter."""
    stats = calibrated(weight)
    scores = score(torch.nn.Parameter(weight), stats)
    assert not scores.requires_grad
    torch.testing.assert_close(score(weight.t().contiguous().t(), stats), scores, rtol=1e-13, atol=0)


@dataclass(frozen=True)
class Watched(LayerStats):
    """Statistics that remember which of their fields were read."""

    def __getattribute__(self, name):
        if name in {field.name for field in fields(LayerStats)}:
            object.__getattribute__(self, "__dict__").setdefault("seen", set()).add(name)
        return object.__getattribute__(self, name)


@pytest.mark.parametrize("score", ALL)
def test_uses_is_truthful(score, weight):
    watched = Watched(**asdict(calibrated(weight)))
    watched.__dict__["seen"] = set()
    score(weight, watched)
    assert watched.__dict__["seen"] == set(score.uses)


@pytest.mark.parametrize("score", ALL)
def test_plain_data(score):
    assert hash(score) == hash(replace(score))
    assert type(score)(**json.loads(json.dumps(asdict(score)))) == score


# ---- edge values
# ----------------------------------------------------------------------------------------------------

EDGES = st.sampled_from([0.0, 1.4e-45, -3e-42, 1e-38, -1e-30, 1e-3, 0.5, -1.0, 1.0, 3.0, -250.0])


@st.composite
def edge_weights(draw) -> Tensor:
    d_out, d_in = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    weight = torch.tensor(draw(st.lists(EDGES, min_size=d_out * d_in, max_size=d_out * d_in))).view(
        d_out, d_in
    )
    kind = draw(st.sampled_from(["as drawn", "all zero", "one huge", "subnormal"]))
    if kind == "all zero":
        weight.zero_()
    elif kind == "one huge":
        weight[draw(st.integers(0, d_out - 1)), draw(st.integers(0, d_in - 1))] = 1e18
    elif kind == "subnormal":
        weight *= 1e-40
    return weight


@settings(max_examples=80, deadline=None, derandomize=True)
@given(edge_weights(), st.data())
def test_edge_values(weight, data):
    d_out, d_in = weight.shape
    sides = st.sampled_from([0.0, 1e-6, 1.0, 30.0, 1e6])
    x = torch.tensor(data.draw(st.lists(sides, min_size=d_in, max_size=d_in)))
    y = torch.tensor(data.draw(st.lists(sides, min_size=d_out, max_size=d_out)))
    subnormal = any(((norm > 0) & (norm < 1e-37)).any() for norm in row_column_norms(weight, math.inf))
    for score in (score for scores in CASES.values() for score in scores):
        scores = score(weight, with_norms(x, y))
        assert scores.isfinite().all(), score
        assert (scores >= 0).all(), score
        assert (scores[weight == 0] == 0).all(), score
        if isinstance(score, StochRIA) and score.beta < 1:
            continue  # the definition needs the sampled norms of the float64 weight: tested above
        expected = by_loops(score, weight, with_norms(x, y))
        torch.testing.assert_close(
            score(weight.double(), with_norms(x, y)),
            expected,
            rtol=1e-12,
            atol=0,
            msg=lambda m, s=score: f"{s}: {m}",
        )
        if not subnormal:  # a subnormal norm has too few digits in float32 to compare
            torch.testing.assert_close(
                scores.double(), expected, rtol=1e-5, atol=1e-38, msg=lambda m, s=score: f"{s}: {m}"
            )


@pytest.mark.parametrize("score", [*CASES["ri"], *CASES["lp_norm"], *CASES["ria"]])
def test_largest_representable_entry(score):
    weight = torch.tensor([[3e38, 1.0], [1.0, 2.0]])
    stats = with_norms(torch.ones(2), torch.ones(2))
    torch.testing.assert_close(
        score(weight, stats).double(), by_loops(score, weight, stats), rtol=1e-4, atol=1e-36
    )


# ---- how the scores are related
# -------------------------------------------------------------------------------------------------


def test_symwanda_without_outputs_is_wanda(weight):
    stats = replace(calibrated(weight), output_norm=None)
    assert torch.equal(SymWanda()(weight, stats), Wanda()(weight, stats))
    assert torch.equal(SymWanda()(weight, replace(stats, output_norm=torch.zeros(8))), Wanda()(weight, stats))
    wanda = Wanda()(weight, stats) / stats.input_norm.mean()
    torch.testing.assert_close(SymWanda(balance="unit-mean")(weight, stats), wanda, rtol=1e-13, atol=0)


def test_ria_without_activations_is_ri(weight):
    stats = calibrated(weight)
    stats.input_norm[3] = 0
    for score in (RIA(alpha=0), LpNorm(p=1, alpha=0), StochRIA(beta=1, alpha=0)):
        assert torch.equal(score(weight, stats), RI()(weight, stats))


@pytest.mark.parametrize("sampling", SAMPLERS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (13, 7), (40, 96)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_stochria_with_every_entry_is_ria(sampling, shape, dtype):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(5)).to(dtype)
    stats = calibrated(weight)
    assert torch.equal(StochRIA(beta=1, sampling=sampling, seed=11)(weight, stats), RIA()(weight, stats))


@pytest.mark.parametrize("sampling", SAMPLERS)
def test_stochria_follows_its_seed(sampling):
    weight = torch.randn(20, 30, generator=torch.Generator().manual_seed(6))
    stats = calibrated(weight)
    scores = [StochRIA(beta=0.2, sampling=sampling, seed=seed)(weight, stats) for seed in (0, 0, 1)]
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])


@pytest.mark.parametrize(
    "pattern", [Unstructured(0.5, "output"), Unstructured(0.3, "output"), NM(2, 4), NM(4, 8)]
)
def test_within_a_row_owanda_selects_what_magnitude_selects(pattern):
    weight = torch.randn(12, 32, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    stats = calibrated(weight)
    assert torch.equal(pattern(OWanda()(weight, stats)), pattern(Magnitude()(weight, stats)))


def test_within_a_layer_owanda_selects_otherwise():
    weight = torch.randn(12, 32, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    pattern = Unstructured(0.5, "layer")
    assert not torch.equal(
        pattern(OWanda()(weight, calibrated(weight))), pattern(Magnitude()(weight, calibrated(weight)))
    )


@pytest.mark.parametrize("pattern", [Unstructured(0.5, "output"), NM(2, 4)])
def test_within_a_row_symwanda_lies_between_wanda_and_magnitude(pattern):
    weight = torch.randn(12, 32, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    stats = calibrated(weight)
    wanda, magnitude = Wanda()(weight, stats), Magnitude()(weight, stats)
    scaled = {
        t: SymWanda()(weight, replace(stats, output_norm=stats.output_norm * t))
        for t in (0.0, 0.1, 1.0, 10.0, 1e12)
    }
    assert torch.equal(pattern(scaled[0.0]), pattern(wanda))
    assert torch.equal(pattern(scaled[1e12]), pattern(magnitude))
    assert len({pattern(scores).numpy().tobytes() for scores in scaled.values()}) > 2, (
        "and it is not always one of the two"
    )
    agreed = (wanda[:, :, None] > wanda[:, None, :]) & (magnitude[:, :, None] > magnitude[:, None, :])
    for scores in scaled.values():
        assert (scores[:, :, None] > scores[:, None, :])[agreed].all(), (
            "where both prefer one weight, so does SymWanda"
        )


# ---- what is refused
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RIA(alpha=-0.5), "alpha"),
        (lambda: RIA(alpha=math.nan), "alpha"),
        (lambda: LpNorm(alpha=math.inf), "alpha"),
        (lambda: LpNorm(p=0), "p of an lp norm"),
        (lambda: LpNorm(p=math.nan), "p of an lp norm"),
        (lambda: StochRIA(beta=0), "beta"),
        (lambda: StochRIA(beta=1.01), "beta"),
        (lambda: StochRIA(alpha=-1), "alpha"),
        (lambda: StochRIA(sampling="independant"), "did you mean independent"),
        (lambda: SymWanda(balance="unit_mean"), "did you mean unit-mean"),
        (lambda: GeneralDiagonal(balance="mean"), "unit-mean"),
    ],
)
def test_bad_hyperparameters(make, message):
    with pytest.raises(UserError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("score", [OWanda(), GeneralDiagonal()])
def test_missing_outputs(score, weight):
    with pytest.raises(ValueError, match=f"{type(score).__name__} needs output_norm") as error:
        score(weight, replace(calibrated(weight), output_norm=None))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("score", ALL)
def test_statistics_of_another_shape(score, weight):
    if not score.uses:
        return
    one = torch.ones(1, dtype=torch.float64)  # would broadcast in silence
    with pytest.raises(ValueError, match=r"the statistics are of 1 (in|out)puts, the weight has"):
        score(weight, with_norms(one, one))
