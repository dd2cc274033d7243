"""A folder in the hub's layout, for SYMPRUNE_DATA: tiny models by the ids of published ones, a few rows of
each corpus and task. Lengths are 1/32 of the published models'.
"""

import gzip
import json
import random
from pathlib import Path

import tokenizers
import torch
import transformers as tf

from symprune.models.load import quiet_transformers
from symprune.text import corpora, fetch, tasks

SCALE = 32
# 104 inputs: where a notebook removes a hundredth of them, that is one
_SMALL = {"hidden_size": 104, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 320}
_GATED = {**_SMALL, "intermediate_size": 128, "num_key_value_heads": 2}

MODELS = {
    "meta-llama/Llama-2-7b-hf": lambda: tf.LlamaConfig(**_GATED, max_position_embeddings=4096 // SCALE),
    "meta-llama/Llama-2-13b-hf": lambda: tf.LlamaConfig(**_GATED, max_position_embeddings=4096 // SCALE),
    "meta-llama/Meta-Llama-3-8B": lambda: tf.LlamaConfig(**_GATED, max_position_embeddings=8192 // SCALE),
    "facebook/opt-1.3b": lambda: tf.OPTConfig(
        **_SMALL, ffn_dim=128, word_embed_proj_dim=104, max_position_embeddings=2048 // SCALE
    ),
    "HuggingFaceTB/SmolLM2-1.7B": lambda: tf.LlamaConfig(**_GATED, max_position_embeddings=8192 // SCALE),
    "Qwen/Qwen2.5-1.5B": lambda: tf.Qwen2Config(
        **_GATED, max_position_embeddings=32768 // SCALE, tie_word_embeddings=True
    ),
    "mistralai/Mistral-7B-v0.1": lambda: tf.MistralConfig(
        **_GATED, max_position_embeddings=32768 // SCALE, sliding_window=4096 // SCALE
    ),
    "EleutherAI/pythia-1.4b": lambda: tf.GPTNeoXConfig(
        **_SMALL, intermediate_size=128, max_position_embeddings=2048 // SCALE
    ),
}
WITHOUT_BOS = ("Qwen/Qwen2.5-1.5B", "HuggingFaceTB/SmolLM2-1.7B", "EleutherAI/pythia-1.4b")


def write(folder: Path, ids: list[str], seed: int = 0) -> None:
    """Models of these ids, every corpus of the hub, and the seven tasks."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("aeioulnrst", k=rng.randint(2, 7))) for _ in range(200)]
    texts = [" ".join(rng.choices(words, k=300)) for _ in range(12)]
    for position, name in enumerate(ids):
        torch.manual_seed(seed + position)
        config = MODELS[name]()
        config.update({"initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1})
        with quiet_transformers():
            tf.AutoModelForCausalLM.from_config(config).half().save_pretrained(folder / name)
            _tokenizer(texts, bos=name not in WITHOUT_BOS).save_pretrained(folder / name)
    for name in corpora.HUB_CORPORA:
        repo, files = corpora.hub_files(name)
        for file in files:
            file = file.replace("-00000-of-00001.parquet", ".jsonl")
            _write_rows(folder / repo / file, [{"text": text} for text in texts])
    for name in fetch.NAMES:
        if name not in corpora.HUB_CORPORA:
            source = tasks.source_of(name)
            rows = [_row(name, rng, words) for _ in range(6)]
            _write_rows(folder / source["repo"] / source["config"] / f"{source['split']}.jsonl", rows)
            fetch._describe(folder / source["repo"])


def _tokenizer(texts: list[str], bos: bool) -> tf.PreTrainedTokenizerFast:
    found = tokenizers.Tokenizer(tokenizers.models.BPE())
    found.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=_SMALL["vocab_size"], special_tokens=["<s>", "</s>"], initial_alphabet=alphabet
    )
    found.train_from_iterator(texts, trainer)
    if bos:
        found.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=found, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def _row(task: str, rng: random.Random, words: list[str]) -> dict:
    def text(n: int = 6) -> str:
        return " ".join(rng.choices(words, k=n))

    choices = {"text": [text(3) for _ in range(4)], "label": ["A", "B", "C", "D"]}
    return {
        "boolq": {"question": text(), "passage": text(12), "label": rng.randint(0, 1)},
        "rte": {"sentence1": text(), "sentence2": text(), "label": rng.randint(0, 1)},
        "hellaswag": {
            "activity_label": text(2),
            "ctx_a": text(),
            "ctx_b": text(3),
            "endings": [text(4) for _ in range(4)],
            "label": str(rng.randint(0, 3)),
        },
        "winogrande": {
            "sentence": f"{text(3)} _ {text(3)}",
            "option1": text(1),
            "option2": text(1),
            "answer": rng.choice("12"),
        },
        "openbookqa": {"question_stem": text(), "choices": choices, "answerKey": rng.choice("ABCD")},
    }.get(task, {"question": text(), "choices": choices, "answerKey": rng.choice("ABCD")})


def _write_rows(file: Path, rows: list[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file.write_bytes(gzip.compress(lines) if file.suffix == ".gz" else lines)
