"""Methods of pruning: scores, masks, refinements, and the objective that they follow from."""

from symprune.methods.masks import NM, Unstructured
from symprune.methods.recipe import Recipe
from symprune.methods.refine import DSnoT, ExactSwap, R2DSnoT, SketchSwap
from symprune.methods.scores import (
    RI,
    RIA,
    SCORES,
    GeneralDiagonal,
    LpNorm,
    Magnitude,
    OWanda,
    StochRIA,
    Symmetric,
    SymWanda,
    Wanda,
)
from symprune.methods.stats import LayerStats, StatsAccumulator
from symprune.methods.update import Refit, Sequential, SparseGPT, SymmetricRefit

__all__ = [
    "NM",
    "RI",
    "RIA",
    "SCORES",
    "DSnoT",
    "ExactSwap",
    "GeneralDiagonal",
    "LayerStats",
    "LpNorm",
    "Magnitude",
    "OWanda",
    "R2DSnoT",
    "Recipe",
    "Refit",
    "Sequential",
    "SketchSwap",
    "SparseGPT",
    "StatsAccumulator",
    "StochRIA",
    "SymWanda",
    "Symmetric",
    "SymmetricRefit",
    "Unstructured",
    "Wanda",
]
