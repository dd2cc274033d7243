"""On a GPU: the bits of a model's own forward, the processor's masks, streaming, and streams that merge.

In float64 the two devices round to 1e-15, so that masks are equal; in float32 they differ at near ties alone.
The pruning of a 7B-shaped model is timed by benchmarks/gpu_check.py.
"""

import copy

import pytest
import tiny
import torch

from symprune import (
    NM,
    RIA,
    DSnoT,
    Magnitude,
    R2DSnoT,
    Recipe,
    StochRIA,
    SymWanda,
    Unstructured,
    Wanda,
    perplexity,
    prune,
)
from symprune.methods.norms import SAMPLERS
from symprune.methods.refine import ExactSwap
from symprune.models.layers import named_linears, weight_view
from symprune.models.load import load_model
from symprune.pruning.calibrate import accumulate, gather
from symprune.pruning.runner import runs_by_layer
from symprune.pruning.stream import prune_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]

RECIPES = [
    Recipe(Magnitude(), Unstructured(0.5)),
    Recipe(Wanda(), Unstructured(0.5)),
    Recipe(RIA(), Unstructured(0.5, "layer")),
    *(Recipe(StochRIA(beta=0.3, sampling=sampling), Unstructured(0.6)) for sampling in SAMPLERS),
    Recipe(SymWanda(), Unstructured(0.5)),
    Recipe(Wanda(), NM(2, 4)),
    Recipe(Wanda(), Unstructured(0.6), DSnoT()),
    Recipe(Wanda(), NM(2, 4), DSnoT()),
    Recipe(RIA(), Unstructured(0.6), R2DSnoT()),
    Recipe(Wanda(), Unstructured(0.5), ExactSwap()),
    Recipe(Wanda(), NM(2, 4), ExactSwap()),
]


def masks_of(model, windows, recipe, **how) -> dict:
    found = prune(copy.deepcopy(model), windows, recipe, keep_masks=True, **how).masks
    return {name: mask.cpu() for name, mask in found.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_layer_by_layer_is_the_models_own_forward_to_the_bit(family, dtype):
    assert runs_by_layer(tiny.model(family, dtype=dtype).cuda(), tiny.windows(2))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.label)
def test_masks_are_the_processors(recipe):
    """Where no rounding decides; stochRIA's entries are the same on both, so its masks are, too."""
    model, windows = tiny.model(dtype=torch.float64), tiny.windows(4)
    expected, found = masks_of(model, windows, recipe), masks_of(model.cuda(), windows, recipe)
    assert all(torch.equal(found[name], mask) for name, mask in expected.items())


def test_masks_in_float32_differ_from_the_processors_at_near_ties_alone():
    model, windows, pattern = tiny.model(), tiny.windows(8), Unstructured(0.5)
    on_cpu, on_gpu = gather(model, windows), gather(copy.deepcopy(model).cuda(), windows)
    for name, linear in named_linears(model).items():
        scores = Wanda()(weight_view(linear), on_cpu[name])
        there = Wanda()(weight_view(linear).cuda(), on_gpu[name]).cpu()
        torch.testing.assert_close(there, scores, rtol=1e-4, atol=0)
        threshold = scores.sort(dim=1).values[:, scores.shape[1] // 2, None]
        differ = pattern(there.cuda()).cpu() ^ pattern(scores)
        assert ((scores / threshold - 1).abs()[differ] < 2e-4).all()


@pytest.mark.parametrize("pattern", [Unstructured(0.6), Unstructured(0.5, "layer"), NM(2, 4), NM(16, 32)])
def test_equal_scores_go_by_index_as_on_the_processor(pattern):
    scores = torch.randint(0, 4, (64, 128), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(pattern(scores.cuda()).cpu(), pattern(scores))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("recipe", [RECIPES[1], RECIPES[-4], RECIPES[-1]], ids=lambda recipe: recipe.label)
def test_streamed_layers_end_with_the_bits_of_the_run_in_memory(recipe, dtype, tmp_path):
    tiny.model().save_pretrained(tmp_path / "dense", max_shard_size="20kB")
    name, windows = str(tmp_path / "dense"), tiny.windows(4)
    model = load_model(name, dtype, "cuda")
    prune(model, windows, recipe)
    prune_checkpoint(name, tmp_path / "out", windows, recipe, dtype=dtype, device="cuda")
    streamed = load_model(str(tmp_path / "out"), dtype).state_dict()
    assert all(torch.equal(streamed[key], tensor.cpu()) for key, tensor in model.state_dict().items())


def test_two_streams_of_windows_merge_to_the_statistics_of_one_to_the_bit():
    model, windows = tiny.model(dtype=torch.bfloat16).cuda(), tiny.windows(6)
    uses = {"input_norm", "output_norm"}
    first, second = (accumulate(model, part, uses) for part in (windows[:2], windows[2:]))
    merged, whole = second.merge(first).finish(), gather(model, windows, uses)
    for name, stats in whole.items():
        for field, value in vars(stats).items():
            other = getattr(merged[name], field)
            assert torch.equal(other, value) if isinstance(value, torch.Tensor) else other == value, field


def test_a_batch_that_the_gpu_chooses_changes_rounding_alone():
    model, windows = tiny.model(dtype=torch.float64).cuda(), tiny.windows(8)
    one, many = (masks_of(model, windows, RECIPES[1], batch_size=size) for size in (1, "auto"))
    assert all(torch.equal(many[name], mask) for name, mask in one.items())
    expected = perplexity(copy.deepcopy(model).cpu(), windows)
    assert perplexity(model, windows, batch_size="auto") == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_two_of_four_masks_are_what_the_hardware_takes(dtype):
    weight = torch.randn(128, 256, generator=torch.Generator().manual_seed(0)).cuda().to(dtype)
    pruned = weight * NM(2, 4)(weight.abs().float())
    inputs = torch.randn(64, 256, device="cuda", dtype=dtype)
    sparse = torch.sparse.to_sparse_semi_structured(pruned)
    assert torch.equal(sparse.to_dense(), pruned)
    found = torch.nn.functional.linear(inputs, sparse)
    expected = inputs.double() @ pruned.double().t()
    assert (found.double() - expected).norm() < 1e-2 * expected.norm()
