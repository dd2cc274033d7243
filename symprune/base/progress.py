"""Progress: one bar where somebody watches, or lines in a file that another process turns into one."""

import contextlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

FILE = "SYMPRUNE_PROGRESS"  # a notebook's kernel reports through the file that this variable names
_SHAPE = "{desc} |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"
_WANTED: ContextVar[bool | None] = ContextVar("progress is wanted", default=None)  # None: if watched
_GRID: ContextVar["_GridBar | None"] = ContextVar("the bar of the grid under way", default=None)


@contextlib.contextmanager
def showing(wanted: bool | None = True) -> Iterator[None]:
    """Inside, whatever takes long shows a progress bar: always, never, or (None) where somebody watches."""
    before = _WANTED.set(wanted)
    try:
        yield
    finally:
        _WANTED.reset(before)


def shown() -> bool:
    """Whether bars are shown here: as `showing` says, else where somebody watches; never twice, beside the
    bar of a grid.
    """
    if _GRID.get() is not None:
        return False
    wanted = _WANTED.get()
    return _watched() if wanted is None else wanted


def _watched() -> bool:
    """Whether stderr is a terminal, or this a kernel whose user could answer a question.

    Jupyter Lab, VS Code and consoles allow questions; papermill, nbclient and nbval do not, and would keep a
    bar as output.
    """
    if os.environ.get(FILE):
        return False
    if "IPython" in sys.modules:
        kernel = getattr(sys.modules["IPython"].get_ipython(), "kernel", None)
        if kernel is not None:
            return kernel.get_parent().get("content", {}).get("allow_stdin", False)
    return sys.stderr.isatty()


def track(items: Iterable[T], description: str) -> Iterable[T]:
    """The items, with a progress bar where bars are shown; inside a grid, counted beside the grid's bar."""
    if grid_bar := _GRID.get():
        return grid_bar.beside(items, description)
    return _bar(items, desc=description) if shown() else items


@contextlib.contextmanager
def grid() -> Iterator[None]:
    """Inside, all that is announced moves one bar, where bars are shown."""
    if not shown():
        yield
        return
    with _bar(total=0, bar_format=_SHAPE, smoothing=0) as bar:
        before = _GRID.set(_GridBar(bar))
        try:
            yield
        finally:
            _GRID.reset(before)


def announce(label: str, done: int, total: int, measured: bool = True) -> None:
    """Tell whoever watches or runs this process which recipe is under way; measured: it takes long."""
    _report({"label": label, "done": done, "total": total, "measured": measured})
    if grid_bar := _GRID.get():
        grid_bar.advance(label, done, total, measured)


class _GridBar:
    """A bar (tqdm) for a whole grid: recipes done, and the time left by the mean of those measured so far."""

    def __init__(self, bar: Any):
        self._bar = bar
        self._on_record, self._measured = 0, True
        self._told = 0.0

    def advance(self, label: str, done: int, total: int, measured: bool = True) -> None:
        """As `announce`; done = 0 begins another grid, whose time is its own."""
        if done == 0:
            self._bar.reset(total=total)
            self._on_record = 0
        step = done - self._bar.n
        if not self._measured:  # the one before was found on record: it says nothing of the time left
            self._on_record += step
        self._bar.initial, self._measured = self._on_record, measured
        self._bar.set_postfix_str("", refresh=False)
        self._bar.set_description_str(label, refresh=False)
        self._bar.update(step)
        self._bar.refresh()

    def beside(self, items: Iterable[T], description: str) -> Iterator[T]:
        """The items, counted at the end of the bar, at most ten times a second."""
        n = f"/{len(items)}" if isinstance(items, Sized) else ""
        for i, item in enumerate(items):
            if time.monotonic() - self._told > 0.1:
                self._told = time.monotonic()
                self._bar.set_postfix_str(f"{description} {i}{n}")
            yield item


def _bar(*args: Any, **options: Any) -> Any:
    from tqdm.auto import tqdm

    return tqdm(*args, leave=False, dynamic_ncols=True, **options)


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
        bar = tqdm(
            total=0,
            desc=title,
            disable=not (show and terminal),
            dynamic_ncols=True,
            bar_format=_SHAPE,
            smoothing=0,
        )
        grid_bar = _GridBar(bar)
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
                    grid_bar.advance(**(report | {"label": f"{title}: {report['label']}"}))
                    if show and not terminal and report.get("measured", True):
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
