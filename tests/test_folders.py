"""Model folders and paths as people have them: incomplete, of older versions, with odd names, fine-tuned."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file, save_file
from test_cli import call, refused  # noqa: F401
from test_reproduce import notebook, profile

from symprune import Recipe, models, prune
from symprune.base import paths
from symprune.models.folder import weight_files
from symprune.models.layers import named_linears
from symprune.models.load import load_model, load_tokenizer
from symprune.models.tensors import ModelTensors
from symprune.pruning.mask_files import load_masks
from symprune.pruning.stream import prune_checkpoint
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


# What a folder holds beside the weights of its model.


@pytest.fixture
def sharded(checkpoint, tmp_path) -> Path:
    """The checkpoint in shards with an index."""
    shards = shutil.copytree(checkpoint, tmp_path / "sharded")
    (shards / "model.safetensors").unlink()
    load_model(str(checkpoint)).save_pretrained(shards, max_shard_size="10KB")
    assert len(list(shards.glob("model-*"))) > 1
    return shards


def with_stale_shards(folder: Path) -> None:
    model = load_model(str(folder))
    for parameter in model.parameters():
        parameter.data.add_(1.0)
    model.save_pretrained(folder / "old", max_shard_size="5KB")
    for file in (folder / "old").glob("model-*"):
        shutil.copy(file, folder)
    shutil.rmtree(folder / "old")


def with_the_originals(folder: Path) -> None:
    tensors = {f"first.{name}": tensor for name, tensor in load_model(str(folder)).state_dict().items()}
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "consolidated.safetensors")


@pytest.mark.parametrize("add", [with_stale_shards, with_the_originals], ids=lambda add: add.__name__)
def test_files_that_the_index_does_not_name_are_no_part_of_the_model(capsys, sharded, corpus, tmp_path, add):
    alone, own = models.fingerprint(str(sharded)), set(sharded.glob("*.safetensors"))
    add(sharded)
    assert set(sharded.glob("*.safetensors")) > own
    assert set(weight_files(sharded)) == own
    assert models.fingerprint(str(sharded)) == alone
    weights = {}
    for name, how in {"whole": [], "streamed": ["--stream"]}.items():
        command = ["prune", sharded, "--corpus", corpus, *SIZES, *how, "--out", tmp_path / name]
        code, _, err = call(capsys, *command)
        assert code == 0, err
        weights[name] = load_model(str(tmp_path / name)).state_dict()
    assert all(torch.equal(tensor, weights["streamed"][key]) for key, tensor in weights["whole"].items())


def test_the_fingerprint_of_the_embedded_model_is_that_of_the_published_records():
    with open(paths.ROOT / "results/cpu/records.jsonl") as lines:
        model = json.loads(next(iter(lines)))["run"]["model"]
    assert model["name"] == "embedded"
    assert models.fingerprint("embedded") == model["weights"]


def with_another_model(folder: Path) -> str:
    load_model(str(folder)).save_pretrained(folder / "old")
    shutil.move(folder / "old/model.safetensors", folder)
    shutil.rmtree(folder / "old")
    return "holds two sets of weights"


def without_an_index(folder: Path) -> str:
    (folder / "model.safetensors.index.json").unlink()
    file = sorted(folder.glob("model-*"))[0]
    shutil.copy(file, folder / "other.safetensors")
    return f"both hold {sorted(load_file(file))[0]}"


def with_a_foreign_weight(folder: Path) -> str:
    file = sorted(folder.glob("model-*"))[0]
    save_file({**load_file(file), "model.layers.0.mlp.weight_scale": torch.ones(3)}, file, {"format": "pt"})
    return "holds model.layers.0.mlp.weight_scale, which LlamaForCausalLM does not know"


def with_codes(folder: Path) -> str:
    file = sorted(folder.glob("model-*"))[0]
    name = "model.embed_tokens.weight"
    file = next(file for file in folder.glob("model-*") if name in load_file(file))
    save_file(
        {**load_file(file), name: load_file(file)[name].to(torch.float8_e4m3fn)}, file, {"format": "pt"}
    )
    return f"{name} in {file} holds codes (F8_E4M3)"


def with_an_index_that_leaves_the_folder(folder: Path) -> str:
    content = json.dumps({"weight_map": {"lm_head.weight": "../elsewhere.safetensors"}})
    (folder / "model.safetensors.index.json").write_text(content)
    return "does not say which files hold the weights"


def quantised_by(method: str):
    def quantise(folder: Path) -> str:
        config = json.loads((folder / "config.json").read_text())
        about = {"load_in_4bit": True} if method == "bitsandbytes" else {"quant_method": method}
        (folder / "config.json").write_text(json.dumps({**config, "quantization_config": about}))
        return f"are quantised ({method}"

    quantise.__name__ = method
    return quantise


REFUSED = [
    with_another_model,
    without_an_index,
    with_a_foreign_weight,
    with_codes,
    with_an_index_that_leaves_the_folder,
    *map(quantised_by, ["bitsandbytes", "gptq", "awq", "compressed-tensors", "mxfp4", "unheard of"]),
]


@pytest.mark.parametrize("stream", [[], ["--stream", "--json"]], ids=["in memory", "streamed"])
@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_a_folder_that_says_two_things_or_holds_no_plain_weights_is_refused(
    refused,  # noqa: F811
    sharded,
    corpus,
    tmp_path,
    change,
    stream,
):
    words = change(sharded)
    assert words in refused("prune", sharded, "--corpus", corpus, *SIZES, *stream, "--out", tmp_path / "out")


def test_what_older_models_saved_beside_their_weights_is_no_foreign_weight(tmp_path):
    model = tiny.model("gpt2")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for layer in range(3):
        tensors[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 64, 64)
        tensors[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e9)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    windows = tiny.windows(2)
    expected = load_model(str(tmp_path))
    prune(expected, windows, Recipe("magnitude"))
    prune_checkpoint(str(tmp_path), tmp_path / "out", windows, Recipe("magnitude"))
    streamed = load_model(str(tmp_path / "out")).state_dict()
    assert all(torch.equal(tensor, streamed[name]) for name, tensor in expected.state_dict().items())


def test_only_the_files_of_the_model_are_downloaded(monkeypatch, sharded):
    import huggingface_hub

    asked = []

    def download(name, allow_patterns, ignore_patterns=()):
        asked.extend(allow_patterns)
        return str(sharded)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert models.locate("org/name") == sharded
    assert {pattern for pattern in asked if "safetensors" in pattern} == {
        file.name for file in sharded.glob("model-*")
    }


# Weights in eight bits, with their scales.


@pytest.fixture
def eight_bits(tmp_path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A checkpoint in blocks of 128 x 128 codes with a scale each, and the weights that these stand for."""
    model = tiny.model(vocab_size=len(load_tokenizer("embedded")), hidden_size=256, intermediate_size=384)
    out = tmp_path / "eight bits"
    model.save_pretrained(out)
    load_tokenizer("embedded").save_pretrained(out)
    tensors, plain = load_file(out / "model.safetensors"), {}
    for name in [name for name in tensors if "proj" in name]:
        rows, columns = tensors[name].shape
        down, across = -(-rows // 128), -(-columns // 128)
        padded = torch.zeros(down * 128, across * 128)
        padded[:rows, :columns] = tensors[name]
        blocks = padded.view(down, 128, across, 128).transpose(1, 2)
        scales = blocks.abs().amax((2, 3), keepdim=True) / 448
        codes = (blocks / scales).to(torch.float8_e4m3fn)

        def whole(blocks, shape=(rows, columns), size=padded.shape):
            return blocks.transpose(1, 2).reshape(size)[: shape[0], : shape[1]].contiguous()

        plain[name] = whole(codes.float() * scales)
        tensors[name] = whole(codes.view(torch.uint8)).view(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scales[:, :, 0, 0].contiguous()
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    about = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    (out / "config.json").write_text(json.dumps({**config, "quantization_config": about}))
    return out, plain


def test_weights_in_eight_bits_are_pruned_as_what_they_stand_for_and_saved_plain(
    capsys, eight_bits, corpus, tmp_path
):
    from transformers import AutoModelForCausalLM

    checkpoint, plain = eight_bits
    command = ["prune", checkpoint, "--score", "magnitude", "--sparsity", "0.5", "--out", tmp_path / "out"]
    code, _, err = call(capsys, *command)
    assert code == 0, err
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())
    masks = load_masks(tmp_path / "out").masks
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, weight in plain.items():
        smallest = weight.abs().argsort(dim=1, stable=True)[:, : weight.shape[1] // 2]
        kept = torch.ones_like(weight, dtype=torch.bool).scatter_(1, smallest, False)
        assert torch.equal(masks[name.removesuffix(".weight")], kept), name
        assert torch.equal(model.state_dict()[name], weight * kept), name
    assert call(capsys, "verify", tmp_path / "out")[0] == 0


def test_weights_in_eight_bits_are_not_streamed(refused, eight_bits, tmp_path):  # noqa: F811
    line = refused("prune", eight_bits[0], "--score", "magnitude", "--stream", "--out", tmp_path / "out")
    assert "leave out --stream" in line


# What is saved is read back.


@pytest.mark.parametrize("stream", [[], ["--stream", "--json"]], ids=["in memory", "streamed"])
def test_a_folder_that_reads_back_otherwise_than_it_was_written_does_not_appear(
    refused,  # noqa: F811
    checkpoint,
    corpus,
    tmp_path,
    monkeypatch,
    stream,
):
    read = ModelTensors._read

    def misread(self, key, dtype, device):
        tensor = read(self, key, dtype, device)
        return tensor if self._stored[key].file.is_relative_to(checkpoint) else tensor + 1

    monkeypatch.setattr(ModelTensors, "_read", misread)
    command = ["prune", checkpoint, "--score", "magnitude", *stream, "--out", tmp_path / "out"]
    assert "is not read back from the saved files as it was written" in refused(*command)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("module", "gone"),
    [
        ("modeling_utils", "PreTrainedModel._adjust_missing_and_unexpected_keys"),
        ("conversion_mapping", "get_model_conversion_mapping"),
    ],
)
def test_a_transformers_that_loads_otherwise_is_told_in_one_line(
    refused,  # noqa: F811
    checkpoint,
    tmp_path,
    monkeypatch,
    module,
    gone,
):
    owner = importlib.import_module(f"transformers.{module}")
    *classes, name = gone.split(".")
    for each in classes:
        owner = getattr(owner, each)
    monkeypatch.delattr(owner, name)
    line = refused(
        "prune", checkpoint, "--score", "magnitude", "--stream", "--json", "--out", tmp_path / "out"
    )
    assert "take one of 5.8.1 to 5.24.0" in line


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
