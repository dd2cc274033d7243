"""The mean of what was measured on text crossed with draws, and how far it may lie from the truth."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_LEVEL = 0.05
_POWER = 0.8


@dataclass(frozen=True)
class Mean:
    """A mean with its standard error and the degrees of freedom of Student's t (inf where nothing varies)."""

    value: float
    error: float
    freedom: float

    def reach(self, comparisons: int = 1) -> float:
        """Half the 95 % interval, widened so that so many hold together (Bonferroni)."""
        return self._times(1 - _LEVEL / 2 / comparisons)

    def detectable(self, comparisons: int = 1) -> float:
        """The smallest true mean of which the interval leaves out zero with 80 % probability.

        (t[1 - 0.025 / comparisons] + t[0.8]) errors.
        """
        return self.reach(comparisons) + self._times(_POWER)

    def showable(self, comparisons: int = 1) -> float:
        """The smallest margin that holds the whole interval with 80 % probability if the true mean is zero.

        (t[1 - 0.025 / comparisons] + t[0.9]) errors, as the mean may err to both sides.
        """
        return self.reach(comparisons) + self._times((1 + _POWER) / 2)

    def _times(self, quantile: float) -> float:
        from scipy import stats

        if self.error in (0, math.inf):
            return self.error
        return float(stats.t.ppf(quantile, self.freedom)) * self.error


def crossed(*strata: np.ndarray) -> Mean:
    """The mean of units crossed with draws, by the two-way random-effects analysis of variance.

    var = s2_unit / A + s2_draw / S + s2_both / (A S) for A units (articles, examples) and S draws, each
    component from its mean square, with Satterthwaite's degrees of freedom. A component estimated as negative
    is zero, which makes the interval wider, and its mean square's degrees of freedom play no part. One draw:
    the units alone vary. A single unit says nothing of others: the error is infinite.

    strata: [A, S] each, of any A and the same S: tasks, say, whose plain mean is taken. Their units are
    others, so those variances add; the draws are the same, so theirs is that of the mean over strata. Raises
    ValueError for other shapes.

    Source of error bars over clustered questions: Miller, arXiv 2411.00640.
    """
    cells = [np.asarray(of, dtype=float) for of in strata]
    if not cells or any(of.ndim != 2 or 0 in of.shape or of.shape[1] != cells[0].shape[1] for of in cells):
        raise ValueError(f"strata need units and the same draws: {[of.shape for of in cells]}")
    n_draws = cells[0].shape[1]
    value = float(np.mean([of.mean() for of in cells]))
    if any(len(of) < 2 for of in cells):
        return Mean(value, math.inf, 0)
    units, both = [], []  # what each mean square adds to the variance of the mean, and its degrees of freedom
    for of in cells:
        share = 1 / (of.size * len(cells) ** 2)
        units.append((share * n_draws * of.mean(axis=1).var(ddof=1), len(of) - 1))
        rest = of - of.mean(axis=1, keepdims=True) - of.mean(axis=0) + of.mean()
        freedom = (len(of) - 1) * (n_draws - 1)
        both.append((share * (rest**2).sum() / freedom if freedom else 0.0, freedom))
    if n_draws == 1:
        return _satterthwaite(value, units)
    of_draws = np.mean([of.mean(axis=0) for of in cells], axis=0).var(ddof=1) / n_draws
    draws_count = of_draws > sum(term for term, _ in both)
    terms = [(of_draws, n_draws - 1)] if draws_count else []
    for unit, rest in zip(units, both, strict=True):
        unit_counts = unit[0] > rest[0]
        terms += [unit] if unit_counts else []
        terms.append((rest[0] * (1 - unit_counts - draws_count), rest[1]))
    return _satterthwaite(value, terms)


def _satterthwaite(value: float, terms: Sequence[tuple[float, int]]) -> Mean:
    variance = sum(term for term, _ in terms)
    if variance <= 0:
        return Mean(value, 0.0, math.inf)
    freedom = variance**2 / sum(term**2 / freedom for term, freedom in terms)
    return Mean(value, math.sqrt(variance), freedom)
