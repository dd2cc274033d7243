"""Training-free refinements of a mask, by name: a new one is a file here and a line in `REFINERS`."""

from symprune.methods.refine.dsnot import AS_PUBLISHED, DSnoT, R2DSnoT
from symprune.methods.refine.exact_swap import ExactSwap
from symprune.methods.refine.sketch_swap import SketchSwap

REFINERS = {"dsnot": DSnoT, "r2dsnot": R2DSnoT, "exact_swap": ExactSwap, "sketch_swap": SketchSwap}

__all__ = ["AS_PUBLISHED", "REFINERS", "DSnoT", "ExactSwap", "R2DSnoT", "SketchSwap"]
