"""Calibration and evaluation windows: embedded, from the hub's files, from one's own; published samplers."""

import bz2
import gzip
import hashlib
import json
import random
import time
from collections import Counter
from pathlib import Path

import gensim
import pytest
import torch

from symprune import UserError
from symprune.text import corpora, embedded
from symprune.text.embedded import SPLITS, embedded_articles, embedded_titles

MANIFEST = Path(__file__).parent / "manifest_embedded.json"


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Bytes:
    """A tokenizer with one token per byte, and perhaps a token 256 before every text."""

    bos_token_id = 256

    def __init__(self, bos: bool = False):
        self.bos = bos

    def __call__(self, text: str, verbose: bool = True):
        return type("Encoding", (), {"input_ids": [256] * self.bos + list(text.encode())})


@pytest.fixture
def documents(tmp_path) -> Path:
    """Forty JSON lines of 1 to 400 letters, told apart by their letter and place."""
    rng = random.Random(7)
    file = tmp_path / "documents.jsonl"
    texts = ["".join(rng.choice("abcdefgh") for _ in range(rng.randint(1, 400))) for _ in range(40)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


# The embedded corpus.


def test_the_embedded_corpus_extracted_afresh_is_the_one_in_the_manifest(tmp_path, monkeypatch):
    monkeypatch.setenv("SYMPRUNE_CACHE", str(tmp_path))
    embedded_articles.cache_clear()
    try:
        articles = embedded_articles()
    finally:
        embedded_articles.cache_clear()
    manifest = json.loads(MANIFEST.read_text())
    assert articles.keys() == {title for split in manifest.values() for title in split["titles"]}
    for name, split in manifest.items():
        titles = embedded_titles(name)
        assert titles == split["titles"]
        assert sum(len(articles[title]) for title in titles) == split["characters"]
        assert sha256("\n\n".join(articles[title] for title in titles)) == split["sha256"]
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]  # cached whole


def test_every_article_is_dealt_to_one_split_by_the_hash_of_its_title():
    articles = embedded_articles()
    order = sorted(articles, key=sha256)
    splits = {name: embedded_titles(name) for name in SPLITS}
    assert sorted(title for titles in splits.values() for title in titles) == sorted(articles)
    for rank, title in enumerate(order):
        assert (
            title
            in splits["calibration" if rank % 10 < 6 else "validation" if rank % 10 < 8 else "evaluation"]
        )


def test_embedded_articles_are_prose_without_markup():
    for title, text in embedded_articles().items():
        assert len(text) >= 1500
        assert all(len(line) >= 80 and line[0] not in "|!{=*#:;" for line in text.split("\n\n")), title
        assert not any(mark in text for mark in ("''", "[[", "]]", "{{", "}}", "<ref", "()", "  "))
        assert not title.startswith(("List of", "Wikipedia:"))


def test_a_gensim_without_its_test_data_is_named(tmp_path, monkeypatch):
    (tmp_path / "__init__.py").touch()
    monkeypatch.setattr(
        embedded.importlib.util,
        "find_spec",
        lambda _: type("Spec", (), {"origin": str(tmp_path / "__init__.py")}),
    )
    embedded_articles.cache_clear()
    with pytest.raises(UserError, match="gensim"):
        embedded_articles()
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'symprune\[embedded\]'"):
        embedded_articles()


def test_the_dump_is_the_one_that_the_manifest_was_made_from():
    dump = next(Path(gensim.__file__).parent.glob("test/test_data/enwiki-latest-pages-articles1*.bz2"))
    assert hashlib.sha256(dump.read_bytes()).hexdigest().startswith("a53f4648dec40467")
    with bz2.open(dump) as pages:
        assert pages.readline().startswith(b"<mediawiki")


# Calibration windows.


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_windows_are_those_of_the_published_sampler(documents, seed):
    texts = [json.loads(line)["text"] for line in documents.read_text().splitlines()]
    n_calib, seq_len = 24, 100
    random.seed(seed)
    expected = []
    for _ in range(n_calib):
        while True:
            i = random.randint(0, len(texts) - 1)
            tokens = list(texts[i].encode())
            if len(tokens) > seq_len:
                break
        i = random.randint(0, len(tokens) - seq_len - 1)
        expected.append(tokens[i : i + seq_len])
    assert corpora.calibration_windows(str(documents), Bytes(), n_calib, seq_len, seed).tolist() == expected


