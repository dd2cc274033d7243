"""The command line: good runs write what they say, bad input gets one line and leaves nothing behind."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from symprune.base import paths
from symprune.base.records import Record
from symprune.cli import main, parser
from symprune.cli.given import settle
from symprune.cli.parser import build_parser
from symprune.methods.masks import NM, Unstructured
from symprune.methods.recipe import Recipe
from symprune.methods.refine import REFINERS
from symprune.methods.scores import SCORES
from symprune.methods.update import CHOICES, UPDATES
from symprune.models.layers import named_linears
from symprune.models.load import load_model, load_tokenizer
from symprune.pruning.mask_files import load_masks

COMMANDS = [
    "prune",
    "eval",
    "calibrate",
    "merge",
    "apply",
    "verify",
    "diff",
    "pack",
    "unpack",
    "fetch",
    "reproduce",
    "verify-report",
    "verify-records",
    "render",
    "doctor",
]


def call(capsys, *argv: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command, in this process."""
    capsys.readouterr()
    try:
        code = main([str(arg) for arg in argv])
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too; folders as empty entries."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))
    }


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    """Runs a command that must be refused with one line, and nothing written; returns that line."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def run(*argv: object) -> str:
        before = contents(work)
        code, out, err = call(capsys, *argv)
        assert code == 2, (code, err)
        assert out == ""
        assert re.fullmatch(r"symprune: error: .+\n", err), err
        assert contents(work) == before
        return err

    return run


_load_tokenizer_once = functools.cache(load_tokenizer)


@pytest.fixture
def small(checkpoint, corpus, monkeypatch):
    """Arguments of a small prune, which options appended override; all tests share one tokenizer."""
    monkeypatch.setattr("symprune.models.load_tokenizer", _load_tokenizer_once)
    return ["prune", checkpoint, "--corpus", corpus, "--seq-len", 32, "--n-calib", 2, "--out", "out/pruned"]


def broken(checkpoint: Path, folder: Path, **changes) -> Path:
    """A copy of the checkpoint with tensors changed by a function, or removed (None)."""
    shutil.copytree(checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    for name, change in changes.items():
        tensor = tensors.pop(name)
        if change is not None:
            tensors[name] = change(tensor)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def first_entry(value: float):
    """A change that sets the first entry."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[0] = value
        return tensor

    return change


@pytest.fixture
def beyond(checkpoint, tmp_path) -> Path:
    """A model whose tokenizer knows more tokens than its embedding has rows."""
    model = load_model(str(checkpoint))
    model.resize_token_embeddings(100)
    model.save_pretrained(tmp_path / "beyond")
    for file in checkpoint.glob("tok*"):
        shutil.copy(file, tmp_path / "beyond")
    return tmp_path / "beyond"


# Good runs.


def test_prune_saves_a_model_that_transformers_loads_with_its_zeros_and_its_record(
    capsys, tmp_path, small, checkpoint
):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "new" / "pruned"
    code, text, err = call(capsys, *small, "--out", out, "--score", "ria(alpha=1.0)", "--sparsity", 0.6)
    assert (code, err) == (0, "")
    assert str(out) in text
    assert "zeros are stored densely" in text
    dense, pruned = load_model(str(checkpoint)), AutoModelForCausalLM.from_pretrained(out)
    for name, linear in named_linears(pruned).items():
        weight, before = linear.weight, dense.get_parameter(f"{name}.weight")
        assert (weight == 0).sum(1).tolist() == [int(0.6 * weight.shape[1])] * weight.shape[0], name
        assert torch.equal(weight[weight != 0], before[weight != 0])
    assert torch.equal(pruned.get_input_embeddings().weight, dense.get_input_embeddings().weight)
    assert (
        AutoTokenizer.from_pretrained(out)("some text").input_ids
        == AutoTokenizer.from_pretrained(checkpoint)("some text").input_ids
    )
    record = Record.from_json((out / "symprune.json").read_text())
    assert Recipe.from_dict(record.run["recipe"]).label == "ria(alpha=1.0), 0.6 per output"
    assert record.run["calibration"]["n_calib"] == 2
    assert record.metrics["linears"].keys() == named_linears(pruned).keys()
    assert {path.name for path in out.parent.iterdir()} == {"pruned"}


