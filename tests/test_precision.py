"""Calibration in float64: what it computes, what it leaves as it was, and the same masks on any processor."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

from symprune import R2DSnoT, Recipe, Unstructured, UserError, Wanda, calibrating_in, prune
from symprune.base.files import short_sha256
from symprune.measure.bench import Bench
from symprune.measure.protocol import Protocol
from symprune.models.layers import decoder_layers, named_linears
from symprune.pruning import gather, stats_files
from symprune.pruning.calibrate import accumulate
from symprune.pruning.runner import LayerRunner, runs_by_layer
from symprune.pruning.stream import StreamedRun, Streaming

WINDOWS = tiny.windows(3, 10)
RECIPE = Recipe(Wanda(), Unstructured(0.5), R2DSnoT())


def attended(model, x):
    """What the first layer's o_proj receives, by definition, in float64, head by head."""
    attention, config = model.model.layers[0].self_attn, model.config
    n, d = len(x), config.hidden_size // config.num_attention_heads
    q, k, v = (x @ getattr(attention, name).weight.double().T for name in ("q_proj", "k_proj", "v_proj"))
    angle = [[t * float(f) for f in model.model.rotary_emb.inv_freq] * 2 for t in range(n)]
    cos, sin = (torch.tensor(angle, dtype=torch.float64).apply_(f) for f in (math.cos, math.sin))

    def turned(y):
        return y * cos + torch.cat((-y[:, d // 2 :], y[:, : d // 2]), dim=1) * sin

    heads = []
    for head in range(config.num_attention_heads):
        shared = head * config.num_key_value_heads // config.num_attention_heads
        mine, theirs = slice(head * d, (head + 1) * d), slice(shared * d, (shared + 1) * d)
        logits = turned(q[:, mine]) @ turned(k[:, theirs]).T / math.sqrt(d)
        weights = torch.exp(logits.masked_fill(torch.ones(n, n).triu(1) == 1, -math.inf))
        heads.append(weights / weights.sum(1, keepdim=True) @ v[:, theirs])
    return torch.cat(heads, dim=1)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_norms_angles_and_attention_are_float64_although_the_model_says_float32(implementation):
    model = tiny.model("llama")
    model.set_attn_implementation(implementation)
    window, norm = WINDOWS[0], model.model.layers[0].input_layernorm
    x = model.get_input_embeddings().weight[window].detach().double()
    x = x / (x.square().mean(1, keepdim=True) + norm.variance_epsilon).sqrt() * norm.weight.detach().double()
    with calibrating_in("float64"):
        found = gather(model, window[None])
    first = {name.rsplit(".", 1)[-1]: stats.input_norm for name, stats in list(found.items())[:4]}
    torch.testing.assert_close(first["q_proj"], x.norm(dim=0), rtol=1e-14, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(first["o_proj"], attended(model, x).norm(dim=0), rtol=1e-13, atol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3-moe"])
def test_every_way_of_calibrating_computes_in_float64_and_leaves_the_model_as_it_was(family, monkeypatch):
    model = tiny.model(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    storage = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    uses = ("input_norm", "output_norm")
    with calibrating_in("float64"):
        assert runs_by_layer(model, WINDOWS)
        by_layer, merged = gather(model, WINDOWS, uses), accumulate(model, WINDOWS[:1], uses)
        merged = merged.merge(accumulate(model, WINDOWS[1:], uses)).finish()
        gradients = gather(model, WINDOWS, uses, output_side="gradients")
        monkeypatch.setattr("symprune.pruning.calibrate.runs_by_layer", lambda *_: False)
        with pytest.warns(UserWarning, match="forward passes of the whole model"):
            whole = gather(model, WINDOWS, uses)
    assert torch.get_default_dtype() == torch.float32
    for other in (whole, merged, gradients):
        for name, stats in by_layer.items():
            assert stats.input_norm.dtype == other[name].output_norm.dtype == torch.float64
            torch.testing.assert_close(other[name].input_norm, stats.input_norm, rtol=1e-13, atol=1e-15)
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert tensor.data_ptr() == storage[name]
        assert torch.equal(tensor, before[name])


def test_an_error_inside_leaves_the_model_as_it_was():
    model = tiny.model()
    layer = decoder_layers(model)[1]
    handle = layer.register_forward_pre_hook(lambda *_: 1 / 0)
    with calibrating_in("float64"), pytest.raises(ZeroDivisionError):
        gather(model, WINDOWS)
    handle.remove()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.get_default_dtype() == torch.float32
    assert not any(layer._forward_pre_hooks or layer._forward_hooks for layer in decoder_layers(model))


def test_scores_and_refinements_are_those_of_the_weights_in_float64():
    model = tiny.model()
    with calibrating_in("float64"):
        stats = gather(model, WINDOWS, RECIPE.uses)
        masks = prune(tiny.model(), WINDOWS, RECIPE, "dense", keep_masks=True).masks
        given = prune(tiny.model(), stats, RECIPE, "dense", keep_masks=True).masks
    for name, linear in named_linears(model).items():
        weight = linear.weight.detach().double()
        first = Unstructured(0.5)(weight.abs() * stats[name].input_norm)
        expected = R2DSnoT()(weight, first, stats[name], Unstructured(0.5))
        assert torch.equal(masks[name], expected)
        assert torch.equal(given[name], expected)


def test_a_streamed_model_gets_the_masks_and_weights_of_one_in_memory(tmp_path):
    model = tiny.model("qwen3-moe")
    model.save_pretrained(tmp_path / "dense")
    with calibrating_in("float64"):
        expected = prune(model, WINDOWS, RECIPE, keep_masks=True)
        streamed = StreamedRun(
            str(tmp_path / "dense"), WINDOWS, RECIPE, how=Streaming(memory=2**33, keep_masks=True)
        )
        with streamed.into(tmp_path / "pruned"):
            pass
    from symprune.pruning.mask_files import load_masks

    streamed.masks.save(tmp_path / "masks", None)
    masks = load_masks(tmp_path / "masks").masks
    assert all(torch.equal(masks[name], mask) for name, mask in expected.masks.items())
    assert streamed.plan.cost.number == 8


def test_hidden_states_are_float64():
    with calibrating_in("float64"):
        runner = LayerRunner(tiny.model(dtype=torch.bfloat16), WINDOWS)
    runner.run(0)
    assert {hidden.dtype for hidden in runner.hidden} == {torch.float64}


def test_files_of_statistics_say_it_and_are_not_mixed(tmp_path):
    about = {"dtype": "float32", "device": "cpu", "seq_len": 10}
    parts = []
    for name, window in [(None, WINDOWS[:1]), ("float64", WINDOWS[1:])]:
        with calibrating_in(name):
            asked = stats_files.asked("w", frozenset(), **about)
            parts.append(
                stats_files.Calibration(
                    accumulate(tiny.model(), window), asked, [{"windows": str(name), "n_windows": 1}]
                )
            )
    with pytest.raises(UserError, match="different calibration_dtype"):
        stats_files.merge(parts)


@pytest.mark.parametrize("score", ["magnitude", "wanda"])
def test_a_question_names_it_even_where_no_text_is_read(score, checkpoint):
    base = {"profile": "p", "models": [str(checkpoint)], "n_calib": 2, "seq_len": 16, "n_eval": 1}
    names = []
    for calibration_dtype in (None, "float64"):
        bench = Bench(Protocol(**base, calibration_dtype=calibration_dtype), str(checkpoint))
        names.append(bench.recipe_name(Recipe(score), 0))
    assert [name.pop("calibration_dtype") for name in names] == [None, "float64"]
    assert names[0].pop("device") == "cpu"  # from float64 the device has no say in the mask
    assert names[0] == names[1]


def test_names_that_are_unknown_or_narrower_than_the_weights_are_refused():
    with pytest.raises(UserError, match="unknown calibration_dtype 'float46': did you mean float64"):
        calibrating_in("float46").__enter__()
    with pytest.raises(UserError, match="unknown calibration_dtype"):
        Protocol("p", calibration_dtype="bfloat16")
    model = tiny.model(dtype=torch.float64)
    with calibrating_in("float32"), pytest.raises(UserError, match=r"would round weights of torch\.float64"):
        prune(model, WINDOWS, RECIPE)


def masks_of(file: Path) -> list[str]:
    """Digests of the masks of a model in a file, calibrated in float32 and in float64."""
    digests = []
    for dtype in (None, "float64"):
        model = tiny.model()
        model.load_state_dict(torch.load(file))
        with calibrating_in(dtype):
            masks = prune(model, WINDOWS, RECIPE, keep_masks=True).masks
        digests.append(short_sha256([mask.numpy() for mask in masks.values()]))
    return digests


def test_masks_are_the_same_with_and_without_vector_instructions(tmp_path):
    model, file = tiny.model(), tmp_path / "model"
    with calibrating_in("float64"):
        norms = gather(model, WINDOWS)
    for name, linear in list(named_linears(model).items())[:3]:  # scores that tie but for float32's last bit
        linear.weight.data = (linear.weight.data.sign() * 0.1 / norms[name].input_norm).float()
    torch.save(model.state_dict(), file)
    code = f"import test_precision; print(*test_precision.masks_of({str(file)!r}))"
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    )
    plain = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    in_float32, in_float64 = masks_of(file)
    assert plain.stdout.split()[1] == in_float64
    assert in_float32 != in_float64  # so the last bit of float32 does decide in this model
