"""Layer by layer is the model's own forward, to the bit; else statistics come from the whole model."""

import gc
import weakref

import pytest
import tiny
import torch
import transformers as tf
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from symprune import Recipe, Unstructured, Wanda, prune
from symprune.models.layers import decoder_layers, named_linears, weight_view
from symprune.pruning.calibrate import gather
from symprune.pruning.runner import LayerRunner, runs_by_layer

WANDA = Recipe(Wanda(), Unstructured(0.5))
WINDOWS = tiny.windows(5, 12)
KINDS = ["sliding_attention", "full_attention"] * 2
GEMMA = {
    **{"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "head_dim": 8},
    **{
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "layer_types": KINDS,
    },
    **{"sliding_window": 5, "vocab_size_per_layer_input": 96, "hidden_size_per_layer_input": 8},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}


def built(config) -> nn.Module:
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            nn.init.normal_(parameter, std=0.2)
    return model


def per_layer_inputs() -> nn.Module:
    """Each decoder layer is given an embedding of the window's own tokens."""
    shape = {"global_head_dim": 8, "num_global_key_value_heads": None, "num_kv_shared_layers": 0}
    return built(tf.Gemma4TextConfig(**GEMMA, **shape))


def shared_keys_and_values() -> nn.Module:
    """The last layers attend with keys and values that earlier ones left behind."""
    shape = {"global_head_dim": 8, "num_global_key_value_heads": None, "num_kv_shared_layers": 2}
    return built(tf.Gemma4TextConfig(**GEMMA, **shape))


def more_between_the_layers() -> nn.Module:
    """Its forward does something between decoder layers, which nobody sees who calls them one by one."""
    model = tiny.model()
    layers, rotary, norm = model.model.layers, model.model.rotary_emb, model.model.norm

    def forward(input_ids, **_):
        hidden = model.model.embed_tokens(input_ids)
        positions = torch.arange(hidden.shape[1])[None]
        for layer in layers:
            hidden = 1.5 * layer(
                hidden,
                attention_mask=None,
                position_ids=positions,
                position_embeddings=rotary(hidden, positions),
            )
        return BaseModelOutputWithPast(last_hidden_state=norm(hidden))

    model.model.forward = forward
    return model


def squares_by_hooks(model: nn.Module, linears: dict[str, nn.Module]) -> dict[str, torch.Tensor]:
    """Sums of squared inputs over plain forwards of one window each, in float64."""
    sums = {name: torch.zeros(weight_view(linear).shape[1]).double() for name, linear in linears.items()}

    def hook(name: str):
        def observe(linear: nn.Module, args: tuple, out: torch.Tensor) -> None:
            sums[name].add_(args[0].double().square().flatten(0, -2).sum(0))

        return observe

    handles = [linear.register_forward_hook(hook(name)) for name, linear in linears.items()]
    with torch.no_grad():
        for window in WINDOWS:
            model(input_ids=window[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return sums


MODELS = [per_layer_inputs, shared_keys_and_values, more_between_the_layers]


@pytest.mark.filterwarnings("ignore:.*cannot be run decoder layer by decoder layer")
@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_statistics_are_those_of_plain_forwards(make, batch_size):
    model = make()
    expected = squares_by_hooks(model, named_linears(model))
    for name, stats in gather(model, WINDOWS, batch_size=batch_size).items():
        assert stats.input_norm.double().square() == pytest.approx(expected[name], rel=1e-4, abs=1e-9), name


@pytest.mark.filterwarnings("ignore:.*cannot be run decoder layer by decoder layer")
@pytest.mark.parametrize("make", MODELS)
def test_pruned_layer_after_layer_each_is_calibrated_on_what_the_pruned_ones_before_send_on(make):
    by_hand, model = make(), make()
    for module in decoder_layers(by_hand):
        inside = {id(m) for m in module.modules()}
        linears = {name: m for name, m in named_linears(by_hand).items() if id(m) in inside}
        for name, squares in squares_by_hooks(by_hand, linears).items():
            weight = weight_view(linears[name])
            order = (weight.double().abs() * squares.sqrt()).argsort(dim=1, stable=True)
            weight.scatter_(1, order[:, : weight.shape[1] // 2], 0.0)
    prune(model, WINDOWS, WANDA)
    ours, theirs = named_linears(model), named_linears(by_hand)
    differing = sum(int(((ours[n].weight == 0) != (theirs[n].weight == 0)).sum()) for n in ours)
    assert differing <= 1e-3 * sum(linear.weight.numel() for linear in ours.values())


@pytest.mark.parametrize("make", [per_layer_inputs, shared_keys_and_values])
def test_the_runner_ends_where_the_models_own_forward_ends_to_the_bit(make):
    model, outputs = make(), []
    handle = decoder_layers(model)[-1].register_forward_hook(lambda layer, args, out: outputs.append(out))
    with torch.no_grad():
        for window in WINDOWS:
            model(input_ids=window[None], use_cache=False)
    handle.remove()
    runner = LayerRunner(model, WINDOWS)
    for index in range(len(runner.layers)):
        runner.run(index, keep=False)  # looked at first, as statistics are, which leaves nothing behind
        runner.run(index)
    for own, ran in zip(outputs, runner.hidden, strict=True):
        assert torch.equal(own if isinstance(own, torch.Tensor) else own[0], ran)


def test_a_model_that_does_more_is_told_apart_and_the_cost_is_told(recwarn):
    model = more_between_the_layers()
    assert not runs_by_layer(model, WINDOWS)
    assert runs_by_layer(tiny.model(), WINDOWS)
    assert runs_by_layer(tiny.model(), WINDOWS[:1])  # one window is tried beside itself turned round
    for propagate, passes in (("pruned", 3), ("dense", 1)):
        with pytest.warns(UserWarning, match=f"take {passes} forward passes of the whole model"):
            prune(model, WINDOWS, WANDA, propagate)


def counted_heads(model: nn.Module) -> list[int]:
    """The tokens of every plain forward from now on: only those reach the head, the runner's own do not."""
    tokens, forward = [], model.lm_head.forward
    model.lm_head.forward = lambda hidden: tokens.append(hidden.shape[1]) or forward(hidden)
    return tokens


def test_a_model_is_checked_once_in_two_plain_forwards_and_anew_whenever_it_is_built_otherwise():
    model = tiny.model()
    n_tokens, layers = counted_heads(model), decoder_layers(model)
    once = [8, 8, 12, 12]  # two inputs that differ in their last token, two windows
    prune(model, WINDOWS, WANDA)
    assert n_tokens == once
    prune(model, WINDOWS.flip(0), Recipe(Wanda(), Unstructured(0.6)), "dense", batch_size=2)
    gather(model, WINDOWS)
    assert n_tokens == once, "weights and windows are no part of the question"
    changes = {
        "a length": lambda: prune(model, WINDOWS[:, :9], WANDA),
        "a hook": lambda: layers[1].register_forward_hook(lambda layer, args, out: out),
        "a forward": lambda: setattr(layers[0].mlp, "forward", layers[0].mlp.forward),
        "a module": lambda: setattr(layers[2].mlp, "up_proj", nn.Linear(32, 48)),
        "a dtype": lambda: model.double(),
        "the config": lambda: model.set_attn_implementation("eager"),
    }
    for what, change in changes.items():
        n_tokens.clear()
        change()
        prune(model, WINDOWS, WANDA)
        assert n_tokens == ([9, 9] if what == "a length" else once), what


@pytest.mark.filterwarnings("ignore:.*cannot be run decoder layer by decoder layer")
def test_what_a_check_found_neither_outlives_a_change_nor_holds_on_to_the_model():
    model, other = tiny.model(), more_between_the_layers()
    assert runs_by_layer(model, WINDOWS)
    model.model.forward = lambda input_ids, **_: other.model.forward(input_ids)
    assert not runs_by_layer(model, WINDOWS)
    del model.model.forward
    assert runs_by_layer(model, WINDOWS)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
