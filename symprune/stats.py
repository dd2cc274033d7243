"""What calibration leaves behind for one linear: exact, streaming, mergeable statistics of its inputs and outputs."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from symprune._types import Inputs, Outputs


@dataclass(frozen=True)
class LayerStats:
    """Statistics of one linear over all calibration tokens.

    input_norm[j] = ||X[:, j]||_2; output_norm[i] = ||Y[i, :]||_2, the linear's outputs unless said otherwise (None: not
    gathered). input_var is the variance over all tokens (pooled); input_var_within is the token-weighted mean of the
    variances inside each sample, as in DSnoT's published code, which drops the spread between samples. Variances divide by n.
    gram = X^T X (None: not asked for), d_in^2 numbers: the one statistic that is not small.
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
        return LayerStats(**{k: v.to(*args, **kwargs) if isinstance(v, Tensor) else v for k, v in values.items()})


@dataclass(frozen=True)
class Moments:
    """Sums over a stretch of inputs from which every statistic follows; two stretches merge by addition.

    total[j] = sum of x; between[j] = sum over samples of n_s * mean_s^2; within[j] = sum of (x - mean_s)^2; gram = sum of
    x x^T, if asked for. All float64.
    """

    n_tokens: int
    n_samples: int
    total: Float[Tensor, " d"]
    between: Float[Tensor, " d"]
    within: Float[Tensor, " d"]
    gram: Float[Tensor, "d d"] | None = None

    @classmethod
    def of(cls, inputs: Inputs, gram: bool = False) -> "Moments":
        """Moments of [tokens, d], or of [samples, tokens, d] with one sample per leading index; half precision is read as float32."""
        samples = at_least_float32(inputs.detach())
        samples = samples if samples.dim() == 3 else samples.unsqueeze(0)
        n_samples, n_tokens, d = samples.shape
        total, between, within = torch.zeros(3, d, dtype=torch.float64, device=samples.device)
        products = torch.zeros(d, d, dtype=torch.float64, device=samples.device) if gram else None
        if n_tokens == 0:
            return cls(0, 0, total, between, within, products)
        for sample in samples:  # one at a time: it stays in the processor's cache
            mean = sample.mean(dim=0)
            # The mean leaves before the square is taken: a channel with a large mean and a small spread loses nothing.
            within += squared_norm(sample - mean, dim=0)
            mean = mean.double()
            total += mean * n_tokens
            between += mean.square() * n_tokens
            if gram:
                products += sample.t() @ sample
        return cls(n_samples * n_tokens, n_samples, total, between, within, products)

    def __add__(self, other: "Moments") -> "Moments":
        if (self.gram is None) != (other.gram is None):
            raise ValueError("one side gathered X^T X and the other did not: their sum would be neither")
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return Moments(*(None if a is None else a + b for a, b in pairs))


class StatsAccumulator:
    """Streams the inputs (and, if wanted, outputs) of one linear into `LayerStats`; two accumulators merge exactly.

    `update` takes [tokens, d] or [samples, tokens, d]. Sums are kept in float64, so the order of updates and merges does
    not matter beyond its rounding; results are float32, or float64 if every update was. gram=True also gathers X^T X,
    8 * d_in^2 bytes.
    """

    def __init__(self, d_in: int, d_out: int, device: torch.device | str = "cpu", gram: bool = False):
        self.d_in, self.d_out = d_in, d_out
        empty = torch.zeros(0, d_in, dtype=torch.float64, device=device)
        self._moments = Moments.of(empty, gram)
        self._output_sq: Tensor | None = None
        self._dtype = torch.float64

    def update(self, inputs: Inputs, outputs: Outputs | None = None) -> None:
        """Add one stretch of inputs, and of outputs; raises ValueError if their widths are not this linear's."""
        if inputs.shape[-1] != self.d_in:
            raise ValueError(f"inputs have width {inputs.shape[-1]}, this linear takes {self.d_in}")
        self.add(Moments.of(inputs, self._moments.gram is not None), inputs.dtype)
        if outputs is not None:
            self.update_outputs(outputs)

    def add(self, moments: Moments, dtype: torch.dtype = torch.float64) -> None:
        """Add moments that were computed once for several linears sharing an input of that dtype; both hold a Gram matrix or neither."""
        self._moments = self._moments + moments
        self._dtype = self._dtype if dtype == torch.float64 else torch.float32

    def update_outputs(self, outputs: Outputs) -> None:
        """Add the outputs (or output gradients) of one stretch: only their column norms are kept."""
        if outputs.shape[-1] != self.d_out:
            raise ValueError(f"outputs have width {outputs.shape[-1]}, this linear gives {self.d_out}")
        square = squared_norm(at_least_float32(outputs.detach()).reshape(-1, self.d_out), dim=0)
        self._output_sq = square if self._output_sq is None else self._output_sq + square

    def merge(self, other: "StatsAccumulator") -> None:
        """Become as if both streams had been seen; raises ValueError if only one of the two gathered outputs, or X^T X."""
        seen = self._moments.n_tokens > 0, other._moments.n_tokens > 0
        if all(seen) and (self._output_sq is None) != (other._output_sq is None):
            raise ValueError("one accumulator gathered outputs and the other did not: their merge would be neither")
        if other._output_sq is not None:
            self._output_sq = other._output_sq if self._output_sq is None else self._output_sq + other._output_sq
        self.add(other._moments, other._dtype)

    def finish(self) -> LayerStats:
        """The statistics of everything seen so far; all zero if nothing was (an expert that no token reached)."""
        m, n = self._moments, max(self._moments.n_tokens, 1)
        square, mean = m.within + m.between, m.total / n
        vectors = square.sqrt(), mean, (square / n - mean.square()).clamp(min=0), m.within / n
        output_norm = None if self._output_sq is None else self._output_sq.sqrt().to(self._dtype)
        gram = None if m.gram is None else m.gram.to(self._dtype)
        return LayerStats(*(v.to(self._dtype) for v in vectors), output_norm, m.n_tokens, m.n_samples, gram)


def at_least_float32(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Half precision as float32, everything else as it is."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def squared_norm(x: Float[Tensor, "..."], dim: int) -> Float[Tensor, "..."]:
    """Sum of squares along `dim`, in float64 (measured three times as fast as `torch.linalg.vector_norm` along rows)."""
    return x.square().sum(dim=dim).double()
