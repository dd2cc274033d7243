"""What can be measured: each kind is one frozen object, as a score is, and its fields are its settings.

A measurement is asked about a subject (mostly a recipe, None being the dense model) on a bench, with one draw
of calibration text:

    question(bench, subject, seed)  plain data that the answer depends on, by which a record is named
    measure(bench, subject, seed)   the metrics that the record keeps
    rows(record)                    what the record says, for tables

A new measurement is a class here: `Experiment`, its executors and the records serve it as they are.
"""

import math
import statistics
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from symprune import models
from symprune.base.errors import UserError
from symprune.base.records import Record
from symprune.base.types import Mask, Weight
from symprune.measure import dense_gate
from symprune.measure.bench import Bench
from symprune.measure.perplexity import perplexity
from symprune.measure.protocol import Protocol
from symprune.measure.record_rows import (
    calibration_columns,
    evaluation_columns,
    hyperparameter_columns,
    key_columns,
    loss_columns,
    name_columns,
    recipe_of,
    refinement_columns,
)
from symprune.measure.zero_shot import zero_shot
from symprune.methods.overlap import entropy_of_kept, jaccard
from symprune.methods.recipe import Recipe, build, method_dict, method_label
from symprune.methods.scores import SCORES
from symprune.methods.stats import LayerStats
from symprune.models.precision import as_calibrated, calibrating_in
from symprune.pruning.prune import make_mask
from symprune.text.corpora import adds_bos
from symprune.text.tasks import identity


@dataclass(frozen=True)
class WindowLosses:
    """Perplexity, from the mean token loss of every evaluation window, and from the same forward pass the
    divergence from the dense model and the agreement with its first choices; subject: a recipe (None: dense).
    """

    def question(self, bench: Bench, recipe: Recipe | None, seed: int) -> dict:
        """Model, recipe, calibration and evaluation."""
        return {**pruned_name(bench, recipe, seed), "evaluation": bench.evaluation_name()}

    def measure(self, bench: Bench, recipe: Recipe | None, seed: int) -> dict:
        """Prune and evaluate; raises UserError where the dense model is not what it should be."""
        dense = bench.dense_outputs()
        model, pruning = bench.pruned(recipe, seed)
        start = time.perf_counter()
        value = perplexity(model, bench.evaluation_windows, batch_size=bench.protocol.batch_size, dense=dense)
        if recipe is None:
            dense_gate.check_dense(bench.name, bench.protocol, float(value), adds_bos(bench.tokenizer))
        return pruning | {
            "perplexity": float(value),
            "perplexity_stderr": None if math.isnan(value.stderr) else value.stderr,
            "window_losses": list(value.losses),
            "window_kl": list(value.kl),
            "window_agreement": list(value.agreement),
            "seconds_evaluate": time.perf_counter() - start,
        }

    def rows(self, record: Record) -> list[dict]:
        """One row."""
        recipe = recipe_of(record.run)
        row = {
            **name_columns(record, recipe),
            "sparsity": record.metrics.get("sparsity", 0.0),
            **calibration_columns(record.run["calibration"]),
            **evaluation_columns(record),
            "dtype": record.run["model"]["dtype"],
            **loss_columns(record.metrics),
            "seconds_prune": record.metrics.get("seconds_prune", 0.0),
            **hyperparameter_columns("score", recipe and recipe.score),
            **hyperparameter_columns("refine", recipe and recipe.refine),
            **refinement_columns(record.metrics.get("refined", {})),
            **key_columns(record, recipe),
        }
        return [row]


