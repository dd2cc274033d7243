"""What calibration leaves behind of a linear: exact, mergeable statistics of its inputs and outputs."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from symprune.base.types import Inputs, Outputs
from symprune.methods.sketch import signs
from symprune.methods.sums import Sum, at_least_float32, squared_norm


@dataclass(frozen=True)
class LayerStats:
    """Statistics of one linear over all calibration tokens.

    input_norm[j] = ||X[:, j]||_2; output_norm[i] = ||Y[i, :]||_2, the linear's outputs unless said otherwise
    (None: not gathered). input_var is the variance over all tokens (pooled); input_var_within is the
    token-weighted mean of the variances inside each sample, as in DSnoT's published code, which drops the
    spread between samples. Variances divide by n. gram = X^T X, and gradient_gram is the same of the loss
    gradients with respect to the outputs (None: not asked for): the two statistics that are not small. sketch
    = (gram - n_tokens * mean mean^T) Omega (None: not asked for) in float64, see `symprune.methods.sketch`.
    """

    input_norm: Float[Tensor, " d_in"]
    input_mean: Float[Tensor, " d_in"]
    input_var: Float[Tensor, " d_in"]
    input_var_within: Float[Tensor, " d_in"]
    output_norm: Float[Tensor, " d_out"] | None
    n_tokens: int
    n_samples: int
    gram: Float[Tensor, "d_in d_in"] | None = None
    gradient_gram: Float[Tensor, "d_out d_out"] | None = None
    sketch: Float[Tensor, "d_in r"] | None = None

    def to(self, *args, **kwargs) -> "LayerStats":
        """The same statistics with every tensor passed through `Tensor.to` (device, dtype)."""
        values = vars(self).items()
        return LayerStats(**{k: v.to(*args, **kwargs) if isinstance(v, Tensor) else v for k, v in values})

    def __repr__(self) -> str:
        held = ", ".join(name for name, value in vars(self).items() if isinstance(value, Tensor))
        return f"LayerStats of {self.n_tokens} tokens in {self.n_samples} samples: {held}"


@dataclass(frozen=True)
class Moments:
    """Sums over a stretch of inputs from which every statistic follows; two stretches merge by addition.

    sums: three rows, the sum of x; over samples, of n_s * mean_s^2; and of (x - mean_s)^2. gram = sum of
    x x^T, if asked for: a float64 sum of products in the inputs' precision, so that an order of additions
    shows in its 53rd bit at most. sketch = gram Omega, if asked for, added up as sums are. dtype: what
    statistics are rounded to, float64 if all inputs were, else float32.
    """

    n_tokens: int
    n_samples: int
    sums: Sum
    gram: Float[Tensor, "d d"] | None = None
    dtype: torch.dtype = torch.float64
    sketch: Sum | None = None

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
    def none(cls, d: int, device: torch.device | str = "cpu", gram: bool = False, rank: int = 0) -> "Moments":
        """No inputs."""
        products = torch.zeros(d, d, dtype=torch.float64, device=device) if gram else None
        sketch = Sum.of(torch.zeros(d, min(rank, d), device=device)) if rank else None
        return cls(0, 0, Sum.of(torch.zeros(3, d, device=device)), products, sketch=sketch)

    @classmethod
    def of(cls, inputs: Inputs, gram: bool = False, rank: int = 0) -> "Moments":
        """Moments of [tokens, d] or [samples, ..., d]; half precision is read as float32.

        All that lies between the samples and d are tokens: the heads of latent attention among them. rank:
        the columns of the sketch, 0 for none.
        """
        samples = at_least_float32(inputs.detach())
        few = samples.dim() < 3
        samples = samples.reshape(-1, samples.shape[-1]).unsqueeze(0) if few else samples.flatten(1, -2)
        n_samples, n_tokens, d = samples.shape
        if n_samples * n_tokens == 0:
            return replace(cls.none(d, samples.device, gram, rank), dtype=samples.dtype)
        total, between, within = sums = torch.zeros(3, d, dtype=torch.float64, device=samples.device)
        products, sketch = None, torch.zeros(d, min(rank, d), dtype=torch.float64, device=samples.device)
        for sample in samples:  # one at a time: it stays in the processor's cache
            mean = sample.mean(dim=0)
            # The mean leaves before the square is taken: a channel with a large mean and a small spread loses
            # nothing.
            centred = sample - mean
            within += squared_norm(centred, dim=0)
            mean = mean.double()
            if rank:
                omega = signs(d, rank, samples.dtype, samples.device)
                sketch += centred.t() @ (centred @ omega)
                sketch.addr_(mean, mean @ omega.double(), alpha=n_tokens)
            total += mean * n_tokens
            between += mean.square() * n_tokens
            if gram:
                product = sample.t() @ sample
                products = product if products is None else product.double().add_(products)
        held = Sum.of(sketch) if rank else None
        return cls(n_samples * n_tokens, n_samples, Sum.of(sums), products, samples.dtype, held)

    def plus(self, other: "Moments", in_place: bool = False) -> "Moments":
        """The moments of both; in_place: this Gram matrix, which nothing else may hold, is written over."""
        if (self.gram is None) != (other.gram is None):
            raise ValueError("one side gathered X^T X and the other did not: their sum would be neither")
        ranks = [0 if side.sketch is None else side.sketch.high.shape[1] for side in (self, other)]
        if ranks[0] != ranks[1]:
            raise ValueError(f"sketches of {ranks[0]} and {ranks[1]} columns cannot be added")
        gram = None
        if self.gram is not None:
            gram = self.gram.add_(other.gram) if in_place else self.gram + other.gram
        return Moments(
            self.n_tokens + other.n_tokens,
            self.n_samples + other.n_samples,
            self.sums + other.sums,
            gram,
            torch.float64 if self.dtype == other.dtype == torch.float64 else torch.float32,
            None if self.sketch is None or other.sketch is None else self.sketch + other.sketch,
        )


class LinearSums:
    """What is added up for several linears by their names; those that received the same inputs hold one sum.

    group_of[linear] is the group that a linear is in, called by the first of its linears; moments[group] are
    the sums over the inputs that the group received; output_squares[linear] is the sum of the squares of each
    of its outputs, if any were added, and gradient_grams[linear] of the products of its outputs' gradients,
    in float64; shapes[linear] is (d_out, d_in). A group parts once its linears receive different inputs.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int]],
        group_of: Mapping[str, str],
        moments: Mapping[str, Moments],
        output_squares: Mapping[str, Sum] | None = None,
        gradient_grams: Mapping[str, Tensor] | None = None,
    ):
        self.shapes, self.group_of, self.moments = dict(shapes), dict(group_of), dict(moments)
        self.output_squares, self.gradient_grams = dict(output_squares or {}), dict(gradient_grams or {})

    @classmethod
    def of_nothing(
        cls,
        shapes: Mapping[str, tuple[int, int]],
        devices: Mapping[str, torch.device],
        gram: bool = False,
        rank: int = 0,
    ) -> "LinearSums":
        """No inputs yet: linears of one width on one device are in one group."""
        first: dict[tuple, str] = {}
        group_of = {n: first.setdefault((d_in, devices[n]), n) for n, (_, d_in) in shapes.items()}
        return cls(
            shapes, group_of, {n: Moments.none(d_in, at, gram, rank) for (d_in, at), n in first.items()}
        )

    def add(self, linears: Collection[str], moments: Moments) -> None:
        """Add the moments of inputs that all these linears received; ValueError if one side lacks X^T X."""
        for group in dict.fromkeys(self.group_of[name] for name in linears):
            members = [name for name, of in self.group_of.items() if of == group]
            received = [name for name in members if name in linears]
            total = self.moments[group].plus(moments, in_place=received == members)
            others = [name for name in members if name not in linears]
            for part, held in ((others, self.moments.pop(group)), (received, total)):
                if part:
                    self.group_of |= dict.fromkeys(part, part[0])
                    self.moments[part[0]] = held

    def add_outputs(self, linear: str, outputs: Outputs) -> None:
        """Add outputs of a linear, or gradients with respect to them; raises ValueError for another width."""
        d_out, _ = self.shapes[linear]
        if outputs.shape[-1] != d_out:
            raise ValueError(f"outputs have width {outputs.shape[-1]}, this linear gives {d_out}")
        squares = Sum.of(squared_norm(at_least_float32(outputs.detach()).reshape(-1, d_out), dim=0))
        held = self.output_squares.get(linear)
        self.output_squares[linear] = squares if held is None else held + squares

    def add_gradients(self, linear: str, gradients: Outputs) -> None:
        """Add the products of loss gradients with respect to a linear's outputs, in place."""
        rows = at_least_float32(gradients.detach()).flatten(0, -2)
        self.gradient_grams[linear].add_(rows.t() @ rows)

    def merge(self, other: "LinearSums") -> "LinearSums":
        """The sums over both streams; linears that share a sum on both sides share the result.

        Raises ValueError if only one of the two gathered the outputs of a linear, or X^T X.
        """
        first: dict[tuple[str, str], str] = {}  # the first linear of each pair of groups
        group_of = {n: first.setdefault((self.group_of[n], other.group_of[n]), n) for n in self.group_of}
        moments = {n: self.moments[here].plus(other.moments[there]) for (here, there), n in first.items()}
        squares = dict(other.output_squares)
        for name, held in self.output_squares.items():
            squares[name] = held + squares[name] if name in squares else held
        for name in squares:
            sides = [side for side in (self, other) if side.moments[side.group_of[name]].n_tokens]
            if len({name in side.output_squares for side in sides}) == 2:
                raise ValueError(
                    "one side gathered outputs and the other did not: their sum would be neither"
                )
        grams = {name: held + other.gradient_grams[name] for name, held in self.gradient_grams.items()}
        return LinearSums(self.shapes, group_of, moments, squares, grams)

    def join(self, others: "LinearSums") -> None:
        """Take in the sums of other linears, those of another decoder layer for one."""
        self.shapes |= others.shapes
        self.group_of |= others.group_of
        self.moments |= others.moments
        self.output_squares |= others.output_squares
        self.gradient_grams |= others.gradient_grams

    def finish(self) -> dict[str, LayerStats]:
        """The statistics of every linear; those of one group share the tensors that follow from its inputs.

        All zero where nothing was added (an expert that no token reached).
        """
        of_group = {group: _statistics(moments) for group, moments in self.moments.items()}
        statistics = {}
        for name, group in self.group_of.items():
            stats, squares = of_group[group], self.output_squares.get(name)
            if squares is not None:
                stats = replace(stats, output_norm=squares.high.sqrt().to(self.moments[group].dtype))
            if name in self.gradient_grams:
                stats = replace(stats, gradient_gram=self.gradient_grams[name].to(stats.input_norm.dtype))
            statistics[name] = stats
        return statistics


