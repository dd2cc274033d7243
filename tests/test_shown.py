"""How things show themselves: recipes, statistics, reports, and the picture of a mask."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import tiny
import torch

from symprune import (
    NM,
    DSnoT,
    ExactSwap,
    LpNorm,
    Magnitude,
    Recipe,
    Refit,
    StatsAccumulator,
    Unstructured,
    Wanda,
    prune,
)
from symprune.methods.objective import relative_loss
from symprune.paper.mask_figure import kept_weights
from symprune.pruning.mask_files import MaskFile


@dataclass(frozen=True)
class Own:
    a: int = 1
    uses: ClassVar[tuple[str, ...]] = ()

    def __call__(self, weight, stats):
        return weight.abs()


RECIPES = [
    Recipe(Wanda()),
    Recipe("ria(alpha=1.0)", "2:4", "exact_swap", "refit"),
    Recipe(LpNorm(p=float("inf")), Unstructured(1e-05)),
    Recipe(Magnitude(), "0.6 per layer", None, "refit(damping=0.5)"),
    Recipe(Own(2), NM(4, 8), DSnoT(max_cycles=3)),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.label)
def test_a_recipe_is_shown_as_the_text_that_makes_it_again(recipe):
    assert (
        eval(repr(recipe), {"Recipe": Recipe, "Unstructured": Unstructured, "Own": Own, "inf": float("inf")})
        == recipe
    )
    html = recipe._repr_html_()
    assert recipe.label in html
    assert html.count("<tr>") == 2 + bool(recipe.refine) + bool(recipe.update)


def test_a_short_recipe_is_shown_short():
    assert repr(RECIPES[0]) == "Recipe('wanda', '0.5 per output')"
    assert repr(RECIPES[1]) == "Recipe('ria(alpha=1.0)', '2:4', 'exact_swap', 'refit')"
    assert repr(RECIPES[3]) == "Recipe('magnitude', '0.6 per layer', None, 'refit(damping=0.5)')"
    assert "alpha = 1.0" in RECIPES[1]._repr_html_()


def accumulated(inputs, gram):
    accumulator = StatsAccumulator(inputs.shape[1], 3, gram=gram)
    accumulator.update(inputs)
    return accumulator.finish()


def test_what_holds_tensors_is_shown_in_a_line():
    stats = accumulated(torch.rand(5, 4), gram=True)
    assert (
        repr(stats)
        == "LayerStats of 5 tokens in 1 samples: input_norm, input_mean, input_var, input_var_within, gram"
    )
    weight = torch.randn(3, 4)
    refined = ExactSwap().run(weight, NM(2, 4)(weight.abs()), stats, NM(2, 4))
    updated = Refit().run(weight, refined.mask, stats)
    masks = MaskFile({"a": refined.mask}, {})
    assert repr(masks) == "MaskFile of 1 linears: 50.00% of their weights removed"
    for shown in (refined, updated, masks):
        assert "tensor" not in repr(shown)
        assert "\n" not in repr(shown)


def test_the_relative_loss_is_that_of_the_outputs():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    weight, mask = (
        torch.randn(3, 4, generator=generator, dtype=torch.float64),
        torch.tensor([[True, False, True, False]] * 3),
    )
    before, after = inputs.numpy() @ weight.numpy().T, inputs.numpy() @ (weight * mask).numpy().T
    expected = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert relative_loss(weight, weight, mask, accumulated(inputs, gram=True)) == pytest.approx(expected)
    lost, whole = 0.0, 0.0
    for i in range(3):
        for j in range(4):
            square = float(weight[i, j]) ** 2 * sum(float(x) ** 2 for x in inputs[:, j])
            whole, lost = whole + square, lost + (square if j in (1, 3) else 0)
    assert relative_loss(weight, weight, mask, accumulated(inputs, gram=False)) == pytest.approx(
        (lost / whole) ** 0.5
    )
    nothing = accumulated(torch.zeros(2, 4), gram=False)
    assert relative_loss(weight, weight, mask, nothing) == 0


def test_a_report_tells_the_loss_of_every_linear_by_depth():
    report = prune(tiny.model(), tiny.windows(), Recipe(Wanda(), NM(2, 4)))
    (ax,) = report.plot().axes
    assert ax.get_ylabel() == "loss"
    layers = {linear.depth for linear in report.linears}
    assert len(layers) > 1
    for line in ax.lines:
        assert list(line.get_xdata()) == sorted(layers)
        assert list(line.get_ydata()) == [x.loss for x in report.linears if x.kind == line.get_label()]
    assert all(0 < linear.loss < 1 for linear in report.linears)
    assert "inputs taken as uncorrelated" in report._repr_html_()
    exact = prune(tiny.model(), tiny.windows(), Recipe(Wanda(), NM(2, 4), ExactSwap(max_cycles=0)))
    assert "uncorrelated" not in exact._repr_html_()
    assert exact.linears[0].loss != report.linears[0].loss
    assert exact.linears[0].kept == report.linears[0].kept


def test_a_report_without_statistics_or_of_sparsities_that_vary_shows_sparsity():
    assert [ax.get_ylabel() for ax in prune(tiny.model(), None, Recipe(Magnitude())).plot().axes] == [
        "sparsity"
    ]
    odd = prune(tiny.model(), tiny.windows(), Recipe(Wanda(), Unstructured(0.5)))
    object.__setattr__(odd.linears[0], "kept", 0)
    assert [ax.get_ylabel() for ax in odd.plot().axes] == ["loss", "sparsity"]


def test_the_picture_of_a_mask_tells_the_share_kept_by_row_and_column():
    mask = torch.zeros(80, 200, dtype=torch.bool)
    mask[:, :50] = True
    mask[:8] = True
    picture = kept_weights(mask, "layers.0.q_proj")
    top, image, side = picture.figure.axes[:3]
    assert list(top.lines[0].get_ydata()) == pytest.approx([1.0] * 50 + [0.1] * 150)
    assert list(side.lines[0].get_xdata()) == pytest.approx([1.0] * 8 + [0.25] * 72)
    blocks = image.images[0].get_array()
    assert blocks.shape == (64, 64)
    assert (blocks[-1, 0], blocks[-1, -1], blocks[0, -1]) == (1, 0, 1)
    assert "10% to 100%" in picture.caption
    assert "25% to 100%" in picture.caption
