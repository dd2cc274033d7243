"""Gather the statistics of what the linears of a model receive and give."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from symprune.base.errors import UserError, unknown
from symprune.base.progress import track
from symprune.base.types import Windows
from symprune.methods.sketch import rank_in
from symprune.methods.stats import LayerStats, LinearSums, Moments, at_least_float32
from symprune.models.causal import in_eval_mode, require_causal
from symprune.models.devices import require_memory
from symprune.models.experts import experts_calling
from symprune.models.layers import linears_by_layer, named_linears, weight_view
from symprune.models.precision import calibration_dtype, computing_in, tensors_of
from symprune.pruning.runner import (
    LayerRunner,
    check_windows,
    entrance,
    run_whole,
    runs_by_layer,
    tell_whole,
)

OUTPUT_SIDES = ("activations", "gradients")
_NO_GRAM = "use a refinement that needs no Gram matrix, sketch_swap for one"
_NO_GRADIENTS = "take the update refit, which needs no gradients"


@in_eval_mode
def gather(
    model: nn.Module,
    windows: Windows,
    uses: Collection[str] = ("input_norm",),
    *,
    output_side: str = "activations",
    batch_size: int | str = 1,
) -> dict[str, LayerStats]:
    """Statistics of every prunable linear of the dense model, by full name: they serve any number of recipes.

    output_side: what Y is, the linears' "activations" or the loss "gradients" with respect to them (one
    backward pass, as for "gradient_gram"). batch_size: windows per forward pass, or "auto" (see
    `symprune.pruning.cost`).
    """
    statistics: dict[str, LayerStats] = {}
    for part in _by_layer(model, windows, uses, output_side, batch_size):
        statistics |= part.finish()
    return statistics


@in_eval_mode
def accumulate(
    model: nn.Module,
    windows: Windows,
    uses: Collection[str] = ("input_norm",),
    *,
    output_side: str = "activations",
    batch_size: int | str = 1,
) -> LinearSums:
    """The sums that `gather` makes statistics of: to save, and to merge with those of other windows."""
    sums = LinearSums({}, {}, {})
    for part in _by_layer(model, windows, uses, output_side, batch_size):
        sums.join(part)
    return sums


@contextlib.contextmanager
def collecting(linears: Mapping[str, nn.Module], uses: Collection[str]) -> Iterator[LinearSums]:
    """Inside, every forward of the linears adds to their sums, which are whole at the end.

    uses: the fields of `LayerStats` wanted; outputs are gathered only for "output_norm", Gram matrices only
    for "gram", sketches of them only for names such as "sketch64". Raises UserError, naming the linear, on
    NaN or inf.
    """
    gram, rank = "gram" in uses, rank_in(uses)
    if gram:
        _require_gram_memory(linears)
    shapes = {name: tuple(weight_view(linear).shape) for name, linear in linears.items()}
    sums = LinearSums.of_nothing(shapes, {name: m.weight.device for name, m in linears.items()}, gram, rank)
    collector = _Collector(sums, gram, rank)

    def observe(name: str, inputs: Tensor, outputs: Tensor) -> None:
        collector.receive(name, inputs)
        if "output_norm" in uses:
            sums.add_outputs(name, outputs)

    with _observed(linears, observe):
        yield sums
    collector.add()


class _Collector:
    """Adds a tensor of inputs to the sums once, for all the linears that receive it one after the other."""

    def __init__(self, sums: LinearSums, gram: bool, rank: int):
        self._sums, self._gram, self._rank = sums, gram, rank
        self._inputs: Tensor | None = None  # received last, and not added yet
        self._moments: Moments | None = None
        self._linears: list[str] = []

    def receive(self, name: str, inputs: Tensor) -> None:
        # The one place that tells whether linears receive the same: the very same tensor, not an equal one.
        if inputs is not self._inputs or name in self._linears:
            self.add()
            self._moments = Moments.of(inputs, self._gram, self._rank)
            if not torch.isfinite(self._moments.within.sum() + self._moments.total.sum()):
                raise UserError(
                    f"NaN or inf in the inputs of {name}: the weights are broken, or the dtype's range is too"
                    " small"
                )
            self._inputs = inputs
        self._linears.append(name)

    def add(self) -> None:
        """Add what was received last, and let go of it."""
        if self._moments is not None:
            self._sums.add(self._linears, self._moments)
        self._inputs, self._moments, self._linears = None, None, []


@torch.no_grad()
def linear_activations(
    model: nn.Module, windows: Windows, names: Collection[str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """What these linears receive [tokens, d_in] and give [tokens, d_out] in the dense model, on the CPU.

    Everything is kept, so for a few linears and windows. Raises UserError for a name that is no prunable
    linear's.
    """
    linears = named_linears(model)
    check_windows(model, windows)
    for name in names:
        if name not in linears:
            raise unknown("linear", name, linears)
    seen: dict[str, tuple[list[Tensor], list[Tensor]]] = {name: ([], []) for name in names}

    def observe(name: str, inputs: Tensor, outputs: Tensor) -> None:
        for kept, tensor in zip(seen[name], (inputs, outputs), strict=True):
            kept.append(at_least_float32(tensor.flatten(0, -2)).cpu())

    with _observed({name: linears[name] for name in names}, observe):
        for window in windows:
            model(input_ids=window[None].to(entrance(model)), use_cache=False)
    return {name: (torch.cat(inputs), torch.cat(outputs)) for name, (inputs, outputs) in seen.items()}


@contextlib.contextmanager
def _observed(
    linears: Mapping[str, nn.Module], observe: Callable[[str, Tensor, Tensor], None]
) -> Iterator[None]:
    """Inside, `observe` is told the name, the inputs and the outputs of every forward of the linears."""
    with _hooked(linears, observe), experts_calling(linears.values()):
        yield


@contextlib.contextmanager
def _hooked(
    linears: Mapping[str, nn.Module], observe: Callable[[str, Tensor, Tensor], None]
) -> Iterator[None]:
    """`_observed` for linears that are called already: experts called by two would count twice."""
    handles = []

    def hook(name: str):
        return lambda linear, args, out: observe(name, args[0], out)

    try:
        for name, linear in linears.items():
            handles.append(linear.register_forward_hook(hook(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _by_layer(
    model: nn.Module, windows: Windows, uses: Collection[str], output_side: str, batch_size: int | str
) -> Iterator[LinearSums]:
    """The sums of the dense model's linears, layer by layer where one pass forward gives them."""
    if output_side not in OUTPUT_SIDES:
        raise UserError(f"output_side must be one of {', '.join(OUTPUT_SIDES)}, not {output_side!r}")
    require_causal(model)
    side = output_side == "gradients" and "output_norm" in uses
    if side or "gradient_gram" in uses:
        yield _accumulate_with_gradients(model, windows, uses, side)
        return
    check_windows(model, windows)
    if not runs_by_layer(model, windows):
        tell_whole(model, "dense")
        with collecting(named_linears(model), uses) as sums:
            run_whole(model, windows, batch_size)
        yield sums
        return
    layers, runner = linears_by_layer(model), LayerRunner(model, windows, batch_size)
    for index, linears in enumerate(track(layers, "calibrating")):
        with collecting(linears, uses) as sums:
            runner.run(index)
        if index == 0 and "gram" in uses:  # they are kept in half of float64's bytes
            one = sum(moments.gram.nbytes // 2 for moments in sums.moments.values())
            what = f"the Gram matrices of {len(layers)} decoder layers"
            require_memory((len(layers) - 1) * one, entrance(model), what, _NO_GRAM)
        yield sums


def _accumulate_with_gradients(
    model: nn.Module, windows: Windows, uses: Collection[str], side: bool
) -> LinearSums:
    """Inputs from the forward and the loss gradient of each linear's output from the backward, by window.

    side: output_norm is of the gradients, and not of the outputs.
    """
    linears = named_linears(model)
    check_windows(model, windows)
    if "gradient_gram" in uses:
        needed = 8 * sum(len(weight_view(linear)) ** 2 for linear in linears.values())
        require_memory(needed, entrance(model), "the Gram matrices of all gradients", _NO_GRADIENTS)
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    dtype = calibration_dtype(next(model.parameters()))
    widened = computing_in(dtype, tensors_of(model))  # as a whole: the backward reads the weights again
    try:
        model.requires_grad_(False)  # only activations carry gradients: no memory for those of the weights
        with (
            widened,
            collecting(linears, set(uses) - ({"output_norm"} if side else set())) as sums,
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            if "gradient_gram" in uses:  # zero where no token arrives
                for name, linear in linears.items():
                    sums.gradient_grams[name] = torch.zeros(
                        (len(weight_view(linear)),) * 2, dtype=torch.float64, device=linear.weight.device
                    )

            def receive(name: str, gradient: Tensor) -> None:
                if side:
                    sums.add_outputs(name, gradient)
                if "gradient_gram" in uses:
                    sums.add_gradients(name, gradient)

            def observe(name: str, inputs: Tensor, outputs: Tensor) -> None:
                outputs.register_hook(partial(receive, name))

            with _hooked(linears, observe):
                for window in track(windows, "calibrating with gradients"):
                    ids = window[None].to(entrance(model))
                    embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()
                    model(inputs_embeds=embeddings, labels=ids, use_cache=False).loss.backward()
    finally:
        for parameter, was in required.items():
            parameter.requires_grad_(was)
    for name, gram in sums.gradient_grams.items():
        if not torch.isfinite(gram.diagonal().sum()):
            raise UserError(f"NaN or inf in the gradients of {name}: the dtype's range is too small")
    return sums


def _require_gram_memory(linears: Mapping[str, nn.Module]) -> None:
    """Raise UserError if the Gram matrices cannot fit: one for each width, and a product being added."""
    widths = {weight_view(linear).shape[1] for linear in linears.values()}
    needed = 8 * sum(d**2 for d in widths) + 4 * max(widths, default=0) ** 2
    if first := next(iter(linears), None):
        what = f"the Gram matrices of one decoder layer ({first} and after)"
        require_memory(needed, linears[first].weight.device, what, _NO_GRAM)
