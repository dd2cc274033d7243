"""A model's folder without its zeros: of each weight a bit that says whether it is kept, and those that are.

Two bits of index for each kept value of a 2:4 mask would be one bit per weight as well, so there is one way.
Files are packed as bytes, not as tensors of torch: what is unpacked has every byte of what was packed.
"""

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from symprune.base import paths
from symprune.base.errors import UserError
from symprune.base.files import file_sha256, require_disk
from symprune.models.folder import INDEX, PACKED, weight_files

_PREFIX = "packed-"  # of the names of files that nobody shall take for weights as they are
_HEADER = "symprune_packed"  # the one entry of a packed file's metadata: the head of the file it was made of
_VERSION = 1
_WORDS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # types of weights, and bytes of one


class Sizes(NamedTuple):
    """Bytes of a folder's weight files as they are loaded, and packed."""

    plain: int
    packed: int


class _Part(NamedTuple):
    """A tensor of a safetensors file: its type and shape, its place among the data, how many are not zero."""

    name: str
    dtype: str
    shape: list[int]
    begin: int
    end: int
    kept: int | None = None  # None: stored as it is


def pack(folder: Path, out: Path) -> Sizes:
    """Write the model of a folder into the new folder `out`, without its zeros; all other files are copied.

    Raises UserError for weights that are not safetensors, or packed already.
    """
    files = weight_files(folder)
    apart = {file.name for file in files} | {INDEX}
    shutil.copytree(folder, out, ignore=lambda at, names: apart & set(names) if Path(at) == folder else ())
    if (folder / INDEX).is_file():
        shutil.copyfile(folder / INDEX, out / f"{_PREFIX}{INDEX}")
    about = {}
    for file in files:
        _pack_file(file, packed := out / f"{_PREFIX}{file.name}")
        digest = file_sha256(file.resolve())
        about[file.name] = {"sha256": digest, "bytes": file.stat().st_size, "packed": packed.stat().st_size}
    (out / PACKED).write_text(json.dumps({"version": _VERSION, "files": about}, indent=1) + "\n")
    return packed_sizes(out)


def unpack(folder: Path, out: Path) -> None:
    """Write what `pack` made of a folder into the new folder `out`, every byte as it was.

    Raises UserError for a folder that is not packed, or damaged.
    """
    digests = packed_digests(folder)
    hidden = {PACKED} | {f"{_PREFIX}{name}" for name in [*digests, INDEX]}
    shutil.copytree(folder, out, ignore=lambda at, names: hidden & set(names) if Path(at) == folder else ())
    if (folder / f"{_PREFIX}{INDEX}").is_file():
        shutil.copyfile(folder / f"{_PREFIX}{INDEX}", out / INDEX)
    for name, digest in digests.items():
        packed = folder / f"{_PREFIX}{name}"
        try:
            found = _unpack_file(packed, out / name)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{packed} is missing or damaged: fetch it again ({error})") from error
        if found != digest:
            raise UserError(f"{packed} is damaged: {name} would not be what was packed; fetch it again")


def is_packed(folder: Path) -> bool:
    """Whether a folder is one that `pack` wrote."""
    return (folder / PACKED).is_file()


@contextlib.contextmanager
def unpacked(folder: Path) -> Iterator[Path]:
    """Inside, a folder as transformers reads it: the same, or a copy in the cache that is gone afterwards."""
    if not is_packed(folder):
        yield folder
        return
    paths.cache().mkdir(parents=True, exist_ok=True)
    require_disk(paths.cache() / "unpacked", packed_sizes(folder).plain, "set SYMPRUNE_CACHE to another disk")
    with tempfile.TemporaryDirectory(dir=paths.cache(), prefix="unpacked-") as work:
        unpack(folder, Path(work) / "model")
        yield Path(work) / "model"


def packed_sizes(folder: Path) -> Sizes:
    """Bytes of the weight files that a packed folder was made of, and of its own."""
    files = _manifest(folder).values()
    return Sizes(sum(file["bytes"] for file in files), sum(file["packed"] for file in files))


