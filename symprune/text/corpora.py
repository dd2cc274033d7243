"""Text as windows of tokens: calibration by random windows, evaluation by consecutive ones.

A corpus is "embedded" (Wikipedia, out of the gensim wheel), "wikitext2", "c4", or a .txt or .jsonl file. Hub
corpora are sought in SYMPRUNE_DATA first. For calibration alone: "lee" (news, out of the same wheel),
"python" (source code, the standard library's) and "random" (tokens drawn evenly from the vocabulary: a
control that holds no language).
"""

import bz2
import functools
import gzip
import hashlib
import importlib.util
import json
import os
import random
import re
import sysconfig
import zlib
from pathlib import Path

import torch

from symprune.base import paths
from symprune.base.errors import UserError, unknown
from symprune.base.files import short_sha256
from symprune.base.types import Windows
from symprune.models.devices import require_memory

SPLITS = ("calibration", "validation", "evaluation")

# One deal of ten articles in the order of sha256(title): calibrate on the first six, choose on two, report on
# two.
_DEAL = {"calibration": range(0, 6), "validation": range(6, 8), "evaluation": range(8, 10)}

# Repository, and the files that may hold a split there: as on the hub, or as JSON lines in a local folder. Of
# C4 the first shard, as every published pruning result uses it.
_HUB = {
    "wikitext2": (
        "Salesforce/wikitext",
        {
            split: [f"wikitext-2-raw-v1/{name}.jsonl", f"wikitext-2-raw-v1/{name}-00000-of-00001.parquet"]
            for split, name in {
                "calibration": "train",
                "validation": "validation",
                "evaluation": "test",
            }.items()
        },
    ),
    "c4": (
        "allenai/c4",
        {
            "calibration": ["en/c4-train.00000-of-01024.json.gz"],
            "validation": ["en/c4-validation.00000-of-00008.json.gz"],
            "evaluation": ["en/c4-validation.00000-of-00008.json.gz"],
        },
    ),
}

HUB_CORPORA = tuple(_HUB)
CORPORA = ("embedded", *HUB_CORPORA, "lee", "python", "random")
_SINGLE = ("wikitext2", "lee")  # corpora whose lines are shorter than a window: joined into one document


def calibration_windows(
    corpus: str, tokenizer, n_calib: int, seq_len: int, seed: int, split: str = "calibration"
) -> Windows:
    """n_calib random windows of seq_len tokens, each from a document drawn until it is longer than the
    window.

    The published samplers (Wanda, RIA, DSnoT): `random.seed(seed)`, a document, then a start, so a seed picks
    their windows. Of a single document only starts are drawn; WikiText-2, whose lines are no documents, is
    joined into one, as they do. Draws are bounded: raises UserError if the corpus is empty, holds no document
    long enough, or memory no so many windows.
    """
    _require_positive(n_calib=n_calib, seq_len=seq_len)
    what = f"{n_calib} windows of {seq_len}"
    require_memory(16 * n_calib * seq_len, "cpu", what, "lower n_calib")  # as a list, then as a tensor
    if corpus == "random":
        ordinary = torch.tensor(sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids)))
        return ordinary[
            torch.randint(len(ordinary), (n_calib, seq_len), generator=torch.Generator().manual_seed(seed))
        ]
    texts = documents(corpus, split)
    if corpus in _SINGLE:
        texts = [" ".join(texts)]
    rng = random.Random(seed)
    tokens: dict[int, list[int]] = {}  # documents already tokenised
    windows = []
    draws_left = 1000 + 200 * n_calib
    while len(windows) < n_calib:
        draws_left -= 1
        index = rng.randint(0, len(texts) - 1) if len(texts) > 1 else 0
        if index not in tokens:
            # A token is at least one byte: text shorter than the window in bytes need not be tokenised to be
            # refused.
            tokens[index] = tokenize(tokenizer, texts[index]) if len(texts[index].encode()) > seq_len else []
        ids = tokens[index]
        if len(ids) > seq_len:
            start = rng.randint(0, len(ids) - seq_len - 1)
            windows.append(ids[start : start + seq_len])
        elif draws_left <= 0 or (
            len(tokens) == len(texts) and all(len(t) <= seq_len for t in tokens.values())
        ):
            raise UserError(
                f"corpus {corpus!r} ({split}) is too short: no document of more than {seq_len} tokens found;"
                " lower seq_len"
            )
    return torch.tensor(windows, dtype=torch.long)


