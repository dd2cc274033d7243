"""Zero-shot accuracy is that of the given object, by definition; tasks are the official ones, wherever their
data lie.
"""

import json
import math
import os
import re

import pytest
import tiny
import torch

from symprune import Magnitude, Recipe, Unstructured, UserError, Wanda, prune, zero_shot
from symprune.measure import Accuracy, Experiment, Protocol
from symprune.measure import questions as module
from symprune.models.layers import copy_weights, named_linears
from symprune.models.load import load_model
from symprune.text import corpora
from symprune.text.embedded import embedded_articles, embedded_titles
from symprune.text.fetch import _describe
from symprune.text.tasks import CONTINUATION, TASKS, continuation_examples, identity, load_tasks

FOLDER = os.environ.get("SYMPRUNE_DATA")  # before a fixture takes it away
OFFICIAL = [name for name in TASKS if name != CONTINUATION]


@pytest.fixture(scope="module")
def task():
    return load_tasks([CONTINUATION])


@pytest.fixture
def model(checkpoint):
    return load_model(str(checkpoint))


def log_likelihoods(model, tokenizer, context: str, choices: list[str]) -> list[float]:
    """The sum over the tokens of each choice of the log-probability given all before, one choice at a
    time.
    """
    sums = []
    for choice in choices:
        before = tokenizer(context).input_ids
        tokens = tokenizer(f"{context} {choice}").input_ids[-128:]
        n_choice = len(tokenizer(f"{context} {choice}").input_ids) - len(before)
        with torch.no_grad():
            logs = model(torch.tensor([tokens])).logits[0, -n_choice - 1 : -1].log_softmax(-1)
        sums.append(sum(logs[at, token].item() for at, token in enumerate(tokens[-n_choice:])))
    return sums


def by_definition(model, tokenizer, n: int) -> tuple[list[bool], list[bool]]:
    """Whether each of the first n examples is answered rightly: by log-likelihood, and by log-likelihood per
    character.
    """
    plain, per_character = [], []
    for row in continuation_examples()[:n]:
        logs = log_likelihoods(model, tokenizer, row["context"], row["choices"])
        scaled = [log / len(choice) for log, choice in zip(logs, row["choices"], strict=True)]
        plain.append(logs.index(max(logs)) == row["label"])
        per_character.append(scaled.index(max(scaled)) == row["label"])
    return plain, per_character


# The task of the embedded corpus.


def test_continuations_are_true_ones_among_others_of_the_same_article():
    articles, titles = embedded_articles(), set(embedded_titles("evaluation"))
    rows = continuation_examples()
    assert len(rows) > 1000
    for row in rows:
        assert row["title"] in titles
        paragraphs = [" ".join(paragraph.split()) for paragraph in articles[row["title"]].split("\n\n")]
        true = row["choices"][row["label"]]
        home = [p for p in paragraphs if f"{row['context']} {true}" in p]
        assert home, row
        assert len(set(row["choices"])) == 4
        assert {len(choice.split()) for choice in row["choices"]} == {12}
        assert 20 <= len(row["context"].split()) <= 48
        for place, choice in enumerate(row["choices"]):
            assert place == row["label"] or any(choice in p for p in paragraphs if p not in home[:1]), row


def test_continuations_are_the_same_everywhere_and_the_first_are_of_many_articles(task):
    rows = continuation_examples()
    counts = [sum(row["label"] == place for row in rows) for place in range(4)]
    assert max(counts) < 0.28 * len(rows)
    assert len({row["title"] for row in rows[:40]}) >= 10
    assert len(rows) == 1581
    assert identity(task[CONTINUATION], None) == {"version": "1.0", "examples": "51bc2e3165a9b608"}
    assert identity(task[CONTINUATION], 5) != identity(task[CONTINUATION], 6)


def test_validation_articles_make_other_examples():
    assert not {row["title"] for row in continuation_examples("validation")} & {
        row["title"] for row in continuation_examples()
    }


# The score.


def test_accuracy_is_what_the_log_likelihoods_say_example_by_example(model, tokenizer, task):
    score = zero_shot(model, tokenizer, task, limit=8).scores[CONTINUATION]
    plain, per_character = by_definition(model, tokenizer, 8)
    assert score.correct == tuple(plain)
    assert score.acc == sum(plain) / 8
    assert score.acc_norm == sum(per_character) / 8
    assert score.stderr == pytest.approx(math.sqrt(score.acc * (1 - score.acc) / 7))
    assert (score.n, score.version) == (8, "1.0")


