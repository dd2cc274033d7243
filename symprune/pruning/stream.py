"""Prune a checkpoint larger than memory: one decoder layer's weights at a time, from safetensors files into
safetensors files.
"""

import contextlib
import ctypes
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableSequence
from pathlib import Path

import numpy as np
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from symprune.base.errors import UserError, unknown
from symprune.base.files import require_disk, require_free, whole_folder
from symprune.base.types import Windows
from symprune.methods.recipe import Recipe
from symprune.methods.stats import LayerStats
from symprune.models.devices import ALL_GPUS, memory_of
from symprune.models.layers import decoder_layers
from symprune.models.load import DTYPES, locate, quiet_transformers, weight_files
from symprune.pruning.calibrate import LayerRunner
from symprune.pruning.cost import Cost, Plan, Shape, batch_size_of, plan
from symprune.pruning.mask_files import PackedMasks
from symprune.pruning.prune import PruneReport, check_weights, prune


@torch.no_grad()
def prune_checkpoint(
    name: str,
    out: Path | str,
    calibration: Windows | Mapping[str, LayerStats] | None,
    recipe: Recipe,
    propagate: str = "pruned",
    *,
    dtype: str = "float32",
    device: str = "cpu",
    batch_size: int | str = 1,
    memory: int | None = None,
    masks: PackedMasks | None = None,
    planned: Callable[[Plan], None] = lambda plan: None,
    finishing: Callable[[Path, PruneReport], None] = lambda folder, report: None,
    progress: bool = False,
) -> PruneReport:
    """Prune the model called `name` into the folder `out`, to the same bits as `symprune.pruning.prune` in
    memory, layer by layer.

    memory: bytes that the process may take; hidden states go to disk, beside `out`, if they do not fit.
    masks: takes the masks. planned: is told the predicted memory, disk and time before anything starts.
    finishing: may add files to the folder, which appears whole or not at all. device: on a GPU the layers
    arrive one by one. Raises UserError as `prune` does, for a checkpoint whose tensors are not named as the
    model's, too little memory or too little disk.
    """
    out, folder = Path(out), locate(name)
    if device == ALL_GPUS:
        raise UserError("streaming keeps one decoder layer in memory, on one device: take cpu or cuda")
    model = skeleton(folder, dtype)
    shape, itemsize = Shape.of(model), DTYPES[dtype].itemsize
    checkpoint = Checkpoint(folder, model, dtype, device)
    windows = calibration if isinstance(calibration, Tensor) and recipe.uses else None
    if windows is not None:
        room = (memory_of(device) if memory is None else memory) - shape.layer * itemsize
        batch_size = batch_size_of(batch_size, model, windows, device=device, room=room)
    passes = 0 if windows is None else 2 if propagate == "pruned" else 1
    sizes = (0, 0) if windows is None else windows.shape
    cost = Cost(shape, *sizes, itemsize, batch_size, passes, "gram" in recipe.uses, masks is not None)
    how = plan(cost, memory, DTYPES[dtype], device)
    planned(how)
    _give_back_memory_at_once()
    require_free(out, "folder")
    require_disk(out, how.disk)
    with whole_folder(out) as path:
        given = calibration
        if windows is not None:
            spilled = path.with_name(f"{out.name}.hidden")
            spilled.mkdir()
            with checkpoint.entrance():
                given = LayerRunner(model, windows, batch_size, OnDisk(spilled) if how.spill else None)
        writer = Writer(path)
        visit = checkpoint.visiting(writer)
        report = prune(
            model, given, recipe, propagate, visit=visit, masked=masks and masks.add, progress=progress
        )
        checkpoint.copy_outside(writer, at_most=cost.layer)
        writer.finish(model, folder)
        finishing(path, report)
    return report


