"""The loop over decoder layers against the same thing written out, on tiny models; counts exact
everywhere.
"""

import copy
import math

import families
import pytest
import tiny
import torch
import transformers as tf

from symprune import (
    NM,
    RIA,
    SCORES,
    DSnoT,
    Magnitude,
    R2DSnoT,
    Recipe,
    StochRIA,
    Unstructured,
    UserError,
    Wanda,
    perplexity,
    prune,
)
from symprune.base.records import Record
from symprune.methods.refine import REFINERS
from symprune.models.causal import require_causal
from symprune.models.layers import decoder_layers, named_linears, role, weight_view
from symprune.pruning.calibrate import gather
from symprune.pruning.mask_files import apply_masks, load_masks, save_masks
from symprune.pruning.runner import LayerRunner
from symprune.pruning.stream import prune_checkpoint

PATTERNS = [Unstructured(0.5), Unstructured(0.6, "layer"), NM(2, 4), NM(4, 8)]


def wanda_layer_by_layer(model, windows, sparsity):
    """Sequential Wanda as its paper says, with whole forwards of the partly pruned model instead of a
    runner.
    """
    for layer in decoder_layers(model):
        linears = {name: m for name, m in layer.named_modules() if isinstance(m, torch.nn.Linear)}
        seen = {name: [] for name in linears}
        handles = [
            m.register_forward_hook(lambda _, args, __, into=seen[name]: into.append(args[0][0]))
            for name, m in linears.items()
        ]
        with torch.no_grad():
            for window in windows:
                model(input_ids=window[None], use_cache=False)
        for handle in handles:
            handle.remove()
        for name, linear in linears.items():
            norm = torch.cat(seen[name]).double().norm(dim=0).float()
            scores = linear.weight.data.abs() * norm
            n_removed = math.floor(sparsity * scores.shape[1])
            linear.weight.data.scatter_(1, scores.sort(dim=1, stable=True).indices[:, :n_removed], 0)
    return model


def test_pruned_propagation_is_wanda_with_whole_forwards():
    model, windows = tiny.model(), tiny.windows(5)
    expected = wanda_layer_by_layer(copy.deepcopy(model), windows, 0.5)
    prune(model, windows, Recipe(Wanda(), Unstructured(0.5)))
    for name, linear in named_linears(model).items():
        assert torch.equal(linear.weight, dict(named_linears(expected))[name].weight), name


def test_dense_propagation_scores_every_linear_on_the_dense_model():
    model, windows = tiny.model(), tiny.windows(5)
    stats, dense = gather(model, windows, {"input_norm"}), copy.deepcopy(model)
    report = prune(model, windows, Recipe(RIA(), Unstructured(0.6)), propagate="dense", keep_masks=True)
    for name, linear in named_linears(dense).items():
        mask = Unstructured(0.6)(RIA()(weight_view(linear), stats[name]))
        assert torch.equal(report.masks[name], mask)
        assert torch.equal(dict(named_linears(model))[name].weight, linear.weight * mask)


def test_statistics_gathered_once_serve_many_recipes():
    model, windows = tiny.model(), tiny.windows(5)
    stats = gather(model, windows, {"input_norm"})
    for recipe in (Recipe(Wanda(), Unstructured(0.5)), Recipe(RIA(), NM(2, 4))):
        a, b = copy.deepcopy(model), copy.deepcopy(model)
        prune(a, stats, recipe, propagate="dense")
        prune(b, windows, recipe, propagate="dense")
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_every_family_and_pattern_loses_exactly_what_was_asked(family, pattern):
    model = tiny.model(family)
    dense = copy.deepcopy(model)
    report = prune(model, tiny.windows(2), Recipe(RIA(), pattern), keep_masks=True)
    linears = named_linears(model)
    assert list(report.masks) == list(linears)
    for name, linear in linears.items():
        mask, weight = report.masks[name], weight_view(linear)
        d_out, d_in = weight.shape
        if isinstance(pattern, NM):
            assert (mask.reshape(-1, pattern.m).sum(1) == pattern.n).all()
        elif pattern.group == "output":
            assert (mask.sum(1) == d_in - math.floor(pattern.sparsity * d_in)).all()
        else:
            assert mask.sum() == d_out * d_in - math.floor(pattern.sparsity * d_out * d_in)
        assert not weight[~mask].any()
        assert torch.equal(weight[mask], weight_view(named_linears(dense)[name])[mask])
    before, pruned = dict(dense.named_parameters()), {f"{name}.weight" for name in linears}
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name not in pruned)


