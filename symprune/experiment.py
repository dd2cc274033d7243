"""Models x seeds x recipes, each measured once and kept as a record."""

import functools
import math
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from symprune import data, executors, gate, models, paths, stats_files
from symprune.calibrate import OUTPUT_SIDES, accumulate, gather
from symprune.errors import UserError, unknown
from symprune.evaluate import perplexity
from symprune.overlap import entropy_of_kept, jaccard
from symprune.progress import announce
from symprune.prune import PROPAGATE, beside_weights, make_mask, prune, score_linear
from symprune.recipe import Recipe, method_dict
from symprune.results import REPLAY, Record, Store
from symprune.rows import mask_row, perplexity_row, timing_rows, zero_shot_row
from symprune.stats import LayerStats
from symprune.tasks import identity, load_tasks
from symprune.zero_shot import zero_shot


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
    eval_seq_len: int | None = None  # seq_len unless said otherwise
    n_eval: int | None = 16
    batch_size: int = 1
    _bench: "_Bench | None" = field(default=None, init=False, repr=False)
    _tasks: dict[str, tuple[Any, dict]] = field(default_factory=dict, init=False, repr=False)  # of zero_shot: each with its identity

    def __post_init__(self):
        self.eval_seq_len = self.eval_seq_len or self.seq_len
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

    def __getstate__(self) -> dict:
        """What a worker is sent: the protocol and where records are, not a loaded model."""
        return {**vars(self), "_bench": None, "_tasks": {}}

    def run(self, recipes: Sequence[Recipe | None], executor: Callable | None = None):
        """One row per model, recipe and seed (pandas), None being the dense model; measured, or found as records.

        executor: who measures, see `symprune.executors` (None: what SYMPRUNE_EXECUTOR describes, else this process, in order).
        """
        return self._frame(recipes, self._perplexity_questions, self._perplexity_records, perplexity_row, executor)

    def zero_shot(
        self,
        recipes: Sequence[Recipe | None],
        tasks: Sequence[str],
        limit: int | None = None,
        batch_size: int = 8,
        executor: Callable | None = None,
    ):
        """One row per model, recipe, seed and zero-shot task (pandas), see `symprune.zero_shot`; measured, or found as records.

        Models are pruned exactly as `run` prunes them. `correct` holds a 1 or 0 for each example, in the order of the task.
        """
        self._tasks = _with_identity(tasks, limit)
        questions = functools.partial(self._zero_shot_questions, limit=limit)
        records = functools.partial(self._zero_shot_records, tasks=tuple(tasks), limit=limit, batch_size=batch_size)
        return self._frame(recipes, questions, records, zero_shot_row, executor)

    def _frame(self, recipes: Sequence[Recipe | None], questions_of: Callable, records_of: Callable, row_of: Callable, executor):
        """The rows of every model, recipe and seed that matters, in the order of the recipes."""
        import pandas as pd

        asked = [
            (model, recipe, seed)
            for model in self.models
            for seed in self.seeds  # a seed's statistics and a model's weights are loaded once
            for recipe in dict.fromkeys(recipes)
            if seed == self.seeds[0] or (recipe is not None and recipe.uses)
        ]
        executor = executor or executors.from_environment()
        if executor and not os.environ.get(REPLAY):
            executor(records_of, asked, lambda one: self._state(questions_of(*one)))
        rows = []
        for done, one in enumerate(asked):
            announce(executors.describe(*one), done, len(asked))
            rows += map(row_of, records_of(*one))  # where an executor left one out, it is measured here, or waited for
        announce("tables and figures", len(asked), len(asked))
        order = {(recipe.key if recipe else "dense"): i for i, recipe in enumerate(dict.fromkeys(recipes))}
        frame = pd.DataFrame(rows)
        return frame.sort_values("recipe_key", key=lambda keys: [order[k] for k in keys], kind="stable").reset_index(drop=True)

    def _state(self, questions: Sequence[dict]) -> str:
        """What an executor is told of questions that are measured together: "recorded", "busy" (by another process) or "missing"."""
        states = {self.store.state(question) for question in questions}
        return next((state for state in ("busy", "missing") if state in states), "recorded")

    def _perplexity_questions(self, model: str, recipe: Recipe | None, seed: int) -> list[dict]:
        return [self._set_up(model).question(recipe, seed)]

    def _perplexity_records(self, model: str, recipe: Recipe | None, seed: int) -> list[Record]:
        return [self.record(model, recipe, seed)]

    def _zero_shot_questions(self, model: str, recipe: Recipe | None, seed: int, limit: int | None) -> list[dict]:
        bench = self._set_up(model)
        return [bench.zero_shot_question(recipe, seed, {"task": name, "limit": limit, **known}) for name, (_, known) in self._tasks.items()]

    def _zero_shot_records(
        self, model: str, recipe: Recipe | None, seed: int, tasks: Sequence[str], limit: int | None, batch_size: int
    ) -> list[Record]:
        self._tasks = self._tasks or _with_identity(tasks, limit)  # a worker is sent names
        questions = dict(zip(self._tasks, self._zero_shot_questions(model, recipe, seed, limit), strict=True))

        def measure(names: Collection[str]) -> dict:
            missing = {name: self._tasks[name][0] for name in names}
            return self._set_up(model).measure_zero_shot(recipe, seed, missing, limit, batch_size)

        return self._get_or_run_together(questions, measure)

    def _get_or_run_together(self, questions: Mapping[Any, dict], measure: Callable[[Collection[Any]], Mapping[Any, dict]]) -> list[Record]:
        """The records of questions that are cheaper measured together: while one process does, others wait for the first of them."""
        found: dict = {}

        def measured(name) -> dict:
            if name not in found:
                found.update(measure([other for other in questions if self.store.get(questions[other]) is None]))
            return found[name]

        return [self.store.get_or_run(question, functools.partial(measured, name)) for name, question in questions.items()]

    def record(self, model: str, recipe: Recipe | None = None, seed: int = 0) -> Record:
        """The record of one recipe (None: dense) on one model, calibrated with one seed."""
        bench = self._set_up(model)
        return self.store.get_or_run(bench.question(recipe, seed), lambda: bench.measure(recipe, seed))

    def compare_masks(self, pairs: Sequence[tuple[Recipe, Recipe]], other: "Experiment | None" = None):
        """One row per model, seed and pair (recipe, reference): overlap of their masks, and how evenly the recipe keeps.

        Jaccard overlap, and normalised entropy over rows and columns, see `symprune.overlap`: means over the linears (pandas),
        each linear's in columns `linear_*`. Masks follow from statistics of the dense model; no weight is changed, nothing is
        evaluated. other: the experiment whose calibration makes the references' masks, seed by seed (default: this one).
        Raises UserError unless propagate is "dense", and ValueError unless the other has as many seeds.
        """
        import pandas as pd

        other = other or self
        if {self.propagate, other.propagate} != {"dense"}:
            raise UserError("masks are compared on statistics of the dense model: compare_masks needs propagate 'dense'")
        pairs, rows = list(dict.fromkeys(pairs)), []
        for model in self.models:
            bench, reference = self._set_up(model), other._set_up(model)
            for seeds in zip(self.seeds, other.seeds, strict=True):
                asked = [pair for pair in pairs if seeds[0] == self.seeds[0] or any(recipe.uses for recipe in pair)]
                questions = {pair: bench.mask_question(pair, seeds, reference) for pair in asked}
                rows += map(
                    mask_row,
                    self._get_or_run_together(
                        questions,
                        lambda missing, bench=bench, seeds=seeds, reference=reference: bench.measure_masks(missing, seeds, reference),
                    ),
                )
        return pd.DataFrame(rows)

    def time_scores(self, scores: Sequence[Any], repeats: int = 7, n_layers: int = 3):
        """One row per model and score: median seconds of scoring `n_layers` decoder layers, and the ratio to the first score (pandas).

        Rounds in which every score runs once, one after the other, so that a busy machine slows all alike; the ratio is the median of
        the ratios within rounds, all of which stand in `log_ratios`. The first round is not counted. Seconds are
        those of the machine on record.
        """
        import pandas as pd

        rows = []
        for model in self.models:
            bench = self._set_up(model)
            question = bench.timing_question(scores, repeats, n_layers)
            record = self.store.get_or_run(question, lambda bench=bench: bench.measure_seconds(scores, repeats, n_layers))
            rows += timing_rows(record, scores)
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
            experiment.evaluation_corpus, self.tokenizer, experiment.eval_seq_len, experiment.n_eval, experiment.evaluation_split
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
                "seq_len": x.eval_seq_len,
                "windows": data.digest(self.evaluation),
                "n_windows": len(self.evaluation),
                "bos": data.adds_bos(self.tokenizer),
            },
        }

    def mask_question(self, pair: tuple[Recipe, Recipe], seeds: tuple[int, int], reference: "_Bench") -> dict:
        """What a comparison of masks is named by."""
        sides = [
            {"recipe": recipe.to_dict(), "calibration": bench._calibrated_on(recipe.uses, seed)}
            for recipe, seed, bench in zip(pair, seeds, (self, reference), strict=True)
        ]
        return {"model": self._identity(), **sides[0], "reference": sides[1]}

    def timing_question(self, scores: Sequence[Any], repeats: int, n_layers: int) -> dict:
        """What a timing is named by; the machine that was timed stands in the record beside it."""
        timed = {"scores": [method_dict(score) for score in scores], "repeats": repeats, "n_layers": n_layers}
        return {"model": self._identity(), "timing": timed}

    def _identity(self) -> dict:
        x = self.experiment
        return {"name": self.name, "weights": self.fingerprint, "dtype": x.dtype, "device": models.device_type(x.device)}

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

    def zero_shot_question(self, recipe: Recipe | None, seed: int, task: dict) -> dict:
        """What a zero-shot score is named by: the evaluation text has no part in it."""
        asked = self.question(recipe, seed)
        return {key: asked[key] for key in ("model", "recipe", "calibration")} | {"zero_shot": task | {"bos": asked["evaluation"]["bos"]}}

    def measure(self, recipe: Recipe | None, seed: int) -> dict:
        """Prune, evaluate, restore."""
        model, metrics = self._pruned_model(recipe, seed)
        start = time.perf_counter()
        value = perplexity(model, self.evaluation, batch_size=self.experiment.batch_size)
        if recipe is None:
            gate.check_dense(self.name, self._dense_protocol(), float(value), data.adds_bos(self.tokenizer))
        return metrics | {
            "perplexity": float(value),
            "perplexity_stderr": None if math.isnan(value.stderr) else value.stderr,
            "window_losses": list(value.losses),
            "seconds_evaluate": time.perf_counter() - start,
        }

    def measure_zero_shot(self, recipe: Recipe | None, seed: int, tasks: Mapping[str, Any], limit: int | None, batch_size: int) -> dict:
        """Prune, score every task, restore; the metrics of each task by its name."""
        model, metrics = self._pruned_model(recipe, seed)
        pruning = {key: metrics[key] for key in ("sparsity", "seconds_prune") if key in metrics}
        measured = {}
        for name, task in tasks.items():
            start = time.perf_counter()
            score = zero_shot(model, self.tokenizer, {name: task}, limit, batch_size).scores[name]
            measured[name] = pruning | {
                "acc": score.acc,
                "stderr": None if math.isnan(score.stderr) else score.stderr,
                "n": score.n,
                "acc_norm": score.acc_norm,
                "correct": "".join(map(str, map(int, score.correct))),
                "seconds_evaluate": time.perf_counter() - start,
            }
        return measured

    def _pruned_model(self, recipe: Recipe | None, seed: int) -> tuple[torch.nn.Module, dict[str, Any]]:
        """The model, pruned by a recipe (None: not at all), and what pruning it brought."""
        x = self.experiment
        if recipe is None:
            return self._pristine_model(), {}
        if gate.is_gated(self.name, self._dense_protocol()):  # on record only if it passed
            x.store.get_or_run(self.question(None, seed), lambda: self.measure(None, seed))
        statistics = self._dense_statistics(recipe.uses, seed) if recipe.uses and x.propagate == "dense" else None
        calibration = statistics or (self.windows(seed) if recipe.uses else None)
        model = self._pristine_model()
        report = prune(model, calibration, recipe, x.propagate if recipe.uses else "dense", batch_size=x.batch_size)
        metrics: dict[str, Any] = {
            "sparsity": report.sparsity,
            "linears": {linear.name: linear.sparsity for linear in report.linears},
            "seconds_prune": sum(report.seconds.values()),
        }
        if recipe.refine:
            metrics["refined"] = {linear.name: linear.refined for linear in report.linears if linear.refined}
        return model, metrics

    def _dense_protocol(self) -> dict:
        x = self.experiment
        return {"corpus": x.evaluation_corpus, "split": x.evaluation_split, "seq_len": x.eval_seq_len, "n_eval": x.n_eval}

    @torch.no_grad()
    def measure_masks(self, pairs: Sequence[tuple[Recipe, Recipe]], seeds: tuple[int, int], reference: "_Bench") -> dict:
        """Every pair's agreement, linear by linear: each score and each mask is computed once for all pairs, and none is kept."""
        ours, theirs = (tuple(dict.fromkeys(side)) for side in zip(*pairs, strict=True))
        if reference is self and seeds[0] == seeds[1]:
            ours = theirs = tuple(dict.fromkeys(ours + theirs))
        linears = models.named_linears(self._pristine_model())
        stats = self._statistics_for(ours, seeds[0], linears)
        reference_stats = stats if theirs is ours else reference._statistics_for(theirs, seeds[1], linears)
        measured: dict = {pair: {"linears": {}} for pair in pairs}
        for done, (name, linear) in enumerate(linears.items()):
            announce(f"{self.name} masks of {name}, seed {seeds[0]}", done, len(linears))
            masks = _masks(name, linear, ours, stats[name])
            reference_masks = masks if theirs is ours else _masks(name, linear, theirs, reference_stats[name])
            for pair in pairs:
                measured[pair]["linears"][name] = {
                    "jaccard": jaccard(masks[pair[0]], reference_masks[pair[1]]),
                    "entropy_rows": entropy_of_kept(masks[pair[0]], dim=0),
                    "entropy_columns": entropy_of_kept(masks[pair[0]], dim=1),
                }
        return measured

    def _statistics_for(self, recipes: Sequence[Recipe], seed: int, linears: Collection[str]) -> dict:
        """What these recipes read of each linear: nothing, for some."""
        uses = frozenset().union(*(recipe.uses for recipe in recipes))
        return self._dense_statistics(uses, seed) if uses else dict.fromkeys(linears)

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
        return {"seconds": [taken[1:] for taken in seconds], "linears": names, "threads": torch.get_num_threads()}

    def _now(self) -> float:
        if models.device_type(self.experiment.device) == "cuda":
            for gpu in range(torch.cuda.device_count()):
                torch.cuda.synchronize(gpu)
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
        if self._statistics is None or self._statistics[0] != seed or not wanted <= self._statistics[1]:
            uses = wanted | (self._statistics[1] if self._statistics and self._statistics[0] == seed else frozenset())
            uses -= {"gram"} - wanted  # Gram matrices are too large to keep for recipes that do not read them
            self._statistics = seed, uses, self._gathered_or_kept(uses, seed)
        return self._statistics[2]

    def _gathered_or_kept(self, uses: frozenset[str], seed: int) -> dict:
        """Statistics of the dense model, kept on disk for other processes; Gram matrices are too large for that."""
        x, windows = self.experiment, self.windows(seed)
        options = {"output_side": x.output_side, "batch_size": x.batch_size}
        if "gram" in uses:
            return gather(self._pristine_model(), windows, uses, **options)
        asked = stats_files.asked(self.fingerprint, uses, dtype=x.dtype, device=x.device, seq_len=x.seq_len, **options)
        found = stats_files.remembered(
            paths.statistics(), asked, data.digest(windows), lambda: accumulate(self._pristine_model(), windows, uses, **options)
        )
        return beside_weights(found, models.named_linears(self._pristine_model()))


def _with_identity(names: Sequence[str], limit: int | None) -> dict[str, tuple[Any, dict]]:
    return {name: (task, identity(task, limit)) for name, task in load_tasks(names).items()}


def _masks(name: str, linear: torch.nn.Module, recipes: Sequence[Recipe], stats: LayerStats | None) -> dict[Recipe, torch.Tensor]:
    """The mask that each recipe gives one linear; a score that several share is computed once."""
    weight = models.weight_view(linear)
    scores = {score: score_linear(score, weight, stats) for score in dict.fromkeys(recipe.score for recipe in recipes)}
    return {recipe: make_mask(name, weight, scores[recipe.score], stats, recipe)[0] for recipe in recipes}