def test_n_m_and_refinement_and_propagation_are_options_of_prune(capsys, tmp_path, small):
    out = tmp_path / "pruned"
    options = ["--pattern", "2:4", "--refine", "r2dsnot", "--propagate", "dense", "--score", "wanda"]
    assert call(capsys, *small, "--out", out, *options)[0] == 0
    for linear in named_linears(load_model(str(out))).values():
        assert ((linear.weight.view(-1, 4) == 0).sum(1) == 2).all()


def test_a_score_without_statistics_needs_no_calibration(capsys, tmp_path, small):
    code, out, _ = call(capsys, *small, "--out", tmp_path / "pruned", "--score", "magnitude", "--json")
    assert code == 0
    assert json.loads(out)["sparsity"] == pytest.approx(0.5)
    assert Record.from_json((tmp_path / "pruned/symprune.json").read_text()).run["calibration"] is None


def test_eval_of_a_pruned_model_prints_one_json_object(capsys, tmp_path, small, corpus):
    call(capsys, *small, "--out", tmp_path / "pruned")
    code, out, err = call(
        capsys, "eval", tmp_path / "pruned", "--corpus", corpus, "--seq-len", 32, "--n-eval", 3, "--json"
    )
    facts = json.loads(out)
    assert (code, err) == (0, "")
    assert (facts["windows"], facts["tokens"]) == (3, 96)
    assert facts["perplexity"] > 1
    assert facts["stderr"] > 0


def test_eval_in_words_names_perplexity_corpus_and_windows(capsys, checkpoint, corpus):
    code, out, _ = call(capsys, "eval", checkpoint, "--corpus", corpus, "--seq-len", 32, "--n-eval", 1)
    assert code == 0
    assert out.startswith("perplexity ")
    assert str(corpus) in out
    assert "one window of 32 tokens" in out


def test_a_streamed_model_has_its_masks_beside_it_as_one_pruned_in_memory(capsys, tmp_path, small):
    found = {}
    for name, options in {"streamed": ["--stream"], "in_memory": []}.items():
        assert call(capsys, *small, "--out", tmp_path / name, *options)[0] == 0
        code, out, _ = call(capsys, "verify", tmp_path / name, "--json")
        assert code == 0
        found[name] = json.loads(out), load_masks(tmp_path / name)
    (streamed, masks), (in_memory, expected) = found.values()
    assert streamed == in_memory
    assert len(streamed["checked"]) == 3, "counts, hashes and zeros"
    assert list(masks.masks) == list(expected.masks)
    assert all(torch.equal(masks.masks[name], mask) for name, mask in expected.masks.items())
    assert (masks.weights, masks.record.run) == (expected.weights, expected.record.run)
    assert masks.record == Record.from_json((tmp_path / "streamed/symprune.json").read_text())


