"""Decoder layers and their prunable linears: the only file that knows model families."""

from dataclasses import dataclass

from torch import Tensor, nn

from symprune.base.errors import UserError, unknown
from symprune.base.types import Weight
from symprune.models.experts import expert_linears

_OTHER_SENSES = ("vision", "visual", "audio", "image", "speech")  # towers beside the text model
_N_EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts", "n_experts")


@dataclass(frozen=True)
class LeftDense:
    """A matrix of a decoder layer that is not pruned: why, and how many weights it has."""

    reason: str
    size: int


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The transformer blocks of a model, in order: its module list as long as the config counts layers.

    It is looked for in the decoder of the text model, then elsewhere, but in no tower for images or sound. An
    attribute `layers_path` of the model ("model.decoder.blocks") names the list instead. Raises UserError if
    there is none.
    """
    if not hasattr(getattr(model, "config", None), "get_text_config"):
        raise UserError(
            f"{type(model).__name__} is no model of transformers: give the model itself, not what wraps it"
            " (DataParallel's .module)"
        )
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
    fitting = [
        module
        for name, module in lists.items()
        if len(module) == count
        and all(any(p.dim() >= 2 for p in layer.parameters()) for layer in module)
        and not any(sense in part for part in name.lower().split(".") for sense in _OTHER_SENSES)
    ]
    if fitting:
        decoder = set(_decoder(model).modules())
        # the first of the best: inside the text model's decoder, with layers of one kind
        best = min(fitting, key=lambda module: (module not in decoder, len({type(x) for x in module}) > 1))
        names = {module: name for name, module in lists.items()}
        parent = names[best].rpartition(".")[0]
        beside = [names[module] for module in fitting if names[module].rpartition(".")[0] == parent]
        if len(beside) > 1:  # XLM: half of every layer would be left dense without a word
            raise UserError(
                f"the decoder layers of {type(model).__name__} lie apart in {' and '.join(beside)}: only"
                " those that are one module each are pruned (--layers-path names one list, whose linears"
                " alone are)"
            )
        return best
    raise UserError(
        f"no list of {count} decoder layers found in {type(model).__name__}: name it with --layers-path"
        f" (model.layers_path), one of {', '.join(lists) or 'none at all'}"
    )


def prunable_linears(layer: nn.Module) -> dict[str, nn.Module]:
    """The linears inside a decoder layer by their name in it, in order; nothing is changed.

    Routers of mixture-of-experts layers are left alone. Experts fused into one tensor appear one by one (see
    `symprune.models.experts`). What is not here, `left_dense` tells.
    """
    linears: dict[str, nn.Module] = {}
    n_experts = _numbers_of_experts(layer)
    for name, module in layer.named_modules():
        linears |= {f"{name}.{part}": linear for part, linear in expert_linears(module).items()}
        if _is_linear(module) and not _is_router(name, len(weight_view(module)), n_experts):
            linears[name] = module
    return linears


def left_dense(layer: nn.Module) -> dict[str, LeftDense]:
    """Every matrix of a decoder layer that is no prunable linear's, by its name in it, with the reason."""
    found: dict[str, LeftDense] = {}
    n_experts = _numbers_of_experts(layer)
    for name, module in layer.named_modules():
        apart = {linear.tensor for linear in expert_linears(module).values()}
        for own, parameter in module.named_parameters(recurse=False):
            is_matrix = sum(size > 1 for size in parameter.shape) >= 2
            if own in apart or not (is_matrix or (_is_linear(module) and own == "weight")):
                continue
            reason = _reason(f"{name}.{own}", module, parameter, n_experts)
            if reason is not None:
                found[f"{name}.{own}" if name else own] = LeftDense(reason, parameter.numel())
    return found


def is_expert(name: str) -> bool:
    """Whether a linear of this name is one of the experts that a router chooses from."""
    return any("expert" in part and "shared" not in part for part in name.split("."))


