"""What happens to the weights that a mask keeps, by name: a new one is a file here and a line in `UPDATES`.

A choice is a score's peer that makes the mask by itself, with the weights updated as it goes.
"""

from symprune.methods.update.refit import Refit, SymmetricRefit
from symprune.methods.update.sequential import Sequential, SparseGPT

UPDATES = {"refit": Refit, "symmetric_refit": SymmetricRefit, "sequential": Sequential}
CHOICES = {"sparsegpt": SparseGPT}

__all__ = ["CHOICES", "UPDATES", "Refit", "Sequential", "SparseGPT", "SymmetricRefit"]
