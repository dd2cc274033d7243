"""Run a model decoder layer by decoder layer, and gather the statistics of what its linears receive."""

import contextlib
from collections.abc import Collection, Iterator, MutableSequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from symprune.base.errors import UserError, unknown
from symprune.base.progress import track
from symprune.base.types import Windows
from symprune.methods.stats import LayerStats, SharedInputs, StatsAccumulator, at_least_float32, finish
from symprune.models.devices import free_memory
from symprune.models.layers import decoder_layers, linears_by_layer, max_seq_len, named_linears, weight_view
from symprune.pruning.cost import batch_size_of

OUTPUT_SIDES = ("activations", "gradients")


@dataclass(frozen=True)
class Call:
    """Everything a decoder layer was given in a plain forward beside its hidden states."""

    args: tuple
    kwargs: dict[str, Any]


class _Stop(Exception):
    """Ends a forward pass once what enters the decoder layers is known."""


class LayerRunner:
    """Carries the hidden states of all windows through a model, one decoder layer at a time, exactly as a
    plain forward would.

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
        """batch_size: see `symprune.pruning.cost`. hidden: keeps the hidden states, batch by batch (None: in
        memory, on the model's device).
        """
        check_windows(model, windows, in_memory=hidden is None)
        self.layers = decoder_layers(model)
        self.linears = linears_by_layer(model)
        self.hidden = [] if hidden is None else hidden  # what enters the next decoder layer, batch by batch
        self._calls: dict[int, list[Call]] = {}  # by batch size: masks and positions have its shape
        device = _entrance(model)
        for batch in windows.split(batch_size_of(batch_size, model, windows)):
            calls = self._calls.get(len(batch))
            entering, caught = _enter(model, batch.to(device), every_layer=calls is None)
            self.hidden.append(entering)
            self._calls.setdefault(len(batch), caught)

    @torch.no_grad()
    def run(self, index: int, keep: bool = True) -> None:
        """Decoder layer `index` over all hidden states, which become its outputs unless told not to keep
        them.
        """
        for position, hidden in enumerate(self.hidden):
            call = self._calls[len(hidden)][index]
            out = self.layers[index](hidden, *call.args, **call.kwargs)
            if keep:
                self.hidden[position] = _hidden_states(out)

    def collect(self, index: int, uses: Collection[str], keep: bool = False) -> dict[str, LayerStats]:
        """Statistics of the linears of decoder layer `index`, by full name, from one pass over all hidden
        states.
        """
        return finish(self.accumulate(index, uses, keep))

    def accumulate(
        self, index: int, uses: Collection[str], keep: bool = False
    ) -> dict[str, StatsAccumulator]:
        """The sums that `collect` makes statistics of."""
        with collecting(self.linears[index], uses) as accumulators:
            self.run(index, keep)
        return accumulators


@contextlib.contextmanager
def collecting(linears: dict[str, nn.Module], uses: Collection[str]) -> Iterator[dict[str, StatsAccumulator]]:
    """Inside, every forward of the linears feeds an accumulator; linears that receive the same tensor share
    its moments.

    uses: the fields of `LayerStats` wanted; outputs are gathered only for "output_norm", Gram matrices only
    for "gram". Raises UserError, naming the linear, on NaN or inf.
    """
    handles = []
    if "gram" in uses:
        _require_gram_memory(linears)
    shapes = {name: weight_view(linear).shape for name, linear in linears.items()}
    accumulators = {
        name: StatsAccumulator(d_in, d_out, linears[name].weight.device, gram="gram" in uses)
        for name, (d_out, d_in) in shapes.items()
    }
    shared = SharedInputs(accumulators)

    def hook(name: str):
        def observe(linear: nn.Module, args: tuple, out: Tensor) -> None:
            shared.add(name, args[0])
            if "output_norm" in uses:
                accumulators[name].update_outputs(out)

        return observe

    try:
        for name, linear in linears.items():
            handles.append(linear.register_forward_hook(hook(name)))
        yield accumulators
    finally:
        for handle in handles:
            handle.remove()


def gather(
    model: nn.Module,
    windows: Windows,
    uses: Collection[str] = ("input_norm",),
    *,
    output_side: str = "activations",
    batch_size: int | str = 1,
    progress: bool = False,
) -> dict[str, LayerStats]:
    """Statistics of every prunable linear of the dense model, by full name: gathered once, they serve any
    number of recipes.

    output_side: what Y is, the linears' "activations" or the loss "gradients" with respect to them (one
    backward pass). batch_size: windows per forward pass, or "auto" (see `symprune.pruning.cost`).
    """
    statistics: dict[str, LayerStats] = {}
    for part in _by_layer(model, windows, uses, output_side, batch_size, progress):
        statistics |= finish(part)
    return statistics


def accumulate(
    model: nn.Module,
    windows: Windows,
    uses: Collection[str] = ("input_norm",),
    *,
    output_side: str = "activations",
    batch_size: int | str = 1,
    progress: bool = False,
) -> dict[str, StatsAccumulator]:
    """The sums that `gather` makes statistics of: to save, and to merge with those of other windows."""
    sums: dict[str, StatsAccumulator] = {}
    for part in _by_layer(model, windows, uses, output_side, batch_size, progress):
        sums |= part
    return sums


def _by_layer(
    model: nn.Module,
    windows: Windows,
    uses: Collection[str],
    output_side: str,
    batch_size: int | str,
    progress: bool,
) -> Iterator[dict[str, StatsAccumulator]]:
    """The sums of the dense model's linears, decoder layer by decoder layer where one pass forward gives
    them.
    """
    if output_side not in OUTPUT_SIDES:
        raise UserError(f"output_side must be one of {', '.join(OUTPUT_SIDES)}, not {output_side!r}")
    if output_side == "gradients" and "output_norm" in uses:
        yield _accumulate_with_gradients(model, windows, uses, progress)
        return
    runner = LayerRunner(model, windows, batch_size)
    for index in track(range(len(runner.layers)), "calibrating", progress):
        sums = runner.accumulate(index, uses, keep=True)
        if index == 0 and "gram" in uses:
            # kept in half of float64's bytes
            grams = {id(a.moments): a.moments.gram.nbytes // 2 for a in sums.values()}
            _require_memory(
                (len(runner.layers) - 1) * sum(grams.values()),
                _entrance(model),
                f"the Gram matrices of {len(runner.layers)} decoder layers",
            )
        yield sums


@torch.no_grad()
def linear_activations(
    model: nn.Module, windows: Windows, names: Collection[str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """What the linears of these full names receive [tokens, d_in] and give [tokens, d_out] in the dense
    model, on the CPU.

    Everything is kept, so for a few linears and windows. Raises UserError for a name that is no prunable
    linear's.
    """
    linears = named_linears(model)
    seen: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    handles = []
    check_windows(model, windows)

    def hook(name: str):
        def observe(linear: nn.Module, args: tuple, out: Tensor) -> None:
            for kept, tensor in zip(seen[name], (args[0], out), strict=True):
                kept.append(at_least_float32(tensor.flatten(0, -2)).cpu())

        return observe

    try:
        for name in names:
            if name not in linears:
                raise unknown("linear", name, linears)
            seen[name] = [], []
            handles.append(linears[name].register_forward_hook(hook(name)))
        for window in windows:
            model(input_ids=window[None].to(_entrance(model)), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return {name: (torch.cat(inputs), torch.cat(outputs)) for name, (inputs, outputs) in seen.items()}


def check_windows(model: nn.Module, windows: Windows, in_memory: bool = True) -> None:
    """Raise UserError if the windows are empty, longer than the model's positions, hold tokens that it does
    not know, or would not fit into memory as hidden states.
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
    if in_memory and (device := _entrance(model)).type == "cpu":
        width = model.config.get_text_config(decoder=True).hidden_size
        needed = n_windows * seq_len * width * next(model.parameters()).element_size()
        _require_memory(
            needed,
            device,
            f"the hidden states of {n_windows} windows of {seq_len} tokens",
            "lower n_calib or seq_len",
        )


