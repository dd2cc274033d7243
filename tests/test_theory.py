"""The theory as tables: each number again by its definition."""

from dataclasses import replace

import pytest
import tiny
import torch
from test_objective import layer

from symprune import SCORES, LpNorm, Symmetric, Unstructured
from symprune.base.errors import UserError
from symprune.methods.norms import SAMPLERS
from symprune.methods.pairs import PAIRS
from symprune.methods.stats import LayerStats
from symprune.models.layers import named_linears, weight_view
from symprune.paper.theory import (
    mask_prediction,
    methods_table,
    removal_identity,
    sampling_reads,
    statistics_of,
    symwanda_agreement,
)
from symprune.pruning.calibrate import linear_activations

CONSTRUCTIONS = [(name, construction) for name in SCORES for construction in PAIRS[name]]


def test_the_table_of_methods_follows_the_code():
    table = methods_table()
    assert list(table.index) == list(SCORES)
    assert table.loc["wanda", ["weight", "inputs", "outputs"]].tolist() == ["no", "yes", "no"]
    assert table.loc["general_diagonal", ["weight", "inputs", "outputs"]].tolist() == ["yes", "yes", "yes"]
    assert table.loc["stochria", ["weight", "inputs", "outputs"]].tolist() == ["yes", "if alpha > 0", "no"]
    assert not any("|" in cell for cell in table.to_numpy().ravel()), "a bar would end a Markdown cell"
    for name, score in SCORES.items():
        assert (table.loc[name, "outputs"] == "yes") == ("output_norm" in score().uses)


def test_removal_identity_holds_for_every_pair():
    weight, inputs, outputs, _ = layer()
    found = removal_identity(weight, inputs, outputs.t())
    assert list(zip(found["method"], found["construction"], strict=True)) == CONSTRUCTIONS
    assert found["relative"].max() < 1e-10


def test_removal_identity_sees_a_wrong_score(monkeypatch):
    weight, inputs, outputs, _ = layer()
    wrong = {"lp": LpNorm(p=2.0)}
    monkeypatch.setitem(
        PAIRS, "lp_norm", {"of another p": lambda *tensors, p, alpha: PAIRS["ri"]["diagonals"](*tensors)}
    )
    assert removal_identity(weight, inputs, outputs.t(), wrong)["relative"].item() > 0.1


def test_mask_prediction_by_definition():
    weight, inputs, outputs, stats = layer()
    shown = {name: cls() for name, cls in SCORES.items()} | {"symmetric": Symmetric(squared=True)}
    found = mask_prediction(weight, inputs, outputs.t(), [0.3, 0.6], shown).set_index(
        ["method", "construction", "sparsity"]
    )
    assert len(found) == 2 * len(CONSTRUCTIONS)
    for (name, construction, sparsity), row in found.iterrows():
        pair = PAIRS[name][construction](weight, inputs, outputs, **vars(shown[name]))
        removed = [
            tuple(ij) for ij in (~Unstructured(sparsity)(shown[name](weight, stats))).nonzero().tolist()
        ]
        change = torch.zeros_like(weight)
        costs = []
        for i, j in removed:
            size = abs(weight[i, j] * pair.factor[j]).item()
            x, y = pair.X[:, j].square().sum().item(), pair.Y[i].square().sum().item()
            costs.append((size * (x**0.5 + y**0.5), size**2 * (x + y)))
            change[i, j] = weight[i, j] * pair.factor[j]
        sides = [
            torch.einsum("tj,ij->ti", pair.X, change).square().sum(),
            torch.einsum("ik,ij->kj", pair.Y, change).square().sum(),
        ]
        assert row["g"] == pytest.approx(sum(side.item() ** 0.5 for side in sides), rel=1e-10)
        assert row["g_squared"] == pytest.approx(sum(side.item() for side in sides), rel=1e-10)
        assert [row["sum"], row["sum_squared"]] == pytest.approx(
            [sum(c) for c in zip(*costs, strict=True)], rel=1e-10
        )


def test_the_sum_of_costs_is_a_bound_and_squares_add_where_changes_are_orthogonal():
    weight, inputs, outputs, _ = layer(12, 16, 9)
    found = mask_prediction(weight, inputs, outputs.t(), [0.1, 0.5, 0.9])
    assert (found["ratio"] <= 1 + 1e-12).all()
    orthogonal = found["construction"].isin(["identity", "diagonals"])
    assert found.loc[orthogonal, "ratio_squared"].to_numpy() == pytest.approx(1, rel=1e-12)
    assert (found.loc[~orthogonal, "ratio_squared"] - 1).abs().max() > 0.01


def test_one_removed_weight_is_predicted_exactly():
    weight, inputs, outputs, _ = layer(1, 8)
    found = mask_prediction(weight, inputs, outputs.t(), [1 / 8])
    assert found[["ratio", "ratio_squared"]].to_numpy() == pytest.approx(1, rel=1e-10)


def test_symwanda_goes_from_wanda_to_magnitude():
    weight, inputs, outputs, _ = layer(10, 20, 40)
    found = symwanda_agreement(weight, inputs, outputs.t(), [0.0, 1.0, 1e9], Unstructured(0.5))
    assert found.loc[0, "wanda"] == found.loc[2, "magnitude"] == 1
    assert found.loc[0, "magnitude"] < 1 > found.loc[2, "wanda"]


@pytest.mark.parametrize("shape", [(64, 64), (48, 40)])
def test_reads_are_counted(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight[3] = 0  # read like any other row
    found = sampling_reads([weight], [0.25, 1.0], list(SAMPLERS)).set_index(["sampling", "beta"])
    size, (d_out, d_in) = weight.numel(), shape
    both = (d_out * round(0.25 * d_in) + d_in * round(0.25 * d_out)) / size
    assert (
        found.loc[("independent", 0.25), "entries"]
        == found.loc[("shared", 0.25), "entries"]
        == pytest.approx(both)
    )
    assert both < found.loc[("weighted", 0.25), "entries"] < 2 * both
    assert (found.xs(1.0, level="beta") == 1).all().all(), "exact norms read everything once"
    lines = found.xs(0.25, level="beta")["lines"]
    assert lines["shared"] < 1 < lines["independent"] < 2, "scattered entries lie in most lines, twice"


def test_linear_activations_are_what_the_linears_see():
    model, windows = tiny.model(), tiny.windows(2, 6)
    linears = named_linears(model)
    first, *_, last = linears
    names = [first, last]
    found = linear_activations(model, windows, names)
    assert list(found) == names
    for name, (inputs, outputs) in found.items():
        weight = weight_view(linears[name])
        assert inputs.shape == (12, weight.shape[1])
        torch.testing.assert_close(outputs, inputs @ weight.t(), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        hidden = model(input_ids=windows, output_hidden_states=True).hidden_states[0]
    entering = model.model.layers[0].input_layernorm(hidden).flatten(0, 1)
    torch.testing.assert_close(found[first][0], entering.detach(), rtol=1e-4, atol=1e-5)
    assert not any(linear._forward_hooks for linear in linears.values())


def test_linear_activations_name_what_is_not_there():
    with pytest.raises(UserError, match="unknown linear 'lm_head'"):
        linear_activations(tiny.model(), tiny.windows(1, 4), ["lm_head"])


def test_statistics_of_a_linear():
    _, inputs, outputs, stats = layer()
    found = statistics_of(inputs, outputs.t())
    assert isinstance(found, LayerStats)
    torch.testing.assert_close(found.output_norm, stats.output_norm)
    assert replace(found, output_norm=None).n_tokens == len(inputs)
