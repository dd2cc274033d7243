"""Streamed pruning ends with the bits of pruning in memory, never holds two decoder layers, and keeps to its
budget.
"""

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import tiny
import torch
import transformers as tf
from safetensors.torch import load_file
from transformers.modeling_outputs import BaseModelOutputWithPast

from symprune import (
    NM,
    RIA,
    SCORES,
    Magnitude,
    R2DSnoT,
    Recipe,
    SymWanda,
    Unstructured,
    UserError,
    Wanda,
    prune,
    save_masks,
)
from symprune.base import paths
from symprune.methods.refine import ExactSwap, SketchSwap
from symprune.models.layers import decoder_layers, linears_by_layer, named_linears, weight_view
from symprune.models.load import load_model
from symprune.pruning.calibrate import collecting, gather
from symprune.pruning.checkpoint import random_weights, skeleton
from symprune.pruning.cost import Cost, Shape
from symprune.pruning.runner import LayerRunner
from symprune.pruning.stream import OnDisk, StreamedRun, Streaming, plan, prune_checkpoint

WANDA = Recipe(Wanda(), Unstructured(0.5))


def saved(folder, family: str = "llama", **changes):
    """A tiny model as save_pretrained writes it, and its name."""
    model = tiny.model(family, **changes)
    model.save_pretrained(folder / "dense", max_shard_size="20kB")
    return str(folder / "dense")


def same_weights(name: str, model: torch.nn.Module) -> bool:
    streamed = load_model(name).state_dict()
    return all(torch.equal(streamed[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_every_family_streams_to_the_bits_of_the_run_in_memory(family, tmp_path):
    name, windows = saved(tmp_path, family), tiny.windows(3)
    model = load_model(name)
    expected = prune(model, windows, WANDA, keep_masks=True)
    streamed = StreamedRun(name, windows, WANDA, how=Streaming(keep_masks=True))
    with streamed.into(tmp_path / "out") as (folder, found):
        (folder / "beside").write_text("what the caller adds")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out/beside").is_file()
    assert same_weights(str(tmp_path / "out"), model)
    assert found.linears == expected.linears
    streamed.masks.save(tmp_path / "streamed")
    save_masks(tmp_path / "in memory", expected.masks, model)
    assert (tmp_path / "streamed").read_bytes() == (tmp_path / "in memory").read_bytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", tiny.MIXTURES)
def test_experts_that_are_saved_one_by_one_are_streamed_and_saved_so_again(family, dtype, tmp_path):
    from transformers import AutoModelForCausalLM

    name, windows = saved(tmp_path, family), tiny.windows(3)
    names = {key for file in (tmp_path / "dense").glob("*.safetensors") for key in load_file(file)}
    assert sum(".experts.2." in key for key in names) == 9, "three matrices of an expert in each layer"
    expected = load_model(name, dtype)
    report = prune(expected, windows, WANDA)
    streamed = prune_checkpoint(name, tmp_path / "out", windows, WANDA, dtype=dtype)
    assert streamed.linears == report.linears
    files = (tmp_path / "out").glob("*.safetensors")
    assert {key for file in files for key in load_file(file)} == names
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=getattr(torch, dtype)).state_dict()
    for key, tensor in expected.state_dict().items():
        assert found[key].dtype == tensor.dtype
        assert torch.equal(found[key], tensor), key


def test_a_head_that_the_files_hold_though_the_config_ties_it_stays_apart(tmp_path):
    from safetensors.torch import save_file

    model = tiny.model(tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "dense")
    file = tmp_path / "dense/model.safetensors"
    head = {"lm_head.weight": torch.randn(96, 32)}
    save_file({**load_file(file), **head}, file, {"format": "pt"})
    name, windows = str(tmp_path / "dense"), tiny.windows(3)
    expected = load_model(name)
    assert not torch.equal(expected.lm_head.weight, expected.model.embed_tokens.weight)
    prune(expected, windows, WANDA)
    prune_checkpoint(name, tmp_path / "out", windows, WANDA)
    assert same_weights(str(tmp_path / "out"), expected)


def test_a_tensor_of_another_shape_is_named(tmp_path):
    name = saved(tmp_path)
    config = json.loads((tmp_path / "dense/config.json").read_text())
    (tmp_path / "dense/config.json").write_text(json.dumps({**config, "intermediate_size": 50}))
    with pytest.raises(UserError, match=r"layers\.0\.mlp\.down_proj\.weight .* of shape \[32, 48\]"):
        prune_checkpoint(name, tmp_path / "out", tiny.windows(2), WANDA)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(RIA(), NM(2, 4), R2DSnoT()),
        Recipe(SymWanda()),
        Recipe(Wanda(), NM(2, 4), ExactSwap()),
        Recipe(Wanda(), NM(2, 4), SketchSwap(rank=8)),
        Recipe(Magnitude()),
    ],
)
@pytest.mark.parametrize("propagate", ["pruned", "dense"])
@pytest.mark.parametrize("spill", [False, True])
def test_recipes_and_propagation_and_hidden_states_on_disk_change_no_bit(recipe, propagate, spill, tmp_path):
    name, windows = saved(tmp_path, tie_word_embeddings=True), tiny.windows(5)
    model = load_model(name)
    prune(model, windows, recipe, propagate, batch_size=2)
    streamed = StreamedRun(name, windows, recipe, propagate, Streaming(batch_size=2))
    streamed.plan = replace(streamed.plan, spill=spill)
    with streamed.into(tmp_path / "out") as (folder, _):
        spilled = {path.name for path in folder.with_name("out.hidden").glob("*")}
    assert spilled == ({"0", "1", "2"} if spill and recipe.uses else set())  # five windows in batches of two
    assert same_weights(str(tmp_path / "out"), model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "out"]


