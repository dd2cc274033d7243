"""The `symprune` command: prune, eval, reproduce, render, doctor."""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from symprune import paths
from symprune.errors import UserError, unknown


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command: 0 if it worked, 2 with one line on stderr for bad input, 1 for a failed notebook or a bug."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except Exception as error:
        if args.debug:
            raise
        text = " ".join(str(error).split())
        if not isinstance(error, (UserError, OSError, RuntimeError)):
            text = f"{type(error).__name__}{': ' * bool(text)}{text} (--debug shows where)"
        print(f"symprune: error: {text}", file=sys.stderr)
        return 2 if isinstance(error, (UserError, OSError)) else 1
    except KeyboardInterrupt:
        print("symprune: interrupted; what was finished is kept", file=sys.stderr)
        return 130


def _prune(args: argparse.Namespace) -> int:
    from symprune.data import calibration_windows, digest
    from symprune.models import fingerprint, load_model, load_tokenizer, quiet_transformers
    from symprune.prune import PROPAGATE, prune
    from symprune.recipe import Recipe, parse_method, parse_pattern
    from symprune.refine import REFINERS
    from symprune.results import Record, provenance
    from symprune.scores import SCORES

    refine = parse_method("refinement", args.refine, REFINERS) if args.refine != "none" else None
    recipe = Recipe(parse_method("score", args.score, SCORES), parse_pattern(args.pattern, args.sparsity, args.group), refine)
    if args.propagate not in PROPAGATE:
        raise unknown("propagate", args.propagate, PROPAGATE)
    out = Path(args.out)
    disk = next(folder for folder in out.absolute().parents if folder.exists())  # where the folders to come will be made
    if os.path.lexists(out):
        raise UserError(f"{out} exists already: choose another --out, or remove it")
    if not disk.is_dir() or not os.access(disk, os.W_OK):
        raise UserError(f"cannot make folders in {disk}: choose another --out")
    tokenizer = load_tokenizer(args.model)
    windows = calibration_windows(args.corpus, tokenizer, args.n_calib, args.seq_len, args.seed) if recipe.uses else None
    weights = fingerprint(args.model)
    model = load_model(args.model, args.dtype, args.device)
    needed = sum(p.numel() * p.element_size() for p in model.parameters())
    if needed > shutil.disk_usage(disk).free:
        raise UserError(f"{out} needs {needed / 1e9:.1f} GB of disk, more than is free there: choose another --out")
    report = prune(model, windows, recipe, args.propagate, batch_size=args.batch_size, progress=_progress(args))
    calibration = windows is not None and {
        "corpus": args.corpus,
        "n_calib": args.n_calib,
        "seq_len": args.seq_len,
        "seed": args.seed,
        "propagate": args.propagate,
        "windows": digest(windows),
    }
    run = {
        "model": {"name": args.model, "weights": weights, "dtype": args.dtype},
        "recipe": recipe.to_dict(),
        "calibration": calibration or None,
    }
    metrics = {"sparsity": report.sparsity, "linears": {x.name: x.sparsity for x in report.linears}, "seconds": report.seconds}
    # Written beside its final name, then renamed: a killed save never looks like a finished one.
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as work:
        folder = Path(work) / out.name
        with quiet_transformers():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        (folder / "symprune.json").write_text(Record(run, metrics, provenance()).to_json())
        os.rename(folder, out)
    note = "zeros are stored densely: the files are not smaller, and inference is not faster"
    _say(args, {"out": str(out), **metrics, "note": note}, f"{report}\nsaved to {out}; {note}")
    return 0


def _eval(args: argparse.Namespace) -> int:
    from symprune.data import digest, evaluation_windows
    from symprune.evaluate import perplexity
    from symprune.models import load_model, load_tokenizer

    windows = evaluation_windows(args.corpus, load_tokenizer(args.model), args.seq_len, args.n_eval, args.split)
    value = perplexity(load_model(args.model, args.dtype, args.device), windows, batch_size=args.batch_size, progress=_progress(args))
    stderr = value.stderr if value.n_windows > 1 else None
    facts = {"perplexity": float(value), "stderr": stderr, "tokens": value.n_tokens, "windows": value.n_windows, "digest": digest(windows)}
    _say(args, facts, f"perplexity {value!r} on {args.corpus} ({args.split})")
    return 0


def _reproduce(args: argparse.Namespace) -> int:
    from symprune.reproduce import reproduce

    report = reproduce(args.notebooks, args.profile, show=not args.json, again=args.again)
    _say(args, {"report": str(report)}, f"report: {report}")
    return 0


