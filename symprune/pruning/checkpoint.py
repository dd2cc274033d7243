"""A model's folder read and written one decoder layer at a time."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import safetensors
from safetensors.torch import save_file
from torch import Tensor, nn

from symprune.base.errors import UserError, unknown
from symprune.models.layers import decoder_layers
from symprune.models.load import DTYPES, quiet_transformers, tensor_shapes, weight_files


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
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(
            f"cannot build a causal language model from {folder / 'config.json'}:"
            f" {str(error).splitlines()[0]}"
        ) from error
    model.tie_weights()  # each went to the meta device by itself
    return model.requires_grad_(False).eval()


class Checkpoint:
    """The tensors of a model's folder, by their names in the model; those of its modules come and go."""

    def __init__(self, folder: Path, model: nn.Module, dtype: str, device: str):
        self.model, self._dtype, self._device = model, DTYPES[dtype], device
        shapes = {file: tensor_shapes(file) for file in weight_files(folder)}
        self._file_of = {key: file for file, tensors in shapes.items() for key in tensors}
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
            for key in self._file_of.keys() - self._key_of.values():
                if shapes[self._file_of[key]][key] == tuple(state[head].shape):
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
        """Inside, what hidden states pass before the decoder layers is in memory, and the first of these."""
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

    def through_memory(
        self, layers: Iterable[dict[str, nn.Module]], writer: "Writer"
    ) -> Iterator[dict[str, nn.Module]]:
        """The linears of one decoder layer after the other: each is read, worked on, written, dropped."""
        for index, linears in enumerate(layers):
            self._load(index)
            yield linears
            layer, prefix = self._layers[index], self._prefix[index]
            writer.write({f"{prefix}{name}": tensor for name, tensor in layer.state_dict().items()})
            layer.to("meta")

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
        """A copy: the mapped file is closed again at once, so that its pages do not count as memory held."""
        key = self._key_of[name]
        with safetensors.safe_open(self._file_of[key], "pt") as file:
            tensor = file.get_tensor(key)
            return tensor.to(
                self._device, self._dtype if tensor.is_floating_point() else tensor.dtype, copy=True
            )

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