@pytest.mark.parametrize("score", [cls() for cls in SCORES.values()], ids=list(SCORES))
@pytest.mark.parametrize("propagate", ["pruned", "dense"])
def test_every_score_runs_through_the_pipeline(score, propagate):
    model = tiny.model()
    report = prune(model, tiny.windows(3), Recipe(score, Unstructured(0.5)), propagate)
    assert report.sparsity == 0.5
    assert math.isfinite(perplexity(model, tiny.windows(2, seed=9)))


@pytest.mark.parametrize("refine", [cls() for cls in REFINERS.values()], ids=list(REFINERS))
@pytest.mark.parametrize("pattern", [Unstructured(0.5), NM(2, 4)], ids=str)
def test_every_refiner_keeps_the_counts_of_the_pattern(refine, pattern):
    report = prune(tiny.model(), tiny.windows(3), Recipe(Wanda(), pattern, refine), keep_masks=True)
    for mask in report.masks.values():
        blocks = mask.reshape(-1, pattern.m if isinstance(pattern, NM) else mask.shape[1])
        assert (blocks.sum(1) == blocks.shape[1] // 2).all()
    assert all(linear.refined for linear in report.linears)


@pytest.mark.parametrize("linears", ["attention", "mlp"])
def test_a_refiner_can_be_kept_to_one_kind_of_linear(linears):
    model, windows = tiny.model(), tiny.windows(3)
    plain = prune(copy.deepcopy(model), windows, Recipe(Wanda(), Unstructured(0.5)), "dense", keep_masks=True)
    refined = prune(
        model, windows, Recipe(Wanda(), Unstructured(0.5), R2DSnoT(linears=linears)), "dense", keep_masks=True
    )
    changed = {role(name) for name, mask in refined.masks.items() if not torch.equal(mask, plain.masks[name])}
    assert changed == {linears}
    assert {role(x.name) for x in refined.linears if x.refined} == {linears}


def test_sequential_and_dense_propagation_differ_only_after_the_first_layer():
    model, windows = tiny.model(), tiny.windows(3)
    recipe = Recipe(Wanda(), Unstructured(0.6))
    dense, pruned = (
        prune(copy.deepcopy(model), windows, recipe, how, keep_masks=True).masks
        for how in ("dense", "pruned")
    )
    same = [torch.equal(a, b) for a, b in zip(dense.values(), pruned.values(), strict=True)]
    assert all(same[:4])
    assert not all(same[7:])


def test_batches_of_windows_change_nothing_but_rounding():
    model, windows = tiny.model(dtype=torch.float64), tiny.windows(5)
    one, three = (
        prune(
            copy.deepcopy(model), windows, Recipe(RIA(), Unstructured(0.5)), batch_size=b, keep_masks=True
        ).masks
        for b in (1, 3)
    )
    assert all(torch.equal(one[name], three[name]) for name in one)


@pytest.mark.parametrize("n_calib", [1, 3, 129])
def test_any_number_of_calibration_windows(n_calib):
    assert (
        prune(tiny.model(), tiny.windows(n_calib, seq_len=4), Recipe(Wanda(), Unstructured(0.5))).sparsity
        == 0.5
    )


def test_nothing_is_changed_when_a_width_does_not_fit_the_pattern():
    model = tiny.model("llama", intermediate_size=42)  # only the last linear of a layer has that width
    before = copy.deepcopy(model)
    with pytest.raises(UserError, match=r"model\.layers\.0\.mlp\.down_proj: 2:4 needs"):
        prune(model, tiny.windows(), Recipe(Magnitude(), NM(2, 4)))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters(), strict=True))


