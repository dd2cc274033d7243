"""Masks as an artefact: one bit per weight and the record they stand for, in one safetensors file."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from symprune.base.errors import UserError
from symprune.base.records import Record
from symprune.base.types import Mask, Weight
from symprune.methods.masks import NM, Unstructured, zero_removed
from symprune.methods.overlap import jaccard
from symprune.methods.recipe import Recipe, method_label, pattern_label
from symprune.models.folder import MASKS
from symprune.models.layers import named_linears, weight_view
from symprune.pruning.packed_masks import PackedMasks, kept_hash, read_packed


@dataclass(frozen=True)
class MaskFile:
    """The masks of a model by the full names of its linears, True = kept.

    weights: a hash of the weights that each mask keeps, the same before and after the masks are applied, and
    in every dtype that holds these weights exactly. record: how the masks were made.
    """

    masks: dict[str, Mask]
    weights: dict[str, str]
    record: Record | None = None

    def __repr__(self) -> str:
        recipe = f", {self.recipe.label}" if self.recipe else ""
        return f"MaskFile of {len(self.masks)} linears{recipe}: {self.sparsity:.2%} of their weights removed"

    @property
    def sparsity(self) -> float:
        """The fraction of all weights that the masks remove."""
        n_weights = sum(mask.numel() for mask in self.masks.values())
        return 1 - sum(int(mask.sum()) for mask in self.masks.values()) / n_weights

    @property
    def pattern(self) -> Unstructured | NM | None:
        """The pattern that the masks were made by, if a record says so."""
        return self.recipe.pattern if self.recipe else None

    @property
    def updated(self) -> str | None:
        """The update of the kept weights, by its label, if a record says that there was one."""
        recipe = self.recipe
        return method_label(recipe.update) if recipe and recipe.update else None

    @property
    def recipe(self) -> Recipe | None:
        """The recipe that the masks were made by, if a record says so."""
        return _recipe_of(self.record)


@torch.no_grad()
def save_masks(
    file: Path | str, masks: Mapping[str, Mask], model: nn.Module, record: Record | None = None
) -> None:
    """Write the masks of `model`, pruned or not yet, at one bit per weight.

    The file appears whole or not at all. Raises UserError if a mask is not of this model, or there is none;
    a linear may lack its mask if the record's recipe left it dense.
    """
    weights, packed = _weights(model, masks, record), PackedMasks()
    for name, mask in masks.items():
        packed.add(name, weights[name], mask)
    packed.save(file, record)


def load_masks(file: Path | str) -> MaskFile:
    """The masks in a file, or in a pruned model's folder; raises UserError for a damaged or another file."""
    file = Path(file)
    file = file / MASKS if file.is_dir() else file
    masks, about = read_packed(file)
    try:
        if about["weights"].keys() != masks.keys() or not all(
            isinstance(value, str) for value in about["weights"].values()
        ):
            raise ValueError("it lacks the hashes of the weights")
        found = MaskFile(
            masks, about["weights"], Record.from_dict(about["record"]) if about["record"] else None
        )
        _ = found.pattern  # a recipe that cannot be read is found here
        return found
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is no mask file of this version: {error}") from error


@torch.no_grad()
def apply_masks(model: nn.Module, found: MaskFile, other_weights: bool = False) -> list[str]:
    """Set the weights that the masks remove to zero, in place.

    Returns the linears whose kept weights are not those of the pruned model. other_weights: there may be such
    (a model fine-tuned or merged with an adapter since). Raises UserError, before anything is changed, if the
    linears are not the model's, or if a kept weight differs and may not.
    """
    weights = _weights(model, found.masks, found.record)
    differing = [
        name for name, mask in found.masks.items() if kept_hash(weights[name], mask) != found.weights[name]
    ]
    if differing and not other_weights and found.updated:
        raise UserError(
            f"these masks are of a model whose kept weights were updated ({found.updated}), which masks alone"
            " do not make: take the folder that prune saved, or ask for the masks alone (--other-weights)"
        )
    if differing and not other_weights:
        raise UserError(
            f"the weights of {len(differing)} of {len(weights)} linears are not those that were pruned,"
            f" {differing[0]} first: give the model that the masks were made for, or ask for other weights"
            " (--other-weights) to mask a fine-tuned or merged one"
        )
    for name, mask in found.masks.items():
        zero_removed(weights[name], mask.to(weights[name].device))
    return differing


