"""What is published is measured again, on whatever machine this is, within the tolerance that is promised between machines."""

import pytest

from symprune import NM, Magnitude, Recipe, paths
from symprune.experiment import Experiment
from symprune.reproduce import load_profile
from symprune.results import read_lines

TOLERANCE = 0.005  # of a perplexity: processors and numbers of threads round differently


@pytest.mark.parametrize("recipe", [None, Recipe(Magnitude(), NM(2, 4))], ids=["dense", "magnitude 2:4"])
def test_a_published_perplexity_is_found_under_its_key_and_measured_again(recipe, tmp_path, monkeypatch):
    published = read_lines(paths.results("cpu") / "records.jsonl")
    values = load_profile("cpu")
    monkeypatch.setenv("SYMPRUNE_OUTPUT", str(tmp_path))
    names = ("profile", "calibration_corpus", "n_calib", "seq_len", "seeds", "evaluation_corpus", "n_eval", "batch_size")
    measured = Experiment(**{name: values[name] for name in names}).record("embedded", recipe)
    assert measured.metrics["perplexity"] == pytest.approx(published[measured.key].metrics["perplexity"], rel=TOLERANCE)