def test_a_broken_weight_is_named():
    model = tiny.model()
    decoder_layers(model)[2].mlp.up_proj.weight.data[3, 3] = math.inf
    with pytest.raises(UserError, match=r"model\.layers\.2\.mlp\.up_proj"):
        prune(model, None, Recipe(Magnitude(), Unstructured(0.5)))


def test_recipes_that_read_statistics_ask_for_windows():
    with pytest.raises(UserError, match="needs calibration windows"):
        prune(tiny.model(), None, Recipe(Wanda(), Unstructured(0.5)))
    with pytest.raises(UserError, match="input_mean"):
        prune(tiny.model(), None, Recipe(Magnitude(), Unstructured(0.5), DSnoT()))


def test_statistics_of_the_dense_model_are_refused_for_pruned_propagation():
    model, windows = tiny.model(), tiny.windows()
    with pytest.raises(UserError, match="propagate='dense'"):
        prune(model, gather(model, windows), Recipe(Wanda(), Unstructured(0.5)))


def test_a_model_on_the_meta_device_is_refused():
    with pytest.raises(UserError, match="meta device"):
        prune(tiny.model().to("meta"), None, Recipe(Magnitude(), Unstructured(0.5)))


def test_sparsity_is_counted_on_masks_not_on_zeros():
    model = tiny.model()
    for linear in named_linears(model).values():
        weight_view(linear)[:, : weight_view(linear).shape[1] * 3 // 4] = 0
    assert prune(model, tiny.windows(), Recipe(Wanda(), Unstructured(0.5))).sparsity == 0.5


def test_the_report_shows_itself():
    report = prune(tiny.model(), tiny.windows(), Recipe(Wanda(), NM(2, 4), DSnoT()))
    frame = report.frame()
    assert list(frame.index) == [linear.name for linear in report.linears]
    assert (frame["sparsity"] == 0.5).all()
    assert {"swaps", "error_before", "error_after"} <= set(frame.columns)
    assert "<table" in report._repr_html_()
    assert "50.00%" in repr(report)
    assert report.plot().axes[0].get_ylabel() == "loss"


# Mixtures of experts.


@pytest.mark.parametrize("family", tiny.MIXTURES)
def test_the_runner_carries_a_mixture_exactly_as_a_forward_does(family):
    model, windows = tiny.model(family), tiny.windows(3)
    runner = LayerRunner(model, windows)
    for index in range(3):
        runner.run(index)
    with torch.no_grad():
        for hidden, window in zip(runner.hidden, windows, strict=True):
            assert torch.equal(
                model.model.norm(hidden),
                model.model(input_ids=window[None], use_cache=False).last_hidden_state,
            )


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("family", tiny.MIXTURES)
def test_every_expert_loses_exactly_what_was_asked_and_nothing_else_changes(family, pattern):
    model = tiny.model(family)
    dense = copy.deepcopy(model)
    report = prune(model, tiny.windows(4), Recipe(RIA(), pattern), keep_masks=True)
    for name, linear in named_linears(dense).items():
        groups = report.masks[name].reshape(
            {NM: (-1, getattr(pattern, "m", 1))}.get(type(pattern), report.masks[name].shape)
        )
        size = groups.numel() if getattr(pattern, "group", "") == "layer" else groups.shape[1]
        kept = pattern.n if isinstance(pattern, NM) else size - math.floor(pattern.sparsity * size)
        assert (groups.sum() == kept) if size == groups.numel() else (groups.sum(1) == kept).all(), name
        weight_view(linear).masked_fill_(~report.masks[name], 0)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), dense.parameters(), strict=True))


