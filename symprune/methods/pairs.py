"""The explicit (X, Y) of the symmetric objective from which each score follows.

`FORMULAS` tells the pairs in symbols, `PAIRS` builds them: small layers, float64.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from symprune.base.types import Weight
from symprune.methods.norms import row_column_norms, safe_reciprocal, sampled_norms
from symprune.methods.objective import InputSide, OutputSide, Pair

Direction = Callable[[Float[Tensor, " n"]], Float[Tensor, "m n"]]


def constant_columns(norms: Float[Tensor, " n"]) -> Float[Tensor, "m n"]:
    """A matrix with these column norms and constant columns: column j is norms[j] / sqrt(n) everywhere."""
    return norms.expand(len(norms), -1) / len(norms) ** 0.5


def diagonal(norms: Float[Tensor, " n"]) -> Float[Tensor, "m n"]:
    """A matrix with these column norms that is diagonal."""
    return torch.diag(norms)


def random_directions(norms: Float[Tensor, " n"], seed: int = 0) -> Float[Tensor, "m n"]:
    """A matrix with these column norms and random directions: column j is norms[j] u_j, ||u_j|| = 1."""
    directions = torch.randn(
        len(norms) + 1, len(norms), dtype=norms.dtype, generator=Generator().manual_seed(seed)
    )
    return norms * directions / directions.norm(dim=0)


# A score fixes only the norms of X's columns and Y's rows: infinitely many pairs have them. These are three.
CONSTRUCTIONS: dict[str, Direction] = {
    "constant columns": constant_columns,
    "diagonals": diagonal,
    "random unit directions": random_directions,
}


def magnitude_pair(weight: Weight, inputs: InputSide, outputs: OutputSide) -> Pair:
    """X the identity, Y = 0."""
    return _pair(weight, torch.eye(weight.shape[1]), _nothing(weight))


def wanda_pair(weight: Weight, inputs: InputSide, outputs: OutputSide) -> Pair:
    """X the activations, Y = 0."""
    return _pair(weight, inputs, _nothing(weight))


def owanda_pair(weight: Weight, inputs: InputSide, outputs: OutputSide) -> Pair:
    """X = 0, Y the output side."""
    return _pair(weight, torch.zeros(1, weight.shape[1]), outputs)


def symwanda_pair(weight: Weight, inputs: InputSide, outputs: OutputSide, balance: str = "none") -> Pair:
    """X the activations, Y the output side; balance "unit-mean" divides each by the mean of its norms."""
    return _pair(weight, *_balanced(weight, inputs, outputs, balance))


def symmetric_pair(weight: Weight, inputs: InputSide, outputs: OutputSide, squared: bool = False) -> Pair:
    """X = W and Y = W: the columns and the rows of the weight itself."""
    return _pair(weight, weight, weight, squared=squared)


def ri_pair(construction: str) -> Callable[..., Pair]:
    """The builder of a pair with x[j] = 1 / c_1[j] and y[i] = 1 / r_1[i] by one of `CONSTRUCTIONS`."""

    def build(weight: Weight, inputs: InputSide, outputs: OutputSide) -> Pair:
        return _reciprocal_pair(weight, inputs, 1.0, 0.0, CONSTRUCTIONS[construction])

    return build


def ria_pair(construction: str) -> Callable[..., Pair]:
    """The builder of `ri_pair`'s pair by one of `CONSTRUCTIONS`, both sides multiplied by x[j]^alpha."""

    def build(weight: Weight, inputs: InputSide, outputs: OutputSide, alpha: float = 0.5) -> Pair:
        return _reciprocal_pair(weight, inputs, 1.0, alpha, CONSTRUCTIONS[construction])

    return build


