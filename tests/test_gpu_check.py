"""The check of a GPU, rehearsed on a processor at small size; and its published loop, which is another's
account of what `prune` does.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import pytest
import tiny
import torch

from symprune import Recipe, Unstructured, Wanda, prune
from symprune.base import paths
from symprune.models.layers import named_linears

sys.path.insert(0, str(paths.ROOT / "benchmarks"))

import gpu_check
import semi_structured
import timed_pruning


@pytest.fixture(scope="module")
def small() -> dict:
    sizes = {"windows": 6, "few": 3, "seq_len": 16, "budget_seconds": 300.0, "only": [""]}
    return {"size": "tiny", "device": "cpu", "dtype": "float32", **sizes}


@pytest.fixture(scope="module")
def found(small, tmp_path_factory) -> dict:
    return gpu_check.check(argparse.Namespace(**small, out=tmp_path_factory.mktemp("check"))).found


@pytest.mark.parametrize("family", ["llama", "opt", "mistral, sliding window"])
def test_the_published_loop_ends_with_the_weights_that_prune_leaves(family):
    windows, sparsity = tiny.windows(4), 0.5
    theirs, ours = (tiny.model(family, dtype=torch.float64) for _ in range(2))
    timed_pruning.published_loop(theirs, windows, sparsity)
    prune(ours, windows, Recipe(Wanda(), Unstructured(sparsity)))
    for name, linear in named_linears(ours).items():
        assert (linear.weight == 0).any()
        assert torch.equal(linear.weight, named_linears(theirs)[name].weight), name


def test_every_recipe_is_measured_beside_its_prediction_and_the_table_says_so(found):
    layers = timed_pruning.SIZES["tiny"][2]
    table = gpu_check.tables(found)
    for recipe in [gpu_check.WANDA, *gpu_check.RECIPES]:
        part = found["parts"][recipe.label]
        assert part["layers"] == layers
        assert part["sparsity"] == pytest.approx(recipe.pattern.sparsity, abs=0.02)
        assert part["predicted_peak"] > 0
        assert (
            f"| {recipe.label} | {part['windows']} | {part['batch_size']} | {layers} of {layers} |" in table
        )
    assert found["parts"]["runner"] == {"to_the_bit": True, "part_seconds": pytest.approx(1, abs=60)}
    wanda = found["parts"][gpu_check.WANDA.label]
    assert wanda["alike_first"] > 0.999
    loop = found["parts"][gpu_check.LOOP]["seconds"]
    assert f"Ours takes {wanda['seconds'] / loop:.2f} of the published loop's time." in table
    least = found["parts"][gpu_check.PASSES]["seconds"] / loop
    assert f"Two passes over the layers, without statistics and masks, take {least:.2f} of it." in table
    assert json.loads(json.dumps(found)) == found


def test_a_part_is_done_anew_without_the_others(small, found, tmp_path):
    file = tmp_path / "processor.json"
    file.write_text(json.dumps(found))
    again = gpu_check.check(argparse.Namespace(**small | {"only": ["runner"]}, out=tmp_path)).found["parts"]
    changed = {name for name, part in again.items() if part != found["parts"][name]}
    assert again.keys() == found["parts"].keys()
    assert changed <= {"runner"}


def test_what_would_take_too_long_is_cut_at_a_layer_and_what_fails_is_told(small, tmp_path):
    model, windows = timed_pruning.build("tiny", "float32", "cpu"), torch.zeros(2, 8, dtype=torch.long)
    cut = timed_pruning.pruned(model, windows, gpu_check.WANDA, 1, end=-math.inf)
    assert cut["layers"] == 0
    check = gpu_check.Check(tmp_path / "found.json", {"size": "tiny"}, budget=60)
    check.part("broken", 1, lambda end: 1 / 0)
    check.part("late", 0, lambda end: {"seconds": 1})
    kept = json.loads(Path(tmp_path / "found.json").read_text())["parts"]
    assert kept["broken"]["failed"] == "ZeroDivisionError: division by zero"
    assert kept["late"]["left_out"] == "the budget was spent"
    assert "broken: ZeroDivisionError: division by zero" in gpu_check.tables(check.found)


def test_the_weights_are_the_same_each_time():
    model = timed_pruning.build("tiny", "float32", "cpu")
    states = []
    for _ in range(2):
        timed_pruning.fill(model)
        states.append({name: value.clone() for name, value in model.state_dict().items()})
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


def test_products_of_a_decoder_layer_are_added_up_by_how_many_there_are_of_a_shape():
    rows = [
        {"d_out": d_out, "d_in": d_in, "graph": False, "backend": "cusparselt", "tokens": 16}
        | {"error": 0.0, "dense_us": 1000.0, "sparse_us": 500.0}
        for d_out, d_in, _ in semi_structured.LINEARS.values()
    ]
    rows.append({"backend": "cutlass", "failed": "RuntimeError: not here"})
    table = semi_structured.table(rows)
    assert "| cusparselt | by PyTorch | 16 | 7.000 | 3.500 | 2.00 |" in table
    assert table.endswith("Not to be had on this machine: cutlass: RuntimeError: not here")


def test_the_page_on_scaling_shows_what_was_kept_of_each_gpu():
    page = (paths.ROOT / "docs/scaling.md").read_text()
    for file in sorted((paths.ROOT / "results/gpu_check").glob("*.json")):
        assert gpu_check.tables(json.loads(file.read_text())) in page, file
