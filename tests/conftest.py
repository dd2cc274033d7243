"""What several test modules need: no hub, and a tiny checkpoint with a real tokenizer."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported: no test depends on a network

import random
import sys
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(
        "symprune.base.paths.statistics", lambda: tmp_path_factory.getbasetemp() / "statistics"
    )
    for name in (
        "SYMPRUNE_ROOT",
        "SYMPRUNE_OUTPUT",
        "SYMPRUNE_DATA",
        "SYMPRUNE_EXECUTOR",
        "SYMPRUNE_PROGRESS",
    ):
        monkeypatch.delenv(name, raising=False)
    if bench := sys.modules.get("symprune.measure.bench"):
        monkeypatch.setattr(bench.Loaded, "_last", None)  # no test finds a model that another one loaded


@pytest.fixture(scope="session")
def tokenizer():
    """The embedded model's tokenizer."""
    from symprune.models.load import load_tokenizer

    return load_tokenizer("embedded")


@pytest.fixture(scope="session")
def checkpoint(tokenizer, tmp_path_factory) -> Path:
    """A random Llama of two decoder layers and 128 positions with the embedded model's tokenizer, as
    save_pretrained writes it.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    from symprune.models.load import quiet_transformers

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    with quiet_transformers():
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A text file of 3000 common words in random order."""
    rng = random.Random(0)
    words = [
        "the",
        "of",
        "and",
        "to",
        "in",
        "is",
        "that",
        "it",
        "was",
        "for",
        "on",
        "are",
        "with",
        "as",
        "his",
        "they",
        "at",
        "be",
    ]
    file = tmp_path_factory.mktemp("corpus") / "words.txt"
    file.write_text(" ".join(rng.choice(words) for _ in range(3000)))
    return file


@pytest.fixture
def protocol(checkpoint, corpus, tmp_path, monkeypatch) -> dict:
    """A profile of the tiny checkpoint that keeps its records in a folder of its own."""
    monkeypatch.setenv("SYMPRUNE_OUTPUT", str(tmp_path / "output"))
    monkeypatch.setattr("symprune.base.paths.statistics", lambda: tmp_path / "statistics")
    return {
        "profile": "test",
        "models": [str(checkpoint)],
        "calibration_corpus": str(corpus),
        "evaluation_corpus": str(corpus),
        "n_calib": 2,
        "n_eval": 3,
        "seq_len": 32,
        "seeds": [0, 1],
    }
