"""What is finished of a pruning run, kept in a folder decoder layer by decoder layer, so that a killed run
continues.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from symprune.base.errors import UserError
from symprune.base.files import write_whole
from symprune.base.records import PROTOCOL
from symprune.base.types import Mask
from symprune.pruning.mask_files import read_packed, write_packed


@dataclass(frozen=True)
class PrunedLinear:
    """What happened to one linear: its size, how many weights its mask keeps, what the refinement did (None:
    not refined), on what.

    n_tokens: the calibration tokens that reached it (None: the recipe uses no statistics).
    """

    name: str
    d_out: int
    d_in: int
    kept: int
    refined: dict | None = None
    n_tokens: int | None = None

    @property
    def sparsity(self) -> float:
        """The fraction removed, counted on the mask: a weight that was zero before counts as kept if the mask
        keeps it.
        """
        return 1 - self.kept / (self.d_out * self.d_in)


class Journal:
    """A work folder, open to one process at a time: `asked.json` says of which run, `layer_000.safetensors`
    and on what is finished.

    asked: what the masks depend on, by the words in which a difference is told. Raises UserError, on
    entering, if the folder is another run's, another process's, or holds anything else.
    """

    def __init__(self, folder: Path, asked: Mapping[str, str]):
        self.folder, self.asked = folder, {**asked, "protocol": str(PROTOCOL)}

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
            for partial in [*self.folder.glob(".layer_*"), *self.folder.glob(".asked.json.*")]:
                partial.unlink()  # of a process that was killed while it wrote
            if note.exists():
                self._require_same(note)
            else:
                write_whole(note, json.dumps(self.asked, indent=1) + "\n")
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_) -> None:
        self._lock.release()

    def read(self, index: int) -> tuple[dict[str, Mask], list[PrunedLinear]] | None:
        """The masks of decoder layer `index` and what is told of its linears; None if it is not finished, or
        damaged.
        """
        file = self._file(index)
        if not file.exists():
            return None
        try:
            masks, about = read_packed(file)
            linears = [PrunedLinear(**plain) for plain in about["linears"]]
        except (UserError, KeyError, TypeError):
            return None  # computed again, to the same bits
        return (masks, linears) if about.get("layer") == index else None

    def write(self, index: int, masks: Mapping[str, Mask], linears: list[PrunedLinear]) -> None:
        """Record decoder layer `index` as finished: its file appears whole or not at all."""
        write_packed(
            self._file(index), masks, {"layer": index, "linears": [asdict(linear) for linear in linears]}
        )

    def _file(self, index: int) -> Path:
        return self.folder / f"layer_{index:03}.safetensors"

    def _require_same(self, note: Path) -> None:
        try:
            noted = json.loads(note.read_text(encoding="utf-8"))
            differing = [
                name
                for name in sorted(noted.keys() | self.asked.keys())
                if noted.get(name) != self.asked.get(name)
            ]
        except (ValueError, AttributeError, RecursionError) as error:
            raise UserError(f"{note} is damaged: choose another folder to work in") from error
        if differing:
            there = "; ".join(
                f"{name}: {noted.get(name)} there, {self.asked.get(name)} now" for name in differing
            )
            raise UserError(f"{self.folder} holds another run ({there}): choose another folder to work in")


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes, dtypes and contents."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
