"""THE loop over decoder layers: statistics, scores, masks, refinement, and the pruned layer run again."""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from symprune.base.errors import UserError, unknown
from symprune.base.progress import track
from symprune.base.types import Mask, Scores, Weight, Windows
from symprune.methods.masks import zero_removed
from symprune.methods.recipe import Recipe
from symprune.methods.stats import LayerStats
from symprune.models.layers import linears_by_layer, role, weight_view
from symprune.pruning.calibrate import LayerRunner
from symprune.pruning.cost import batch_size_of
from symprune.pruning.journal import Journal, PrunedLinear, hash_tensors

PROPAGATE = ("pruned", "dense")


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
        return 1 - sum(linear.kept for linear in self.linears) / sum(
            linear.d_out * linear.d_in for linear in self.linears
        )

    @property
    def unreached(self) -> list[str]:
        """Linears that no calibration token reached (experts never chosen): scored as if all their inputs
        were equal, not refined.
        """
        return [linear.name for linear in self.linears if linear.n_tokens == 0]

    def frame(self):
        """One row per linear (pandas)."""
        import pandas as pd

        rows = [
            {"linear": x.name, "d_out": x.d_out, "d_in": x.d_in, "kept": x.kept, "sparsity": x.sparsity}
            for x in self.linears
        ]
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
        unreached = f"; {len(self.unreached)} of them saw no calibration token" if self.unreached else ""
        return (
            f"{self.recipe.label}: {self.sparsity:.2%} of the weights of {len(self.linears)} linears"
            f" removed{unreached}"
        )

    def _repr_html_(self) -> str:
        kinds = self.frame().groupby(lambda name: name.rsplit(".", 1)[-1], sort=False)
        summary = kinds.agg(
            linears=("kept", "size"), kept=("kept", "sum"), sparsity=("sparsity", "mean")
        ).rename_axis("kind")
        return (
            f"<p><b>{self.recipe.label}</b>: {self.sparsity:.2%} of the weights removed, propagate ="
            f" {self.propagate}</p>" + (summary.to_html(float_format="{:.4f}".format))
        )


@torch.no_grad()
def prune(
    model: nn.Module,
    calibration: Windows | Mapping[str, LayerStats] | LayerRunner | None,
    recipe: Recipe,
    propagate: str = "pruned",
    *,
    batch_size: int | str = 1,
    keep_masks: bool = False,
    work: Path | str | None = None,
    visit: Callable[[Iterable[dict[str, nn.Module]]], Iterable[dict[str, nn.Module]]] | None = None,
    masked: Callable[[str, Weight, Mask], None] | None = None,
    progress: bool = False,
) -> PruneReport:
    """Prune every linear inside the decoder layers of `model` in place, by `recipe`.

    calibration: windows of tokens [n, seq_len], or for propagate="dense" the statistics of `gather`, or None
    for a recipe that uses no statistics. propagate: "pruned" runs each pruned layer again, so the next one is
    calibrated on what it will receive (Wanda, SparseGPT, RIA); "dense" calibrates every layer on the dense
    model. batch_size: windows per forward pass, or "auto" (see `symprune.pruning.cost`). work: a folder that
    records each finished decoder layer; after a kill the same call on the dense model continues there and
    ends with the same masks. visit: yields the linears of one decoder layer after the other, each with its
    weights in memory while it is worked on (see `symprune.pruning.stream`, which also gives a runner in place
    of windows); None: they all are. masked: is told the name, the pruned weight and the mask of each linear.
    Raises UserError, before anything is changed, for a width the pattern cannot take, a broken weight,
    missing statistics, or a work folder of another run.
    """
    if propagate not in PROPAGATE:
        raise unknown("propagate", propagate, PROPAGATE)
    layers = linears_by_layer(model)
    check_pattern(layers, recipe)
    for linears in layers if visit is None else []:
        check_weights(linears)
    clock = _Clock()
    given = calibration if recipe.uses and isinstance(calibration, Mapping) else None
    if given is not None:
        if propagate != "dense":
            raise UserError(
                "statistics of the dense model are for propagate='dense'; give the calibration windows for"
                " 'pruned'"
            )
        if lacking := [name for linears in layers for name in linears if name not in given]:
            raise UserError(f"no statistics of {lacking[0]}: they were gathered on another model")
        if work is not None:
            raise UserError(
                "a work folder records what was calibrated on windows: give them instead of statistics"
            )
    windows = None if given is not None or not recipe.uses else _require_windows(calibration, recipe)
    if isinstance(windows, torch.Tensor):
        batch_size = batch_size_of(batch_size, model, windows)
    journal = (
        contextlib.nullcontext()
        if work is None
        else Journal(Path(work), _asked(model, windows, recipe, propagate, batch_size))
    )
    done: list[PrunedLinear] = []
    masks: dict[str, Mask] = {}
    with journal as finished:
        runner = (
            windows
            if windows is None or isinstance(windows, LayerRunner)
            else LayerRunner(model, windows, batch_size)
        )
        for index, linears in enumerate((visit or iter)(track(layers, "pruning", progress))):
            found = finished.read(index) if finished else None
            if found is None:
                if runner:
                    stats = runner.collect(index, recipe.uses, keep=propagate == "dense")
                else:
                    stats = dict.fromkeys(linears) if given is None else beside_weights(given, linears)
                clock.lap("calibrate")
                made = {
                    name: _mask_linear(name, linear, stats[name], recipe) for name, linear in linears.items()
                }
                found = (
                    {name: mask for name, (mask, _) in made.items()},
                    [linear for _, linear in made.values()],
                )
                if finished:
                    finished.write(index, *found)
            elif runner and propagate == "dense":
                runner.run(index)
            for name, mask in found[0].items():
                zero_removed(weight := weight_view(linears[name]), mask)
                if masked:
                    masked(name, weight, mask)
            done += found[1]
            masks |= found[0] if keep_masks else {}
            clock.lap("prune")
            if runner and propagate == "pruned" and index + 1 < len(layers):
                runner.run(index)
                clock.lap("calibrate")
    return PruneReport(recipe, propagate, done, clock.seconds, masks)


