"""A sketch of how inputs vary together: a few columns in place of a whole Gram matrix.

Omega [d_in, rank] holds random signs. (G - n mu mu^T) Omega is a sum over tokens, so it streams and merges as
sums do; `sketch_swap` makes of it, of the exact mean and of the exact norms a matrix in place of G.
"""

import re
from collections.abc import Collection
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_SEED = np.uint64(0x5EED)  # of the signs: one for all, or sketches of two machines could not be added
_WORD = 64


def use_of(rank: int) -> tuple[str, ...]:
    """What a method that reads a sketch of this rank names in its `uses`: ("sketch64",), none for 0."""
    return (f"sketch{rank}",) if rank else ()


def rank_in(uses: Collection[str]) -> int:
    """The largest rank that these names ask for; 0 if none is a sketch's."""
    return max(
        (int(found[1]) for use in uses if (found := re.fullmatch(r"sketch([1-9]\d*)", use))), default=0
    )


def lacking(wanted: Collection[str], gathered: Collection[str]) -> list[str]:
    """Which of these uses were not gathered; a sketch holds every smaller one."""
    rank = rank_in(gathered)
    return sorted(use for use in wanted if use not in gathered and not 0 < rank_in([use]) <= rank)


@lru_cache(maxsize=32)
def signs(
    d_in: int, rank: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> Float[Tensor, "d_in r"]:
    """Omega: random signs, or the unit vectors where rank >= d_in, so that the sketch is the matrix itself.

    Sign (j, c) is bit c % 64 of SplitMix64 at the counter (j, c // 64): integer arithmetic, the same on every
    machine and in every version of torch and numpy. The first columns of a larger Omega are a smaller one.
    Source of the mixing function: Steele, Lea and Flood, OOPSLA 2014.
    """
    if rank >= d_in:
        return torch.eye(d_in, dtype=dtype, device=device)
    channel = np.arange(1, d_in + 1, dtype=np.uint64)[:, None]
    word = np.arange(-(-rank // _WORD), dtype=np.uint64)
    x = _SEED + (channel * np.uint64(2**32) + word) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    bits = (x[:, :, None] >> np.arange(_WORD, dtype=np.uint64)) & np.uint64(1)
    columns = bits.reshape(d_in, -1)[:, :rank].astype(np.int8)
    return torch.from_numpy(1 - 2 * columns).to(device, dtype)


def factor_of(sketch: Float[Tensor, "d_in r"], rank: int, rounding: float) -> Float[Tensor, "d_in k"]:
    """F with F F^T the Nystrom approximation of the matrix A whose sketch is A Omega, from `rank` columns.

    A Omega (Omega^T A Omega)^+ Omega^T A, float64; k <= rank, for eigenvalues of the inner matrix below
    rank * rounding of the largest are left out. It never exceeds A beyond that. A sketch of d_in columns is A
    itself. Source: Tropp, Yurtsever, Udell and Cevher, NeurIPS 2017.
    """
    d_in = len(sketch)
    omega, sketch = signs(d_in, rank, torch.float64, sketch.device), sketch.double()
    sketch = sketch @ omega if sketch.shape[1] == d_in else sketch[:, :rank]
    inner = omega.T @ sketch
    values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
    held = values > values[-1].clamp(min=0) * rounding * rank
    return sketch @ (vectors[:, held] / values[held].sqrt())
