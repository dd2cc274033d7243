"""Accuracies in tables and comparisons follow from the answers to single examples."""

import itertools
import math
import random

import numpy as np
import pandas as pd
import pytest

from symprune.paper.accuracy import accuracies, accuracy_table, judge_accuracy, paired_accuracy
from symprune.paper.figures import accuracy_bars


def row(method: str, task: str, correct: str, refine: str = "none", seed: int = 0) -> dict:
    return {"model": "m", "method": method, "refine": refine, "seed": seed, "task": task, "correct": correct}


ROWS = pd.DataFrame(
    [
        row("dense", "one", "1110", "dense"),
        row("dense", "two", "11", "dense"),
        row("ria", "one", "1100", seed=0),
        row("ria", "one", "1001", seed=1),
        row("ria", "two", "10", seed=0),
        row("ria", "two", "00", seed=1),
    ]
)


def test_accuracy_is_the_mean_over_seeds_and_its_error_that_of_the_examples():
    cells = accuracies(ROWS).set_index(["method", "task"])
    assert cells["acc"].to_dict() == {("dense", "one"): 0.75, ("dense", "two"): 1, ("ria", "one"): 0.5, ("ria", "two"): 0.25}
    answers = [1, 0.5, 0, 0.5]
    deviation = math.sqrt(sum((answer - 0.5) ** 2 for answer in answers) / 3)
    assert cells.loc[("ria", "one"), "stderr"] == pytest.approx(deviation / 2)
    assert cells["n"].tolist() == [4, 2, 4, 2]


def test_the_table_has_a_column_per_task_and_their_plain_mean():
    table = accuracy_table(ROWS)
    assert table.columns.tolist() == ["one", "two", "mean"]
    assert table.index.tolist() == [("m", "dense", "dense"), ("m", "ria", "none")]
    assert table.loc[("m", "dense", "dense")].tolist() == ["75.0 ± 25.0", "100.0 ± 0.0", "87.5 ± 12.5"]
    errors = [math.sqrt(0.5 / 3) / 2, 0.25]
    assert table.loc[("m", "ria", "none"), "mean"] == f"37.5 ± {100 * math.hypot(*errors) / 2:.1f}"
    assert accuracy_table(ROWS[ROWS["task"] == "one"]).columns.tolist() == ["one"]
    assert accuracy_table(pd.DataFrame([row("ria", "one", "1")])).iloc[0, 0] == "100.0"


def test_the_interval_is_that_of_examples_drawn_anew():
    rng = random.Random(0)
    a, b = ("".join(rng.choices("01", weights=weights, k=60)) for weights in ((3, 7), (5, 5)))
    found = paired_accuracy(pd.DataFrame([row("a", "t", a)]), pd.DataFrame([row("b", "t", b)]))
    difference = np.array([int(x) - int(y) for x, y in zip(a, b, strict=True)])
    draws = [np.mean(rng.choices(difference, k=60)) for _ in range(4000)]
    assert found.difference == pytest.approx(difference.mean())
    assert [found.low, found.high] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.02)
    assert (found.gained, found.lost, found.n) == ((difference == 1).sum(), (difference == -1).sum(), 60)
    assert paired_accuracy(pd.DataFrame([row("a", "t", a)]), pd.DataFrame([row("b", "t", b)])) == found


def test_gains_over_three_draws_are_fractions_shown_to_three_digits():
    a = pd.DataFrame([row("a", "t", correct) for correct in ("1100", "1000", "1000")])
    found = paired_accuracy(a, pd.DataFrame([row("b", "t", "0010")]))
    assert (found.gained, found.lost) == (pytest.approx(4 / 3), 1)
    assert str(found).endswith("paired over 4 examples: 1.33 gained, 1 lost)")


def test_tasks_count_alike_whatever_their_size():
    a = pd.DataFrame([row("a", "small", "11"), row("a", "large", "0" * 50)])
    b = pd.DataFrame([row("b", "small", "00"), row("b", "large", "0" * 50)])
    found = paired_accuracy(a, b)
    assert (found.difference, found.low, found.high, found.n, found.n_tasks) == (0.5, 0.5, 0.5, 52, 2)
    assert str(found) == "+50.0 points (95 % interval +50.0 to +50.0, paired over 52 examples of 2 tasks: 2 gained, 0 lost)"


@pytest.mark.parametrize(("a", "b", "verdict"), [("1" * 30, "0" * 30, "reproduced"), ("0" * 30, "1" * 30, "not reproduced")])
def test_a_verdict_needs_an_interval_without_zero(a, b, verdict):
    sides = [pd.DataFrame([row("x", "t", answers)]) for answers in (a, b)]
    assert judge_accuracy("claim", paired_accuracy(*sides)).verdict == verdict
    assert judge_accuracy("claim", paired_accuracy(sides[0], sides[0])).verdict == "undecided"
    mixed = pd.DataFrame([row("x", "t", "10" * 15)]), pd.DataFrame([row("x", "t", "01" * 15)])
    assert judge_accuracy("claim", paired_accuracy(*mixed)).verdict == "undecided"


def test_sides_that_answered_other_examples_are_not_paired():
    one, other, longer = (pd.DataFrame([row("x", task, answers)]) for task, answers in [("t", "10"), ("u", "10"), ("t", "101")])
    for a, b in itertools.permutations([one, other, longer], 2):
        with pytest.raises(ValueError, match="cannot pair"):
            paired_accuracy(a, b)
    with pytest.raises(ValueError, match="cannot pair"):
        paired_accuracy(one[:0], one[:0])
    with pytest.raises(ValueError, match="as many examples"):
        accuracies(pd.DataFrame([row("x", "t", "10"), row("x", "t", "101", seed=1)]))


def test_bars_are_as_high_as_the_accuracies_and_begin_at_zero():
    rows = pd.concat([ROWS, pd.DataFrame([row("ria", task, "1" * n, "dsnot") for task, n in [("one", 4), ("two", 2)]])])
    fig = accuracy_bars(rows)
    panels = [ax for ax in fig.axes if ax.get_visible()]
    assert [ax.get_title() for ax in panels] == ["one", "two"]
    assert [[bar.get_height() for bar in ax.patches] for ax in panels] == [[0.5, 1], [0.25, 1]]
    assert all(ax.get_ylim()[0] == 0 for ax in panels)
    assert [line.get_ydata()[0] for ax in panels for line in ax.lines if line.get_label() == "dense"] == [0.75, 1]


def test_no_panel_cuts_a_bar_that_is_taller_than_those_before_it():
    rows = pd.DataFrame([row("ria", "one", "1000"), row("ria", "two", "1110"), row("dense", "two", "1111", "dense")])
    panels = [ax for ax in accuracy_bars(rows).axes if ax.get_visible()]
    assert all(ax.get_ylim()[1] > 1 for ax in panels)  # the dense line of the second task, in both
