"""The `symprune` command: prune, eval, calibrate, merge, apply, verify, diff, fetch, reproduce, render, doctor."""

import argparse
import contextlib
import json
import os
import re
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
    from symprune.mask_files import save_masks
    from symprune.models import fingerprint, load_model, load_tokenizer
    from symprune.prune import PROPAGATE, prune
    from symprune.recipe import Recipe, parse_method, parse_pattern
    from symprune.refine import REFINERS
    from symprune.results import Record, provenance
    from symprune.scores import SCORES

    refine = parse_method("refinement", args.refine, REFINERS) if args.refine != "none" else None
    recipe = Recipe(parse_method("score", args.score, SCORES), parse_pattern(args.pattern, args.sparsity, args.group), refine)
    propagate = args.propagate or ("dense" if args.statistics else "pruned")
    if propagate not in PROPAGATE:
        raise unknown("propagate", propagate, PROPAGATE)
    if args.stream and (not args.out or args.masks or args.work or args.layers_path):
        raise UserError("--stream needs --out, and goes without --masks, --work and --layers-path")
    if args.memory is not None and not args.stream:
        raise UserError("--memory is a budget for --stream: give both")
    if not args.out and not args.masks:
        raise UserError("nothing to write: give --out DIR for the pruned model, --masks FILE for its masks alone, or both")
    for option, target in [("--out", args.out), ("--masks", args.masks)]:
        if target:
            _require_free(Path(target), option)
    tokenizer = load_tokenizer(args.model)
    weights = fingerprint(args.model)
    if args.statistics:
        windows, calibration = _read_statistics(args.statistics, weights, args.dtype, recipe)
    else:
        windows = calibration_windows(args.corpus, tokenizer, args.n_calib, args.seq_len, args.seed) if recipe.uses else None
        calibration = windows is not None and {
            "corpus": args.corpus,
            "n_calib": args.n_calib,
            "seq_len": args.seq_len,
            "seed": args.seed,
            "propagate": propagate,
            "windows": digest(windows),
        }
    run = {
        "model": {"name": args.model, "weights": weights, "dtype": args.dtype},
        "recipe": recipe.to_dict(),
        "calibration": calibration or None,
    }

    def recorded(report) -> Record:
        metrics = {"sparsity": report.sparsity, "linears": {x.name: x.sparsity for x in report.linears}, "seconds": report.seconds}
        return Record(run, metrics | ({"unreached": report.unreached} if report.unreached else {}), provenance())

    if args.stream:
        from symprune.stream import prune_checkpoint

        def finishing(folder: Path, report) -> None:
            tokenizer.save_pretrained(folder)
            (folder / "symprune.json").write_text(recorded(report).to_json())

        options = {"dtype": args.dtype, "device": args.device, "batch_size": args.batch_size, "memory": args.memory}
        planned = lambda plan: None if args.json else print(plan, file=sys.stderr, flush=True)  # noqa: E731
        report = prune_checkpoint(
            args.model, args.out, windows, recipe, propagate, **options, planned=planned, finishing=finishing, progress=_progress(args)
        )
        _say(args, {"out": args.out, **recorded(report).metrics, "note": _NOTE}, f"{report}\nsaved to {args.out}; {_NOTE}")
        return 0
    model = load_model(args.model, args.dtype, args.device, args.layers_path)
    if args.out:
        _require_disk(model, Path(args.out))
    options = {"batch_size": args.batch_size, "work": args.work, "progress": _progress(args)}
    report = prune(model, windows, recipe, propagate, keep_masks=True, **options)
    record = recorded(report)
    metrics = record.metrics
    if args.masks:
        Path(args.masks).parent.mkdir(parents=True, exist_ok=True)
        save_masks(args.masks, report.masks, model, record)
    if args.out:
        _save_model(Path(args.out), model, tokenizer, report.masks, record)
    saved = " and ".join(filter(None, [args.out, args.masks]))
    _say(args, {"out": args.out, "masks": args.masks, **metrics, "note": _NOTE}, f"{report}\nsaved to {saved}; {_NOTE}")
    return 0


