"""Where the loop over decoder layers has its statistics from: windows, earlier statistics, or nowhere.

Each source has `statistics(index, linears)`, the statistics of the linears of decoder layer `index` by full
name, and `advance(index)`, which is called when that layer is pruned.
"""

import time
from collections.abc import Callable, Collection, Mapping, MutableSequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from symprune.base.types import Windows
from symprune.methods.recipe import Recipe
from symprune.methods.stats import LayerStats
from symprune.models.layers import named_linears
from symprune.pruning.calibrate import collecting, gather
from symprune.pruning.runner import LayerRunner, run_whole, runs_by_layer, tell_whole

GRADIENTS = "gradient_gram"  # the statistic that only the whole dense model gives


@dataclass(frozen=True)
class WindowsBeside:
    """Windows to run, and statistics of the dense model from which `gradient_gram` is taken."""

    windows: Windows
    dense: Mapping[str, LayerStats]


Calibration = Windows | WindowsBeside | Mapping[str, LayerStats] | None  # what people give


@runtime_checkable
class Source(Protocol):
    """What the loop asks of a calibration."""

    def statistics(self, index: int, linears: Mapping[str, nn.Module]) -> dict[str, LayerStats | None]: ...

    def advance(self, index: int) -> None: ...


@dataclass(frozen=True)
class FromWindows:
    """Statistics of windows that run through the model, each decoder layer after the ones before it."""

    way: ClassVar[str] = "layer by layer"

    runner: LayerRunner
    uses: Collection[str]
    propagate: str

    def statistics(self, index: int, linears: Mapping[str, nn.Module]) -> dict[str, LayerStats | None]:
        """From one pass over the layer; of no linears (in a layer that is finished already) none."""
        dense = self.propagate == "dense"
        if not dense and not linears:
            return {}
        with collecting(linears, self.uses) as sums:
            self.runner.run(index, keep=dense)  # the dense layer's outputs are what the next one receives
        return sums.finish()

    def advance(self, index: int) -> None:
        """Where propagation is "pruned", the layer runs again: its outputs now are what the next receives."""
        if self.propagate == "pruned" and index + 1 < len(self.runner.layers):
            self.runner.run(index)


class FromWholeForwards:
    """Statistics of windows that run through the whole model, for one that cannot be run layer by layer.

    Of the dense model in one pass over all windows; with propagation through pruned layers in one for each.
    """

    way = "whole model"

    def __init__(self, model: nn.Module, windows: Windows, uses: Collection[str], propagate: str, batch_size):
        self._run = lambda: run_whole(model, windows, batch_size)
        self._uses, self._propagate = uses, propagate
        self._dense: dict[str, LayerStats] = {}
        self._all = named_linears(model)

    def statistics(self, index: int, linears: Mapping[str, nn.Module]) -> dict[str, LayerStats | None]:
        """From forwards of the whole model as it is now."""
        if self._propagate == "dense" and not self._dense:
            self._dense = self._gathered(self._all)
        found = self._dense if self._propagate == "dense" else self._gathered(linears)
        return {name: found[name] for name in linears}

    def advance(self, index: int) -> None:
        """The next forward passes what was pruned."""

    def _gathered(self, linears: Mapping[str, nn.Module]) -> dict[str, LayerStats]:
        if not linears:  # of a layer that is finished already
            return {}
        with collecting(linears, self._uses) as sums:
            self._run()
        return sums.finish()


@dataclass(frozen=True)
class FromStatistics:
    """Statistics of the dense model, gathered before."""

    found: Mapping[str, LayerStats]

    def statistics(self, index: int, linears: Mapping[str, nn.Module]) -> dict[str, LayerStats | None]:
        """Those of the linears, on the devices of their weights."""
        return beside_weights(self.found, linears)

    def advance(self, index: int) -> None:
        """Nothing depends on what was pruned."""


