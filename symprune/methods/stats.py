"""What calibration leaves behind for one linear: exact, streaming, mergeable statistics of its inputs and
outputs.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float
from torch import Tensor

from symprune.base.errors import UserError
from symprune.base.types import Inputs, Outputs


@dataclass(frozen=True)
class LayerStats:
    """Statistics of one linear over all calibration tokens.

    input_norm[j] = ||X[:, j]||_2; output_norm[i] = ||Y[i, :]||_2, the linear's outputs unless said otherwise
    (None: not gathered). input_var is the variance over all tokens (pooled); input_var_within is the
    token-weighted mean of the variances inside each sample, as in DSnoT's published code, which drops the
    spread between samples. Variances divide by n. gram = X^T X (None: not asked for), d_in^2 numbers: the one
    statistic that is not small.
    """

    input_norm: Float[Tensor, " d_in"]
    input_mean: Float[Tensor, " d_in"]
    input_var: Float[Tensor, " d_in"]
    input_var_within: Float[Tensor, " d_in"]
    output_norm: Float[Tensor, " d_out"] | None
    n_tokens: int
    n_samples: int
    gram: Float[Tensor, "d_in d_in"] | None = None

    def to(self, *args, **kwargs) -> "LayerStats":
        """The same statistics with every tensor passed through `Tensor.to` (device, dtype)."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return LayerStats(
            **{k: v.to(*args, **kwargs) if isinstance(v, Tensor) else v for k, v in values.items()}
        )


@dataclass(frozen=True)
class Sum:
    """A sum with twice float64's precision: `high` is the sum, `low` what its rounding left over.

    Added in whatever order, `high` comes out the same but for additions whose exact sum lies within 2^-100 of
    halfway between two float64 numbers: statistics gathered in parts are those gathered in one go.
    """

    high: Float[Tensor, "*shape"]
    low: Float[Tensor, "*shape"]

    @classmethod
    def of(cls, term: Float[Tensor, "..."]) -> "Sum":
        """One term, as float64."""
        return cls(term.double(), torch.zeros_like(term, dtype=torch.float64))

    def __add__(self, other: "Sum") -> "Sum":
        high = self.high + other.high
        taken = high - self.high
        low = (self.high - (high - taken)) + (other.high - taken) + (self.low + other.low)
        rounded = high + low
        return Sum(rounded, low - (rounded - high))


@dataclass(frozen=True)
class Moments:
    """Sums over a stretch of inputs from which every statistic follows; two stretches merge by addition.

    sums: three rows, the sum of x; over samples, of n_s * mean_s^2; and of (x - mean_s)^2. gram = sum of x
    x^T, if asked for: a float64 sum of products in the inputs' precision, so that an order of additions shows
    in its 53rd bit at most.
    """

    n_tokens: int
    n_samples: int
    sums: Sum
    gram: Float[Tensor, "d d"] | None = None

    @property
    def total(self) -> Float[Tensor, " d"]:
        """Sum of x."""
        return self.sums.high[0]

    @property
    def between(self) -> Float[Tensor, " d"]:
        """Sum over samples of n_s * mean_s^2."""
        return self.sums.high[1]

    @property
    def within(self) -> Float[Tensor, " d"]:
        """Sum of (x - mean_s)^2, s the sample that x is from."""
        return self.sums.high[2]

    @classmethod
    def none(cls, d: int, device: torch.device | str = "cpu", gram: bool = False) -> "Moments":
        """No inputs."""
        products = torch.zeros(d, d, dtype=torch.float64, device=device) if gram else None
        return cls(0, 0, Sum.of(torch.zeros(3, d, device=device)), products)

    @classmethod
    def of(cls, inputs: Inputs, gram: bool = False) -> "Moments":
        """Moments of [tokens, d], or of [samples, tokens, d] with one sample per leading index; half
        precision is read as float32.
        """
        samples = at_least_float32(inputs.detach())
        samples = samples if samples.dim() == 3 else samples.unsqueeze(0)
        n_samples, n_tokens, d = samples.shape
        if n_samples * n_tokens == 0:
            return cls.none(d, samples.device, gram)
        total, between, within = sums = torch.zeros(3, d, dtype=torch.float64, device=samples.device)
        products = None
        for sample in samples:  # one at a time: it stays in the processor's cache
            mean = sample.mean(dim=0)
            # The mean leaves before the square is taken: a channel with a large mean and a small spread loses
            # nothing.
            within += squared_norm(sample - mean, dim=0)
            mean = mean.double()
            total += mean * n_tokens
            between += mean.square() * n_tokens
            if gram:
                product = sample.t() @ sample
                products = product if products is None else product.double().add_(products)
        return cls(n_samples * n_tokens, n_samples, Sum.of(sums), products)

    def plus(self, other: "Moments", in_place: bool = False) -> "Moments":
        """The moments of both; in_place: this Gram matrix, which nothing else may hold, is written over."""
        if (self.gram is None) != (other.gram is None):
            raise ValueError("one side gathered X^T X and the other did not: their sum would be neither")
        gram = None
        if self.gram is not None:
            gram = self.gram.add_(other.gram) if in_place else self.gram + other.gram
        return Moments(
            self.n_tokens + other.n_tokens, self.n_samples + other.n_samples, self.sums + other.sums, gram
        )


