"""THE loop over decoder layers: statistics, scores, masks, refinement, and the pruned layer run again."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from symprune.base.errors import UserError
from symprune.base.progress import track
from symprune.base.types import Mask, Scores, Weight
from symprune.methods.masks import zero_removed
from symprune.methods.objective import relative_loss
from symprune.methods.recipe import Recipe
from symprune.methods.stats import LayerStats
from symprune.models.causal import in_eval_mode, require_causal
from symprune.models.experts import ExpertLinear
from symprune.models.layers import (
    LeftDense,
    is_expert,
    left_dense_by_layer,
    linears_by_layer,
    named_linears,
    role,
    weight_view,
)
from symprune.models.precision import as_calibrated, calibration_dtype
from symprune.models.tensors import require_finite
from symprune.pruning.checks import check_layers, check_weights
from symprune.pruning.cost import batch_size_of
from symprune.pruning.journal import Journal, Resumed, hash_tensors
from symprune.pruning.report import PrunedLayer, PrunedLinear, PruneReport
from symprune.pruning.runner import check_windows
from symprune.pruning.sources import (
    GRADIENTS,
    Calibration,
    Source,
    Timed,
    WindowsBeside,
    source_of,
    windows_of,
)


@torch.no_grad()
@in_eval_mode
def prune(
    model: nn.Module,
    calibration: Calibration,
    recipe: Recipe,
    propagate: str = "pruned",
    *,
    batch_size: int | str = 1,
    keep_masks: bool = False,
    work: Path | str | None = None,
) -> PruneReport:
    """Prune every linear inside the decoder layers of `model` in place, by `recipe`.

    What is not pruned there is told in the report (`left_dense`).

    calibration: windows of tokens [n, seq_len], or for propagate="dense" the statistics of `gather`, or None
    for a recipe that uses no statistics. What reads gradients of the dense model gathers them first, unless
    they stand beside the windows (`symprune.pruning.sources.WindowsBeside`). propagate: "pruned" runs each
    pruned layer again, so the next one is calibrated on what it will receive (Wanda, SparseGPT, RIA); "dense"
    calibrates every layer on the dense model. batch_size: windows per forward pass, or "auto" (see
    `symprune.pruning.cost`). work: a folder that records each finished decoder layer; after a kill the same
    call on the dense model continues there and ends with the same bits.

    Calibration, scores and refinements are computed in the weights' dtype (scores at least in float32), where
    a last bit may decide: the same machine gives the same masks again, another processor gives other ones in
    a few weights of a million, and after propagation a perplexity that is off by some percent. Inside
    `calibrating_in("float64")` masks are the same everywhere, for about twice the time on a CPU.

    Raises UserError, before anything is changed, for a model that is not causal, a width the pattern cannot
    take, a broken weight, missing statistics, or a work folder of another run.
    """
    layers = linears_by_layer(model)
    check_layers(layers, calibration, recipe, propagate)
    for linears in layers:
        check_weights(linears)
    require_finite(dict(model.named_parameters()))
    require_causal(model)
    start, windows = time.perf_counter(), windows_of(calibration, recipe)
    if windows is not None:
        check_windows(model, windows, in_memory=False)
        batch_size = batch_size_of(batch_size, model, windows)
    elif work is not None and recipe.uses:
        raise UserError(
            "a work folder records what was calibrated on windows: give them instead of statistics"
        )
    question = None if work is None else _question(model, calibration, recipe, propagate, batch_size)
    with contextlib.nullcontext() if question is None else Journal(Path(work), question) as journal:
        source = Timed(lambda: source_of(model, calibration, recipe, propagate, batch_size))
        make_masks = MasksFromStatistics(source, recipe)
        if journal is not None:
            make_masks = Resumed(journal, make_masks, source)
        done: list[PrunedLinear] = []
        masks: dict[str, Mask] = {}
        for layer in prune_layers(track(layers, "pruning"), make_masks, source):
            done += layer.linears
            masks |= layer.masks if keep_masks else {}
    return PruneReport(
        recipe, propagate, done, source.stages(since=start), masks, still_dense(model, done, recipe)
    )


def still_dense(model: nn.Module, done: Iterable[PrunedLinear], recipe: Recipe) -> dict[str, LeftDense]:
    """Every matrix of the decoder layers that is not among the linears pruned, by its full name."""
    pruned = {linear.name for linear in done}
    dense = {name: why for layer in left_dense_by_layer(model) for name, why in layer.items()}
    return dense | {
        f"{name}.weight": LeftDense(
            "by the recipe" if recipe.pattern_of(name) is None else "reached by no token, or by zeros alone",
            linear.weight.numel(),
        )
        for name, linear in named_linears(model).items()
        if name not in pruned
    }


def prune_layers(
    layers: Iterable[Mapping[str, nn.Module]],
    make_masks: Callable[[int, Mapping[str, nn.Module]], PrunedLayer],
    source: Source,
) -> Iterator[PrunedLayer]:
    """THE loop: the masks of each decoder layer, what they remove set to zero, updates written, and on.

    layers: their linears by full name; weights need to be in memory only while their layer is worked on.
    make_masks: from a layer's index and its linears, `MasksFromStatistics` or `Resumed`, which read `source`.
    """
    for index, linears in enumerate(layers):
        layer = make_masks(index, linears)
        for name in layer.masks:
            if name in layer.weights:
                weight_view(linears[name]).copy_(layer.weights[name])
            zero_removed(weight_view(linears[name]), layer.masks[name])
        yield layer
        del layer  # its masks, before those of the next one are made
        source.advance(index)


@dataclass(frozen=True)
class MasksFromStatistics:
    """The masks of one decoder layer after the other by a recipe, from what a source has gathered of it.

    A linear that the recipe leaves dense gets none, nor does one that no token reached, for its weight may
    be used past its module (Mamba's dt_proj); an expert that no token chose does.
    """

    source: Source
    recipe: Recipe

    def __call__(self, index: int, linears: Mapping[str, nn.Module]) -> PrunedLayer:
        linears = {n: linear for n, linear in linears.items() if self.recipe.pattern_of(n) is not None}
        statistics = self.source.statistics(index, linears)
        made = {
            name: _mask_linear(name, linear, statistics[name], self.recipe)
            for name, linear in linears.items()
            if not _unreached(statistics[name]) or isinstance(linear, ExpertLinear) or is_expert(name)
        }
        masks = {name: mask for name, (mask, _, _) in made.items()}
        weights = {name: weight for name, (_, weight, _) in made.items() if weight is not None}
        return PrunedLayer(masks, [linear for _, _, linear in made.values()], weights)


def score_linear(score: Callable[..., Scores], weight: Weight, stats: LayerStats | None) -> Scores:
    """The scores of one linear; where no token reached it (an expert), as if all its inputs were equal."""
    if _unreached(stats):  # zero norms would leave only ties
        equal = {
            "input_norm": torch.ones_like(stats.input_norm),
            "output_norm": stats.input_norm.new_ones(len(weight)),
        }
        stats = replace(stats, **equal)
    return score(weight, stats)


def make_mask(
    name: str, weight: Weight, stats: LayerStats | None, recipe: Recipe
) -> tuple[Mask, dict[str, float] | None]:
    """The mask of one linear, chosen by the scores or in their place, and what its refinement did.

    It is refined if the recipe refines linears of its kind, and if a token reached it.
    """
    pattern = recipe.pattern_of(name)
    if pattern is None:
        return torch.ones_like(weight, dtype=torch.bool), None
    if hasattr(recipe.score, "choose"):
        mask = recipe.score.choose(weight, stats, pattern)
    else:
        mask = pattern(score_linear(recipe.score, weight, stats))
    if recipe.refine is None or recipe.refine.linears not in ("all", role(name)) or _unreached(stats):
        return mask, None
    refinement = recipe.refine.run(weight, mask, stats, pattern)
    return refinement.mask, refinement.summary()


def _mask_linear(
    name: str, linear: nn.Module, stats: LayerStats | None, recipe: Recipe
) -> tuple[Mask, Weight | None, PrunedLinear]:
    """Mask, weight (None: what is kept stays as it is), and what is told of it."""
    weight = weight_view(linear)
    mask, refined = make_mask(name, as_calibrated(weight), stats, recipe)
    update = None if recipe.update is None or _unreached(stats) else recipe.update.run(weight, mask, stats)
    told = PrunedLinear(
        name,
        *weight.shape,
        kept=int(mask.count_nonzero()),
        refined=refined,
        n_tokens=stats and stats.n_tokens,
        updated=update and update.summary(),
        loss=_loss(weight, weight if update is None else update.weight, mask, stats, recipe),
    )
    return mask, update and update.weight, told


def _loss(weight: Weight, new: Weight, mask: Mask, stats: LayerStats | None, recipe: Recipe) -> float | None:
    """What a linear's outputs lose (None: unknown), exactly if the recipe reads the Gram matrix anyway."""
    if stats is None or _unreached(stats):
        return None
    return relative_loss(weight, new, mask, stats if "gram" in recipe.uses else replace(stats, gram=None))


def _unreached(stats: LayerStats | None) -> bool:
    """Whether a linear received nothing: no token, or zeros alone, of which every score is zero."""
    return stats is not None and (stats.n_tokens == 0 or not stats.input_norm.any())


def _question(
    model: nn.Module, calibration: Calibration, recipe: Recipe, propagate: str, batch_size: int | str
) -> dict[str, str]:
    """What masks depend on to the last bit."""
    windows = windows_of(calibration, recipe)
    parameter = next(model.parameters())
    question = {
        "weights": hash_tensors(model.state_dict()),
        "recipe": f"{recipe.label} ({recipe.key})",
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "calibration dtype": str(calibration_dtype(parameter)).removeprefix("torch."),
        "device": parameter.device.type,
        "torch": torch.__version__,
    }
    if windows is None:
        return question
    if isinstance(calibration, WindowsBeside) and GRADIENTS in recipe.uses:
        grams = {name: stats.gradient_gram for name, stats in calibration.dense.items()}
        question["gradients"] = hash_tensors({n: g for n, g in grams.items() if g is not None})
    return question | {
        "calibration windows": hash_tensors({"": windows}),
        "propagate": propagate,
        "batch size": str(batch_size),
    }
