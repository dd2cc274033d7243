"""Mixture-of-experts layers whose experts share one tensor: the matrices of each expert as linears."""

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from symprune.base.errors import UserError

_INPUTS_FIRST = {torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__}  # inputs @ matrix


class ExpertLinear(nn.Module):
    """One matrix of one expert: `weight` [d_out, d_in] is a view into the tensor of all experts.

    What is written into it is pruned.
    """

    bias = None

    def __init__(self, experts: nn.Module, tensor: str, expert: int, rows: slice, transposed: bool = False):
        super().__init__()
        self._experts = (experts,)  # in a tuple: the experts are no part of this module
        self.tensor, self.expert, self.rows, self.transposed = tensor, expert, rows, transposed

    @property
    def experts(self) -> nn.Module:
        """The module that holds the tensor."""
        return self._experts[0]

    @property
    def weight(self) -> Tensor:
        """The matrix, where it lies now."""
        matrix = getattr(self.experts, self.tensor)[self.expert]
        return (matrix.t() if self.transposed else matrix)[self.rows]

    def forward(self, inputs: Tensor, product: Tensor) -> Tensor:
        """`product`, which is inputs @ weight.T, and a bias if the experts add it in the same step.

        The experts compute it themselves, with a whole tensor; see `experts_calling`.
        """
        return product


def expert_linears(experts: nn.Module) -> dict[str, ExpertLinear]:
    """The linears of fused experts by their name in it ("3.down_proj"); none for any other module.

    Understood are the tensors of transformers' experts: gate and up matrices stacked or interleaved, or an up
    matrix alone, and down matrices, transposed or not. Nothing is changed.
    """
    tensors = {name: p for name, p in experts.named_parameters(recurse=False) if p.dim() == 3}
    transposed = getattr(experts, "is_transposed", None)
    first = "gate_up_proj" if getattr(experts, "has_gate", None) else "up_proj"
    if transposed is None or set(tensors) != {first, "down_proj"}:
        return {}
    (n_up, d_up, d_in), (n_down, d_out, width) = (
        (p.transpose(1, 2) if transposed else p).shape for p in (tensors[first], tensors["down_proj"])
    )
    if (n_up, d_in, d_up) != (n_down, d_out, width if first == "up_proj" else 2 * width):
        return {}
    if first == "up_proj":
        rows = {"up_proj": slice(None)}
    elif experts.is_concatenated:
        rows = {"gate_proj": slice(width), "up_proj": slice(width, None)}
    else:
        rows = {"gate_proj": slice(0, None, 2), "up_proj": slice(1, None, 2)}
    parts = {part: (first, taken) for part, taken in rows.items()} | {"down_proj": ("down_proj", slice(None))}
    return {
        f"{expert}.{part}": ExpertLinear(experts, tensor, expert, taken, transposed)
        for expert in range(n_up)
        for part, (tensor, taken) in parts.items()
    }


@contextlib.contextmanager
def experts_calling(linears: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, a forward of fused experts calls those of these linears that are theirs.

    The experts' own forward runs, expert by expert; each product with one of their matrices is handed to the
    linears of that matrix. Afterwards the experts are as they were. Raises UserError, in a forward, for
    experts that multiply in another way than their layout says.
    """
    theirs: dict[nn.Module, list[ExpertLinear]] = {}
    for linear in linears:
        if isinstance(linear, ExpertLinear):
            theirs.setdefault(linear.experts, []).append(linear)
    kept = {experts: vars(experts).get("forward") for experts in theirs}
    try:
        for experts, called in theirs.items():
            experts.forward = _calling(experts, experts.forward, called)
        yield
    finally:
        for experts, forward in kept.items():
            vars(experts).pop("forward", None)
            if forward is not None:  # set by another library, accelerate for one
                experts.forward = forward


def _calling(experts: nn.Module, forward: Callable, linears: list[ExpertLinear]) -> Callable:
    def called(hidden: Tensor, *args, **kwargs):
        config, products = experts.config, _Products(experts, linears)
        implementation = config._experts_implementation
        config._experts_implementation = "eager"  # a matrix at a time
        try:
            with products:
                out = forward(hidden, *args, **kwargs)
        finally:
            config._experts_implementation = implementation
        if hidden.numel() and not products.seen:
            raise _unlike(experts)
        return out

    return called


class _Products(TorchFunctionMode):
    """Inside, the linears of an experts module are called with each product that is theirs."""

    def __init__(self, experts: nn.Module, linears: list[ExpertLinear]):
        super().__init__()
        self._experts, self.seen = experts, False
        self._tensors = {linear.tensor: getattr(experts, linear.tensor) for linear in linears}
        self._linears: dict[tuple[str, int], list[ExpertLinear]] = {}
        for linear in linears:
            self._linears.setdefault((linear.tensor, linear.expert), []).append(linear)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is nn.functional.linear:
            return self._product(out, args[0], args[1])
        if func in _INPUTS_FIRST:
            return self._product(out, args[0], args[1].mT)
        return out

    def _product(self, out: Tensor, inputs: Tensor, matrix: Tensor) -> Tensor:
        """`out`, by way of the linears of the expert's matrix if it is one."""
        for name, tensor in self._tensors.items():
            n_bytes = tensor.stride(0) * tensor.element_size()
            expert, rest = divmod(matrix.data_ptr() - tensor.data_ptr(), n_bytes)
            if rest or not 0 <= expert < len(tensor):
                continue
            self.seen = True
            linears = self._linears.get((name, expert), ())
            expected = tensor[expert].t() if self._experts.is_transposed else tensor[expert]
            if matrix.shape != expected.shape or matrix.stride() != expected.stride():
                raise _unlike(self._experts)
            if len(linears) == 1 and linears[0].rows == slice(None):
                return linears[0](inputs, out)
            whole = out.clone() if linears else out
            for linear in linears:  # what they return goes on, and gradients with it
                whole[..., linear.rows] = linear(inputs, out[..., linear.rows])
            return whole
        return out


def _unlike(experts: nn.Module) -> UserError:
    return UserError(
        f"{type(experts).__name__} multiplies with its tensors in another way than their layout says: its"
        " experts cannot be calibrated"
    )
