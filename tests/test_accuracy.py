"""Accuracies in tables and comparisons follow from the answers to single examples."""

import math

import pandas as pd
import pytest

from symprune.paper.accuracy import accuracies, accuracy_table


def row(method: str, task: str, correct: str, refine: str = "none", seed: int = 0) -> dict:
    of = {
        "model": "m",
        "pattern": "dense" if method == "dense" else "0.6",
        "method": method,
        "refine": refine,
    }
    return {**of, "seed": seed, "task": task, "correct": correct}


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
    assert cells["acc"].to_dict() == {
        ("dense", "one"): 0.75,
        ("dense", "two"): 1,
        ("ria", "one"): 0.5,
        ("ria", "two"): 0.25,
    }
    answers = [1, 0.5, 0, 0.5]
    deviation = math.sqrt(sum((answer - 0.5) ** 2 for answer in answers) / 3)
    assert cells.loc[("ria", "one"), "stderr"] == pytest.approx(deviation / 2)
    assert cells["n"].tolist() == [4, 2, 4, 2]


def test_the_table_has_a_column_per_task_and_their_plain_mean():
    table = accuracy_table(ROWS)
    assert table.columns.tolist() == ["one", "two", "mean"]
    assert table.index.tolist() == [("m", "dense", "dense", "dense"), ("m", "0.6", "ria", "none")]
    assert table.loc[table.index[0]].tolist() == ["75.0 ± 25.0", "100.0 ± 0.0", "87.5 ± 12.5"]
    errors = [math.sqrt(0.5 / 3) / 2, 0.25]
    assert table.loc[("m", "0.6", "ria", "none"), "mean"] == f"37.5 ± {100 * math.hypot(*errors) / 2:.1f}"
    assert accuracy_table(ROWS[ROWS["task"] == "one"]).columns.tolist() == ["one"]
    assert accuracy_table(pd.DataFrame([row("ria", "one", "1")])).iloc[0, 0] == "100.0"
