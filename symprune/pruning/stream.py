"""Prune a checkpoint larger than memory, one decoder layer at a time, from safetensors files into others."""

import contextlib
import ctypes
import time
from collections.abc import Iterator, MutableSequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from symprune.base.errors import UserError
from symprune.base.files import require_disk, require_free, whole_folder
from symprune.base.progress import track
from symprune.base.types import Windows
from symprune.methods.recipe import Recipe
from symprune.models.causal import require_causal
from symprune.models.devices import ALL_GPUS, memory_of
from symprune.models.layers import linears_by_layer, named_linears, weight_view
from symprune.models.load import DTYPES, locate, require_readable
from symprune.models.precision import calibrating_in, calibration_dtype
from symprune.pruning.checkpoint import Checkpoint, Writer, random_weights, skeleton
from symprune.pruning.checks import check_layers, check_weights
from symprune.pruning.cost import GIB, Cost, Shape, asked_by, batch_size_of, seconds_of
from symprune.pruning.packed_masks import PackedMasks
from symprune.pruning.prune import MasksFromStatistics, prune_layers, still_dense
from symprune.pruning.report import PrunedLinear, PruneReport
from symprune.pruning.runner import check_windows, runs_by_layer
from symprune.pruning.sources import GRADIENTS, Calibration, Source, Timed, source_of, windows_of

_CHECKED_TOKENS = 256  # of a window: their logits are no more than a layer of a model that is streamed


@dataclass(frozen=True)
class Streaming:
    """How a checkpoint is streamed.

    device: on a GPU the layers arrive one by one. batch_size: see `symprune.pruning.cost`. memory: bytes that
    the process may take (None: what is free); hidden states go to disk if they do not fit.
    """

    dtype: str = "float32"
    device: str = "cpu"
    batch_size: int | str = 1
    memory: int | None = None
    keep_masks: bool = False


def prune_checkpoint(
    name: str,
    out: Path | str,
    calibration: Calibration,
    recipe: Recipe,
    propagate: str = "pruned",
    **how,
) -> PruneReport:
    """Prune the model called `name` into the folder `out`, to the same bits as `prune` in memory.

    how: fields of `Streaming`. Raises UserError as `StreamedRun` does.
    """
    with StreamedRun(name, calibration, recipe, propagate, Streaming(**how)).into(out) as (_, report):
        return report


class StreamedRun:
    """A model that is going to be pruned layer by layer: `plan` says what that takes, `into` does it, once.

    masks: the masks, once the run is over, if `how` keeps them; report.masks stays empty. Raises UserError as
    `prune` does, for a checkpoint whose tensors are not named as the model's, and for too little memory.
    """

    def __init__(
        self,
        name: str,
        calibration: Calibration,
        recipe: Recipe,
        propagate: str = "pruned",
        how: Streaming = Streaming(),
    ):
        if how.device == ALL_GPUS:
            raise UserError("streaming keeps one decoder layer in memory, on one device: take cpu or cuda")
        _give_back_memory_at_once()
        self._folder, self._recipe, self._propagate = locate(name), recipe, propagate
        require_readable(self._folder, streamed=True)
        self._calibration = calibration
        self.model = skeleton(self._folder, how.dtype)
        self._layers = linears_by_layer(self.model)
        check_layers(self._layers, calibration, recipe, propagate)
        if GRADIENTS in recipe.uses and isinstance(calibration, Tensor):
            raise UserError(
                f"{recipe.label} reads {GRADIENTS}, which takes the whole dense model: gather it in memory"
                f" (symprune calibrate --gather {GRADIENTS}) and give it with --statistics, or take --update"
                " refit, which needs none"
            )
        self._checkpoint = Checkpoint(self._folder, self.model, how.dtype, how.device)
        self.masks = PackedMasks() if how.keep_masks else None

        shape, itemsize = Shape.of(self.model), DTYPES[how.dtype].itemsize
        windows, self._batch_size, passes = windows_of(calibration, recipe), how.batch_size, 0
        if windows is not None:
            passes = 2 if propagate == "pruned" else 1
            room = (memory_of(how.device) if how.memory is None else how.memory) - shape.layer * itemsize
            self._batch_size = batch_size_of(
                how.batch_size, self.model, windows, device=how.device, room=room
            )
        sizes = (0, 0) if windows is None else windows.shape
        wider = calibration_dtype(next(self.model.parameters()))
        cost = Cost(
            shape,
            *sizes,
            itemsize,
            self._batch_size,
            passes,
            keep_masks=how.keep_masks,
            merged=self._checkpoint.largest_merge,
            computed=wider.itemsize if wider else 0,
            **asked_by(recipe),
        )
        budget = how.memory, wider or DTYPES[how.dtype], how.device
        plan(cost, *budget)  # what does not fit is not tried
        self._require_streamable(windows, how.device)
        self.plan = plan(cost, *budget)  # once more: what the model's first forward leaves behind is held now

    def _require_streamable(self, windows: Windows | None, device: str) -> None:
        """Raise UserError for a model that is not causal, or cannot be run decoder layer by decoder layer.

        The model is never whole, so its own forward is asked with random weights, in their own type. It is
        not run instead, as in memory, where it differs: that takes all of its weights.
        """
        with calibrating_in(None), random_weights(self.model, device):
            require_causal(self.model)
            if windows is None:
                return
            check_windows(self.model, windows, in_memory=False)
            if not runs_by_layer(self.model, windows[[0, -1], :_CHECKED_TOKENS]):
                raise UserError(
                    f"{type(self.model).__name__} cannot be run decoder layer by decoder layer as its own"
                    " forward does, and --stream never holds more: leave out --stream, where memory allows,"
                    " or give the --statistics of a machine where it does"
                )

    @contextlib.contextmanager
    def into(self, out: Path | str) -> Iterator[tuple[Path, PruneReport]]:
        """Prune into the folder `out`, which appears, whole, when the block ends.

        Inside, the model is pruned: files may be added to the folder that is given, beside its own. Raises
        UserError for a folder that exists, and for too little disk.
        """
        out = Path(out)
        require_free(out, "folder")
        require_disk(out, self.plan.disk)
        with whole_folder(out) as folder:
            report = self._run(folder)
            self._checkpoint.require_written(folder)
            yield folder, report

    @torch.no_grad()
    def _run(self, folder: Path) -> PruneReport:
        start, checkpoint, writer = time.perf_counter(), self._checkpoint, Writer(folder)
        source = Timed(lambda: self._source(folder.with_name(f"{folder.name}.hidden")))
        layers = checkpoint.through_memory(track(self._layers, "pruning"), writer)
        make_masks = MasksFromStatistics(source, self._recipe)
        linears = named_linears(self.model)
        done: list[PrunedLinear] = []
        for layer in prune_layers(map(_checked, layers), make_masks, source):
            done += layer.linears
            for name in layer.masks if self.masks is not None else ():
                self.masks.add(name, weight_view(linears[name]), layer.masks[name])
            del layer
        checkpoint.copy_outside(writer, at_most=self.plan.cost.layer)
        writer.finish(self.model, self._folder)
        stages = source.stages(since=start)
        return PruneReport(
            self._recipe,
            self._propagate,
            done,
            stages,
            left_dense=still_dense(self.model, done, self._recipe),
        )

    def _source(self, spilled: Path) -> Source:
        how = self._calibration, self._recipe, self._propagate, self._batch_size
        if windows_of(self._calibration, self._recipe) is None:
            return source_of(self.model, *how)
        with self._checkpoint.entrance():
            hidden = OnDisk(spilled) if self.plan.spill else None
            return source_of(self.model, *how, hidden=hidden, whole=False)


