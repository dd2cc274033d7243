"""A fetched folder serves tasks and corpora, is resumed where it stopped, and tells a changed file."""

import gzip
import hashlib
import json
from pathlib import Path

import pytest

from symprune import UserError
from symprune.cli import main
from symprune.text import corpora
from symprune.text.fetch import MANIFEST, NAMES, fetch
from symprune.text.tasks import load_tasks

ROWS = {
    ("aps/super_glue", "boolq", "validation"): [
        {"passage": "Ice is cold.", "question": "is ice cold", "label": 1}
    ],
    ("nyu-mll/glue", "rte", "validation"): [
        {"sentence1": "It rains.", "sentence2": "It is wet.", "label": 0}
    ],
    ("Rowan/hellaswag", "default", "validation"): [
        {
            "ctx_a": "A man sits.",
            "ctx_b": "he",
            "activity_label": "Sit",
            "endings": ["a", "b", "c", "d"],
            "label": "2",
        }
    ],
    ("allenai/winogrande", "winogrande_xl", "validation"): [
        {"sentence": "Ann saw Bea so _ ran.", "option1": "Ann", "option2": "Bea", "answer": "1"}
    ],
    **{
        ("allenai/ai2_arc", config, "test"): [
            {"question": "Why?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}
        ]
        for config in ("ARC-Easy", "ARC-Challenge")
    },
    ("allenai/openbookqa", "main", "test"): [
        {"question_stem": "To é", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "A"}
    ],
    **{
        ("Salesforce/wikitext", "wikitext-2-raw-v1", split): [{"text": ""}, {"text": f" of {split} "}]
        for split in ("train", "validation", "test")
    },
}


@pytest.fixture
def hub(tmp_path, monkeypatch) -> list:
    """A hub of a few rows; what is asked of it is noted."""
    import datasets
    import huggingface_hub

    real, asked = datasets.load_dataset, []

    def load_dataset(path, name=None, split=None, **options):
        if Path(path).is_dir():
            return real(path, name, split=split, **options)
        asked.append(f"{path}/{name}/{split}")
        return datasets.Dataset.from_list(ROWS[path, name, split])

    def hf_hub_download(repo, file, repo_type):
        assert repo_type == "dataset"
        asked.append(f"{repo}/{file}")
        with gzip.open(tmp_path / "shard", "wt") as f:
            f.write(json.dumps({"text": file}))
        return str(tmp_path / "shard")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return asked


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_fetched_folder_serves_every_task_and_corpus(hub, tmp_path, monkeypatch):
    out = tmp_path / "data"
    done = fetch(out)
    assert len(hub) == len(done.written) == 12
    monkeypatch.setenv("SYMPRUNE_DATA", str(out))
    assert corpora.documents("wikitext2", "evaluation") == ["", " of test "]
    assert corpora.documents("wikitext2", "calibration") == ["", " of train "]
    assert corpora.documents("c4", "calibration") == ["en/c4-train.00000-of-01024.json.gz"]
    tasks = load_tasks([name for name in NAMES if name not in corpora.HUB_CORPORA])
    assert len(tasks) == 7
    assert len(hub) == 12  # nothing more was asked of the hub
    prompts = {}
    for name, task in tasks.items():
        task.build_all_requests(limit=1, rank=0, world_size=1)
        prompts[name] = [request.args for request in task.instances]
    assert prompts["boolq"] == [
        ("Ice is cold.\nQuestion: is ice cold?\nAnswer:", choice) for choice in (" no", " yes")
    ]
    assert prompts["rte"] == [
        ("It rains.\nQuestion: It is wet. True or False?\nAnswer:", choice) for choice in (" True", " False")
    ]
    assert prompts["hellaswag"] == [("Sit: A man sits. He", f" {ending}") for ending in "abcd"]
    assert prompts["winogrande"] == [(f"Ann saw Bea so {name}", " ran.") for name in ("Ann", "Bea")]
    assert (
        prompts["arc_easy"]
        == prompts["arc_challenge"]
        == [("Question: Why?\nAnswer:", f" {choice}") for choice in "xy"]
    )
    assert prompts["openbookqa"] == [("To é", f" {choice}") for choice in "xy"]


def test_the_manifest_holds_the_hash_of_every_file(hub, tmp_path):
    done = fetch(tmp_path / "data", ["arc_easy", "arc_challenge", "c4"])
    manifest = json.loads((tmp_path / "data" / MANIFEST).read_text())
    assert sorted(manifest) == sorted(done.written)
    for path, digest in manifest.items():
        assert hashlib.sha256((tmp_path / "data" / path).read_bytes()).hexdigest() == digest
    assert not [path for path in contents(tmp_path / "data") if "partial" in path]


def test_an_interrupted_fetch_goes_on_where_it_stopped(hub, tmp_path, monkeypatch):
    import datasets

    out, real = tmp_path / "data", datasets.load_dataset

    def dies_at_rte(path, *args, **options):
        if path == "nyu-mll/glue":
            raise ConnectionError("the line is dead")
        return real(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(datasets, "load_dataset", dies_at_rte)
        with pytest.raises(
            UserError, match=r"cannot fetch nyu-mll/glue/rte/validation.jsonl: run this where .* kept"
        ):
            fetch(out, ["boolq", "rte"])
    assert not [path for path in contents(out) if "rte" in path]
    done = fetch(out, ["boolq", "rte"])
    assert done.kept == ("aps/super_glue/boolq/validation.jsonl",)
    assert done.written == ("nyu-mll/glue/rte/validation.jsonl",)
    before = contents(out)
    assert fetch(out, ["rte", "boolq"]).written == ()
    assert contents(out) == before


def test_a_file_that_was_changed_or_lost_is_fetched_again(hub, tmp_path):
    out = tmp_path / "data"
    fetch(out, ["boolq", "rte"])
    before = contents(out)
    (out / "aps/super_glue/boolq/validation.jsonl").write_text("{}")
    (out / "nyu-mll/glue/rte/validation.jsonl").unlink()
    assert len(fetch(out, ["boolq", "rte"]).written) == 2
    assert contents(out) == before


def test_names_that_are_not_of_the_hub_and_broken_manifests_are_refused(hub, tmp_path):
    for name in ("boolk", "embedded", "continuation"):
        with pytest.raises(UserError, match=f"unknown task or corpus of the hub {name!r}"):
            fetch(tmp_path / "data", [name])
    assert not (tmp_path / "data").exists()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / MANIFEST).write_text("{")
    with pytest.raises(UserError, match="not readable JSON"):
        fetch(tmp_path / "data", ["boolq"])
    assert hub == []


def test_the_command_says_what_it_wrote_and_what_to_set(hub, tmp_path, capsys):
    assert main(["fetch", "--out", str(tmp_path / "data"), "boolq", "rte"]) == 0
    out, err = capsys.readouterr()
    assert out == f"2 files written, 0 were there: set SYMPRUNE_DATA={tmp_path / 'data'}\n"
    assert err.splitlines() == [
        "fetching aps/super_glue/boolq/validation.jsonl",
        "fetching nyu-mll/glue/rte/validation.jsonl",
    ]
    assert main(["fetch", "--out", str(tmp_path / "data"), "boolq", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["kept"] == ["aps/super_glue/boolq/validation.jsonl"]
    assert err == ""


def test_without_the_hub_the_command_fails_with_one_line(tmp_path, capsys):
    assert main(["fetch", "--out", str(tmp_path / "data"), "boolq", "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("symprune: error: cannot fetch aps/super_glue/boolq/validation.jsonl")
    assert err.count("\n") == 1
