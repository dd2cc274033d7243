"""Paired comparisons, against literal computations."""

import itertools
import math
import random
import statistics

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from symprune.paper.compare import (
    in_words,
    one_perplexity,
    paired,
    paired_accuracy,
    paired_logs,
    paired_times,
    paired_unevenness,
    rightly,
    with_unit,
)
from symprune.paper.crossed import crossed


def rows_of(*losses: list[float], articles: list[int] | None = None, seeds: list | None = None):
    articles = articles or list(range(len(losses[0]) if losses else 0))
    return pd.DataFrame(
        {
            "window_losses": list(losses),
            "articles": [articles] * len(losses),
            "seed": seeds or [None] * len(losses),
        }
    )


def test_with_one_draw_a_comparison_is_students_t_over_articles():
    a, b = rows_of([3.0, 3.2, 2.9, 3.5], seeds=[0]), rows_of([3.3, 3.4, 3.0, 3.6])
    per_article = [-0.3, -0.2, -0.1, -0.1]
    mean, error = statistics.mean(per_article), statistics.stdev(per_article) / 2
    t = 3.182446305284263  # 97.5 % point for 3 degrees of freedom
    found = paired(a, b)
    expected = [math.exp(mean), math.exp(mean - t * error), math.exp(mean + t * error)]
    assert [found.ratio, found.low, found.high] == pytest.approx(expected, rel=1e-12)
    assert (found.n, found.over, found.draws, found.note) == (
        4,
        "articles",
        (),
        "one draw: the draw is not covered",
    )
    assert paired(b, b).note == "", "neither side reads calibration text"
    t80 = 0.9784723123633045  # 80 % point
    assert found.detectable == pytest.approx(1 - math.exp(-(t + t80) * error), rel=1e-9)


def by_hand(cells: list[list[float]]) -> tuple[float, float, float]:
    """Mean, variance and degrees of freedom of articles crossed with draws, by sums of squares."""
    n_a, n_s = len(cells), len(cells[0])
    grand = sum(map(sum, cells)) / (n_a * n_s)
    rows = [sum(row) / n_s for row in cells]
    columns = [sum(row[s] for row in cells) / n_a for s in range(n_s)]
    ms_a = n_s * sum((row - grand) ** 2 for row in rows) / (n_a - 1)
    ms_s = n_a * sum((column - grand) ** 2 for column in columns) / (n_s - 1)
    both = sum((cells[i][s] - rows[i] - columns[s] + grand) ** 2 for i in range(n_a) for s in range(n_s)) / (
        (n_a - 1) * (n_s - 1)
    )
    s2_a, s2_s = (ms_a - both) / n_s, (ms_s - both) / n_a
    used = {"a": s2_a > 0, "s": s2_s > 0}
    variance = max(s2_a, 0) / n_a + max(s2_s, 0) / n_s + both / (n_a * n_s)
    # the variance as a sum of mean squares with their coefficients
    squares = [
        (used["a"] * ms_a, n_a - 1),
        (used["s"] * ms_s, n_s - 1),
        ((1 - used["a"] - used["s"]) * both, (n_a - 1) * (n_s - 1)),
    ]
    assert sum(square for square, _ in squares) / (n_a * n_s) == pytest.approx(variance)
    spread = sum((square / (n_a * n_s)) ** 2 / freedom for square, freedom in squares)
    return grand, variance, variance**2 / spread


GRIDS = {
    "all": [[1.0, 2.0, 4.0], [2.5, 3.0, 5.5], [0.5, 1.0, 3.5], [4.0, 4.5, 7.0]],
    "no draws": [[1.0, 1.25, 0.75], [2.0, 1.75, 2.25], [3.0, 3.125, 2.875]],
    "no articles": [[1.0, 2.0, 3.0], [1.5, 2.0, 2.5], [0.75, 2.125, 3.125]],
    "neither": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.25, 0.5, 0.25]],
}


@pytest.mark.parametrize("name", GRIDS)
def test_articles_crossed_with_draws_are_an_analysis_of_variance(name):
    cells = GRIDS[name]
    mean, variance, freedom = by_hand(cells)
    found = crossed(np.array(cells))
    assert [found.value, found.error, found.freedom] == pytest.approx([mean, math.sqrt(variance), freedom])


def test_negative_components_occur_in_the_grids_that_are_compared():
    shares = {name: by_hand(cells) for name, cells in GRIDS.items()}
    assert shares["neither"][2] == pytest.approx(6)
    assert shares["no draws"][2] == pytest.approx(2)
    assert shares["no articles"][2] == pytest.approx(2)


