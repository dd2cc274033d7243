"""One model under one protocol: loaded when something must be measured, and as it was before each recipe."""

from collections.abc import Collection
from functools import cached_property
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from symprune import models
from symprune.base import paths
from symprune.measure.dense_outputs import DenseOutputs, dense_outputs
from symprune.measure.protocol import Protocol
from symprune.measure.record_rows import totals
from symprune.methods.recipe import Recipe
from symprune.methods.sketch import lacking
from symprune.methods.stats import LayerStats
from symprune.models.precision import calibrating_in
from symprune.pruning import stats_files
from symprune.pruning.calibrate import accumulate, gather
from symprune.pruning.prune import prune
from symprune.pruning.sources import beside_weights
from symprune.text import corpora
from symprune.text.tasks import load_tasks

_SHARED = ("dtype", "device", "calibration_dtype")


class Loaded:
    """A model in memory that takes its own weights back whenever it is asked for.

    A process holds one at a time, the one that was used last, whichever experiment asks for it.
    """

    _last: "tuple[dict, str, Loaded] | None" = None  # the model's name on record, device, and itself

    def __init__(self, model: nn.Module):
        self._model, self._copy = model, models.copy_weights(model)
        self.pruned_by: dict | None = None  # what it is pruned by now; None: by nothing, or in parts
        self.pruning: dict[str, Any] = {}  # what that brought
        self._outputs: dict[str, DenseOutputs] = {}  # by the digest of the windows they are of

    @classmethod
    def get(cls, name: dict, device: str) -> "Loaded":
        """The model of that name on record, loaded unless it was the last."""
        if cls._last is None or cls._last[:2] != (name, device):
            cls._last = None  # the former model's memory is free before the next is loaded
            cls._last = name, device, cls(models.load_model(name["name"], name["dtype"], device))
        return cls._last[2]

    def pristine(self) -> nn.Module:
        """The dense model."""
        self.pruned_by, self.pruning = None, {}
        models.restore_weights(self._model, self._copy)
        return self._model

    def dense_outputs(self, windows: Tensor, batch_size: int) -> DenseOutputs:
        """What the dense model predicts of these windows, kept for the last two that were asked about."""
        digest = corpora.digest(windows)
        if digest not in self._outputs:
            for oldest in list(self._outputs)[:-1]:
                del self._outputs[oldest]
            self._outputs[digest] = dense_outputs(self.pristine(), windows, batch_size)
        return self._outputs[digest]

    def as_it_is(self) -> nn.Module:
        """The model with the weights that it has now."""
        return self._model