def test_drawing_windows_leaves_the_random_state_of_the_program_alone(documents, monkeypatch):
    def reseed(*_):
        raise AssertionError("the program's own random state was reseeded")

    monkeypatch.setattr(random, "seed", reseed)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    corpora.calibration_windows(str(documents), Bytes(), 4, 50, seed=0)
    assert torch.equal(torch.rand(1), expected)


def test_a_seed_picks_its_windows_and_another_picks_others(documents):
    windows = [corpora.calibration_windows(str(documents), Bytes(), 8, 50, seed) for seed in (0, 0, 1)]
    assert torch.equal(windows[0], windows[1])
    assert not torch.equal(windows[0], windows[2])
    assert corpora.digest(windows[0]) == corpora.digest(windows[1]) != corpora.digest(windows[2])
    assert windows[0].shape == (8, 50)
    assert windows[0].dtype == torch.long


def test_more_windows_begin_with_the_fewer(documents):
    few, many = (corpora.calibration_windows(str(documents), Bytes(), n, 50, seed=3) for n in (4, 12))
    assert torch.equal(many[:4], few)


def test_the_longest_window_that_fits_is_found_and_one_more_token_is_refused(tmp_path):
    file = tmp_path / "documents.jsonl"
    file.write_text("".join(json.dumps({"text": "x" * length}) + "\n" for length in [5] * 50 + [101]))
    assert corpora.calibration_windows(str(file), Bytes(), 3, 100, seed=0).shape == (3, 100)
    with pytest.raises(UserError, match="no document of more than 101 tokens"):
        corpora.calibration_windows(str(file), Bytes(), 3, 101, seed=0)


def test_draws_end_although_one_document_in_very_many_would_do(tmp_path):
    file = tmp_path / "documents.jsonl"
    file.write_text('{"text": "short"}\n' * 100_000)
    start = time.perf_counter()
    with pytest.raises(UserError, match="too short"):
        corpora.calibration_windows(str(file), Bytes(), 2, 100, seed=0)
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize(("n_calib", "seq_len"), [(0, 8), (-1, 8), (2, 0), (2, -5)])
def test_sizes_must_be_positive(documents, n_calib, seq_len):
    with pytest.raises(UserError, match="at least 1"):
        corpora.calibration_windows(str(documents), Bytes(), n_calib, seq_len, seed=0)


def test_windows_of_the_embedded_corpus_come_from_its_calibration_articles(tokenizer):
    windows = corpora.calibration_windows("embedded", tokenizer, 3, 64, seed=0)
    articles = embedded_articles()
    of_split = {split: [articles[title] for title in embedded_titles(split)] for split in SPLITS}
    for window in windows:
        words = tokenizer.decode(window)[5:-5]  # a window may begin within a word
        assert any(words in text for text in of_split["calibration"])
        assert not any(words in text for text in of_split["evaluation"] + of_split["validation"])


# Evaluation windows.


