"""Sums of a calibration in files: read again for other recipes, merged with those of other windows.

What a file reveals, and all that a client of a joint calibration hands on: the weights it was gathered with
(a hash), the number of windows and tokens, a hash of the windows, and for each linear the sums over all
tokens of every input channel, of its square, split into within and between windows, and if asked for of every
output's square ("output_norm"), of every product of two input channels ("gram") or of 64 random combinations
of these products ("sketch64", or another number), or of the loss gradients of two outputs ("gradient_gram").
Never a token or a text.
But a hash tells whether a guessed text was used; sums over few tokens say much about each of them; and Gram
matrices span the inputs where tokens are fewer than channels: calibrate on many windows.
"""

import inspect
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from symprune.base.errors import UserError
from symprune.base.files import short_sha256
from symprune.methods import sketch, stats, sums
from symprune.methods.sketch import rank_in
from symprune.methods.stats import LayerStats, LinearSums, Moments
from symprune.methods.sums import Sum
from symprune.models import experts, layers, precision
from symprune.models.devices import device_type
from symprune.models.load import DTYPES
from symprune.pruning import calibrate, runner

OPTIONAL = frozenset(
    {"output_norm", "gram", "gradient_gram"}
)  # the statistics that are gathered only if asked for
CACHE_BYTES = 4 * 2**30  # what `remembered` keeps: the files used last

_HEADER = "symprune_sums"  # the one entry of a file's metadata


@dataclass(frozen=True)
class Calibration:
    """The sums of linears by their full names, what they were gathered with (`asked`), and on what (`parts`).

    Each part is {"windows": hash, "n_windows"}, and for a shard {"shard": "2/4", "of": hash of all windows}
    besides.
    """

    sums: LinearSums
    asked: Mapping[str, Any]
    parts: Sequence[Mapping[str, Any]]

    @property
    def statistics(self) -> dict[str, LayerStats]:
        """What scores and refinements read."""
        return self.sums.finish()

    @property
    def missing_shards(self) -> list[str]:
        """Shards of which others are here."""
        missing = []
        for whole in sorted({part["of"] for part in self.parts if "of" in part}):
            here = {part["shard"] for part in self.parts if part.get("of") == whole}
            n = int(next(iter(here)).split("/")[1])
            missing += [shard for i in range(n) if (shard := f"{i + 1}/{n}") not in here]
        return missing


def optional(uses: Collection[str]) -> frozenset[str]:
    """Those of the uses that are gathered only if asked for."""
    return frozenset(use for use in uses if use in OPTIONAL or rank_in([use]))


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
    """What sums depend on beside their windows: only sums that agree in all of it may be merged.

    weights: the model's fingerprint.
    """
    gathered = sorted(optional(uses))
    question = {
        "weights": weights,
        "dtype": dtype,
        "device": device_type(device),
        "seq_len": seq_len,
        "gathered": gathered,
    }
    side = {"output_side": output_side} if "output_norm" in gathered else {}
    wider = {"calibration_dtype": name} if (name := precision.calibration_dtype_name()) else {}
    return question | side | wider | {"batch_size": batch_size, "torch": torch.__version__, "code": _code()}


def merge(calibrations: Sequence[Calibration]) -> Calibration:
    """One calibration on the windows of all, whatever their order.

    It has the bits of one that was gathered in one go, see `stats.Sum`, if the batches of windows are the
    same: a batch size of 1, or one that divides the shards. Raises UserError if the parts were not gathered
    alike, or if one is given twice.
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
        first = Calibration(first.sums.merge(other.sums), first.asked, parts)
    return first


def save(file: Path | str, calibration: Calibration) -> None:
    """Write the sums, those of a group once; a reader sees a whole file or none."""
    file, sums = Path(file), calibration.sums
    tensors: dict[str, Tensor] = {}
    linears: dict[str, dict] = {}
    for name, group in sums.group_of.items():
        moments, (d_out, _) = sums.moments[group], sums.shapes[name]
        dtype = str(moments.dtype).removeprefix("torch.")
        linears[name] = {"inputs": group, "d_out": d_out, "dtype": dtype}
        if group == name:
            linears[name] |= {"n_tokens": moments.n_tokens, "n_samples": moments.n_samples}
            tensors[f"{name}.inputs"] = _stacked(moments.sums)
            if moments.gram is not None:
                tensors[f"{name}.gram"] = moments.gram.cpu()
            if moments.sketch is not None:
                tensors[f"{name}.sketch"] = _stacked(moments.sketch)
        if name in sums.output_squares:
            tensors[f"{name}.outputs"] = _stacked(sums.output_squares[name])
        if name in sums.gradient_grams:
            tensors[f"{name}.gradient_gram"] = sums.gradient_grams[name].cpu()
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
    """The calibration that `save` wrote, to the bit; raises UserError for a damaged file, or any other."""
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
    gather: Callable[[], LinearSums],
) -> dict[str, LayerStats]:
    """The statistics of these windows (their hash), read from the folder, or gathered now and kept there.

    The folder holds `CACHE_BYTES` at most: what was used last. A damaged file is gathered again, with a
    warning; a folder that cannot be written to only costs time.
    """
    file = folder / f"{short_sha256([json.dumps([question, windows], sort_keys=True)])}.safetensors"
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
        _evict_oldest(folder)
    except OSError as error:
        warnings.warn(f"statistics are not kept for the next run: {error}", stacklevel=2)
    return sums.finish()


def _evict_oldest(folder: Path) -> None:
    """Remove the files used longest ago until the rest fits."""
    left = CACHE_BYTES
    for file in sorted(folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime_ns, reverse=True):
        left -= file.stat().st_size
        if left < 0:
            file.unlink(missing_ok=True)


def _sums(linears: dict[str, dict], tensors: dict[str, Tensor]) -> LinearSums:
    sums = LinearSums({}, {}, {})
    for name, about in linears.items():
        group = about["inputs"]
        if group == name:
            high_low, counts = tensors[f"{name}.inputs"], (about["n_tokens"], about["n_samples"])
            dtype = DTYPES[about["dtype"]]
            held = Sum(*tensors[f"{name}.sketch"]) if f"{name}.sketch" in tensors else None
            gram = tensors.get(f"{name}.gram")
            sums.moments[name] = Moments(*counts, Sum(*high_low), gram, dtype, held)
        sums.group_of[name] = group
        sums.shapes[name] = about["d_out"], tensors[f"{group}.inputs"].shape[-1]
        if f"{name}.outputs" in tensors:
            sums.output_squares[name] = Sum(*tensors[f"{name}.outputs"])
        if f"{name}.gradient_gram" in tensors:
            sums.gradient_grams[name] = tensors[f"{name}.gradient_gram"]
    return sums


def _stacked(sums: Sum) -> Tensor:
    return torch.stack((sums.high, sums.low)).cpu()


def _checksum(header: dict, tensors: Mapping[str, Tensor]) -> str:
    parts = [part for name in sorted(tensors) for part in (name, tensors[name].contiguous().numpy())]
    return short_sha256([json.dumps(header, sort_keys=True), *parts])


def _code() -> str:
    """A hash of the code that gathers: sums of another version of it are not these."""
    parts = (calibrate, runner, stats, sketch, sums, layers, experts, precision)
    return short_sha256(map(inspect.getsource, parts))
