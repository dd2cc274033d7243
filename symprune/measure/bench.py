"""One model under one protocol: loaded when something must be measured, and as it was before each recipe."""

import math
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from symprune import models
from symprune.base import paths
from symprune.base.progress import announce
from symprune.measure import dense_gate
from symprune.measure.perplexity import perplexity
from symprune.measure.zero_shot import zero_shot
from symprune.methods.overlap import entropy_of_kept, jaccard
from symprune.methods.recipe import Recipe, method_dict
from symprune.methods.stats import LayerStats
from symprune.pruning import stats_files
from symprune.pruning.calibrate import accumulate, gather
from symprune.pruning.prune import make_mask, prune, score_linear
from symprune.pruning.sources import beside_weights
from symprune.text import corpora


class Bench:
    """One model under one protocol: loaded only if something must be measured, its weights put back between
    recipes.
    """

    def __init__(self, experiment: Any, name: str):
        self.experiment, self.name = experiment, name
        self.tokenizer = models.load_tokenizer(name)
        self.fingerprint = models.fingerprint(name)
        self.evaluation = corpora.evaluation_windows(
            experiment.evaluation_corpus,
            self.tokenizer,
            experiment.eval_seq_len,
            experiment.n_eval,
            experiment.evaluation_split,
        )
        self._calibration: dict[int, torch.Tensor] = {}
        self._model: torch.nn.Module | None = None
        self._pristine: dict[str, torch.Tensor] = {}
        self._statistics: tuple[int, frozenset, dict] | None = None  # seed, fields, statistics

    def question(self, recipe: Recipe | None, seed: int) -> dict:
        """What a record is named by; no more than the answer depends on, so that notebooks share what they
        have in common.
        """
        x = self.experiment
        return {
            "model": self._identity(),
            "recipe": recipe.to_dict() if recipe else None,
            "calibration": self._calibrated_on(recipe.uses if recipe else frozenset(), seed),
            "evaluation": {
                "corpus": x.evaluation_corpus,
                "split": x.evaluation_split,
                "seq_len": x.eval_seq_len,
                "windows": corpora.digest(self.evaluation),
                "n_windows": len(self.evaluation),
                "bos": corpora.adds_bos(self.tokenizer),
            },
        }

    def mask_question(self, pair: tuple[Recipe, Recipe], seeds: tuple[int, int], reference: "Bench") -> dict:
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
        return {
            "name": self.name,
            "weights": self.fingerprint,
            "dtype": x.dtype,
            "device": models.device_type(x.device),
        }

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
            "windows": corpora.digest(self.windows(seed)),
        }
        return calibration | ({"output_side": x.output_side} if "output_norm" in uses else {})

    def zero_shot_question(self, recipe: Recipe | None, seed: int, task: dict) -> dict:
        """What a zero-shot score is named by: the evaluation text has no part in it."""
        asked = self.question(recipe, seed)
        return {key: asked[key] for key in ("model", "recipe", "calibration")} | {
            "zero_shot": task | {"bos": asked["evaluation"]["bos"]}
        }

    def measure(self, recipe: Recipe | None, seed: int) -> dict:
        """Prune, evaluate, restore."""
        model, metrics = self._pruned_model(recipe, seed)
        start = time.perf_counter()
        value = perplexity(model, self.evaluation, batch_size=self.experiment.batch_size)
        if recipe is None:
            dense_gate.check_dense(
                self.name, self._dense_protocol(), float(value), corpora.adds_bos(self.tokenizer)
            )
        return metrics | {
            "perplexity": float(value),
            "perplexity_stderr": None if math.isnan(value.stderr) else value.stderr,
            "window_losses": list(value.losses),
            "seconds_evaluate": time.perf_counter() - start,
        }

    def measure_zero_shot(
        self, recipe: Recipe | None, seed: int, tasks: Mapping[str, Any], limit: int | None, batch_size: int
    ) -> dict:
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
        if dense_gate.is_gated(self.name, self._dense_protocol()):  # on record only if it passed
            x.store.get_or_run(self.question(None, seed), lambda: self.measure(None, seed))
        statistics = (
            self._dense_statistics(recipe.uses, seed) if recipe.uses and x.propagate == "dense" else None
        )
        calibration = statistics or (self.windows(seed) if recipe.uses else None)
        model = self._pristine_model()
        report = prune(
            model, calibration, recipe, x.propagate if recipe.uses else "dense", batch_size=x.batch_size
        )
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
        return {
            "corpus": x.evaluation_corpus,
            "split": x.evaluation_split,
            "seq_len": x.eval_seq_len,
            "n_eval": x.n_eval,
        }

    @torch.no_grad()
    def measure_masks(
        self, pairs: Sequence[tuple[Recipe, Recipe]], seeds: tuple[int, int], reference: "Bench"
    ) -> dict:
        """Every pair's agreement, linear by linear: each score and each mask is computed once for all pairs,
        and none is kept.
        """
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
        """Seconds of each score in each round, over the linears of decoder layers spread evenly through the
        model.
        """
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
        return {
            "seconds": [taken[1:] for taken in seconds],
            "linears": names,
            "threads": torch.get_num_threads(),
        }

    def _now(self) -> float:
        if models.device_type(self.experiment.device) == "cuda":
            for gpu in range(torch.cuda.device_count()):
                torch.cuda.synchronize(gpu)
        return time.perf_counter()

    def windows(self, seed: int) -> torch.Tensor:
        """Calibration windows of one seed."""
        x = self.experiment
        if seed not in self._calibration:
            self._calibration[seed] = corpora.calibration_windows(
                x.calibration_corpus, self.tokenizer, x.n_calib, x.seq_len, seed
            )
        return self._calibration[seed]

    def _pristine_model(self) -> torch.nn.Module:
        if self._model is None:
            self._model = models.load_model(self.name, self.experiment.dtype, self.experiment.device)
            self._pristine = models.copy_weights(self._model)
        else:
            models.restore_weights(self._model, self._pristine)
        return self._model

    def _dense_statistics(self, wanted: frozenset[str], seed: int) -> dict:
        """Statistics of the dense model, gathered once per seed; gathered anew only when a field is wanted
        that is not yet there.
        """
        if self._statistics is None or self._statistics[0] != seed or not wanted <= self._statistics[1]:
            uses = wanted | (
                self._statistics[1] if self._statistics and self._statistics[0] == seed else frozenset()
            )
            uses -= {"gram"} - wanted  # Gram matrices are too large to keep for recipes that do not read them
            self._statistics = seed, uses, self._gathered_or_kept(uses, seed)
        return self._statistics[2]

    def _gathered_or_kept(self, uses: frozenset[str], seed: int) -> dict:
        """Statistics of the dense model, kept on disk for other processes; Gram matrices are too large for
        that.
        """
        x, windows = self.experiment, self.windows(seed)
        options = {"output_side": x.output_side, "batch_size": x.batch_size}
        if "gram" in uses:
            return gather(self._pristine_model(), windows, uses, **options)
        asked = stats_files.asked(
            self.fingerprint, uses, dtype=x.dtype, device=x.device, seq_len=x.seq_len, **options
        )
        found = stats_files.remembered(
            paths.statistics(),
            asked,
            corpora.digest(windows),
            lambda: accumulate(self._pristine_model(), windows, uses, **options),
        )
        return beside_weights(found, models.named_linears(self._pristine_model()))


def _masks(
    name: str, linear: torch.nn.Module, recipes: Sequence[Recipe], stats: LayerStats | None
) -> dict[Recipe, torch.Tensor]:
    """The mask that each recipe gives one linear; a score that several share is computed once."""
    weight = models.weight_view(linear)
    scores = {
        score: score_linear(score, weight, stats)
        for score in dict.fromkeys(recipe.score for recipe in recipes)
    }
    return {recipe: make_mask(name, weight, scores[recipe.score], stats, recipe)[0] for recipe in recipes}
