"""What each command does: the parsed arguments in; facts for --json, and text for people, out."""

import argparse
import contextlib
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from symprune import models
from symprune.base import progress
from symprune.base.errors import UserError, unknown
from symprune.base.files import require_disk, require_free, whole_folder
from symprune.base.records import Record, provenance
from symprune.cli import doctor
from symprune.measure import executors
from symprune.measure.perplexity import perplexity
from symprune.measure.zero_shot import zero_shot
from symprune.methods.recipe import Recipe, parse_method, parse_pattern
from symprune.methods.refine import REFINERS
from symprune.methods.scores import SCORES
from symprune.paper import notebooks, reproduce, verify
from symprune.pruning import mask_files, stats_files
from symprune.pruning.calibrate import OUTPUT_SIDES, accumulate
from symprune.pruning.cost import batch_size_of
from symprune.pruning.prune import PROPAGATE, prune
from symprune.pruning.report import PruneReport
from symprune.pruning.stream import StreamedRun, Streaming
from symprune.text import corpora, fetch, tasks

_NOTE = "zeros are stored densely: the files are not smaller, and inference is not faster"
_RECORD = "symprune.json"  # in a pruned model's folder, beside its weights and masks


@dataclass(frozen=True)
class Answer:
    """What a command found or made: plain data, and the same in words."""

    facts: dict[str, Any]
    text: str


def run_prune(args: argparse.Namespace) -> Answer:
    """Prune a model, in memory or streamed, and save it, its masks, or both."""
    refine = parse_method("refinement", args.refine, REFINERS) if args.refine != "none" else None
    recipe = Recipe(
        parse_method("score", args.score, SCORES),
        parse_pattern(args.pattern, args.sparsity, args.group),
        refine,
    )
    propagate = args.propagate or ("dense" if args.statistics else "pruned")
    if propagate not in PROPAGATE:
        raise unknown("propagate", propagate, PROPAGATE)
    _require_targets(args)
    tokenizer = models.load_tokenizer(args.model)
    about = _about_model(args)
    calibration, about_calibration = _calibration(args, recipe, propagate, tokenizer, about["weights"])
    run = {"model": about, "recipe": recipe.to_dict(), "calibration": about_calibration}
    how = _prune_streamed if args.stream else _prune_in_memory
    report, record = how(args, tokenizer, calibration, recipe, propagate, run)
    saved = " and ".join(filter(None, [args.out, args.masks]))
    facts = {"out": args.out, "masks": args.masks, **record.metrics, "note": _NOTE}
    return Answer(facts, f"{report}\nsaved to {saved}; {_NOTE}")


def _require_targets(args: argparse.Namespace) -> None:
    if args.stream and (not args.out or args.masks or args.work or args.layers_path):
        raise UserError("--stream needs --out, and goes without --masks, --work and --layers-path")
    if args.memory is not None and not args.stream:
        raise UserError("--memory is a budget for --stream: give both")
    if not args.out and not args.masks:
        raise UserError(
            "nothing to write: give --out DIR for the pruned model, --masks FILE for its masks alone, or both"
        )
    for option, target in [("--out", args.out), ("--masks", args.masks)]:
        if target:
            require_free(Path(target), option)


def _calibration(
    args: argparse.Namespace, recipe: Recipe, propagate: str, tokenizer, weights: str
) -> tuple[Any, dict | None]:
    """Statistics or windows for the recipe (None: it reads neither), and what a record says of them."""
    if args.statistics:
        found = stats_files.load(args.statistics)
        _require_statistics_of(found, args, recipe, weights)
        return found.statistics, {"propagate": "dense", "asked": found.asked, "parts": found.parts}
    if not recipe.uses:
        return None, None
    windows = _calibration_windows(args, tokenizer)
    asked = {name: getattr(args, name) for name in ("corpus", "n_calib", "seq_len", "seed")}
    return windows, {**asked, "propagate": propagate, "windows": corpora.digest(windows)}


def _require_statistics_of(
    found: stats_files.Calibration, args: argparse.Namespace, recipe: Recipe, weights: str
) -> None:
    file, asked = args.statistics, found.asked
    if asked["weights"] != weights or asked["dtype"] != args.dtype:
        raise UserError(
            f"{file} was gathered on other weights, or in another dtype ({asked['dtype']}): give that model"
            " and dtype"
        )
    if lacking := sorted((recipe.uses & stats_files.OPTIONAL) - set(asked["gathered"])):
        raise UserError(
            f"{recipe.label} reads {', '.join(lacking)}, which {file} lacks: calibrate with --gather"
            f" {','.join(lacking)}"
        )