@dataclass(frozen=True)
class Accuracy:
    """Accuracy on one zero-shot task, see `symprune.measure.zero_shot`; subject: a recipe, or None for dense.

    limit: the first so many examples (None: all); batch_size: requests in a forward pass.
    """

    task: str
    limit: int | None = None
    batch_size: int = 8

    def question(self, bench: Bench, recipe: Recipe | None, seed: int) -> dict:
        """Model, recipe, calibration and the task's examples: the evaluation text has no part in it."""
        task = {"task": self.task, "limit": self.limit, **identity(bench.task(self.task), self.limit)}
        return {**pruned_name(bench, recipe, seed), "zero_shot": task | {"bos": adds_bos(bench.tokenizer)}}

    def measure(self, bench: Bench, recipe: Recipe | None, seed: int) -> dict:
        """Prune and score; `correct` holds a 1 or 0 for each example, in the order of the task."""
        model, pruning = bench.pruned(recipe, seed)
        start, task = time.perf_counter(), {self.task: bench.task(self.task)}
        score = zero_shot(model, bench.tokenizer, task, self.limit, self.batch_size).scores[self.task]
        return {name: pruning[name] for name in ("sparsity", "seconds_prune") if name in pruning} | {
            "acc": score.acc,
            "stderr": None if math.isnan(score.stderr) else score.stderr,
            "n": score.n,
            "acc_norm": score.acc_norm,
            "correct": "".join(map(str, map(int, score.correct))),
            "seconds_evaluate": time.perf_counter() - start,
        }

    def rows(self, record: Record) -> list[dict]:
        """One row."""
        recipe = recipe_of(record.run)
        row = {
            **name_columns(record, recipe),
            "sparsity": record.metrics.get("sparsity", 0.0),
            **calibration_columns(record.run["calibration"]),
            "task": record.run["zero_shot"]["task"],
            "dtype": record.run["model"]["dtype"],
            **{name: record.metrics[name] for name in ("acc", "stderr", "n", "acc_norm", "correct")},
            **key_columns(record, recipe),
        }
        return [row]


@dataclass(frozen=True)
class MaskOverlap:
    """How two masks agree and how evenly the first keeps; subject: a pair (recipe, reference) of recipes.

    Jaccard overlap, and normalised entropy over rows and columns, see `symprune.methods.overlap`: means over
    the linears, and each linear's unevenness, 1 - entropy, to four digits. Masks follow from statistics of
    the dense model; no weight is changed.
    against: the protocol whose calibration makes the reference's masks, seed by seed (None: the same).
    Raises UserError unless both propagate "dense", ValueError for a seed without a partner.
    """

    against: Protocol | None = None

    def question(self, bench: Bench, pair: tuple[Recipe, Recipe], seed: int) -> dict:
        """Model, and each side's recipe and calibration."""
        sides = [
            side.recipe_name(recipe, side_seed)
            for recipe, (side, side_seed) in zip(pair, self._sides(bench, seed), strict=True)
        ]
        return {"model": bench.model_name, **sides[0], "reference": sides[1]}

    @torch.no_grad()
    def measure(self, bench: Bench, pair: tuple[Recipe, Recipe], seed: int) -> dict:
        """Both masks of one linear after the other; none is kept."""
        sides = zip(pair, self._sides(bench, seed), strict=True)
        of_sides = [(recipe, side.statistics(recipe.uses, its_seed)) for recipe, (side, its_seed) in sides]
        overlaps: list[float] = []
        uneven: dict[str, list[float]] = {"rows": [], "columns": []}
        for name, linear in models.named_linears(bench.loaded.pristine()).items():
            with calibrating_in(bench.protocol.calibration_dtype):
                weight = as_calibrated(models.weight_view(linear))
            mask, reference = (_mask(name, weight, stats[name], recipe) for recipe, stats in of_sides)
            overlaps.append(jaccard(mask, reference))
            for dim, lines in enumerate(("rows", "columns")):
                uneven[lines].append(float(f"{1 - entropy_of_kept(mask, dim):.4g}"))
        return {"jaccard": statistics.fmean(overlaps), "unevenness": uneven}

    def rows(self, record: Record) -> list[dict]:
        """One row: means over the linears, and each linear's entropies in columns `linear_*`."""
        sides = record.run, record.run["reference"]
        recipe, reference = (Recipe.from_dict(side["recipe"]) for side in sides)
        uneven = record.metrics["unevenness"]
        entropies = {f"entropy_{lines}": [1 - x for x in of] for lines, of in uneven.items()}
        row = {
            **name_columns(record, recipe),
            "reference": reference.label,
            **calibration_columns(sides[0]["calibration"] or sides[1]["calibration"]),
            "dtype": record.run["model"]["dtype"],
            "jaccard": record.metrics["jaccard"],
            **{name: statistics.fmean(of) for name, of in entropies.items()},
            **{f"linear_{name}": of for name, of in entropies.items()},
            **hyperparameter_columns("score", recipe.score),
            **hyperparameter_columns("refine", recipe.refine),
            **key_columns(record, recipe),
        }
        return [row]

    def _sides(self, bench: Bench, seed: int) -> list[tuple[Bench, int]]:
        ours, theirs = bench.protocol, self.against or bench.protocol
        if {ours.propagate, theirs.propagate} != {"dense"}:
            raise UserError(
                "masks are compared on statistics of the dense model: MaskOverlap needs propagate 'dense'"
            )
        if self.against is None:
            return [(bench, seed), (bench, seed)]
        if len(ours.seeds) != len(theirs.seeds) or seed not in ours.seeds:
            raise ValueError(
                f"masks are compared seed by seed: {ours.seeds} with {theirs.seeds} has no partner for {seed}"
            )
        return [(bench, seed), (bench.under(theirs), theirs.seeds[ours.seeds.index(seed)])]


