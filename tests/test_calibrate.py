"""The runner is the model's own forward, and the statistics are those of the inputs it shows."""

import pytest
import tiny
import torch
from torch import nn

from symprune import UserError, perplexity
from symprune.models import devices
from symprune.models.layers import decoder_layers, named_linears, weight_view
from symprune.pruning import calibrate
from symprune.pruning.calibrate import collecting, gather, linear_activations
from symprune.pruning.runner import LayerRunner

ALL_FIELDS = {"input_norm", "input_mean", "input_var", "input_var_within", "output_norm"}


def forward_layer_outputs(model: nn.Module, batch: torch.Tensor) -> list[torch.Tensor]:
    """What each decoder layer gives in a plain forward."""
    seen, handles = [], []
    for layer in decoder_layers(model):
        handles.append(
            layer.register_forward_hook(
                lambda _, __, out: seen.append(out if isinstance(out, torch.Tensor) else out[0])
            )
        )
    with torch.no_grad():
        model(input_ids=batch, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("family", tiny.CONFIGS)
@pytest.mark.parametrize("batch_size", [1, 3])  # 3 leaves a smaller last batch
def test_runner_equals_plain_forward_bit_for_bit(family, batch_size):
    model, windows = tiny.model(family), tiny.windows(4)
    expected = [forward_layer_outputs(model, batch) for batch in windows.split(batch_size)]
    runner = LayerRunner(model, windows, batch_size)
    for index in range(len(runner.layers)):
        runner.run(index)
        for hidden, outputs in zip(runner.hidden, expected, strict=True):
            assert torch.equal(hidden, outputs[index])


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_capture_leaves_the_model_as_it_was(family):
    model, windows = tiny.model(family), tiny.windows(2)
    before = model(input_ids=windows).logits
    gather(model, windows, ALL_FIELDS)
    assert all("forward" not in layer.__dict__ for layer in decoder_layers(model))
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(model(input_ids=windows).logits, before)


@pytest.mark.parametrize("family", ["llama", "mistral, sliding window", "opt", "gpt2"])
def test_statistics_are_those_of_the_inputs_in_a_plain_forward(family):
    model, windows = tiny.model(family), tiny.windows(3, seq_len=10)
    seen = {name: ([], []) for name in named_linears(model)}

    def remember(inputs, outputs):
        def hook(_, args, out):
            inputs.append(args[0].reshape(1, 10, -1))
            outputs.append(out.reshape(1, 10, -1))

        return hook

    handles = [
        linear.register_forward_hook(remember(*seen[name])) for name, linear in named_linears(model).items()
    ]
    with torch.no_grad():
        for window in windows:
            model(input_ids=window[None], use_cache=False)
    for handle in handles:
        handle.remove()
    stats = gather(model, windows, ALL_FIELDS)
    assert list(stats) == list(seen)
    for name, (inputs, outputs) in seen.items():
        x, y = torch.cat(inputs).double(), torch.cat(outputs).double()
        flat = x.flatten(0, 1)
        found = stats[name]
        assert (found.n_tokens, found.n_samples) == (30, 3)
        torch.testing.assert_close(found.input_norm.double(), flat.norm(dim=0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.input_mean.double(), flat.mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.input_var.double(), flat.var(0, correction=0), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(
            found.input_var_within.double(), x.var(1, correction=0).mean(0), rtol=1e-4, atol=1e-6
        )
        torch.testing.assert_close(
            found.output_norm.double(), y.flatten(0, -2).norm(dim=0), rtol=1e-5, atol=1e-6
        )


def test_output_side_gradients_are_those_of_the_loss():
    model, windows = tiny.model("llama"), tiny.windows(2, seq_len=8)
    name, linear = list(named_linears(model).items())[4]
    d_out, _ = weight_view(linear).shape
    squares = torch.zeros(d_out, dtype=torch.float64)
    # the gradient with respect to an additive perturbation of the output, by definition
    for window in windows:
        shift = torch.zeros(1, 8, d_out, requires_grad=True)
        handle = linear.register_forward_hook(lambda _, __, out, shift=shift: out + shift)
        model(input_ids=window[None], labels=window[None]).loss.backward()
        handle.remove()
        squares += shift.grad.double().square().sum((0, 1))
    stats = gather(model, windows, {"input_norm", "output_norm"}, output_side="gradients")
    torch.testing.assert_close(stats[name].output_norm.double(), squares.sqrt(), rtol=1e-4, atol=1e-9)
    forward_only = gather(model, windows, {"input_norm"})
    torch.testing.assert_close(stats[name].input_norm, forward_only[name].input_norm)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_outputs_are_gathered_only_when_a_score_reads_them():
    stats = gather(tiny.model(), tiny.windows(1), {"input_norm"})
    assert all(s.output_norm is None and s.gram is None for s in stats.values())


def test_memory_does_not_depend_on_the_positions_a_model_could_take():
    model = tiny.model("llama", max_position_embeddings=131072)
    runner = LayerRunner(model, tiny.windows(2, seq_len=12))
    assert all(hidden.shape[1] == 12 for hidden in runner.hidden)


@pytest.mark.parametrize(
    ("n", "seq_len", "named"), [(0, 4, "no windows"), (2, 0, "no windows"), (2, 65, "seq_len 65")]
)
def test_windows_the_model_cannot_take_are_refused(n, seq_len, named):
    with pytest.raises(UserError, match=named):
        gather(tiny.model(), torch.ones(n, seq_len, dtype=torch.long))


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize(
    ("token", "known"), [(95, True), (96, False), (10**6, False), (-1, False), (0, True)]
)
def test_a_token_without_a_row_in_the_embedding_is_named_with_the_vocabulary(family, token, known):
    model, windows = tiny.model(family), tiny.windows(3)
    windows[1, 4] = token
    for run in (gather, LayerRunner, perplexity, linear_activations_of_the_first):
        if known:
            run(model, windows)
            continue
        with pytest.raises(UserError, match=f"token id {token} is not in the vocabulary of .* has 96 rows"):
            run(model, windows)


def linear_activations_of_the_first(model, windows):
    return linear_activations(model, windows, [next(iter(named_linears(model)))])


def test_an_embedding_with_more_rows_than_the_tokenizer_has_tokens_is_no_fault():
    assert gather(tiny.model(vocab_size=128), tiny.windows(2))


def test_broken_weights_are_named_where_they_show():
    model = tiny.model()
    decoder_layers(model)[1].self_attn.v_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"NaN or inf in the inputs of model\.layers\.1\.self_attn\.o_proj"):
        gather(model, tiny.windows())


@pytest.mark.parametrize(("family", "groups"), [("llama", 4), ("gpt2", 4), ("opt", 4)])
def test_linears_that_receive_the_same_tensor_share_one_gram_matrix_with_the_right_values(family, groups):
    model, windows = tiny.model(family), tiny.windows(3, seq_len=10)
    seen = {name: [] for name in named_linears(model)}
    handles = []
    for name, linear in named_linears(model).items():
        handles.append(
            linear.register_forward_hook(lambda _, args, __, into=seen[name]: into.append(args[0]))
        )
    stats = gather(model, windows, {"gram"})
    for handle in handles:
        handle.remove()
    # the runner's entrance calls the first decoder layer once more
    seen = {name: inputs[-3:] for name, inputs in seen.items()}
    for name, inputs in seen.items():
        x = torch.cat([tensor.reshape(-1, tensor.shape[-1]) for tensor in inputs]).double()
        torch.testing.assert_close(stats[name].gram.double(), x.T @ x, rtol=1e-5, atol=1e-5)
        sharing = [other for other in seen if all(a is b for a, b in zip(seen[other], inputs, strict=True))]
        assert {stats[other].gram.data_ptr() for other in sharing} == {stats[name].gram.data_ptr()}
    assert len({s.gram.data_ptr() for s in stats.values()}) == groups * len(decoder_layers(model))


def test_linears_part_when_they_receive_different_tensors_later():
    linears = {name: nn.Linear(4, 2) for name in "abc"}
    x, y, z = torch.randn(3, 5, 4)
    with torch.no_grad(), collecting(linears, {"gram"}) as sums:
        for name, inputs in [("a", x), ("b", x), ("c", x), ("a", y), ("b", y), ("c", z), ("a", z), ("b", x)]:
            linears[name](inputs)
    for name, given in {"a": [x, y, z], "b": [x, y, x], "c": [x, z]}.items():
        flat = torch.cat(given)
        found = sums.finish()[name]
        torch.testing.assert_close(found.gram, flat.T @ flat)
        torch.testing.assert_close(found.input_norm, flat.norm(dim=0))
        assert found.n_tokens == len(flat)


def test_gram_matrices_that_do_not_fit_are_refused_before_they_are_gathered(monkeypatch):
    model, per_layer = tiny.model(), 4 * (3 * 32**2 + 48**2)
    monkeypatch.setattr(devices, "free_memory", lambda _: 8 * (32**2 + 48**2) + 4 * 48**2 - 1)
    with pytest.raises(UserError, match=r"Gram matrices of one decoder layer.*q_proj"):
        gather(model, tiny.windows(1), {"gram"})
    tried = []
    monkeypatch.setattr(calibrate, "runs_by_layer", lambda *_: True)  # which runs the layers too
    monkeypatch.setattr(devices, "free_memory", lambda _: 2 * per_layer - 1 if tried else 10**9)
    real = LayerRunner.run
    monkeypatch.setattr(LayerRunner, "run", lambda *args: (real(*args), tried.append(args[1])))
    with pytest.raises(UserError, match="Gram matrices of 3 decoder layers"):
        gather(model, tiny.windows(1), {"gram"})
    assert tried == [0]
