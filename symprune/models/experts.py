"""Mixture-of-experts layers whose experts share one tensor: the matrices of each expert as linears."""

import types

import torch
from torch import Tensor, nn

from symprune.base.errors import UserError


class ExpertLinear(nn.Module):
    """One matrix of one expert: `weight` [d_out, d_in] is a view into the tensor of all experts.

    What is written into it is pruned.
    """

    bias = None

    def __init__(self, experts: nn.Module, tensor: str, expert: int, rows: slice):
        super().__init__()
        self._place = (experts, tensor, expert, rows)  # in a tuple: the experts are no part of this module

    @property
    def weight(self) -> Tensor:
        """The matrix, where it lies now."""
        experts, tensor, expert, rows = self._place
        return getattr(experts, tensor)[expert, rows]

    def forward(self, inputs: Tensor, product: Tensor) -> Tensor:
        """`product`, which is inputs @ weight.T.

        The caller computes it with a whole tensor: with a smaller one its last bits may differ.
        """
        return product


def expert_linears(experts: nn.Module) -> dict[str, ExpertLinear]:
    """The linears of fused experts by their name in it ("3.down_proj").

    From now on a forward of the experts calls them, with the same outputs. Raises UserError for a layout
    other than the stacked [gate; up] and down matrices of Mixtral and Qwen-MoE.
    """
    if "linears" not in vars(experts):
        _require_stacked(experts)
        width = experts.down_proj.shape[2]
        parts = {
            "gate_proj": ("gate_up_proj", slice(width)),
            "up_proj": ("gate_up_proj", slice(width, None)),
            "down_proj": ("down_proj", slice(None)),
        }
        vars(experts)["linears"] = {  # not registered: what is saved stays one tensor
            f"{expert}.{part}": ExpertLinear(experts, tensor, expert, rows)
            for expert in range(len(experts.down_proj))
            for part, (tensor, rows) in parts.items()
        }
        experts.forward = types.MethodType(_forward, experts)
    return vars(experts)["linears"]


def is_fused(module: nn.Module) -> bool:
    """Whether a module holds several matrices in one tensor."""
    return not isinstance(module, nn.Conv1d) and any(p.dim() == 3 for p in module.parameters(recurse=False))


def _forward(experts: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """What a mixture of experts computes, [tokens, d], expert by expert in their order."""
    out = torch.zeros_like(hidden_states)
    linears = vars(experts)["linears"]
    for expert in top_k_index.unique().tolist():
        slot, token = torch.where(top_k_index.t() == expert)
        inputs = hidden_states[token]
        gate, up = nn.functional.linear(inputs, experts.gate_up_proj[expert]).chunk(2, dim=-1)
        inner = experts.act_fn(linears[f"{expert}.gate_proj"](inputs, gate)) * linears[f"{expert}.up_proj"](
            inputs, up
        )
        product = linears[f"{expert}.down_proj"](
            inner, nn.functional.linear(inner, experts.down_proj[expert])
        )
        weighted = product * top_k_weights[token, slot, None]
        out.index_add_(0, token, weighted.to(out.dtype))
    return out


def _require_stacked(experts: nn.Module) -> None:
    tensors = {name: parameter.dim() for name, parameter in experts.named_parameters(recurse=False)}
    plain = {
        "has_gate": True,
        "is_concatenated": True,
        "has_bias": False,
        "is_transposed": False,
        "has_post_expert_norm": False,
    }
    if tensors != {"gate_up_proj": 3, "down_proj": 3} or any(
        getattr(experts, name, None) is not value for name, value in plain.items()
    ):
        fused = next(name for name, dim in tensors.items() if dim == 3)
        raise UserError(
            f"{fused} of {type(experts).__name__} holds {len(getattr(experts, fused))} matrices in one"
            " tensor, in a layout that is not supported (Mixtral's and Qwen-MoE's are)"
        )