def test_statistics_gathered_before_stream_too(tmp_path):
    name, windows = saved(tmp_path, "gpt2"), tiny.windows(3)
    model = load_model(name)
    statistics = gather(model, windows)
    prune(model, statistics, WANDA, "dense")
    prune_checkpoint(name, tmp_path / "out", statistics, WANDA, "dense")
    assert same_weights(str(tmp_path / "out"), model)


def test_half_precision_streams_in_the_dtype_asked_for(tmp_path):
    name, windows = saved(tmp_path), tiny.windows(3)
    model = load_model(name, "bfloat16")
    prune(model, windows, WANDA)
    prune_checkpoint(name, tmp_path / "out", windows, WANDA, dtype="bfloat16")
    out = load_model(str(tmp_path / "out"), "bfloat16")
    assert all(torch.equal(tensor, out.state_dict()[key]) for key, tensor in model.state_dict().items())
    assert {
        tensor.dtype
        for file in (tmp_path / "out").glob("*.safetensors")
        for tensor in load_file(file).values()
    } == {torch.bfloat16}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["gpt2", "qwen2-moe"])
def test_the_numbers_of_a_file_lie_as_those_in_memory(family, dtype, tmp_path):
    name = saved(tmp_path, family)
    prune_checkpoint(name, tmp_path / "out", None, Recipe(Magnitude()), dtype=dtype)
    files = [file.read_bytes() for file in (tmp_path / "out").glob("*.safetensors")]
    assert len(files) > 3
    assert {(8 + int.from_bytes(file[:8], "little")) % 64 for file in files} == {0}


@dataclass(frozen=True)
class Watching:
    """Wanda, with a note of the decoder layers that are in memory whenever a linear is scored."""

    uses: ClassVar[tuple[str, ...]] = ("input_norm",)
    models: ClassVar[list] = []
    seen: ClassVar[list] = []

    def __call__(self, weight, stats):
        layers = decoder_layers(self.models[0])
        self.seen.append([i for i, layer in enumerate(layers) if not next(layer.parameters()).is_meta])
        assert self.models[0].get_input_embeddings().weight.is_meta
        return Wanda()(weight, stats)


def test_never_more_than_one_decoder_layer_is_in_memory(tmp_path, monkeypatch):
    monkeypatch.setitem(SCORES, "watching", Watching)
    streamed = StreamedRun(saved(tmp_path), tiny.windows(2), Recipe(Watching(), Unstructured(0.5)))
    Watching.models.append(streamed.model)
    with streamed.into(tmp_path / "out"):
        assert Watching.seen == [[0]] * 7 + [[1]] * 7 + [[2]] * 7


