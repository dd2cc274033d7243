"""Sums of a calibration in files: read again for other recipes, and merged with those of other windows,
whoever holds the text.

What a file reveals, and all that a client of a joint calibration hands on: the weights it was gathered with
(a hash), the number of windows and tokens, a hash of the windows, and for each linear the sums over all
tokens of every input channel, of its square, split into within and between windows, and if asked for of every
output's square ("output_norm") or of every product of two input channels ("gram"). Never a token or a text.
But a hash tells whether a guessed text was used; sums over few tokens say much about each of them; and Gram
matrices span the inputs where tokens are fewer than channels: calibrate on many windows.
"""

import hashlib
import inspect
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from symprune import models
from symprune.base.errors import UserError
from symprune.methods import stats
from symprune.methods.stats import LayerStats, Moments, StatsAccumulator, Sum, finish, merged
from symprune.pruning import calibrate

OPTIONAL = frozenset({"output_norm", "gram"})  # the statistics that are gathered only if asked for
CACHE_BYTES = 4 * 2**30  # what `remembered` keeps: the files used last

_HEADER = "symprune_sums"  # the one entry of a file's metadata


@dataclass(frozen=True)
class Calibration:
    """The sums of every linear by its full name, what they were gathered with (`asked`), and on which windows
    (`parts`).

    Each part is {"windows": hash, "n_windows"}, and for a shard {"shard": "2/4", "of": hash of all windows}
    besides.
    """

    sums: Mapping[str, StatsAccumulator]
    asked: Mapping[str, Any]
    parts: Sequence[Mapping[str, Any]]

    @property
    def statistics(self) -> dict[str, LayerStats]:
        """What scores and refinements read."""
        return finish(self.sums)

    @property
    def missing_shards(self) -> list[str]:
        """Shards of which others are here."""
        missing = []
        for whole in sorted({part["of"] for part in self.parts if "of" in part}):
            here = {part["shard"] for part in self.parts if part.get("of") == whole}
            n = int(next(iter(here)).split("/")[1])
            missing += [shard for i in range(n) if (shard := f"{i + 1}/{n}") not in here]
        return missing


def asked(
    weights: str,
    uses: frozenset[str],
    *,
    dtype: str,
    device: str,
    seq_len: int,
    output_side: str = "activations",
    batch_size: int = 1,
) -> dict[str, Any]:
    """What sums depend on beside their windows: only those of equal answers may be merged. weights: the
    model's fingerprint.
    """
    gathered = sorted(uses & OPTIONAL)
    question = {
        "weights": weights,
        "dtype": dtype,
        "device": models.device_type(device),
        "seq_len": seq_len,
        "gathered": gathered,
    }
    side = {"output_side": output_side} if "output_norm" in gathered else {}
    return question | side | {"batch_size": batch_size, "torch": torch.__version__, "code": _code()}


def merge(calibrations: Sequence[Calibration]) -> Calibration:
    """One calibration on the windows of all, whatever their order; the same bits as if it had been gathered
    in one go, see `stats.Sum`.

    For this the batches of windows must be the same: a batch size of 1, or one that divides the shards.
    Raises UserError if the parts were not gathered alike, or if one is given twice.
    """
    first, *others = sorted(
        calibrations, key=lambda calibration: json.dumps(list(map(dict, calibration.parts)), sort_keys=True)
    )
    for other in others:
        for name in first.asked.keys() | other.asked.keys():
            if first.asked.get(name) != other.asked.get(name):
                raise UserError(
                    f"cannot merge statistics of different {name}: {first.asked.get(name)} and"
                    f" {other.asked.get(name)}"
                )
        if twice := {part["windows"] for part in first.parts} & {part["windows"] for part in other.parts}:
            raise UserError(f"the windows {min(twice)} are in two of the files: they would count twice")
        parts = sorted([*first.parts, *other.parts], key=lambda part: part["windows"])
        first = Calibration(merged(first.sums, other.sums), first.asked, parts)
    return first