def test_linears_are_left_dense_and_have_sparsities_of_their_own_by_name(capsys, tmp_path, small):
    options = [
        "--dense",
        "layers.0.*",
        "--sparsity",
        "mlp.*=0.7",
        "--sparsity",
        "0.4",
        "--sparsity",
        "q_proj=2:4",
    ]
    for name, stream in {"streamed": ["--stream"], "in_memory": []}.items():
        code, out, err = call(capsys, *small, "--out", tmp_path / name, *options, *stream)
        assert (code, err if not stream else "") == (0, "")
        assert re.search(r"left dense: 7 \(by the recipe\), so \d\d\.\d\d% of all matrices", out), out
        assert call(capsys, "verify", tmp_path / name)[0] == 0
        card = (tmp_path / name / "README.md").read_text()
        front = yaml.safe_load(card.split("---\n")[1])
        assert (front["library_name"], front["tags"]) == ("transformers", ["pruned", "symprune"])
        assert "base_model" not in front, "a folder is no hub id"
        assert "`ria, 0.4 per output, layers.0.*: dense, mlp.*: 0.7 per output, q_proj: 2:4`" in card
        assert "2 windows of 32 tokens" in card
        assert "no smaller and no faster" in card
        record = json.loads((tmp_path / name / "symprune.json").read_text())
        sparsities = {".".join(n.split(".")[2:]): x for n, x in record["metrics"]["linears"].items()}
        assert not any(name.startswith("0.") for name in sparsities)
        assert sparsities["1.mlp.down_proj"] == pytest.approx(28 / 40)
        assert sparsities["1.self_attn.q_proj"] == 0.5
        assert sparsities["1.self_attn.k_proj"] == pytest.approx(6 / 16)  # floor(0.4 * 16)
    weights = [load_model(str(tmp_path / name)).state_dict() for name in ("streamed", "in_memory")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    dense = str(small[1])
    code, out, _ = call(
        capsys, "apply", dense, tmp_path / "in_memory", "--out", tmp_path / "applied", "--json"
    )
    assert (code, json.loads(out)["other_weights"]) == (0, [])
    assert (tmp_path / "applied/README.md").is_file()
    code, out, _ = call(capsys, "diff", tmp_path / "applied", tmp_path / "streamed")
    assert (code, out.splitlines()[1].split()) == (0, ["total", "1.0000", "1.0000"])


def test_the_same_command_writes_the_same_weights(capsys, tmp_path, small):
    for name in ("a", "b"):
        assert call(capsys, *small, "--out", tmp_path / name, "--score", "stochria")[0] == 0
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_json_of_doctor_is_one_object_with_a_verdict_for_everything(capsys, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("socket.create_connection", refuse)
    code, out, _ = call(capsys, "doctor", "--json")
    findings = json.loads(out)
    assert code == 0
    assert {
        "processor",
        "memory",
        "disk",
        "GPU",
        "embedded model",
        "embedded corpus",
        "hub",
    } <= findings.keys()
    assert all(isinstance(finding["ok"], bool) and finding["found"] for finding in findings.values())
    assert findings["hub"]["ok"] is False
    assert "SYMPRUNE_DATA" in findings["hub"]["found"]
    code, out, _ = call(capsys, "doctor")
    assert len(out.splitlines()) == len(findings)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_teaches(capsys, command):
    code, out, _ = call(capsys, command, "--help")
    assert code == 0
    assert f"symprune {command}" in out
    assert f"example: symprune {command}" in out
    assert re.search(r"\n\n[A-Z][^\n]", out), "a description"
    assert "--json" in out


@pytest.mark.parametrize(
    ("refine", "told"),
    [
        ("dsnot", True),
        ("r2dsnot", True),
        ("dsnot(max_cycles=3)", False),
        ("none", False),
        ("sketch_swap(rank=8)", False),
    ],
)
def test_a_refinement_with_defaults_that_did_not_earn_themselves_says_so(
    refine, told, capsys, small, tmp_path
):
    options = [*small[:-1], tmp_path / "out", "--refine", refine, "--propagate", "dense"]
    code, out, _ = call(capsys, *options)
    assert code == 0
    assert (f"\n{refine}: with its defaults it raised" in out) == told
    assert ("with its defaults" in out) == told


def test_help_lists_every_method_in_a_line_of_its_own(capsys):
    _, out, _ = call(capsys, "prune", "--help")
    for name, cls in (
        SCORES | CHOICES | REFINERS | UPDATES | {"n:m": NM, "unstructured": Unstructured}
    ).items():
        assert f"\n  {name:<16} {cls.__doc__.splitlines()[0]}\n" in out
    assert "refinements," not in call(capsys, "eval", "--help")[1]


def test_help_of_reproduce_lists_the_profiles(capsys):
    _, out, _ = call(capsys, "reproduce", "--help")
    for file in paths.PARAMS.glob("*.yaml"):
        assert f"\n  {file.stem:<16} {file.read_text().splitlines()[0].removeprefix('# ')}\n" in out


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_come_at_once(option):
    code = (
        "import sys\nfrom symprune.cli import main\n"
        "try:\n    main([sys.argv[1]])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'numpy', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code, option], check=True, capture_output=True)


def test_help_lists_the_commands(capsys):
    code, out, _ = call(capsys, "--help")
    assert code == 0
    assert re.findall(r"^    ([\w-]+)", out, flags=re.M) == COMMANDS
    assert " ".join(parser.__doc__.split()) == f"The `symprune` command: {', '.join(COMMANDS)}."
    assert "embedded" in out


# Bad input.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--score", "wandaa"], ["unknown score 'wandaa'", "wanda"]),
        (["--score", "ria(alfa=1)"], ["hyperparameter of ria", "alpha"]),
        (["--score", "wanda(alpha=1)"], ["wanda has no hyperparameters"]),
        (["--score", "ria(alpha='much')"], ["alpha", "'much'"]),
        (["--score", "ria(alpha=-1)"], ["alpha", "-1"]),
        (["--score", "ria("], ["cannot read the score"]),
        (["--score", "ria(__import__('os'))"], ["cannot read the score"]),
        (["--score", ""], ["cannot read the score"]),
        (["--refine", "dsno"], ["unknown refinement 'dsno'", "dsnot"]),
        (["--refine", "dsnot(max_cycle=3)"], ["max_cycles"]),
        (["--pattern", "2-4"], ["unknown pattern '2-4'", "2:4"]),
        (["--pattern", "structured"], ["unknown pattern", "unstructured"]),
        (["--pattern", "4:2"], ["0 < n <= m", "4:2"]),
        (["--pattern", "0:4"], ["0 < n <= m"]),
        (["--pattern", "1:3"], ["model.layers.0.self_attn.q_proj", "16"]),
        (["--pattern", "4:16"], ["model.layers.0.mlp.down_proj", "40"]),
        (["--sparsity", "1"], ["[0, 1)", "1.0"]),
        (["--sparsity", "-0.1"], ["[0, 1)"]),
        (["--sparsity", "nan"], ["[0, 1)"]),
        (["--sparsity", "half"], ["--sparsity", "half"]),
        (["--sparsity", "=0.7"], ["--sparsity", "'=0.7'", "'mlp.*=0.7'"]),
        (["--sparsity", "mpl.*=0.7"], ["'mpl.*' fits no linear", "mlp.*"]),
        (["--sparsity", "mlp.*=much"], ["unknown pattern 'much'"]),
        (["--dense", "layers.9.*"], ["'layers.9.*' fits no linear", "layers.0.*"]),
        (["--dense", "*"], ["every linear", "dense"]),
        (["--dense", "mlp.*", "--sparsity", "mlp.up_proj=0.7"], ["'mlp.up_proj' decides of no linear"]),
        (["--pattern", "2:4", "--sparsity", "0.7", "--dense", "mlp.*"], ["--sparsity would be ignored"]),
        (["--group", "outputs"], ["unknown group 'outputs'", "output"]),
        (["--propagate", "prune"], ["unknown propagate 'prune'", "pruned"]),
        (["--dtype", "float31"], ["unknown dtype 'float31'", "float32"]),
        (["--device", "bogus"], ["'bogus'", "cpu"]),
        (["--device", "meta"], ["'meta'"]),
        (["--device", "cuda:99"], ["'cuda:99'"]),
        (["--corpus", "wikitext"], ["unknown corpus 'wikitext'", "wikitext2"]),
        (
            ["--corpus", "wikitext2"],
            ["cannot reach the hub", "$SYMPRUNE_DATA/Salesforce/wikitext/wikitext-2-raw-v1/train.jsonl"],
        ),
        (
            ["--corpus", "c4"],
            ["cannot reach the hub", "$SYMPRUNE_DATA/allenai/c4/en/c4-train.00000-of-01024.json.gz"],
        ),
        (["--seq-len", "129"], ["seq_len 129", "128 positions"]),
        (["--seq-len", "100000"], ["too short", "100000"]),
        (["--seq-len", "0"], ["--seq-len", "at least 1"]),
        (["--n-calib", "0"], ["--n-calib", "at least 1"]),
        (["--n-calib", "-3"], ["--n-calib", "at least 1"]),
        (["--n-calib", "100000000000"], ["GiB", "n_calib"]),
        (["--batch-size", "0"], ["--batch-size", "at least 1"]),
        (["--bogus", "1"], ["--bogus"]),
    ],
    ids=lambda value: " ".join(map(str, value)) if value and str(value[0]).startswith("--") else "",
)
def test_prune_refuses_bad_options_with_one_line(refused, small, options, words):
    line = refused(*small, *options)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--split", "test"], ["unknown split 'test'", "evaluation"]),
        (["--n-eval", "0"], ["--n-eval", "at least 1"]),
        (["--n-eval", "1000"], ["too short", "lower seq_len or n_eval"]),
        (["--seq-len", "1"], ["at least 2 tokens"]),
        (["--seq-len", "129"], ["seq_len 129", "128 positions"]),
        (["--batch-size", "0"], ["--batch-size"]),
        (["--device", "cuda:99"], ["'cuda:99'"]),
        (["--dtype", "int8"], ["unknown dtype"]),
    ],
)
def test_eval_refuses_bad_options_with_one_line(refused, checkpoint, corpus, options, words):
    line = refused("eval", checkpoint, "--corpus", corpus, "--seq-len", 32, *options)
    assert all(word in line for word in words), line