def beside_weights(
    statistics: Mapping[str, LayerStats], linears: Mapping[str, nn.Module]
) -> dict[str, LayerStats]:
    """The statistics of these linears, each on the device of its weight."""
    return {name: statistics[name].to(linear.weight.device) for name, linear in linears.items()}


def score_linear(score: Callable[..., Scores], weight: Weight, stats: LayerStats | None) -> Scores:
    """The scores of one linear; if no token reached it (an expert never chosen), as if all its inputs were
    equal.
    """
    if _unreached(stats):  # zero norms would leave only ties
        equal = {
            "input_norm": torch.ones_like(stats.input_norm),
            "output_norm": stats.input_norm.new_ones(len(weight)),
        }
        stats = replace(stats, **equal)
    return score(weight, stats)


def make_mask(
    name: str, weight: Weight, scores: Scores, stats: LayerStats | None, recipe: Recipe
) -> tuple[Mask, dict[str, float] | None]:
    """The mask of one linear from its scores, and what its refinement did.

    It is refined if the recipe refines linears of its kind, and if a token reached it.
    """
    mask = recipe.pattern(scores)
    if recipe.refine is None or recipe.refine.linears not in ("all", role(name)) or _unreached(stats):
        return mask, None
    refinement = recipe.refine.run(weight, mask, stats, recipe.pattern)
    return refinement.mask, refinement.summary()


def _mask_linear(
    name: str, linear: nn.Module, stats: LayerStats | None, recipe: Recipe
) -> tuple[Mask, PrunedLinear]:
    weight = weight_view(linear)
    mask, refined = make_mask(name, weight, score_linear(recipe.score, weight, stats), stats, recipe)
    return mask, PrunedLinear(
        name,
        *weight.shape,
        kept=int(mask.count_nonzero()),
        refined=refined,
        n_tokens=stats and stats.n_tokens,
    )


def _unreached(stats: LayerStats | None) -> bool:
    return stats is not None and stats.n_tokens == 0


def check_pattern(layers: list[dict[str, nn.Module]], recipe: Recipe) -> None:
    """Raise UserError, naming the linear, if the pattern cannot take a width."""
    for name, linear in [named for linears in layers for named in linears.items()]:
        try:
            recipe.pattern.check(*weight_view(linear).shape)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error


def check_weights(linears: Mapping[str, nn.Module]) -> None:
    """Raise UserError, naming the linear, for a weight that is not in memory, or not finite."""
    for name, linear in linears.items():
        if linear.weight.is_meta:
            raise UserError(
                f"{name} is on the meta device, where a change would be lost: load the model into memory"
                " first"
            )
        if not all(map(math.isfinite, torch.aminmax(linear.weight.detach()))):  # one pass: NaN is passed on
            raise UserError(f"NaN or inf in the weight of {name}: the checkpoint is broken")


def _asked(
    model: nn.Module, windows: Windows | None, recipe: Recipe, propagate: str, batch_size: int | str
) -> dict[str, str]:
    """What masks depend on to the last bit."""
    parameter = next(model.parameters())
    asked = {
        "weights": hash_tensors(model.state_dict()),
        "recipe": f"{recipe.label} ({recipe.key})",
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": parameter.device.type,
        "torch": torch.__version__,
    }
    if windows is None:
        return asked
    return asked | {
        "calibration windows": hash_tensors({"": windows}),
        "propagate": propagate,
        "batch size": str(batch_size),
    }


def _require_windows(calibration: Windows | LayerRunner | None, recipe: Recipe) -> Windows | LayerRunner:
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
