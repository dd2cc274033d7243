"""What a refinement does to the two terms of a row's expected squared error, swap by swap.

With mu and C the mean and the covariance of the inputs, a row whose removed weights are v has the expected
squared error (v' mu)^2 + v' C v: what DSnoT drives to zero, and the rest.
"""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from symprune import models
from symprune.base.records import Record
from symprune.base.types import Mask, Weight
from symprune.measure.bench import Bench
from symprune.measure.record_rows import calibration_columns
from symprune.methods.recipe import Recipe, method_label, pattern_label
from symprune.methods.stats import LayerStats
from symprune.models.precision import as_calibrated, calibrating_in
from symprune.pruning.calibrate import collecting
from symprune.pruning.prune import make_mask
from symprune.pruning.runner import LayerRunner


def error_terms(
    weight: Weight, mask: Mask, stats: LayerStats
) -> tuple[Float[Tensor, " d_out"], Float[Tensor, " d_out"]]:
    """(v' mu)^2 and v' C v of each row, v its removed weights, in float64; stats with a Gram matrix."""
    removed = (weight * ~mask).double()
    mean, covariance = _moments(stats)
    return (removed @ mean).square(), ((removed @ covariance) * removed).sum(dim=1)


def _moments(stats: LayerStats) -> tuple[Float[Tensor, " d_in"], Float[Tensor, "d_in d_in"]]:
    """Mean and covariance, float64; raises ValueError without a Gram matrix."""
    if stats.gram is None:
        raise ValueError("both terms need the Gram matrix of the inputs: gather it")
    mean = stats.input_mean.double()
    return mean, stats.gram.double() / max(stats.n_tokens, 1) - torch.outer(mean, mean)


def swap_lowers(weight: Weight, before: Mask, after: Mask, stats: LayerStats) -> Bool[Tensor, " d_out"]:
    """Whether the one swap between two masks lowers each row's expected squared error; False without one.

    With v the removed weights but the grown k, j the pruned weight, a = v' mu + w[k] mu[k] and
    s = w[j] mu[j] - w[k] mu[k], it does if and only if

        w[j]^2 C[j, j] + 2 w[j] (C v)[j] - w[k]^2 C[k, k] - 2 w[k] (C v)[k]  <  -s (2 a + s)

    In a swap of DSnoT s has the sign that a has not, so the right side is |s| (2 |a| - |s|), at most a^2.
    """
    weight, moved = weight.double(), (before != after).any(dim=1)
    grown, pruned = ((x & ~y).int().argmax(dim=1)[:, None] for x, y in ((after, before), (before, after)))
    mean, covariance = _moments(stats)
    left = (weight * ~(before | after)) @ covariance
    of = lambda values, at: values.gather(1, at)  # noqa: E731
    cost = weight.square() * covariance.diagonal() + 2 * weight * left
    shift = weight * mean
    step, error = of(shift, pruned) - of(shift, grown), (shift * ~before).sum(dim=1, keepdim=True)
    return ((of(cost, pruned) - of(cost, grown)) < -step * (2 * error + step)).squeeze(1) & moved