class StatsAccumulator:
    """Streams the inputs (and, if wanted, outputs) of one linear into `LayerStats`; two accumulators merge
    exactly.

    `update` takes [tokens, d] or [samples, tokens, d]. The order of updates and merges does not show in the
    result, see `Sum` (of a Gram matrix: not beyond float64's rounding); results are float32, or float64 if
    every update was. gram=True also gathers X^T X, 8 * d_in^2 bytes. Accumulators hold the same `moments`
    object while they have been given the same ones.
    """

    def __init__(self, d_in: int, d_out: int, device: torch.device | str = "cpu", gram: bool = False):
        self.d_in, self.d_out = d_in, d_out
        self.moments = Moments.none(d_in, device, gram)
        self.output_sq: Sum | None = None
        self.dtype = torch.float64

    def update(self, inputs: Inputs, outputs: Outputs | None = None) -> None:
        """Add one stretch of inputs, and of outputs; raises ValueError if their widths are not this
        linear's.
        """
        if inputs.shape[-1] != self.d_in:
            raise ValueError(f"inputs have width {inputs.shape[-1]}, this linear takes {self.d_in}")
        self.add(Moments.of(inputs, self.moments.gram is not None), inputs.dtype)
        if outputs is not None:
            self.update_outputs(outputs)

    def add(self, moments: Moments, dtype: torch.dtype = torch.float64) -> None:
        """Add moments of inputs of that dtype; both sides hold a Gram matrix or neither."""
        self.hold(self.moments.plus(moments), dtype)

    def hold(self, moments: Moments, dtype: torch.dtype) -> None:
        """Take these moments for those of everything seen so far, the latest of which was of that dtype."""
        self.moments = moments
        self.dtype = self.dtype if dtype == torch.float64 else torch.float32

    def update_outputs(self, outputs: Outputs) -> None:
        """Add the outputs (or output gradients) of one stretch: only their column norms are kept."""
        if outputs.shape[-1] != self.d_out:
            raise ValueError(f"outputs have width {outputs.shape[-1]}, this linear gives {self.d_out}")
        square = Sum.of(squared_norm(at_least_float32(outputs.detach()).reshape(-1, self.d_out), dim=0))
        self.output_sq = square if self.output_sq is None else self.output_sq + square

    def merge(self, other: "StatsAccumulator") -> None:
        """Become as if both streams had been seen; raises ValueError if only one of the two gathered outputs,
        or X^T X.
        """
        self.merge_outputs(other)
        self.add(other.moments, other.dtype)

    def merge_outputs(self, other: "StatsAccumulator") -> None:
        """The outputs' part of `merge`."""
        seen = self.moments.n_tokens > 0, other.moments.n_tokens > 0
        if all(seen) and (self.output_sq is None) != (other.output_sq is None):
            raise ValueError(
                "one accumulator gathered outputs and the other did not: their merge would be neither"
            )
        if other.output_sq is not None:
            self.output_sq = other.output_sq if self.output_sq is None else self.output_sq + other.output_sq

    def finish(self) -> LayerStats:
        """The statistics of everything seen so far; all zero if nothing was (an expert that no token
        reached).
        """
        return finish({"": self})[""]


