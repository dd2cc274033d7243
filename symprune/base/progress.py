"""Progress: a bar on a terminal, or lines in a file that another process turns into one."""

import json
import os
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")

FILE = "SYMPRUNE_PROGRESS"  # a notebook's kernel reports through the file that this variable names


def track(items: Iterable[T], description: str, enabled: bool) -> Iterable[T]:
    """The items, with a progress bar on stderr if enabled."""
    from tqdm import tqdm

    return tqdm(items, desc=description, disable=not enabled, leave=False, dynamic_ncols=True)


def announce(label: str, done: int, total: int) -> None:
    """Tell whoever runs this process which recipe is under way, if it asked."""
    if file := os.environ.get(FILE):
        with open(file, "a") as f:
            f.write(json.dumps({"label": label, "done": done, "total": total}) + "\n")
