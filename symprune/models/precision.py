"""Run a model in a wider floating-point type than its weights are kept in: little hinges on rounding."""

import contextlib
from collections.abc import Iterable, Iterator
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from symprune.base.errors import UserError, unknown
from symprune.models.layers import decoder_layers

CALIBRATION_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_CALIBRATION_DTYPE: ContextVar[str | None] = ContextVar("calibration_dtype", default=None)


@contextlib.contextmanager
def calibrating_in(calibration_dtype: str | None) -> Iterator[None]:
    """Inside, calibration's forwards, statistics, scores and refinements are computed in this type.

    "float64": a mask is the same on every processor, for about twice the time on a CPU. "float32", or
    None: what the model itself computes in, where another processor's last bits may remove other weights.
    Weights keep their type, to the bit. Raises UserError for another name.
    """
    check_calibration_dtype(calibration_dtype)
    before = _CALIBRATION_DTYPE.set(calibration_dtype)
    try:
        yield
    finally:
        _CALIBRATION_DTYPE.reset(before)


def calibration_dtype_name() -> str | None:
    """What `calibrating_in` was told here."""
    return _CALIBRATION_DTYPE.get()


def check_calibration_dtype(name: str | None) -> None:
    """Raise UserError unless it is None or one of `CALIBRATION_DTYPES`."""
    if name is not None and name not in CALIBRATION_DTYPES:
        raise unknown("calibration_dtype", name, CALIBRATION_DTYPES)


def calibration_dtype(weight: Tensor) -> torch.dtype | None:
    """What calibration computes in here, for weights like this one; None: in what the model does.

    Raises UserError where that would round the weight.
    """
    name = _CALIBRATION_DTYPE.get()
    if name is None:
        return None
    dtype = CALIBRATION_DTYPES[name]
    if dtype.itemsize < weight.dtype.itemsize:
        raise UserError(f"calibration_dtype {name} would round weights of {weight.dtype}: leave it out")
    return dtype


def as_calibrated(weight: Tensor) -> Tensor:
    """The weight in the type that calibration computes in here."""
    dtype = calibration_dtype(weight)
    return weight if dtype is None else weight.to(dtype)


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers."""
    return [*module.parameters(), *module.buffers()]


def outside_layers(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers that are in no decoder layer."""
    inside = {id(tensor) for layer in decoder_layers(model) for tensor in tensors_of(layer)}
    return [tensor for tensor in tensors_of(model) if id(tensor) not in inside]


@contextlib.contextmanager
def computing_in(dtype: torch.dtype | None, tensors: Iterable[Tensor]) -> Iterator[None]:
    """Inside, these tensors are of this type, and so is all that code asks to be narrower (None: as it is).

    A norm or a softmax that says float32 is of it too. Afterwards the tensors' data are what they were.
    """
    if dtype is None:
        yield
        return
    default = torch.get_default_dtype()
    with widened(dtype, tensors), _AtLeast(dtype):
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(default)


@contextlib.contextmanager
def whole_computing_in(dtype: torch.dtype | None, model: nn.Module) -> Iterator[None]:
    """`computing_in` for forwards of a whole model, whose decoder layers are widened one at a time."""
    if dtype is None:
        yield
        return
    running: dict[nn.Module, contextlib.ExitStack] = {}

    def enter(layer: nn.Module, args: tuple) -> None:
        running[layer] = contextlib.ExitStack()
        running[layer].enter_context(widened(dtype, tensors_of(layer)))

    def leave(layer: nn.Module, args: tuple, out: object) -> None:
        if layer in running:
            running.pop(layer).close()

    handles = []
    try:
        for layer in decoder_layers(model):
            handles.append(layer.register_forward_pre_hook(enter, prepend=True))
            handles.append(layer.register_forward_hook(leave, always_call=True))
        with computing_in(dtype, outside_layers(model)):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def widened(dtype: torch.dtype, tensors: Iterable[Tensor]) -> Iterator[None]:
    """Inside, the data of these tensors are of this type where they were of a narrower one."""
    held = [(tensor, tensor.data) for tensor in tensors if _is_narrower(tensor.dtype, dtype)]
    try:
        for tensor, data in held:
            tensor.data = data.to(dtype)
        yield
    finally:
        for tensor, data in held:
            tensor.data = data


class _AtLeast(TorchFunctionMode):
    """Inside, whoever asks for a narrower floating-point type is given this one."""

    _narrowing = (Tensor.float, Tensor.half, Tensor.bfloat16)

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self._dtype = dtype

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self._narrowing:
            return args[0].to(self._dtype)
        kwargs = {name: self._wide(value) for name, value in (kwargs or {}).items()}
        if func is torch._grouped_mm and args[0].dtype == torch.float64:
            return _grouped_mm(*args, **kwargs)
        return func(*map(self._wide, args), **kwargs)

    def _wide(self, value):
        narrower = isinstance(value, torch.dtype) and _is_narrower(value, self._dtype)
        return self._dtype if narrower else value


def _grouped_mm(inputs: Tensor, matrices: Tensor, offs: Tensor, **how) -> Tensor:
    """torch's product of experts, expert by expert: its own knows no float64."""
    parts = inputs.tensor_split(offs[:-1].cpu().long())
    return torch.cat([part @ matrix for part, matrix in zip(parts, matrices, strict=True)])


def _is_narrower(dtype: torch.dtype, than: torch.dtype) -> bool:
    return dtype.is_floating_point and dtype.itemsize < than.itemsize