@pytest.mark.parametrize("score", [cls() for cls in SCORES.values()], ids=list(SCORES))
def test_every_score_runs_on_experts_reached_or_not(score):
    report = prune(
        tiny.model("mixtral"), tiny.windows(1, seq_len=2), Recipe(score, Unstructured(0.5), DSnoT())
    )
    assert report.sparsity == 0.5
    if score.uses:
        assert report.unreached
        assert f"{len(report.unreached)} of them saw no calibration token" in repr(report)


def test_experts_that_no_token_reached_are_named_and_scored_as_if_inputs_were_equal():
    model, window = tiny.model("mixtral"), tiny.windows(1, seq_len=1)
    with torch.no_grad():
        chosen = (
            model(input_ids=window, use_cache=False, output_router_logits=True)
            .router_logits[0]
            .topk(2)
            .indices
        )
    dense = copy.deepcopy(model)
    report = prune(model, window, Recipe(Wanda(), Unstructured(0.5), DSnoT()), keep_masks=True)
    idle = [e for e in range(4) if e not in chosen]
    names = [
        f"model.layers.0.mlp.experts.{e}.{part}"
        for e in idle
        for part in ("gate_proj", "up_proj", "down_proj")
    ]
    assert [name for name in report.unreached if ".layers.0." in name] == names
    for name in names:
        magnitude = Unstructured(0.5)(weight_view(named_linears(dense)[name]).abs())
        assert torch.equal(report.masks[name], magnitude)
        assert next(linear for linear in report.linears if linear.name == name).refined is None


# What is left dense is told.


def built(config) -> torch.nn.Module:
    """A tiny model of weights that matter."""
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def mamba() -> torch.nn.Module:
    return built(
        tf.MambaConfig(
            vocab_size=96, hidden_size=32, num_hidden_layers=2, state_size=8, expand=2, time_step_rank=8
        )
    )


def dbrx() -> torch.nn.Module:
    ffn = {"hidden_size": 32, "ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2}
    attention = {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4}
    sizes = {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64, "vocab_size": 96}
    return built(tf.DbrxConfig(**sizes, ffn_config=ffn, attn_config=attention))


@pytest.mark.parametrize("propagate", ["pruned", "dense"])
def test_a_weight_that_is_used_past_its_module_is_left_dense_and_named(propagate, tmp_path):
    model, windows, recipe = mamba(), tiny.windows(), Recipe(Wanda(), Unstructured(0.5))
    dense = copy.deepcopy(model)
    for _ in range(2):  # the second run finds its layers in the work folder
        model = copy.deepcopy(dense)
        report = prune(model, windows, recipe, propagate, keep_masks=True, work=tmp_path / "work")
        names = [f"backbone.layers.{i}.mixer.dt_proj" for i in range(2)]
        for name in names:
            told = report.left_dense[f"{name}.weight"]
            assert (told.reason, told.size) == ("reached by no token, or by zeros alone", 64 * 8)
            assert name not in report.masks
            assert torch.equal(named_linears(model)[name].weight, named_linears(dense)[name].weight)
    assert report.sparsity == 0.5
    assert not report.unreached
    save_masks(tmp_path / "masks", report.masks, model)
    apply_masks(dense, load_masks(tmp_path / "masks"))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), dense.parameters(), strict=True))


def test_a_score_that_reads_no_inputs_prunes_weights_used_past_their_module_too():
    report = prune(mamba(), None, Recipe(Magnitude(), Unstructured(0.5)))
    assert "backbone.layers.1.mixer.dt_proj" in {linear.name for linear in report.linears}