def _prune_in_memory(
    args: argparse.Namespace, tokenizer, calibration: Any, recipe: Recipe, propagate: str, run: dict
) -> tuple[PruneReport, Record]:
    model = _load_model(args)
    if args.out:
        require_disk(Path(args.out), _bytes_of(model))
    options = {"batch_size": args.batch_size, "work": args.work}
    with _progress(args):
        report = prune(model, calibration, recipe, propagate, keep_masks=True, **options)
    record = _record(run, report)
    if args.masks:
        Path(args.masks).parent.mkdir(parents=True, exist_ok=True)
        mask_files.save_masks(args.masks, report.masks, model, record)
    if args.out:
        _save_model(Path(args.out), model, tokenizer, report.masks, record)
    return report, record


def _prune_streamed(
    args: argparse.Namespace, tokenizer, calibration: Any, recipe: Recipe, propagate: str, run: dict
) -> tuple[PruneReport, Record]:
    how = Streaming(args.dtype, args.device, args.batch_size, args.memory, keep_masks=True)
    streamed = StreamedRun(args.model, calibration, recipe, propagate, how)
    _tell(args, streamed.plan)
    with _progress(args), streamed.into(args.out) as (folder, report):
        record = _record(run, report)
        streamed.masks.save(folder / models.MASKS, record)
        _save_beside(folder, tokenizer, record)
    return report, record


def run_calibrate(args: argparse.Namespace) -> Answer:
    """Gather the statistics of a dense model into a file."""
    require_free(Path(args.out), "--out")
    uses = frozenset(filter(None, args.gather.split(",")))
    for name in uses - stats_files.OPTIONAL:
        raise unknown("statistic to gather", name, stats_files.OPTIONAL)
    if args.output_side not in OUTPUT_SIDES:
        raise unknown("output side", args.output_side, OUTPUT_SIDES)
    windows, part = _shard(args, _calibration_windows(args, models.load_tokenizer(args.model)))
    model = _load_model(args)
    how = {"output_side": args.output_side, "batch_size": batch_size_of(args.batch_size, model, windows)}
    where = {"dtype": args.dtype, "device": args.device, "seq_len": args.seq_len}
    asked = stats_files.asked(models.fingerprint(args.model), uses, **where, **how)
    with _progress(args):
        sums = accumulate(model, windows, uses, **how)
    return _save_statistics(args, stats_files.Calibration(sums, asked, [part]))


def _shard(args: argparse.Namespace, windows) -> tuple[Any, dict]:
    """The windows to gather on, and what their file says of them."""
    of: dict = {}
    if args.shard:
        i, n = args.shard
        if n > len(windows):
            raise UserError(
                f"--shard {i}/{n}: there are only {len(windows)} windows to share out (--n-calib)"
            )
        of = {"shard": f"{i}/{n}", "of": corpora.digest(windows)}
        windows = windows.tensor_split(n)[i - 1].clone()
    return windows, {"windows": corpora.digest(windows), "n_windows": len(windows), **of}


def run_merge(args: argparse.Namespace) -> Answer:
    """Merge statistics gathered on different windows."""
    require_free(Path(args.out), "--out")
    return _save_statistics(args, stats_files.merge([stats_files.load(file) for file in args.files]))


def _save_statistics(args: argparse.Namespace, calibration: stats_files.Calibration) -> Answer:
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    stats_files.save(out, calibration)
    n_windows, missing = sum(part["n_windows"] for part in calibration.parts), calibration.missing_shards
    n_linears = len(calibration.sums.shapes)
    facts = {
        "out": args.out,
        "windows": n_windows,
        "linears": n_linears,
        "missing_shards": missing,
    }
    lacking = f"; shards {', '.join(missing)} are still missing" if missing else ""
    return Answer(facts, f"statistics of {n_linears} linears on {n_windows} windows saved to {out}{lacking}")


def run_apply(args: argparse.Namespace) -> Answer:
    """Apply masks to a model and save it."""
    out = Path(args.out)
    require_free(out, "--out")
    found = mask_files.load_masks(args.masks)
    tokenizer = models.load_tokenizer(args.model)
    about = _about_model(args)
    model = _load_model(args)
    require_disk(out, _bytes_of(model))
    differing = mask_files.apply_masks(model, found, args.other_weights)
    record = found.record
    if record is None or differing:
        run = {
            "model": about,
            "recipe": record and record.run.get("recipe"),
            "masks_of": record and record.run,
        }
        record = Record(run, {"sparsity": found.sparsity, "other_weights": differing}, provenance())
    _save_model(out, model, tokenizer, found.masks, record)
    other = (
        f"; {len(differing)} of {len(found.masks)} linears had other weights than when the masks were made"
        if differing
        else ""
    )
    facts = {"out": args.out, "sparsity": found.sparsity, "other_weights": differing, "note": _NOTE}
    text = (
        f"{found.sparsity:.2%} of the weights of {len(found.masks)} linears removed{other}\nsaved to {out};"
        f" {_NOTE}"
    )
    return Answer(facts, text)