def skeleton(folder: Path, dtype: str = "float32") -> nn.Module:
    """The model of a folder with every parameter on the meta device, and with the buffers that no checkpoint
    holds.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)

    def onto_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:  # as it is, for it may be tied
            return None
        return nn.Parameter(parameter.to("meta"), requires_grad=False)

    handle = register_module_parameter_registration_hook(onto_meta)
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            return AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype]).eval()
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(
            f"cannot build a causal language model from {folder / 'config.json'}:"
            f" {str(error).splitlines()[0]}"
        ) from error
    finally:
        handle.remove()


class Checkpoint:
    """The tensors of a model's folder, by their names in the model; those of its modules come and go."""

    def __init__(self, folder: Path, model: nn.Module, dtype: str, device: str):
        self.model, self._dtype, self._device = model, DTYPES[dtype], device
        self._file_of = {key: file for file in weight_files(folder) for key in _keys(file)}
        prefixes = {module: name for name, module in model.named_modules()}
        self._layers = decoder_layers(model)
        self._prefix = [f"{prefixes[layer]}." for layer in self._layers]
        state = model.state_dict()
        tied = _tied(model)
        self._key_of = {name: key for name in state if (key := self._find(name)) is not None}
        head = next(
            (
                name
                for name, p in model.named_parameters()
                if p is getattr(model.get_output_embeddings(), "weight", None)
            ),
            None,
        )
        if head is not None and head not in self._key_of:  # some families call it otherwise in their files
            unclaimed = self._file_of.keys() - self._key_of.values()
            for key in unclaimed:
                if self._shape(key) == tuple(state[head].shape):
                    self._key_of[head] = key
        if absent := [name for name in state if name not in self._key_of and name not in tied]:
            raise UserError(
                f"{folder} holds no tensor named {absent[0]}: it is incomplete, or of a family that only"
                " loads whole"
            )
        inside = tuple(self._prefix)
        self._outside = [name for name in self._key_of if not name.startswith(inside)]
        self._loaded: set[int] = set()

    @contextlib.contextmanager
    def entrance(self) -> Iterator[None]:
        """Inside, everything that hidden states pass before the decoder layers is in memory, and the first of
        these.
        """
        head = self.model.get_output_embeddings()
        apart = (
            set()
            if head is None
            else {f"{name}.weight" for name, module in self.model.named_modules() if module is head}
        )
        embedding = self.model.get_input_embeddings().weight
        names = [n for n in self._outside if n not in apart or self.model.get_parameter(n) is embedding]
        state = self.model.state_dict(keep_vars=True)
        before = {name: state[name] for name in names}
        for name in before:
            _put(self.model, name, self._read(name))
        self._load(0)
        yield
        for name, tensor in before.items():
            _put(self.model, name, tensor)

    def visiting(
        self, writer: "Writer"
    ) -> Callable[[Iterable[dict[str, nn.Module]]], Iterator[dict[str, nn.Module]]]:
        """What `prune` goes through the decoder layers by: each is read, worked on, written, and dropped."""

        def visit(layers: Iterable[dict[str, nn.Module]]) -> Iterator[dict[str, nn.Module]]:
            for index, linears in enumerate(layers):
                self._load(index)
                check_weights(linears)
                yield linears
                writer.write(
                    {
                        f"{self._prefix[index]}{name}": tensor
                        for name, tensor in self._layers[index].state_dict().items()
                    }
                )
                self._layers[index].to("meta")

        return visit

    def copy_outside(self, writer: "Writer", at_most: int) -> None:
        """What lies outside the decoder layers, file by file of at most so many bytes (or one tensor)."""
        held: dict[str, Tensor] = {}
        for name in self._outside:
            tensor = self._read(name)
            if held and sum(t.nbytes for t in held.values()) + tensor.nbytes > at_most:
                writer.write(held)
                held = {}
            held[name] = tensor
        if held:
            writer.write(held)

    def _load(self, index: int) -> None:
        if index in self._loaded:
            return
        layer, prefix = self._layers[index], self._prefix[index]
        layer.load_state_dict(
            {name: self._read(f"{prefix}{name}") for name in layer.state_dict()}, assign=True
        )
        layer.to(self._device)  # buffers that no checkpoint holds
        self._loaded.add(index)

    def _read(self, name: str) -> Tensor:
        """A copy: the mapped file is closed again at once, so that its pages do not count as this process's
        memory.
        """
        key = self._key_of[name]
        with safetensors.safe_open(self._file_of[key], "pt") as file:
            tensor = file.get_tensor(key)
            return tensor.to(
                self._device, self._dtype if tensor.is_floating_point() else tensor.dtype, copy=True
            )

    def _shape(self, key: str) -> tuple[int, ...]:
        with safetensors.safe_open(self._file_of[key], "pt") as file:
            return tuple(file.get_slice(key).get_shape())

    def _find(self, name: str) -> str | None:
        """The name in the files: some were written from the model without its head."""
        prefix = f"{self.model.base_model_prefix}."
        return next(
            (key for key in (name, name.removeprefix(prefix), prefix + name) if key in self._file_of), None
        )


class Writer:
    """Writes safetensors files with an index, as transformers reads them."""

    def __init__(self, folder: Path):
        self.folder, self._index, self._bytes, self._n = folder, {}, 0, 0
        folder.mkdir()

    def write(self, tensors: dict[str, Tensor]) -> None:
        """One file more."""
        self._n += 1
        file = f"model-{self._n:05d}.safetensors"
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            self.folder / file,
            {"format": "pt"},
        )
        self._index |= dict.fromkeys(tensors, file)
        self._bytes += sum(tensor.nbytes for tensor in tensors.values())

    def finish(self, model: nn.Module, source: Path) -> None:
        """The index, named as transformers names the files of a model in several, and the model's configs."""
        for number in range(1, self._n + 1):
            os.rename(
                self.folder / f"model-{number:05d}.safetensors",
                self.folder / f"model-{number:05d}-of-{self._n:05d}.safetensors",
            )
        weight_map = {
            name: f"{file.removesuffix('.safetensors')}-of-{self._n:05d}.safetensors"
            for name, file in self._index.items()
        }
        index = {"metadata": {"total_size": self._bytes}, "weight_map": dict(sorted(weight_map.items()))}
        (self.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(self.folder)
        if (source / "generation_config.json").is_file():
            shutil.copy(source / "generation_config.json", self.folder)


class OnDisk(MutableSequence):
    """A list of tensors in files of a folder, read whole when asked for: none of them stays in memory."""

    def __init__(self, folder: Path):
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
    """glibc would keep freed tensors of up to 32 MiB in its heap, up to twice what is predicted; costs a
    tenth of the time, for good.
    """
    with contextlib.suppress(OSError, AttributeError):
        m_mmap_threshold = -3
        ctypes.CDLL("libc.so.6").mallopt(m_mmap_threshold, 2**20)


def _keys(file: Path) -> list[str]:
    try:
        with safetensors.safe_open(file, "pt") as opened:
            return list(opened.keys())
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{file} is not a readable safetensors file: fetch it again") from error


def _put(model: nn.Module, name: str, tensor: Tensor) -> None:
    """A tensor into its place, and into every other module that is tied to what was there."""
    before = model.state_dict(keep_vars=True)[name]
    for module in model.modules():
        for own in (module._parameters, module._buffers):
            for leaf, held in own.items():
                if held is before:
                    own[leaf] = (
                        nn.Parameter(tensor, requires_grad=False)
                        if isinstance(held, nn.Parameter)
                        else tensor
                    )


def _tied(model: nn.Module) -> set[str]:
    """Names of parameters that share their tensor with one named before."""
    first = dict(model.named_parameters())
    return {name for name, _ in model.named_parameters(remove_duplicate=False) if name not in first}