def lp_norm_own_columns_pair(
    weight: Weight, inputs: InputSide, outputs: OutputSide, p: float = 1.0, alpha: float = 0.0
) -> Pair:
    """X[:, j] = W[:, j] / (c_2[j] c_p[j]) and Y[i, :] = W[i, :] / (r_2[i] r_p[i]): the weight's own lines."""
    (r_2, c_2), (r_p, c_p) = row_column_norms(weight, 2.0), row_column_norms(weight, p)
    X = weight * safe_reciprocal(c_2) * safe_reciprocal(c_p)
    Y = weight * (safe_reciprocal(r_2) * safe_reciprocal(r_p))[:, None]
    return _pair(weight, X, Y, _activations(weight, inputs, alpha))


def lp_norm_unit_vector_pair(
    weight: Weight, inputs: InputSide, outputs: OutputSide, p: float = 1.0, alpha: float = 0.0
) -> Pair:
    """X[:, j] = u / c_p[j] and Y[i, :] = v / r_p[i]; u and v are any unit vectors, here random ones."""

    def one_direction(norms: Float[Tensor, " n"]) -> Float[Tensor, "m n"]:
        return torch.outer(random_directions(norms.new_ones(4))[:, 0], norms)

    return _reciprocal_pair(weight, inputs, p, alpha, one_direction)


def stochria_pair(construction: str) -> Callable[..., Pair]:
    """The builder of RIA's pair with the l1 norms sampled, by one of `CONSTRUCTIONS`."""

    def build(
        weight: Weight,
        inputs: InputSide,
        outputs: OutputSide,
        beta: float = 0.1,
        alpha: float = 0.5,
        sampling: str = "independent",
        seed: int = 0,
    ) -> Pair:
        row, column = (safe_reciprocal(norm) for norm in sampled_norms(weight, beta, sampling, seed))
        make = CONSTRUCTIONS[construction]
        return _pair(weight, make(column), make(row).t(), _activations(weight, inputs, alpha))

    return build


def general_diagonal_pair(
    weight: Weight, inputs: InputSide, outputs: OutputSide, balance: str = "none"
) -> Pair:
    """X = A diag(1 / c_1) and Y = diag(1 / r_1) B with A the inputs and B the outputs.

    balance "unit-mean" divides A and B by the mean of their norms first.
    """
    row, column = (safe_reciprocal(norm) for norm in row_column_norms(weight))
    A, B = _balanced(weight, inputs, outputs, balance)
    return _pair(weight, A * column, row[:, None] * B)


# score -> construction -> builder(weight, inputs, outputs, **the score's hyperparameters) -> Pair
PAIRS: dict[str, dict[str, Callable[..., Pair]]] = {
    "magnitude": {"identity": magnitude_pair},
    "wanda": {"activations": wanda_pair},
    "owanda": {"outputs": owanda_pair},
    "symwanda": {"activations and outputs": symwanda_pair},
    "symmetric": {"the weight": symmetric_pair},
    "ri": {name: ri_pair(name) for name in CONSTRUCTIONS},
    "ria": {name: ria_pair(name) for name in CONSTRUCTIONS},
    "lp_norm": {"own columns": lp_norm_own_columns_pair, "unit vector": lp_norm_unit_vector_pair},
    "stochria": {name: stochria_pair(name) for name in CONSTRUCTIONS},
    "general_diagonal": {"diagonal scaling": general_diagonal_pair},
}


@dataclass(frozen=True)
class Formula:
    """One row of the unified table of methods, in LaTeX: A the activations, B the output side."""

    X: str
    Y: str
    score: str