def run_verify(args: argparse.Namespace) -> Answer:
    """Check masks against their pattern, and a model against its masks."""
    found = mask_files.load_masks(args.masks)
    applied = Path(args.masks).is_dir() and args.model is None
    name = args.masks if applied else args.model
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
        for name, x in {**facts["linears"], "total": facts}.items()
    ]
    return Answer(facts, "\n".join([f"{'linear':<{width}}  jaccard  equal", *lines]))


def run_eval(args: argparse.Namespace) -> Answer:
    """Perplexity of a model, or with --tasks its zero-shot accuracy."""
    return _accuracy(args) if args.tasks else _perplexity(args)


def _perplexity(args: argparse.Namespace) -> Answer:
    windows = corpora.evaluation_windows(
        args.corpus, models.load_tokenizer(args.model), args.seq_len, args.n_eval, args.split
    )
    model = _load_model(args)
    with _progress(args):
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
    model, tokenizer = _load_model(args), models.load_tokenizer(args.model)
    with _progress(args):
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
    done = fetch.fetch(Path(args.out), args.names or fetch.NAMES, lambda line: _tell(args, line))
    text = (
        f"{len(done.written)} files written, {len(done.kept)} were there: set"
        f" SYMPRUNE_DATA={Path(args.out).resolve()}"
    )
    return Answer({"out": args.out, "written": done.written, "kept": done.kept}, text)


def run_reproduce(args: argparse.Namespace) -> Answer:
    """Execute the notebooks under a profile, or only measure a shard of what they ask."""
    if args.shard:
        if args.executor or args.again:
            raise UserError("--shard only measures, in this process: it goes without --executor and --again")
        records = reproduce.measure_shard(
            args.notebooks, args.profile, executors.Shard(*args.shard), show=not args.json
        )
        return Answer(
            {"records": str(records)}, f"all is on record in {records}: `symprune reproduce` draws it"
        )
    executor = parse_method("executor", args.executor, {"ray": executors.Ray}) if args.executor else None
    if args.address is not None:
        if executor is None:
            raise UserError("--address is where a Ray cluster is: give --executor ray with it")
        executor = replace(executor, address=args.address)
    report = reproduce.reproduce(
        args.notebooks, args.profile, show=not args.json, again=args.again, executor=executor
    )
    return Answer({"report": str(report)}, f"report: {report}")


def run_verify_report(args: argparse.Namespace) -> Answer:
    """Compare what is published with its records; raises RuntimeError that names every difference."""
    if findings := verify.verify_report(args.profile, args.notebooks, show=not args.json):
        raise RuntimeError(
            f"{len(findings)} of the published files are not what the records say: {'; '.join(findings)}"
        )
    return Answer(
        {"agrees": True}, f"every table, figure and verdict of {args.profile} is what its records say"
    )


def run_render(args: argparse.Namespace) -> Answer:
    """Execute the notebooks' sources into their pairs."""
    written = [str(path) for path in notebooks.render(args.notebooks)]
    return Answer({"written": written}, "\n".join(written))


def run_doctor(args: argparse.Namespace) -> Answer:
    """What this machine can run."""
    findings = doctor.examine()
    width = max(len(finding.what) for finding in findings)
    lines = [
        f"{'ok ' if finding.ok else '-- '} {finding.what:<{width}}  {finding.found}" for finding in findings
    ]
    return Answer(
        {finding.what: {"ok": finding.ok, "found": finding.found} for finding in findings}, "\n".join(lines)
    )


def _about_model(args: argparse.Namespace) -> dict[str, str]:
    return {"name": args.model, "weights": models.fingerprint(args.model), "dtype": args.dtype}


def _load_model(args: argparse.Namespace):
    return models.load_model(args.model, args.dtype, args.device, getattr(args, "layers_path", None))


def _calibration_windows(args: argparse.Namespace, tokenizer):
    return corpora.calibration_windows(args.corpus, tokenizer, args.n_calib, args.seq_len, args.seed)


def _bytes_of(model) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def _record(run: dict, report: PruneReport) -> Record:
    metrics = {
        "sparsity": report.sparsity,
        "linears": {x.name: x.sparsity for x in report.linears},
        "seconds": report.seconds,
    }
    return Record(run, metrics | ({"unreached": report.unreached} if report.unreached else {}), provenance())


def _save_model(out: Path, model, tokenizer, masks: dict, record: Record) -> None:
    with whole_folder(out) as folder:
        with models.quiet_transformers():
            model.save_pretrained(folder)
        mask_files.save_masks(folder / models.MASKS, masks, model, record)
        _save_beside(folder, tokenizer, record)


def _save_beside(folder: Path, tokenizer, record: Record) -> None:
    with models.quiet_transformers():
        tokenizer.save_pretrained(folder)
    (folder / _RECORD).write_text(record.to_json())


def _tell(args: argparse.Namespace, news: object) -> None:
    """What happens meanwhile, for whoever looks on."""
    if not args.json:
        print(news, file=sys.stderr, flush=True)


def _progress(args: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    """Bars on a terminal, for people."""
    return progress.showing(not args.json and sys.stderr.isatty())
