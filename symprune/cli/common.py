"""What several commands do: answer, load a model, save it with its masks and record, tell what happens."""

import argparse
import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from symprune import models
from symprune.base import progress
from symprune.base.files import whole_folder
from symprune.base.records import Record
from symprune.pruning import mask_files
from symprune.pruning.card import model_card
from symprune.pruning.checkpoint import require_saved, some_of

NOTE = "zeros are stored densely: the files are not smaller, and inference is not faster"
_RECORD = "symprune.json"  # in a pruned model's folder, beside its weights and masks


@dataclass(frozen=True)
class Answer:
    """What a command found or made: plain data, and the same in words."""

    facts: dict[str, Any]
    text: str


def about_model(args: argparse.Namespace) -> dict[str, str]:
    """What a record says of the model."""
    return {"name": args.model, "weights": models.fingerprint(args.model), "dtype": args.dtype}


def load_model(args: argparse.Namespace):
    """The model that the arguments name, in the dtype and on the device that they name."""
    return models.load_model(args.model, args.dtype, args.device, getattr(args, "layers_path", None))


def bytes_of(model) -> int:
    """What a model takes on a disk."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def save_model(out: Path, model, tokenizer, masks: dict, record: Record) -> None:
    """Write a pruned model's folder, whole or not at all; raises UserError if it reads back otherwise."""
    with whole_folder(out) as folder:
        with models.quiet_transformers():
            model.save_pretrained(folder)
            require_saved(folder, model, some_of(model))
        mask_files.save_masks(folder / models.MASKS, masks, model, record)
        save_beside(folder, tokenizer, record)


def save_beside(folder: Path, tokenizer, record: Record) -> None:
    """Write what lies beside the weights and the masks: tokenizer, record, and a card where there is none."""
    with models.quiet_transformers():
        tokenizer.save_pretrained(folder)
    (folder / _RECORD).write_text(record.to_json())
    if not (card := folder / "README.md").exists():
        card.write_text(model_card(record), encoding="utf-8")


def tell(args: argparse.Namespace, news: object) -> None:
    """What happens meanwhile, for whoever looks on."""
    if not args.json:
        print(news, file=sys.stderr, flush=True)


def progress_bars(args: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    """Inside, bars are shown if somebody watches."""
    return progress.showing(not args.json and sys.stderr.isatty())
