"""symprune: symmetric pruning of large language models after training."""

from symprune.errors import UserError
from symprune.evaluate import Perplexity, perplexity
from symprune.mask_files import MaskFile, apply_masks, load_masks, save_masks
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
from symprune.zero_shot import ZeroShot, zero_shot

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
    "MaskFile",
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
    "ZeroShot",
    "apply_masks",
    "load_masks",
    "perplexity",
    "prune",
    "save_masks",
    "zero_shot",
]
