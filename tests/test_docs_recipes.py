"""The recipes of the docs run as they stand there."""

import re

import pytest

from symprune.base import paths
from symprune.pruning.mask_files import load_masks, verify_masks

TEXT = (paths.ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore")
def test_every_recipe_runs_after_those_before_it(checkpoint, tmp_path, monkeypatch, capsys):
    pytest.importorskip("peft")
    pytest.importorskip("lm_eval")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S)
    assert len(blocks) == 7
    made: dict = {"NAME": str(checkpoint), "__name__": "recipes"}
    monkeypatch.setitem(__import__("sys").modules, "recipes", type(pytest)("recipes"))
    for block in blocks:
        exec(compile(block, "docs/recipes.md", "exec", dont_inherit=True), made)
    printed = capsys.readouterr().out
    assert "generated_text" in printed
    assert "RootWanda, 2:4: 50.00% of the weights of 14 linears removed" in printed
    masks = load_masks("masks.safetensors")
    assert verify_masks(masks)["sparsity"] == 0.5
    assert made["report"].masks.keys() == masks.masks.keys()
    assert (made["linear"].weight == 0).sum() == 64
