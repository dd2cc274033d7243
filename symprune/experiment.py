"""Models x seeds x recipes, each measured once and kept as a record."""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from symprune import data, models, paths
from symprune.calibrate import OUTPUT_SIDES, gather
from symprune.errors import UserError, unknown
from symprune.evaluate import perplexity
from symprune.overlap import entropy_of_kept, jaccard
from symprune.progress import announce
from symprune.prune import PROPAGATE, make_mask, prune
from symprune.recipe import Recipe, method_dict, method_label, pattern_label
from symprune.results import Record, Store, provenance


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

    def compare_masks(self, pairs: Sequence[tuple[Recipe, Recipe]]):
        """One row per model, seed and pair (recipe, reference): overlap of their masks, and how evenly the recipe keeps.

        Jaccard overlap, and normalised entropy over rows and columns, see `symprune.overlap`: means over the linears (pandas),
        each linear's in columns `linear_*`. Masks follow from statistics of the dense model; no weight is changed, nothing is
        evaluated. Raises UserError unless propagate is "dense".
        """
        import pandas as pd

        if self.propagate != "dense":
            raise UserError("masks are compared on statistics of the dense model: compare_masks needs propagate 'dense'")
        pairs, rows = list(dict.fromkeys(pairs)), []
        for model in self.models:
            bench = self._set_up(model)
            for seed in self.seeds:
                asked = [pair for pair in pairs if seed == self.seeds[0] or any(recipe.uses for recipe in pair)]
                missing = [pair for pair in asked if self.store.get(bench.mask_question(pair, seed)) is None]
                measured = bench.measure_masks(missing, seed) if missing else {}
                for pair in asked:
                    record = self.store.get_or_run(bench.mask_question(pair, seed), lambda found=measured, pair=pair: found[pair])
                    rows.append(_mask_row(record))
        return pd.DataFrame(rows)

    def time_scores(self, scores: Sequence[Any], repeats: int = 7, n_layers: int = 3):
        """One row per model and score: median seconds of scoring `n_layers` decoder layers, and the ratio to the first score (pandas).

        Rounds in which every score runs once, one after the other, so that a busy machine slows all alike; the ratio is the median of
        the ratios within rounds, all of which stand in `log_ratios`. The first round is not counted. A record answers for one machine.
        """
        import pandas as pd

        rows = []
        for model in self.models:
            bench = self._set_up(model)
            question = bench.timing_question(scores, repeats, n_layers)
            record = self.store.get_or_run(question, lambda bench=bench: bench.measure_seconds(scores, repeats, n_layers))
            yardstick = record.metrics["seconds"][0]
            for score, seconds in zip(scores, record.metrics["seconds"], strict=True):
                ratios = [s / of for s, of in zip(seconds, yardstick, strict=True)]
                rows.append(
                    {
                        "model": model,
                        "method": method_label(score),
                        "seconds": statistics.median(seconds),
                        "ratio": statistics.median(ratios),
                        "log_ratios": [math.log(ratio) for ratio in ratios],
                        **_hyperparameters("score", score),
                        "record": record.key,
                    }
                )
        return pd.DataFrame(rows)

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
        return {
            "model": self._identity(),
            "recipe": recipe.to_dict() if recipe else None,
            "calibration": self._calibrated_on(recipe.uses if recipe else frozenset(), seed),
            "evaluation": {
                "corpus": x.evaluation_corpus,
                "split": x.evaluation_split,
                "seq_len": x.seq_len,
                "windows": data.digest(self.evaluation),
                "n_windows": len(self.evaluation),
                "bos": data.adds_bos(self.tokenizer),
            },
        }

    def mask_question(self, pair: tuple[Recipe, Recipe], seed: int) -> dict:
        """What a comparison of masks is named by."""
        sides = [{"recipe": recipe.to_dict(), "calibration": self._calibrated_on(recipe.uses, seed)} for recipe in pair]
        return {"model": self._identity(), **sides[0], "reference": sides[1]}

    def timing_question(self, scores: Sequence[Any], repeats: int, n_layers: int) -> dict:
        """What a timing is named by: the machine and its threads belong to it."""
        timed = {"scores": [method_dict(score) for score in scores], "repeats": repeats, "n_layers": n_layers}
        return {"model": self._identity(), "timing": {**timed, "machine": provenance()["machine"], "threads": torch.get_num_threads()}}

    def _identity(self) -> dict:
        x = self.experiment
        return {"name": self.name, "weights": self.fingerprint, "dtype": x.dtype, "device": torch.device(x.device).type}

    def _calibrated_on(self, uses: frozenset[str], seed: int) -> dict | None:
        x = self.experiment
        if not uses:
            return None
        calibration = {
            "corpus": x.calibration_corpus,
            "n_calib": x.n_calib,
            "seq_len": x.seq_len,
            "seed": seed,
            "propagate": x.propagate,
            "windows": data.digest(self.windows(seed)),
        }
        return calibration | ({"output_side": x.output_side} if "output_norm" in uses else {})

    def measure(self, recipe: Recipe | None, seed: int) -> dict:
        """Prune, evaluate, restore."""
        x = self.experiment
        model = self._pristine_model()
        metrics: dict[str, Any] = {}
        if recipe is not None:
            statistics = self._dense_statistics(recipe.uses, seed) if recipe.uses and x.propagate == "dense" else None
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

    @torch.no_grad()
    def measure_masks(self, pairs: Sequence[tuple[Recipe, Recipe]], seed: int) -> dict[tuple[Recipe, Recipe], dict]:
        """Every pair's agreement, linear by linear: each score and each mask is computed once for all pairs, and none is kept."""
        recipes = dict.fromkeys(recipe for pair in pairs for recipe in pair)
        linears = models.named_linears(self._pristine_model())
        uses = frozenset().union(*(recipe.uses for recipe in recipes))
        stats = self._dense_statistics(uses, seed) if uses else dict.fromkeys(linears)
        measured: dict = {pair: {"linears": {}} for pair in pairs}
        for done, (name, linear) in enumerate(linears.items()):
            announce(f"{self.name} masks of {name}, seed {seed}", done, len(linears))
            weight = models.weight_view(linear)
            scores = {score: score(weight, stats[name]) for score in dict.fromkeys(recipe.score for recipe in recipes)}
            masks = {recipe: make_mask(name, weight, scores[recipe.score], stats[name], recipe)[0] for recipe in recipes}
            for recipe, reference in pairs:
                measured[recipe, reference]["linears"][name] = {
                    "jaccard": jaccard(masks[recipe], masks[reference]),
                    "entropy_rows": entropy_of_kept(masks[recipe], dim=0),
                    "entropy_columns": entropy_of_kept(masks[recipe], dim=1),
                }
        return measured

    @torch.no_grad()
    def measure_seconds(self, scores: Sequence[Any], repeats: int, n_layers: int) -> dict:
        """Seconds of each score in each round, over the linears of decoder layers spread evenly through the model."""
        linears = models.named_linears(self._pristine_model())
        per_layer = len(linears) // (count := len(models.decoder_layers(self._pristine_model())))
        chosen = {round(i * (count - 1) / max(n_layers - 1, 1)) for i in range(n_layers)}
        names = [name for position, name in enumerate(linears) if position // per_layer in chosen]
        uses = frozenset().union(*(score.uses for score in scores))
        stats = self._dense_statistics(uses, self.experiment.seeds[0]) if uses else dict.fromkeys(linears)
        seconds: list[list[float]] = [[] for _ in scores]
        for done in range(repeats + 1):
            announce(f"{self.name} timing scores", done, repeats + 1)
            for score, taken in zip(scores, seconds, strict=True):
                start = self._now()
                for name in names:
                    score(models.weight_view(linears[name]), stats[name])
                taken.append(self._now() - start)
        return {"seconds": [taken[1:] for taken in seconds], "linears": names}

    def _now(self) -> float:
        if self.experiment.device.startswith("cuda"):
            torch.cuda.synchronize(self.experiment.device)
        return time.perf_counter()

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

    def _dense_statistics(self, wanted: frozenset[str], seed: int) -> dict:
        """Statistics of the dense model, gathered once per seed; gathered anew only when a field is wanted that is not yet there."""
        x = self.experiment
        if self._statistics is None or self._statistics[0] != seed or not wanted <= self._statistics[1]:
            uses = wanted | (self._statistics[1] if self._statistics and self._statistics[0] == seed else frozenset())
            uses -= {"gram"} - wanted  # Gram matrices are too large to keep for recipes that do not read them
            statistics = gather(self._pristine_model(), self.windows(seed), uses, output_side=x.output_side, batch_size=x.batch_size)
            self._statistics = seed, uses, statistics
        return self._statistics[2]


def _row(record: Record) -> dict:
    recipe = Recipe.from_dict(record.run["recipe"]) if record.run["recipe"] else None
    calibration = record.run["calibration"] or {}
    return {
        "model": record.run["model"]["name"],
        "method": method_label(recipe.score) if recipe else "dense",
        "refine": (method_label(recipe.refine) if recipe.refine else "none") if recipe else "dense",
        "pattern": pattern_label(recipe.pattern) if recipe else "dense",
        "sparsity": record.metrics.get("sparsity", 0.0),
        "seed": calibration.get("seed"),
        "perplexity": record.metrics["perplexity"],
        "perplexity_stderr": record.metrics["perplexity_stderr"],
        "window_losses": record.metrics["window_losses"],
        **(_hyperparameters("score", recipe.score) | _hyperparameters("refine", recipe.refine) if recipe else {}),
        **_refinement(record.metrics.get("refined", {})),
        "recipe_key": recipe.key if recipe else "dense",
        "record": record.key,
    }


def _mask_row(record: Record) -> dict:
    recipe, reference = (Recipe.from_dict(side["recipe"]) for side in (record.run, record.run["reference"]))
    linears = record.metrics["linears"].values()
    values = {name: [linear[name] for linear in linears] for name in ("jaccard", "entropy_rows", "entropy_columns")}
    return {
        "model": record.run["model"]["name"],
        "method": method_label(recipe.score),
        "refine": method_label(recipe.refine) if recipe.refine else "none",
        "pattern": pattern_label(recipe.pattern),
        "reference": reference.label,
        "seed": (record.run["calibration"] or record.run["reference"]["calibration"] or {}).get("seed"),
        **{name: statistics.fmean(of) for name, of in values.items()},
        **{f"linear_{name}": of for name, of in values.items()},
        **_hyperparameters("score", recipe.score),
        **_hyperparameters("refine", recipe.refine),
        "recipe_key": recipe.key,
        "record": record.key,
    }


def _hyperparameters(part: str, method: Any) -> dict:
    """`score.alpha` and the like, so that sweeps can be pivoted."""
    return {f"{part}.{f.name}": getattr(method, f.name) for f in fields(method)} if method else {}


def _refinement(linears: dict[str, dict]) -> dict:
    """What a refinement did to a whole model: sums over its linears, and the mean over them of a row's mean error."""
    if not linears:
        return {}
    of = {field: [linear[field] for linear in linears.values()] for field in ("n_rows", "swaps", "error_before", "error_after")}
    before, after = (sum(of[field]) / len(linears) for field in ("error_before", "error_after"))
    return {"rows refined": sum(of["n_rows"]), "swaps": sum(of["swaps"]), "error before": before, "error after": after}
