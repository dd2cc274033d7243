"""Model folders and paths as people have them: incomplete, of older versions, with odd names, fine-tuned."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_cli import call, refused  # noqa: F401
from test_reproduce import notebook, profile

from symprune.base import paths
from symprune.models.layers import named_linears
from symprune.models.load import load_model, load_tokenizer
from symprune.pruning.mask_files import load_masks
from symprune.text.fetch import _describe

SIZES = ["--seq-len", "32", "--n-calib", "2"]


@pytest.fixture
def copy(checkpoint, tmp_path) -> Path:
    """A checkpoint to take something from."""
    return shutil.copytree(checkpoint, tmp_path / "model")


# What a folder lacks.


def without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tok*"):
        file.unlink()


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def pointed_at(folder: Path) -> None:
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 538090408\n"
    (folder / "model.safetensors").write_text(text)


def cut(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def without_a_shard(folder: Path) -> None:
    model = load_model(str(folder))
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="10KB")
    sorted(folder.glob("model-*"))[-1].unlink()


def with_a_broken_index(folder: Path) -> None:
    without_a_shard(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": ')


LACKS = {
    without_tokenizer: "save it there beside the model (tokenizer.json)",
    pickled: "a pickle, which is never loaded",
    pointed_at: "model.safetensors is not a readable safetensors file: fetch it again",
    cut: "model.safetensors is not a readable safetensors file: fetch it again",
    without_a_shard: "model",
    with_a_broken_index: "model",
}


@pytest.mark.parametrize("stream", [[], ["--stream", "--json"]], ids=["in memory", "streamed"])
@pytest.mark.parametrize("damage", LACKS, ids=lambda damage: damage.__name__)
def test_an_incomplete_folder_is_refused_and_what_it_lacks_is_named(refused, copy, corpus, damage, stream):  # noqa: F811
    damage(copy)
    line = refused("prune", copy, "--corpus", corpus, *SIZES, *stream, "--out", "out")
    assert LACKS[damage] in line
    assert str(copy) in line


# Settings of generation that newer versions refuse to save.

GENERATION = {
    "vicuna": {"eos_token_id": 2, "temperature": 0.9, "top_p": 0.6},
    "recognition": {"eos_token_id": [2, 5], "do_sample": False, "temperature": 1e-6},
    "negative": {"eos_token_id": 2, "temperature": -1.0, "do_sample": True},
    "odd": {"eos_token_id": 2, "do_sample": "yes", "max_length": 4},
}


@pytest.mark.parametrize("settings", GENERATION)
def test_settings_of_generation_do_not_cost_a_pruned_model(capsys, copy, corpus, tmp_path, settings):
    from transformers import AutoModelForCausalLM

    content = {"bos_token_id": 1, "pad_token_id": 0, "transformers_version": "4.31.0", **GENERATION[settings]}
    (copy / "generation_config.json").write_text(json.dumps(content))
    commands = {
        "in_memory": ["prune", copy, "--corpus", corpus, *SIZES],
        "streamed": ["prune", copy, "--corpus", corpus, *SIZES, "--stream"],
        "applied": ["apply", copy, tmp_path / "in_memory"],
    }
    for name, command in commands.items():
        code, _, err = call(capsys, *command, "--out", tmp_path / name)
        assert code == 0, (name, err)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert all((linear.weight == 0).any() for linear in named_linears(model).values())
        assert model.generation_config.eos_token_id == content["eos_token_id"]
        if settings in ("vicuna", "recognition"):
            greedy = {"max_new_tokens": 2, "do_sample": False, "temperature": None, "top_p": None}
            assert model.generate(torch.arange(3, 9)[None], **greedy).shape[1] > 6


# Names of folders and files.

ODD = "prüf ordner (v2) 100% 'x'"


def test_folders_of_any_name_are_read_and_written(capsys, checkpoint, corpus, tmp_path):
    place = tmp_path / ODD
    model, text = place / "mödel one", place / "text fíle %20.txt"
    shutil.copytree(checkpoint, model)
    shutil.copy(corpus, text)
    draw = ["--corpus", text, *SIZES]
    for command in (
        [
            "prune",
            model,
            *draw,
            "--work",
            place / "work é",
            "--out",
            place / "aus %20 'o",
            "--masks",
            place / "m é",
        ],
        ["prune", model, *draw, "--stream", "--out", place / "streamed 'o"],
        ["eval", place / "aus %20 'o", "--corpus", text, "--seq-len", 32, "--n-eval", 2],
        ["verify", place / "aus %20 'o"],
        ["diff", place / "streamed 'o", place / "m é"],
        ["calibrate", model, *draw, "--out", place / "sums {1}"],
        ["merge", place / "sums {1}", "--out", place / "all [*]"],
        ["prune", model, "--statistics", place / "all [*]", "--out", place / "again?"],
    ):
        code, _, err = call(capsys, *command)
        assert code == 0, (command, err)


def test_notebooks_are_executed_in_folders_of_any_name(capsys, tmp_path, monkeypatch):
    root, out = tmp_path / ODD, tmp_path / 'aus gabe é"q'
    for name, folder in {
        "ROOT": root,
        "NOTEBOOKS": root / "notebooks",
        "PARAMS": root / "papermill_params",
    }.items():
        folder.mkdir()
        monkeypatch.setattr(paths, name, folder)
    monkeypatch.setenv("SYMPRUNE_OUTPUT", str(out))
    for name in ("smoke", "full"):
        profile(root, name, profile=name, number=1)
    notebook(root, "00_first", "from symprune.base import paths\nprint(paths.ROOT, paths.output())")
    code, stdout, err = call(capsys, "reproduce", "--profile", "full", "--json")
    assert code == 0, err
    assert Path(json.loads(stdout)["report"]).is_file()
    executed = (out / "results/full/00_first.ipynb").read_text(encoding="utf-8")
    assert json.dumps(f"{root} {out}", ensure_ascii=False)[1:-1] in executed


# Fine-tuned after pruning.


def test_an_adapter_merged_after_pruning_is_masked_again(capsys, refused, checkpoint, corpus, tmp_path):  # noqa: F811
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    pruned, merged, again = tmp_path / "pruned", tmp_path / "merged", tmp_path / "again"
    prune = ["prune", checkpoint, "--corpus", corpus, *SIZES, "--pattern", "2:4"]
    assert call(capsys, *prune, "--out", pruned)[0] == 0
    model = AutoModelForCausalLM.from_pretrained(pruned)
    targets = ["q_proj", "down_proj"]
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    model = adapted.merge_and_unload()
    model.save_pretrained(merged)
    load_tokenizer(str(checkpoint)).save_pretrained(merged)
    weights = {name: linear.weight.clone() for name, linear in named_linears(model).items()}
    masks = load_masks(pruned).masks
    assert any(weights[name][~mask].any() for name, mask in masks.items()), "the merge fills what was removed"

    assert "merge_and_unload" in refused("prune", tmp_path / "adapter", "--out", "new")
    assert "not those" in refused("verify", pruned, "--model", merged)
    assert "--other-weights" in refused("apply", merged, pruned, "--out", "new")
    assert call(capsys, "apply", merged, pruned, "--other-weights", "--out", again)[0] == 0
    assert call(capsys, "verify", again)[0] == 0
    assert call(capsys, "apply", pruned, pruned, "--out", tmp_path / "same")[0] == 0
    for name, linear in named_linears(AutoModelForCausalLM.from_pretrained(again)).items():
        assert torch.equal(linear.weight, weights[name] * masks[name]), name
        assert ((linear.weight.view(-1, 4) == 0).sum(1) == 2).all(), name


# Given to others.


def test_the_command_of_lm_eval_finds_the_same_accuracy_on_a_saved_folder(
    capsys, checkpoint, corpus, tmp_path, monkeypatch
):
    import lm_eval

    data, pruned, questions = tmp_path / "data/allenai/ai2_arc", tmp_path / "pruned", []
    words = corpus.read_text().split()
    for i in range(40):
        choices = [" ".join(words[40 * i + 5 * j : 40 * i + 5 * j + 2 + j]) for j in range(4)]
        choice = {"text": choices, "label": list("ABCD")}
        questions.append(
            {"question": " ".join(words[-i - 9 :][:8]), "choices": choice, "answerKey": "ABCD"[i % 4]}
        )
    (data / "ARC-Easy").mkdir(parents=True)
    (data / "ARC-Easy/test.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    _describe(data)
    monkeypatch.setenv("SYMPRUNE_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    assert call(capsys, "prune", checkpoint, "--corpus", corpus, *SIZES, "--out", pruned)[0] == 0
    code, out, err = call(capsys, "eval", pruned, "--tasks", "arc_easy", "--batch-size", 8, "--json")
    assert code == 0, err
    ours = json.loads(out)["tasks"]["arc_easy"]

    official = Path(lm_eval.__file__).parent / "tasks/arc/arc_easy.yaml"
    elsewhere = {
        "include": str(official),
        "dataset_path": str(data),
        "training_split": None,
        "validation_split": None,
    }
    (tmp_path / "arc_easy.yaml").write_text(yaml.safe_dump(elsewhere))
    command = [
        sys.executable,
        "-m",
        "lm_eval",
        "--model",
        "hf",
        "--model_args",
        f"pretrained={pruned},dtype=float32",
    ]
    command += ["--tasks", tmp_path / "arc_easy.yaml", "--device", "cpu", "--batch_size", "8"]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    subprocess.run(
        [*command, "--output_path", tmp_path / "theirs"], check=True, capture_output=True, env=environment
    )
    (file,) = (tmp_path / "theirs").rglob("results*.json")
    (theirs,) = json.loads(file.read_text())["results"].values()
    assert ours["n"] == 40
    assert (ours["acc"], ours["acc_norm"]) == (theirs["acc,none"], theirs["acc_norm,none"])
    assert 0 < ours["acc"] < 1
    assert ours["acc"] != ours["acc_norm"], "or one of them would not be told from the other"
