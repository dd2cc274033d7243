"""Paired comparisons, against literal computations."""

import itertools
import math
import random
import statistics

import numpy as np
import pandas as pd
import pytest

from symprune.paper.compare import (
    paired,
    paired_accuracy,
    paired_logs,
    paired_times,
    paired_unevenness,
    rightly,
)


def rows_of(*losses: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"window_losses": losses, "seed": range(len(losses))})


def test_a_paired_comparison_is_students_t_over_windows():
    a, b = [[3.0, 3.2, 2.9, 3.5], [3.2, 3.2, 3.1, 3.3]], [[3.3, 3.4, 3.0, 3.6]]
    per_window = [(a[0][i] + a[1][i]) / 2 - b[0][i] for i in range(4)]
    mean, error = statistics.mean(per_window), statistics.stdev(per_window) / 2
    t = 3.182446305284263  # 97.5 % point for 3 degrees of freedom
    found = paired(rows_of(*a), rows_of(*b))
    expected = [math.exp(mean), math.exp(mean - t * error), math.exp(mean + t * error)]
    assert [found.ratio, found.low, found.high] == pytest.approx(expected, rel=1e-12)
    assert found.n == 4
    assert found.decided == (not expected[1] <= 1 <= expected[2])


def test_each_draw_of_calibration_text_is_compared_by_itself():
    a, b = rows_of([1.0, 1.2], [2.0, 2.4], [3.0, 3.2]), rows_of([2.0, 2.0], [1.0, 1.0], [4.0, 4.0])
    a["seed"], b["seed"] = [0, 1, 2], [1, 0, 2]  # not in the same order
    found = paired(a, b)
    assert found.draws == pytest.approx(
        [math.exp(1.1 - 1.0), math.exp(2.2 - 2.0), math.exp(3.1 - 4.0)], rel=1e-12
    )


def test_what_reads_no_calibration_text_is_the_same_in_every_draw():
    a, b = rows_of([1.0, 1.2], [2.0, 2.4], [2.0, 2.0]), rows_of([1.5, 1.5])
    a["seed"], b["seed"] = [0, 1, 1], [None]  # two sampling seeds in the second draw
    assert paired(a, b).draws == pytest.approx([math.exp(1.1 - 1.5), math.exp(2.1 - 1.5)], rel=1e-12)


@pytest.mark.parametrize(("a", "b"), [([0, 0], [0, 0]), ([0, 1], [0, 0]), ([None, None], [None, None])])
def test_draws_are_told_only_if_both_sides_have_them(a, b):
    left, right = (
        rows_of([1.0, 1.2], [1.0, 1.2]).assign(seed=a),
        rows_of([1.5, 1.5], [1.5, 1.5]).assign(seed=b),
    )
    assert paired(left, right).draws == ()


def test_a_comparison_with_itself_or_on_one_window_decides_nothing():
    same = paired(rows_of([1.0, 2.0]), rows_of([1.0, 2.0]))
    assert (same.ratio, same.low, same.high, same.decided) == (1, 1, 1, False)
    single = paired(rows_of([1.0]), rows_of([2.0]))
    assert single.ratio == pytest.approx(math.exp(-1))
    assert not single.decided


@pytest.mark.parametrize(
    ("a", "b"),
    [([], [[1.0, 2.0]]), ([[1.0, 2.0]], []), ([[1.0, 2.0]], [[1.0]]), ([[1.0], [1.0, 2.0]], [[1.0, 2.0]])],
)
def test_rows_that_cannot_be_paired_never_become_a_verdict(a, b):
    with pytest.raises(ValueError, match="cannot pair"):
        paired(rows_of(*a), rows_of(*b))


def test_unevenness_is_compared_linear_by_linear_after_the_repetitions_are_averaged():
    a = pd.DataFrame({"linear_entropy_columns": [[0.75, 0.5, 0.5], [0.25, 0.5, 0.25]]})
    b = pd.DataFrame({"linear_entropy_columns": [[0.5, 0.75, 0.875]]})
    found = paired_unevenness(a, b, 3, lines="columns")
    expected = paired_logs([math.log(ratio) for ratio in (0.5 / 0.5, 0.5 / 0.25, 0.625 / 0.125)], 3)
    assert [found.ratio, found.low, found.high] == pytest.approx(
        [expected.ratio, expected.low, expected.high], rel=1e-12
    )
    assert (found.n, found.comparisons, found.what, found.over) == (
        3,
        3,
        "unevenness over columns",
        "linears",
    )


def test_times_are_compared_round_by_round():
    a, b = (pd.DataFrame({"log_ratios": [ratios]}) for ratios in ([0.5, 0.75, 1.0], [0.25, 0.0, 0.0]))
    assert paired_times(a, b, 2) == paired_logs([0.25, 0.75, 1.0], 2, "time", "rounds")
    with pytest.raises(ValueError, match="size 1"):
        paired_times(pd.concat([a, a]), b)


def answered(method: str, task: str, correct: str, seed: int = 0) -> dict:
    return {"method": method, "seed": seed, "task": task, "correct": correct}


def test_the_interval_is_that_of_examples_drawn_anew():
    rng = random.Random(0)
    a, b = ("".join(rng.choices("01", weights=weights, k=60)) for weights in ((3, 7), (5, 5)))
    found = paired_accuracy(pd.DataFrame([answered("a", "t", a)]), pd.DataFrame([answered("b", "t", b)]))
    difference = np.array([int(x) - int(y) for x, y in zip(a, b, strict=True)])
    draws = [np.mean(rng.choices(difference, k=60)) for _ in range(4000)]
    assert found.difference == pytest.approx(difference.mean())
    assert [found.low, found.high] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.02)
    assert (found.gained, found.lost, found.n) == ((difference == 1).sum(), (difference == -1).sum(), 60)
    assert (
        paired_accuracy(pd.DataFrame([answered("a", "t", a)]), pd.DataFrame([answered("b", "t", b)])) == found
    )


def test_gains_over_three_draws_are_fractions():
    a = pd.DataFrame([answered("a", "t", correct) for correct in ("1100", "1000", "1000")])
    found = paired_accuracy(a, pd.DataFrame([answered("b", "t", "0010")]))
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
