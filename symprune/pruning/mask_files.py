"""Masks as an artefact: one bit per weight and the record they stand for, in one safetensors file."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from symprune.base.errors import UserError
from symprune.base.files import write_whole
from symprune.base.records import Record
from symprune.base.types import Mask, Weight
from symprune.methods.masks import NM, Unstructured, zero_removed
from symprune.methods.overlap import jaccard
from symprune.methods.recipe import Recipe, pattern_label
from symprune.models.layers import named_linears, weight_view
from symprune.models.load import MASKS

_HEADER = "symprune_masks"  # the one entry of the file's metadata
_VERSION = 1


@dataclass(frozen=True)
class MaskFile:
    """masks: by the linear's full name, True = kept; weights: a hash of the weights each mask keeps; record:
    how they were made.

    The weights' hash is the same before and after the masks are applied, and in every dtype that holds them
    exactly.
    """

    masks: dict[str, Mask]
    weights: dict[str, str]
    record: Record | None = None

    @property
    def sparsity(self) -> float:
        """The fraction of all weights that the masks remove."""
        return 1 - sum(int(mask.sum()) for mask in self.masks.values()) / sum(
            mask.numel() for mask in self.masks.values()
        )

    @property
    def pattern(self) -> Unstructured | NM | None:
        """The pattern that the masks were made by, if a record says so."""
        plain = self.record.run.get("recipe") if self.record else None
        return Recipe.from_dict(plain).pattern if isinstance(plain, dict) else None


@torch.no_grad()
def save_masks(
    file: Path | str, masks: Mapping[str, Mask], model: nn.Module, record: Record | None = None
) -> None:
    """Write the masks of `model`, pruned or not yet, at one bit per weight; the file appears whole or not at
    all.

    Raises UserError if a mask is not of this model, or if there is none.
    """
    weights, packed = _weights(model, masks), PackedMasks()
    for name, mask in masks.items():
        packed.add(name, weights[name], mask)
    packed.save(file, record)


class PackedMasks:
    """The masks of a model at one bit per weight, added while each linear's weights are at hand and saved
    together.
    """

    def __init__(self):
        self._bits: dict[str, Tensor] = {}
        self._widths: dict[str, int] = {}
        self._hashes: dict[str, str] = {}

    def add(self, name: str, weight: Weight, mask: Mask) -> None:
        """The mask of one linear by its full name, with its weight, pruned or not yet."""
        self._bits[name], self._widths[name], self._hashes[name] = (
            _pack(mask),
            mask.shape[1],
            kept_hash(weight, mask),
        )

    def save(self, file: Path | str, record: Record | None = None) -> None:
        """Write what was added, as `save_masks` does."""
        _write(
            Path(file),
            self._bits,
            self._widths,
            {"weights": self._hashes, "record": record.to_dict() if record else None},
        )


def load_masks(file: Path | str) -> MaskFile:
    """The masks in a file, or in the folder of a pruned model; raises UserError if it is damaged or no mask
    file.
    """
    file = Path(file)
    file = file / MASKS if file.is_dir() else file
    masks, about = read_packed(file)
    try:
        if about["weights"].keys() != masks.keys() or not all(
            isinstance(value, str) for value in about["weights"].values()
        ):
            raise ValueError("it lacks the hashes of the weights")
        found = MaskFile(
            masks, about["weights"], Record.from_dict(about["record"]) if about["record"] else None
        )
        _ = found.pattern  # a recipe that cannot be read is found here
        return found
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is no mask file of this version: {error}") from error


@torch.no_grad()
def apply_masks(model: nn.Module, found: MaskFile, other_weights: bool = False) -> list[str]:
    """Set the weights that the masks remove to zero, in place; returns the linears whose kept weights are not
    those of the pruned model.

    Nothing is changed and UserError is raised if the linears are not the model's, or, unless other_weights (a
    model fine-tuned or merged with an adapter since), if any kept weight differs.
    """
    weights = _weights(model, found.masks)
    differing = [
        name for name, mask in found.masks.items() if kept_hash(weights[name], mask) != found.weights[name]
    ]
    if differing and not other_weights:
        raise UserError(
            f"the weights of {len(differing)} of {len(weights)} linears are not those that were pruned,"
            f" {differing[0]} first: give the model that the masks were made for, or ask for other weights"
            " (--other-weights) to mask a fine-tuned or merged one"
        )
    for name, mask in found.masks.items():
        zero_removed(weights[name], mask.to(weights[name].device))
    return differing


@torch.no_grad()
def verify_masks(found: MaskFile, model: nn.Module | None = None, applied: bool = True) -> dict[str, Any]:
    """Counts of the masks checked group by group against the pattern on record, and a model's weights against
    the masks.

    applied: the model is pruned, so what the masks remove must be zero.
    Returns {linears, weights, sparsity, pattern, checked}. Raises UserError that names the first linear where
    something does not hold.
    """
    pattern = found.pattern
    checked = []
    if pattern:
        for name, mask in found.masks.items():
            _verify_counts(name, mask, pattern)
        checked.append("counts of every group")
    if model is not None:
        for name, weight in _weights(model, found.masks).items():
            mask = found.masks[name].to(weight.device)
            if kept_hash(weight, mask) != found.weights[name]:
                raise UserError(f"the weights that the mask of {name} keeps are not those that were pruned")
            if applied and weight[~mask].any():
                raise UserError(f"{name} holds weights that its mask removes: apply the masks first")
        checked += (
            ["hashes of the kept weights", "zeros of the removed weights"]
            if applied
            else ["hashes of the kept weights"]
        )
    return {
        "linears": len(found.masks),
        "weights": sum(mask.numel() for mask in found.masks.values()),
        "sparsity": found.sparsity,
        "pattern": pattern_label(pattern) if pattern else None,
        "checked": checked,
    }


def diff_masks(a: MaskFile, b: MaskFile) -> dict[str, Any]:
    """How two mask files over the same linears agree: {jaccard, equal, linears: {name: {jaccard, equal}}}.

    jaccard: overlap of the kept weights; equal: fraction of weights on which both decide alike. Raises
    UserError for other linears.
    """
    _require_same(
        {n: m.shape for n, m in a.masks.items()}, {n: m.shape for n, m in b.masks.items()}, "the second masks"
    )
    both = sum(int((a.masks[n] & b.masks[n]).sum()) for n in a.masks)
    either = sum(int((a.masks[n] | b.masks[n]).sum()) for n in a.masks)
    alike = {n: int((a.masks[n] == b.masks[n]).sum()) for n in a.masks}
    return {
        "jaccard": both / either if either else 1.0,
        "equal": sum(alike.values()) / sum(mask.numel() for mask in a.masks.values()),
        "linears": {
            n: {"jaccard": jaccard(a.masks[n], b.masks[n]), "equal": alike[n] / a.masks[n].numel()}
            for n in a.masks
        },
    }


def kept_hash(weight: Weight, mask: Mask) -> str:
    """sha256 of the weights that a mask keeps, as float32, and of their places."""
    kept = weight.float().masked_fill(~mask.to(weight.device), 0) + 0.0  # -0 and 0 are one number
    return hashlib.sha256(kept.cpu().contiguous().numpy()).hexdigest()[:16]


def write_packed(file: Path, masks: Mapping[str, Mask], about: dict) -> None:
    """Write masks at one bit per weight, rows padded to whole bytes, with plain data about them and a
    checksum of it all.
    """
    _write(
        file,
        {name: _pack(mask) for name, mask in masks.items()},
        {name: mask.shape[1] for name, mask in masks.items()},
        about,
    )


def _write(file: Path, packed: dict[str, Tensor], widths: dict[str, int], about: dict) -> None:
    if not packed:
        raise UserError("there are no masks to save: prune with keep_masks=True")
    header = {"version": _VERSION, "widths": widths, **about}
    text = json.dumps({**header, "checksum": _checksum(header, packed)})
    write_whole(file, safetensors.torch.save(packed, {_HEADER: text}))


def read_packed(file: Path) -> tuple[dict[str, Mask], dict]:
    """The masks and the plain data of `write_packed`, in the order of the data; raises UserError for anything
    else.
    """
    try:
        with safetensors.safe_open(file, "pt") as stored:
            header = json.loads((stored.metadata() or {})[_HEADER])
            checksum, version, widths = header.pop("checksum"), header["version"], header["widths"]
            if version != _VERSION:
                raise ValueError(f"its version is {version}, not {_VERSION}")
            if set(stored.keys()) != set(widths):
                raise ValueError("it lacks masks that it names")
            packed = {name: stored.get_tensor(name) for name in widths}
        if checksum != _checksum(header, packed):
            raise ValueError("its content is not what its checksum says")
        masks = {name: _unpack(bits, widths[name]) for name, bits in packed.items()}
        return masks, {name: value for name, value in header.items() if name not in ("version", "widths")}
    except FileNotFoundError as error:
        raise UserError(
            f"{file} does not exist: give a mask file, or the folder of a pruned model"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error
    except (
        safetensors.SafetensorError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        reason = "" if isinstance(error, KeyError) else f" ({error})"
        raise UserError(
            f"{file} is damaged, or no mask file{reason}: write it again with `symprune prune`"
        ) from error


def _pack(mask: Mask) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.packbits(mask.cpu().numpy(), axis=1)))


def _unpack(bits: Tensor, width: int) -> Mask:
    if (
        bits.dtype != torch.uint8
        or bits.dim() != 2
        or type(width) is not int
        or width < 1
        or bits.shape[1] != math.ceil(width / 8)
    ):
        raise ValueError("a mask's size is not what its width says")
    return torch.from_numpy(np.unpackbits(bits.numpy(), axis=1, count=width).view(np.bool_))


def _checksum(header: dict, packed: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(packed):
        digest.update(packed[name].numpy())
    return digest.hexdigest()[:16]


def _weights(model: nn.Module, masks: Mapping[str, Mask]) -> dict[str, Weight]:
    weights = {name: weight_view(linear) for name, linear in named_linears(model).items()}
    _require_same(
        {n: w.shape for n, w in weights.items()}, {n: m.shape for n, m in masks.items()}, "the masks"
    )
    return weights


def _require_same(shapes: dict[str, torch.Size], others: dict[str, torch.Size], whose: str) -> None:
    for name in [*shapes, *others]:
        if shapes.get(name) != others.get(name):
            here, there = (f"{tuple(s[name])}" if name in s else "missing" for s in (shapes, others))
            raise UserError(f"{whose} are of another model: {name} is {here} in one and {there} in the other")


def _verify_counts(name: str, mask: Mask, pattern: Unstructured | NM) -> None:
    if isinstance(pattern, NM):
        groups, kept = mask.reshape(-1, pattern.m), pattern.n
    else:
        groups = mask if pattern.group == "output" else mask.reshape(1, -1)
        kept = groups.shape[1] - math.floor(pattern.sparsity * groups.shape[1])
    wrong = (groups.sum(dim=1) != kept).nonzero()
    if len(wrong):
        group = int(wrong[0, 0])
        found = f"{int(groups[group].sum())} of {groups.shape[1]} weights"
        raise UserError(f"group {group} of {name} keeps {found}, not the {kept} of {pattern_label(pattern)}")
