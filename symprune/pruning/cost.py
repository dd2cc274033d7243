"""What pruning a model costs, from its config: bytes, operations, and the batch that fits."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from symprune.base.errors import UserError
from symprune.base.types import Windows
from symprune.methods.recipe import Recipe
from symprune.methods.sketch import rank_in
from symprune.methods.update.refit import numbers_held
from symprune.models.devices import memory_of
from symprune.models.layers import decoder_layers, linears_by_layer, weight_view
from symprune.models.precision import calibration_dtype

GIB = 2**30
AUTO = "auto"
_TOKENS_ON_A_GPU = 16384  # of one forward pass: ours, by arithmetic
_TOKENS_ELSEWHERE = 512  # ours: benchmarks/batch_size.py
# Bytes per weight of the largest linear beside two copies of its scores (themselves, and what selects among
# them): masks and counts. Measured: 1 for a sparsity, 3.25 for 2:4, by any score.
_SELECTING = 3.25


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, which may lie on the meta device; parameters that are tied count once."""

    n_layers: int
    hidden_size: int
    layer: int  # parameters of the largest decoder layer
    layers: int  # of all
    outside: int  # of embeddings, head and the rest
    entrance: int  # of the input embedding
    vocabulary: int
    linears: int  # prunable, of all decoder layers
    widths: tuple[tuple[int, int], ...]  # (d_out, d_in) of the prunable linears of the first decoder layer

    @classmethod
    def of(cls, model: nn.Module) -> "Shape":
        """The shape of a model."""
        sizes = [sum(p.numel() for p in layer.parameters()) for layer in decoder_layers(model)]
        linears = linears_by_layer(model)
        return cls(
            n_layers=len(sizes),
            hidden_size=model.config.get_text_config(decoder=True).hidden_size,
            layer=max(sizes),
            layers=sum(sizes),
            outside=sum(p.numel() for p in model.parameters()) - sum(sizes),
            entrance=model.get_input_embeddings().weight.numel(),
            vocabulary=len(model.get_input_embeddings().weight),
            linears=sum(weight_view(linear).numel() for layer in linears for linear in layer.values()),
            widths=tuple(tuple(weight_view(linear).shape) for linear in linears[0].values()),
        )

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.layers + self.outside