def test_evaluation_windows_follow_each_other_through_the_joined_text(documents):
    texts = [json.loads(line)["text"] for line in documents.read_text().splitlines()]
    tokens = list("\n\n".join(texts).encode())
    windows = corpora.evaluation_windows(str(documents), Bytes(), 64)
    assert windows.flatten().tolist() == tokens[: len(tokens) // 64 * 64]
    with_bos = corpora.evaluation_windows(str(documents), Bytes(bos=True), 64)
    assert with_bos[0].tolist() == [256, *tokens[:63]]
    assert (with_bos == 256).sum() == 1  # once for the text, as published, not once per window


def articles_by_characters(texts: list[str], windows: torch.Tensor) -> list[int]:
    """The article of each window's first byte, counted through the joined text."""
    owner = [i for i, text in enumerate(texts) for _ in (text + "\n\n").encode()]
    return [owner[i * windows.shape[1]] for i in range(len(windows))]


def test_a_window_belongs_to_the_article_of_its_first_token(documents):
    texts = [json.loads(line)["text"] for line in documents.read_text().splitlines()]
    windows, articles = corpora.evaluation_text(str(documents), Bytes(), 64)
    assert articles == articles_by_characters(texts, windows)
    assert len(set(articles)) > 2


def test_the_articles_of_a_fast_tokenizers_windows_are_those_of_their_words(tokenizer):
    windows, articles = corpora.evaluation_text("embedded", tokenizer, 64)
    assert torch.equal(windows, corpora.evaluation_windows("embedded", tokenizer, 64))
    texts = corpora.documents("embedded", "evaluation")
    assert sorted(set(articles)) == list(range(len(texts)))
    assert articles == sorted(articles)
    for article, window, after in zip(articles, windows, [*articles[1:], None], strict=True):
        if article == after:
            assert tokenizer.decode(window[2:-2]) in texts[article]


def test_articles_of_wikitext_begin_at_their_titles(monkeypatch):
    lines = ["", " = One = \n", "", "a " * 40, " = = Section = = \n", "b " * 40, " = Two = \n", "c " * 60]
    monkeypatch.setattr(corpora, "documents", lambda corpus, split: lines)
    windows, articles = corpora.evaluation_text("wikitext2", Bytes(), 16)
    assert windows.flatten().tolist() == list("\n\n".join(lines).encode())[: windows.numel()]
    first_of_two = "\n\n".join(lines).index(" = Two")
    assert len(set(articles)) == 3  # what lies before the first title is one of its own
    assert [article == articles[-1] for article in articles] == [
        16 * i >= first_of_two for i in range(len(articles))
    ]


@pytest.mark.parametrize("n", [1, 2, 4, 7, 11])
def test_fewer_windows_are_spread_over_articles(documents, n):
    every, articles = corpora.evaluation_text(str(documents), Bytes(), 64)
    some, told = corpora.evaluation_text(str(documents), Bytes(), 64, n)
    places = [next(i for i, one in enumerate(every) if torch.equal(one, window)) for window in some]
    assert [articles[place] for place in places] == told
    assert places == sorted(set(places))
    counts, sizes = Counter(told), Counter(articles)
    assert len(counts) == min(n, len(sizes))
    # no article gives a second window while another has given none that it has
    assert all(counts[a] >= min(sizes[a], max(counts.values()) - 1) for a in sizes)
    for article, times in counts.items():
        own = [i for i, other in enumerate(articles) if other == article]
        if times == 1 and len(own) > 2:
            assert own[0] < places[told.index(article)] < own[-1], "from the middle: it straddles no end"


def test_all_windows_may_be_asked_for_by_number_and_not_one_more(documents):
    every = corpora.evaluation_windows(str(documents), Bytes(), 64)
    assert torch.equal(corpora.evaluation_windows(str(documents), Bytes(), 64, len(every)), every)
    with pytest.raises(UserError, match="too short"):
        corpora.evaluation_windows(str(documents), Bytes(), 64, len(every) + 1)
    with pytest.raises(UserError, match="too short"):
        corpora.evaluation_windows(str(documents), Bytes(), 10**6)


@pytest.mark.parametrize("bos", [False, True])
def test_it_is_known_whether_a_tokenizer_adds_bos(bos):
    assert corpora.adds_bos(Bytes(bos)) is bos


def test_the_embedded_tokenizer_adds_none(tokenizer):
    assert corpora.adds_bos(tokenizer) is False


# Corpora that serve calibration alone.


def test_news_windows_are_taken_from_the_items_joined(tokenizer):
    text = (Path(gensim.__file__).parent / "test/test_data/lee_background.cor").read_text(encoding="utf-8")
    tokens = tokenizer(" ".join(text.splitlines()), verbose=False).input_ids
    joined = " ".join(map(str, tokens))
    for window in corpora.calibration_windows("lee", tokenizer, 3, 512, seed=0).tolist():
        assert " ".join(map(str, window)) in joined


def test_source_windows_come_from_the_standard_library(tokenizer):
    (window,) = corpora.calibration_windows("python", tokenizer, 1, 64, seed=1)
    sources = [Path(json.__file__).parents[1] / "heapq.py", *(Path(json.__file__).parents[1]).glob("*.py")]
    assert any(tokenizer.decode(window).strip()[5:-5] in file.read_text(encoding="utf-8") for file in sources)


def test_random_windows_hold_every_ordinary_token_as_often(tokenizer):
    windows = corpora.calibration_windows("random", tokenizer, 200, 2000, seed=0)
    assert not set(windows.flatten().tolist()) & set(tokenizer.all_special_ids)
    counts = torch.bincount(windows.flatten(), minlength=len(tokenizer)).float()
    ordinary = torch.ones(len(tokenizer), dtype=torch.bool)
    ordinary[tokenizer.all_special_ids] = False
    expected = windows.numel() / int(ordinary.sum())
    chi_square = ((counts[ordinary] - expected) ** 2 / expected).sum() / (int(ordinary.sum()) - 1)
    assert chi_square == pytest.approx(1, abs=0.05)
    assert torch.equal(windows[:2], corpora.calibration_windows("random", tokenizer, 200, 2000, seed=0)[:2])
    assert not torch.equal(windows, corpora.calibration_windows("random", tokenizer, 200, 2000, seed=1))


@pytest.mark.parametrize("corpus", ["lee", "python", "random"])
def test_what_serves_calibration_alone_is_not_evaluated_on(corpus, tokenizer):
    with pytest.raises(UserError, match="calibration alone"):
        corpora.evaluation_windows(corpus, tokenizer, 64)


def test_splits_and_corpora_that_are_not_known_are_named():
    with pytest.raises(UserError, match="unknown split 'test'"):
        corpora.documents("embedded", "test")
    with pytest.raises(UserError, match=r"unknown corpus 'wikitext'.*wikitext2"):
        corpora.documents("wikitext", "evaluation")


# Files.

LINES = [f"Line {i}: the café is open, and {i} naïve owners watch." for i in range(60)]
TEXT = "\n".join(LINES) + "\n"
BOM = b"\xef\xbb\xbf"
ROW = json.dumps({"text": TEXT, "meta": 1}) + "\n\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.txt", TEXT.encode()),
        ("mark.txt", BOM + TEXT.encode()),
        ("carriage.txt", TEXT.replace("\n", "\r\n").encode()),
        ("LARGE.TXT", TEXT.encode()),
        ("notes.md", TEXT.encode()),
        ("packed.txt.gz", gzip.compress(TEXT.encode())),
        ("packed mark.md.gz", gzip.compress(BOM + TEXT.encode())),
        ("LARGE.Txt.GZ", gzip.compress(TEXT.encode())),
        ("lines.jsonl", ROW.encode()),
        ("lines.json", ROW.encode()),
        ("mark.jsonl", BOM + ROW.encode()),
        ("packed.jsonl.gz", gzip.compress(ROW.encode())),
        ("packed mark.json.gz", gzip.compress(BOM + ROW.encode())),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_text_is_the_same_however_it_lies_in_a_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert corpora.documents(str(tmp_path / name), "evaluation") == [TEXT]
    windows = corpora.evaluation_windows(str(tmp_path / name), Bytes(), 64)
    assert windows.flatten().tolist() == list(TEXT.encode())[: windows.numel()]