@pytest.mark.parametrize("make", [mamba, dbrx, lambda: tiny.model("qwen2-moe"), tiny.model])
def test_every_matrix_of_the_decoder_layers_is_pruned_or_told_and_counted(make):
    model = make()
    dense = {name: p.clone() for layer in decoder_layers(model) for name, p in layer.named_parameters()}
    report = prune(model, tiny.windows(), Recipe(Wanda(), Unstructured(0.5)))
    prefix = {id(p): name for name, p in model.named_parameters()}
    matrices = [p for layer in decoder_layers(model) for p in layer.parameters() if p.squeeze().dim() >= 2]
    gates = [p for layer in decoder_layers(model) for n, p in layer.named_parameters() if "expert_gate" in n]
    untouched = {prefix[id(p)] for p in matrices + gates if (p != 0).all()}
    assert untouched == report.left_dense.keys()
    zeros = sum(int((p == 0).sum()) for p in matrices)
    assert report.overall_sparsity == pytest.approx(zeros / sum(p.numel() for p in matrices + gates))
    assert (report.overall_sparsity < report.sparsity) == bool(report.left_dense)
    assert dense


def test_a_report_says_what_was_left_dense_and_what_that_makes_of_the_sparsity():
    report = prune(dbrx(), tiny.windows(), Recipe(Wanda(), Unstructured(0.5)))
    for shown in (repr(report), report._repr_html_()):
        assert "2 (router), 6 (experts in a layout that is not supported)" in shown
        assert f"{3072 / (6144 + 6 * 3072 + 2 * 128):.2%} of all matrices" in shown
    assert "left dense" not in repr(prune(tiny.model(), None, Recipe(Magnitude(), Unstructured(0.5))))


# Causal or not.


def bert(is_decoder: bool) -> torch.nn.Module:
    return built(tf.BertConfig(**tiny.COMMON, intermediate_size=48, is_decoder=is_decoder))


def test_a_model_that_looks_ahead_is_refused_before_anything_is_changed():
    windows, recipe, model = tiny.windows(), Recipe(Magnitude(), Unstructured(0.5)), bert(False)
    before = copy.deepcopy(model)
    for run in (
        lambda: prune(model, None, recipe),
        lambda: gather(model, windows),
        lambda: perplexity(model, windows),
    ):
        with pytest.raises(UserError, match="BertLMHeadModel is not causal"):
            run()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters(), strict=True))
    assert prune(bert(True), None, recipe).sparsity == 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gemma3, local and global layers"])
def test_a_causal_model_is_none_the_worse_for_being_asked(family, dtype):
    model = tiny.model(family, dtype=dtype).train()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    require_causal(model)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_decoder_that_has_lost_its_encoder_is_refused():
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "max_position_embeddings": 64}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    model = built(tf.BartConfig(vocab_size=96, **sizes, **heads, encoder_ffn_dim=48, decoder_ffn_dim=48))
    model.config.architectures = ["BartForConditionalGeneration"]
    with pytest.raises(UserError, match="BartForConditionalGeneration has an encoder"):
        prune(model, None, Recipe(Magnitude(), Unstructured(0.5)))


def test_a_model_that_cannot_run_on_tokens_alone_is_refused():
    model = tiny.model()

    def forward(input_ids, pixel_values, **_):
        raise AssertionError("never reached")

    model.forward = forward
    with pytest.raises(UserError, match=r"cannot be run on tokens alone.*pixel_values"):
        prune(model, None, Recipe(Magnitude(), Unstructured(0.5)))