@dataclass(frozen=True)
class Cost:
    """Bytes and operations of pruning a model of this shape on n_windows windows of seq_len tokens.

    itemsize: bytes of a weight; computed: of a number that calibration computes with, if wider. passes: over
    the decoder layers, 2 for propagation "pruned", 1 for "dense", 0 for scores that read no statistics. gram:
    Gram matrices are gathered; rank: columns of a sketch of them, 0 for none. merged: bytes of the largest
    tensor that a checkpoint holds in parts. iterations: of an update of the kept weights (0: none);
    gradients: it reads the Gram matrices of the gradients, which are kept for all layers.
    """

    shape: Shape
    n_windows: int
    seq_len: int
    itemsize: int = 4
    batch_size: int = 1
    passes: int = 2
    gram: bool = False
    rank: int = 0
    keep_masks: bool = False
    merged: int = 0
    computed: int = 0
    iterations: int = 0
    gradients: bool = False

    @property
    def number(self) -> int:
        """Bytes of a number that calibration computes with."""
        return max(self.itemsize, self.computed)

    @property
    def widened(self) -> int:
        """The copy of a decoder layer in which calibration runs it, if that is wider than the weights."""
        return self.shape.layer * self.number if self.passes and self.number > self.itemsize else 0

    @property
    def weights(self) -> int:
        """The model in memory, or on disk."""
        return self.shape.parameters * self.itemsize

    @property
    def layer(self) -> int:
        """The weights of one decoder layer."""
        return self.shape.layer * self.itemsize

    @property
    def hidden(self) -> int:
        """The hidden states of all windows between two decoder layers."""
        return self.n_windows * self.seq_len * self.shape.hidden_size * self.number if self.passes else 0

    @property
    def activations(self) -> int:
        """What enters and leaves the linears of a decoder layer for one batch, and what lies between them."""
        per_token = sum(d_out for d_out, _ in self.shape.widths) + 4 * self.shape.hidden_size
        return self.batch_size * self.seq_len * per_token * self.number if self.passes else 0

    @property
    def inputs(self) -> list[int]:
        """The widths of the inputs of one decoder layer's linears, shared ones once.

        Linears of the width of the hidden states are taken to have three (attention, its output, mlp).
        """
        widths = [d_in for _, d_in in self.shape.widths]
        most = {self.shape.hidden_size: 3}
        count = {d: min(widths.count(d), most.get(d, len(widths))) for d in widths}
        return [d for d, n in count.items() for _ in range(n)]

    @property
    def grams(self) -> int:
        """Gram matrices or sketches of one decoder layer, and a product being added."""
        gram = 8 * sum(d**2 for d in self.inputs) + 12 * max(self.inputs) ** 2 if self.gram else 0
        columns = [d * min(self.rank, d) for d in self.inputs]
        return (gram + 16 * sum(columns) + 64 * max(columns)) * (self.passes > 0)

    @property
    def scoring(self) -> int:
        """Scores and mask of the largest linear, a matrix that a sketch stands for, and the layer's masks."""
        sizes = [d_out * d_in for d_out, d_in in self.shape.widths]
        # Copies of the weight, too, if it is computed in a wider type.
        copies = 3 if self.number > self.itemsize else 2
        formed = max(self.number, 4) * max(self.inputs) ** 2 if self.rank else 0
        return int((copies * max(self.number, 4) + _SELECTING) * max(sizes)) + formed + sum(sizes)

    @property
    def gradient_grams(self) -> int:
        """Gram matrices of the gradients of every linear; twice that while they are gathered."""
        return 4 * sum(d_out**2 for d_out, _ in self.shape.widths) * self.shape.n_layers * self.gradients

    @property
    def updating(self) -> int:
        """The largest linear being updated with its Gram matrices, and the new weights of its layer."""
        if not self.iterations:
            return 0
        sizes = [d_out * d_in for d_out, d_in in self.shape.widths]
        held = numbers_held(max(sizes), self.iterations, together=self.gradients)
        matrices = 2 * max(d_in**2 + self.gradients * d_out**2 for d_out, d_in in self.shape.widths)
        numbers = 2 * max(sizes) + held + matrices
        return sum(sizes) * (self.itemsize + 1) + max(self.number, 4) * numbers

    @property
    def masks(self) -> int:
        """The masks of all decoder layers at one bit per weight, if a streamed run keeps them."""
        return self.shape.linears // 8 if self.keep_masks else 0

    @property
    def in_memory(self) -> int:
        """Peak with the whole model in memory."""
        working = max(self.activations + self.widened, self.scoring, self.updating)
        return self.weights + self.hidden + self.grams + self.gradient_grams + working

    def streamed(self, spilled: bool) -> int:
        """Peak with one decoder layer in memory; spilled: hidden states are on disk but for a batch."""
        n_batches = max(-(-self.n_windows // self.batch_size), 1)
        hidden = min(2 * self.hidden // n_batches, self.hidden) if spilled else self.hidden
        reading = max(d_out * d_in for d_out, d_in in self.shape.widths) * self.itemsize
        copied = self.itemsize + (self.number if self.widened else 0)  # an embedding and what it computes in
        entrance = self.shape.entrance * copied if self.passes else 0
        entering = entrance + self.layer + self.widened + max(reading, self.merged)
        # When linears are scored, no product is being added; the sums are held, and statistics of them.
        late = 12 * max(self.inputs) ** 2 - 4 * sum(d**2 for d in self.inputs)
        scoring = self.scoring - self.gram * (self.passes > 0) * late
        working = max(self.activations + self.widened, scoring, self.updating, reading, self.merged)
        pruning = self.layer + self.grams + working + self.masks
        saving = 3 * self.masks  # they are copied twice
        return self.gradient_grams + hidden + max(entering, pruning, saving)

    @property
    def operations(self) -> float:
        """Multiplications and additions of the passes over the decoder layers, and of an update's products.

        Two per weight and token, and those of attention's two products over half the window.
        """
        tokens = self.n_windows * self.seq_len
        a_token = [self.gram * 2 * d**2 + 4 * d * min(self.rank, d) for d in self.inputs]
        gram = sum(a_token) * self.shape.n_layers
        attention = 2 * self.seq_len * self.shape.hidden_size * self.shape.n_layers
        passes = self.passes * (2 * self.shape.linears + attention) + gram * (self.passes > 0)
        return tokens * passes + self.update_operations

    @property
    def update_operations(self) -> float:
        """Of an update: in each iteration a product of every weight with G, and one with H."""
        each = (d_out * d_in * (d_in + self.gradients * d_out) for d_out, d_in in self.shape.widths)
        return 2 * self.iterations * sum(each) * self.shape.n_layers


def asked_by(recipe: Recipe) -> dict[str, Any]:
    """The fields of a `Cost` that a recipe decides."""
    return {
        "gram": "gram" in recipe.uses,
        "rank": rank_in(recipe.uses),
        "iterations": getattr(recipe.update, "max_iterations", 1) if recipe.update else 0,
        "gradients": "gradient_gram" in recipe.uses,
    }


def batch_size_of(
    requested: int | str,
    model: nn.Module,
    windows: Windows,
    *,
    device: torch.device | str | None = None,
    room: int | None = None,
    logits: int = 0,
) -> int:
    """The windows of a batch: as many as requested, or for "auto" what keeps the device busy and fits.

    "auto": the largest power of two of windows [n, seq_len] that hold at most the tokens that are worth a
    pass of their own, and whose activations (and `logits` outputs of the head) take at most half of `room`;
    at least 1. device: None for where the model's embedding is. room: bytes; None for what the weights leave
    of all the device's memory, whatever other programs hold of it, so that the same machine chooses the same
    again. Raises UserError for anything else than a whole number of at least 1 or "auto".
    """
    if requested != AUTO:
        if isinstance(requested, bool) or not isinstance(requested, int) or requested < 1:
            raise UserError(f"batch_size must be a whole number of at least 1 or {AUTO!r}, not {requested!r}")
        return requested
    shape, seq_len = Shape.of(model), windows.shape[1]
    device = torch.device(device or model.get_input_embeddings().weight.device)
    weight = next(model.parameters())
    itemsize, computed = weight.element_size(), (calibration_dtype(weight) or weight.dtype).itemsize
    one = Cost(shape, 1, seq_len, itemsize, computed=computed)
    a_window = one.activations + logits * seq_len * shape.vocabulary * itemsize
    room = memory_of(device) - one.weights if room is None else room
    tokens = _TOKENS_ON_A_GPU if device.type == "cuda" else _TOKENS_ELSEWHERE
    at_most = min(room // 2 // a_window, tokens // seq_len)
    return 2 ** (max(at_most, 1).bit_length() - 1)


def seconds_of(cost: Cost, dtype: torch.dtype = torch.float32, device: str = "cpu") -> float:
    """Seconds of the passes over the decoder layers, at the rate of a product here and now, and of the masks.

    A refinement is not in it, and no sampling of norms.
    """
    passes = cost.operations / _operations_per_second(dtype, device) if cost.passes else 0.0
    return passes + cost.shape.linears * 40 / (4e9 if device == "cpu" else 1e12)


def _operations_per_second(dtype: torch.dtype, device: str) -> float:
    """Of a product of the size of a linear's, here and now."""
    rows, width = (512, 1024) if device == "cpu" else (4096, 4096)  # what keeps a GPU busy
    a = torch.ones(rows, width, dtype=dtype, device=device)
    b = torch.ones(width, width, dtype=dtype, device=device)
    (a @ b).sum().item()  # the first call loads libraries
    start, n = time.perf_counter(), 0
    while n < 3 or time.perf_counter() - start < 0.1:
        (a @ b).sum().item()
        n += 1
    return n * 2 * rows * width * width / (time.perf_counter() - start)