def test_a_checkpoint_without_a_prefix_on_its_names_is_read(tmp_path):
    from safetensors.torch import save_file

    name = saved(tmp_path, "gpt2")
    files = sorted((tmp_path / "dense").glob("*.safetensors"))
    tensors = {
        key.removeprefix("transformer."): tensor for file in files for key, tensor in load_file(file).items()
    }
    for file in [*files, tmp_path / "dense/model.safetensors.index.json"]:
        file.unlink()
    save_file(tensors, tmp_path / "dense/model.safetensors", {"format": "pt"})
    model = load_model(name)
    prune(model, tiny.windows(2), WANDA)
    prune_checkpoint(name, tmp_path / "out", tiny.windows(2), WANDA)
    assert same_weights(str(tmp_path / "out"), model)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"memory": 1000}, "raise --memory"),
        ({"dtype": "float31"}, "unknown dtype"),
        ({"device": "auto"}, "one device"),
        ({"recipe": Recipe(Wanda(), NM(1, 5))}, "q_proj"),
    ],
)
def test_what_cannot_be_streamed_is_refused_and_leaves_nothing(options, words, tmp_path):
    name = saved(tmp_path)
    with pytest.raises(UserError, match=words):
        prune_checkpoint(name, tmp_path / "out", tiny.windows(2), **{"recipe": WANDA, **options})
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def scaled_between_the_layers(model, input_ids, **_):
    """A forward of LlamaModel with something between its layers that nobody sees who calls them."""
    hidden = model.embed_tokens(input_ids)
    positions = torch.arange(hidden.shape[1])[None]
    given = {"position_ids": positions, "position_embeddings": model.rotary_emb(hidden, positions)}
    for layer in model.layers:
        hidden = 1.5 * layer(hidden, attention_mask=None, **given)
    return BaseModelOutputWithPast(last_hidden_state=model.norm(hidden))


def test_what_runs_otherwise_than_layer_by_layer_is_refused_and_streams_from_statistics(
    tmp_path, monkeypatch
):
    name, windows = saved(tmp_path), tiny.windows(3)
    monkeypatch.setattr(tf.LlamaModel, "forward", scaled_between_the_layers)
    with pytest.raises(UserError, match="leave out --stream"):
        prune_checkpoint(name, tmp_path / "out", windows, WANDA)
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]
    model = load_model(name)
    with pytest.warns(UserWarning, match="1 forward passes of the whole model"):
        statistics = gather(model, windows)
    prune(model, statistics, WANDA, "dense")
    prune_checkpoint(name, tmp_path / "out", statistics, WANDA, "dense")
    assert same_weights(str(tmp_path / "out"), model)


@pytest.mark.parametrize("recipe", [WANDA, Recipe(Magnitude())])
def test_a_masked_model_is_not_streamed_as_if_it_were_causal(recipe, tmp_path):
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    tf.BertLMHeadModel(tf.BertConfig(vocab_size=96, **small)).save_pretrained(tmp_path / "dense")
    with pytest.raises(UserError, match="is not causal"):
        prune_checkpoint(str(tmp_path / "dense"), tmp_path / "out", tiny.windows(2), recipe)


def test_a_skeleton_runs_on_random_weights_in_the_memory_of_its_largest_tensor(tmp_path):
    model = skeleton(Path(saved(tmp_path, "mixtral", tie_word_embeddings=True)))
    before = dict(model.named_parameters(remove_duplicate=False))
    with random_weights(model, "cpu"):
        storages = {p.untyped_storage().data_ptr(): p.untyped_storage() for p in model.parameters()}
        matrices = {p.untyped_storage().data_ptr() for p in model.parameters() if p.dim() > 1}
        assert len(matrices) == 1
        assert storages[matrices.pop()].nbytes() == max(p.nbytes for p in model.parameters())
        assert model.lm_head.weight is model.get_input_embeddings().weight
        logits = model(input_ids=tiny.windows(2), use_cache=False).logits
        assert logits.isfinite().all()
        assert logits[0].std(dim=0).min() > 1e-3, "every token matters"
    after = dict(model.named_parameters(remove_duplicate=False))
    assert all(tensor.is_meta and tensor is before[name] for name, tensor in after.items())


@pytest.mark.parametrize(
    "broken",
    ["model.layers.2.mlp.down_proj.weight", "model.layers.1.input_layernorm.weight", "model.norm.weight"],
)
def test_a_missing_tensor_and_a_broken_weight_are_named(tmp_path, broken):
    from safetensors.torch import save_file

    name = saved(tmp_path)
    files = {file: load_file(file) for file in sorted((tmp_path / "dense").glob("*.safetensors"))}
    lost = "model.layers.1.mlp.up_proj.weight"
    (file,) = [file for file, tensors in files.items() if broken in tensors]
    files[file][broken].view(-1)[0] = float("nan")
    save_file(files[file], file, {"format": "pt"})
    for recipe in (WANDA, Recipe("magnitude")):
        with pytest.raises(UserError, match=f"NaN or inf in {broken}"):
            prune_checkpoint(name, tmp_path / "out", tiny.windows(2), recipe)
    assert not (tmp_path / "out").exists()
    (file,) = [file for file, tensors in files.items() if lost in tensors]
    save_file({key: tensor for key, tensor in files[file].items() if key != lost}, file, {"format": "pt"})
    with pytest.raises(UserError, match=lost):
        prune_checkpoint(name, tmp_path / "out", tiny.windows(2), WANDA)


