"""Models of published sizes with random weights, pruned by `symprune.prune` and by Wanda's loop as published:
seconds and peak memory, for gpu_check.py.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn

from symprune import Recipe, prune
from symprune.models.layers import decoder_layers, named_linears
from symprune.models.load import DTYPES
from symprune.pruning.cost import Cost, Shape, asked_by, batch_size_of, seconds_of
from symprune.pruning.runner import LayerRunner

SIZES = {  # hidden size, width of the MLP, decoder layers, heads, vocabulary
    "7B": (4096, 11008, 32, 32, 32000),  # Llama-2-7B's
    "1B": (2048, 5632, 22, 16, 32000),
    "tiny": (64, 176, 3, 4, 96),
}


class Cut(Exception):
    """A part has had its time; holds the decoder layers that were done."""


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def build(size: str, dtype: str, device: str) -> nn.Module:
    """A Llama of that size, random, on the device from the start."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, mlp, layers, heads, vocabulary = SIZES[size]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        dtype=dtype,
    )
    torch.set_default_dtype(DTYPES[dtype])
    try:
        with torch.device(device):
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """The same random weights each time, so that no copy of them need be kept."""
    generator = torch.Generator(next(model.parameters()).device).manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.02, generator=generator)


@contextlib.contextmanager
def cut_at(end: float, model: nn.Module) -> Iterator[None]:
    """Inside, a decoder layer that begins after `end` raises Cut."""

    def check(index: int) -> Callable:
        def hook(layer: nn.Module, args: tuple) -> None:
            if time.perf_counter() > end:
                raise Cut(index)

        return hook

    handles = [layer.register_forward_pre_hook(check(i)) for i, layer in enumerate(decoder_layers(model))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def measured(model: nn.Module, end: float, work: Callable[[], dict]) -> dict:
    """What `work` says, its seconds, its peak bytes on a GPU, and how far it came."""
    fill(model)
    on_gpu = next(model.parameters()).is_cuda
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    synchronize()
    start, layers = time.perf_counter(), len(decoder_layers(model))
    try:
        with cut_at(end, model):
            found = {**work(), "layers": layers}
    except Cut as cut:
        found = {"layers": cut.args[0]}
    synchronize()
    found["seconds"] = time.perf_counter() - start
    if found["layers"]:
        found["seconds_of_all_layers"] = found["seconds"] * layers / found["layers"]
    return found | ({"peak": torch.cuda.max_memory_allocated()} if on_gpu else {})


def pruned(
    model: nn.Module,
    windows: torch.Tensor,
    recipe: Recipe,
    batch_size: int | str,
    end: float,
    propagate: str = "pruned",
) -> dict:
    """Seconds and peak of one recipe, measured and predicted."""
    parameter, passes = next(model.parameters()), {"pruned": 2, "dense": 1}[propagate] if recipe.uses else 0
    chosen = min(batch_size_of(batch_size, model, windows), len(windows))
    sizes = {"itemsize": parameter.element_size(), "batch_size": chosen, "passes": passes}
    cost = Cost(Shape.of(model), *windows.shape, **sizes, **asked_by(recipe))

    def work() -> dict:
        report = prune(model, windows, recipe, propagate, batch_size=batch_size)
        return {"sparsity": report.sparsity, **{f"seconds_{k}": v for k, v in report.seconds.items()}}

    predicted = {
        "predicted_seconds": seconds_of(cost, parameter.dtype, parameter.device.type),
        "predicted_peak": cost.in_memory,
    }
    about = {"windows": len(windows) if passes else 0, "batch_size": chosen if passes else 0, **predicted}
    return about | measured(model, end, work)


def plain_passes(model: nn.Module, windows: torch.Tensor, batch_size: int | str) -> dict:
    """Every decoder layer twice over all windows, and nothing else: what is left of the time of any loop that
    runs the model's own layers.
    """
    runner = LayerRunner(model, windows, batch_size)
    for index in range(len(runner.layers)):
        runner.run(index, keep=False)
        runner.run(index)
    return {"windows": len(windows), "batch_size": len(runner.hidden[0])}


def kept_by_layer(model: nn.Module) -> dict[str, torch.Tensor]:
    """What is not zero in the first and the last decoder layer."""
    named, last = named_linears(model), f".{len(decoder_layers(model)) - 1}."
    return {name: (m.weight != 0).cpu() for name, m in named.items() if ".0." in name or last in name}


def agreement(here: dict[str, torch.Tensor], there: dict[str, torch.Tensor]) -> dict[str, float]:
    """The fraction of weights decided alike in the first and in the last decoder layer."""
    alike: dict[str, list[float]] = {"first": [], "last": []}
    for name, mask in here.items():
        alike["first" if ".0." in name else "last"].append((mask == there[name]).float().mean().item())
    return {f"alike_{layer}": statistics.fmean(values) for layer, values in alike.items()}


@torch.no_grad()
def published_loop(model: nn.Module, windows: torch.Tensor, sparsity: float) -> dict:
    """Wanda's loop as its authors describe it, and no more: a sample at a time, twice through each layer.

    Hooks add up the squared norms of every linear's inputs; rows are sorted by score, and the lowest zeroed.
    """
    layers, device = decoder_layers(model), next(model.parameters()).device
    hidden: list[torch.Tensor] = []
    besides: dict = {}

    class Caught(Exception):
        pass

    def catch(layer: nn.Module, args: tuple, kwargs: dict) -> None:
        hidden.append(args[0])
        besides.update(kwargs)
        raise Caught

    handle = layers[0].register_forward_pre_hook(catch, with_kwargs=True)
    for window in windows:
        with contextlib.suppress(Caught):
            model(input_ids=window[None].to(device), use_cache=False)
    handle.remove()
    n, inputs = len(hidden), torch.cat(hidden)
    outputs = torch.zeros_like(inputs)
    hidden.clear()

    def through(layer: nn.Module) -> None:
        for i in range(n):
            out = layer(inputs[i : i + 1], **besides)
            outputs[i] = out if isinstance(out, torch.Tensor) else out[0]

    for layer in layers:
        linears = {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
        squares = {name: torch.zeros(m.in_features, device=device) for name, m in linears.items()}

        def adding(name: str, squares: dict = squares) -> Callable:
            def hook(module: nn.Module, args: tuple, out: torch.Tensor) -> None:
                flat = args[0].reshape(-1, args[0].shape[-1]).t().float()
                squares[name] += flat.norm(p=2, dim=1) ** 2 / n

            return hook

        handles = [module.register_forward_hook(adding(name)) for name, module in linears.items()]
        through(layer)
        for handle in handles:
            handle.remove()
        for name, module in linears.items():
            scores = module.weight.abs() * squares[name].sqrt()
            lowest = scores.sort(dim=-1, stable=True).indices[:, : int(scores.shape[1] * sparsity)]
            removed = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, lowest, True)
            module.weight[removed] = 0
        through(layer)
        inputs, outputs = outputs, inputs
    return {}
