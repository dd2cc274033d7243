"""Copy what tasks and corpora read from the hub into a folder that SYMPRUNE_DATA can name."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from symprune.base.errors import UserError, unknown
from symprune.base.files import write_whole
from symprune.text import corpora, tasks

MANIFEST = "manifest.json"
NAMES = (*corpora.HUB_CORPORA, *(name for name in tasks.TASKS if name != tasks.CONTINUATION))


@dataclass(frozen=True)
class Fetched:
    """What `fetch` wrote, and what was there already: paths in the folder."""

    written: tuple[str, ...]
    kept: tuple[str, ...]


@dataclass(frozen=True)
class _File:
    """One file of a repository as it lies there, or a split of it as JSON lines: `<config>/<split>.jsonl`."""

    repo: str
    name: str

    @property
    def path(self) -> str:
        return f"{self.repo}/{self.name}"

    def write(self, target: Path) -> None:
        if not self.name.endswith(".jsonl"):
            from huggingface_hub import hf_hub_download

            shutil.copyfile(hf_hub_download(self.repo, self.name, repo_type="dataset"), target)
            return
        from datasets import load_dataset

        config, split = self.name.removesuffix(".jsonl").split("/")
        load_dataset(self.repo, config, split=split).to_json(target, force_ascii=False)


def fetch(
    out: Path, names: Sequence[str] = NAMES, report: Callable[[str], None] = lambda line: None
) -> Fetched:
    """Write the data of tasks and corpora into `out` as the hub has them, and their sha256 into a manifest.

    A file on the manifest that is still what it was is kept, so an interrupted fetch goes on where it
    stopped. `report` hears of each file. Raises UserError for a name that is neither a task nor a corpus of
    the hub, and where the hub cannot be reached.
    """
    from datasets.exceptions import DatasetsError

    files = list(dict.fromkeys(file for name in names for file in _files_of(name)))
    out.mkdir(parents=True, exist_ok=True)
    noted = _read_manifest(out)
    written, kept = [], []
    for file in files:
        target = out / file.path
        if target.is_file() and noted.get(file.path) == _sha256(target):
            kept.append(file.path)
            continue
        report(f"fetching {file.path}")
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        try:
            with tasks.quiet():
                file.write(partial)
        except (OSError, ValueError, DatasetsError) as error:
            partial.unlink(missing_ok=True)
            raise UserError(
                f"cannot fetch {file.path}: run this where the hub can be reached; what was fetched before is"
                f" kept in {out}"
            ) from error
        os.replace(partial, target)
        written.append(file.path)
        noted[file.path] = _sha256(target)
        write_whole(out / MANIFEST, json.dumps(noted, indent=1, sort_keys=True) + "\n")
    for repo in {file.repo for file in files}:
        _describe(out / repo)
    return Fetched(tuple(written), tuple(kept))


def _files_of(name: str) -> list[_File]:
    if name not in NAMES:
        raise unknown("task or corpus of the hub", name, NAMES)
    if name in corpora.HUB_CORPORA:
        repo, files = corpora.hub_files(name)
        return [_File(repo, file) for file in files]
    source = tasks.source_of(name)
    return [_File(source["repo"], f"{source['config']}/{source['split']}.jsonl")]


def _describe(folder: Path) -> None:
    """A README.md from which `datasets` learns which file is which split of which configuration."""
    configs = []
    for config in sorted(path for path in folder.iterdir() if path.is_dir()):
        splits = [
            {"split": file.stem, "path": f"{config.name}/{file.name}"}
            for file in sorted(config.glob("*.jsonl"))
        ]
        configs += [{"config_name": config.name, "data_files": splits}] if splits else []
    if configs:
        write_whole(
            folder / "README.md", f"---\n{yaml.safe_dump({'configs': configs}, sort_keys=False)}---\n"
        )


def _read_manifest(out: Path) -> dict[str, str]:
    file = out / MANIFEST
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except ValueError as error:
        raise UserError(f"{file} is not readable JSON: remove it, and everything is fetched again") from error


def _sha256(file: Path) -> str:
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
