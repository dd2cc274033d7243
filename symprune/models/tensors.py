"""The tensors of a folder by their names in a model: renamed and merged by transformers' own rules."""

import contextlib
import copy
import math
import re
import types
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from symprune.base.errors import UserError
from symprune.models.folder import Stored, stored_tensors

_TRIED = "5.8.1 to 5.24.0"  # versions of transformers
_OLD_MASKS = re.compile(r"\.masked_bias$")  # a number that older GPTs carried beside their causal mask


@contextlib.contextmanager
def _by_transformers() -> Iterator[None]:
    """Inside, functions are called that transformers may change without notice: if it did, that is told."""
    try:
        yield
    except (ImportError, AttributeError, TypeError) as error:
        from transformers import __version__

        raise UserError(
            f"transformers {__version__} reads a model's files otherwise than is known here ({error}): take"
            f" one of {_TRIED}"
        ) from error


def require_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError, naming the tensor, for a NaN or inf in what is read or pruned."""
    for name, tensor in tensors.items():
        numbers = tensor.is_floating_point() and tensor.numel() and not tensor.is_meta
        if numbers and not all(map(math.isfinite, torch.aminmax(tensor.detach()))):  # one pass: NaN goes on
            raise UserError(f"NaN or inf in {name}: the checkpoint is broken")


@dataclass
class _Group:
    """What is read together: tensors of the files, by the pattern that took them, for some of the model's."""

    names: list[str]
    converter: Any = None
    parts: list[tuple[str, str]] = field(default_factory=list)


class ModelTensors:
    """The tensors of a folder by their names in `model`, which may lie on the meta device.

    A checkpoint may name them otherwise, or hold each expert of a mixture by itself where the model has one
    tensor of all. conversions: the rules that were used, by which transformers writes a model as it was read.
    Raises UserError for a tensor that the model does not claim, and for those of `stored_tensors`.
    """

    @_by_transformers()
    def __init__(self, folder: Path, model: nn.Module, dtype: torch.dtype):
        from transformers import core_model_loading as rules
        from transformers.conversion_mapping import get_model_conversion_mapping

        self._model, self._stored = model, stored_tensors(folder)
        mapping = get_model_conversion_mapping(model)
        renamings = [rule for rule in mapping if isinstance(rule, rules.WeightRenaming)]
        converters = [rule for rule in mapping if isinstance(rule, rules.WeightConverter)]
        converter_of = {pattern: rule for rule in converters for pattern in rule.source_patterns}
        state, prefix = model.state_dict(), model.base_model_prefix
        groups: dict[str, _Group] = {}
        unexpected: dict[str, str] = {}
        for key in sorted(self._stored, key=rules.dot_natural_key):
            name, pattern = rules.rename_source_key(key, renamings, converters, prefix, state)
            if name not in state and key in state:
                name, pattern = rules.rename_source_key(key, [], [], prefix, state)
            if name not in state:
                unexpected[name] = key
                continue
            if name not in groups:
                converter = converter_of.get(pattern)
                targets = [""] if converter is None else converter.target_patterns
                names = [name.replace(targets[0], target, 1) for target in targets]
                groups[name] = _Group(names, converter)
            groups[name].parts.append((pattern, key))
            shape = self._stored[key].shape
            if groups[name].converter is None and shape != tuple(state[name].shape):
                raise UserError(
                    f"{key} in {self._stored[key].file} is of shape {list(shape)}, and not of"
                    f" {list(state[name].shape)}, as config.json says: the two are of different models"
                )
        require_claimed(folder, model, unexpected)
        self.conversions = [rule for rule in mapping if rule.was_used()]
        self._group_of = {name: group for group in groups.values() for name in group.names if name in state}
        self._dtype_of = {name: tensor.dtype for name, tensor in state.items()} | _kept_apart(model, dtype)
        self._bytes = {name: tensor.numel() * self._dtype_of[name].itemsize for name, tensor in state.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._group_of

    @property
    def largest_merge(self) -> int:
        """Bytes that the largest tensor made of several takes, which are held twice while it is made."""
        merged = (name for name, group in self._group_of.items() if group.converter is not None)
        return max((self._bytes[name] for name in merged), default=0)

    def read(self, names: Collection[str], device: str = "cpu") -> dict[str, Tensor]:
        """These tensors, copied out of the files, each in the type that the model keeps it in."""
        found: dict[str, Tensor] = {}
        for name in names:
            if name not in found:
                found |= self._convert(self._group_of[name], device)
        return {name: found[name] for name in names}

    def _convert(self, group: _Group, device: str) -> dict[str, Tensor]:
        first = group.names[0]
        if group.converter is None:
            return {first: self._read(group.parts[0][1], self._dtype_of[first], device)}
        converter = copy.deepcopy(group.converter)
        for pattern, key in group.parts:
            tensor = self._read(key, self._dtype_of[first], device)
            converter.add_tensor(first, key, pattern, tensor)
        del tensor  # or the last one would be held while they are merged
        made = converter.convert(first, model=self._model, config=self._model.config)
        return {name: part[0] if isinstance(part, list) else part for name, part in made.items()}

    def _read(self, key: str, dtype: torch.dtype, device: str) -> Tensor:
        """A copy: the mapped file is closed again at once, so that its pages do not count as memory held."""
        stored: Stored = self._stored[key]
        with safetensors.safe_open(stored.file, "pt") as file:
            tensor = file.get_tensor(key)
            return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype, copy=True)


def _kept_apart(model: nn.Module, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The types of the tensors that transformers keeps in another one than it was asked for."""
    from transformers.core_model_loading import build_glob_alternation

    plan = model._get_dtype_plan(dtype)
    if not plan:
        return {}
    patterns, pattern_of, _ = build_glob_alternation(list(plan))
    found = {name: patterns.search(name) for name in model.state_dict()}
    return {name: plan[pattern_of[match.lastgroup]] for name, match in found.items() if match}


@_by_transformers()
def require_claimed(folder: Path, model: nn.Module, unexpected: Mapping[str, str]) -> None:
    """Raise UserError if a model does not know some weight of a folder.

    unexpected: by the names that the weights would have in the model, those that they have in the folder.
    Buffers are no weights, and what transformers itself says may be ignored is ignored.
    """
    told = types.SimpleNamespace(missing_keys=set(), unexpected_keys=set(unexpected))
    model._adjust_missing_and_unexpected_keys(told)
    made = {name for name, _ in model.named_buffers()}
    prefix = f"{model.base_model_prefix}."
    for name in sorted(told.unexpected_keys):
        if not {name, prefix + name, name.removeprefix(prefix)} & made and not _OLD_MASKS.search(name):
            raise UserError(
                f"{folder} holds {unexpected[name]}, which {type(model).__name__} does not know:"
                " the checkpoint is of another model, or quantised"
            )