def test_the_model_scored_is_the_pruned_object_itself(model, tokenizer, task):
    dense = zero_shot(model, tokenizer, task, limit=12).scores[CONTINUATION]
    prune(model, None, Recipe(Magnitude(), Unstructured(0.9)))
    before, seen = copy_weights(model), []
    hook = model.register_forward_hook(lambda of, *_: seen.append(of))
    pruned = zero_shot(model, tokenizer, task, limit=12).scores[CONTINUATION]
    hook.remove()
    assert seen
    assert all(of is model for of in seen)
    assert all(torch.equal(before[name], linear.weight) for name, linear in named_linears(model).items())
    assert pruned.correct == tuple(by_definition(model, tokenizer, 12)[0])
    assert pruned.correct != dense.correct


def test_a_harness_around_another_model_is_refused(model, checkpoint, tokenizer, task, monkeypatch):
    other = load_model(str(checkpoint))
    monkeypatch.setattr("lm_eval.models.huggingface.HFLM.model", property(lambda _: other))
    with pytest.raises(RuntimeError, match="another model"):
        zero_shot(model, tokenizer, task, limit=1)


def test_the_batch_size_reaches_the_model_and_changes_no_answer(model, tokenizer, task):
    sizes, answers = {}, {}
    for batch_size in (1, 5):
        rows = []
        hook = model.register_forward_hook(
            lambda _, args, kwargs, out, rows=rows: rows.append(out.logits.shape[0]), with_kwargs=True
        )
        answers[batch_size] = (
            zero_shot(model, tokenizer, task, limit=5, batch_size=batch_size).scores[CONTINUATION].correct
        )
        hook.remove()
        sizes[batch_size] = max(rows)
    assert sizes == {1: 1, 5: 5}
    assert answers[1] == answers[5]


def test_nothing_is_printed_and_the_tokenizer_is_as_it_was(model, tokenizer, task, capfd):
    before = tokenizer.pad_token, len(tokenizer)
    zero_shot(model, tokenizer, task, limit=1)
    load_tasks([CONTINUATION])
    assert capfd.readouterr() == ("", "")
    assert (tokenizer.pad_token, len(tokenizer)) == before


def test_tokens_that_the_model_does_not_know_are_named_before_it_is_asked(tokenizer, task):
    small = tiny.model(vocab_size=1000, max_position_embeddings=128)
    small.register_forward_hook(lambda *_: pytest.fail("the model was asked"))
    with pytest.raises(UserError, match=r"token id \d+ is not in the vocabulary of .* has 1000 rows"):
        zero_shot(small, tokenizer, task, limit=2)


def test_an_embedding_with_rows_to_spare_is_scored(tokenizer, task):
    padded = tiny.model(vocab_size=len(tokenizer) + 64, max_position_embeddings=128)
    assert zero_shot(padded, tokenizer, task, limit=2).scores[CONTINUATION].n == 2


def test_a_single_example_has_no_standard_error_and_the_mean_is_over_tasks(model, tokenizer, task):
    result = zero_shot(model, tokenizer, task, limit=1)
    assert math.isnan(result.scores[CONTINUATION].stderr)
    assert result.mean == result.scores[CONTINUATION].acc
    assert result.frame().loc[CONTINUATION, "n"] == 1
    assert "of 1" in repr(result)