@dataclass(frozen=True)
class BesideGradients:
    """The statistics of another source, and beside them the gradients of the dense model."""

    source: Source
    gradients: Mapping[str, Tensor]

    def statistics(self, index: int, linears: Mapping[str, nn.Module]) -> dict[str, LayerStats | None]:
        """The source's, with `gradient_gram`."""
        found = self.source.statistics(index, linears)
        return {
            name: replace(found[name], gradient_gram=self.gradients[name].to(linear.weight.device))
            for name, linear in linears.items()
        }

    def advance(self, index: int) -> None:
        """The source's: the gradients stay those of the dense model."""
        self.source.advance(index)


@dataclass(frozen=True)
class FromNowhere:
    """No statistics, for recipes that read none."""

    def statistics(self, index: int, linears: Mapping[str, nn.Module]) -> dict[str, LayerStats | None]:
        """None for each linear."""
        return dict.fromkeys(linears)

    def advance(self, index: int) -> None:
        """Nothing depends on what was pruned."""


class Timed:
    """A source, and the seconds that it takes, its making included."""

    def __init__(self, make: Callable[[], Source]):
        self.seconds = 0.0
        self._source = self._timed(make)

    def statistics(self, index: int, linears: Mapping[str, nn.Module]) -> dict[str, LayerStats | None]:
        """The source's."""
        return self._timed(self._source.statistics, index, linears)

    def advance(self, index: int) -> None:
        """The source's."""
        self._timed(self._source.advance, index)

    def stages(self, since: float) -> dict[str, float]:
        """Seconds by stage since that `time.perf_counter`: the source's are "calibrate", the rest "prune"."""
        return {"calibrate": self.seconds, "prune": time.perf_counter() - since - self.seconds}

    def _timed(self, work: Callable, *args):
        start = time.perf_counter()
        try:
            return work(*args)
        finally:
            self.seconds += time.perf_counter() - start


def windows_of(calibration: Calibration, recipe: Recipe) -> Windows | None:
    """The windows that must run through the model, if any."""
    windows = calibration.windows if isinstance(calibration, WindowsBeside) else calibration
    return windows if recipe.uses and isinstance(windows, Tensor) else None


def source_of(
    model: nn.Module,
    calibration: Calibration,
    recipe: Recipe,
    propagate: str,
    batch_size: int | str = 1,
    hidden: MutableSequence[Tensor] | None = None,
    whole: bool = True,
) -> Source:
    """The source that a calibration is, one that serves the recipe; see `LayerRunner` for the rest.

    whole: the model's own forward can be run, and what runs layer by layer is held against it.
    """
    if not recipe.uses:
        return FromNowhere()
    if isinstance(calibration, Mapping):
        return FromStatistics(calibration)
    windows = windows_of(calibration, recipe)
    gradients = _gradients(model, calibration) if GRADIENTS in recipe.uses else None
    source: Source
    if whole and not runs_by_layer(model, windows):
        tell_whole(model, propagate)
        source = FromWholeForwards(model, windows, recipe.uses, propagate, batch_size)
    else:
        source = FromWindows(LayerRunner(model, windows, batch_size, hidden), recipe.uses, propagate)
    return source if gradients is None else BesideGradients(source, gradients)


def _gradients(model: nn.Module, calibration: Windows | WindowsBeside) -> dict[str, Tensor]:
    """The Gram matrices of the dense model's gradients by linear, given or gathered now."""
    given = isinstance(calibration, WindowsBeside)
    dense = calibration.dense if given else gather(model, calibration, {GRADIENTS})
    return {name: stats.gradient_gram for name, stats in dense.items()}


def beside_weights(
    statistics: Mapping[str, LayerStats], linears: Mapping[str, nn.Module]
) -> dict[str, LayerStats]:
    """The statistics of these linears, each on the device of its weight."""
    return {name: statistics[name].to(linear.weight.device) for name, linear in linears.items()}