def test_tensors_on_disk_are_a_list_of_tensors(tmp_path):
    tensors = [torch.randn(2, 3, 4), torch.randn(1, 3, 4).bfloat16()]
    kept = OnDisk(tmp_path)
    kept.extend(tensors)
    assert len(kept) == 2
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(kept, tensors, strict=True))
    kept[0] = tensors[0] + 1
    assert torch.equal(kept[0], tensors[0] + 1)
    with pytest.raises(IndexError):
        kept[2]


# The cost model.


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma"])
def test_the_shape_is_counted_as_the_model_counts_itself(family):
    model = tiny.model(family)
    shape, cost = Shape.of(model), Cost(Shape.of(model), 4, 12)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert cost.weights == sum(p.nbytes for p in model.parameters())
    assert shape.layer * 3 == shape.layers
    hidden = model(input_ids=tiny.windows(4, 12), output_hidden_states=True).hidden_states[0]
    assert cost.hidden == hidden.nbytes


def test_hidden_states_are_spilled_only_when_they_do_not_fit():
    cost = Cost(Shape.of(tiny.model()), n_windows=10**6, seq_len=64)
    roomy, tight = plan(cost, 10**15), plan(cost, 2**32)
    assert not roomy.spill
    assert tight.spill
    assert roomy.memory - tight.memory > 0.9 * cost.hidden
    assert tight.disk - roomy.disk == cost.hidden


def test_masks_that_are_kept_count_one_bit_for_every_prunable_weight_and_are_copied_when_saved():
    shape = Shape.of(tiny.model())
    bits = sum(weight_view(linear).numel() for linear in named_linears(tiny.model()).values())
    costs = [Cost(shape, 4, 12, keep_masks=keep) for keep in (False, True)]
    assert [cost.masks for cost in costs] == [0, bits // 8]
    assert costs[1].streamed(False) - costs[0].streamed(False) <= 3 * bits // 8
    deep = [
        Cost(replace(shape, linears=10**12), 4, 12, keep_masks=keep).streamed(False) for keep in (False, True)
    ]
    assert deep[1] == 3 * 10**12 // 8 + costs[0].hidden > deep[0]


PROGRAM = """
import json, re, sys, torch
from symprune import Recipe, Unstructured, Wanda
from symprune.pruning.stream import StreamedRun, Streaming
name, out, tight, refine = sys.argv[1], sys.argv[2], bool(int(sys.argv[3])), sys.argv[4] or None
windows = torch.ones(32, 128, dtype=torch.long)  # 16 MiB of hidden states: an interpreter varies by less
def run(memory):
    how = Streaming(memory=memory, keep_masks=tight)
    return StreamedRun(name, windows, Recipe(Wanda(), Unstructured(0.5), refine), "dense", how)
streamed = run(None)
if tight:
    streamed = run(streamed.plan.memory - streamed.plan.cost.hidden // 2)
with streamed.into(out) as (folder, _):
    if tight:
        streamed.masks.save(folder / "masks.safetensors")
peak = 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
base, memory = streamed.plan.base, streamed.plan.memory
print(json.dumps({"taken": peak - base, "predicted": memory - base, "spill": streamed.plan.spill}))
"""


@pytest.mark.parametrize(
    ("tight", "refine"),
    [(0, ""), (1, ""), (0, "exact_swap")],
    ids=["what is free", "a budget below the hidden states", "Gram matrices"],
)
def test_the_peak_is_the_one_predicted_and_under_its_budget(tight, refine, tmp_path):
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 128}
    name = saved(tmp_path, hidden_size=1024, intermediate_size=2816, num_hidden_layers=2, **heads)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name, str(tmp_path / "out"), str(tight), refine],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["spill"] == bool(tight)
    assert 1 / 1.15 < found["predicted"] / found["taken"] < 1.15, found
    assert not tight or found["taken"] <= found["predicted"], "a budget allows no more"


def test_the_page_on_scaling_shows_what_the_cost_model_says():
    sys.path.insert(0, str(paths.ROOT / "benchmarks"))
    import scaling

    assert scaling.table() in (paths.ROOT / "docs/scaling.md").read_text()


def test_operations_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    model, windows = tiny.model(), tiny.windows(4, 12)
    runner = LayerRunner(model, windows)
    with FlopCounterMode(display=False) as counter:
        for index, linears in enumerate(linears_by_layer(model)):
            with collecting(linears, {"input_norm"}):
                runner.run(index, keep=False)
            runner.run(index)
    expected = Cost(Shape.of(model), 4, 12).operations
    assert 0.75 < expected / counter.get_total_flops() < 1.25
