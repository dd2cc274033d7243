"""A model that accelerate dispatched, layer by layer, is calibrated, pruned and evaluated to the bits of one
on a single device.
"""

import copy

import pytest
import tiny
import torch
from accelerate import cpu_offload, dispatch_model

from symprune import RIA, R2DSnoT, Recipe, Unstructured, UserError, Wanda, perplexity, prune
from symprune.measure import Experiment, Protocol
from symprune.methods.refine.exact_swap import ExactSwap
from symprune.models.devices import ALL_GPUS, device_type
from symprune.models.layers import decoder_layers, named_linears
from symprune.models.load import load_model
from symprune.pruning.calibrate import gather

RECIPES = [
    Recipe(RIA(), Unstructured(0.5)),
    Recipe(Wanda(), Unstructured(0.6), R2DSnoT()),
    Recipe(Wanda(), Unstructured(0.5), ExactSwap()),
]


def dispatched(model):
    """A copy with accelerate's hooks on every module of the map, as a map over several devices sets them."""
    model = copy.deepcopy(model)
    parts = {name: "cpu" for name, module in model.named_modules() if module in [*decoder_layers(model)]}
    outside = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    return dispatch_model(model, {**parts, **outside}, main_device="cpu", force_hooks=True)


@pytest.mark.parametrize("propagate", ["pruned", "dense"])
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.label)
def test_dispatched_layers_are_pruned_to_the_same_bits(recipe, propagate):
    plain, windows = tiny.model(), tiny.windows(4)
    spread = dispatched(plain)
    assert all(hasattr(layer, "_hf_hook") for layer in decoder_layers(spread))
    expected = prune(plain, windows, recipe, propagate, keep_masks=True)
    found = prune(spread, windows, recipe, propagate, keep_masks=True)
    assert found.linears == expected.linears
    assert all(torch.equal(found.masks[name], mask) for name, mask in expected.masks.items())
    assert all(hasattr(layer, "_hf_hook") for layer in decoder_layers(spread)), "hooks are put back"
    assert perplexity(spread, windows) == perplexity(plain, windows)


def test_gradients_pass_through_dispatched_layers():
    plain, windows = tiny.model(), tiny.windows(2)
    expected, found = (
        gather(m, windows, {"output_norm"}, output_side="gradients") for m in (plain, dispatched(plain))
    )
    assert all(torch.equal(found[name].output_norm, expected[name].output_norm) for name in expected)


def test_auto_without_a_gpu_is_the_cpu(checkpoint, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model, windows = load_model(str(checkpoint), device=ALL_GPUS), tiny.windows(2)
    assert device_type(ALL_GPUS) == "cpu"
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())
    plain = load_model(str(checkpoint))
    for one in (model, plain):
        prune(one, windows, RECIPES[0])
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), plain.state_dict().values(), strict=True)
    )


def test_an_experiment_on_all_devices_keeps_the_records_of_one(protocol):
    auto, plain = (
        Experiment(Protocol(**protocol, device=device)).run([None, *RECIPES[:1]])
        for device in (ALL_GPUS, "cpu")
    )
    assert auto["record"].tolist() == plain["record"].tolist()


def test_a_model_that_does_not_fit_on_the_gpus_is_refused_by_name(checkpoint, monkeypatch):
    """What accelerate leaves out it keeps elsewhere, and a change to it would be lost."""
    from transformers import AutoModelForCausalLM

    load = AutoModelForCausalLM.from_pretrained

    def offloading(*args, device_map=None, **options):
        model, info = load(*args, **options)
        assert device_map == "auto"
        cpu_offload(decoder_layers(model)[1], execution_device=torch.device("cpu"))
        return model, info

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", offloading)
    with pytest.raises(UserError, match=r"does not fit on the GPUs together \(model\.layers\.1.*--stream"):
        load_model(str(checkpoint), device=ALL_GPUS)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_layers_on_two_gpus_are_pruned_as_on_one(checkpoint):
    windows = tiny.windows(4)
    one, two = load_model(str(checkpoint), device="cuda:0"), load_model(str(checkpoint), device=ALL_GPUS)
    assert len({linear.weight.device for linear in named_linears(two).values()}) > 1
    expected, found = (prune(model, windows, RECIPES[0], keep_masks=True).masks for model in (one, two))
    assert all(torch.equal(found[name].cpu(), mask.cpu()) for name, mask in expected.items())