FORMULAS: dict[str, Formula] = {
    "magnitude": Formula(r"$I$", r"$0$", r"$|W_{ij}|$"),
    "wanda": Formula(r"$A$", r"$0$", r"$|W_{ij}|\,\|A_{:j}\|_2$"),
    "owanda": Formula(r"$0$", r"$B$", r"$|W_{ij}|\,\|B_{i:}\|_2$"),
    "symwanda": Formula(r"$A$", r"$B$", r"$|W_{ij}|\,(\|A_{:j}\|_2 + \|B_{i:}\|_2)$"),
    "symmetric": Formula(r"$W$", r"$W$", r"$|W_{ij}|\,(\|W_{:j}\|_2 + \|W_{i:}\|_2)$"),
    "ri": Formula(
        r"any with $\|X_{:j}\|_2 = \|W_{:j}\|_1^{-1}$",
        r"any with $\|Y_{i:}\|_2 = \|W_{i:}\|_1^{-1}$",
        r"$|W_{ij}|\,(\|W_{:j}\|_1^{-1} + \|W_{i:}\|_1^{-1})$",
    ),
    "ria": Formula(
        r"$\|A_{:j}\|_2^\alpha\, X^{\mathrm{ri}}$, per weight",
        r"$\|A_{:j}\|_2^\alpha\, Y^{\mathrm{ri}}$, per weight",
        r"$|W_{ij}|\,(\|W_{:j}\|_1^{-1} + \|W_{i:}\|_1^{-1})\,\|A_{:j}\|_2^\alpha$",
    ),
    "lp_norm": Formula(
        r"$X_{:j} = W_{:j} / (\|W_{:j}\|_2 \|W_{:j}\|_p)$ or $u / \|W_{:j}\|_p$",
        r"$Y_{i:} = W_{i:} / (\|W_{i:}\|_2 \|W_{i:}\|_p)$ or $v / \|W_{i:}\|_p$",
        r"$|W_{ij}|\,(\|W_{:j}\|_p^{-1} + \|W_{i:}\|_p^{-1})\,\|A_{:j}\|_2^\alpha$",
    ),
    "stochria": Formula(
        r"$\|A_{:j}\|_2^\alpha\, X^{\mathrm{ri}}$, sampled norms",
        r"$\|A_{:j}\|_2^\alpha\, Y^{\mathrm{ri}}$, sampled norms",
        r"$|W_{ij}|\,(\widehat{\|W_{:j}\|_1}^{-1} + \widehat{\|W_{i:}\|_1}^{-1})\,\|A_{:j}\|_2^\alpha$",
    ),
    "general_diagonal": Formula(
        r"$A\,\mathrm{diag}(\|W_{:j}\|_1^{-1})$",
        r"$\mathrm{diag}(\|W_{i:}\|_1^{-1})\,B$",
        r"$|W_{ij}|\,(\|A_{:j}\|_2\|W_{:j}\|_1^{-1} + \|B_{i:}\|_2\|W_{i:}\|_1^{-1})$",
    ),
}


def _pair(weight: Weight, X: Tensor, Y: Tensor, factor: Tensor | None = None, squared: bool = False) -> Pair:
    factor = torch.ones(weight.shape[1]) if factor is None else factor
    return Pair(X.to(weight), Y.to(weight), factor.to(weight), squared)


def _reciprocal_pair(weight: Weight, inputs: Tensor, p: float, alpha: float, make: Direction) -> Pair:
    """x[j] = 1 / c_p[j] and y[i] = 1 / r_p[i], both sides carrying ||inputs[:, j]||_2^alpha."""
    row, column = (safe_reciprocal(norm) for norm in row_column_norms(weight, p))
    return _pair(weight, make(column), make(row).t(), _activations(weight, inputs, alpha))


def _activations(weight: Weight, inputs: Tensor, alpha: float) -> Float[Tensor, " d_in"] | None:
    return None if alpha == 0 else inputs.norm(dim=0).pow(alpha)


def _balanced(weight: Weight, inputs: Tensor, outputs: Tensor, balance: str) -> tuple[Tensor, Tensor]:
    if balance == "none":
        return inputs, outputs
    x, y = inputs.norm(dim=0), outputs.norm(dim=1)
    return inputs / x.mean(), outputs / y.mean()


def _nothing(weight: Weight) -> Tensor:
    return torch.zeros(weight.shape[0], 1)
