"""The embedded corpus: articles of Wikipedia out of the gensim wheel, cleaned, and dealt to three splits.

The extraction is kept by a hash of this file: a change of any line here extracts anew.
"""

import bz2
import functools
import hashlib
import importlib.util
import json
import os
import re
from pathlib import Path

from symprune.base import paths
from symprune.base.errors import UserError

SPLITS = ("calibration", "validation", "evaluation")

# Of every ten articles in the order of sha256(title): calibrate on six, choose on two, report on two.
_DEAL = {"calibration": range(0, 6), "validation": range(6, 8), "evaluation": range(8, 10)}


def embedded_titles(split: str) -> list[str]:
    """Titles of the embedded corpus that belong to a split, in dealing order."""
    order = sorted(embedded_articles(), key=lambda title: hashlib.sha256(title.encode()).hexdigest())
    return [title for rank, title in enumerate(order) if rank % 10 in _DEAL[split]]


@functools.cache
def embedded_articles() -> dict[str, str]:
    """Title -> cleaned text of the English Wikipedia sample in the gensim wheel (May 2016, CC BY-SA).

    Kept: namespace 0, no redirect, no list, no disambiguation page; paragraphs of at least 80 characters;
    articles of at least 1500.
    """
    dump = gensim_file("enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2")
    # The key holds the dump and the rule, so a change of either is a new extraction.
    key = hashlib.sha256(dump.read_bytes() + Path(__file__).read_bytes()).hexdigest()[:16]
    cached = paths.cache() / f"wikipedia-{key}.json"
    if not cached.is_file():
        cached.parent.mkdir(parents=True, exist_ok=True)
        partial = cached.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(_extract_articles(dump)))
        partial.replace(cached)
    return json.loads(cached.read_text())


def gensim_file(name: str) -> Path:
    """A text that ships in the gensim wheel; raises UserError if it is not installed."""
    spec = importlib.util.find_spec("gensim")
    if spec is None:
        raise UserError("the embedded corpora are not installed: run `pip install 'symprune[embedded]'`")
    file = Path(spec.origin).parent / "test/test_data" / name
    if not file.is_file():
        raise UserError(
            "this gensim lacks its test data, the embedded corpora: install gensim from its wheel with pip"
        )
    return file


def _extract_articles(dump: Path) -> dict[str, str]:
    from gensim.corpora.wikicorpus import extract_pages, filter_wiki

    articles = {}
    with bz2.open(dump) as pages:
        for title, raw, _ in extract_pages(pages, filter_namespaces=("0",)):
            if raw.lstrip().lower().startswith("#redirect") or title.startswith(("Wikipedia:", "List of ")):
                continue
            text = _clean(filter_wiki(raw))
            if len(text) >= 1500 and not title.endswith("(disambiguation)"):
                articles[title] = text
    return articles


_APPENDIX = re.compile(
    r"^=+\s*(see also|references|notes|external links|further reading|bibliography)\s*=+\s*$", re.M | re.I
)


def _clean(text: str) -> str:
    """Prose alone: no appendices, headings, markup, emptied parentheses, table rows or short lines."""
    if appendix := _APPENDIX.search(text):
        text = text[: appendix.start()]
    text = re.sub(r"'{2,}", "", text)
    text = re.sub(r"^[=*#:; \t]+|[= \t]+$", "", text, flags=re.M)
    text = re.sub(r"\s*\([^\w()]*\)", "", text)  # what a dropped pronunciation leaves: "(; , )"
    text = re.sub(r"\((?:[;,]\s*)+", "(", text)
    text = re.sub(r"[ \t]+", " ", text)
    return "\n\n".join(
        line for line in text.splitlines() if len(line) >= 80 and not line.startswith(("|", "!", "{"))
    )
