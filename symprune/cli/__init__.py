"""The `symprune` command."""

from symprune.cli.entry import main

__all__ = ["main"]
