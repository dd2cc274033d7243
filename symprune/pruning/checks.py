"""What is refused before anything is changed."""

from collections.abc import Mapping

from torch import Tensor, nn

from symprune.base.errors import UserError, unknown
from symprune.methods.recipe import Recipe
from symprune.models.experts import ExpertLinear
from symprune.models.layers import weight_view
from symprune.models.precision import calibration_dtype
from symprune.pruning.sources import GRADIENTS, Calibration, WindowsBeside

PROPAGATE = ("pruned", "dense")


def check_layers(
    layers: list[dict[str, nn.Module]], calibration: Calibration, recipe: Recipe, propagate: str
) -> None:
    """Raise UserError unless the calibration serves the recipe and the linears, and the pattern fits them."""
    if propagate not in PROPAGATE:
        raise unknown("propagate", propagate, PROPAGATE)
    linears = {name: linear for layer in layers for name, linear in layer.items()}
    if not linears:
        raise UserError("the decoder layers of this model hold no linear that can be pruned")
    recipe.check_names(list(linears))
    linears = {n: linear for n, linear in linears.items() if recipe.pattern_of(n) is not None}
    for name, linear in linears.items():
        try:
            recipe.pattern_of(name).check(*weight_view(linear).shape)
            calibration_dtype(linear.weight)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
    if not recipe.uses:
        return
    if calibration is None:
        raise UserError(f"{recipe.label} uses {', '.join(sorted(recipe.uses))} and needs calibration windows")
    if not isinstance(calibration, Tensor | Mapping | WindowsBeside):
        raise UserError(
            f"calibration windows are a tensor of token ids [n, seq_len], not a {type(calibration).__name__}"
        )
    if isinstance(calibration, WindowsBeside) and GRADIENTS in recipe.uses:
        dense = calibration.dense
        for name in linears:
            if name not in dense or dense[name].gradient_gram is None:
                raise UserError(f"no gradients of {name}: they were not gathered, or on another model")
    if isinstance(calibration, Mapping):
        if propagate != "dense":
            raise UserError(
                "statistics of the dense model are for propagate='dense'; give the calibration windows for"
                " 'pruned'"
            )
        if lacking := [name for name in linears if name not in calibration]:
            raise UserError(f"no statistics of {lacking[0]}: they were gathered on another model")


def check_weights(linears: Mapping[str, nn.Module]) -> None:
    """Raise UserError, naming the linear, for a weight that is not its own or not in memory."""
    for name, linear in linears.items():
        if "weight" not in linear._parameters and not isinstance(linear, ExpertLinear):
            raise UserError(
                f"{name} makes its weight anew for every forward, and a change would be lost: make it a plain"
                " one first (torch's remove_parametrizations, or prune.remove)"
            )
        if linear.weight.is_meta:
            raise UserError(
                f"{name} is on the meta device, where a change would be lost: load the model into memory"
                " first"
            )
        if 0 in linear.weight.stride():
            raise UserError(f"{name} holds rows that share their memory: give it a weight.clone() first")