CONTRADICTIONS = [
    ("prune MODEL --out a --pattern 2:4 --sparsity 0.9", ["--sparsity", "--pattern 2:4"]),
    ("prune MODEL --out a --pattern 2:4 --sparsity 0.5", ["--sparsity", "--pattern 2:4"]),
    ("prune MODEL --out a --pattern 2:4 --sparsity 0.9 --group layer", ["--sparsity, --group", "2:4"]),
    ("prune MODEL --out a --pattern 4:8 --group output", ["--group", "--pattern 4:8"]),
    ("prune MODEL --out a --pattern 0.6 --sparsity 0.6", ["--sparsity", "--pattern 0.6"]),
    *(
        (
            f"prune MODEL --out a --statistics MASKS --{option}",
            [f"--{option.split()[0]} would", "--statistics"],
        )
        for option in ["corpus c4", "n-calib 16", "seq-len 32", "seed 0", "batch-size 2", "propagate pruned"]
    ),
    *(
        (f"prune MODEL --out a --stream --{option}", [f"--{option.split()[0]} would", "--stream"])
        for option in ["masks m", "work w", "layers-path model.layers"]
    ),
    ("prune MODEL --stream", ["--stream", "--out DIR"]),
    ("prune MODEL --out a --memory 6GiB", ["--memory", "give --stream"]),
    *(
        (f"eval MODEL --tasks continuation --{option}", [f"--{option.split()[0]} would", "--tasks"])
        for option in ["corpus embedded", "seq-len 512", "split evaluation", "n-eval 2"]
    ),
    ("eval MODEL --limit 3", ["--limit", "give --tasks"]),
    ("eval MODEL --tasks=", ["unknown task"]),
    ("calibrate MODEL --out a --output-side gradients", ["--output-side", "give --gather output_norm"]),
    ("calibrate MODEL --out a --output-side activations --gather gram", ["--output-side", "output_norm"]),
    (
        "calibrate MODEL --out a --gather output_norm --output-side gradients --batch-size 2",
        ["--batch-size", "gradients"],
    ),
    ("verify MASKS --layers-path model.layers", ["--layers-path", "--model"]),
    ("reproduce --shard 1/2 --again", ["--again", "--shard"]),
    ("reproduce --shard 1/2 --address x --executor ray", ["--executor, --address", "--shard"]),
    ("reproduce --address x", ["--address", "--executor ray"]),
]


