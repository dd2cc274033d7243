"""symprune: symmetric pruning of large language models after training."""

from symprune.errors import UserError
from symprune.evaluate import Perplexity, perplexity
from symprune.masks import NM, Unstructured
from symprune.prune import PruneReport, prune
from symprune.recipe import Recipe
from symprune.refine import DSnoT, R2DSnoT
from symprune.scores import (
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
from symprune.stats import LayerStats, StatsAccumulator

__version__ = "0.1.0"

__all__ = [
    "NM",
    "RI",
    "RIA",
    "SCORES",
    "DSnoT",
    "GeneralDiagonal",
    "LayerStats",
    "LpNorm",
    "Magnitude",
    "OWanda",
    "Perplexity",
    "PruneReport",
    "R2DSnoT",
    "Recipe",
    "StatsAccumulator",
    "StochRIA",
    "SymWanda",
    "Symmetric",
    "Unstructured",
    "UserError",
    "Wanda",
    "perplexity",
    "prune",
]
