"""The commands on mask files: apply, verify, diff."""

import argparse
from pathlib import Path

from symprune import models
from symprune.base.files import require_disk, require_free
from symprune.base.records import Record, provenance
from symprune.cli.common import NOTE, Answer, about_model, bytes_of, load_model, save_model
from symprune.cli.given import refuse
from symprune.pruning import mask_files


def run_apply(args: argparse.Namespace) -> Answer:
    """Apply masks to a model and save it."""
    out = Path(args.out)
    require_free(out, "--out")
    found = mask_files.load_masks(args.masks)
    tokenizer = models.load_tokenizer(args.model)
    about = about_model(args)
    model = load_model(args)
    require_disk(out, bytes_of(model))
    differing = mask_files.apply_masks(model, found, args.other_weights)
    record = found.record
    if record is None or differing:
        run = {
            "model": about,
            "recipe": record and record.run.get("recipe"),
            "masks_of": record and record.run,
        }
        record = Record(run, {"sparsity": found.sparsity, "other_weights": differing}, provenance())
    save_model(out, model, tokenizer, found.masks, record)
    other = (
        f"; {len(differing)} of {len(found.masks)} linears had other weights than when the masks were made"
        if differing
        else ""
    )
    facts = {"out": args.out, "sparsity": found.sparsity, "other_weights": differing, "note": NOTE}
    text = (
        f"{found.sparsity:.2%} of the weights of {len(found.masks)} linears removed{other}\nsaved to {out};"
        f" {NOTE}"
    )
    return Answer(facts, text)


def run_verify(args: argparse.Namespace) -> Answer:
    """Check masks against their pattern, and a model against its masks."""
    found = mask_files.load_masks(args.masks)
    applied = Path(args.masks).is_dir() and args.model is None
    name = args.masks if applied else args.model
    if name is None:
        refuse(args, "give --model, or the folder of a pruned model, with it", "layers_path")
    model = models.load_model(name, layers_path=args.layers_path) if name is not None else None
    facts = mask_files.verify_masks(found, model, applied)
    removed = f"{facts['sparsity']:.2%} of {facts['weights']} weights in {facts['linears']} linears removed"
    return Answer(
        facts,
        f"{removed} ({facts['pattern'] or 'pattern not on record'})\nchecked:"
        f" {', '.join(facts['checked']) or 'checksum'}",
    )


def run_diff(args: argparse.Namespace) -> Answer:
    """How two mask files agree."""
    facts = mask_files.diff_masks(mask_files.load_masks(args.a), mask_files.load_masks(args.b))
    width = max(map(len, facts["linears"]))
    lines = [
        f"{name:<{width}}  {x['jaccard']:.4f}  {x['equal']:.4f}"
        for name, x in {"total": facts, **facts["linears"]}.items()
    ]
    return Answer(facts, "\n".join([f"{'linear':<{width}}  jaccard  equal", *lines]))
