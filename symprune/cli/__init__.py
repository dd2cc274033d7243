"""The `symprune` command."""

from symprune.cli.parser import main

__all__ = ["main"]
