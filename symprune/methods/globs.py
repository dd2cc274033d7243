"""Globs that name linears."""

import difflib
import fnmatch
from collections.abc import Sequence


def fits(glob: str, name: str) -> bool:
    """Whether a glob fits a full name, or the end of one from a dot on."""
    return fnmatch.fnmatchcase(name, glob) or fnmatch.fnmatchcase(name, f"*.{glob}")


def no_effect(glob: str, names: Sequence[str]) -> str:
    """Why a glob decides nothing of the linears of these names, and what is near to it."""
    if any(fits(glob, name) for name in names):
        return f"{glob!r} decides of no linear: what stands before it fits all that it does"
    parts = [name.split(".") for name in names]
    ends = {".".join(part[-n:]) for part in parts for n in range(1, len(part) + 1)}
    starts = {
        ".".join(part[i:j]) + ".*"
        for part in parts
        for i in range(len(part))
        for j in range(i + 1, len(part))
    }
    near = difflib.get_close_matches(glob, sorted(ends | starts), n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"they are called {names[0]} to {names[-1]}"
    return f"{glob!r} fits no linear: {hint}"
