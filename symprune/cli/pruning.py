"""The commands that prune and calibrate: prune, calibrate, merge."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from symprune import models
from symprune.base.errors import UserError, unknown
from symprune.base.files import require_disk, require_free
from symprune.base.records import Record, provenance
from symprune.cli.common import (
    NOTE,
    Answer,
    about_model,
    bytes_of,
    load_model,
    progress_bars,
    save_beside,
    save_model,
    tell,
)
from symprune.cli.given import given, refuse
from symprune.methods.recipe import Recipe, method_label, parse_pattern
from symprune.methods.sketch import lacking
from symprune.models.precision import calibrating_in
from symprune.pruning import mask_files, stats_files
from symprune.pruning.calibrate import OUTPUT_SIDES, accumulate
from symprune.pruning.checks import PROPAGATE
from symprune.pruning.cost import batch_size_of
from symprune.pruning.prune import prune
from symprune.pruning.report import PruneReport
from symprune.pruning.sources import GRADIENTS, WindowsBeside
from symprune.pruning.stream import StreamedRun, Streaming
from symprune.text import corpora

_WINDOWS = ("corpus", "n_calib", "seq_len", "seed")  # what the calibration windows depend on


def run_prune(args: argparse.Namespace) -> Answer:
    """Prune a model, in memory or streamed, and save it, its masks, or both."""
    pattern = parse_pattern(args.pattern, args.sparsity, args.group)
    by_name = [*((glob, "dense") for glob in args.dense), *args.by_name]
    recipe = Recipe(args.score, pattern, args.refine, args.update, by_name)
    propagate = args.propagate or ("pruned" if args.statistics is None else "dense")
    if propagate not in PROPAGATE:
        raise unknown("propagate", propagate, PROPAGATE)
    _refuse_contradictions(args, recipe)
    _require_targets(args, recipe)
    tokenizer = models.load_tokenizer(args.model)
    about = about_model(args)
    calibration, about_calibration = _calibration(args, recipe, propagate, tokenizer, about["weights"])
    run = {"model": about, "recipe": recipe.to_dict(), "calibration": about_calibration}
    run |= {"calibration_dtype": args.calibration_dtype} if args.calibration_dtype else {}
    how = _prune_streamed if args.stream else _prune_in_memory
    with calibrating_in(args.calibration_dtype):
        report, record = how(args, tokenizer, calibration, recipe, propagate, run)
    saved = " and ".join(filter(None, [args.out, args.masks]))
    facts = {"out": args.out, "masks": args.masks, **record.metrics, "note": NOTE}
    text = f"{report}\nsaved to {saved}; {NOTE}"
    # No contradiction, for one line of options may serve many scores; but it is told.
    unread = "" if recipe.uses else given(args, *_WINDOWS, "batch_size", "statistics", "propagate")
    if unread:
        facts["not_read"] = unread
        text = f"{text}\n{recipe.label} reads no calibration text: {unread} changed nothing"
    advice = getattr(recipe.refine, "advice", "")
    if advice and recipe.refine == type(recipe.refine)():
        facts["advice"] = f"{method_label(recipe.refine)}: {advice}"
        text = f"{text}\n{facts['advice']}"
    return Answer(facts, text)


def _refuse_contradictions(args: argparse.Namespace, recipe: Recipe) -> None:
    if args.pattern != "unstructured":
        refuse(
            args, f"--pattern {args.pattern} says itself how many weights are removed", "sparsity", "group"
        )
    beside = args.propagate == "pruned" and GRADIENTS in recipe.uses  # gradients from the file, windows run
    if args.statistics is not None and not beside:
        refuse(args, "--statistics take the place of calibration windows", *_WINDOWS, "batch_size")
        if args.propagate == "pruned":
            refuse(args, "--statistics are of the dense model alone", "propagate")
    if args.stream:
        refuse(args, "--stream writes masks into --out, beside the model", "masks")
        refuse(args, "--stream begins again after a kill", "work")
        refuse(args, "--stream finds decoder layers by itself", "layers_path")
    else:
        refuse(args, "give --stream with it", "memory")


def _require_targets(args: argparse.Namespace, recipe: Recipe) -> None:
    if args.stream and args.out is None:
        raise UserError("--stream writes a pruned model: give --out DIR")
    if args.out is None and args.masks is None:
        raise UserError(
            "nothing to write: give --out DIR for the pruned model, --masks FILE for its masks alone, or both"
        )
    if args.out is None and recipe.update is not None:
        raise UserError(
            f"{method_label(recipe.update)} changes weights, which a mask file does not hold: give --out DIR"
        )
    for option, target in [("--out", args.out), ("--masks", args.masks)]:
        if target is not None:
            require_free(Path(target), option)


def _calibration(
    args: argparse.Namespace, recipe: Recipe, propagate: str, tokenizer, weights: str
) -> tuple[Any, dict | None]:
    """Statistics or windows for the recipe (None: it reads neither), and what a record says of them.

    With propagation through pruned layers, windows beside the statistics, of which only the gradients count.
    """
    found, about = None, {}
    if args.statistics is not None:
        found = stats_files.load(args.statistics)
        uses = recipe.uses if propagate == "dense" else frozenset({GRADIENTS})
        _require_statistics_of(found, args, recipe, uses, weights)
        about = {"asked": found.asked, "parts": found.parts}
        if propagate == "dense":
            return found.statistics, {"propagate": "dense", **about}
    if not recipe.uses:
        return None, None
    windows = _calibration_windows(args, tokenizer)
    asked = {name: getattr(args, name) for name in _WINDOWS}
    asked |= {"propagate": propagate, "windows": corpora.digest(windows)}
    if found is None:
        return windows, asked
    return WindowsBeside(windows, found.statistics), asked | {"gradients": about}


def _require_statistics_of(
    found: stats_files.Calibration, args: argparse.Namespace, recipe: Recipe, uses: frozenset, weights: str
) -> None:
    file, asked = args.statistics, found.asked
    if asked["weights"] != weights or asked["dtype"] != args.dtype:
        raise UserError(
            f"{file} was gathered on other weights, or in another dtype ({asked['dtype']}): give that model"
            " and dtype"
        )
    if (gathered_in := asked.get("calibration_dtype")) != args.calibration_dtype:
        option = f"--calibration-dtype {gathered_in}" if gathered_in else "no --calibration-dtype"
        raise UserError(f"{file} was gathered in {gathered_in or asked['dtype']}: give {option}")
    if missing := lacking(stats_files.optional(uses), asked["gathered"]):
        raise UserError(
            f"{recipe.label} reads {', '.join(missing)}, which {file} lacks: calibrate with --gather"
            f" {','.join(missing)}"
        )


def _prune_in_memory(
    args: argparse.Namespace, tokenizer, calibration: Any, recipe: Recipe, propagate: str, run: dict
) -> tuple[PruneReport, Record]:
    model = load_model(args)
    if args.out:
        require_disk(Path(args.out), bytes_of(model))
    options = {"batch_size": args.batch_size, "work": args.work}
    with progress_bars(args):
        report = prune(model, calibration, recipe, propagate, keep_masks=True, **options)
    record = _record(run, report)
    if args.masks:
        Path(args.masks).parent.mkdir(parents=True, exist_ok=True)
        mask_files.save_masks(args.masks, report.masks, model, record)
    if args.out:
        save_model(Path(args.out), model, tokenizer, report.masks, record)
    return report, record


def _prune_streamed(
    args: argparse.Namespace, tokenizer, calibration: Any, recipe: Recipe, propagate: str, run: dict
) -> tuple[PruneReport, Record]:
    how = Streaming(args.dtype, args.device, args.batch_size, args.memory, keep_masks=True)
    streamed = StreamedRun(args.model, calibration, recipe, propagate, how)
    tell(args, streamed.plan)
    with progress_bars(args), streamed.into(args.out) as (folder, report):
        record = _record(run, report)
        streamed.masks.save(folder / models.MASKS, record)
        save_beside(folder, tokenizer, record)
    return report, record


def run_calibrate(args: argparse.Namespace) -> Answer:
    """Gather the statistics of a dense model into a file."""
    require_free(Path(args.out), "--out")
    uses = frozenset(filter(None, args.gather.split(",")))
    for name in uses - stats_files.optional(uses):
        raise unknown("statistic to gather", name, [*stats_files.OPTIONAL, "sketch64"])
    if args.output_side not in OUTPUT_SIDES:
        raise unknown("output side", args.output_side, OUTPUT_SIDES)
    if "output_norm" not in uses:
        refuse(args, "give --gather output_norm with it", "output_side")
    if GRADIENTS in uses or ("output_norm" in uses and args.output_side == "gradients"):
        refuse(args, "gradients are gathered window by window", "batch_size")
    windows, part = _shard(args, _calibration_windows(args, models.load_tokenizer(args.model)))
    where = {"dtype": args.dtype, "device": args.device, "seq_len": args.seq_len}
    with progress_bars(args), calibrating_in(args.calibration_dtype):
        model = load_model(args)
        how = {"output_side": args.output_side, "batch_size": batch_size_of(args.batch_size, model, windows)}
        asked = stats_files.asked(models.fingerprint(args.model), uses, **where, **how)
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
    facts = {"out": args.out, "windows": n_windows, "linears": n_linears, "missing_shards": missing}
    lacking = f"; shards {', '.join(missing)} are still missing" if missing else ""
    return Answer(facts, f"statistics of {n_linears} linears on {n_windows} windows saved to {out}{lacking}")


def _calibration_windows(args: argparse.Namespace, tokenizer):
    return corpora.calibration_windows(args.corpus, tokenizer, args.n_calib, args.seq_len, args.seed)


def _record(run: dict, report: PruneReport) -> Record:
    metrics = {
        "sparsity": report.sparsity,
        "linears": {x.name: x.sparsity for x in report.linears},
        "seconds": report.seconds,
    }
    if report.unreached:
        metrics["unreached"] = report.unreached
    if report.left_dense:
        metrics["overall_sparsity"] = report.overall_sparsity
        metrics["left_dense"] = {name: asdict(matrix) for name, matrix in report.left_dense.items()}
    return Record(run, metrics, provenance())