def save(file: Path | str, calibration: Calibration) -> None:
    """Write the sums: to the side, then renamed, so that a reader sees a whole file or none. Shared sums are
    written once.
    """
    file = Path(file)
    tensors: dict[str, Tensor] = {}
    linears: dict[str, dict] = {}
    first_with: dict[int, str] = {}
    for name, held in calibration.sums.items():
        owner = first_with.setdefault(id(held.moments), name)
        linears[name] = {
            "inputs": owner,
            "d_out": held.d_out,
            "dtype": str(held.dtype).removeprefix("torch."),
        }
        if owner == name:
            linears[name] |= {"n_tokens": held.moments.n_tokens, "n_samples": held.moments.n_samples}
            tensors[f"{name}.inputs"] = _stacked(held.moments.sums)
            if held.moments.gram is not None:
                tensors[f"{name}.gram"] = held.moments.gram.cpu()
        if held.output_sq is not None:
            tensors[f"{name}.outputs"] = _stacked(held.output_sq)
    header = {
        "asked": dict(calibration.asked),
        "parts": list(map(dict, calibration.parts)),
        "linears": linears,
    }
    text = json.dumps({**header, "checksum": _checksum(header, tensors)})
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=f".{file.name}.") as work:
        save_file(tensors, Path(work) / file.name, {_HEADER: text})
        os.replace(Path(work) / file.name, file)


def load(file: Path | str) -> Calibration:
    """The calibration that `save` wrote, to the bit; raises UserError if the file is damaged or something
    else.
    """
    try:
        with safetensors.safe_open(file, "pt") as stored:
            header = json.loads((stored.metadata() or {})[_HEADER])
            tensors = {name: stored.get_tensor(name).clone() for name in stored.keys()}  # noqa: SIM118 (no mapping)
        if header.pop("checksum") != _checksum(header, tensors):
            raise ValueError("its content is not what its checksum says")
        return Calibration(_sums(header["linears"], tensors), header["asked"], header["parts"])
    except FileNotFoundError as error:
        raise UserError(f"{file} does not exist: write it with `symprune calibrate`") from error
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
            f"{file} is damaged, or holds no statistics{reason}: write it again with `symprune calibrate`"
        ) from error


def remembered(
    folder: Path,
    question: Mapping[str, Any],
    windows: str,
    gather: Callable[[], Mapping[str, StatsAccumulator]],
) -> dict[str, LayerStats]:
    """The statistics of these windows (their hash), read from the folder, or gathered now and kept there for
    the next process.

    The folder holds `CACHE_BYTES` at most: what was used last. A damaged file is gathered again, with a
    warning; a folder that cannot be written to only costs time.
    """
    key = hashlib.sha256(json.dumps([question, windows], sort_keys=True).encode()).hexdigest()[:16]
    file = folder / f"{key}.safetensors"
    if file.exists():
        try:
            found = load(file)
            os.utime(file)
            return found.statistics
        except (UserError, OSError) as error:
            warnings.warn(f"statistics are gathered again: {error}", stacklevel=2)
    sums = gather()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save(file, Calibration(sums, question, [{"windows": windows}]))
        _forget(folder)
    except OSError as error:
        warnings.warn(f"statistics are not kept for the next run: {error}", stacklevel=2)
    return finish(sums)


def _forget(folder: Path) -> None:
    """Remove the files used longest ago until the rest fits."""
    left = CACHE_BYTES
    for file in sorted(folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime_ns, reverse=True):
        left -= file.stat().st_size
        if left < 0:
            file.unlink(missing_ok=True)


def _sums(linears: dict[str, dict], tensors: dict[str, Tensor]) -> dict[str, StatsAccumulator]:
    moments: dict[str, Moments] = {}
    sums = {}
    for name, about in linears.items():
        owner = about["inputs"]
        if owner not in moments:
            of = linears[owner]
            moments[owner] = Moments(
                of["n_tokens"],
                of["n_samples"],
                Sum(*tensors[f"{owner}.inputs"]),
                tensors.get(f"{owner}.gram"),
            )
        held = sums[name] = StatsAccumulator(tensors[f"{owner}.inputs"].shape[-1], about["d_out"])
        held.moments, held.dtype = moments[owner], models.DTYPES[about["dtype"]]
        held.output_sq = Sum(*tensors[f"{name}.outputs"]) if f"{name}.outputs" in tensors else None
    return sums


def _stacked(sums: Sum) -> Tensor:
    return torch.stack((sums.high, sums.low)).cpu()


def _checksum(header: dict, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy())
    return digest.hexdigest()[:16]


def _code() -> str:
    """A hash of the code that gathers: sums of another version of it are not these."""
    digest = hashlib.sha256()
    for module in (calibrate, models, stats):
        digest.update(inspect.getsource(module).encode())
    return digest.hexdigest()[:16]