def _checked(linears: dict[str, nn.Module]) -> dict[str, nn.Module]:
    check_weights(linears)
    return linears


@dataclass(frozen=True)
class Plan:
    """What a streamed run is going to take: bytes of memory (`base` of them held already), disk, seconds."""

    cost: Cost
    spill: bool
    base: int
    memory: int
    disk: int
    seconds: float

    def __str__(self) -> str:
        where = "on disk" if self.spill else "in memory"
        return (
            f"predicted: {self.memory / GIB:.2f} GiB of memory ({self.base / GIB:.2f} of them already held),"
            f" {self.disk / GIB:.2f} GiB of disk, about {self.seconds:.0f} s; hidden states"
            f" ({self.cost.hidden / GIB:.2f} GiB) {where}"
        )


def plan(cost: Cost, budget: int | None, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Plan:
    """How to stream under a budget of bytes (None: what is free): hidden states stay in memory if they fit.

    Raises UserError if even one decoder layer with hidden states on disk does not fit.
    """
    import psutil

    base = psutil.Process().memory_info().rss if device == "cpu" else 0
    limit = base + psutil.virtual_memory().available if budget is None else budget
    spill = cost.passes > 0 and base + cost.streamed(spilled=False) > limit
    memory = base + cost.streamed(spill)
    if memory > limit:
        raise UserError(
            f"one decoder layer at a time needs {memory / GIB:.2f} GiB, {limit / GIB:.2f} GiB are allowed: "
            "raise --memory, or take a smaller dtype, seq_len or batch size"
        )
    disk = cost.weights + cost.masks + (cost.hidden if spill else 0)
    copying = 2 * cost.weights + (2 * cost.shape.n_layers * cost.passes * cost.hidden if spill else 0)
    return Plan(cost, spill, base, memory, disk, seconds_of(cost, dtype, device) + copying / 1e9)


class OnDisk(MutableSequence):
    """A list of tensors in files of a folder, read whole when asked for: none of them stays in memory."""

    def __init__(self, folder: Path):
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._about: list[tuple[torch.Size, torch.dtype, torch.device]] = []

    def __len__(self) -> int:
        return len(self._about)

    def __getitem__(self, position: int) -> Tensor:
        shape, dtype, device = self._about[position]
        return (
            torch.from_numpy(np.fromfile(self._folder / str(position), np.uint8))
            .view(dtype)
            .view(shape)
            .to(device)
        )

    def __setitem__(self, position: int, tensor: Tensor) -> None:
        self._about[position] = tensor.shape, tensor.dtype, tensor.device
        tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tofile(
            self._folder / str(position)
        )

    def insert(self, position: int, tensor: Tensor) -> None:
        """At the end only."""
        if position != len(self):
            raise IndexError("tensors are only appended")
        self._about.append((tensor.shape, tensor.dtype, tensor.device))
        self[position] = tensor

    def __delitem__(self, position: int) -> None:
        raise TypeError("tensors are not removed")


def _give_back_memory_at_once() -> None:
    """Free tensors at once, for the whole process from now on.

    glibc raises the size above which freed memory is given back to that of the largest block freed so far, up
    to 32 MiB, and so would keep up to twice what is predicted. What it has kept until now goes back as well.
    """
    with contextlib.suppress(OSError, AttributeError):
        m_mmap_threshold, libc = -3, ctypes.CDLL("libc.so.6")
        libc.mallopt(m_mmap_threshold, 2**16)
        libc.malloc_trim(0)
