"""Masks at one bit per weight in a safetensors file, with plain data about them and a checksum of it all."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from symprune.base.errors import UserError
from symprune.base.files import short_sha256, write_whole
from symprune.base.records import Record
from symprune.base.types import Mask, Weight

_HEADER = "symprune_masks"  # the one entry of the file's metadata
_VERSION = 1


class PackedMasks:
    """The masks of a model at one bit per weight: added one by one, each with its weight, saved together."""

    def __init__(self):
        self._bits: dict[str, Tensor] = {}
        self._widths: dict[str, int] = {}
        self._hashes: dict[str, str] = {}

    def add(self, name: str, weight: Weight, mask: Mask) -> None:
        """The mask of one linear by its full name, with its weight, pruned or not yet."""
        self._bits[name], self._widths[name] = _pack(mask), mask.shape[1]
        self._hashes[name] = kept_hash(weight, mask)

    def save(self, file: Path | str, record: Record | None = None) -> None:
        """Write what was added, as `save_masks` does."""
        if not self._bits:
            raise UserError("there are no masks to save: prune with keep_masks=True")
        about = {"weights": self._hashes, "record": record.to_dict() if record else None}
        _write(Path(file), self._bits, self._widths, about)


def kept_hash(weight: Weight, mask: Mask) -> str:
    """sha256 of the weights that a mask keeps, as float32, and of their places."""
    kept = weight.float().masked_fill(~mask.to(weight.device), 0) + 0.0  # -0 and 0 are one number
    return short_sha256([kept.cpu().contiguous().numpy()])


def write_packed(file: Path, masks: Mapping[str, Mask], about: dict) -> None:
    """Write masks at one bit per weight, rows padded to whole bytes, with plain data about them."""
    widths = {name: mask.shape[1] for name, mask in masks.items()}
    _write(file, {name: _pack(mask) for name, mask in masks.items()}, widths, about)


def _write(file: Path, packed: dict[str, Tensor], widths: dict[str, int], about: dict) -> None:
    header = {"version": _VERSION, "widths": widths, **about}
    text = json.dumps({**header, "checksum": _checksum(header, packed)})
    write_whole(file, safetensors.torch.save(packed, {_HEADER: text}))


def read_packed(file: Path) -> tuple[dict[str, Mask], dict]:
    """The masks that `write_packed` wrote, in their order, and the data; UserError for anything else."""
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
    return short_sha256([json.dumps(header, sort_keys=True), *(packed[n].numpy() for n in sorted(packed))])
