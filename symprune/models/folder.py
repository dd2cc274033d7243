"""What a model's folder holds: its weight files, the tensors in them, and how they are quantised."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import safetensors

from symprune.base.errors import UserError

PACKED = "packed.json"  # what says that a folder is packed, see `symprune.models.packed`
MASKS = "masks.safetensors"  # what a pruned model's folder holds beside its weights
INDEX = "model.safetensors.index.json"
_WHOLE = "model.safetensors"
_ORIGINALS = "consolidated"  # the same weights once more, under the names of their first authors
_CODES = ("F8", "F4", "F6", "E8M0")  # types whose numbers are no weights without their scales


class Stored(NamedTuple):
    """A tensor of a safetensors file: where it lies, its shape, and its type as the file calls it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold a folder's weights, as transformers takes them.

    Those that the index names, or model.safetensors, or, with neither, all of them. Others are no weights of
    the model: older shards, masks, the originals. Raises UserError for an index that is broken, that names a
    file that is not there, or that stands beside a model.safetensors of which it knows nothing; and for a
    packed folder, which is to be unpacked first.
    """
    if (folder / PACKED).is_file():
        raise UserError(f"{folder} is packed: `symprune unpack {folder} --out DIR` makes it a plain one")
    if (folder / INDEX).is_file():
        names = indexed_files(folder)
        if _WHOLE not in names and (folder / _WHOLE).is_file():
            raise UserError(
                f"{folder} holds two sets of weights, {_WHOLE} and the files that {INDEX} names: remove the"
                " one that is not the model's"
            )
        if absent := [name for name in names if not (folder / name).is_file()]:
            raise UserError(f"{folder} lacks {absent[0]}, which {INDEX} names: fetch it again")
        return [folder / name for name in names]
    if (folder / _WHOLE).is_file():
        return [folder / _WHOLE]
    files = [file for file in folder.glob("*.safetensors") if file.name != MASKS]
    return sorted([file for file in files if not file.name.startswith(_ORIGINALS)] or files)


def indexed_files(folder: Path) -> list[str]:
    """The names of the files that a folder's index names; raises UserError for a broken index."""
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        if not names or any(Path(name).is_absolute() or ".." in Path(name).parts for name in names):
            raise ValueError("files outside the folder, or none")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{folder / INDEX} does not say which files hold the weights: fetch it again"
        ) from error
    return names


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """The tensors of a folder's weight files by their names there; nothing is read but the files' heads.

    Raises UserError for a file that is damaged or cut short, a tensor that two files hold, and for codes.
    """
    found: dict[str, Stored] = {}
    for file in weight_files(folder):
        for name, tensor in _tensors_of(file).items():
            if name in found:
                raise UserError(
                    f"{found[name].file} and {file.name} both hold {name}: remove the file that is not the"
                    " model's"
                )
            found[name] = tensor
    if quantisation(folder) is None:
        for name, tensor in found.items():
            whole = tensor.dtype.startswith(("I", "U")) and name.endswith("weight")
            if whole or tensor.dtype.startswith(_CODES):
                raise UserError(
                    f"{name} in {tensor.file} holds codes ({tensor.dtype}), not weights, and config.json does"
                    " not say how to read them: give the model as it was before it was quantised"
                )
    return found


def quantisation(folder: Path) -> dict[str, Any] | None:
    """What a folder says of how its weights are quantised, with the "quant_method"; None: they are not.

    Raises UserError for a config that is not readable.
    """
    config = read_config(folder)
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in ("quantization_config", "compression_config"):
            if isinstance(part.get(key), dict) and part[key]:
                return {"quant_method": _method(part[key]), **part[key]}
    for beside in ("quantize_config.json", "quant_config.json", "hf_quant_config.json"):
        if (folder / beside).is_file():
            return {"quant_method": f"told in {beside}"}
    return None


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's config.json; raises UserError if it is not a readable JSON object."""
    try:
        config = json.loads((folder / "config.json").read_text())
        return {key: config[key] for key in sorted(config)}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{folder / 'config.json'} is not a readable JSON object: fetch it again") from error


def _method(config: dict[str, Any]) -> str:
    bits = [f"{n} bits" for n in (4, 8) if config.get(f"load_in_{n}bit")]
    return f"bitsandbytes, {bits[0]}" if bits else "by an unnamed method"


def _tensors_of(file: Path) -> dict[str, Stored]:
    try:
        with safetensors.safe_open(file, "pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {
                name: Stored(file, tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()
            }
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{file} is not a readable safetensors file: fetch it again") from error


def max_positions(folder: Path) -> int | None:
    """The longest sequence that the model in a folder has positions for, if its config says so."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