def test_a_table_is_read_by_its_column(tmp_path):
    import pandas as pd

    pd.DataFrame({"text": LINES, "more": 1}).to_parquet(tmp_path / "table.parquet")
    assert corpora.documents(str(tmp_path / "table.parquet"), "evaluation") == LINES


@pytest.mark.parametrize("name", ["letter.doc", "page.html", "text", "text.gz", "text.txt.bz2", "text.tsv"])
def test_a_file_that_its_suffix_does_not_tell_how_to_read_is_refused_with_those_that_do(tmp_path, name):
    (tmp_path / name).write_text(TEXT)
    with pytest.raises(UserError) as error:
        corpora.documents(str(tmp_path / name), "evaluation")
    assert all(word in str(error.value) for word in [name, ".txt", ".md", ".jsonl", ".gz", ".parquet"])


@pytest.mark.parametrize("name", ["array.json", "table.parquet", "text.txt.gz", "latin.md", "wide.txt"])
def test_a_file_that_is_not_what_its_suffix_says_is_named(tmp_path, name):
    latin = TEXT.encode("utf-16-le" if name == "wide.txt" else "latin-1")  # without a byte order mark
    (tmp_path / name).write_bytes(json.dumps([{"text": TEXT}]).encode() if name == "array.json" else latin)
    with pytest.raises(UserError, match=f"{name} is neither UTF-8 text"):
        corpora.documents(str(tmp_path / name), "evaluation")