@pytest.fixture(scope="module")
def masks(checkpoint, tmp_path_factory) -> Path:
    """A mask file."""
    file = tmp_path_factory.mktemp("masks") / "m.safetensors"
    assert main(["prune", str(checkpoint), "--score", "magnitude", "--masks", str(file)]) == 0
    return file


@pytest.mark.parametrize(("line", "words"), CONTRADICTIONS, ids=[line for line, _ in CONTRADICTIONS])
def test_an_option_that_would_be_ignored_is_refused(refused, checkpoint, masks, monkeypatch, line, words):
    monkeypatch.setattr("symprune.models.load_model", None)  # refused before anything is loaded
    places = {"MODEL": str(checkpoint), "MASKS": str(masks)}
    said = refused(*[places.get(word, word) for word in line.split()])
    assert all(word in said for word in words), said


def test_what_a_score_without_statistics_does_not_read_is_told(capsys, tmp_path, small):
    options = ["--score", "magnitude", "--propagate", "dense"]
    code, out, err = call(capsys, *small, *options, "--out", tmp_path / "a")
    assert (code, err) == (0, "")
    unread = "--corpus, --n-calib, --seq-len, --propagate"
    assert out.endswith(f"\nmagnitude, 0.5 per output reads no calibration text: {unread} changed nothing\n")
    code, out, _ = call(capsys, *small, *options, "--out", tmp_path / "b", "--json")
    assert json.loads(out)["not_read"] == unread
    code, out, _ = call(capsys, *small[:2], *options[:2], "--out", tmp_path / "c", "--json")
    assert code == 0
    assert "not_read" not in json.loads(out)