def _render(args: argparse.Namespace) -> int:
    from symprune.reproduce import render

    written = [str(path) for path in render(args.notebooks)]
    _say(args, {"written": written}, "\n".join(written))
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from symprune.doctor import examine

    findings = examine()
    width = max(len(finding.what) for finding in findings)
    lines = [f"{'ok ' if finding.ok else '-- '} {finding.what:<{width}}  {finding.found}" for finding in findings]
    _say(args, {finding.what: {"ok": finding.ok, "found": finding.found} for finding in findings}, "\n".join(lines))
    return 0


def _say(args: argparse.Namespace, facts: dict, text: str) -> None:
    print(json.dumps(facts) if args.json else text)


def _progress(args: argparse.Namespace) -> bool:
    return not args.json and sys.stderr.isatty()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        print(f"symprune: error: {message} (see `{self.prog} --help`)", file=sys.stderr)
        raise SystemExit(2)


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="symprune",
        description="Prune language models after training, and reproduce 'Symmetric Pruning of Large Language Models'.",
        epilog="MODEL is `embedded` (SmolLM2-135M, installed with the package), a folder written by save_pretrained, or a hub id.",
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON object, no progress bars")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    model = argparse.ArgumentParser(add_help=False)
    model.add_argument("model", metavar="MODEL", help="embedded, a local folder, or a hub id")
    model.add_argument("--corpus", default="embedded", help="embedded, wikitext2, c4, or a .txt or .jsonl file (default: %(default)s)")
    model.add_argument("--seq-len", type=_at_least_one, default=512, help="tokens per window (default: %(default)s; the papers use 2048)")
    model.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16 (default: %(default)s)")
    model.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: %(default)s)")
    model.add_argument("--batch-size", type=_at_least_one, default=1, help="windows per forward pass (default: %(default)s)")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    p = commands.add_parser(
        "prune",
        parents=[model, common],
        help="prune a model and save it",
        description="Prune every linear inside the decoder layers and save the model with its record.",
        epilog="example: symprune prune embedded --score 'ria(alpha=1.0)' --sparsity 0.6 --out pruned/",
    )
    p.add_argument("--score", default="ria", help="a score, with hyperparameters if wanted: wanda, 'ria(alpha=1.0)' (default: %(default)s)")
    p.add_argument("--pattern", default="unstructured", help="unstructured, or n:m to keep n of every m: 2:4, 4:8 (default: %(default)s)")
    p.add_argument("--sparsity", type=float, default=0.5, help="fraction removed, for unstructured (default: %(default)s)")
    p.add_argument("--group", default="output", help="output: rows compete on their own; layer: the whole matrix (default: %(default)s)")
    p.add_argument("--refine", default="none", help="a training-free refinement of the mask: dsnot, r2dsnot (default: %(default)s)")
    p.add_argument("--propagate", default="pruned", help="pruned: calibrate on what pruned layers send on; dense (default: %(default)s)")
    p.add_argument("--n-calib", type=_at_least_one, default=16, help="calibration windows (default: %(default)s; the papers use 128)")
    p.add_argument("--seed", type=int, default=0, help="seed of the calibration windows (default: %(default)s)")
    p.add_argument("--out", required=True, help="folder to write; must not exist")
    p.set_defaults(run=_prune)

    p = commands.add_parser(
        "eval",
        parents=[model, common],
        help="perplexity of a model",
        description="Perplexity by the pruning papers' convention.",
        epilog="example: symprune eval pruned/ --n-eval 16",
    )
    p.add_argument("--split", default="evaluation", help="calibration, validation or evaluation (default: %(default)s)")
    p.add_argument("--n-eval", type=_at_least_one, default=None, help="windows, spread evenly over the split (default: all)")
    p.set_defaults(run=_eval)

    p = commands.add_parser(
        "reproduce",
        parents=[common],
        help="execute the notebooks and write every table and figure",
        description="Execute the notebooks under a profile (papermill_params/PROFILE.yaml); what is on record is not measured again.",
        epilog="example: symprune reproduce 02 --profile cpu",
    )
    p.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="names or numbers (default: all)")
    p.add_argument("--profile", default="cpu", help="a file in papermill_params/ (default: %(default)s)")
    p.add_argument("--again", action="store_true", help="execute also what would do again what it did (records are still reused)")
    p.set_defaults(run=_reproduce)

    p = commands.add_parser(
        "render",
        parents=[common],
        help="execute notebooks/*.py into their .ipynb pairs",
        description="Execute the sources at their default (smoke) parameters into the committed .ipynb pairs.",
    )
    p.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="names or numbers (default: all)")
    p.set_defaults(run=_render)

    p = commands.add_parser("doctor", parents=[common], help="what this machine can run", description=f"Checks under {paths.ROOT}.")
    p.set_defaults(run=_doctor)
    return parser