def finish(accumulators: Mapping[str, StatsAccumulator]) -> dict[str, LayerStats]:
    """The statistics of several linears; those that hold the same moments share what follows from them."""
    of_inputs: dict[tuple, LayerStats] = {}
    statistics = {}
    for name, accumulator in accumulators.items():
        m, dtype = accumulator.moments, accumulator.dtype
        if (id(m), dtype) not in of_inputs:
            n = max(m.n_tokens, 1)
            square, mean = m.within + m.between, m.total / n
            vectors = square.sqrt(), mean, (square / n - mean.square()).clamp(min=0), m.within / n
            gram = None if m.gram is None else m.gram.to(dtype)
            of_inputs[id(m), dtype] = LayerStats(
                *(v.to(dtype) for v in vectors), None, m.n_tokens, m.n_samples, gram
            )
        stats, squares = of_inputs[id(m), dtype], accumulator.output_sq
        statistics[name] = (
            stats if squares is None else replace(stats, output_norm=squares.high.sqrt().to(dtype))
        )
    return statistics


class SharedInputs:
    """Feeds the accumulators of linears that run one after the other: a tensor that several receive is summed
    once, into one place.

    Linears share their moments, Gram matrix included, for as long as they receive the same tensors, and part
    when they do not.
    """

    def __init__(self, accumulators: Mapping[str, StatsAccumulator]):
        self._accumulators = accumulators
        empty: dict[tuple, Moments] = {}
        for accumulator in accumulators.values():
            key = accumulator.d_in, accumulator.moments.total.device
            accumulator.moments = empty.setdefault(key, accumulator.moments)
        self._last: tuple[Tensor, Moments] | None = None  # the tensor seen last and its moments
        self._step: tuple[Moments, Moments] | None = None  # what was held before it was added, and after

    def add(self, name: str, inputs: Inputs) -> None:
        """Add what the linear of that name receives; raises UserError, naming it, on NaN or inf."""
        accumulator = self._accumulators[name]
        before = accumulator.moments
        if self._last is None or self._last[0] is not inputs:
            self._last = self._step = None  # its memory is free before more is taken
            moments = Moments.of(inputs, before.gram is not None)
            if not torch.isfinite(moments.within.sum() + moments.total.sum()):
                raise UserError(
                    f"NaN or inf in the inputs of {name}: the weights are broken, or the dtype's range is too"
                    " small"
                )
            self._last = inputs, moments
        if self._step is None or self._step[0] is not before:
            alone = sum(other.moments is before for other in self._accumulators.values()) == 1
            self._step = before, before.plus(self._last[1], in_place=alone)
        accumulator.hold(self._step[1], inputs.dtype)


def merged(
    first: Mapping[str, StatsAccumulator], second: Mapping[str, StatsAccumulator]
) -> dict[str, StatsAccumulator]:
    """One accumulator for each linear, as if it had seen both streams; linears that share moments on both
    sides share the result.
    """
    sums: dict[tuple, Moments] = {}
    result = {}
    for name, accumulator in first.items():
        # moments and sums are never written over once they are shared
        result[name] = both = copy.copy(accumulator)
        both.merge_outputs(second[name])
        held = id(accumulator.moments), id(second[name].moments)
        if held not in sums:
            sums[held] = accumulator.moments.plus(second[name].moments)
        both.hold(sums[held], second[name].dtype)
    return result


def at_least_float32(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Half precision as float32, everything else as it is."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def squared_norm(x: Float[Tensor, "..."], dim: int) -> Float[Tensor, "..."]:
    """Sum of squares along `dim`, in float64 (measured three times as fast as `torch.linalg.vector_norm`
    along rows).
    """
    return x.square().sum(dim=dim).double()