@torch.no_grad()
def verify_masks(found: MaskFile, model: nn.Module | None = None, applied: bool = True) -> dict[str, Any]:
    """Check masks group by group against the pattern on record, and a model's weights against the masks.

    applied: the model is pruned, so what the masks remove must be zero.
    Returns {linears, weights, sparsity, pattern, checked}. Raises UserError that names the first linear where
    something does not hold.
    """
    recipe = found.recipe
    checked = []
    if recipe:
        for name, mask in found.masks.items():
            _verify_counts(name, mask, recipe.pattern_of(name))
        checked.append("counts of every group")
    if model is not None:
        for name, weight in _weights(model, found.masks, found.record).items():
            mask = found.masks[name].to(weight.device)
            if kept_hash(weight, mask) != found.weights[name]:
                raise UserError(f"the weights that the mask of {name} keeps are not those that were pruned")
            if applied and weight[~mask].any():
                raise UserError(f"{name} holds weights that its mask removes: apply the masks first")
        checked += (
            ["hashes of the kept weights", "zeros of the removed weights"]
            if applied
            else ["hashes of the kept weights"]
        )
    return {
        "linears": len(found.masks),
        "weights": sum(mask.numel() for mask in found.masks.values()),
        "sparsity": found.sparsity,
        "pattern": recipe.patterns if recipe else None,
        "checked": checked,
    }


def diff_masks(a: MaskFile, b: MaskFile) -> dict[str, Any]:
    """How two mask files over the same linears agree: {jaccard, equal, linears: {name: {jaccard, equal}}}.

    jaccard: overlap of the kept weights; equal: fraction of weights on which both decide alike. A linear that
    the recipe of one left dense is kept whole there. Raises UserError for other linears.
    """
    ours, theirs = _beside(a, b), _beside(b, a)
    _require_same(
        {n: m.shape for n, m in ours.items()}, {n: m.shape for n, m in theirs.items()}, "the second masks"
    )
    both = sum(int((ours[n] & theirs[n]).sum()) for n in ours)
    either = sum(int((ours[n] | theirs[n]).sum()) for n in ours)
    alike = {n: int((ours[n] == theirs[n]).sum()) for n in ours}
    return {
        "jaccard": both / either if either else 1.0,
        "equal": sum(alike.values()) / sum(mask.numel() for mask in ours.values()),
        "linears": {
            n: {"jaccard": jaccard(ours[n], theirs[n]), "equal": alike[n] / ours[n].numel()} for n in ours
        },
    }


def _beside(found: MaskFile, other: MaskFile) -> dict[str, Mask]:
    """The masks, and for each linear that was left dense and the other masks one that keeps all."""
    left_dense = _left_dense(found.record)
    return {n: torch.ones_like(mask) for n, mask in other.masks.items() if left_dense(n)} | found.masks


def _recipe_of(record: Record | None) -> Recipe | None:
    plain = record.run.get("recipe") if record else None
    return Recipe.from_dict(plain) if isinstance(plain, dict) else None


def _left_dense(record: Record | None) -> Callable[[str], bool]:
    """Whether the linear of a name was left dense, by its recipe or as the record tells."""
    recipe = _recipe_of(record)
    told = record.metrics.get("left_dense") if record else None
    return lambda name: (
        (recipe is not None and recipe.pattern_of(name) is None)
        or (isinstance(told, dict) and f"{name}.weight" in told)
    )


def _weights(model: nn.Module, masks: Mapping[str, Mask], record: Record | None) -> dict[str, Weight]:
    # a linear may lack a mask: left dense, or where its like lacks one in every decoder layer
    masked = {_kind(name) for name in masks}
    left_dense = _left_dense(record)
    weights = {
        name: weight_view(linear)
        for name, linear in named_linears(model).items()
        if not masks or (_kind(name) in masked and not left_dense(name))
    }
    _require_same(
        {n: w.shape for n, w in weights.items()}, {n: m.shape for n, m in masks.items()}, "the masks"
    )
    return weights


def _kind(name: str) -> str:
    """A linear's name without the numbers of its decoder layer and expert."""
    return ".".join(part for part in name.split(".") if not part.isdecimal())


def _require_same(shapes: dict[str, torch.Size], others: dict[str, torch.Size], whose: str) -> None:
    for name in [*shapes, *others]:
        if shapes.get(name) != others.get(name):
            here, there = (f"{tuple(s[name])}" if name in s else "missing" for s in (shapes, others))
            raise UserError(f"{whose} are of another model: {name} is {here} in one and {there} in the other")


def _verify_counts(name: str, mask: Mask, pattern: Unstructured | NM) -> None:
    if isinstance(pattern, NM):
        groups, kept = mask.reshape(-1, pattern.m), pattern.n
    else:
        groups = mask if pattern.group == "output" else mask.reshape(1, -1)
        kept = groups.shape[1] - math.floor(pattern.sparsity * groups.shape[1])
    wrong = (groups.sum(dim=1) != kept).nonzero()
    if len(wrong):
        group = int(wrong[0, 0])
        found = f"{int(groups[group].sum())} of {groups.shape[1]} weights"
        raise UserError(f"group {group} of {name} keeps {found}, not the {kept} of {pattern_label(pattern)}")
