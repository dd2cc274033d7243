"""The one exception a user can cause: its message is one line that names the thing and the way out."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input from the person at the keyboard; the command line prints it alone and exits with code 2."""


def unknown(kind: str, name: object, known: Iterable[str]) -> UserError:
    """The error for a name that is not known, with the nearest valid names first."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(known)}"
    return UserError(f"unknown {kind} {str(name)!r}: {hint}")