@pytest.mark.parametrize("bos", [False, True])
def test_prompts_begin_as_the_text_of_perplexity_does(model, tokenizer, task, bos):
    class WithPolicy(type(tokenizer)):
        """The tokenizer that puts BOS before a text, or not."""

        def __call__(self, text, *args, add_special_tokens=True, **options):
            found = super().__call__(text, *args, add_special_tokens=False, **options)
            if bos and add_special_tokens and isinstance(text, str):
                found["input_ids"] = [self.bos_token_id, *found["input_ids"]]
            return found

        def encode(self, text, *args, add_special_tokens=True, **options):
            return [self.bos_token_id] * (bos and add_special_tokens) + super().encode(
                text, *args, add_special_tokens=False, **options
            )

    policy = WithPolicy.__new__(WithPolicy)
    policy.__dict__ = tokenizer.__dict__
    first = []
    hook = model.register_forward_hook(
        lambda _, args, kwargs, __: first.append(args[0][:, 0].tolist()), with_kwargs=True
    )
    zero_shot(model, policy, task, limit=2, batch_size=1)
    hook.remove()
    assert corpora.adds_bos(policy) is bos
    assert {token == tokenizer.bos_token_id for (token,) in first} == {bos}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": "auto"}, "batch_size must be a whole number of at least 1, not 'auto'"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
        ({"limit": 0}, "limit must be a whole number"),
        ({"limit": True}, "limit must be a whole number"),
        ({"tasks": ["arc-easy"]}, "unknown task 'arc-easy': did you mean arc_easy"),
        ({"tasks": []}, "no task is named"),
    ],
)
def test_what_cannot_be_scored_is_refused(model, tokenizer, options, words):
    with pytest.raises(UserError, match=words):
        zero_shot(model, tokenizer, **{"tasks": [CONTINUATION], **options})


