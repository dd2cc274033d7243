"""How two masks agree, and how evenly a mask keeps weights over the rows and columns of its matrix."""

import math

from symprune.base.types import Mask


def jaccard(mask_a: Mask, mask_b: Mask) -> float:
    """|A and B| / |A or B| over the kept weights; 1 for two masks that keep nothing.

    Two random masks that keep a fraction k have k / (2 - k) in expectation: 1/3 at 50 %, 1/4 at 60 %
    sparsity.
    """
    either = int((mask_a | mask_b).sum())
    return int((mask_a & mask_b).sum()) / either if either else 1.0


def entropy_of_kept(mask: Mask, dim: int) -> float:
    """Normalised entropy of the kept weights over the rows (dim = 0) or the columns (dim = 1) of a mask.

    H = -sum_k q[k] log q[k] / log n, q[k] the share of the kept weights that lie in line k of n: 1 if every
    line keeps as many, 0 if one line keeps all. For small differences 1 - H is close to the variance of n
    q[k] over 2 log n. 1 for n = 1 or an empty mask.
    """
    kept = mask.sum(dim=1 - dim).double()
    total = kept.sum()
    if len(kept) == 1 or total == 0:
        return 1.0
    share = kept[kept > 0] / total
    return float(-(share * share.log()).sum()) / math.log(len(kept))
