"""Progress: who sees a bar, and what the one bar of a grid tells."""

import re
from types import SimpleNamespace

import pytest
from jupyter_client.manager import start_new_kernel

from symprune.base import progress


@pytest.mark.parametrize(
    ("terminal", "followed", "seen"), [(True, "", True), (False, "", False), (True, "file", False)]
)
def test_a_terminal_sees_bars_and_a_pipe_and_a_followed_kernel_do_not(monkeypatch, terminal, followed, seen):
    monkeypatch.setattr("sys.stderr", SimpleNamespace(isatty=lambda: terminal))
    monkeypatch.setenv(progress.FILE, followed)
    assert progress.shown() == seen
    with progress.showing(False):
        assert not progress.shown()
        with progress.showing(None):
            assert progress.shown() == seen


def test_a_kernel_shows_bars_to_people_and_not_to_programs():
    """Jupyter Lab lets a cell ask its user a question; papermill, nbclient and nbval do not."""
    manager, client = start_new_kernel(extra_arguments=["--log-level=ERROR"])
    try:
        for asks in (True, False):
            printed = []
            client.execute_interactive(
                "from symprune.base import progress\nprint(progress.shown(), [*progress.track('ab', 'x')])",
                allow_stdin=asks,
                stdin_hook=lambda message: None,
                output_hook=lambda message, to=printed: to.append(message["content"].get("text", "")),
                timeout=60,
            )
            assert f"{asks} ['a', 'b']\n" in printed
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.fixture
def clock(monkeypatch):
    """tqdm's time, moved by hand."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr("tqdm.std.time", lambda: now.seconds)
    return now


def bars(text: str) -> list[str]:
    """What a terminal showed one after the other, without the bars themselves."""
    shown = (re.sub(r"\|.*?\|", "|", line).strip() for line in re.split("[\r\n]", text))
    return [line for line in shown if line]


def test_a_grid_is_one_bar_whose_time_left_is_that_of_what_is_still_to_measure(clock, capsys):
    with progress.showing(), progress.grid():
        progress.announce("dense", 0, 6, measured=False)
        progress.announce("wanda", 1, 6, measured=False)
        for done, label in enumerate(["ria", "ria again", "last"], start=2):
            progress.announce(label, done, 6)
            clock.seconds += 5
            assert not progress.shown()  # no second bar
            assert list(progress.track(["layer"], "pruning")) == ["layer"]
        progress.announce("tables", 5, 6)
    shown = bars(capsys.readouterr().err)
    assert "ria | 2/6 [00:00<?]" in shown
    assert "ria again | 3/6 [00:05<00:15]" in shown  # 5 s each: three to go
    assert "last | 4/6 [00:10<00:10]" in shown
    assert "tables | 5/6 [00:15<00:05]" in shown
    assert any(line.startswith("ria | 2/6") and line.endswith("pruning 0/1") for line in shown)
    assert not any(line.startswith("pruning") for line in shown)


def test_a_grid_that_nobody_watches_is_silent(capsys):
    with progress.grid():
        progress.announce("dense", 0, 2)
        assert list(progress.track([1, 2], "pruning")) == [1, 2]
    with progress.showing(False), progress.grid():
        progress.announce("dense", 0, 2)
    assert capsys.readouterr().err == ""


def test_a_bar_of_its_own_is_shown_again_after_a_grid_that_failed(capsys):
    with progress.showing():
        with pytest.raises(ArithmeticError), progress.grid():
            raise ArithmeticError
        assert progress.shown()
        assert list(progress.track([1], "calibrating")) == [1]
    assert "calibrating" in capsys.readouterr().err
