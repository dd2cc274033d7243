"""Texts in files, whose suffix tells how they are read."""

import gzip
import json
import zlib
from io import TextIOWrapper
from pathlib import Path

from symprune.base.errors import UserError

SUFFIXES = ".txt, .md, .jsonl or .json, each also with .gz, or .parquet"

# What becomes of a file that is not what its suffix says.
_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, RecursionError, EOFError, OSError, zlib.error)


def texts_of(file: Path) -> list[str]:
    """The texts of a file: all of a .txt or .md, else the field 'text' of every JSON line or .parquet row.

    A byte order mark is no text; suffixes may be in capital letters. Raises UserError for another suffix, and
    for a file that is not what its suffix says.
    """
    suffix = Path(file.name.lower().removesuffix(".gz")).suffix
    if suffix not in _READERS:
        raise UserError(f"{file} is not read, for its suffix does not say how: give a file ({SUFFIXES})")
    try:
        texts = _READERS[suffix](file)
        for text in texts:
            text.encode()
        return texts
    except _UNREADABLE as error:
        raise UserError(
            f"{file} is neither UTF-8 text (.txt, .md) nor JSON lines with a 'text' field (.jsonl, .json)"
        ) from error


def _whole(file: Path) -> list[str]:
    with _open(file) as opened:
        text = opened.read()
    if "\0" in text:
        raise ValueError("UTF-16 without a byte order mark, or no text at all")
    return [text]


def _lines(file: Path) -> list[str]:
    with _open(file) as opened:
        return [json.loads(line)["text"] for line in opened if line.strip()]


def _rows(file: Path) -> list[str]:
    import pandas as pd

    return list(pd.read_parquet(file, columns=["text"])["text"])


_READERS = {".txt": _whole, ".md": _whole, ".jsonl": _lines, ".json": _lines, ".parquet": _rows}


def _open(file: Path) -> TextIOWrapper:
    return (gzip.open if file.suffix.lower() == ".gz" else open)(file, "rt", encoding="utf-8-sig")
