"""THE loop over decoder layers: statistics, scores, masks, refinement, and the pruned layer run again."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from symprune._types import Mask, Scores, Weight, Windows
from symprune.calibrate import LayerRunner, gather
from symprune.errors import UserError, unknown
from symprune.models import named_linears, role, weight_view
from symprune.progress import track
from symprune.recipe import Recipe
from symprune.stats import LayerStats

PROPAGATE = ("pruned", "dense")


@dataclass(frozen=True)
class PrunedLinear:
    """What happened to one linear: its size, how many weights its mask keeps, and what the refinement did (None: not refined)."""

    name: str
    d_out: int
    d_in: int
    kept: int
    refined: dict | None = None

    @property
    def sparsity(self) -> float:
        """The fraction removed, counted on the mask: a weight that was zero before counts as kept if the mask keeps it."""
        return 1 - self.kept / (self.d_out * self.d_in)


@dataclass(frozen=True, repr=False)
class PruneReport:
    """What `prune` did, linear by linear; shows itself as a table in Jupyter."""

    recipe: Recipe
    propagate: str
    linears: list[PrunedLinear]
    seconds: dict[str, float]  # by stage: calibrate, prune
    masks: dict[str, Mask] = field(default_factory=dict)  # only if asked for

    @property
    def sparsity(self) -> float:
        """The fraction of all prunable weights that the masks remove."""
        return 1 - sum(linear.kept for linear in self.linears) / sum(linear.d_out * linear.d_in for linear in self.linears)

    def frame(self):
        """One row per linear (pandas)."""
        import pandas as pd

        rows = [{"linear": x.name, "d_out": x.d_out, "d_in": x.d_in, "kept": x.kept, "sparsity": x.sparsity} for x in self.linears]
        refined = pd.DataFrame([linear.refined or {} for linear in self.linears])
        return pd.concat([pd.DataFrame(rows), refined], axis=1).set_index("linear")

    def plot(self):
        """Sparsity of every linear along the depth of the model (matplotlib figure)."""
        import matplotlib.pyplot as plt

        fig, ax = plt.subplots(figsize=(6, 2.5), layout="constrained")
        kinds: dict[str, list[float]] = {}
        for linear in self.linears:
            kinds.setdefault(linear.name.rsplit(".", 1)[-1], []).append(linear.sparsity)
        for kind, sparsities in kinds.items():
            ax.plot(sparsities, marker=".", label=kind)
        ax.set(xlabel="decoder layer", ylabel="sparsity", ylim=(0, 1), title=self.recipe.label)
        ax.legend(ncols=4, fontsize="x-small")
        plt.close(fig)  # shown once, as the value of a cell
        return fig

    def __repr__(self) -> str:
        return f"{self.recipe.label}: {self.sparsity:.2%} of the weights of {len(self.linears)} linears removed"

    def _repr_html_(self) -> str:
        kinds = self.frame().groupby(lambda name: name.rsplit(".", 1)[-1], sort=False)
        summary = kinds.agg(linears=("kept", "size"), kept=("kept", "sum"), sparsity=("sparsity", "mean")).rename_axis("kind")
        return f"<p><b>{self.recipe.label}</b>: {self.sparsity:.2%} of the weights removed, propagate = {self.propagate}</p>" + (
            summary.to_html(float_format="{:.4f}".format)
        )


@torch.no_grad()
def prune(
    model: nn.Module,
    calibration: Windows | Mapping[str, LayerStats] | None,
    recipe: Recipe,
    propagate: str = "pruned",
    *,
    batch_size: int = 1,
    keep_masks: bool = False,
    progress: bool = False,
) -> PruneReport:
    """Prune every linear inside the decoder layers of `model` in place, by `recipe`.

    calibration: windows of tokens [n, seq_len], or for propagate="dense" the statistics of `gather`, or None for a recipe
    that uses no statistics. propagate: "pruned" runs each pruned layer again, so the next one is calibrated on what it will
    receive (Wanda, SparseGPT, RIA); "dense" calibrates every layer on the dense model.
    Raises UserError, before anything is changed, for a width the pattern cannot take, a broken weight or missing statistics.
    """
    if propagate not in PROPAGATE:
        raise unknown("propagate", propagate, PROPAGATE)
    linears = named_linears(model)
    _check(linears, recipe)
    clock = _Clock()
    done: list[tuple[PrunedLinear, Mask]] = []

    def prune_layer(names: Iterable[str], stats: Mapping[str, LayerStats | None]) -> None:
        for name in names:
            linear, mask = _prune_linear(name, linears[name], stats[name], recipe)
            done.append((linear, mask if keep_masks else None))

    if not recipe.uses:
        prune_layer(track(linears, "pruning", progress), dict.fromkeys(linears))
    elif propagate == "dense" or isinstance(calibration, Mapping):
        if propagate != "dense":
            raise UserError("statistics of the dense model are for propagate='dense'; give the calibration windows for 'pruned'")
        windows = None if isinstance(calibration, Mapping) else _require_windows(calibration, recipe)
        stats = calibration if windows is None else gather(model, windows, recipe.uses, batch_size=batch_size, progress=progress)
        clock.lap("calibrate")
        prune_layer(track(linears, "pruning", progress), stats)
    else:
        runner = LayerRunner(model, _require_windows(calibration, recipe), batch_size)
        for index in track(range(len(runner.layers)), "pruning", progress):
            stats = runner.collect(index, recipe.uses)
            clock.lap("calibrate")
            prune_layer(stats, stats)
            clock.lap("prune")
            if index + 1 < len(runner.layers):
                runner.run(index)
    clock.lap("prune" if not recipe.uses or propagate == "dense" else "calibrate")
    masks = {linear.name: mask for linear, mask in done} if keep_masks else {}
    return PruneReport(recipe, propagate, [linear for linear, _ in done], clock.seconds, masks)


def make_mask(name: str, weight: Weight, scores: Scores, stats: LayerStats | None, recipe: Recipe) -> tuple[Mask, dict[str, float] | None]:
    """The mask of one linear from its scores, refined if the recipe refines linears of its kind, and what the refinement did."""
    mask = recipe.pattern(scores)
    if recipe.refine is None or recipe.refine.linears not in ("all", role(name)):
        return mask, None
    refinement = recipe.refine.run(weight, mask, stats, recipe.pattern)
    return refinement.mask, refinement.summary()


def _prune_linear(name: str, linear: nn.Module, stats: LayerStats | None, recipe: Recipe) -> tuple[PrunedLinear, Mask]:
    weight = weight_view(linear)
    mask, refined = make_mask(name, weight, recipe.score(weight, stats), stats, recipe)
    weight.masked_fill_(~mask, 0)
    return PrunedLinear(name, *weight.shape, kept=int(mask.sum()), refined=refined), mask


def _check(linears: Mapping[str, nn.Module], recipe: Recipe) -> None:
    for name, linear in linears.items():
        if linear.weight.is_meta:
            raise UserError(f"{name} is on the meta device, where a change would be lost: load the model into memory first")
        try:
            recipe.pattern.check(*weight_view(linear).shape)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        if not torch.isfinite(linear.weight).all():
            raise UserError(f"NaN or inf in the weight of {name}: the checkpoint is broken")


def _require_windows(calibration: Windows | None, recipe: Recipe) -> Windows:
    if calibration is None:
        raise UserError(f"{recipe.label} uses {', '.join(sorted(recipe.uses))} and needs calibration windows")
    return calibration


class _Clock:
    """Seconds by stage."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now
