"""Decoder layers and their prunable linears: the only file that knows model families."""

from torch import Tensor, nn

from symprune.base.errors import UserError, unknown
from symprune.base.types import Weight
from symprune.models.experts import expert_linears, is_fused

_ROUTERS = ("router", "gate", "shared_expert_gate")


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The transformer blocks of a model, in order: its module list as long as the config counts layers.

    An attribute `layers_path` of the model ("model.decoder.blocks") names the list instead. Raises UserError
    if there is none.
    """
    count = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module)
    }
    if path := getattr(model, "layers_path", None):
        if path not in lists:
            raise unknown("list of decoder layers", path, lists)
        return lists[path]
    for module in lists.values():
        if len(module) == count and len({type(layer) for layer in module}) == 1:
            return module
    raise UserError(
        f"no list of {count} decoder layers found in {type(model).__name__}: name it with --layers-path"
        f" (model.layers_path), one of {', '.join(lists) or 'none at all'}"
    )


def prunable_linears(layer: nn.Module) -> dict[str, nn.Module]:
    """The linears inside a decoder layer by their name in it, in order.

    Routers of mixture-of-experts layers are left alone. Experts fused into one tensor appear one by one (see
    `symprune.models.experts`); raises UserError where they cannot: they would silently not be pruned.
    """
    linears: dict[str, nn.Module] = {}
    for name, module in layer.named_modules():
        if is_fused(module):
            linears |= {f"{name}.{part}": linear for part, linear in expert_linears(module).items()}
        elif _is_linear(module) and name.rsplit(".", 1)[-1] not in _ROUTERS:
            linears[name] = module
    return linears


def linears_by_layer(model: nn.Module) -> list[dict[str, nn.Module]]:
    """The prunable linears of every decoder layer, by their full name in the model."""
    prefixes = {module: name for name, module in model.named_modules()}
    return [
        {f"{prefixes[layer]}.{name}": linear for name, linear in prunable_linears(layer).items()}
        for layer in decoder_layers(model)
    ]


def named_linears(model: nn.Module) -> dict[str, nn.Module]:
    """Every prunable linear by its full name in the model, decoder layer by decoder layer."""
    return {name: linear for layer in linears_by_layer(model) for name, linear in layer.items()}


def weight_view(linear: nn.Module) -> Weight:
    """The weight as [d_out, d_in], a view to write into (GPT-2's Conv1D stores the transpose)."""
    return linear.weight.data.t() if type(linear).__name__ == "Conv1D" else linear.weight.data


def role(linear_name: str) -> str:
    """ "attention" or "mlp", by the name of the linear inside its decoder layer."""
    return "attention" if "attn" in linear_name or "attention" in linear_name else "mlp"


def max_seq_len(model: nn.Module) -> int | None:
    """The longest sequence the model has positions for, if it says so."""
    return getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)


def copy_weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every prunable weight, to be put back by `restore_weights`."""
    return {name: linear.weight.data.clone() for name, linear in named_linears(model).items()}


def restore_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put the weights of `copy_weights` back in place."""
    for name, linear in named_linears(model).items():
        linear.weight.data.copy_(weights[name])


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