class StatsAccumulator:
    """Streams the inputs (and, if wanted, outputs) of one linear into `LayerStats`; two merge exactly.

    `update` takes [tokens, d] or [samples, ..., d]. The order of updates and merges does not show in the
    result, see `Sum` (of a Gram matrix: not beyond float64's rounding); results are float32, or float64 if
    every update was. gram=True also gathers X^T X, 8 * d_in^2 bytes; rank > 0 a sketch of it, 16 * d_in *
    rank.
    """

    def __init__(
        self, d_in: int, d_out: int, device: torch.device | str = "cpu", gram: bool = False, rank: int = 0
    ):
        self._d_in, self._rank = d_in, rank
        self._sums = LinearSums.of_nothing({"": (d_out, d_in)}, {"": torch.device(device)}, gram, rank)

    @property
    def moments(self) -> Moments:
        """The sums over all inputs so far."""
        return self._sums.moments[""]

    def update(self, inputs: Inputs, outputs: Outputs | None = None) -> None:
        """Add one stretch of inputs, and of outputs; raises ValueError if a width is not this linear's."""
        if inputs.shape[-1] != self._d_in:
            raise ValueError(f"inputs have width {inputs.shape[-1]}, this linear takes {self._d_in}")
        self.add(Moments.of(inputs, self.moments.gram is not None, self._rank))
        if outputs is not None:
            self._sums.add_outputs("", outputs)

    def add(self, moments: Moments) -> None:
        """Add the moments of inputs; raises ValueError unless both sides hold a Gram matrix, or neither."""
        self._sums.add([""], moments)

    def merge(self, other: "StatsAccumulator") -> None:
        """Become as if both streams had been seen; raises ValueError as `LinearSums.merge` does."""
        self._sums = self._sums.merge(other._sums)

    def finish(self) -> LayerStats:
        """The statistics of everything seen so far, all zero if nothing was."""
        return self._sums.finish()[""]


def _statistics(moments: Moments) -> LayerStats:
    """What follows from sums over inputs; nothing of outputs."""
    n, dtype = max(moments.n_tokens, 1), moments.dtype
    square, mean = moments.within + moments.between, moments.total / n
    vectors = square.sqrt(), mean, (square / n - mean.square()).clamp(min=0), moments.within / n
    gram = None if moments.gram is None else moments.gram.to(dtype, copy=True)  # sums go on in place
    counts, sketch = (moments.n_tokens, moments.n_samples), None
    if moments.sketch is not None:
        omega = signs(len(mean), moments.sketch.high.shape[1], torch.float64, mean.device)
        sketch = moments.sketch.high - torch.outer(moments.total, mean @ omega)
    return LayerStats(*(v.to(dtype) for v in vectors), None, *counts, gram, sketch=sketch)