def test_windows_are_averaged_within_articles_and_rows_within_draws():
    a = rows_of([1.0, 2.0, 6.0], [1.5, 2.5, 5.0], [2.0, 3.0, 7.0], articles=[4, 4, 9], seeds=[0, 1, 1])
    b = rows_of([1.0, 1.0, 4.0], articles=[4, 4, 9])
    found = paired(a, b)
    cells = [[1.5 - 1.0, (2.0 + 2.5) / 2 - 1.0], [6.0 - 4.0, (5.0 + 7.0) / 2 - 4.0]]
    expected = crossed(np.array(cells))
    assert found.ratio == pytest.approx(math.exp(expected.value))
    assert found.high == pytest.approx(math.exp(expected.value + expected.reach()))
    assert found.draws == pytest.approx([math.exp((0.5 + 2.0) / 2), math.exp((1.25 + 2.0) / 2)])
    assert (found.n, found.over, found.note) == (2, "articles and 2 draws", "")


def test_draws_are_paired_by_their_seed_and_none_may_be_missing():
    a = rows_of([1.0, 1.2], [2.0, 2.4], [3.0, 3.2], seeds=[0, 1, 2])
    b = rows_of([2.0, 2.0], [1.0, 1.0], [4.0, 4.0], seeds=[1, 0, 2])  # not in the same order
    expected = [math.exp(1.1 - 1.0), math.exp(2.2 - 2.0), math.exp(3.1 - 4.0)]
    assert paired(a, b).draws == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="draw 2 is missing"):
        paired(a, b[:2])


def simulated(rng: np.random.Generator, n: int, shape: tuple[int, int], spread: tuple[float, float, float]):
    """n tables of losses whose mean is zero, with an effect of each article, each draw, and of both."""
    n_articles, n_draws = shape
    article, draw, both = spread
    return (
        article * rng.standard_normal((n, n_articles, 1))
        + draw * rng.standard_normal((n, 1, n_draws))
        + both * rng.standard_normal((n, n_articles, n_draws))
    )


@pytest.mark.parametrize("n_draws", [3, 5, 10])
@pytest.mark.parametrize(
    "spread", [(1, 0.5, 0.5), (0.5, 1, 0.5), (1, 0.3, 1), (1, 0.1, 0.3)], ids=lambda of: f"{of}"
)
def test_intervals_of_95_percent_cover_the_truth_in_93_to_98(n_draws, spread):
    tables = simulated(np.random.default_rng(n_draws), 3000, (12, n_draws), spread)
    means = [crossed(table) for table in tables]
    quantiles = stats.t.ppf(0.975, [mean.freedom for mean in means])
    covered = np.abs([mean.value for mean in means]) <= quantiles * [mean.error for mean in means]
    assert 0.93 <= covered.mean() <= 0.98
    if n_draws == 3 and spread == (0.5, 1, 0.5):  # over articles alone, as if draws did not matter
        flat = [crossed(table.mean(axis=1, keepdims=True)) for table in tables[:300]]
        assert np.mean([abs(mean.value) <= mean.reach() for mean in flat]) < 0.6


def test_the_smallest_difference_that_would_be_found_is_found_in_80_percent():
    rng, shape, spread = np.random.default_rng(0), (12, 8), (1, 0.5, 0.5)
    tables = simulated(rng, 600, shape, spread)
    typical = np.median([crossed(table).detectable(4) for table in tables])
    found = [abs(mean.value) > mean.reach(4) for mean in map(crossed, tables + typical)]
    assert 0.72 < np.mean(found) < 0.88
    margin = np.median([crossed(table).showable(4) for table in tables])
    inside = [abs(mean.value) + mean.reach(4) < margin for mean in map(crossed, tables)]
    assert 0.72 < np.mean(inside) < 0.88


def test_of_several_tasks_the_mean_is_taken_the_variances_of_examples_add_and_draws_are_shared():
    rng = np.random.default_rng(1)
    small, large = rng.standard_normal((5, 1)), 1 + rng.standard_normal((40, 1))
    both, alone = crossed(small, large), [crossed(small), crossed(large)]
    assert both.value == pytest.approx((alone[0].value + alone[1].value) / 2)
    assert both.error == pytest.approx(math.hypot(alone[0].error, alone[1].error) / 2)
    draws = np.array([-1.0, 0.0, 2.0])  # the same in both tasks: their mean varies as much as each
    assert crossed(np.zeros((5, 1)) + draws, np.zeros((40, 1)) + draws).error == pytest.approx(
        draws.std(ddof=1) / math.sqrt(3)
    )


def test_strata_of_other_draws_or_without_units_are_refused():
    for strata in ((), (np.zeros((3, 2)), np.zeros((3, 3))), (np.zeros((0, 2)),), (np.zeros(3),)):
        with pytest.raises(ValueError, match="the same draws"):
            crossed(*strata)


