"""The commands that measure a model, and fetch what it is measured on: eval, fetch."""

import argparse
from pathlib import Path

from symprune import models
from symprune.cli.common import Answer, load_model, progress_bars, tell
from symprune.cli.given import refuse
from symprune.measure.perplexity import perplexity
from symprune.measure.zero_shot import zero_shot
from symprune.text import corpora, fetch, tasks


def run_eval(args: argparse.Namespace) -> Answer:
    """Perplexity of a model, or with --tasks its zero-shot accuracy."""
    if args.tasks is None:
        refuse(args, "give --tasks with it", "limit")
        return _perplexity(args)
    refuse(args, "--tasks bring their own text", "corpus", "seq_len", "split", "n_eval")
    return _accuracy(args)


def _perplexity(args: argparse.Namespace) -> Answer:
    windows = corpora.evaluation_windows(
        args.corpus, models.load_tokenizer(args.model), args.seq_len, args.n_eval, args.split
    )
    model = load_model(args)
    with progress_bars(args):
        value = perplexity(model, windows, batch_size=args.batch_size)
    stderr = value.stderr if value.n_windows > 1 else None
    facts = {
        "perplexity": float(value),
        "stderr": stderr,
        "tokens": value.n_tokens,
        "windows": value.n_windows,
    }
    return Answer(
        {**facts, "digest": corpora.digest(windows)}, f"perplexity {value!r} on {args.corpus} ({args.split})"
    )


def _accuracy(args: argparse.Namespace) -> Answer:
    loaded = tasks.load_tasks(args.tasks.split(","))  # before the model: a wrong name costs no minutes
    model, tokenizer = load_model(args), models.load_tokenizer(args.model)
    with progress_bars(args):
        result = zero_shot(model, tokenizer, loaded, args.limit, args.batch_size)
    columns = ("acc", "stderr", "n", "version", "acc_norm")
    scores = {name: {key: getattr(score, key) for key in columns} for name, score in result.scores.items()}
    for score in scores.values():
        score["stderr"] = score["stderr"] if score["n"] > 1 else None
    return Answer(
        {"mean": result.mean, "tasks": scores},
        "\n".join([*map(str, result.scores.values()), f"mean {result.mean:.4f}"]),
    )


def run_fetch(args: argparse.Namespace) -> Answer:
    """Copy benchmark data from the hub into a folder."""
    done = fetch.fetch(Path(args.out), args.names or fetch.NAMES, lambda line: tell(args, line))
    text = (
        f"{len(done.written)} files written, {len(done.kept)} were there: set"
        f" SYMPRUNE_DATA={Path(args.out).resolve()}"
    )
    return Answer({"out": args.out, "written": done.written, "kept": done.kept}, text)