# A work folder.


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("propagate", ["pruned", "dense"])
@pytest.mark.parametrize("score", [RIA(), Magnitude(), StochRIA()], ids=lambda score: type(score).__name__)
@pytest.mark.parametrize("killed_at", [0, 5, 7, 20])
def test_a_run_that_ended_anywhere_continues_to_the_same_masks(
    tmp_path, monkeypatch, propagate, score, killed_at
):
    recipe, windows, dense = Recipe(score, Unstructured(0.5)), tiny.windows(3), tiny.model()
    whole = copy.deepcopy(dense)
    expected = prune(whole, windows, recipe, propagate, keep_masks=True)
    weights = [weight_view(linear).clone() for linear in named_linears(dense).values()]
    scored, compute = [], type(score).__call__

    def until_killed(self, weight, stats):
        if len(scored) == killed_at:
            raise Killed
        return watched(self, weight, stats)

    def watched(self, weight, stats):
        scored.append(weight.clone())
        return compute(self, weight, stats)

    monkeypatch.setattr(type(score), "__call__", until_killed)
    with pytest.raises(Killed):
        prune(copy.deepcopy(dense), windows, recipe, propagate, work=tmp_path / "work")
    scored.clear()
    monkeypatch.setattr(type(score), "__call__", watched)
    report = prune(dense, windows, recipe, propagate, work=tmp_path / "work", keep_masks=True)
    left = weights[killed_at // 7 * 7 :]  # what was finished is not scored again
    assert all(torch.equal(a, b) for a, b in zip(scored, left, strict=True))
    assert report.linears == expected.linears
    assert report.masks.keys() == expected.masks.keys()
    assert all(torch.equal(report.masks[name], mask) for name, mask in expected.masks.items())
    assert all(torch.equal(p, q) for p, q in zip(dense.parameters(), whole.parameters(), strict=True))


def test_a_damaged_layer_of_a_work_folder_is_made_again(tmp_path):
    model, windows, recipe = tiny.model(), tiny.windows(3), Recipe(Wanda(), NM(2, 4), DSnoT())
    expected = prune(copy.deepcopy(model), windows, recipe, work=tmp_path, keep_masks=True)
    files = [tmp_path / f"layer_00{i}.safetensors" for i in range(3)]
    content = bytearray(files[0].read_bytes())
    content[-9] ^= 4
    files[0].write_bytes(content)
    files[1].write_bytes(files[2].read_bytes())  # the right kind of file in the wrong place
    report = prune(model, windows, recipe, work=tmp_path, keep_masks=True)
    assert all(torch.equal(report.masks[name], mask) for name, mask in expected.masks.items())
    assert report.linears == expected.linears


@pytest.mark.parametrize(
    ("words", "model", "options"),
    [
        (["weights: "], {"seed": 1}, {}),
        (
            ["recipe: wanda, 0.5 per output", "wanda, 0.6 per output"],
            {},
            {"recipe": Recipe(Wanda(), Unstructured(0.6))},
        ),
        (["calibration windows: "], {}, {"calibration": tiny.windows(3, seed=5)}),
        (["propagate: pruned there, dense now"], {}, {"propagate": "dense"}),
        (["batch size: 1 there, 2 now"], {}, {"batch_size": 2}),
        (["dtype: float32 there, bfloat16 now"], {"dtype": torch.bfloat16}, {}),
    ],
)
def test_a_work_folder_of_another_run_is_refused_with_what_differs(tmp_path, words, model, options):
    asked = {"calibration": tiny.windows(3), "recipe": Recipe(Wanda(), Unstructured(0.5)), "work": tmp_path}
    prune(tiny.model(), **asked)
    other = tiny.model(**model)
    before = copy.deepcopy(other)
    with pytest.raises(UserError, match="holds another run") as refused:
        prune(other, **{**asked, **options})
    assert all(word in str(refused.value) for word in words)
    assert all(torch.equal(p, q) for p, q in zip(other.parameters(), before.parameters(), strict=True))


def test_a_work_folder_must_be_one(tmp_path):
    recipe = Recipe(Wanda(), Unstructured(0.5))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is no folder"):
        prune(tiny.model(), tiny.windows(), recipe, work=tmp_path / "file")
    with pytest.raises(UserError, match="holds something else than a pruning run"):
        prune(tiny.model(), tiny.windows(), recipe, work=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    stats = gather(tiny.model(), tiny.windows())
    with pytest.raises(UserError, match="give them instead of statistics"):
        prune(tiny.model(), stats, recipe, "dense", work=tmp_path / "work")
    for content in ("", "{", "[]", "7", "\ud800".encode("utf-8", "surrogatepass").decode("latin-1")):
        (tmp_path / "w").mkdir(exist_ok=True)
        (tmp_path / "w" / "asked.json").write_text(content)
        with pytest.raises(UserError, match=r"asked.json is damaged"):
            prune(tiny.model(), tiny.windows(), recipe, work=tmp_path / "w")


def test_statistics_of_another_model_are_refused_before_anything_is_changed():
    model, windows = tiny.model(), tiny.windows(2)
    shallower = gather(tiny.model(num_hidden_layers=2), windows)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        UserError,
        match=r"no statistics of model\.layers\.2\.self_attn\.q_proj: they were gathered on another model",
    ):
        prune(model, shallower, Recipe(RIA(), Unstructured(0.5)), "dense")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_weight_that_decoder_layers_share_is_pruned_once_and_not_streamed(tmp_path):
    model = families.build("zamba2")
    shared = [n for n in model.state_dict() if n.endswith("shared_transformer.feed_forward.down_proj.weight")]
    first, second = (model.state_dict(keep_vars=True)[name] for name in shared)
    assert first is second
    windows = tiny.windows(3)
    report = prune(model, windows, Recipe(Wanda(), Unstructured(0.5), R2DSnoT()), keep_masks=True)
    names = [linear.name for linear in report.linears]
    assert [f"{name}.weight" for name in names if "feed_forward.down_proj" in name] == shared[:1]
    assert (first == 0).sum() == first.numel() // 2
    assert torch.equal(first != 0, report.masks[shared[0].removesuffix(".weight")])
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="is shared with an earlier decoder layer"):
        prune_checkpoint(str(tmp_path / "model"), tmp_path / "out", windows, Recipe(Magnitude()))