def test_a_comparison_with_itself_or_on_one_article_decides_nothing():
    same = paired(rows_of([1.0, 2.0]), rows_of([1.0, 2.0]))
    assert (same.ratio, same.low, same.high, same.decided) == (1, 1, 1, False)
    single = paired(rows_of([1.0, 1.0], articles=[0, 0]), rows_of([2.0, 2.0], articles=[0, 0]))
    assert single.ratio == pytest.approx(math.exp(-1))
    assert not single.decided
    assert (single.detectable, single.showable) == (None, None)


@pytest.mark.parametrize(
    ("a", "b"),
    [([], [[1.0, 2.0]]), ([[1.0, 2.0]], []), ([[1.0, 2.0]], [[1.0]]), ([[1.0], [1.0, 2.0]], [[1.0, 2.0]])],
)
def test_rows_that_cannot_be_paired_never_become_a_verdict(a, b):
    with pytest.raises(ValueError, match="cannot pair"):
        paired(rows_of(*a), rows_of(*b))


def test_windows_of_other_articles_are_not_paired_and_of_untold_ones_each_stands_for_itself():
    a, b = rows_of([1.0, 2.0, 2.5], articles=[0, 1, 1]), rows_of([1.5, 2.5, 2.0], articles=[0, 0, 1])
    with pytest.raises(ValueError, match="other articles"):
        paired(a, b)
    with pytest.raises(ValueError, match="only one side"):
        paired(a, b.assign(articles=None))
    found = paired(a.assign(articles=None), b.drop(columns="articles"))
    assert (found.n, found.over) == (3, "windows")
    assert found.note == "windows do not tell their articles: measured by another version"


def test_unevenness_is_compared_linear_by_linear_after_the_repetitions_are_averaged():
    a = pd.DataFrame({"linear_entropy_columns": [[0.75, 0.5, 0.5], [0.25, 0.5, 0.25]], "seed": None})
    b = pd.DataFrame({"linear_entropy_columns": [[0.5, 0.75, 0.875]], "seed": None})
    found = paired_unevenness(a, b, 3, lines="columns")
    logs = [math.log(ratio) for ratio in (0.5 / 0.5, 0.5 / 0.25, 0.625 / 0.125)]
    expected = paired_logs(logs, 3, "unevenness over columns", "linears")
    assert [found.ratio, found.low, found.high] == pytest.approx(
        [expected.ratio, expected.low, expected.high], rel=1e-12
    )
    assert (found.n, found.comparisons, found.what, found.over) == (
        3,
        3,
        "unevenness over columns",
        "linears",
    )


def test_unevenness_crosses_linears_with_draws():
    entropies = [[0.75, 0.5, 0.5], [0.25, 0.5, 0.25], [0.5, 0.25, 0.25]]
    a = pd.DataFrame({"linear_entropy_rows": entropies, "seed": [0, 0, 1]})
    b = pd.DataFrame({"linear_entropy_rows": [[0.5, 0.75, 0.875], [0.25, 0.5, 0.75]], "seed": [1, 0]})
    cells = [[math.log(0.5 / 0.75), math.log(0.5 / 0.5)], [0.0, math.log(0.75 / 0.25)]]
    cells.append([math.log(0.625 / 0.25), math.log(0.75 / 0.125)])
    found, expected = paired_unevenness(a, b, lines="rows"), crossed(np.array(cells))
    assert found.low == pytest.approx(math.exp(expected.value - expected.reach()))
    assert (found.n, found.over, len(found.draws)) == (3, "linears and 2 draws", 2)


def test_times_are_compared_round_by_round():
    a, b = (pd.DataFrame({"log_ratios": [ratios]}) for ratios in ([0.5, 0.75, 1.0], [0.25, 0.0, 0.0]))
    assert paired_times(a, b, 2) == paired_logs([0.25, 0.75, 1.0], 2, "time", "rounds")
    with pytest.raises(ValueError, match="size 1"):
        paired_times(pd.concat([a, a]), b)


def answered(method: str, task: str, correct: str, seed: int = 0) -> dict:
    return {"method": method, "seed": seed, "task": task, "correct": correct}


def test_the_interval_of_an_accuracy_is_that_of_examples_drawn_anew():
    rng = random.Random(0)
    a, b = ("".join(rng.choices("01", weights=weights, k=60)) for weights in ((3, 7), (5, 5)))
    found = paired_accuracy(pd.DataFrame([answered("a", "t", a)]), pd.DataFrame([answered("b", "t", b)]))
    difference = np.array([int(x) - int(y) for x, y in zip(a, b, strict=True)])
    draws = [np.mean(rng.choices(difference, k=60)) for _ in range(4000)]
    assert found.difference == pytest.approx(difference.mean())
    assert [found.low, found.high] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.02)
    assert (found.gained, found.lost, found.n) == ((difference == 1).sum(), (difference == -1).sum(), 60)
    assert found.n_draws == 1


