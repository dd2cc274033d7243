"""Progress: a bar on a terminal, or lines in a file that another process turns into one."""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")

FILE = "SYMPRUNE_PROGRESS"  # a notebook's kernel reports through the file that this variable names
_SHOWN: ContextVar[bool] = ContextVar("progress is shown", default=False)


@contextlib.contextmanager
def showing(wanted: bool = True) -> Iterator[None]:
    """Inside, whatever takes long shows a progress bar on stderr, if wanted; elsewhere nothing does."""
    before = _SHOWN.set(wanted)
    try:
        yield
    finally:
        _SHOWN.reset(before)


def shown() -> bool:
    """Whether progress bars are shown here."""
    return _SHOWN.get()


def track(items: Iterable[T], description: str) -> Iterable[T]:
    """The items, with a progress bar where bars are shown."""
    from tqdm import tqdm

    return tqdm(items, desc=description, disable=not shown(), leave=False, dynamic_ncols=True)


def announce(label: str, done: int, total: int) -> None:
    """Tell whoever runs this process which recipe is under way, if it asked."""
    if file := os.environ.get(FILE):
        with open(file, "a") as f:
            f.write(json.dumps({"label": label, "done": done, "total": total}) + "\n")