def _calibrate(args: argparse.Namespace) -> int:
    from symprune import stats_files
    from symprune.calibrate import OUTPUT_SIDES, accumulate
    from symprune.data import calibration_windows, digest
    from symprune.models import fingerprint, load_model, load_tokenizer

    out = Path(args.out)
    _require_free(out, "--out")
    uses = frozenset(filter(None, args.gather.split(",")))
    for name in uses - stats_files.OPTIONAL:
        raise unknown("statistic to gather", name, stats_files.OPTIONAL)
    if args.output_side not in OUTPUT_SIDES:
        raise unknown("output side", args.output_side, OUTPUT_SIDES)
    tokenizer = load_tokenizer(args.model)
    windows = calibration_windows(args.corpus, tokenizer, args.n_calib, args.seq_len, args.seed)
    part: dict = {}
    if args.shard:
        i, n = args.shard
        if n > len(windows):
            raise UserError(f"--shard {i}/{n}: there are only {len(windows)} windows to share out (--n-calib)")
        part = {"shard": f"{i}/{n}", "of": digest(windows)}
        windows = windows.tensor_split(n)[i - 1].clone()
    part = {"windows": digest(windows), "n_windows": len(windows), **part}
    how = {"output_side": args.output_side, "batch_size": args.batch_size}
    asked = stats_files.asked(fingerprint(args.model), uses, dtype=args.dtype, device=args.device, seq_len=args.seq_len, **how)
    model = load_model(args.model, args.dtype, args.device, args.layers_path)
    sums = accumulate(model, windows, uses, progress=_progress(args), **how)
    return _save_statistics(args, out, stats_files.Calibration(sums, asked, [part]))


def _merge(args: argparse.Namespace) -> int:
    from symprune import stats_files

    out = Path(args.out)
    _require_free(out, "--out")
    return _save_statistics(args, out, stats_files.merge([stats_files.load(file) for file in args.files]))


def _save_statistics(args: argparse.Namespace, out: Path, calibration) -> int:
    from symprune.stats_files import save

    out.parent.mkdir(parents=True, exist_ok=True)
    save(out, calibration)
    n_windows, missing = sum(part["n_windows"] for part in calibration.parts), calibration.missing_shards
    facts = {"out": args.out, "windows": n_windows, "linears": len(calibration.sums), "missing_shards": missing}
    lacking = f"; shards {', '.join(missing)} are still missing" if missing else ""
    _say(args, facts, f"statistics of {len(calibration.sums)} linears on {n_windows} windows saved to {out}{lacking}")
    return 0


def _read_statistics(file: str, weights: str, dtype: str, recipe) -> tuple[dict, dict]:
    """The statistics in a file, if they are of this model and hold what the recipe reads, and what a record says of them."""
    from symprune.stats_files import OPTIONAL, load

    found = load(file)
    if found.asked["weights"] != weights or found.asked["dtype"] != dtype:
        raise UserError(f"{file} was gathered on other weights, or in another dtype ({found.asked['dtype']}): give that model and dtype")
    if lacking := sorted((recipe.uses & OPTIONAL) - set(found.asked["gathered"])):
        raise UserError(f"{recipe.label} reads {', '.join(lacking)}, which {file} lacks: calibrate with --gather {','.join(lacking)}")
    return found.statistics, {"propagate": "dense", "asked": found.asked, "parts": found.parts}