def test_defaults_that_help_shows_are_those_that_are_taken():
    parsed = build_parser().parse_args(["prune", "m", "--seed", "0", "--n-calib", "16", "--group=layer"])
    args = settle(parsed)
    assert (args.corpus, args.n_calib, args.seed, args.sparsity, args.stream) == (
        "embedded",
        16,
        0,
        0.5,
        False,
    )
    assert args.given == {"model", "run", "seed", "n_calib", "group"}


@pytest.mark.parametrize("command", [["prune", "--out", "out"], ["eval"]])
@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("embeded", ["unknown model 'embeded'", "embedded"]),
        ("./nowhere", ["unknown model"]),
        ("/no/such/folder", ["unknown model"]),
        ("", ["holds no config.json"]),  # the current folder
        ("organisation/no-such-model", ["no folder", "cannot reach the hub", "SYMPRUNE_DATA", "HF_HOME"]),
        ("not a valid/hub id!", ["unknown model"]),
    ],
)
def test_an_unknown_model_is_named_with_the_way_out(refused, command, model, words):
    line = refused(command[0], model, *command[1:])
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    "command",
    [
        ["prune", "--n-calib", "2", "--out", "out"],
        ["prune", "--n-calib", "2", "--out", "out", "--stream", "--json"],
        ["calibrate", "--n-calib", "2", "--out", "out"],
        ["eval"],
    ],
    ids=" ".join,
)
def test_tokens_that_the_model_does_not_know_are_named(refused, beyond, corpus, command):
    line = refused(command[0], beyond, *command[1:], "--corpus", corpus, "--seq-len", 32)
    assert re.search(r"token id \d+ is not in the vocabulary of .*beyond, whose embedding has 100 rows", line)


def test_zero_shot_names_them_too(refused, beyond):
    line = refused("eval", beyond, "--tasks", "continuation", "--limit", 2)
    assert "whose embedding has 100 rows" in line


