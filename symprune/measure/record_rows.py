"""Rows of tables from records: what was asked in names that tables group by, beside what was measured."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from symprune.base.records import Record
from symprune.methods.recipe import Recipe, method_label, pattern_label


def perplexity_row(record: Record) -> dict:
    """The row of one model, recipe and seed in `Experiment.run`."""
    recipe = _recipe_of(record)
    return {
        **_names(record, recipe),
        "sparsity": record.metrics.get("sparsity", 0.0),
        **_calibration(record.run["calibration"]),
        **_evaluation(record),
        "dtype": record.run["model"]["dtype"],
        **{name: record.metrics[name] for name in ("perplexity", "perplexity_stderr", "window_losses")},
        "seconds_prune": record.metrics.get("seconds_prune", 0.0),
        **_hyperparameters("score", recipe and recipe.score),
        **_hyperparameters("refine", recipe and recipe.refine),
        **_refinement(record.metrics.get("refined", {})),
        **_keys(record, recipe),
    }


def zero_shot_row(record: Record) -> dict:
    """The row of one model, recipe, seed and task in `Experiment.zero_shot`."""
    recipe = _recipe_of(record)
    return {
        **_names(record, recipe),
        "sparsity": record.metrics.get("sparsity", 0.0),
        **_calibration(record.run["calibration"]),
        "task": record.run["zero_shot"]["task"],
        "dtype": record.run["model"]["dtype"],
        **{name: record.metrics[name] for name in ("acc", "stderr", "n", "acc_norm", "correct")},
        **_keys(record, recipe),
    }


def mask_row(record: Record) -> dict:
    """The row of one model, seed and pair of recipes in `Experiment.compare_masks`: means over the linears,
    and each linear's values.
    """
    recipe, reference = (Recipe.from_dict(side["recipe"]) for side in (record.run, record.run["reference"]))
    linears = record.metrics["linears"].values()
    values = {
        name: [linear[name] for linear in linears] for name in ("jaccard", "entropy_rows", "entropy_columns")
    }
    return {
        **_names(record, recipe),
        "reference": reference.label,
        **_calibration(record.run["calibration"] or record.run["reference"]["calibration"]),
        "dtype": record.run["model"]["dtype"],
        **{name: statistics.fmean(of) for name, of in values.items()},
        **{f"linear_{name}": of for name, of in values.items()},
        **_hyperparameters("score", recipe.score),
        **_hyperparameters("refine", recipe.refine),
        **_keys(record, recipe),
    }


def timing_rows(record: Record, scores: Sequence[Any]) -> list[dict]:
    """The rows of one model in `Experiment.time_scores`; scores: those that were timed, the first of them
    being the yardstick.
    """
    rows, yardstick = [], record.metrics["seconds"][0]
    for score, seconds in zip(scores, record.metrics["seconds"], strict=True):
        ratios = [s / of for s, of in zip(seconds, yardstick, strict=True)]
        rows.append(
            {
                "model": record.run["model"]["name"],
                "method": method_label(score),
                "seconds": statistics.median(seconds),
                "ratio": statistics.median(ratios),
                "log_ratios": [math.log(ratio) for ratio in ratios],
                **_hyperparameters("score", score),
                "record": record.key,
            }
        )
    return rows


def _hyperparameters(part: str, method: Any) -> dict:
    """`score.alpha` and the like, so that sweeps can be pivoted; nothing for None."""
    return {f"{part}.{f.name}": getattr(method, f.name) for f in fields(method)} if method else {}


def _recipe_of(record: Record) -> Recipe | None:
    return Recipe.from_dict(record.run["recipe"]) if record.run["recipe"] else None


def _names(record: Record, recipe: Recipe | None) -> dict:
    """Columns that tables group by; None: the dense model."""
    return {
        "model": record.run["model"]["name"],
        "method": method_label(recipe.score) if recipe else "dense",
        "refine": (method_label(recipe.refine) if recipe.refine else "none") if recipe else "dense",
        "pattern": pattern_label(recipe.pattern) if recipe else "dense",
    }


def _calibration(asked: dict | None) -> dict:
    """What the calibration text was; None throughout for the dense model and for methods that read none."""
    return {name: (asked or {}).get(name) for name in ("corpus", "n_calib", "seq_len", "propagate", "seed")}


def _evaluation(record: Record) -> dict:
    """What the evaluation text was."""
    asked = record.run["evaluation"]
    split = "" if asked["split"] == "evaluation" else f", {asked['split']} split"
    return {
        "evaluated_on": asked["corpus"] + split,
        "eval_seq_len": asked["seq_len"],
        "n_windows": asked["n_windows"],
    }


def _keys(record: Record, recipe: Recipe | None) -> dict:
    return {"recipe_key": recipe.key if recipe else "dense", "record": record.key}


def _refinement(linears: dict[str, dict]) -> dict:
    """What a refinement did to a whole model: sums over its linears, and the mean over them of a row's mean
    error.
    """
    if not linears:
        return {}
    of = {
        field: [linear[field] for linear in linears.values()]
        for field in ("n_rows", "swaps", "error_before", "error_after")
    }
    before, after = (sum(of[field]) / len(linears) for field in ("error_before", "error_after"))
    return {
        "rows refined": sum(of["n_rows"]),
        "swaps": sum(of["swaps"]),
        "error before": before,
        "error after": after,
    }
