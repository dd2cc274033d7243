"""Run a model decoder layer by decoder layer, exactly as its own forward would."""

import contextlib
import copy
import warnings
from collections.abc import MutableSequence
from typing import Any

import torch
from torch import Tensor, nn

from symprune.base.errors import UserError
from symprune.base.types import Windows
from symprune.models.devices import require_memory
from symprune.models.layers import decoder_layers, max_seq_len
from symprune.models.precision import (
    calibration_dtype,
    computing_in,
    outside_layers,
    tensors_of,
    whole_computing_in,
)
from symprune.models.remembered import holds
from symprune.pruning.cost import batch_size_of


class Calls:
    """What the decoder layers are given beside their hidden states in the forward of one batch of windows.

    Tensors that equal those of an earlier batch in the same place (rotary embeddings, masks) are held once
    for both. Containers that layers write to (keys and values for later layers) are the batch's own.
    """

    def __init__(self, like: "Calls | None" = None):
        """like: the calls of an earlier batch."""
        self._like = like
        self._given: list[tuple[tuple, dict[str, Any]]] = []
        self._seen: dict[int, tuple] = {}  # by id: what was given, and what is held of it

    def __len__(self) -> int:
        return len(self._given)

    def add(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Hold what the next decoder layer is given."""
        like = ((), {}) if self._like is None else self._like._given[len(self)]
        self._given.append(tuple(map(_own, (args, kwargs), like, (self._seen,) * 2)))

    def close(self) -> None:
        """Let go of what only `add` needs."""
        self._like, self._seen = None, {}

    def of(self, index: int, keep: bool) -> tuple[tuple, dict[str, Any]]:
        """What decoder layer `index` is given; what it writes into that is forgotten unless `keep`."""
        given = self._given[index]
        return given if keep else _own(given, given, {})


def _own(value: Any, like: Any, seen: dict[int, tuple]) -> Any:
    """`value` with copies of the containers in it, and the tensors of `like` in place of equal ones.

    What occurs twice in `value` is one object in the result, too.
    """
    if id(value) in seen:
        return seen[id(value)][1]
    if isinstance(value, Tensor):
        held = like if value is not like and _equal(value, like) else value
    elif type(value) is tuple or hasattr(value, "_fields"):
        others = like if isinstance(like, tuple) and len(like) == len(value) else (None,) * len(value)
        parts = [_own(part, other, seen) for part, other in zip(value, others, strict=True)]
        held = type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    elif isinstance(value, list | set | dict) or (hasattr(value, "__dict__") and not callable(value)):
        held = copy.copy(value)
        seen[id(value)] = value, held  # before its parts, which may hold it
        if isinstance(value, dict):
            others = like if isinstance(like, dict) else {}
            held.update({key: _own(part, others.get(key), seen) for key, part in value.items()})
        elif isinstance(value, list):
            others = like if isinstance(like, list) and len(like) == len(value) else [None] * len(value)
            held[:] = [_own(part, other, seen) for part, other in zip(value, others, strict=True)]
        if held is not value:
            for name, part in getattr(value, "__dict__", {}).items():
                vars(held)[name] = _own(part, getattr(like, name, None), seen)
    else:
        held = value
    seen[id(value)] = value, held
    return held


def _equal(one: Tensor, other: Any) -> bool:
    if not isinstance(other, Tensor) or one.is_meta or other.is_meta:
        return False
    alike = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
    return alike and torch.equal(one, other)


class _Stop(Exception):
    """Ends a forward pass once what enters the decoder layers is known."""


class LayerRunner:
    """Carries the hidden states of all windows through a model, one decoder layer at a time.

    The arguments of every decoder layer (rotary embeddings, masks that may be None or differ per layer,
    positions, embeddings of the batch's own tokens) are caught batch by batch in a forward whose layers
    compute nothing, and given again: no family's signature is written down here.
    """

    def __init__(
        self,
        model: nn.Module,
        windows: Windows,
        batch_size: int | str = 1,
        hidden: MutableSequence[Tensor] | None = None,
    ):
        """batch_size: see `symprune.pruning.cost`. hidden: keeps the hidden states, batch by batch.

        None keeps them in memory, on the model's device.
        """
        check_windows(model, windows, in_memory=hidden is None)
        self.layers = decoder_layers(model)
        self.hidden = [] if hidden is None else hidden  # what enters the next decoder layer, batch by batch
        self._calls: list[Calls] = []  # batch by batch
        first: dict[int, tuple[Calls, list]] = {}  # by batch size: masks and positions have its shape
        device = entrance(model)
        self._dtype = calibration_dtype(next(model.parameters()))
        with computing_in(self._dtype, outside_layers(model)):
            for batch in windows.split(batch_size_of(batch_size, model, windows)):
                calls, besides = first.get(len(batch), (None, []))
                entering, calls = _enter(model, batch.to(device), calls, besides)
                self.hidden.append(entering)
                self._calls.append(calls)
                first.setdefault(len(batch), (calls, besides))

    @torch.no_grad()
    def run(self, index: int, keep: bool = True) -> None:
        """Decoder layer `index` over all hidden states, which become its outputs if `keep`.

        Otherwise nothing that the layer computes is left behind.
        """
        layer = self.layers[index]
        with computing_in(self._dtype, tensors_of(layer)):
            for position, (hidden, calls) in enumerate(zip(self.hidden, self._calls, strict=True)):
                args, kwargs = calls.of(index, keep)
                out = layer(hidden, *args, **kwargs)
                if keep:
                    self.hidden[position] = _hidden(out)


def runs_by_layer(model: nn.Module, windows: Windows) -> bool:
    """Whether going through the decoder layers one by one gives, to the bit, what the model's forward gives.

    Tried on two unlike windows, in two plain forwards beside the runner's own, once for a model, a length of
    windows and a type that is computed in: an architecture may give its layers more than a runner can know
    of.
    """
    check_windows(model, windows)
    other = windows[-1:]
    pair = torch.cat((windows[:1], other.flip(1) if torch.equal(windows[:1], other) else other))
    question = "runs by layer", windows.shape[1], calibration_dtype(next(model.parameters()))
    return holds(model, question, lambda: _ends_alike(model, pair))


@torch.no_grad()
def _ends_alike(model: nn.Module, pair: Windows) -> bool:
    found: list[Tensor] = []
    last = decoder_layers(model)[-1]
    handle = last.register_forward_hook(lambda layer, args, out: found.append(_hidden(out)))
    try:
        run_whole(model, pair)
        expected, runner = found.copy(), LayerRunner(model, pair)
        for index in range(len(runner.layers)):
            runner.run(index)
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError, IndexError, AssertionError):
        return False  # what an architecture makes of layers that are called from outside
    finally:
        handle.remove()
    return len(expected) == len(pair) and all(map(torch.equal, expected, runner.hidden))


def tell_whole(model: nn.Module, propagate: str) -> None:
    """Warn that statistics come from forwards of the whole model, and how many."""
    passes = len(decoder_layers(model)) if propagate == "pruned" else 1
    warnings.warn(
        f"{type(model).__name__} cannot be run decoder layer by decoder layer as its own forward does: its"
        f" statistics take {passes} forward passes of the whole model over all windows",
        stacklevel=3,
    )


@torch.no_grad()
def run_whole(model: nn.Module, windows: Windows, batch_size: int | str = 1) -> None:
    """A plain forward of the model over all windows, for whatever listens to it."""
    with whole_computing_in(calibration_dtype(next(model.parameters())), model):
        for batch in windows.split(batch_size_of(batch_size, model, windows)):
            model(input_ids=batch.to(entrance(model)), use_cache=False)


def check_windows(model: nn.Module, windows: Windows, in_memory: bool = True) -> None:
    """Raise UserError for windows that are none, empty, too long for the model, or of tokens unknown to it.

    in_memory: also if their hidden states would not fit into memory.
    """
    if windows.dim() != 2 or windows.dtype not in (torch.int64, torch.int32):
        raise UserError(
            f"windows are token ids [n, seq_len] of type int64, not {list(windows.shape)} of {windows.dtype}"
        )
    n_windows, seq_len = windows.shape
    limit = max_seq_len(model)
    if n_windows == 0 or seq_len == 0:
        raise UserError("no windows to run the model on: n_calib, n_eval and seq_len must be at least 1")
    if limit is not None and seq_len > limit:
        raise UserError(
            f"seq_len {seq_len} is above the {limit} positions of {type(model).__name__}: lower seq_len"
        )
    check_token_ids(model, int(windows.min()), int(windows.max()))
    if in_memory and (device := entrance(model)).type == "cpu":
        width = model.config.get_text_config(decoder=True).hidden_size
        own = next(model.parameters())
        needed = n_windows * seq_len * width * (calibration_dtype(own) or own.dtype).itemsize
        what = f"the hidden states of {n_windows} windows of {seq_len} tokens"
        require_memory(needed, device, what, "lower n_calib or seq_len")


def check_token_ids(model: nn.Module, lowest: int, highest: int) -> None:
    """Raise UserError unless the embedding has a row for every token id between these two."""
    vocabulary = len(model.get_input_embeddings().weight)
    if lowest < 0 or highest >= vocabulary:
        raise UserError(
            f"token id {lowest if lowest < 0 else highest} is not in the vocabulary of"
            f" {model.name_or_path or type(model).__name__}, whose embedding has {vocabulary} rows: take the"
            " tokenizer that belongs to it, or resize the embedding (resize_token_embeddings)"
        )


def entrance(model: nn.Module) -> torch.device:
    """Where tokens enter the model."""
    return model.get_input_embeddings().weight.device


@torch.no_grad()
def _enter(model: nn.Module, batch: Tensor, like: Calls | None, besides: list) -> tuple[Tensor, Calls]:
    """The hidden states that enter the first decoder layer, and what every layer is given beside them.

    besides: what this family's layers give beside their hidden states (None if they give only these) for a
    batch of this size; where it is empty the first layer is run and tells. The last layer's stub ends the
    forward.
    """
    layers = decoder_layers(model)
    calls = Calls(like)
    entering: list[Tensor] = []

    def stub(forward):
        def observe(hidden: Tensor, *args, **kwargs):
            calls.add(args, kwargs)
            if not entering:
                entering.append(hidden)
            if len(calls) == len(layers):
                raise _Stop
            if not besides:
                with computing_in(calibration_dtype(next(model.parameters())), tensors_of(layers[0])):
                    out = forward(hidden, *args, **kwargs)
                besides.append(None if isinstance(out, Tensor) else out[1:])
                return out
            return hidden if besides[0] is None else (hidden, *besides[0])

        return observe

    kept = {layer: layer.__dict__.get("forward") for layer in layers}  # one may stand in several places
    try:
        for layer in kept:
            layer.forward = stub(layer.forward)
        with contextlib.suppress(_Stop):
            model(input_ids=batch, use_cache=False)
    finally:
        for layer, own_forward in kept.items():
            del layer.forward
            if own_forward is not None:  # set by another library, accelerate for one
                layer.forward = own_forward
    calls.close()
    return entering[0], calls


def _hidden(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out[0]
