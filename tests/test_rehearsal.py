"""The profiles that need a GPU and the hub, rehearsed on a processor.

Every model id is answered by a tiny model of its family, every corpus and task by a few rows, so that on the
day with a GPU nothing is found but numbers.
"""

import hub
import pytest

from symprune import Recipe, UserError, Wanda
from symprune.measure import Accuracy, Experiment, Protocol, WindowLosses
from symprune.paper.notebooks import notebook_names
from symprune.paper.profiles import load_profile
from symprune.paper.reproduce import reproduce

PROFILES = ("gpu", "gpu_open")


def smaller(name: str) -> dict:
    """The profile with 1/32 of every length, few draws, and no GPU: nothing else is another."""
    whole = load_profile(name)
    lengths = {key: [n // hub.SCALE for n in whole[key]] for key in ("dense_lengths", "calibration_lengths")}
    few = {
        "n_calib": 2,
        "n_eval": 2,
        "zero_shot_limit": 3,
        "calibration_sizes": [1, 2],
        "frontier_windows": [2, 1],
    }
    draws = {key: of for key, of in whole.items() if isinstance(of, dict)}  # of each pattern
    few |= {key: {pattern: [0, 1] for pattern in of} for key, of in draws.items()}
    few |= {key: [0, 1] for key in whole if key.endswith("seeds")}
    seq_len = whole["seq_len"] // hub.SCALE
    lengths |= {"seq_len": seq_len, "eval_seq_len": seq_len}
    return {"profile": f"rehearsed_{name}", "device": "cpu", **lengths, **few}


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    """Every model of both profiles."""
    folder = tmp_path_factory.mktemp("hub")
    hub.write(folder, list(dict.fromkeys(name for p in PROFILES for name in load_profile(p)["models"])))
    return folder


@pytest.fixture
def rehearsed(mirror, tmp_path, monkeypatch):
    """Models and data from the folder alone, results into another."""
    monkeypatch.setenv("SYMPRUNE_DATA", str(mirror))
    monkeypatch.setenv("SYMPRUNE_OUTPUT", str(tmp_path))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))  # of the kernels
    return tmp_path


@pytest.mark.filterwarnings("ignore:no dense perplexity is stored")
@pytest.mark.parametrize("name", PROFILES)
def test_every_model_of_a_profile_is_measured_on_the_hubs_texts_and_tasks(rehearsed, name):
    values = load_profile(name, smaller(name) | {"seeds": [0]})
    experiment = Experiment(Protocol.of(values))
    rows = experiment.run([None, Recipe(Wanda())], WindowLosses(), Accuracy("boolq", limit=2))
    assert set(rows["model"]) == set(values["models"])
    assert rows["perplexity"].count() == 2 * len(values["models"])
    assert rows["acc"].count() == 2 * len(values["models"])


def test_a_window_length_leaves_out_the_models_that_have_fewer_positions(rehearsed):
    values = load_profile("gpu", smaller("gpu"))
    short, long = Protocol.of(values).over_whole_splits(values["dense_lengths"])
    assert (short.eval_seq_len, long.eval_seq_len, short.n_eval) == (64, 128, None)
    assert set(short.models) - set(long.models) == {"facebook/opt-1.3b"}
    with pytest.raises(UserError, match="above the 64 positions of OPTForCausalLM"):
        Experiment(Protocol.of(values, models=["facebook/opt-1.3b"], eval_seq_len=128)).run([None])
    assert Protocol.of(values, models=["facebook/opt-1.3b"]).over_whole_splits([128]) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_runs_from_end_to_end(rehearsed, name):
    report = reproduce([], name, show=False, settings=smaller(name))
    assert {file.stem for file in report.parent.glob("*.ipynb")} == set(notebook_names())
    for model in load_profile(name)["models"]:
        assert model in report.read_text()