@dataclass(frozen=True)
class RefinementTerms:
    """Both error terms before a refinement and after each number of cycles, by linear; on the dense model.

    subject: a tuple of recipes with a refinement; its `max_cycles` becomes each of `cycles`, which count
    swaps: cycle c is swap c of a row. n_layers: decoder layers spread evenly.
    """

    cycles: Sequence[int]
    n_layers: int = 30

    def question(self, bench: Bench, recipes: tuple[Recipe, ...], seed: int) -> dict:
        """Model, calibration, recipes and cycles."""
        asked = {"recipes": [recipe.to_dict() for recipe in recipes], "cycles": list(self.cycles)}
        return {
            "model": bench.model_name,
            "calibration": {**(bench.calibration_name(["gram"], seed) or {}), "propagate": "dense"},
            **bench.precision_name,
            "terms": asked | {"n_layers": self.n_layers},
        }

    @torch.no_grad()
    def measure(self, bench: Bench, recipes: tuple[Recipe, ...], seed: int) -> dict:
        """Decoder layer by decoder layer: no more Gram matrices are held than a layer's."""
        with calibrating_in(bench.protocol.calibration_dtype):
            return {"linears": self._by_layer(bench, recipes, seed)}

    def _by_layer(self, bench: Bench, recipes: tuple[Recipe, ...], seed: int) -> dict[str, dict]:
        model = bench.loaded.pristine()
        layers = models.linears_by_layer(model)
        runner = LayerRunner(model, bench.calibration_windows(seed), bench.protocol.batch_size)
        chosen = {round(i * (len(layers) - 1) / max(self.n_layers - 1, 1)) for i in range(self.n_layers)}
        uses = frozenset({"gram"}).union(*(recipe.uses for recipe in recipes))
        found = {}
        for index, linears in enumerate(layers[: max(chosen) + 1]):
            if index not in chosen:
                runner.run(index)
                continue
            with collecting(linears, uses) as sums:
                runner.run(index)
            for name, stats in sums.finish().items():
                if stats.n_tokens:
                    weight = as_calibrated(models.weight_view(linears[name]))
                    found[name] = self._of_linear(weight, stats, recipes)
        return found

    def _of_linear(self, weight: Weight, stats: LayerStats, recipes: Sequence[Recipe]) -> dict:
        energy = stats.input_norm.double().square().sum()
        share = stats.n_tokens * stats.input_mean.double().square().sum() / energy
        return {"mean_share": float(share), "refined": [self._path(weight, stats, r) for r in recipes]}

    def _path(self, weight: Weight, stats: LayerStats, recipe: Recipe) -> dict[str, list]:
        start, _ = make_mask("", weight, stats, replace(recipe, refine=None))
        wanted = {n for cycles in self.cycles for n in (cycles - 1, cycles) if n > 0}
        masks = {
            n: replace(recipe.refine, max_cycles=n).run(weight, start, stats, recipe.pattern).mask
            for n in wanted
        }
        steps = []
        for cycles in self.cycles:
            one_less, mask = (masks.get(n, start) for n in (cycles - 1, cycles))
            first, rest = error_terms(weight, mask, stats)
            moved = (mask != one_less).any(dim=1)
            steps.append(
                {
                    "mean_term": float(first.mean()),
                    "spread_term": float(rest.mean()),
                    "swaps": float((mask & ~start).sum(dim=1).double().mean()),
                    "rows": int(moved.sum()),
                    "lowering": int(swap_lowers(weight, one_less, mask, stats).sum()),
                }
            )
        return {name: [step[name] for step in steps] for name in steps[0]}

    def rows(self, record: Record) -> list[dict]:
        """A row for each recipe, kind of linear and number of cycles, means over decoder layers.

        Terms are shares of the row's error before any swap; so 0 must be among the cycles.
        """
        terms, rows = record.run["terms"], []
        kinds = defaultdict(list)
        for name, measured in record.metrics["linears"].items():
            kinds[name.rsplit(".", 1)[1]].append(measured)
        for i, plain in enumerate(terms["recipes"]):
            recipe = Recipe.from_dict(plain)
            for kind, linears in kinds.items():
                shared = {
                    "model": record.run["model"]["name"],
                    "method": method_label(recipe.score),
                    "refine": method_label(recipe.refine).partition("(")[0],
                    "pattern": pattern_label(recipe.pattern),
                    **calibration_columns(record.run["calibration"]),
                    "linear": kind,
                    "mean share": statistics.fmean(linear["mean_share"] for linear in linears),
                }
                paths = [linear["refined"][i] for linear in linears]
                start = terms["cycles"].index(0)
                error = [path["mean_term"][start] + path["spread_term"][start] for path in paths]
                rows += [
                    shared | {"cycles": cycles} | _told(paths, at, error) | {"record": record.key}
                    for at, cycles in enumerate(terms["cycles"])
                ]
        return rows


def _told(paths: Sequence[Mapping[str, list]], at: int, error: Sequence[float]) -> dict:
    """What the cycles at one place did to the linears of one kind, whose rows had this error before."""
    now = {name: [path[name][at] for path in paths] for name in paths[0]}
    share = lambda term: statistics.fmean(x / of for x, of in zip(term, error, strict=True))  # noqa: E731
    return {
        "swaps": statistics.fmean(now["swaps"]),
        "mean term": share(now["mean_term"]),
        "spread term": share(now["spread_term"]),
        "lowering": sum(now["lowering"]) / sum(now["rows"]) if any(now["rows"]) else None,
    }