def check_token_ids(model: nn.Module, lowest: int, highest: int) -> None:
    """Raise UserError unless the embedding has a row for every token id between these two."""
    vocabulary = len(model.get_input_embeddings().weight)
    if lowest < 0 or highest >= vocabulary:
        raise UserError(
            f"token id {lowest if lowest < 0 else highest} is not in the vocabulary of"
            f" {model.name_or_path or type(model).__name__}, whose embedding has {vocabulary} rows: take the"
            " tokenizer that belongs to it, or resize the embedding (resize_token_embeddings)"
        )


def _require_memory(
    needed: int, device: torch.device, what: str, way_out: str = "use a refinement that needs no Gram matrix"
) -> None:
    free = free_memory(device)
    if needed > free:
        raise UserError(
            f"{what} need {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free on {device.type}:"
            f" {way_out}"
        )


def _require_gram_memory(linears: dict[str, nn.Module]) -> None:
    """Raise UserError if the Gram matrices of these linears cannot fit: one for each width at least, and a
    product being added.
    """
    widths = {weight_view(linear).shape[1] for linear in linears.values()}
    needed = 8 * sum(d**2 for d in widths) + 4 * max(widths, default=0) ** 2
    first = next(iter(linears), None)
    if first is not None:
        _require_memory(
            needed,
            linears[first].weight.device,
            f"the Gram matrices of one decoder layer ({first} and after)",
        )


def _entrance(model: nn.Module) -> torch.device:
    """Where tokens enter the model."""
    return model.get_input_embeddings().weight.device


@torch.no_grad()
def _enter(model: nn.Module, batch: Tensor, every_layer: bool) -> tuple[Tensor, list[Call]]:
    """The hidden states that enter the first decoder layer, and each layer's call: the last layer's stub ends
    the forward.
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


def _accumulate_with_gradients(
    model: nn.Module, windows: Windows, uses: Collection[str], progress: bool
) -> dict[str, StatsAccumulator]:
    """Inputs from the forward and the loss gradient with respect to each linear's output from the backward,
    window by window.
    """
    linears = named_linears(model)
    check_windows(model, windows)
    device = _entrance(model)
    handles = []
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    with collecting(linears, set(uses) - {"output_norm"}) as accumulators:

        def hook(accumulator: StatsAccumulator):
            def observe(linear: nn.Module, args: tuple, out: Tensor) -> None:
                out.register_hook(accumulator.update_outputs)

            return observe

        try:
            # only activations carry gradients: no memory for those of the weights
            model.requires_grad_(False)
            handles += [
                linear.register_forward_hook(hook(accumulators[name])) for name, linear in linears.items()
            ]
            with torch.enable_grad():
                for window in track(windows, "calibrating with gradients", progress):
                    ids = window[None].to(device)
                    embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()
                    model(inputs_embeds=embeddings, labels=ids, use_cache=False).loss.backward()
        finally:
            for handle in handles:
                handle.remove()
            for parameter, was in required.items():
                parameter.requires_grad_(was)
    return accumulators


def _hidden_states(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out[0]
