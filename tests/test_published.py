"""What is published is still asked by the same names, and measured again within the tolerance promised."""

import functools

import pandas as pd
import pytest

from symprune import NM, Magnitude, Recipe, Unstructured, Wanda
from symprune.base import paths
from symprune.base.records import read_lines
from symprune.measure import Accuracy, Experiment, FineTuned, MaskOverlap, Protocol, ScoreTime, WindowLosses
from symprune.measure.experiment import Cell
from symprune.measure.refinement_terms import RefinementTerms
from symprune.measure.same_code import ELSEWHERE
from symprune.methods.recipe import build
from symprune.methods.scores import SCORES
from symprune.paper.profiles import load_profile

PROFILES = sorted(file.parent.name for file in paths.ROOT.glob("results/*/records.jsonl"))


@pytest.mark.parametrize("profile", PROFILES)
def test_every_number_of_a_table_leads_to_a_published_record(profile):
    published = read_lines(paths.results(profile) / "records.jsonl")
    tables = [pd.read_csv(file) for file in paths.figures(profile).glob("table_*.csv")]
    named = {key for table in tables if "record" in table for key in table["record"]}
    assert named
    assert named <= published.keys()


@pytest.mark.parametrize("profile", PROFILES)
def test_published_records_stay_small(profile):
    assert (paths.results(profile) / "records.jsonl").stat().st_size <= 4e6


@pytest.mark.parametrize("profile", PROFILES)
def test_recipes_on_record_are_described_today_as_they_were(profile):
    for record in read_lines(paths.results(profile) / "records.jsonl").values():
        for side in (record.run, record.run.get("reference", {})):
            if plain := side.get("recipe"):
                assert Recipe.from_dict(plain).to_dict() == plain


def cell_of(run: dict) -> tuple[Protocol, Cell]:
    """The protocol and the question that a record answers, from what it says of them."""

    def under(calibration: dict | None) -> Protocol:
        calibration, evaluation = calibration or {}, run.get("evaluation", {})
        of_text = {"calibration_corpus": "corpus", "n_calib": "n_calib", "seq_len": "seq_len"}
        settings = {field: calibration[name] for field, name in of_text.items() if name in calibration}
        settings |= {name: calibration[name] for name in ("propagate", "output_side") if name in calibration}
        of_text = {"corpus": "corpus", "split": "split"}
        settings |= {f"evaluation_{name}": evaluation[name] for name in of_text if name in evaluation}
        if evaluation:
            settings |= {"eval_seq_len": evaluation["seq_len"], "n_eval": evaluation["n_windows"]}
        if "reference" in run:
            settings["propagate"] = "dense"
        seeds = (calibration.get("seed", 0),)
        settings["calibration_dtype"] = run.get("calibration_dtype")
        return Protocol("test", (run["model"]["name"],), dtype=run["model"]["dtype"], seeds=seeds, **settings)

    protocol, subject, measurement = under(run.get("calibration")), None, WindowLosses()
    if plain := run.get("recipe"):
        subject = Recipe.from_dict(plain)
    if "timing" in run:
        timing = run["timing"]
        plain = [({**score}, score["name"]) for score in timing["scores"]]
        subject = tuple(
            build("score", name, SCORES, {k: v for k, v in score.items() if k != "name"})
            for score, name in plain
        )
        measurement = ScoreTime(timing["repeats"], timing["n_layers"])
    elif "reference" in run:
        reference = run["reference"]
        subject = subject, Recipe.from_dict(reference["recipe"])
        measurement = MaskOverlap(against=under(reference["calibration"] or run["calibration"]))
    elif "terms" in run:
        measurement = RefinementTerms(run["terms"]["cycles"], run["terms"]["n_layers"])
        subject = tuple(Recipe.from_dict(recipe) for recipe in run["terms"]["recipes"])
    elif "finetuning" in run:
        lora = run["finetuning"]["lora"]
        measurement = FineTuned(lora["n_windows"], lora["rank"], lora["rate"])
    elif "zero_shot" in run:
        measurement = Accuracy(run["zero_shot"]["task"], run["zero_shot"]["limit"])
    return protocol, Cell(run["model"]["name"], protocol.seeds[0], subject, measurement)


def test_what_the_records_of_cpu_answer_is_still_asked_by_the_same_names(tokenizer, monkeypatch):
    monkeypatch.setattr("symprune.models.load_tokenizer", lambda _: tokenizer)
    tokens = functools.cache(lambda text: tuple(tokenizer(text, verbose=False).input_ids))  # each text once
    monkeypatch.setattr("symprune.text.corpora.tokenize", lambda _, text: list(tokens(text)))
    experiments: dict[Protocol, Experiment] = {}
    for record in read_lines(paths.results("cpu") / "records.jsonl").values():
        protocol, cell = cell_of(record.run)
        if protocol.calibration_corpus == "python":  # the standard library's text differs with its version
            continue
        experiment = experiments.setdefault(protocol, Experiment(protocol))
        assert experiment.question(cell) == record.run


@pytest.mark.parametrize(
    ("profile", "recipe"),
    [
        ("cpu", Recipe(Wanda(), Unstructured(0.6))),  # through pruned layers, which amplify rounding
        ("full", Recipe(Magnitude(), NM(2, 4))),  # measured on a GPU
    ],
    ids=["wanda, sequential", "magnitude 2:4, of a GPU"],
)
def test_published_perplexities_are_found_under_their_keys_and_measured_again(
    profile, recipe, tmp_path, monkeypatch
):
    published = read_lines(paths.results(profile) / "records.jsonl")
    monkeypatch.setenv("SYMPRUNE_OUTPUT", str(tmp_path))
    experiment = Experiment(Protocol.of(load_profile(profile)))
    for subject in (None, recipe):
        measured = experiment.record("embedded", subject)
        theirs = published[measured.key].metrics["perplexity"]
        assert measured.metrics["perplexity"] == pytest.approx(theirs, rel=ELSEWHERE)
