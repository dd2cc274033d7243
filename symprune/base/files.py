"""Where results are written: a place that is free and large enough, and whole or not at all."""

import contextlib
import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from symprune.base import paths
from symprune.base.errors import UserError


def short_sha256(parts: Iterable[Any]) -> str:
    """The first 16 hexadecimal digits of the sha256 over texts (as UTF-8) and bytes or arrays of numpy."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()[:16]


def file_sha256(file: Path) -> str:
    """The file's sha256, remembered by path, size and time: not every start reads the weights."""
    stat = file.stat()
    key = hashlib.sha256(f"{file}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:32]
    note = paths.cache() / "sha256" / key
    if note.is_file() and len(digest := note.read_text()) == 64:
        return digest
    with open(file, "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(digest)
    return digest


def write_whole(file: Path, content: str | bytes) -> None:
    """Write a file (text as UTF-8) under another name, with the usual permissions, and rename it."""
    handle, partial = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(content.encode() if isinstance(content, str) else content)
        os.umask(umask := os.umask(0))
        os.chmod(partial, 0o666 & ~umask)
        os.replace(partial, file)
    except BaseException:
        os.unlink(partial)
        raise


_LOCK = ".lock"  # in a folder that is being filled, held by the process that fills it


def require_free(target: Path, option: str) -> None:
    """Raise UserError, which names the option, if the target exists, or no folder can be made for it."""
    disk = _existing(target)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.lstat(target)  # a name that is too long is refused here, not after hours
        raise UserError(f"{target} exists already: choose another {option}, or remove it")
    if not disk.is_dir() or not os.access(disk, os.W_OK):
        raise UserError(f"cannot make folders in {disk}: choose another {option}")


def require_disk(target: Path, needed: float, way_out: str = "choose another --out") -> None:
    """Raise UserError if so many bytes are not free on the disk where `target` will lie.

    What a killed save of it left is removed first.
    """
    _remove_leftovers(target)
    if needed > shutil.disk_usage(_existing(target)).free:
        raise UserError(f"{target} needs {needed / 1e9:.1f} GB of disk, more than is free there: {way_out}")


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A path beside `out`, to be filled and then renamed: a killed or failed save never looks finished.

    The path lies in a folder of its own. What a killed save left is removed by the next with the same `out`.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(out)
    folder = tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.", ignore_cleanup_errors=True)
    with folder as work, FileLock(Path(work) / "lock"):
        os.rename(Path(work) / "lock", Path(work) / _LOCK)  # it is held before it can be found
        yield Path(work) / out.name
        os.rename(Path(work) / out.name, out)


def _remove_leftovers(out: Path) -> None:
    """Remove what processes killed while they saved to `out` left; their locks went with them."""
    for lock in out.parent.glob(f".{glob.escape(out.name)}.*/{_LOCK}"):
        with contextlib.suppress(Timeout, OSError), FileLock(lock, blocking=False):
            shutil.rmtree(lock.parent)


def _existing(target: Path) -> Path:
    """The nearest thing above `target` that exists: in it the folders to come will be made."""
    return next(folder for folder in target.absolute().parents if folder.exists())
