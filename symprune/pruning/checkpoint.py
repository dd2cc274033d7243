"""A model's folder read and written one decoder layer at a time."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from symprune.base.errors import UserError, unknown
from symprune.base.files import short_sha256
from symprune.models.folder import INDEX
from symprune.models.layers import decoder_layers
from symprune.models.load import DTYPES, quiet_transformers
from symprune.models.tensors import ModelTensors, require_finite


def skeleton(folder: Path, dtype: str = "float32") -> nn.Module:
    """The model of a folder, its parameters on the meta device, with the buffers that no checkpoint holds."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    try:
        with quiet_transformers(), init_empty_weights(include_buffers=False):
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype])
    except Exception as error:  # whatever a broken config makes of it
        raise UserError(
            f"cannot build a causal language model from {folder / 'config.json'}:"
            f" {str(error).splitlines()[0]}"
        ) from error
    model.tie_weights()  # each went to the meta device by itself
    return model.requires_grad_(False).eval()


@contextlib.contextmanager
def random_weights(model: nn.Module, device: str) -> Iterator[None]:
    """Inside, a skeleton can be run: its parameters are views into one random tensor on the device.

    It takes no more memory than the largest of them, and is the model in everything but its values: as deep,
    as wide, its decoder layers of the same kinds in the same order, which a config cut to a few of them is
    not where layers are counted, spaced or shared by number.
    """
    scale = model.config.get_text_config(decoder=True).hidden_size ** -0.5
    generator = torch.Generator(device).manual_seed(0)
    sizes: dict[torch.dtype, int] = {}
    for tensor in model.parameters():
        sizes[tensor.dtype] = max(sizes.get(tensor.dtype, 0), tensor.numel())
    drawn = {dtype: torch.zeros(size, dtype=dtype, device=device) for dtype, size in sizes.items()}
    for values in drawn.values():
        if values.is_floating_point():
            values.normal_(std=scale, generator=generator)
    before = [(own, own.copy()) for m in model.modules() for own in (m._parameters, m._buffers)]
    made: dict[int, nn.Parameter] = {}  # by id: what is tied stays so
    try:
        for own, held in before:
            for name, tensor in held.items():
                if tensor is not None and not tensor.is_meta:
                    own[name] = tensor.to(device)
                elif tensor is not None:
                    values = drawn[tensor.dtype][: tensor.numel()].view(tensor.shape)
                    if tensor.dim() == 1 and "bias" not in name:
                        values = values + 1  # a norm's, or nothing passed it
                    own[name] = made.setdefault(id(tensor), nn.Parameter(values, requires_grad=False))
        yield
    finally:
        for own, held in before:
            own.update(held)


