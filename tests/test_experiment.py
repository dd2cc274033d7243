"""An experiment measures every question once, resumes where it stopped, and names records by all they depend
on.
"""

import shutil

import pytest
from safetensors.torch import load_file, save_file

from symprune import NM, RIA, DSnoT, Magnitude, Recipe, SymWanda, Unstructured, UserError, Wanda, models
from symprune.base.records import run_key
from symprune.measure import Experiment, Protocol, WindowLosses, questions
from symprune.measure import bench as module
from symprune.measure.experiment import Cell

MAGNITUDE, WANDA, RIA_NM = Recipe(Magnitude()), Recipe(Wanda()), Recipe(RIA(), NM(2, 4))


@pytest.fixture
def measured(monkeypatch) -> list:
    """What was measured, in order: the label of the recipe and the seed."""
    seen = []
    measure = WindowLosses.measure

    def watched(self, bench, recipe, seed):
        seen.append((recipe.label if recipe else "dense", seed))
        return measure(self, bench, recipe, seed)

    monkeypatch.setattr(WindowLosses, "measure", watched)
    return seen


def forbid(monkeypatch, *names: str) -> None:
    def never(*_, **__):
        raise AssertionError("not to be called")

    for name in names:
        monkeypatch.setattr(name, never)


def test_rows_come_in_the_order_of_the_recipes_with_one_row_per_seed_that_matters(protocol):
    rows = Experiment(Protocol(**protocol)).run([None, RIA_NM, MAGNITUDE, WANDA])
    assert list(zip(rows["method"], rows["pattern"], strict=True)) == [
        ("dense", "dense"),
        ("ria", "2:4"),
        ("ria", "2:4"),
        ("magnitude", "0.5 per output"),
        ("wanda", "0.5 per output"),
        ("wanda", "0.5 per output"),
    ]
    assert rows["seed"].tolist()[1:3] == rows["seed"].tolist()[4:6] == [0, 1]
    assert rows["seed"].isna().tolist() == [True, False, False, True, False, False]
    assert rows["sparsity"].tolist() == [0, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert rows["record"].is_unique
    assert all(len(losses) == 3 for losses in rows["window_losses"])


def test_rows_say_how_far_from_the_dense_model_a_pruned_one_is_and_of_which_articles(protocol):
    """On statistics of the dense model, gathered before, between and after what the dense model predicts."""
    rows = Experiment(Protocol(**{**protocol, "propagate": "dense", "seeds": [0]})).run([WANDA, None, RIA_NM])
    dense, pruned = rows[rows["method"] == "dense"], rows[rows["method"] != "dense"]
    assert (dense[["kl", "agreement"]].iloc[0].tolist(), len(pruned)) == ([0, 1], 2)
    assert (pruned["kl"] > 0).all()
    assert pruned["agreement"].between(0, 0.999).all()
    assert rows["articles"].tolist() == [[0, 0, 0]] * 3, "the corpus is one text"
    record = Experiment(Protocol(**{**protocol, "propagate": "dense"})).record(protocol["models"][0], WANDA)
    assert sum(record.metrics["window_kl"]) / 3 == rows["kl"][0]


def test_a_second_run_measures_nothing_and_does_not_load_the_model(protocol, measured, monkeypatch):
    first = Experiment(Protocol(**protocol)).run([None, MAGNITUDE, WANDA])
    assert measured == [("dense", 0), (MAGNITUDE.label, 0), (WANDA.label, 0), (WANDA.label, 1)]
    forbid(monkeypatch, "symprune.models.load_model")
    second = Experiment(Protocol(**protocol)).run([None, MAGNITUDE, WANDA])
    assert len(measured) == 4
    assert second.equals(first)


def test_a_subject_may_have_seeds_of_its_own(protocol, measured):
    """As one experiment for each group of subjects with the same seeds would tell them, put together."""
    subjects, seeds = [None, RIA_NM, MAGNITUDE, WANDA], {RIA_NM: [2], MAGNITUDE: [5, 6], WANDA: (2, 0)}
    rows = Experiment(Protocol(**protocol)).run(subjects, seeds=seeds)
    assert rows["seed"].fillna(-1).tolist() == [-1, 2, -1, 0, 2]
    assert len(measured) == 5
    apart = [
        Experiment(Protocol(**{**protocol, "seeds": of})).run([subject])
        for subject, of in ((None, [0]), (RIA_NM, [2]), (MAGNITUDE, [5]), (WANDA, [0, 2]))
    ]
    assert len(measured) == 5, "the same questions"
    assert rows["record"].tolist() == [key for of in apart for key in of["record"]]
    with pytest.raises(ValueError, match=r"seeds of what is not asked: Recipe\('wanda'"):
        Experiment(Protocol(**protocol)).run([None], seeds={WANDA: [0]})


def test_equal_recipes_are_asked_once(protocol, measured):
    rows = Experiment(Protocol(**{**protocol, "seeds": [0]})).run(
        [Recipe(RIA(alpha=1)), Recipe(RIA(alpha=1.0)), Recipe(RIA(alpha=1.0))]
    )
    assert len(rows) == len(measured) == 1


def test_a_run_that_died_goes_on_where_it_stopped(protocol, measured, monkeypatch):
    real, calls = questions.perplexity, []

    def dies_at_the_third(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(questions, "perplexity", dies_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            Experiment(Protocol(**protocol)).run([None, MAGNITUDE, WANDA])
    kept = {record.key for record in Experiment(Protocol(**protocol)).store}
    assert len(kept) == 2
    measured.clear()
    rows = Experiment(Protocol(**protocol)).run([None, MAGNITUDE, WANDA])
    assert measured == [(WANDA.label, 0), (WANDA.label, 1)]
    assert kept < set(rows["record"])


def test_after_an_error_the_same_experiment_measures_the_next_recipe_on_whole_weights(protocol, monkeypatch):
    expected = Experiment(Protocol(**{**protocol, "profile": "alone"})).record(
        protocol["models"][0], WANDA, 0
    )
    experiment = Experiment(Protocol(**protocol))

    def fail(*_, **__):
        raise RuntimeError("after pruning, before evaluation")

    with monkeypatch.context() as patch:
        patch.setattr(questions, "perplexity", fail)
        with pytest.raises(RuntimeError, match="after pruning"):
            experiment.record(protocol["models"][0], MAGNITUDE)
    assert (
        experiment.record(protocol["models"][0], WANDA, 0).metrics["perplexity"]
        == expected.metrics["perplexity"]
    )


@pytest.mark.parametrize("propagate", ["pruned", "dense"])
def test_weights_are_put_back_so_the_order_of_recipes_does_not_matter(protocol, propagate):
    recipes = [None, WANDA, Recipe(RIA(), Unstructured(0.8), DSnoT()), MAGNITUDE]
    there = Experiment(Protocol(**{**protocol, "profile": "there", "propagate": propagate})).run(recipes)
    back = Experiment(Protocol(**{**protocol, "profile": "back", "propagate": propagate})).run(recipes[::-1])
    perplexities = [dict(zip(rows["record"], rows["perplexity"], strict=True)) for rows in (there, back)]
    assert perplexities[0] == perplexities[1]
    assert len(perplexities[0]) == 6


def test_profiles_that_ask_the_same_share_their_keys(protocol):
    keys = [
        Experiment(Protocol(**{**protocol, **change})).record(protocol["models"][0], None).key
        for change in ({}, {"profile": "other"})
    ]
    assert keys[0] == keys[1]


@pytest.mark.parametrize(
    ("change", "dense_changes", "magnitude_changes"),
    [
        ({"n_eval": 2}, True, True),
        ({"evaluation_split": "validation"}, True, True),
        ({"dtype": "bfloat16"}, True, True),
        ({"n_calib": 3}, False, False),
        ({"propagate": "dense"}, False, False),
        ({"batch_size": 2}, False, False),
    ],
)
def test_a_key_changes_with_what_its_answer_depends_on_and_with_nothing_else(
    protocol, change, dense_changes, magnitude_changes
):
    def keys(**changes):
        experiment = Experiment(Protocol(**{**protocol, **changes}))
        cells = [
            Cell(protocol["models"][0], 0, recipe, WindowLosses()) for recipe in (None, MAGNITUDE, WANDA)
        ]
        return [run_key(experiment.question(cell)) for cell in cells]

    before, after = keys(), keys(**change)
    assert [a != b for a, b in zip(before, after, strict=True)] == [
        dense_changes,
        magnitude_changes,
        change != {"batch_size": 2},
    ]


def test_a_key_changes_with_the_weights_and_with_the_corpus_under_the_same_name(
    protocol, checkpoint, corpus, tmp_path
):
    model, text = tmp_path / "model", tmp_path / "text.txt"
    shutil.copytree(checkpoint, model)
    shutil.copy(corpus, text)
    here = {**protocol, "models": [str(model)], "calibration_corpus": str(text)}

    def key():
        return run_key(Experiment(Protocol(**here)).question(Cell(str(model), 0, WANDA, WindowLosses())))

    keys = [key()]
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] += 1
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    keys.append(key())
    text.write_text("another " + text.read_text())
    keys.append(key())
    assert len(set(keys)) == 3


def test_statistics_of_the_dense_model_are_gathered_once_for_many_recipes(protocol, monkeypatch):
    real, gathered = module.accumulate, []

    def watched(model, windows, uses, **options):
        gathered.append(frozenset(uses))
        return real(model, windows, uses, **options)

    monkeypatch.setattr(module, "accumulate", watched)
    Experiment(Protocol(**{**protocol, "propagate": "dense", "seeds": [0]})).run(
        [None, WANDA, Recipe(RIA()), RIA_NM, MAGNITUDE]
    )
    assert gathered == [{"input_norm"}]


def test_statistics_of_the_dense_model_serve_other_processes_and_are_gathered_again_if_damaged(
    protocol, tmp_path, monkeypatch
):
    dense = {**protocol, "propagate": "dense", "seeds": [0]}
    model = protocol["models"][0]
    first = Experiment(Protocol(**dense)).record(model, WANDA)
    with monkeypatch.context() as patch:
        forbid(patch, "symprune.measure.bench.accumulate", "symprune.measure.bench.gather")
        again = Experiment(Protocol(**{**dense, "profile": "again"})).record(model, WANDA)
    (file,) = (tmp_path / "statistics").iterdir()
    file.write_bytes(file.read_bytes()[:-7] + b"damaged")
    monkeypatch.setattr(module.Loaded, "_last", None)  # another process has no pruned model in memory
    with pytest.warns(UserWarning, match="gathered again"):
        after = Experiment(Protocol(**{**dense, "profile": "after"})).record(model, WANDA)
    assert first.metrics["perplexity"] == again.metrics["perplexity"] == after.metrics["perplexity"]


def test_gradients_are_another_question_than_activations(protocol):
    dense = {**protocol, "propagate": "dense", "seeds": [0]}
    model = protocol["models"][0]
    sides = [
        Experiment(Protocol(**{**dense, "output_side": side})).record(model, Recipe(SymWanda()))
        for side in ("activations", "gradients")
    ]
    assert sides[0].key != sides[1].key
    assert sides[0].metrics["perplexity"] != sides[1].metrics["perplexity"]
    assert [side.run["calibration"]["output_side"] for side in sides] == ["activations", "gradients"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        # else activations would be measured and called gradients
        ({"output_side": "gradients"}, "needs propagate 'dense'"),
        ({"output_side": "gradient"}, "unknown output_side 'gradient': did you mean gradients"),
        ({"propagate": "prune"}, "unknown propagate 'prune': did you mean pruned"),
        ({"seeds": []}, "at least one model and one seed"),
        ({"models": []}, "at least one model and one seed"),
        ({"batch_size": 0}, "batch_size takes a whole number of at least 1, not 0"),
        ({"n_calib": 0}, "n_calib takes a whole number of at least 1, not 0"),
        ({"n_eval": 0}, "n_eval takes a whole number of at least 1 or null, not 0"),
        ({"seq_len": -1}, "seq_len takes a whole number of at least 1, not -1"),
    ],
)
def test_a_protocol_that_cannot_be_is_refused_before_anything_is_measured(protocol, change, words):
    with pytest.raises(UserError, match=words):
        Experiment(Protocol(**{**protocol, **change}))


METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
INJECTED = {
    "n_calb = 5": "unknown parameter 'n_calb': did you mean n_calib",
    "p_valeus = [1.0]": "unknown parameter 'p_valeus': did you mean p_values",
    "n_calib = 'many'": "n_calib takes a whole number of at least 1, not 'many'",
    "p_values = 0.5": "p_values takes a list of numbers, not 0.5",
    "models = 'embedded'": "models takes a list of texts, not 'embedded'",
    "own_sweep = 'a'": "own_sweep takes a list of whole numbers, not 'a'",
}


@pytest.mark.parametrize(("line", "words"), INJECTED.items())
def test_what_papermill_gives_is_checked_whatever_else_a_notebook_holds(line, words):
    declared = "profile = 'p'\nown_sweep = [1, 2]"
    namespace: dict = {"In": ["", declared, f"# Parameters\nsparsities = [0.5]\n{line}\n"]}
    for cell in namespace["In"]:
        exec(cell, namespace)
    with pytest.raises(UserError, match=words):
        Protocol.of(namespace)


def test_what_a_notebook_assigns_by_itself_is_its_own_affair():
    cells = ["", "# Parameters\nprofile = 'p'\nown = 1\np_values = [1.0]", "n_calb = 3\n%matplotlib inline"]
    namespace = {
        "In": [*cells[::2], "own = 0", cells[1]],
        "profile": "p",
        "own": 1,
        "p_values": [1.0],
        "n_calb": 3,
    }
    assert Protocol.of(namespace) == Protocol("p")
    assert Protocol.of({"profile": "p", "n_calb": 3}) == Protocol("p")


def test_a_misspelt_key_ends_a_plain_papermill_in_one_line(tmp_path):
    import nbformat
    import papermill

    parameters = nbformat.v4.new_code_cell("profile = 'p'\nn_calib = 2", metadata={"tags": ["parameters"]})
    use = nbformat.v4.new_code_cell(
        "from symprune.measure.protocol import Protocol\nprotocol = Protocol.of(globals())"
    )
    nbformat.write(
        nbformat.v4.new_notebook(cells=[parameters, use], metadata=METADATA), tmp_path / "in.ipynb"
    )
    with pytest.raises(papermill.PapermillExecutionError) as error:
        papermill.execute_notebook(
            tmp_path / "in.ipynb",
            None,
            {"n_calb": 5, "p_values": [1.0]},
            kernel_name="python3",
            progress_bar=False,
        )
    assert error.value.ename == "UserError"
    assert error.value.evalue.startswith("unknown parameter 'n_calb': did you mean n_calib")
    assert "\n" not in error.value.evalue


def test_a_grid_reports_its_progress_to_whoever_asked(protocol, tmp_path, monkeypatch):
    import json

    monkeypatch.setenv("SYMPRUNE_PROGRESS", str(tmp_path / "progress"))
    Experiment(Protocol(**protocol)).run([None, WANDA])
    reports = [json.loads(line) for line in (tmp_path / "progress").read_text().splitlines()]
    assert [(report["done"], report["total"]) for report in reports] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert [
        "dense" in reports[0]["label"],
        WANDA.label in reports[1]["label"],
        "seed 1" in reports[2]["label"],
    ] == [True] * 3
    assert [report["measured"] for report in reports] == [True, True, True, False]
    (tmp_path / "progress").unlink()
    Experiment(Protocol(**protocol)).run([None, WANDA])
    reports = [json.loads(line) for line in (tmp_path / "progress").read_text().splitlines()]
    assert not any(report["measured"] for report in reports)  # all are on record


def test_two_models_are_measured_one_after_the_other(protocol, checkpoint, tmp_path, monkeypatch):
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    loaded, real = [], models.load_model
    monkeypatch.setattr(models, "load_model", lambda name, *args: loaded.append(name) or real(name, *args))
    rows = Experiment(Protocol(**{**protocol, "models": [str(checkpoint), str(other)]})).run(
        [None, MAGNITUDE, WANDA]
    )
    assert loaded == [str(checkpoint), str(other)]
    assert (
        rows["model"].tolist() == [str(checkpoint), str(other)] * 2 + [str(checkpoint)] * 2 + [str(other)] * 2
    )
    assert rows["record"].is_unique


def test_texts_share_a_pruning_and_devices_an_answer_where_masks_are_of_float64(protocol, monkeypatch):
    pruned = []
    prune = module.prune
    monkeypatch.setattr(module, "prune", lambda *a, **k: pruned.append(a[2]) or prune(*a, **k))
    exact = {**protocol, "seeds": [0], "calibration_dtype": "float64"}
    one, two = (Experiment(Protocol(**{**exact, "n_eval": n})) for n in (1, 2))
    model = protocol["models"][0]
    for recipe in (None, WANDA, MAGNITUDE):  # the dense model's outputs of both texts first
        both = [experiment.record(model, recipe) for experiment in (one, two)]
    assert pruned == [WANDA, MAGNITUDE]
    apart = Experiment(Protocol(**{**exact, "n_eval": 2, "profile": "apart"})).record(model, MAGNITUDE)
    assert apart.metrics["window_losses"] == both[1].metrics["window_losses"]
    asked = {
        (dtype, device): Experiment(
            Protocol(**{**exact, "calibration_dtype": dtype, "device": device})
        ).question(Cell(model, 0, WANDA, WindowLosses()))
        for dtype in ("float64", None)
        for device in ("cpu", "cuda")
    }
    assert asked["float64", "cpu"] == asked["float64", "cuda"]
    assert asked[None, "cpu"] != asked[None, "cuda"]
