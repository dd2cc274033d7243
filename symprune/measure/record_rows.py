"""Rows of tables from records: what was asked in names that tables group by, beside what was measured."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from symprune.base.records import Record
from symprune.methods.recipe import Recipe, hyperparameters, method_label


def hyperparameter_columns(part: str, method: Any) -> dict:
    """`score.alpha` and the like, so that sweeps can be pivoted; nothing for None."""
    return {f"{part}.{f.name}": value for f, value in hyperparameters(method)} if method else {}


def recipe_of(run: dict) -> Recipe | None:
    """The recipe that a question is about; None: the dense model, or another kind of question."""
    return Recipe.from_dict(run["recipe"]) if run.get("recipe") else None


def name_columns(record: Record, recipe: Recipe | None) -> dict:
    """Columns that tables group by; None: the dense model."""
    return {
        "model": record.run["model"]["name"],
        "method": method_label(recipe.score) if recipe else "dense",
        "refine": (method_label(recipe.refine) if recipe.refine else "none") if recipe else "dense",
        "pattern": recipe.patterns if recipe else "dense",
        **({"update": method_label(recipe.update)} if recipe and recipe.update else {}),
    }


def calibration_columns(calibration: dict | None) -> dict:
    """What the calibration text was; None throughout for the dense model and for methods that read none."""
    return {
        name: (calibration or {}).get(name) for name in ("corpus", "n_calib", "seq_len", "propagate", "seed")
    }


def evaluation_columns(record: Record) -> dict:
    """What the evaluation text was."""
    text = record.run["evaluation"]
    split = "" if text["split"] == "evaluation" else f", {text['split']} split"
    return {
        "evaluated_on": text["corpus"] + split,
        "eval_seq_len": text["seq_len"],
        "n_windows": text["n_windows"],
        "articles": text.get("articles"),  # records from before windows told their articles have none
    }


def loss_columns(metrics: dict) -> dict:
    """What was measured of every window, and the means; kl and agreement are None where none was measured."""
    means = {
        name: fmean(of) if (of := metrics.get(f"window_{name}")) else None for name in ("kl", "agreement")
    }
    return {name: metrics[name] for name in ("perplexity", "perplexity_stderr", "window_losses")} | means


def key_columns(record: Record, recipe: Recipe | None) -> dict:
    """By which the recipe and the record are found again."""
    return {"recipe_key": recipe.key if recipe else "dense", "record": record.key}


def totals(refined: Sequence[dict]) -> dict:
    """What a refinement did to a whole model: sums over its linears, and their mean of a row's mean error."""
    if not refined:
        return {}
    of = {name: [linear[name] for linear in refined] for name in refined[0]}
    sums = {name: sum(of[name]) for name in ("n_rows", "swaps")}
    means = {name: fmean(of[name]) for name in ("error_before", "error_after")}
    return {"n_linears": len(refined), **sums, "cycles": max(of["cycles"]), **means}


def refinement_columns(refined: dict) -> dict:
    """Columns of `totals`; nothing for a model that was not refined."""
    columns = {
        "n_rows": "rows refined",
        "swaps": "swaps",
        "error_before": "error before",
        "error_after": "error after",
    }
    return {column: refined[name] for name, column in columns.items()} if refined else {}