def _apply(args: argparse.Namespace) -> int:
    from symprune.mask_files import apply_masks, load_masks
    from symprune.models import fingerprint, load_model, load_tokenizer
    from symprune.results import Record, provenance

    out = Path(args.out)
    _require_free(out, "--out")
    found = load_masks(args.masks)
    tokenizer = load_tokenizer(args.model)
    weights = fingerprint(args.model)
    model = load_model(args.model, args.dtype, args.device, args.layers_path)
    _require_disk(model, out)
    differing = apply_masks(model, found, args.other_weights)
    record = found.record
    if record is None or differing:
        about = {"name": args.model, "weights": weights, "dtype": args.dtype}
        run = {"model": about, "recipe": record and record.run.get("recipe"), "masks_of": record and record.run}
        record = Record(run, {"sparsity": found.sparsity, "other_weights": differing}, provenance())
    _save_model(out, model, tokenizer, found.masks, record)
    other = f"; {len(differing)} of {len(found.masks)} linears had other weights than when the masks were made" if differing else ""
    facts = {"out": args.out, "sparsity": found.sparsity, "other_weights": differing, "note": _NOTE}
    _say(args, facts, f"{found.sparsity:.2%} of the weights of {len(found.masks)} linears removed{other}\nsaved to {out}; {_NOTE}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from symprune.mask_files import load_masks, verify_masks
    from symprune.models import load_model

    found = load_masks(args.masks)
    applied = Path(args.masks).is_dir() and args.model is None
    name = args.masks if applied else args.model
    model = load_model(name, layers_path=args.layers_path) if name is not None else None
    facts = verify_masks(found, model, applied)
    removed = f"{facts['sparsity']:.2%} of {facts['weights']} weights in {facts['linears']} linears removed"
    _say(args, facts, f"{removed} ({facts['pattern'] or 'pattern not on record'})\nchecked: {', '.join(facts['checked']) or 'checksum'}")
    return 0


def _diff(args: argparse.Namespace) -> int:
    from symprune.mask_files import diff_masks, load_masks

    facts = diff_masks(load_masks(args.a), load_masks(args.b))
    width = max(map(len, facts["linears"]))
    lines = [f"{name:<{width}}  {x['jaccard']:.4f}  {x['equal']:.4f}" for name, x in {**facts["linears"], "total": facts}.items()]
    _say(args, facts, "\n".join([f"{'linear':<{width}}  jaccard  equal", *lines]))
    return 0


def _eval(args: argparse.Namespace) -> int:
    from symprune.data import digest, evaluation_windows
    from symprune.evaluate import perplexity
    from symprune.models import load_model, load_tokenizer

    if args.tasks:
        return _eval_tasks(args)
    windows = evaluation_windows(args.corpus, load_tokenizer(args.model), args.seq_len, args.n_eval, args.split)
    value = perplexity(load_model(args.model, args.dtype, args.device), windows, batch_size=args.batch_size, progress=_progress(args))
    stderr = value.stderr if value.n_windows > 1 else None
    facts = {"perplexity": float(value), "stderr": stderr, "tokens": value.n_tokens, "windows": value.n_windows, "digest": digest(windows)}
    _say(args, facts, f"perplexity {value!r} on {args.corpus} ({args.split})")
    return 0


def _eval_tasks(args: argparse.Namespace) -> int:
    from symprune.models import load_model, load_tokenizer
    from symprune.tasks import load_tasks
    from symprune.zero_shot import zero_shot

    tasks = load_tasks(args.tasks.split(","))  # before the model: a wrong name costs no minutes
    model, tokenizer = load_model(args.model, args.dtype, args.device), load_tokenizer(args.model)
    result = zero_shot(model, tokenizer, tasks, args.limit, args.batch_size, progress=_progress(args))
    columns = ("acc", "stderr", "n", "version", "acc_norm")
    scores = {name: {key: getattr(score, key) for key in columns} for name, score in result.scores.items()}
    for score in scores.values():
        score["stderr"] = score["stderr"] if score["n"] > 1 else None
    _say(args, {"mean": result.mean, "tasks": scores}, "\n".join([*map(str, result.scores.values()), f"mean {result.mean:.4f}"]))
    return 0


def _fetch(args: argparse.Namespace) -> int:
    from symprune.fetch import NAMES, fetch

    done = fetch(Path(args.out), args.names or NAMES, lambda line: None if args.json else print(line, file=sys.stderr, flush=True))
    text = f"{len(done.written)} files written, {len(done.kept)} were there: set SYMPRUNE_DATA={Path(args.out).resolve()}"
    _say(args, {"out": args.out, "written": done.written, "kept": done.kept}, text)
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


_NOTE = "zeros are stored densely: the files are not smaller, and inference is not faster"


def _require_free(target: Path, option: str) -> None:
    disk = next(folder for folder in target.absolute().parents if folder.exists())  # where the folders to come will be made
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.lstat(target)  # a name that is too long is refused here, not after hours
        raise UserError(f"{target} exists already: choose another {option}, or remove it")
    if not disk.is_dir() or not os.access(disk, os.W_OK):
        raise UserError(f"cannot make folders in {disk}: choose another {option}")


def _require_disk(model, out: Path) -> None:
    disk = next(folder for folder in out.absolute().parents if folder.exists())
    needed = sum(p.numel() * p.element_size() for p in model.parameters())
    if needed > shutil.disk_usage(disk).free:
        raise UserError(f"{out} needs {needed / 1e9:.1f} GB of disk, more than is free there: choose another --out")


def _save_model(out: Path, model, tokenizer, masks: dict, record) -> None:
    from symprune.mask_files import save_masks
    from symprune.models import MASKS, quiet_transformers

    # Written beside its final name, then renamed: a killed save never looks like a finished one.
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as work:
        folder = Path(work) / out.name
        with quiet_transformers():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        save_masks(folder / MASKS, masks, model, record)
        (folder / "symprune.json").write_text(record.to_json())
        os.rename(folder, out)


def _say(args: argparse.Namespace, facts: dict, text: str) -> None:
    print(json.dumps(facts) if args.json else text)


def _progress(args: argparse.Namespace) -> bool:
    return not args.json and sys.stderr.isatty()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        print(f"symprune: error: {' '.join(message.split())} (see `{self.prog} --help`)", file=sys.stderr)
        raise SystemExit(2)


def _shard(text: str) -> tuple[int, int]:
    i, slash, n = text.partition("/")
    if not (slash and i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise argparse.ArgumentTypeError(f"must be i/n with 1 <= i <= n, such as 2/4, not {text!r}")
    return int(i), int(n)


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(GiB|MiB|GB|MB)", text, re.ASCII)
    if not found:
        raise argparse.ArgumentTypeError(f"must be a size such as 6GiB or 800MB, not {text!r}")
    return int(float(found[1]) * {"GiB": 2**30, "MiB": 2**20, "GB": 10**9, "MB": 10**6}[found[2]])


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
    path = argparse.ArgumentParser(add_help=False)
    path.add_argument("--layers-path", metavar="PATH", help="list of decoder layers, where it is not found: model.decoder.blocks")
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument("model", metavar="MODEL", help="embedded, a local folder, or a hub id")
    place.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16 (default: %(default)s)")
    place.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: %(default)s)")
    model = argparse.ArgumentParser(add_help=False, parents=[place])
    model.add_argument("--corpus", default="embedded", help="embedded, wikitext2, c4, or a .txt or .jsonl file (default: %(default)s)")
    model.add_argument("--seq-len", type=_at_least_one, default=512, help="tokens per window (default: %(default)s; the papers use 2048)")
    model.add_argument("--batch-size", type=_at_least_one, default=1, help="windows per forward pass (default: %(default)s)")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    p = commands.add_parser(
        "prune",
        parents=[model, path, common],
        help="prune a model and save it",
        description="Prune every linear inside the decoder layers and save the model with its record.",
        epilog="example: symprune prune embedded --score 'ria(alpha=1.0)' --sparsity 0.6 --out pruned/",
    )
    p.add_argument("--score", default="ria", help="a score, with hyperparameters if wanted: wanda, 'ria(alpha=1.0)' (default: %(default)s)")
    p.add_argument("--pattern", default="unstructured", help="unstructured, or n:m to keep n of every m: 2:4, 4:8 (default: %(default)s)")
    p.add_argument("--sparsity", type=float, default=0.5, help="fraction removed, for unstructured (default: %(default)s)")
    p.add_argument("--group", default="output", help="output: rows compete on their own; layer: the whole matrix (default: %(default)s)")
    p.add_argument("--refine", default="none", help="a training-free refinement of the mask: dsnot, r2dsnot (default: %(default)s)")
    p.add_argument("--propagate", help="pruned: calibrate on what pruned layers send on; dense (default: pruned, with --statistics dense)")
    p.add_argument("--n-calib", type=_at_least_one, default=16, help="calibration windows (default: %(default)s; the papers use 128)")
    p.add_argument("--seed", type=int, default=0, help="seed of the calibration windows (default: %(default)s)")
    p.add_argument("--out", help="folder to write model, masks and record into; must not exist")
    p.add_argument("--masks", metavar="FILE", help="file to write the masks into, at one bit per weight; must not exist")
    p.add_argument("--work", metavar="DIR", help="folder that records finished decoder layers: the same command continues after a kill")
    p.add_argument("--statistics", metavar="FILE", help="statistics of `symprune calibrate` or `merge`, instead of windows")
    p.add_argument("--stream", action="store_true", help="keep one decoder layer in memory at a time, for models larger than memory")
    p.add_argument("--memory", type=_bytes, metavar="SIZE", help="with --stream: a budget such as 6GiB; hidden states may go to disk")
    p.set_defaults(run=_prune)

    p = commands.add_parser(
        "calibrate",
        parents=[model, path, common],
        help="gather the statistics of a dense model into a file",
        description="Sums over calibration windows, for any number of recipes (prune --statistics). They hold no text: docs/scaling.md.",
        epilog="example: symprune calibrate embedded --shard 1/2 --out part1.safetensors",
    )
    p.add_argument("--gather", default="", help="what is not gathered unless asked for: output_norm, gram, or both with a comma")
    p.add_argument("--output-side", default="activations", help="what output_norm is of: activations or gradients (default: %(default)s)")
    p.add_argument("--n-calib", type=_at_least_one, default=16, help="calibration windows (default: %(default)s; the papers use 128)")
    p.add_argument("--seed", type=int, default=0, help="seed of the calibration windows (default: %(default)s)")
    p.add_argument("--shard", type=_shard, metavar="I/N", help="gather on the I-th of N parts of the windows, to be merged")
    p.add_argument("--out", required=True, help="file to write; must not exist")
    p.set_defaults(run=_calibrate)

    p = commands.add_parser(
        "merge",
        parents=[common],
        help="merge statistics gathered on different windows",
        description="The statistics of all windows, as if gathered in one go; from other processes, machines or owners of text.",
        epilog="example: symprune merge part1.safetensors part2.safetensors --out all.safetensors",
    )
    p.add_argument("files", nargs="+", metavar="FILE", help="files of `symprune calibrate` or `merge`")
    p.add_argument("--out", required=True, help="file to write; must not exist")
    p.set_defaults(run=_merge)

    p = commands.add_parser(
        "apply",
        parents=[place, path, common],
        help="apply masks to the model they were made for, or to a fine-tuned one",
        description="Set the weights that a mask file removes to zero and save the model with its masks and its record.",
        epilog="example: symprune apply embedded masks.safetensors --out pruned/",
    )
    p.add_argument("masks", metavar="MASKS", help="a mask file, or the folder of a pruned model")
    p.add_argument(
        "--other-weights", action="store_true", help="apply although the weights differ: after fine-tuning, or merging an adapter"
    )
    p.add_argument("--out", required=True, help="folder to write; must not exist")
    p.set_defaults(run=_apply)

    p = commands.add_parser(
        "verify",
        parents=[path, common],
        help="check masks against their pattern, and a model against its masks",
        description="Count every group of a mask file; for a pruned model, also compare its weights with what was pruned.",
        epilog="example: symprune verify pruned/",
    )
    p.add_argument("masks", metavar="MASKS", help="a mask file, or the folder of a pruned model")
    p.add_argument("--model", metavar="MODEL", help="check that the masks were made for this model, dense or pruned")
    p.set_defaults(run=_verify)

    p = commands.add_parser(
        "diff",
        parents=[common],
        help="overlap of two mask files",
        description="Jaccard overlap of the kept weights, and the fraction of weights decided alike, by linear and in total.",
        epilog="example: symprune diff pruned/ masks.safetensors",
    )
    p.add_argument("a", metavar="A", help="a mask file, or the folder of a pruned model")
    p.add_argument("b", metavar="B", help="another over the same linears")
    p.set_defaults(run=_diff)

    p = commands.add_parser(
        "eval",
        parents=[model, common],
        help="perplexity of a model, or its zero-shot accuracy",
        description="Perplexity by the pruning papers' convention; with --tasks, accuracy on zero-shot tasks by lm-eval instead.",
        epilog="example: symprune eval pruned/ --n-eval 16; or: symprune eval pruned/ --tasks boolq,rte --batch-size 8",
    )
    p.add_argument("--split", default="evaluation", help="calibration, validation or evaluation (default: %(default)s)")
    p.add_argument("--n-eval", type=_at_least_one, default=None, help="windows, spread evenly over the split (default: all)")
    p.add_argument("--tasks", help="zero-shot tasks by name, with commas between: continuation, boolq, rte, hellaswag, ...")
    p.add_argument("--limit", type=_at_least_one, default=None, help="examples of each task, the first so many (default: all)")
    p.set_defaults(run=_eval)

    p = commands.add_parser(
        "fetch",
        parents=[common],
        help="copy benchmark data from the hub into a folder",
        description="Copy the data of tasks and corpora from the hub into a folder for SYMPRUNE_DATA; what is there already is kept.",
        epilog="example: symprune fetch --out data/ boolq rte wikitext2",
    )
    p.add_argument("names", nargs="*", metavar="NAME", help="tasks, and the corpora wikitext2 and c4 (default: all)")
    p.add_argument("--out", required=True, help="folder to write or to complete")
    p.set_defaults(run=_fetch)

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