class Bench:
    """What measurements have in common: the model, its texts, its statistics, and how all of it is named."""

    def __init__(self, protocol: Protocol, name: str):
        self.protocol, self.name = protocol, name
        self._calibration: dict[int, Tensor] = {}
        self._statistics: tuple[int, frozenset, dict] | None = None  # seed, fields, statistics
        self._tasks: dict[str, Any] = {}
        self._others: dict[Protocol, Bench] = {}

    def under(self, protocol: Protocol) -> "Bench":
        """The same model under another protocol."""
        if protocol == self.protocol:
            return self
        if protocol not in self._others:
            if any(getattr(protocol, name) != getattr(self.protocol, name) for name in _SHARED):
                raise ValueError(f"two protocols share a model only if they agree in {', '.join(_SHARED)}")
            self._others[protocol] = Bench(protocol, self.name)
        return self._others[protocol]

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return models.load_tokenizer(self.name)

    @property
    def evaluation_windows(self) -> Tensor:
        """The windows that perplexity is taken of."""
        return self._evaluation_text[0]

    @cached_property
    def _evaluation_text(self) -> tuple[Tensor, list[int]]:
        p = self.protocol
        return corpora.evaluation_text(
            p.evaluation_corpus, self.tokenizer, p.eval_seq_len, p.n_eval, p.evaluation_split
        )

    def calibration_windows(self, seed: int) -> Tensor:
        """The calibration windows of one seed."""
        p = self.protocol
        if seed not in self._calibration:
            self._calibration[seed] = corpora.calibration_windows(
                p.calibration_corpus, self.tokenizer, p.n_calib, p.seq_len, seed
            )
        return self._calibration[seed]

    def task(self, name: str) -> Any:
        """lm-eval's object of a zero-shot task."""
        if name not in self._tasks:
            self._tasks |= load_tasks([name])
        return self._tasks[name]

    # How a record names what it depends on, and no more, so that notebooks share what they have in common.

    @cached_property
    def model_name(self) -> dict:
        """The model, its weights' hash, dtype, and the kind of device unless that only rounds otherwise."""
        p, weights = self.protocol, models.fingerprint(self.name)
        name = {"name": self.name, "weights": weights, "dtype": p.dtype}
        return name if p.dtype in ("float32", "float64") else name | self.device_name

    @property
    def device_name(self) -> dict:
        """The kind of device."""
        return {"device": models.device_type(self.protocol.device)}

    @property
    def precision_name(self) -> dict:
        """What masks are computed in; from float64 they are the same on every device, else it is named."""
        dtype = self.protocol.calibration_dtype
        return {"calibration_dtype": dtype} | ({} if dtype == "float64" else self.device_name)

    def calibration_name(self, uses: Collection[str], seed: int) -> dict | None:
        """What statistics are gathered on and how; None where none are used."""
        p = self.protocol
        if not uses:
            return None
        name = {
            "corpus": p.calibration_corpus,
            "n_calib": p.n_calib,
            "seq_len": p.seq_len,
            "seed": seed,
            "propagate": p.propagate,
            "windows": corpora.digest(self.calibration_windows(seed)),
        }
        return name | ({"output_side": p.output_side} if "output_norm" in uses else {})

    def recipe_name(self, recipe: Recipe | None, seed: int) -> dict[str, Any]:
        """A recipe (None: the dense model), and what its masks follow from beside the weights."""
        if recipe is None:
            return {"recipe": None, "calibration": None}
        return {
            "recipe": recipe.to_dict(),
            "calibration": self.calibration_name(recipe.uses, seed),
            **self.precision_name,
        }

    def evaluation_name(self) -> dict:
        """What perplexity is taken of; articles: the one that each window's first token belongs to."""
        p, (windows, articles) = self.protocol, self._evaluation_text
        return {
            "corpus": p.evaluation_corpus,
            "split": p.evaluation_split,
            "seq_len": p.eval_seq_len,
            "windows": corpora.digest(windows),
            "n_windows": len(windows),
            "articles": articles,
            "bos": corpora.adds_bos(self.tokenizer),
        }

    # What measurements work on.

    @property
    def loaded(self) -> Loaded:
        """The model in memory."""
        return Loaded.get(self.model_name, self.protocol.device)

    def dense_outputs(self) -> DenseOutputs:
        """What the dense model predicts of the evaluation windows; ask before pruning: it may undo that."""
        return self.loaded.dense_outputs(self.evaluation_windows, self.protocol.batch_size)

    def pruned(self, recipe: Recipe | None, seed: int) -> tuple[nn.Module, dict[str, Any]]:
        """The model pruned by a recipe (None: dense), and what pruning it brought; kept until the next call.

        So several measurements of one pruned model follow each other without pruning it again.
        """
        if recipe is None:
            return self.loaded.pristine(), {}
        # Protocols that only evaluate otherwise share it.
        how = {"propagate": self.protocol.propagate, "batch_size": self.protocol.batch_size}
        loaded, wanted = self.loaded, self.recipe_name(recipe, seed) | how
        if loaded.pruned_by != wanted:
            loaded.pruning = self._prune(recipe, seed)
            loaded.pruned_by = wanted
        return loaded.as_it_is(), loaded.pruning

    def _prune(self, recipe: Recipe, seed: int) -> dict[str, Any]:
        p, calibration = self.protocol, None
        if recipe.uses:
            dense = p.propagate == "dense"
            calibration = self.statistics(recipe.uses, seed) if dense else self.calibration_windows(seed)
        propagate = p.propagate if recipe.uses else "dense"
        with calibrating_in(p.calibration_dtype):
            report = prune(self.loaded.pristine(), calibration, recipe, propagate, batch_size=p.batch_size)
        pruning: dict[str, Any] = {
            "sparsity": report.sparsity,
            "seconds_prune": sum(report.seconds.values()),
        }
        if recipe.refine:
            pruning["refined"] = totals([linear.refined for linear in report.linears if linear.refined])
        if updated := [linear.updated for linear in report.linears if linear.updated]:
            pruning["updated"] = {name: fmean(of[name] for of in updated) for name in updated[0]}
        return pruning

    def statistics(self, uses: frozenset[str], seed: int) -> dict[str, LayerStats | None]:
        """Statistics of the dense model, gathered once per seed; anew only for a field that is not there yet.

        The dense model is in place afterwards. Without uses there are none: None for each linear.
        """
        model = self.loaded.pristine()
        if not uses:
            return dict.fromkeys(models.named_linears(model))
        held_seed, held, _ = self._statistics or (None, frozenset(), {})
        if held_seed != seed or lacking(uses, held):
            wanted = uses | (held if held_seed == seed else frozenset())
            wanted -= {
                "gram",
                "gradient_gram",
            } - uses  # Gram matrices are too large to keep for recipes that do not read them
            self._statistics = seed, wanted, self._gathered_or_kept(model, wanted, seed)
        return self._statistics[2]

    def _gathered_or_kept(self, model: nn.Module, uses: frozenset[str], seed: int) -> dict[str, LayerStats]:
        """Statistics that are kept on disk for other processes; Gram matrices are too large for that."""
        p, windows = self.protocol, self.calibration_windows(seed)
        how = {"output_side": p.output_side, "batch_size": p.batch_size}
        where = {"dtype": p.dtype, "device": p.device, "seq_len": p.seq_len}
        with calibrating_in(p.calibration_dtype):
            if uses & {"gram", "gradient_gram"}:
                return gather(model, windows, uses, **how)
            found = stats_files.remembered(
                paths.statistics(),
                stats_files.asked(self.model_name["weights"], uses, **where, **how),
                corpora.digest(windows),
                lambda: accumulate(model, windows, uses, **how),
            )
        return beside_weights(found, models.named_linears(model))

    def synchronize(self) -> None:
        """Wait until the devices have done what they were given, for a clock that is read next."""
        if models.device_type(self.protocol.device) == "cuda":
            for gpu in range(torch.cuda.device_count()):
                torch.cuda.synchronize(gpu)