def test_a_folder_without_config_or_weights_is_no_model(refused, checkpoint, corpus, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    assert "no config.json" in refused("eval", folder)
    shutil.copy(checkpoint / "config.json", folder)
    assert "no weights" in refused("eval", folder)
    (folder / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes())
    assert "tokenizer" in refused("eval", folder, "--corpus", corpus)


@pytest.mark.parametrize("config", ["{", "[]", "{}", '{"model_type": "no-such-family"}', "\x00\x01"])
def test_a_broken_config_is_refused(refused, checkpoint, corpus, tmp_path, config):
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    (folder / "config.json").write_text(config)
    assert str(folder) in refused("eval", folder, "--corpus", corpus, "--seq-len", 32)


@pytest.mark.parametrize("length", [0, 5, 200, 10_000, -1])
def test_a_truncated_checkpoint_is_refused(refused, checkpoint, corpus, tmp_path, length):
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    line = refused("eval", folder, "--corpus", corpus, "--seq-len", 32)
    assert f"{file} is not a readable safetensors file" in line


def test_junk_in_place_of_weights_is_refused(refused, checkpoint, corpus, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    assert "not a readable safetensors file" in refused("eval", folder, "--corpus", corpus, "--seq-len", 32)


def test_a_checkpoint_that_lacks_a_tensor_is_not_filled_with_random_numbers(
    refused, checkpoint, corpus, tmp_path
):
    folder = broken(checkpoint, tmp_path / "model", **{"model.layers.1.mlp.up_proj.weight": None})
    line = refused("eval", folder, "--corpus", corpus, "--seq-len", 32)
    assert "model.layers.1.mlp.up_proj.weight" in line
    assert "incomplete" in line


def test_a_checkpoint_of_another_shape_is_refused(refused, checkpoint, corpus, tmp_path):
    folder = broken(
        checkpoint, tmp_path / "model", **{"model.layers.1.mlp.up_proj.weight": lambda w: w[:8].clone()}
    )
    assert str(folder) in refused("eval", folder, "--corpus", corpus, "--seq-len", 32)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("score", ["magnitude", "ria"])
@pytest.mark.parametrize(
    "name",
    ["model.layers.1.mlp.down_proj.weight", "model.layers.1.input_layernorm.weight", "model.norm.weight"],
)
def test_a_weight_that_is_not_finite_is_named(refused, small, checkpoint, tmp_path, value, score, name):
    folder = broken(checkpoint, tmp_path / "model", **{name: first_entry(value)})
    line = refused(small[0], folder, *small[2:], "--score", score)
    assert f"NaN or inf in {name}" in line


@pytest.mark.parametrize("propagate", ["pruned", "dense"])
def test_activations_that_are_not_finite_name_the_linear_that_receives_them(
    refused, small, checkpoint, tmp_path, propagate
):
    folder = broken(
        checkpoint,
        tmp_path / "model",
        **{"model.layers.1.post_attention_layernorm.weight": lambda w: torch.full_like(w, 3e38)},
    )
    line = refused(small[0], folder, *small[2:], "--propagate", propagate)
    assert "NaN or inf in the inputs of" in line
    assert "mlp.gate_proj" in line


def test_too_little_memory_is_predicted(refused, small, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10, total=10))
    assert "GiB" in refused(*small)
    line = refused("eval", small[1], "--corpus", small[3], "--seq-len", 32)
    assert f"the weights of {small[1]} need 0.0 GiB" in line


def test_too_little_disk_is_predicted(refused, small, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000, total=10**12, used=0))
    line = refused(*small)
    assert "disk" in line
    assert "--out" in line


def test_an_output_that_exists_is_left_untouched(refused, small, tmp_path):
    folder = tmp_path / "work" / "precious"
    folder.mkdir()
    (folder / "model.safetensors").write_text("years of work")
    file = tmp_path / "work" / "file"
    file.write_text("more work")
    dangling = tmp_path / "work" / "link"
    dangling.symlink_to("nowhere")
    for out in (folder, file, dangling):
        assert "exists already" in refused(*small, "--out", out)
    assert refused(*small, "--out", file / "below")  # a file is no place for a folder
    assert dangling.is_symlink()


