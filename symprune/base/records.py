"""One measured result, one JSON file: named by what was asked, written whole or not at all."""

import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from symprune.base import paths
from symprune.base.code import code_digest
from symprune.base.errors import UserError
from symprune.base.files import short_sha256, write_whole

# Part of every key: raise it when a change of the code changes what the same question answers.
PROTOCOL = 1

REPLAY = "SYMPRUNE_REPLAY"  # environment variable: draw from records, measure nothing

_PACKAGES = ("symprune", "torch", "transformers", "tokenizers", "numpy", "gensim", "lm-eval")


@dataclass(frozen=True)
class Record:
    """run: what was asked; metrics: what was measured; meta: with which versions, on which machine, from
    which commit.
    """

    run: dict
    metrics: dict
    meta: dict

    @property
    def key(self) -> str:
        """The hash of what was asked."""
        return run_key(self.run)

    def to_dict(self) -> dict:
        """Plain data from which `from_dict` makes an equal record, with a checksum of it."""
        return {**vars(self), "checksum": self._checksum()}

    @classmethod
    def from_dict(cls, plain: Any) -> "Record":
        """The record that `to_dict` described; raises ValueError if it is anything else, or differs from its
        checksum.

        Records from before there were checksums have none, and are believed.
        """
        parts = {part: plain[part] for part in plain if part != "checksum"} if isinstance(plain, dict) else {}
        if set(parts) != {"run", "metrics", "meta"} or not all(
            isinstance(part, dict) for part in parts.values()
        ):
            raise ValueError("a record has the parts run, metrics and meta")
        record = cls(**parts)
        checksum = record._checksum()
        if plain.get("checksum", checksum) != checksum:
            raise ValueError("its content is not what its checksum says")
        return record

    def to_json(self) -> str:
        """Stable text: keys sorted, no NaN."""
        return json.dumps(self.to_dict(), sort_keys=True, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Record":
        """The record that `to_json` wrote; raises ValueError if it is anything else."""
        return cls.from_dict(json.loads(text))

    def _checksum(self) -> str:
        return short_sha256(
            [json.dumps([self.run, self.metrics, self.meta], sort_keys=True, allow_nan=False)]
        )


class Store:
    """A folder of records, `<key>.json` each. A failure never overwrites a record; a corrupt one is set aside
    and measured again.

    Several processes may share it: of those that ask the same question one measures, the others wait for its
    answer.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def __iter__(self) -> Iterator[Record]:
        return (record for file in sorted(self.folder.glob("*.json")) if (record := self._read(file)))

    def get(self, run: dict, trusts: Callable[[Record], bool] = bool) -> Record | None:
        """The record of what was asked, if there is one, and it is trusted."""
        file = self.folder / f"{run_key(run)}.json"
        found = self._read(file) if file.exists() else None
        return found if found and trusts(found) else None

    def get_or_run(
        self, run: dict, measure: Callable[[], dict], trusts: Callable[[Record], bool] = bool
    ) -> Record:
        """The record of what was asked, measured now if there is none that is trusted; what `measure` raises
        leaves the folder as it was.

        Raises UserError instead of measuring where the environment variable SYMPRUNE_REPLAY forbids it.
        """
        if found := self.get(run, trusts):
            return found
        if os.environ.get(REPLAY):
            raise UserError(
                f"no record {run_key(run)} in {self.folder}, and nothing may be measured: a number has no"
                " record behind it"
            )
        with self._lock(run_key(run)):
            return self.get(run, trusts) or self.put(Record(run, measure(), provenance()))

    def state(self, run: dict, trusts: Callable[[Record], bool] = bool) -> str:
        """Whether a run is "recorded", "busy" while a process (maybe this one) measures it, or "missing"."""
        if self.get(run, trusts) is not None:
            return "recorded"
        try:
            with self._lock(run_key(run)).acquire(timeout=0):
                return "missing"
        except Timeout:
            return "busy"

    def put(self, record: Record) -> Record:
        """Write a record, to the side, then renamed, so a reader sees a whole file or none; returns it as it
        is read back: what is drawn from it is the same now and ever after.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        text = record.to_json()
        write_whole(self.folder / f"{record.key}.json", text)
        return Record.from_json(text)

    def _lock(self, key: str) -> FileLock:
        # The system holds it for the process, not the file for itself: a killed process leaves nothing that
        # would have to be broken.
        folder = self.folder / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{key}.lock")

    def _read(self, file: Path) -> Record | None:
        try:
            record = Record.from_json(file.read_text(encoding="utf-8"))
            if record.key != file.stem:
                raise ValueError("its name is not the hash of its content")
            return record
        except (ValueError, RecursionError) as error:
            aside = file.with_suffix(".corrupt")
            with contextlib.suppress(FileNotFoundError):  # another process may have set it aside first
                file.replace(aside)
            warnings.warn(
                f"record {file.name} is corrupt ({error}); set aside as {aside.name} and measured again",
                stacklevel=2,
            )
            return None


def read_lines(file: Path) -> dict[str, Record]:
    """The records of a JSON lines file by key, none if there is no file; raises ValueError if a line is not a
    record.
    """
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return {record.key: record for record in map(Record.from_json, lines)}


def write_lines(file: Path, records: Iterable[Record]) -> None:
    """Records as JSON lines in the order of their keys: one file to publish beside the tables they stand
    behind.
    """
    lines = [
        json.dumps(r.to_dict(), sort_keys=True, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        for r in sorted(records, key=lambda r: r.key)
    ]
    write_whole(file, "".join(line + "\n" for line in lines))


def run_key(run: dict) -> str:
    """The hash of what was asked, the protocol included."""
    return short_sha256([json.dumps([PROTOCOL, run], sort_keys=True, allow_nan=False)])


def provenance() -> dict[str, Any]:
    """Versions, machine, code and commit: where a number came from."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "python": platform.python_version(),
        "machine": _machine(),
        "processor": _processor(),
        "code": code_digest(),
        "git": _git(),
    }


def _processor() -> str:
    """On what a float32 number's last bits depend beside the machine."""
    import torch

    return f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def _machine() -> str:
    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return f"{os.cpu_count()} x {cpu}" + _gpus()


def _gpus() -> str:
    """The GPUs, if this process computes on them."""
    import torch

    if not torch.cuda.is_initialized():
        return ""
    return ", " + " and ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _lines(file: str) -> list[str]:
    return Path(file).read_text().splitlines() if Path(file).exists() else []


def _git() -> dict | None:
    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(paths.ROOT), *args], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        # Outputs are rewritten while they are measured: only a change of the code makes a measurement dirty.
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--", "symprune", "papermill_params")),
        }
    except (OSError, subprocess.CalledProcessError):
        return None
