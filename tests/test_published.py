"""What is published is measured again, on whatever machine this is, within the tolerance that is promised
between machines.
"""

import pytest

from symprune import NM, Magnitude, Recipe, Unstructured, Wanda
from symprune.base import paths
from symprune.base.records import read_lines
from symprune.measure import Experiment, Protocol
from symprune.paper.profiles import load_profile


@pytest.mark.parametrize(
    ("recipe", "tolerance"),
    [
        (None, 0.005),
        (Recipe(Magnitude(), NM(2, 4)), 0.005),
        (
            Recipe(Wanda(), Unstructured(0.6)),
            0.02,
        ),  # through pruned layers: rounding is amplified from layer to layer
    ],
    ids=["dense", "magnitude 2:4", "wanda, sequential"],
)
def test_a_published_perplexity_is_found_under_its_key_and_measured_again(
    recipe, tolerance, tmp_path, monkeypatch
):
    published = read_lines(paths.results("cpu") / "records.jsonl")
    values = load_profile("cpu")
    monkeypatch.setenv("SYMPRUNE_OUTPUT", str(tmp_path))
    names = (
        "profile",
        "calibration_corpus",
        "n_calib",
        "seq_len",
        "seeds",
        "evaluation_corpus",
        "n_eval",
        "batch_size",
        "propagate",
    )
    measured = Experiment(Protocol(**{name: values[name] for name in names})).record("embedded", recipe)
    assert measured.metrics["perplexity"] == pytest.approx(
        published[measured.key].metrics["perplexity"], rel=tolerance
    )