def test_the_interval_of_an_accuracy_crosses_examples_with_draws():
    rng = np.random.default_rng(2)
    a, b = (rng.random((2, 3, 30)) < 0.6).astype(int), (rng.random((2, 30)) < 0.4).astype(int)
    rows = [
        pd.DataFrame(
            answered("x", task, "".join(map(str, of)), seed)
            for task, draws in zip("tu", side, strict=True)
            for seed, of in enumerate(draws)
        )
        for side in (a, b[:, None])
    ]
    rows[1]["seed"] = None  # a start that reads no calibration text
    found = paired_accuracy(*rows, 2)
    expected = crossed(*((a[task] - b[task]).T for task in (0, 1)))
    reach = expected.reach(2)
    assert [found.difference, found.low, found.high] == pytest.approx(
        [expected.value, expected.value - reach, expected.value + reach]
    )
    assert (found.n, found.n_tasks, found.n_draws) == (60, 2, 3)
    assert found.detectable == pytest.approx(expected.detectable(2))


def test_gains_over_three_draws_are_fractions():
    a = pd.DataFrame(
        [answered("a", "t", correct, seed) for seed, correct in enumerate(("1100", "1000", "1000"))]
    )
    found = paired_accuracy(a, pd.DataFrame([answered("b", "t", "0010")]).assign(seed=None))
    assert (found.gained, found.lost) == (pytest.approx(4 / 3), 1)


def test_tasks_count_alike_whatever_their_size():
    a = pd.DataFrame([answered("a", "small", "11"), answered("a", "large", "0" * 50)])
    b = pd.DataFrame([answered("b", "small", "00"), answered("b", "large", "0" * 50)])
    found = paired_accuracy(a, b)
    assert (found.difference, found.low, found.high, found.n, found.n_tasks) == (0.5, 0.5, 0.5, 52, 2)
    assert (found.gained, found.lost) == (2, 0)


def test_sides_that_answered_other_examples_are_not_paired():
    one, other, longer = (
        pd.DataFrame([answered("x", task, answers)])
        for task, answers in [("t", "10"), ("u", "10"), ("t", "101")]
    )
    for a, b in itertools.permutations([one, other, longer], 2):
        with pytest.raises(ValueError, match="cannot pair"):
            paired_accuracy(a, b)
    with pytest.raises(ValueError, match="cannot pair"):
        paired_accuracy(one[:0], one[:0])
    with pytest.raises(ValueError, match="as many examples"):
        rightly(pd.DataFrame([answered("x", "t", "10"), answered("x", "t", "101", seed=1)]))


def test_more_comparisons_widen_the_interval_of_an_accuracy():
    a, b = (pd.DataFrame([answered("x", "t", correct)]) for correct in ("1101" * 20, "1010" * 20))
    alone, of_ten = paired_accuracy(a, b), paired_accuracy(a, b, 10)
    assert (alone.comparisons, of_ten.comparisons) == (1, 10)
    assert of_ten.low < alone.low < alone.difference == of_ten.difference < alone.high < of_ten.high


def test_equal_masks_measured_on_two_machines_have_one_perplexity_and_others_do_not():
    def rows(*perplexities):
        return pd.DataFrame({"model": "m", "seed": [None, None, 1.0, 1.0], "perplexity": perplexities})

    assert one_perplexity(rows(20.0, 20.0, 117.36624, 117.36577), ["model", "seed"]), "as an H100 and an EPYC"
    assert not one_perplexity(rows(20.0, 20.0, 117.366, 117.370), ["model", "seed"])
    assert not one_perplexity(rows(20.0, 20.1, 117.36, 117.36), ["model", "seed"]), "nor where no seed plays"


@pytest.mark.parametrize(
    ("effect", "words"),
    [
        (0.08, "+8.0% perplexity"),
        (-1.0, "-100.0% perplexity"),
        (0.994, "+99.4% perplexity"),
        (1.0, "2 times the perplexity"),
        (12.05, "13.1 times the perplexity"),
        (618.692, "620 times the perplexity"),
        (22336.3, "22,300 times the perplexity"),
    ],
)
def test_an_effect_is_told_in_percent_and_from_twice_on_as_a_factor(effect, words):
    assert with_unit(in_words(effect), "perplexity") == words
    assert in_words(effect) == words.removesuffix("perplexity").removesuffix("the ").strip()
    assert in_words(effect, sign="") == in_words(effect).removeprefix("+")
