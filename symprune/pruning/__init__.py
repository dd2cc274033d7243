"""The loop over decoder layers, what it is calibrated on, and the masks and statistics that it leaves."""

from symprune.pruning.calibrate import accumulate, gather
from symprune.pruning.mask_files import MaskFile, apply_masks, load_masks, save_masks
from symprune.pruning.prune import prune
from symprune.pruning.report import PruneReport

__all__ = [
    "MaskFile",
    "PruneReport",
    "accumulate",
    "apply_masks",
    "gather",
    "load_masks",
    "prune",
    "save_masks",
]