def test_what_fails_while_saving_leaves_nothing(capsys, small, tmp_path, monkeypatch):
    from transformers import PreTrainedModel

    real = PreTrainedModel.save_pretrained

    def fill_the_disk(self, folder, **options):
        real(self, folder, **options)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", fill_the_disk)
    code, _, err = call(capsys, *small, "--out", tmp_path / "pruned")
    assert code == 2
    assert err.count("\n") == 1
    assert "No space left" in err
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing_and_says_so(capsys, small, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("symprune.cli.pruning.provenance", interrupt)
    code, _, err = call(capsys, *small, "--out", tmp_path / "pruned")
    assert code == 130
    assert err == "symprune: interrupted; what was finished is kept\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.txt", b"", ["empty"]),
        ("blank.txt", b" \n\n\t", ["empty"]),
        ("short.txt", b"too short", ["too short"]),
        ("junk.txt", bytes(range(256)) * 10, ["UTF-8"]),
        ("junk.jsonl", b"\x89PNG\r\n\x1a\n\x00", ["neither"]),
        ("empty.jsonl", b"", ["empty"]),
        ("cut.jsonl", b'{"text": "one"}\n{"text": "tw', ["neither"]),
        ("nofield.jsonl", b'{"body": "one"}\n', ["'text' field"]),
        ("number.jsonl", b'{"text": 1}\n', ["'text' field"]),
        ("list.jsonl", b"[1]\n", ["'text' field"]),
        ("deep.jsonl", b"[" * 100_000, ["'text' field"]),
        ("surrogate.jsonl", b'{"text": "\\ud800 ' + b"word " * 400 + b'"}\n', ["UTF-8"]),
        ("junk.json.gz", b"\x1f\x8b\x08junk", ["neither"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_corpus_that_cannot_be_used_is_refused(refused, small, tmp_path, name, content, words):
    file = tmp_path / name
    file.write_bytes(content)
    for command in (small, ["eval", small[1], "--seq-len", 32]):
        line = refused(*command, "--corpus", file)
        assert all(word in line for word in [name, *words]), line


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["reproduce", "--profile", "cpuu"], ["unknown profile 'cpuu'", "cpu"]),
        (["reproduce", "98", "--profile", "cpu"], ["unknown notebook '98'"]),
        (["render", "quickstart"], ["unknown notebook 'quickstart'", "00_quickstart"]),
        ([], ["COMMAND"]),
        (["prun"], ["prun"]),
        (["prune", "embedded"], ["--out"]),
    ],
)
def test_other_commands_refuse_what_they_do_not_know(refused, argv, words):
    line = refused(*argv)
    assert all(word in line for word in words), line


def test_reproduce_outside_the_source_says_what_to_set(refused, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "PARAMS", tmp_path / "papermill_params")
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path / "notebooks")
    assert "SYMPRUNE_ROOT" in refused("reproduce")
    assert "SYMPRUNE_ROOT" in refused("render")


def test_debug_shows_the_traceback(small):
    with pytest.raises(ValueError, match="unknown score"):
        main([str(arg) for arg in [*small, "--score", "wandaa", "--debug"]])


def test_a_bug_is_one_line_too_with_another_exit_code(capsys, checkpoint, monkeypatch):
    def bug(*_, **__):
        raise KeyError("oops")

    monkeypatch.setattr("symprune.text.corpora.evaluation_windows", bug)
    code, _, err = call(capsys, "eval", checkpoint)
    assert code == 1
    assert err == "symprune: error: KeyError: 'oops' (--debug shows where)\n"


def test_the_real_command_refuses_and_serves(checkpoint, corpus, tmp_path):
    def command(*argv: object) -> subprocess.CompletedProcess:
        line = [str(Path(sys.executable).with_name("symprune")), *map(str, argv)]
        return subprocess.run(
            line,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            timeout=60,
        )

    bad = command("prune", "organisation/no-such-model", "--out", "out")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert re.fullmatch(r"symprune: error: no folder organisation/no-such-model is here.+\n", bad.stderr)
    good = command(
        "prune", checkpoint, "--corpus", corpus, "--seq-len", 32, "--n-calib", 2, "--out", "out", "--json"
    )
    assert (good.returncode, good.stderr) == (0, "")
    assert json.loads(good.stdout)["out"] == "out"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
