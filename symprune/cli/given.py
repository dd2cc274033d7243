"""Which options were given, so that none is ignored without a word."""

import argparse
from dataclasses import dataclass
from typing import Any

from symprune.base.errors import UserError


@dataclass(frozen=True)
class Default:
    """The value of an option that is not given: help shows it, and `settle` puts it in its place."""

    value: Any

    def __str__(self):
        return str(self.value)


def settle(args: argparse.Namespace) -> argparse.Namespace:
    """The arguments with every default in its place, and in `given` the names of those that were given."""
    names = {
        name
        for name, value in vars(args).items()
        if not isinstance(value, Default) and value is not None and value is not False and value != []
    }
    values = {
        name: value.value if isinstance(value, Default) else value for name, value in vars(args).items()
    }
    return argparse.Namespace(**values, given=names)


def refuse(args: argparse.Namespace, reason: str, *options: str) -> None:
    """Raise UserError if any of these options was given, which for this reason would be ignored."""
    if ignored := given(args, *options):
        raise UserError(f"{ignored} would be ignored: {reason}")


def given(args: argparse.Namespace, *options: str) -> str:
    """Those of the options that were given, as they are typed."""
    return ", ".join(f"--{name.replace('_', '-')}" for name in options if name in args.given)
