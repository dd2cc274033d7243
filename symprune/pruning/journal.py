"""What is finished of a pruning run, kept in a folder layer by layer, so that a killed run continues."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from symprune.base.errors import UserError
from symprune.base.files import short_sha256, write_whole
from symprune.base.records import PROTOCOL
from symprune.pruning.packed_masks import read_packed, write_packed
from symprune.pruning.report import PrunedLayer, PrunedLinear
from symprune.pruning.sources import Source


class Journal:
    """A work folder, open to one process at a time, of the decoder layers that are finished.

    `asked.json` says what the run is, `layer_000.safetensors` and so on are its layers, and beside each,
    `weights_000.safetensors` holds the weights that an update has changed. question: what the masks depend
    on, by the words in which a difference is told. Raises UserError, on entering, if the folder is another
    run's, another process's, or holds anything else.
    """

    def __init__(self, folder: Path, question: Mapping[str, str]):
        self.folder, self.question = folder, {**question, "protocol": str(PROTOCOL)}

    def __enter__(self) -> "Journal":
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder} is no folder: choose another to work in")
        note = self.folder / "asked.json"
        if not note.exists() and any(not path.name.startswith(".") for path in self.folder.glob("*")):
            raise UserError(
                f"{self.folder} holds something else than a pruning run: choose another folder to work in"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"another process works in {self.folder}: wait for it, or choose another folder"
            ) from None
        try:
            for partial in [
                *self.folder.glob(".layer_*"),
                *self.folder.glob(".weights_*"),
                *self.folder.glob(".asked.json.*"),
            ]:
                partial.unlink()  # of a process that was killed while it wrote
            if note.exists():
                self._require_same(note)
            else:
                write_whole(note, json.dumps(self.question, indent=1) + "\n")
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_) -> None:
        self._lock.release()

    def read(self, index: int) -> PrunedLayer | None:
        """Decoder layer `index`; None if it is not finished, or its file damaged."""
        file = self._file(index)
        if not file.exists():
            return None
        try:
            masks, about = read_packed(file)
            linears = [PrunedLinear(**plain) for plain in about["linears"]]
            weights = self._weights(index, about.get("weights"))
        except (UserError, KeyError, TypeError, OSError, SafetensorError, ValueError):
            return None  # computed again, to the same bits
        return PrunedLayer(masks, linears, weights) if about.get("layer") == index else None

    def write(self, index: int, layer: PrunedLayer) -> None:
        """Record decoder layer `index` as finished: its file appears whole or not at all."""
        about = {"layer": index, "linears": [asdict(linear) for linear in layer.linears]}
        if layer.weights:  # first, so that masks are never without them
            weights = {name: layer.weights[name].cpu().contiguous() for name in sorted(layer.weights)}
            write_whole(self._file(index, "weights"), save(weights))
            about["weights"] = hash_tensors(weights)
        write_packed(self._file(index), layer.masks, about)

    def _weights(self, index: int, expected: str | None) -> dict[str, Tensor]:
        """The updated weights of a layer; raises ValueError for others than those that were written."""
        if expected is None:
            return {}
        weights = load_file(self._file(index, "weights"))
        if hash_tensors({name: weights[name] for name in sorted(weights)}) != expected:
            raise ValueError("the weights are not those that were written")
        return weights

    def _file(self, index: int, kind: str = "layer") -> Path:
        return self.folder / f"{kind}_{index:03}.safetensors"

    def _require_same(self, note: Path) -> None:
        try:
            noted = json.loads(note.read_text(encoding="utf-8"))
            differing = [
                name
                for name in sorted(noted.keys() | self.question.keys())
                if noted.get(name) != self.question.get(name)
            ]
        except (ValueError, AttributeError, RecursionError) as error:
            raise UserError(f"{note} is damaged: choose another folder to work in") from error
        if differing:
            there = "; ".join(
                f"{name}: {noted.get(name)} there, {self.question.get(name)} now" for name in differing
            )
            raise UserError(f"{self.folder} holds another run ({there}): choose another folder to work in")


@dataclass(frozen=True)
class Resumed:
    """The masks of one decoder layer after the other: from the journal, or made now and kept there."""

    journal: Journal
    make_masks: Callable[[int, Mapping[str, nn.Module]], PrunedLayer]
    source: Source

    def __call__(self, index: int, linears: Mapping[str, nn.Module]) -> PrunedLayer:
        layer = self.journal.read(index)
        if layer is None:
            layer = self.make_masks(index, linears)
            self.journal.write(index, layer)
        else:
            self.source.statistics(index, {})  # nothing to gather; what the next layer receives goes on
        return layer


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, shapes, dtypes and contents."""

    def parts() -> Iterator:
        for name, tensor in tensors.items():
            yield f"{name} {tuple(tensor.shape)} {tensor.dtype};"
            yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()

    return short_sha256(parts())
