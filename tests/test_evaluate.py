"""Perplexity against Wanda's convention written out."""

import math

import pytest
import tiny
import torch

from symprune import Magnitude, Recipe, UserError, perplexity, prune
from symprune.base import progress
from symprune.measure import dense_outputs


def by_definition(model, windows):
    """exp(sum over windows of loss * L / (n * L)), the loss a mean over the L - 1 predicted tokens."""
    nlls = []
    for window in windows:
        log_p = model(input_ids=window[None]).logits[0].double().log_softmax(-1)
        loss = -sum(log_p[t, window[t + 1]].item() for t in range(len(window) - 1)) / (len(window) - 1)
        nlls.append(loss * len(window))
    return math.exp(sum(nlls) / (len(windows) * windows.shape[1])), [nll / windows.shape[1] for nll in nlls]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("batch_size", [1, 3])
@torch.no_grad()
def test_perplexity_follows_wandas_convention(family, batch_size):
    model, windows = tiny.model(family), tiny.windows(4)
    expected, losses = by_definition(model, windows)
    value = perplexity(model, windows, batch_size=batch_size)
    assert value == pytest.approx(expected, rel=1e-5)
    assert value.losses == pytest.approx(losses, rel=1e-5)
    assert (value.n_windows, value.n_tokens, value.seq_len) == (4, 48, 12)
    mean = sum(losses) / 4
    standard_error = math.sqrt(sum((x - mean) ** 2 for x in losses) / 3 / 4)
    assert value.stderr == pytest.approx(expected * standard_error, rel=1e-4)
    assert isinstance(value, float)


def test_one_window_has_no_standard_error():
    assert math.isnan(perplexity(tiny.model(), tiny.windows(1)).stderr)


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary():
    model = tiny.model()
    model.lm_head.weight.data.zero_()
    assert perplexity(model, tiny.windows(3)) == pytest.approx(96, rel=1e-6)


def test_a_loss_that_is_nan_is_an_error_not_a_number():
    model = tiny.model()
    model.lm_head.weight.data[0, 0] = math.nan
    with pytest.raises(UserError, match="NaN"):
        perplexity(model, tiny.windows())


@pytest.mark.parametrize(("n", "seq_len"), [(0, 4), (2, 65), (2, 1)])
def test_windows_the_model_cannot_take_are_refused(n, seq_len):
    with pytest.raises(UserError):
        perplexity(tiny.model(), torch.ones(n, seq_len, dtype=torch.long))


def test_a_bar_is_shown_only_where_progress_is_switched_on(capsys):
    perplexity(tiny.model(), tiny.windows(2))
    assert capsys.readouterr().err == ""
    with progress.showing():
        perplexity(tiny.model(), tiny.windows(2))
    assert "perplexity" in capsys.readouterr().err
    assert not progress.shown()
    with progress.showing(False):
        perplexity(tiny.model(), tiny.windows(2))
    assert capsys.readouterr().err == ""


# Beside the dense model.


def beside_by_loops(dense, pruned, window) -> tuple[float, float]:
    """Divergence and agreement of one window, token by token and word by word of the vocabulary."""
    p, q = (m(input_ids=window[None]).logits[0].double().log_softmax(-1).tolist() for m in (dense, pruned))
    divergences, agree = [], []
    for t in range(len(window) - 1):
        divergences.append(sum(math.exp(a) * (a - b) for a, b in zip(p[t], q[t], strict=True)))
        agree.append(p[t].index(max(p[t])) == q[t].index(max(q[t])))
    return sum(divergences) / len(divergences), sum(agree) / len(agree)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3, local and global layers"])
@pytest.mark.parametrize("batch_size", [1, 3])
@torch.no_grad()
def test_divergence_and_agreement_are_those_of_explicit_loops(family, batch_size):
    model, dense, windows = tiny.model(family), tiny.model(family), tiny.windows(4)
    outputs = dense_outputs(model, windows, batch_size)
    before = perplexity(model, windows, batch_size=batch_size, dense=outputs)
    assert (before.kl, before.agreement) == ((0,) * 4, (1,) * 4)
    prune(model, None, Recipe(Magnitude()))
    after = perplexity(model, windows, batch_size=batch_size, dense=outputs)
    expected = [beside_by_loops(dense, model, window) for window in windows]
    assert list(after.kl) == pytest.approx([kl for kl, _ in expected], rel=1e-4)
    assert list(after.agreement) == pytest.approx([agreement for _, agreement in expected])
    assert min(after.kl) > 0
    assert 0 < sum(after.agreement) < 4
    assert after.losses == perplexity(model, windows, batch_size=batch_size).losses


@torch.no_grad()
def test_logits_that_are_capped_after_the_head_are_kept_themselves():
    family, capped = "gemma3, local and global layers", {"final_logit_softcapping": 0.5}
    model, plain, windows = tiny.model(family, **capped), tiny.model(family), tiny.windows(2)
    outputs, of_plain = (dense_outputs(each, windows) for each in (model, plain))
    model.lm_head.weight.data.zero_()
    plain.lm_head.weight.data.zero_()
    assert outputs.logits(model, 1, 1).abs().max() > 0.01
    assert of_plain.logits(plain, 1, 1).abs().max() == 0, "without a cap the head computes them again"
    assert min(perplexity(model, windows, dense=outputs).kl) > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_dense_model_beside_itself_diverges_by_nothing_in_any_dtype(dtype):
    model, windows = tiny.model(dtype=dtype), tiny.windows(3)
    value = perplexity(model, windows, dense=dense_outputs(model, windows))
    assert (value.kl, value.agreement) == ((0, 0, 0), (1, 1, 1))


def test_outputs_of_other_windows_are_refused_and_without_any_nothing_is_told():
    model = tiny.model()
    with pytest.raises(UserError, match="of 2 windows, not of these 3"):
        perplexity(model, tiny.windows(3), dense=dense_outputs(model, tiny.windows(2)))
    assert (perplexity(model, tiny.windows(2)).kl, perplexity(model, tiny.windows(2)).agreement) == ((), ())