def evaluation_windows(
    corpus: str, tokenizer, seq_len: int, n_windows: int | None = None, split: str = "evaluation"
) -> Windows:
    """The split joined by blank lines, tokenised whole and cut into consecutive windows of seq_len tokens
    (Wanda's convention).

    n_windows: take that many, spread evenly over the split (ours: the published code would take the first);
    None takes all. Raises UserError if the corpus is shorter than one window.
    """
    _require_positive(seq_len=seq_len, n_windows=1 if n_windows is None else n_windows)
    ids = tokenize(tokenizer, "\n\n".join(documents(corpus, split)))
    available = len(ids) // seq_len
    if available < (n_windows or 1):
        raise UserError(
            f"corpus {corpus!r} ({split}) is too short: {len(ids)} tokens make {available} windows of"
            f" {seq_len}; lower seq_len or n_eval"
        )
    windows = torch.tensor(ids[: available * seq_len], dtype=torch.long).view(available, seq_len)
    if n_windows is None:
        return windows
    return windows[torch.arange(n_windows) * available // n_windows]


def tokenize(tokenizer, text: str) -> list[int]:
    """Token ids with the tokenizer's own special tokens, whatever the length."""
    return tokenizer(text, verbose=False).input_ids


def adds_bos(tokenizer) -> bool:
    """Whether the tokenizer puts a beginning-of-sequence token before a text: on some models perplexity hangs
    on it.
    """
    return tokenize(tokenizer, "a")[:1] == [tokenizer.bos_token_id]


def digest(windows: Windows) -> str:
    """sha256 of the token ids: what a record says it was calibrated or evaluated on."""
    return short_sha256([windows.numpy().tobytes()])


def documents(corpus: str, split: str) -> list[str]:
    """The texts of one split of a corpus; raises UserError if there is no such corpus, or nothing in it."""
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if corpus == "embedded":
        articles = embedded_articles()
        texts = [articles[title] for title in embedded_titles(split)]
    elif corpus in _HUB:
        repo, files = _HUB[corpus]
        texts = _hub_texts(repo, files[split])
    elif corpus == "random" or (corpus in _INSTALLED and split != "calibration"):
        raise UserError(f"corpus {corpus!r} serves calibration alone: evaluate on another")
    elif corpus in _INSTALLED:
        texts = _INSTALLED[corpus]()
    elif Path(corpus).is_file():
        texts = _file_texts(Path(corpus))
    else:
        raise UserError(f"{unknown('corpus', corpus, CORPORA)}; or give a .txt or .jsonl file")
    if not any(text.strip() for text in texts):
        raise UserError(f"corpus {corpus!r} ({split}) is empty")
    return texts


def hub_files(corpus: str) -> tuple[str, list[str]]:
    """The repository of a corpus of the hub, and the file of each split in it."""
    repo, files = _HUB[corpus]
    return repo, list(dict.fromkeys(names[0] for names in files.values()))


def embedded_titles(split: str) -> list[str]:
    """Titles of the embedded corpus that belong to a split, in dealing order."""
    order = sorted(embedded_articles(), key=lambda title: hashlib.sha256(title.encode()).hexdigest())
    return [title for rank, title in enumerate(order) if rank % 10 in _DEAL[split]]


@functools.cache
def embedded_articles() -> dict[str, str]:
    """Title -> cleaned text of the English Wikipedia sample that ships in the gensim wheel (May 2016, CC
    BY-SA).

    Kept: namespace 0, no redirect, no list, no disambiguation page; paragraphs of at least 80 characters;
    articles of at least 1500.
    """
    dump = _gensim_file("enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2")
    # The key holds the dump and the rule, so a change of either is a new extraction.
    key = short_sha256([dump.read_bytes(), Path(__file__).read_bytes()])
    cached = paths.cache() / f"wikipedia-{key}.json"
    if not cached.is_file():
        cached.parent.mkdir(parents=True, exist_ok=True)
        partial = cached.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(_extract_articles(dump)))
        partial.replace(cached)
    return json.loads(cached.read_text())


def _gensim_file(name: str) -> Path:
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


def _lee_documents() -> list[str]:
    """300 short news items of the Australian Broadcasting Corporation, 2000 to 2002 (Lee, Pincombe and Welsh,
    2005), one a line.
    """
    return _gensim_file("lee_background.cor").read_text(encoding="utf-8").splitlines()


def _python_sources() -> list[str]:
    """The standard library's top-level modules, of the running Python: which text that is differs from
    version to version.
    """
    return [
        file.read_text(encoding="utf-8") for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    ]


_INSTALLED = {"lee": _lee_documents, "python": _python_sources}


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
    """Prose alone: no appendices, quote runs, headings, list markers, emptied parentheses, table rows or
    short lines.
    """
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


def _hub_texts(repo: str, files: list[str]) -> list[str]:
    """The texts of the first of the files found in SYMPRUNE_DATA, else on the hub or in its cache."""
    mirror = paths.hub_mirror()
    for file in files if mirror else []:
        if (mirror / repo / file).is_file():
            return _file_texts(mirror / repo / file)
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    problem = None
    try:
        folder = Path(snapshot_download(repo, repo_type="dataset", allow_patterns=files[-1:]))
        if (folder / files[-1]).is_file():
            return _file_texts(folder / files[-1])
    except OSError as error:  # every error of the hub is one
        problem = error
    raise UserError(
        f"cannot reach the hub for {repo}: provide $SYMPRUNE_DATA/{repo}/{files[0]}, or use the corpus"
        " 'embedded'"
    ) from problem


def _file_texts(file: Path) -> list[str]:
    if file.suffix == ".parquet":
        import pandas as pd

        return list(pd.read_parquet(file, columns=["text"])["text"])
    opener = gzip.open if file.suffix == ".gz" else open
    try:
        with opener(file, "rt", encoding="utf-8") as f:
            texts = (
                [f.read()]
                if file.suffix == ".txt"
                else [json.loads(line)["text"] for line in f if line.strip()]
            )
        for text in texts:
            text.encode()
        return texts
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        EOFError,
        OSError,
        zlib.error,
    ) as error:
        raise UserError(
            f"{file} is neither UTF-8 text (.txt) nor JSON lines with a 'text' field (.jsonl)"
        ) from error


def _require_positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise UserError(f"{name} must be at least 1, not {number}")
