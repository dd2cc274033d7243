"""Models x seeds x recipes, each measured once and kept as a record."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from symprune import data, models, paths
from symprune.calibrate import OUTPUT_SIDES, gather
from symprune.errors import UserError, unknown
from symprune.evaluate import perplexity
from symprune.progress import announce
from symprune.prune import PROPAGATE, prune
from symprune.recipe import Recipe, method_label, pattern_label
from symprune.results import Record, Store


@dataclass
class Experiment:
    """A protocol: which models, calibrated and evaluated how. `run` measures recipes under it, or finds their records.

    The parameters are those of a profile. Recipes that use no statistics are measured once, not once per seed. What a record
    depends on goes into its key: the recipe, the weights' hash, the calibration windows' hash, the evaluation windows' hash.
    """

    profile: str
    models: Sequence[str] = (models.EMBEDDED,)
    device: str = "cpu"
    dtype: str = "float32"
    calibration_corpus: str = "embedded"
    n_calib: int = 16
    seq_len: int = 512
    seeds: Sequence[int] = (0, 1)
    propagate: str = "pruned"
    output_side: str = "activations"
    evaluation_corpus: str = "embedded"
    evaluation_split: str = "evaluation"
    n_eval: int | None = 16
    batch_size: int = 1
    _bench: "_Bench | None" = field(default=None, init=False, repr=False)

    def __post_init__(self):
        sizes = {"n_calib": self.n_calib, "seq_len": self.seq_len, "n_eval": self.n_eval, "batch_size": self.batch_size}
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise UserError(f"{name} must be at least 1, not {size}")
        if not self.seeds or not self.models:
            raise UserError("an experiment needs at least one model and one seed")
        for kind, name, known in [("propagate", self.propagate, PROPAGATE), ("output_side", self.output_side, OUTPUT_SIDES)]:
            if name not in known:
                raise unknown(kind, name, known)
        if self.output_side == "gradients" and self.propagate == "pruned":
            raise UserError("output_side 'gradients' is gathered on the dense model: it needs propagate 'dense'")
        self.store = Store(paths.records(self.profile))

    def run(self, recipes: Sequence[Recipe | None]):
        """One row per model, recipe and seed (pandas), None being the dense model; measured in order, or found as records."""
        import pandas as pd

        asked = [
            (model, recipe, seed)
            for model in self.models
            for seed in self.seeds  # a seed's statistics and a model's weights are loaded once
            for recipe in dict.fromkeys(recipes)
            if seed == self.seeds[0] or (recipe is not None and recipe.uses)
        ]
        rows = []
        for done, (model, recipe, seed) in enumerate(asked):
            announce(f"{model} {recipe.label if recipe else 'dense'}, seed {seed}", done, len(asked))
            rows.append(_row(self.record(model, recipe, seed)))
        announce("tables and figures", len(asked), len(asked))
        order = {(recipe.key if recipe else "dense"): i for i, recipe in enumerate(dict.fromkeys(recipes))}
        frame = pd.DataFrame(rows)
        return frame.sort_values("recipe_key", key=lambda keys: [order[k] for k in keys], kind="stable").reset_index(drop=True)

    def record(self, model: str, recipe: Recipe | None = None, seed: int = 0) -> Record:
        """The record of one recipe (None: dense) on one model, calibrated with one seed."""
        bench = self._set_up(model)
        return self.store.get_or_run(bench.question(recipe, seed), lambda: bench.measure(recipe, seed))

    def _set_up(self, model: str) -> "_Bench":
        if self._bench is None or self._bench.name != model:
            self._bench = None  # the former model's memory is free before the next is loaded
            self._bench = _Bench(self, model)
        return self._bench


class _Bench:
    """One model under one protocol: loaded only if something must be measured, its weights put back between recipes."""

    def __init__(self, experiment: Experiment, name: str):
        self.experiment, self.name = experiment, name
        self.tokenizer = models.load_tokenizer(name)
        self.fingerprint = models.fingerprint(name)
        self.evaluation = data.evaluation_windows(
            experiment.evaluation_corpus, self.tokenizer, experiment.seq_len, experiment.n_eval, experiment.evaluation_split
        )
        self._calibration: dict[int, torch.Tensor] = {}
        self._model: torch.nn.Module | None = None
        self._pristine: dict[str, torch.Tensor] = {}
        self._statistics: tuple[int, frozenset, dict] | None = None  # seed, fields, statistics

    def question(self, recipe: Recipe | None, seed: int) -> dict:
        """What a record is named by; no more than the answer depends on, so that notebooks share what they have in common."""
        x = self.experiment
        calibration = None
        if recipe is not None and recipe.uses:
            calibration = {
                "corpus": x.calibration_corpus,
                "n_calib": x.n_calib,
                "seq_len": x.seq_len,
                "seed": seed,
                "propagate": x.propagate,
                "windows": data.digest(self.windows(seed)),
            }
            if "output_norm" in recipe.uses:
                calibration["output_side"] = x.output_side
        return {
            "model": {"name": self.name, "weights": self.fingerprint, "dtype": x.dtype, "device": torch.device(x.device).type},
            "recipe": recipe.to_dict() if recipe else None,
            "calibration": calibration,
            "evaluation": {
                "corpus": x.evaluation_corpus,
                "split": x.evaluation_split,
                "seq_len": x.seq_len,
                "windows": data.digest(self.evaluation),
                "n_windows": len(self.evaluation),
                "bos": data.adds_bos(self.tokenizer),
            },
        }

    def measure(self, recipe: Recipe | None, seed: int) -> dict:
        """Prune, evaluate, restore."""
        x = self.experiment
        model = self._pristine_model()
        metrics: dict[str, Any] = {}
        if recipe is not None:
            statistics = self._dense_statistics(recipe, seed) if recipe.uses and x.propagate == "dense" else None
            calibration = statistics or (self.windows(seed) if recipe.uses else None)
            report = prune(model, calibration, recipe, x.propagate if recipe.uses else "dense", batch_size=x.batch_size)
            metrics |= {
                "sparsity": report.sparsity,
                "linears": {linear.name: linear.sparsity for linear in report.linears},
                "seconds_prune": sum(report.seconds.values()),
            }
            if recipe.refine:
                metrics["refined"] = {linear.name: linear.refined for linear in report.linears if linear.refined}
        start = time.perf_counter()
        value = perplexity(model, self.evaluation, batch_size=x.batch_size)
        return metrics | {
            "perplexity": float(value),
            "perplexity_stderr": None if math.isnan(value.stderr) else value.stderr,
            "window_losses": list(value.losses),
            "seconds_evaluate": time.perf_counter() - start,
        }

    def windows(self, seed: int) -> torch.Tensor:
        """Calibration windows of one seed."""
        x = self.experiment
        if seed not in self._calibration:
            self._calibration[seed] = data.calibration_windows(x.calibration_corpus, self.tokenizer, x.n_calib, x.seq_len, seed)
        return self._calibration[seed]

    def _pristine_model(self) -> torch.nn.Module:
        if self._model is None:
            self._model = models.load_model(self.name, self.experiment.dtype, self.experiment.device)
            self._pristine = models.copy_weights(self._model)
        else:
            models.restore_weights(self._model, self._pristine)
        return self._model

    def _dense_statistics(self, recipe: Recipe, seed: int) -> dict:
        """Statistics of the dense model, gathered once per seed; gathered anew only when a recipe reads a field not yet there."""
        x = self.experiment
        if self._statistics is None or self._statistics[0] != seed or not recipe.uses <= self._statistics[1]:
            uses = recipe.uses | (self._statistics[1] if self._statistics and self._statistics[0] == seed else frozenset())
            uses -= {"gram"} - recipe.uses  # Gram matrices are too large to keep for recipes that do not read them
            statistics = gather(self._pristine_model(), self.windows(seed), uses, output_side=x.output_side, batch_size=x.batch_size)
            self._statistics = seed, uses, statistics
        return self._statistics[2]


def _row(record: Record) -> dict:
    recipe = Recipe.from_dict(record.run["recipe"]) if record.run["recipe"] else None
    calibration = record.run["calibration"] or {}
    return {
        "model": record.run["model"]["name"],
        "method": method_label(recipe.score) if recipe else "dense",
        "refine": method_label(recipe.refine) if recipe and recipe.refine else "none",
        "pattern": pattern_label(recipe.pattern) if recipe else "dense",
        "sparsity": record.metrics.get("sparsity", 0.0),
        "seed": calibration.get("seed"),
        "perplexity": record.metrics["perplexity"],
        "perplexity_stderr": record.metrics["perplexity_stderr"],
        "window_losses": record.metrics["window_losses"],
        "recipe_key": recipe.key if recipe else "dense",
        "record": record.key,
    }