def test_a_model_in_training_mode_is_calibrated_without_dropout_and_stays_in_it():
    model, windows = tiny.model("gpt2", attn_pdrop=0.5, resid_pdrop=0.5), tiny.windows()
    dense, recipe = copy.deepcopy(model), Recipe(Wanda(), Unstructured(0.5))
    expected = prune(copy.deepcopy(model), windows, recipe, keep_masks=True).masks
    found = prune(dense.train(), windows, recipe, keep_masks=True).masks
    assert all(torch.equal(found[name], mask) for name, mask in expected.items())
    assert all(module.training for module in dense.modules())


def test_a_weight_made_anew_for_every_forward_and_what_is_no_model_are_refused():
    recipe, windows = Recipe(Wanda(), Unstructured(0.5)), tiny.windows()
    model = tiny.model()
    torch.nn.utils.parametrizations.weight_norm(decoder_layers(model)[0].mlp.up_proj)
    with pytest.raises(UserError, match="up_proj makes its weight anew"):
        prune(model, windows, recipe)
    with pytest.raises(UserError, match="DataParallel is no model of transformers"):
        prune(torch.nn.DataParallel(tiny.model()), windows, recipe)


def test_what_stands_in_several_places_is_pruned_once_and_left_whole():
    model, windows, recipe = tiny.model(), tiny.windows(), Recipe(Wanda(), Unstructured(0.5))
    layers = decoder_layers(model)
    layers[1] = layers[0]
    layers[2].mlp.up_proj.weight = layers[2].mlp.gate_proj.weight
    report = prune(model, windows, recipe)
    assert [linear.name for linear in report.linears if "up_proj" in linear.name] == [
        "model.layers.0.mlp.up_proj"
    ]
    assert all((linear.weight == 0).double().mean() == 0.5 for linear in named_linears(model).values())
    assert not any("forward" in vars(layer) for layer in layers)


def test_masks_of_a_model_with_a_dead_linear_are_saved_and_applied(tmp_path):
    model = tiny.model()
    decoder_layers(model)[1].mlp.up_proj.weight.data.zero_()
    dense = copy.deepcopy(model)
    report = prune(model, tiny.windows(), Recipe(Wanda(), Unstructured(0.5)), keep_masks=True)
    record = Record({}, {"left_dense": dict.fromkeys(report.left_dense)}, {})
    assert list(report.left_dense) == ["model.layers.1.mlp.down_proj.weight"]
    save_masks(tmp_path / "masks", report.masks, model, record)
    apply_masks(dense, load_masks(tmp_path / "masks"))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), dense.parameters(), strict=True))