@dataclass(frozen=True)
class ScoreTime:
    """Seconds of scoring `n_layers` decoder layers; subject: a tuple of scores, the first is the yardstick.

    Rounds in which every score runs once, one after the other, so that a busy machine slows all alike; the
    ratio to the yardstick is the median of the ratios within rounds, all of which stand in `log_ratios`. The
    first round is not counted. Seconds are those of the machine on record.
    """

    repeats: int = 7
    n_layers: int = 3
    repeatable: ClassVar[bool] = False  # seconds of other code are measured anew, not compared

    def question(self, bench: Bench, scores: tuple, seed: int) -> dict:
        """Model, scores and rounds; the machine that was timed stands in the record beside them."""
        timed = {"scores": [method_dict(score) for score in scores]}
        return {
            "model": bench.model_name | bench.device_name,
            "timing": {**timed, "repeats": self.repeats, "n_layers": self.n_layers},
        }

    @torch.no_grad()
    def measure(self, bench: Bench, scores: tuple, seed: int) -> dict:
        """Seconds of each score in each round, over the linears of decoder layers spread evenly."""
        stats = bench.statistics(frozenset().union(*(score.uses for score in scores)), seed)
        layers = models.linears_by_layer(bench.loaded.pristine())
        chosen = {round(i * (len(layers) - 1) / max(self.n_layers - 1, 1)) for i in range(self.n_layers)}
        linears = {name: layer[name] for i, layer in enumerate(layers) if i in chosen for name in layer}
        seconds: list[list[float]] = [[] for _ in scores]
        for _ in range(self.repeats + 1):
            for score, taken in zip(scores, seconds, strict=True):
                start = self._now(bench)
                for name, linear in linears.items():
                    score(models.weight_view(linear), stats[name])
                taken.append(self._now(bench) - start)
        threads = torch.get_num_threads()
        return {"seconds": [taken[1:] for taken in seconds], "linears": list(linears), "threads": threads}

    def rows(self, record: Record) -> list[dict]:
        """A row for each score."""
        rows, yardstick = [], record.metrics["seconds"][0]
        for plain, seconds in zip(record.run["timing"]["scores"], record.metrics["seconds"], strict=True):
            settings = {name: value for name, value in plain.items() if name != "name"}
            score = build("score", plain["name"], SCORES, settings)
            ratios = [s / of for s, of in zip(seconds, yardstick, strict=True)]
            rows.append(
                {
                    "model": record.run["model"]["name"],
                    "method": method_label(score),
                    "seconds": statistics.median(seconds),
                    "ratio": statistics.median(ratios),
                    "log_ratios": [math.log(ratio) for ratio in ratios],
                    **hyperparameter_columns("score", score),
                    "record": record.key,
                }
            )
        return rows

    @staticmethod
    def _now(bench: Bench) -> float:
        bench.synchronize()
        return time.perf_counter()


def _mask(name: str, weight: Weight, stats: LayerStats | None, recipe: Recipe) -> Mask:
    return make_mask(name, weight, stats, recipe)[0]


def pruned_name(bench: Bench, recipe: Recipe | None, seed: int) -> dict[str, Any]:
    """What the answer of a model that is pruned by a recipe (None: not at all) depends on."""
    return {"model": bench.model_name, **bench.recipe_name(recipe, seed)}