class Checkpoint:
    """The tensors of a model's folder, by their names in the model; those of its modules come and go."""

    def __init__(self, folder: Path, model: nn.Module, dtype: str, device: str):
        self.model, self._device = model, device
        self._tensors = ModelTensors(folder, model, DTYPES[dtype])
        self.largest_merge = self._tensors.largest_merge
        prefixes = {module: name for name, module in model.named_modules()}
        self._parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        self._layers = decoder_layers(model)
        self._prefix = [f"{prefixes[layer]}." for layer in self._layers]
        tied = _tied(model)
        state = model.state_dict()
        if absent := [name for name in state if name not in self._tensors and name not in tied]:
            raise UserError(
                f"{folder} holds no tensor named {absent[0]}: it is incomplete, or of a family that only"
                " loads whole"
            )
        model._weight_conversions = self._tensors.conversions  # as from_pretrained notes them, for saving
        inside = tuple(self._prefix)
        if shared := [name for name in sorted(tied) if name.startswith(inside)]:
            raise UserError(
                f"{shared[0]} is shared with an earlier decoder layer, and --stream holds one at a time:"
                " leave out --stream"
            )
        self._outside = [n for n in state if n in self._tensors and not n.startswith(inside)]
        self._loaded: set[int] = set()
        self._written: dict[str, str] = {}

    @contextlib.contextmanager
    def entrance(self) -> Iterator[None]:
        """Inside, what hidden states pass before the decoder layers is in memory, and the first of these."""
        state = self.model.state_dict(keep_vars=True)
        name_of = {module: f"{name}.weight" for name, module in self.model.named_modules()}
        head, embedding = self.model.get_output_embeddings(), self.model.get_input_embeddings()
        apart = name_of.get(head)
        if head is not None and head.weight is embedding.weight and name_of[embedding] not in self._tensors:
            apart = None  # the files call what both share by the head's name
        names = [name for name in self._outside if name != apart]
        before = {name: state[name] for name in names}
        for name in before:
            _put(self.model, name, self._read([name])[name])
        self._load(0)
        yield
        for name, tensor in before.items():
            _put(self.model, name, tensor)

    def through_memory(
        self, layers: Iterable[dict[str, nn.Module]], writer: "Writer"
    ) -> Iterator[dict[str, nn.Module]]:
        """The linears of one decoder layer after the other: each is read, worked on, written, dropped."""
        from transformers.core_model_loading import revert_weight_conversion

        for index, linears in enumerate(layers):
            self._load(index)
            yield linears
            layer, prefix = self._layers[index], self._prefix[index]
            state = {f"{prefix}{name}": tensor for name, tensor in layer.state_dict().items()}
            writer.write(revert_weight_conversion(self.model, state))
            if index in {0, len(self._layers) // 2, len(self._layers) - 1}:
                self._written |= digests(state, [list(state)[index % len(state)]])
            del state
            layer.to("meta")

    def copy_outside(self, writer: "Writer", at_most: int) -> None:
        """What lies outside the decoder layers, file by file of at most so many bytes (or one tensor)."""
        from transformers.core_model_loading import revert_weight_conversion

        held: dict[str, Tensor] = {}
        for name in self._outside:
            found = self._read([name])
            if held and sum(t.nbytes for t in [*held.values(), *found.values()]) > at_most:
                writer.write(revert_weight_conversion(self.model, held))
                held = {}
            held |= found
        if held:
            writer.write(revert_weight_conversion(self.model, held))

    def require_written(self, folder: Path) -> None:
        """Raise UserError unless some of the tensors that were written are read back as such."""
        require_saved(folder, self.model, self._written)

    def _load(self, index: int) -> None:
        if index in self._loaded:
            return
        layer, prefix = self._layers[index], self._prefix[index]
        found = self._read([f"{prefix}{name}" for name in layer.state_dict()])
        layer.load_state_dict(
            {name.removeprefix(prefix): tensor for name, tensor in found.items()}, assign=True
        )
        layer.to(self._device)  # buffers that no checkpoint holds
        self._loaded.add(index)

    def _read(self, names: list[str]) -> dict[str, Tensor]:
        found = self._tensors.read(names, self._device)
        require_finite({name: tensor for name, tensor in found.items() if name in self._parameters})
        return found


class Writer:
    """Writes safetensors files with an index, as transformers reads them."""

    def __init__(self, folder: Path):
        self.folder, self._index, self._bytes, self._n = folder, {}, 0, 0
        folder.mkdir()

    def write(self, tensors: dict[str, Tensor]) -> None:
        """One file more."""
        self._n += 1
        file = f"model-{self._n:05d}.safetensors"
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(tensors, self.folder / file, _aligning({"format": "pt"}, tensors))
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
        (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(self.folder)
        if (source / "generation_config.json").is_file():
            shutil.copy(source / "generation_config.json", self.folder)


def _aligning(metadata: dict[str, str], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The metadata of a safetensors file, filled up so that its numbers begin at a multiple of 64 bytes.

    A file is loaded by mapping it, and processors round some products otherwise where numbers lie otherwise:
    the same weights would give other logits than those in memory, in the last bit.
    """
    metadata = {**metadata, "padding": ""}
    header: dict[str, dict] = {"__metadata__": metadata}
    end = 0
    for name in sorted(
        tensors, key=lambda name: (-tensors[name].element_size(), name)
    ):  # as they are written
        tensor, begin = tensors[name], end
        end += tensor.nbytes
        kind = "BF" if tensor.dtype == torch.bfloat16 else "F" if tensor.is_floating_point() else "I"
        about = {"dtype": f"{kind}{8 * tensor.element_size()}", "shape": list(tensor.shape)}
        header[name] = {**about, "data_offsets": [begin, end]}
    length = 8 + len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return {**metadata, "padding": " " * (-length % 64)}


def digests(tensors: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, str]:
    """The digests of these tensors' bytes."""
    found = {name: tensors[name].detach().cpu().contiguous() for name in names}
    return {name: short_sha256([t.view(-1).view(torch.uint8).numpy()]) for name, t in found.items()}


def require_saved(folder: Path, model: nn.Module, expected: Mapping[str, str]) -> None:
    """Raise UserError unless a folder's tensors, by their names in the model, have these digests."""
    dtype = next(model.parameters()).dtype
    saved = ModelTensors(folder, model, dtype)
    for name, digest in expected.items():
        if name not in saved or digests(saved.read([name]), [name])[name] != digest:
            raise UserError(
                f"{name} is not read back from the saved files as it was written: the disk may be broken, or"
                f" this version of transformers saves {type(model).__name__} otherwise than it loads it"
            )


def some_of(model: nn.Module, count: int = 8) -> dict[str, str]:
    """The digests of a few of a model's parameters, evenly over its depth, for `require_saved`."""
    tensors = dict(model.named_parameters())
    names = list(tensors)
    return digests(tensors, {names[i * (len(names) - 1) // (count - 1)] for i in range(count)})


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
