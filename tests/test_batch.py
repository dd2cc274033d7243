"""The batch size "auto" fits into memory, is the same again, and changes no result."""

import copy

import pytest
import tiny
import torch

from symprune import RIA, Recipe, Unstructured, UserError, perplexity, prune
from symprune.pruning import cost
from symprune.pruning.calibrate import gather
from symprune.pruning.cost import Cost, Shape, batch_size_of
from symprune.pruning.runner import LayerRunner

FLOAT32 = 4


def bytes_of_a_window(model, seq_len: int, logits: bool) -> int:
    """What one window takes inside a decoder layer, and its logits."""
    activations = Cost(Shape.of(model), 1, seq_len, FLOAT32).activations
    return activations + logits * seq_len * 96 * FLOAT32


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("windows_that_fit", [1, 2, 3, 4, 7, 8])
def test_it_is_the_largest_power_of_two_that_fits(logits, windows_that_fit):
    model, windows = tiny.model(), tiny.windows(16)
    room = 2 * windows_that_fit * bytes_of_a_window(model, 12, logits)
    found = batch_size_of("auto", model, windows, room=room, logits=logits)
    assert found == max(power for power in (1, 2, 4, 8) if power <= windows_that_fit)
    a_byte_less = 2 * found * bytes_of_a_window(model, 12, logits) - 1
    assert batch_size_of("auto", model, windows, room=a_byte_less, logits=logits) == max(found // 2, 1)


def test_a_model_that_fills_the_memory_is_given_one_window(monkeypatch):
    monkeypatch.setattr(cost, "memory_of", lambda device: 1)
    assert batch_size_of("auto", tiny.model(), tiny.windows()) == 1


@pytest.mark.parametrize(
    ("seq_len", "device", "most"), [(12, "cpu", 32), (64, "cpu", 8), (12, "cuda", 1024), (64, "cuda", 256)]
)
def test_no_more_than_the_device_is_kept_busy_by(seq_len, device, most):
    windows = torch.zeros(2000, seq_len, dtype=torch.long)
    assert batch_size_of("auto", tiny.model(), windows, device=device, room=2**40) == most


def test_it_depends_on_the_machine_and_not_on_what_runs_there(monkeypatch):
    model, windows = tiny.model(), tiny.windows(3)
    expected = batch_size_of("auto", model, windows)
    monkeypatch.setattr(
        "psutil.virtual_memory", lambda: type("Memory", (), {"total": 24 * 2**30, "available": 0})
    )
    assert batch_size_of("auto", model, windows) == expected == batch_size_of("auto", model, windows[:1])


@pytest.mark.parametrize("asked", [0, -1, True, "many", "2"])
def test_anything_else_is_refused(asked):
    with pytest.raises(UserError, match="at least 1 or 'auto'"):
        batch_size_of(asked, tiny.model(), tiny.windows())


def test_what_takes_windows_takes_them_in_batches_of_that_size(monkeypatch):
    monkeypatch.setattr(cost, "_TOKENS_ELSEWHERE", 24)  # two windows
    model, windows = tiny.model(), tiny.windows(5)
    assert [len(hidden) for hidden in LayerRunner(model, windows, "auto").hidden] == [2, 2, 1]
    assert perplexity(model, windows, batch_size="auto") == perplexity(model, windows, batch_size=2)
    auto, two = (gather(model, windows, batch_size=size) for size in ("auto", 2))
    assert all(torch.equal(auto[name].input_norm, two[name].input_norm) for name in two)
    recipe = Recipe(RIA(), Unstructured(0.5))
    auto, two = (
        prune(copy.deepcopy(model), windows, recipe, batch_size=size, keep_masks=True).masks
        for size in ("auto", 2)
    )
    assert all(torch.equal(auto[name], two[name]) for name in two)


def test_a_run_that_was_killed_goes_on_with_the_size_it_began_with(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "_TOKENS_ELSEWHERE", 24)
    model, windows, recipe = tiny.model(), tiny.windows(5), Recipe(RIA(), Unstructured(0.5))
    prune(copy.deepcopy(model), windows, recipe, batch_size="auto", work=tmp_path / "work")
    prune(copy.deepcopy(model), windows, recipe, batch_size=2, work=tmp_path / "work")
    with pytest.raises(UserError, match="batch size: 2 there, 1 now"):
        prune(model, windows, recipe, batch_size=1, work=tmp_path / "work")
