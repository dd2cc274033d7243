"""Perplexity against Wanda's convention written out."""

import math

import pytest
import tiny
import torch

from symprune import UserError, perplexity
from symprune.base import progress


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
