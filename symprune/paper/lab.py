"""A copy of the notebooks to play with: `make lab` opens it, for Jupyter Lab rewrites whatever it saves."""

import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from symprune.base import paths
from symprune.base.files import write_whole
from symprune.paper.notebooks import resolve_notebooks

FOLDER = paths.ROOT / "lab"
_COPIED = ".copied.json"  # the digests of what was copied: what differs from them was changed by its user
_HEADER = "# ---\n"


def copy_notebooks(folder: Path = FOLDER) -> list[str]:
    """Bring the notebooks' pairs in a folder up to date; returns the names of those left as they are, because
    they were changed there and the project's have since changed too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(paths.NOTEBOOKS / "jupytext.toml", folder / "jupytext.toml")
    noted = folder / _COPIED
    copied = json.loads(noted.read_text(encoding="utf-8")) if noted.exists() else {}
    left = []
    for name in resolve_notebooks([]):
        source, here = _digest(paths.NOTEBOOKS, name), _digest(folder, name)
        if here and copied.get(name) == source:
            continue
        if here and here != copied.get(name):
            left.append(name)
            continue
        for suffix in (".ipynb", ".py"):  # the source last: jupytext refuses one that is older than its pair
            if (file := paths.NOTEBOOKS / f"{name}{suffix}").exists():
                shutil.copyfile(file, folder / file.name)
        copied[name] = source
    write_whole(noted, json.dumps(copied, indent=1) + "\n")
    return left


def keep(wanted: Sequence[str], folder: Path = FOLDER) -> list[Path]:
    """Take the cells of notebooks changed in the folder over into the project's sources, whose headers stay;
    returns the sources. Raises UserError for a notebook that is not there.
    """
    sources = []
    for name in resolve_notebooks(wanted):
        source = paths.NOTEBOOKS / f"{name}.py"
        header = _parts(source)[1]
        cells = _parts(folder / f"{name}.py")[2]
        write_whole(source, _HEADER.join(["", header, cells]))
        sources.append(source)
    return sources


def _digest(folder: Path, name: str) -> str:
    """Of a notebook's source and its pair; empty if the source is not there."""
    if not (folder / f"{name}.py").exists():
        return ""
    pair = [folder / f"{name}{suffix}" for suffix in (".py", ".ipynb")]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in pair if file.exists())).hexdigest()


def _parts(source: Path) -> list[str]:
    """What is before a source's header (nothing), the header, and the cells."""
    return source.read_text(encoding="utf-8").split(_HEADER, 2)


if __name__ == "__main__":
    if sys.argv[1:]:
        for kept in keep(sys.argv[1:]):
            print(f"{kept}: now `symprune render {kept.name[:2]}`")
    else:
        for name in copy_notebooks():
            print(
                f"lab/{name} was changed there and stays; the project's is newer: move it away to get that",
                file=sys.stderr,
            )
