"""Models x seeds x recipes, each measured once and kept as a record."""

import functools
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from symprune import models
from symprune.base import paths
from symprune.base.errors import UserError, unknown
from symprune.base.progress import announce
from symprune.base.records import REPLAY, Record, Store
from symprune.measure import executors
from symprune.measure.bench import Bench
from symprune.measure.record_rows import mask_row, perplexity_row, timing_rows, zero_shot_row
from symprune.methods.recipe import Recipe
from symprune.pruning.calibrate import OUTPUT_SIDES
from symprune.pruning.prune import PROPAGATE
from symprune.text.tasks import identity, load_tasks


@dataclass
class Experiment:
    """A protocol: which models, calibrated and evaluated how. `run` measures recipes under it, or finds their
    records.

    The parameters are those of a profile. Recipes that use no statistics are measured once, not once per
    seed. What a record depends on goes into its key: the recipe, the weights' hash, the calibration windows'
    hash, the evaluation windows' hash.
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
    _bench: "Bench | None" = field(default=None, init=False, repr=False)
    # of zero_shot: each with its identity
    _tasks: dict[str, tuple[Any, dict]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        self.eval_seq_len = self.eval_seq_len or self.seq_len
        sizes = {
            "n_calib": self.n_calib,
            "seq_len": self.seq_len,
            "n_eval": self.n_eval,
            "batch_size": self.batch_size,
        }
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise UserError(f"{name} must be at least 1, not {size}")
        if not self.seeds or not self.models:
            raise UserError("an experiment needs at least one model and one seed")
        for kind, name, known in [
            ("propagate", self.propagate, PROPAGATE),
            ("output_side", self.output_side, OUTPUT_SIDES),
        ]:
            if name not in known:
                raise unknown(kind, name, known)
        if self.output_side == "gradients" and self.propagate == "pruned":
            raise UserError(
                "output_side 'gradients' is gathered on the dense model: it needs propagate 'dense'"
            )
        self.store = Store(paths.records(self.profile))

    def __getstate__(self) -> dict:
        """What a worker is sent: the protocol and where records are, not a loaded model."""
        return {**vars(self), "_bench": None, "_tasks": {}}

    def run(self, recipes: Sequence[Recipe | None], executor: Callable | None = None):
        """One row per model, recipe and seed (pandas), None being the dense model; measured, or found as
        records.

        executor: who measures, see `symprune.measure.executors` (None: what SYMPRUNE_EXECUTOR describes, else
        this process, in order).
        """
        return self._frame(
            recipes, self._perplexity_questions, self._perplexity_records, perplexity_row, executor
        )

    def zero_shot(
        self,
        recipes: Sequence[Recipe | None],
        tasks: Sequence[str],
        limit: int | None = None,
        batch_size: int = 8,
        executor: Callable | None = None,
    ):
        """One row per model, recipe, seed and zero-shot task (pandas), see `symprune.measure.zero_shot`;
        measured, or found as records.

        Models are pruned exactly as `run` prunes them. `correct` holds a 1 or 0 for each example, in the
        order of the task.
        """
        self._tasks = _with_identity(tasks, limit)
        questions = functools.partial(self._zero_shot_questions, limit=limit)
        records = functools.partial(
            self._zero_shot_records, tasks=tuple(tasks), limit=limit, batch_size=batch_size
        )
        return self._frame(recipes, questions, records, zero_shot_row, executor)

    def _frame(
        self,
        recipes: Sequence[Recipe | None],
        questions_of: Callable,
        records_of: Callable,
        row_of: Callable,
        executor,
    ):
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
            # where an executor left one out, it is measured here, or waited for
            rows += map(row_of, records_of(*one))
        announce("tables and figures", len(asked), len(asked))
        order = {(recipe.key if recipe else "dense"): i for i, recipe in enumerate(dict.fromkeys(recipes))}
        frame = pd.DataFrame(rows)
        return frame.sort_values(
            "recipe_key", key=lambda keys: [order[k] for k in keys], kind="stable"
        ).reset_index(drop=True)

    def _state(self, questions: Sequence[dict]) -> str:
        """What an executor is told of questions that are measured together: "recorded", "busy" (by another
        process) or "missing".
        """
        states = {self.store.state(question) for question in questions}
        return next((state for state in ("busy", "missing") if state in states), "recorded")

    def _perplexity_questions(self, model: str, recipe: Recipe | None, seed: int) -> list[dict]:
        return [self._set_up(model).question(recipe, seed)]

    def _perplexity_records(self, model: str, recipe: Recipe | None, seed: int) -> list[Record]:
        return [self.record(model, recipe, seed)]

    def _zero_shot_questions(
        self, model: str, recipe: Recipe | None, seed: int, limit: int | None
    ) -> list[dict]:
        bench = self._set_up(model)
        return [
            bench.zero_shot_question(recipe, seed, {"task": name, "limit": limit, **known})
            for name, (_, known) in self._tasks.items()
        ]

    def _zero_shot_records(
        self,
        model: str,
        recipe: Recipe | None,
        seed: int,
        tasks: Sequence[str],
        limit: int | None,
        batch_size: int,
    ) -> list[Record]:
        self._tasks = self._tasks or _with_identity(tasks, limit)  # a worker is sent names
        questions = dict(zip(self._tasks, self._zero_shot_questions(model, recipe, seed, limit), strict=True))

        def measure(names: Collection[str]) -> dict:
            missing = {name: self._tasks[name][0] for name in names}
            return self._set_up(model).measure_zero_shot(recipe, seed, missing, limit, batch_size)

        return self._get_or_run_together(questions, measure)

    def _get_or_run_together(
        self, questions: Mapping[Any, dict], measure: Callable[[Collection[Any]], Mapping[Any, dict]]
    ) -> list[Record]:
        """The records of questions that are cheaper measured together: while one process does, others wait
        for the first of them.
        """
        found: dict = {}

        def measured(name) -> dict:
            if name not in found:
                found.update(
                    measure([other for other in questions if self.store.get(questions[other]) is None])
                )
            return found[name]

        return [
            self.store.get_or_run(question, functools.partial(measured, name))
            for name, question in questions.items()
        ]

    def record(self, model: str, recipe: Recipe | None = None, seed: int = 0) -> Record:
        """The record of one recipe (None: dense) on one model, calibrated with one seed."""
        bench = self._set_up(model)
        return self.store.get_or_run(bench.question(recipe, seed), lambda: bench.measure(recipe, seed))

    def compare_masks(self, pairs: Sequence[tuple[Recipe, Recipe]], other: "Experiment | None" = None):
        """One row per model, seed and pair (recipe, reference): overlap of their masks, and how evenly the
        recipe keeps.

        Jaccard overlap, and normalised entropy over rows and columns, see `symprune.methods.overlap`: means
        over the linears (pandas), each linear's in columns `linear_*`. Masks follow from statistics of the
        dense model; no weight is changed, nothing is evaluated. other: the experiment whose calibration makes
        the references' masks, seed by seed (default: this one). Raises UserError unless propagate is "dense",
        and ValueError unless the other has as many seeds.
        """
        import pandas as pd

        other = other or self
        if {self.propagate, other.propagate} != {"dense"}:
            raise UserError(
                "masks are compared on statistics of the dense model: compare_masks needs propagate 'dense'"
            )
        pairs, rows = list(dict.fromkeys(pairs)), []
        for model in self.models:
            bench, reference = self._set_up(model), other._set_up(model)
            for seeds in zip(self.seeds, other.seeds, strict=True):
                asked = [
                    pair for pair in pairs if seeds[0] == self.seeds[0] or any(recipe.uses for recipe in pair)
                ]
                questions = {pair: bench.mask_question(pair, seeds, reference) for pair in asked}
                rows += map(
                    mask_row,
                    self._get_or_run_together(
                        questions,
                        lambda missing, bench=bench, seeds=seeds, reference=reference: bench.measure_masks(
                            missing, seeds, reference
                        ),
                    ),
                )
        return pd.DataFrame(rows)

    def time_scores(self, scores: Sequence[Any], repeats: int = 7, n_layers: int = 3):
        """One row per model and score: median seconds of scoring `n_layers` decoder layers, and the ratio to
        the first score (pandas).

        Rounds in which every score runs once, one after the other, so that a busy machine slows all alike;
        the ratio is the median of the ratios within rounds, all of which stand in `log_ratios`. The first
        round is not counted. Seconds are those of the machine on record.
        """
        import pandas as pd

        rows = []
        for model in self.models:
            bench = self._set_up(model)
            question = bench.timing_question(scores, repeats, n_layers)
            record = self.store.get_or_run(
                question, lambda bench=bench: bench.measure_seconds(scores, repeats, n_layers)
            )
            rows += timing_rows(record, scores)
        return pd.DataFrame(rows)

    def _set_up(self, model: str) -> "Bench":
        if self._bench is None or self._bench.name != model:
            self._bench = None  # the former model's memory is free before the next is loaded
            self._bench = Bench(self, model)
        return self._bench


def _with_identity(names: Sequence[str], limit: int | None) -> dict[str, tuple[Any, dict]]:
    return {name: (task, identity(task, limit)) for name, task in load_tasks(names).items()}
