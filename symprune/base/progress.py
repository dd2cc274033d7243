"""Progress: a bar on a terminal, or lines in a file that another process turns into one."""

import contextlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
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


def announce(label: str, done: int, total: int, measured: bool = True) -> None:
    """Tell whoever runs this process which recipe is under way, if it asked; measured: it takes long."""
    _report({"label": label, "done": done, "total": total, "measured": measured})


def tell(line: str) -> None:
    """A line to whoever runs this process; where nobody follows it, to the terminal that it runs in."""
    if not _report({"line": line}):
        print(f"symprune: {line}", file=sys.__stderr__, flush=True)


def _report(what: dict) -> bool:
    file = os.environ.get(FILE)
    if file:
        with open(file, "a") as f:
            f.write(json.dumps(what) + "\n")
    return bool(file)


@contextlib.contextmanager
def following(title: str, show: bool) -> Iterator[Path]:
    """A bar that follows the file which a kernel reports into: notebook, recipe, time left."""
    from tqdm import tqdm

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "progress"
        file.touch()
        terminal = sys.stderr.isatty()  # a log gets a line for each recipe that is measured, and no bar
        shape = "{desc} |{bar}| {n}/{total} [{elapsed}<{remaining}]"
        bar = tqdm(total=0, desc=title, disable=not (show and terminal), dynamic_ncols=True, bar_format=shape)
        finished = threading.Event()

        def follow() -> None:
            seen, ended = 0, False
            while not ended:
                ended = finished.wait(0.5)  # and once more after the end: the last lines are told too
                lines = file.read_text().split("\n")[:-1]  # the last may not be written to its end yet
                for report in map(json.loads, lines[seen:]):
                    if "line" in report:
                        if show:
                            tqdm.write(f"{title}: {report['line']}", file=sys.stderr)
                        continue
                    if report["done"] == 0:  # another grid begins: its time left is its own
                        bar.reset(total=report["total"])
                    bar.update(report["done"] - bar.n)
                    bar.set_description(f"{title}: {report['label']}")
                    if show and not terminal and report["measured"]:
                        print(
                            f"{title} {report['done']}/{report['total']}: {report['label']}",
                            file=sys.stderr,
                            flush=True,
                        )
                seen = len(lines)
                bar.refresh()

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        start = time.monotonic()
        try:
            yield file
        finally:
            finished.set()
            follower.join()
            summary = f"{title}: {time.monotonic() - start:.0f} s"
            bar.set_description(summary)
            bar.close()
            if show and not terminal:
                print(summary, file=sys.stderr, flush=True)
