"""Text as windows of tokens: calibration by random windows, evaluation by consecutive ones.

A corpus is "embedded" (Wikipedia, out of the gensim wheel), "wikitext2", "c4", or a file (see
`symprune.text.files`). Hub corpora are sought in SYMPRUNE_DATA first. For calibration alone: "lee" (news, out
of the same wheel), "python" (source code, the standard library's) and "random" (tokens drawn evenly from the
vocabulary: a control that holds no language).
"""

import bisect
import itertools
import os
import random
import re
import sysconfig
from collections.abc import Callable
from pathlib import Path

import torch

from symprune.base import paths
from symprune.base.errors import UserError, unknown
from symprune.base.files import short_sha256
from symprune.base.types import Windows
from symprune.models.devices import require_memory
from symprune.text.embedded import SPLITS, embedded_articles, embedded_titles, gensim_file
from symprune.text.files import SUFFIXES, texts_of

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
    """n_calib random windows of seq_len tokens, each of a document that is longer than the window.

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
            # A token is at least one byte: text of fewer bytes than the window is refused untokenised.
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
    """The windows of `evaluation_text`."""
    return evaluation_text(corpus, tokenizer, seq_len, n_windows, split)[0]


def evaluation_text(
    corpus: str, tokenizer, seq_len: int, n_windows: int | None = None, split: str = "evaluation"
) -> tuple[Windows, list[int]]:
    """The split joined by blank lines, tokenised whole and cut into consecutive windows (Wanda's convention),
    and the article that the first token of each belongs to, by its place in the split.

    n_windows: take that many of them, each from the middle of another article while there are enough, as many
    of every article otherwise (ours: the published code would take the first); None takes all. Raises
    UserError if the corpus is shorter than one window.
    """
    _require_positive(seq_len=seq_len, n_windows=1 if n_windows is None else n_windows)
    articles = _articles(corpus, documents(corpus, split))
    ids, article_at = _tokens_of(tokenizer, articles)
    available = len(ids) // seq_len
    if available < (n_windows or 1):
        raise UserError(
            f"corpus {corpus!r} ({split}) is too short: {len(ids)} tokens make {available} windows of"
            f" {seq_len}; lower seq_len or n_eval"
        )
    windows = torch.tensor(ids[: available * seq_len], dtype=torch.long).view(available, seq_len)
    told = [article_at(i * seq_len) for i in range(available)]
    taken = range(available) if n_windows is None else _spread(told, n_windows)
    return windows[list(taken)], [told[i] for i in taken]


def _articles(corpus: str, texts: list[str]) -> list[str]:
    """The texts of a split as articles, each with the blank line after it; WikiText-2's begin at a title."""
    if corpus != "wikitext2":
        return [text + "\n\n" for text in texts[:-1]] + texts[-1:]
    starts = [i for i, line in enumerate(texts) if re.match(r"\s*= [^=]", line)]
    bounds = sorted({0, *starts, len(texts)})
    parts = [texts[start:end] for start, end in itertools.pairwise(bounds)]
    return ["".join(line + "\n\n" for line in part) for part in parts[:-1]] + ["\n\n".join(parts[-1])]


def _tokens_of(tokenizer, articles: list[str]) -> tuple[list[int], Callable[[int], int]]:
    """The tokens of all articles as one text, and the article of the i-th token.

    Exact with the characters that a fast tokenizer tells; else by the tokens of each article alone, which may
    err by those that the tokenizer joins across an article's end.
    """
    if getattr(tokenizer, "is_fast", False):
        encoded = tokenizer("".join(articles), verbose=False, return_offsets_mapping=True)
        ids, offsets = encoded.input_ids, encoded.offset_mapping
        ends = list(itertools.accumulate(map(len, articles)))
        return ids, lambda i: bisect.bisect_right(ends, offsets[i][0])
    special = len(tokenize(tokenizer, ""))
    lengths = (len(tokenize(tokenizer, article)) - special for article in articles)
    ends = list(itertools.accumulate(lengths, initial=special))[1:]
    return tokenize(tokenizer, "".join(articles)), lambda i: min(bisect.bisect_right(ends, i), len(ends) - 1)


def _spread(articles: list[int], n: int) -> list[int]:
    """n places of a list of articles: as many of each as it has, evenly; the middle one where it is one."""
    places: dict[int, list[int]] = {}
    for place, article in enumerate(articles):
        places.setdefault(article, []).append(place)
    shares = dict.fromkeys(places, 0)
    while left := n - sum(shares.values()):
        more = [article for article, of in places.items() if len(of) > shares[article]]
        for i in range(min(left, len(more))):
            shares[more[i * len(more) // min(left, len(more))]] += 1
    return [
        of[((2 * j + 1) * len(of) - 1) // (2 * shares[article])]
        for article, of in places.items()
        for j in range(shares[article])
    ]


def tokenize(tokenizer, text: str) -> list[int]:
    """Token ids with the tokenizer's own special tokens, whatever the length."""
    return tokenizer(text, verbose=False).input_ids


def adds_bos(tokenizer) -> bool:
    """Whether a text's tokens begin with a beginning-of-sequence token: perplexity may hang on it."""
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
        texts = texts_of(Path(corpus))
    else:
        raise _no_such(corpus)
    if not any(text.strip() for text in texts):
        raise UserError(f"corpus {corpus!r} ({split}) is empty")
    return texts


def hub_files(corpus: str) -> tuple[str, list[str]]:
    """The repository of a corpus of the hub, and the file of each split in it."""
    repo, files = _HUB[corpus]
    return repo, list(dict.fromkeys(names[0] for names in files.values()))


def _no_such(corpus: str) -> UserError:
    """The error for what is neither corpus nor file: with a separator or a suffix, a path is meant."""
    path, way_out = Path(corpus), f"give a file ({SUFFIXES}), or one of {', '.join(CORPORA)}"
    if corpus and path.exists():
        return UserError(f"{corpus} is no file: {way_out}")
    if path.suffix or os.sep in corpus:
        return UserError(f"{corpus} does not exist: {way_out}")
    return UserError(f"{unknown('corpus', corpus, CORPORA)}; or give a file ({SUFFIXES})")


def _lee_documents() -> list[str]:
    """300 short news items of the Australian Broadcasting Corporation, 2000 to 2002 (Lee et al., 2005)."""
    return gensim_file("lee_background.cor").read_text(encoding="utf-8").splitlines()


def _python_sources() -> list[str]:
    """The top-level modules of the running Python's standard library: not the same in every version."""
    return [
        file.read_text(encoding="utf-8") for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    ]


_INSTALLED = {"lee": _lee_documents, "python": _python_sources}


def _hub_texts(repo: str, files: list[str]) -> list[str]:
    """The texts of the first of the files found in SYMPRUNE_DATA, else on the hub or in its cache."""
    mirror = paths.hub_mirror()
    for file in files if mirror else []:
        if (mirror / repo / file).is_file():
            return texts_of(mirror / repo / file)
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    problem = None
    try:
        folder = Path(snapshot_download(repo, repo_type="dataset", allow_patterns=files[-1:]))
        if (folder / files[-1]).is_file():
            return texts_of(folder / files[-1])
    except OSError as error:  # every error of the hub is one
        problem = error
    raise UserError(
        f"cannot reach the hub for {repo}: provide $SYMPRUNE_DATA/{repo}/{files[0]}, or use the corpus"
        " 'embedded'"
    ) from problem


def _require_positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise UserError(f"{name} must be at least 1, not {number}")