def packed_digests(folder: Path) -> dict[str, str]:
    """The sha256 of each weight file that a packed folder was made of, by its name."""
    return {name: file["sha256"] for name, file in _manifest(folder).items()}


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        told = json.loads((folder / PACKED).read_text(encoding="utf-8"))
        files = told["files"]
        if told["version"] != _VERSION or not files:
            raise ValueError(f"version {told['version']}")
        for name, file in files.items():
            if Path(name).name != name or not isinstance(file["sha256"], str):
                raise ValueError(name)
            _ = file["bytes"] + file["packed"]
        return files
    except FileNotFoundError as error:
        raise UserError(f"{folder} is not packed: give a folder that `symprune pack` wrote") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{folder / PACKED} is damaged, or of another version: pack it again") from error


def _pack_file(file: Path, out: Path) -> None:
    """Two passes: the head comes first and tells how much is kept, and only one tensor is in memory."""
    head, start = _head(file)
    data = np.memmap(file, np.uint8, "r", offset=start) if file.stat().st_size > start else np.zeros(0, "u1")
    parts = [_counted(part, data) for part in _parts(head)]
    told: dict[str, Any] = {"__metadata__": {_HEADER: head}}
    end = 0
    for part in parts:
        for name, dtype, shape, size in _stored(part):
            told[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
            end += size
    text = json.dumps(told, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(out, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for part in parts:
            raw = data[part.begin : part.end]
            if part.kept is None:
                f.write(raw.data)
                continue
            words = raw.view(f"u{_WORDS[part.dtype]}")
            mask = words != 0
            f.write(words[mask].data)
            f.write(np.packbits(mask).tobytes().ljust(_bytes_of_bits(len(mask)), b"\0"))


def _unpack_file(packed: Path, out: Path) -> str:
    """The sha256 of what is written."""
    text, start = _head(packed)
    told = json.loads(text)
    head = told["__metadata__"][_HEADER]
    data, digest = np.memmap(packed, np.uint8, "r", offset=start), hashlib.sha256()
    with open(out, "wb") as f:

        def write(part) -> None:
            f.write(part)
            digest.update(part)

        raw = head.encode()
        write(len(raw).to_bytes(8, "little") + raw)
        for part in sorted(_parts(head), key=lambda part: part.begin):
            if part.name in told:
                begin, end = told[part.name]["data_offsets"]
                write(np.ascontiguousarray(data[begin:end]).data)
                continue
            size = _WORDS[part.dtype]
            begin, end = told[f"{part.name}.kept"]["data_offsets"]
            bits, n_words = told[f"{part.name}.bits"]["data_offsets"], (part.end - part.begin) // size
            mask = np.unpackbits(data[bits[0] : bits[1]], count=n_words).view(np.bool_)
            words = np.zeros(n_words, f"u{size}")
            words[mask] = data[begin:end].view(f"u{size}")
            write(words.data)
    return digest.hexdigest()


def _head(file: Path) -> tuple[str, int]:
    """The head of a safetensors file, as it is written there, and where the data begin."""
    with open(file, "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if length > file.stat().st_size:
            raise ValueError("it is cut short")
        return f.read(length).decode(), 8 + length


def _parts(head: str) -> list[_Part]:
    """The tensors of a file, those of wide types first: so all lie where their type wants them."""
    tensors = {name: told for name, told in json.loads(head).items() if name != "__metadata__"}
    parts = [_Part(n, t["dtype"], t["shape"], *t["data_offsets"]) for n, t in tensors.items()]
    return sorted(
        parts, key=lambda part: (-_WORDS.get(part.dtype, 8 if "64" in part.dtype else 1), part.begin)
    )


def _counted(part: _Part, data: np.ndarray) -> _Part:
    """With the number of weights that are not zero, if it is smaller without the others."""
    if (size := _WORDS.get(part.dtype)) is None:
        return part
    words = data[part.begin : part.end].view(f"u{size}")
    kept = int(np.count_nonzero(words))
    smaller = kept * size + _bytes_of_bits(len(words)) < len(words) * size
    return part._replace(kept=kept) if smaller else part


def _stored(part: _Part) -> list[tuple[str, str, list[int], int]]:
    """Name, type, shape and bytes of what a packed file holds of a tensor."""
    if part.kept is None:
        return [(part.name, part.dtype, part.shape, part.end - part.begin)]
    size = _WORDS[part.dtype]
    bits = _bytes_of_bits((part.end - part.begin) // size)
    kept = part.kept
    return [
        (f"{part.name}.kept", part.dtype, [kept], kept * size),
        (f"{part.name}.bits", "U8", [bits], bits),
    ]


def _bytes_of_bits(n: int) -> int:
    """Whole words of 64 bits."""
    return -(-n // 64) * 8