@pytest.mark.parametrize("name", ["nowhere.txt", "nowhere/text", "./nowhere", "wiki.jsonl", "c4.zip"])
def test_a_path_where_nothing_lies_is_not_called_a_corpus(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        corpora.documents(name, "evaluation")
    assert str(error.value).startswith(f"{name} does not exist: give a file (.txt")
    assert "wikitext2" in str(error.value)


def test_a_folder_is_no_text(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} is no file: give a file"):
        corpora.documents(str(tmp_path), "evaluation")


# Hub corpora.


@pytest.fixture
def mirror(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SYMPRUNE_DATA", str(tmp_path))
    return tmp_path


def write_jsonl(file: Path, texts: list[str], opener=open) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with opener(file, "wt", encoding="utf-8") as f:
        f.writelines(json.dumps({"text": text}) + "\n" for text in texts)


def test_a_hub_corpus_is_read_from_a_local_folder_in_the_layout_of_the_hub(mirror):
    folder = mirror / "Salesforce/wikitext/wikitext-2-raw-v1"
    write_jsonl(folder / "test.jsonl", ["", " = Title = ", "of the test", ""])
    write_jsonl(folder / "train.jsonl", ["of the training"])
    write_jsonl(folder / "validation.jsonl", ["of the validation"])
    write_jsonl(mirror / "allenai/c4/en/c4-train.00000-of-01024.json.gz", ["crawled"], gzip.open)
    assert corpora.documents("wikitext2", "evaluation") == ["", " = Title = ", "of the test", ""]
    assert corpora.documents("wikitext2", "calibration") == ["of the training"]
    assert corpora.documents("wikitext2", "validation") == ["of the validation"]
    assert corpora.documents("c4", "calibration") == ["crawled"]


def test_a_clone_of_the_hub_repository_will_do_as_well(mirror):
    import pandas as pd

    folder = mirror / "Salesforce/wikitext/wikitext-2-raw-v1"
    folder.mkdir(parents=True)
    pd.DataFrame({"text": ["", "one"]}).to_parquet(folder / "test-00000-of-00001.parquet")
    assert corpora.documents("wikitext2", "evaluation") == ["", "one"]


def test_wikitext_is_joined_into_one_text_for_calibration_as_published(mirror):
    lines = [f" line {i} of many " for i in range(100)]
    write_jsonl(mirror / "Salesforce/wikitext/wikitext-2-raw-v1/train.jsonl", lines)
    tokens = list(" ".join(lines).encode())
    random.seed(4)
    starts = [random.randint(0, len(tokens) - 200 - 1) for _ in range(5)]
    windows = corpora.calibration_windows("wikitext2", Bytes(), 5, 200, seed=4)
    assert windows.tolist() == [tokens[start : start + 200] for start in starts]


def test_without_hub_and_folder_the_message_says_what_to_provide_and_comes_at_once(mirror):
    start = time.perf_counter()
    with pytest.raises(
        UserError,
        match=r"cannot reach the hub .* \$SYMPRUNE_DATA/Salesforce/wikitext/wikitext-2-raw-v1/test.jsonl",
    ):
        corpora.documents("wikitext2", "evaluation")
    with pytest.raises(
        UserError, match=r"\$SYMPRUNE_DATA/allenai/c4/en/c4-train.00000-of-01024.json.gz.*'embedded'"
    ):
        corpora.documents("c4", "calibration")
    assert time.perf_counter() - start < 10


def test_a_broken_file_in_the_local_folder_is_named(mirror):
    file = mirror / "allenai/c4/en/c4-train.00000-of-01024.json.gz"
    write_jsonl(file, ["text"], gzip.open)
    file.write_bytes(file.read_bytes()[:-12])
    with pytest.raises(UserError, match="c4-train"):
        corpora.documents("c4", "calibration")