def test_without_lm_eval_the_way_out_is_named(model, tokenizer, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.tasks", None)
    with pytest.raises(UserError, match=re.escape("pip install 'symprune[zeroshot]'")):
        zero_shot(model, tokenizer, [CONTINUATION])


# Where the data lie.


def test_without_hub_and_folder_one_line_says_what_to_provide(tmp_path, monkeypatch):
    for folder in (None, tmp_path):
        if folder:
            monkeypatch.setenv("SYMPRUNE_DATA", str(folder))
        with pytest.raises(
            UserError, match=r"cannot reach the hub .* \$SYMPRUNE_DATA/aps/super_glue .*'continuation'"
        ) as caught:
            load_tasks(["boolq"])
        assert "\n" not in str(caught.value)


def _write_boolq(folder, questions):
    rows = [{"question": question, "passage": "a text", "label": 1} for question in questions]
    (folder / "boolq/validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("content", ["{", '{"passage": "x"}\n', None])
def test_a_local_folder_that_is_broken_is_named(tmp_path, monkeypatch, content):
    folder = tmp_path / "data/aps/super_glue"
    (folder / "boolq").mkdir(parents=True)
    files = "data_files: [{split: validation, path: boolq/validation.jsonl}]"
    (folder / "README.md").write_text(f"---\nconfigs: [{{config_name: boolq, {files}}}]\n---\n")
    if content is not None:
        (folder / "boolq/validation.jsonl").write_text(content)
    monkeypatch.setenv("SYMPRUNE_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=re.escape(f"cannot read boolq of {folder} for the task boolq")):
        load_tasks(["boolq"])


def test_a_local_folder_is_read_as_it_lies_there_now(tmp_path, monkeypatch):
    """`datasets` keeps what it read under the last names of a folder, and looks no further."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    texts = {"a": ["one"], "b": ["other", "rows"]}
    for name, questions in texts.items():
        folder = tmp_path / name / "aps/super_glue"
        (folder / "boolq").mkdir(parents=True)
        _write_boolq(folder, questions)
        _describe(folder)
    for name in ("a", "b", "a"):
        monkeypatch.setenv("SYMPRUNE_DATA", str(tmp_path / name))
        assert [row["question"] for row in load_tasks(["boolq"])["boolq"].eval_docs] == texts[name]
    _write_boolq(tmp_path / "a/aps/super_glue", ["fetched", "again"])
    assert [row["question"] for row in load_tasks(["boolq"])["boolq"].eval_docs] == ["fetched", "again"]
    assert not (tmp_path / "cache").exists()


@pytest.mark.skipif(not FOLDER, reason="SYMPRUNE_DATA names no folder with the benchmarks' data")
def test_all_seven_tasks_run_on_a_local_folder(model, tokenizer, monkeypatch):
    monkeypatch.setenv("SYMPRUNE_DATA", FOLDER)
    result = zero_shot(model, tokenizer, OFFICIAL, limit=2)
    assert list(result.scores) == OFFICIAL
    assert all(score.n == 2 and score.acc in (0, 0.5, 1) for score in result.scores.values())
    assert {name for name, score in result.scores.items() if score.acc_norm is None} == {
        "boolq",
        "rte",
        "winogrande",
    }


# In an experiment.


@pytest.fixture
def protocol(protocol, tokenizer, monkeypatch) -> dict:
    monkeypatch.setattr("symprune.models.load_tokenizer", lambda _: tokenizer)  # read once for all tests
    return protocol


WANDA = Recipe(Wanda(), Unstructured(0.8))


def test_scores_are_measured_once_and_found_again(protocol, monkeypatch):
    first = Experiment(Protocol(**protocol)).run([None, WANDA], Accuracy(CONTINUATION, limit=3))
    assert list(zip(first["method"], first["seed"].fillna(-1), strict=True)) == [
        ("dense", -1),
        ("wanda", 0),
        ("wanda", 1),
    ]
    assert first["task"].tolist() == [CONTINUATION] * 3
    assert [text.count("1") / 3 for text in first["correct"]] == first["acc"].tolist()
    monkeypatch.setattr("symprune.models.load_model", None)
    assert Experiment(Protocol(**protocol)).run([None, WANDA], Accuracy(CONTINUATION, limit=3)).equals(first)


def test_the_model_is_pruned_as_for_perplexity_and_put_back(protocol, tokenizer, monkeypatch):
    weights = []

    def watched(model, *args):
        weights.append(copy_weights(model))
        return zero_shot(model, *args)

    monkeypatch.setattr(module, "zero_shot", watched)
    Experiment(Protocol(**{**protocol, "seeds": [1]})).run([WANDA, None], Accuracy(CONTINUATION, limit=1))
    model = load_model(protocol["models"][0])
    dense = copy_weights(model)
    prune(model, corpora.calibration_windows(protocol["calibration_corpus"], tokenizer, 2, 32, 1), WANDA)
    expected = copy_weights(model)
    assert all(torch.equal(weights[0][name], expected[name]) for name in expected)
    assert all(torch.equal(weights[1][name], dense[name]) for name in dense)


def test_a_key_changes_with_the_examples_and_not_with_the_evaluation_text(protocol):
    def keys(limit: int = 2, **changes) -> list[str]:
        rows = Experiment(Protocol(**{**protocol, **changes})).run(
            [None], Accuracy(CONTINUATION, limit=limit)
        )
        return rows["record"].tolist()

    first = keys()
    assert keys(n_eval=2) == first
    assert keys(limit=3) != first
    perplexity = Experiment(Protocol(**protocol)).record(protocol["models"][0])
    assert perplexity.key not in first
    record = next(record for record in Experiment(Protocol(**protocol)).store if record.key == first[0])
    assert record.run["zero_shot"].keys() == {"task", "limit", "version", "examples", "bos"}
    assert record.run["zero_shot"]["bos"] is False


# On the command line, and on a GPU.


def test_eval_with_tasks_prints_each_and_their_mean(checkpoint, capsys):
    from symprune.cli import main

    options = ["--tasks", CONTINUATION, "--limit", "3", "--batch-size", "4"]
    assert main(["eval", str(checkpoint), *options, "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == ""
    score = found["tasks"][CONTINUATION]
    assert found["mean"] == score["acc"]
    assert score.keys() == {"acc", "stderr", "n", "version", "acc_norm"}
    assert main(["eval", str(checkpoint), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"mean {found['mean']:.4f}"
    assert lines[0].startswith(f"{CONTINUATION} {score['acc']:.4f} ± ")


def test_eval_refuses_an_unknown_task_before_it_loads_the_model(checkpoint, capsys, monkeypatch):
    from symprune.cli import main

    monkeypatch.setattr("symprune.models.load_model", None)
    assert main(["eval", str(checkpoint), "--tasks", "boolk"]) == 2
    assert (
        capsys.readouterr().err
        == "symprune: error: unknown task 'boolk': did you mean boolq or openbookqa?\n"
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_model_on_a_gpu_is_scored_there_with_the_same_answers(checkpoint, tokenizer, task):
    model = load_model(str(checkpoint), device="cuda")
    devices = []
    hook = model.register_forward_hook(lambda _, __, out: devices.append(out.logits.device.type))
    correct = zero_shot(model, tokenizer, task, limit=6).scores[CONTINUATION].correct
    hook.remove()
    assert set(devices) == {"cuda"}
    assert (
        correct
        == zero_shot(load_model(str(checkpoint)), tokenizer, task, limit=6).scores[CONTINUATION].correct
    )