def linears_by_layer(model: nn.Module) -> list[dict[str, nn.Module]]:
    """The prunable linears of every decoder layer, by their full name in the model.

    A weight that several linears share (Zamba's attention) is the first one's: it is pruned once. Raises
    UserError for a model with an adapter in it, whose matrices add up to others than it shows.
    """
    if any(type(module).__module__.partition(".")[0] == "peft" for module in model.modules()):
        raise UserError(
            f"{type(model).__name__} holds an adapter: merge it first (merge_and_unload), and give what that"
            " returns"
        )
    prefixes = {module: name for name, module in model.named_modules()}
    seen: set[int] = set()
    found: list[dict[str, nn.Module]] = []
    for layer in decoder_layers(model):
        found.append({})
        for name, linear in prunable_linears(layer).items():
            weight = id(linear._parameters.get("weight", linear))
            if weight not in seen:
                found[-1][f"{prefixes[layer]}.{name}"] = linear
            seen.add(weight)
    return found


def left_dense_by_layer(model: nn.Module) -> list[dict[str, LeftDense]]:
    """What is left dense of every decoder layer, by its full name in the model."""
    prefixes = {module: name for name, module in model.named_modules()}
    return [
        {f"{prefixes[layer]}.{name}": dense for name, dense in left_dense(layer).items()}
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
    """The longest sequence the model has positions for, if it says so (XLNet says -1: any)."""
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return limit if limit is None or limit > 0 else None


def copy_weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every prunable weight, to be put back by `restore_weights`."""
    return {name: linear.weight.data.clone() for name, linear in named_linears(model).items()}


def restore_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put the weights of `copy_weights` back in place."""
    for name, linear in named_linears(model).items():
        linear.weight.data.copy_(weights[name])


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _decoder(model: nn.Module) -> nn.Module:
    """The text model's decoder, as far as the model says which it is."""
    for owner in (model, getattr(model, "model", None)):
        for name in ("language_model", "text_model"):
            if isinstance(inner := getattr(owner, name, None), nn.Module):
                return inner
    return model.get_decoder() if hasattr(model, "get_decoder") else model


def _numbers_of_experts(layer: nn.Module) -> set[int]:
    """How many experts a decoder layer has, by everything in it that says so; empty where it has none."""
    found: set[int] = set()
    for name, module in layer.named_modules():
        found |= {n for says in _N_EXPERTS if isinstance(n := getattr(module, says, None), int)}
        if is_expert(name) and isinstance(module, nn.ModuleList):
            found.add(len(module))
        found |= {
            len(p)
            for p in module.parameters(recurse=False)
            if p.dim() == 3 and (is_expert(name) or "expert" in type(module).__name__.lower())
        }
    return found - {0}


def _is_router(name: str, d_out: int, n_experts: set[int]) -> bool:
    """Whether a matrix chooses among experts or weighs them: by the path to it, or by its outputs."""
    parts = name.lower().split(".")
    if any("router" in part for part in parts):
        return True
    if not n_experts or is_expert(name):
        return False
    named = any(part in ("gate", "gating", "shared_expert_gate") for part in parts)
    return named or (d_out in {1, *n_experts} and role(name) != "attention")


def _reason(name: str, module: nn.Module, parameter: Tensor, n_experts: set[int]) -> str | None:
    """Why a matrix of a decoder layer is left dense; None if it is the weight of a prunable linear."""
    kind = type(module).__name__.lower()
    if _is_linear(module) and name.endswith("weight"):
        return (
            "router"
            if _is_router(name.removesuffix(".weight"), len(weight_view(module)), n_experts)
            else None
        )
    if isinstance(module, nn.modules.conv._ConvNd) or "conv" in kind:
        return "convolution"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if "norm" in kind:
        return "norm"
    if "bias" in name.rsplit(".", 1)[-1]:
        return "bias"
    if parameter.dim() == 2 and _is_router(name, len(parameter), n_experts):
        return "router"
    if is_expert(name) or "expert" in kind:
        return "experts in a layout that is not supported"
    return "parameter outside a linear"
