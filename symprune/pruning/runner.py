"""Run a model decoder layer by decoder layer, exactly as its own forward would."""

import contextlib
from collections.abc import MutableSequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from symprune.base.errors import UserError
from symprune.base.types import Windows
from symprune.models.devices import require_memory
from symprune.models.layers import decoder_layers, max_seq_len
from symprune.pruning.cost import batch_size_of


@dataclass(frozen=True)
class Call:
    """Everything a decoder layer was given in a plain forward beside its hidden states."""

    args: tuple
    kwargs: dict[str, Any]


class _Stop(Exception):
    """Ends a forward pass once what enters the decoder layers is known."""


class LayerRunner:
    """Carries the hidden states of all windows through a model, one decoder layer at a time.

    The arguments of every decoder layer (rotary embeddings, masks that may be None or differ per layer,
    positions) are caught in a forward whose layers compute nothing, and given again: no family's signature is
    written down here.
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
        self._calls: dict[int, list[Call]] = {}  # by batch size: masks and positions have its shape
        device = entrance(model)
        for batch in windows.split(batch_size_of(batch_size, model, windows)):
            calls = self._calls.get(len(batch))
            entering, caught = _enter(model, batch.to(device), every_layer=calls is None)
            self.hidden.append(entering)
            self._calls.setdefault(len(batch), caught)

    @torch.no_grad()
    def run(self, index: int, keep: bool = True) -> None:
        """Decoder layer `index` over all hidden states, which become its outputs unless `keep` is False."""
        for position, hidden in enumerate(self.hidden):
            call = self._calls[len(hidden)][index]
            out = self.layers[index](hidden, *call.args, **call.kwargs)
            if keep:
                self.hidden[position] = out if isinstance(out, Tensor) else out[0]


def check_windows(model: nn.Module, windows: Windows, in_memory: bool = True) -> None:
    """Raise UserError for windows that are empty, too long for the model, or of tokens it does not know.

    in_memory: also if their hidden states would not fit into memory.
    """
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
        needed = n_windows * seq_len * width * next(model.parameters()).element_size()
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
def _enter(model: nn.Module, batch: Tensor, every_layer: bool) -> tuple[Tensor, list[Call]]:
    """The hidden states that enter the first decoder layer, and the call of every layer, or of the first.

    The stub of the last layer watched ends the forward.
    """
    layers = decoder_layers(model)
    watched = layers if every_layer else layers[:1]
    calls: list[Call] = []
    entering: list[Tensor] = []
    wrap: list = []  # how this family's decoder layers wrap their hidden states, learnt from the first

    def stub(layer: nn.Module, forward):
        def observe(hidden: Tensor, *args, **kwargs):
            calls.append(Call(args, kwargs))
            if not entering:
                entering.append(hidden)
            if len(calls) == len(watched):
                raise _Stop
            if not wrap:
                out = forward(hidden, *args, **kwargs)
                wrap.append(None if isinstance(out, Tensor) else out[1:])
                return out
            return hidden if wrap[0] is None else (hidden, *wrap[0])

        return observe

    kept = [(layer, layer.__dict__.get("forward")) for layer in watched]
    try:
        for layer in watched:
            layer.forward = stub(layer, layer.forward)
        with contextlib.suppress(_Stop):
            model(input_ids=batch, use_cache=False)
    finally:
        for layer, own_forward in kept:
            del layer.forward
            if own_forward is not None:  # set by another library, accelerate for one
                layer.forward = own_forward
    return entering[0], calls
