"""What pruning tells of a linear, of a decoder layer, and of the whole model."""

from collections import Counter
from dataclasses import dataclass, field

from torch import Tensor

from symprune.base.types import Mask
from symprune.methods.recipe import Recipe
from symprune.models.layers import LeftDense


@dataclass(frozen=True)
class PrunedLinear:
    """What happened to one linear: its size, and how many of its weights the mask keeps.

    refined: what the refinement did (None: not refined). n_tokens: the calibration tokens that reached the
    linear (None: the recipe uses no statistics). updated: what the update of the kept weights did (None: they
    are as they were). loss: ||X (w_hat - w)^T|| / ||X w^T|| on the calibration inputs that reached it, see
    `relative_loss` (None: the recipe uses no statistics).
    """

    name: str
    d_out: int
    d_in: int
    kept: int
    refined: dict | None = None
    n_tokens: int | None = None
    updated: dict | None = None
    loss: float | None = None

    @property
    def depth(self) -> int:
        """The decoder layer that it is in: the first number in its name (0: there is none)."""
        return next((int(part) for part in self.name.split(".") if part.isdecimal()), 0)

    @property
    def kind(self) -> str:
        """What it is called within its layer: the last part of its name."""
        return self.name.rsplit(".", 1)[-1]

    @property
    def sparsity(self) -> float:
        """The fraction removed, counted on the mask: a zero that the mask keeps counts as kept."""
        return 1 - self.kept / (self.d_out * self.d_in)


@dataclass(frozen=True)
class PrunedLayer:
    """The masks of one decoder layer by the full names of its linears, and what is told of each linear.

    weights: those that an update has changed, zero where the mask removes.
    """

    masks: dict[str, Mask]
    linears: list[PrunedLinear]
    weights: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class PruneReport:
    """What `prune` did, linear by linear; shows itself as a table in Jupyter."""

    recipe: Recipe
    propagate: str
    linears: list[PrunedLinear]
    seconds: dict[str, float]  # by stage: calibrate, prune
    masks: dict[str, Mask] = field(default_factory=dict)  # only if asked for
    left_dense: dict[str, LeftDense] = field(default_factory=dict)  # matrices not pruned, by full name

    @property
    def sparsity(self) -> float:
        """The fraction of all prunable weights that the masks remove."""
        n_weights, kept = self._counts()
        return 1 - kept / n_weights

    @property
    def overall_sparsity(self) -> float:
        """The fraction removed of all matrices of the decoder layers, those left dense among them."""
        n_weights, kept = self._counts()
        dense = sum(matrix.size for matrix in self.left_dense.values())
        return 1 - (kept + dense) / (n_weights + dense)

    @property
    def unreached(self) -> list[str]:
        """Linears that no calibration token reached (experts never chosen).

        They were scored as if all their inputs were equal, and not refined.
        """
        return [linear.name for linear in self.linears if linear.n_tokens == 0]

    @property
    def hardly_reached(self) -> list[str]:
        """Linears whose weights were updated on fewer tokens than they have inputs, with more damping."""
        return [x.name for x in self.linears if x.updated and (x.n_tokens or 0) < x.d_in]

    def frame(self):
        """One row per linear (pandas)."""
        import pandas as pd

        rows = [
            {"linear": x.name, "d_out": x.d_out, "d_in": x.d_in, "kept": x.kept, "sparsity": x.sparsity}
            | ({} if x.loss is None else {"loss": x.loss})
            for x in self.linears
        ]
        refined = pd.DataFrame([linear.refined or {} for linear in self.linears])
        updated = pd.DataFrame([linear.updated or {} for linear in self.linears]).add_prefix("update_")
        return pd.concat([pd.DataFrame(rows), refined, updated], axis=1).set_index("linear")

    def plot(self):
        """The loss of every linear along the depth of the model, and its sparsity where that varies or no
        loss is known (matplotlib figure).
        """
        import matplotlib.pyplot as plt

        sparsities = [linear.sparsity for linear in self.linears]
        shown = ["loss"] if any(linear.loss is not None for linear in self.linears) else []
        if not shown or max(sparsities) - min(sparsities) > 0.01:
            shown.append("sparsity")
        fig, axes = plt.subplots(
            len(shown), figsize=(6, 2.7 * len(shown)), layout="constrained", squeeze=False, sharex=True
        )
        for ax, what in zip(axes[:, 0], shown, strict=True):
            for kind in dict.fromkeys(linear.kind for linear in self.linears):
                points = [(x.depth, getattr(x, what)) for x in self.linears if x.kind == kind]
                one_a_layer = len({depth for depth, _ in points}) == len(points)  # experts are many
                line = "-" if one_a_layer else ""
                ax.plot(*zip(*points, strict=True), marker=".", linestyle=line, linewidth=1, label=kind)
            ax.set(ylabel=what, ylim=(0, 1 if what == "sparsity" else None))
        axes[0, 0].set_title(self.recipe.label, loc="left")
        axes[0, 0].legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="x-small")
        axes[-1, 0].set_xlabel("decoder layer" + (f"; loss: {self._loss()}" if "loss" in shown else ""))
        plt.close(fig)  # shown once, as the value of a cell
        return fig

    def __repr__(self) -> str:
        unreached = f"; {len(self.unreached)} of them saw no calibration token" if self.unreached else ""
        few = self.hardly_reached
        hardly = f"; {len(few)} updated on fewer tokens than inputs, with more damping" if few else ""
        return (
            f"{self.recipe.label}: {self.sparsity:.2%} of the weights of {len(self.linears)} linears"
            f" removed{unreached}{hardly}{self._dense()}"
        )

    def _repr_html_(self) -> str:
        frame = self.frame()
        columns = {"linears": ("kept", "size"), "kept": ("kept", "sum"), "sparsity": ("sparsity", "mean")}
        told = ""
        if "loss" in frame:
            columns |= {"loss": ("loss", "mean")}
            told = f"<p>Means over linears; loss: {self._loss()}.</p>"
        kinds = frame.groupby(lambda name: name.rsplit(".", 1)[-1], sort=False)
        summary = kinds.agg(**columns).rename_axis("kind")
        return (
            f"<p><b>{self.recipe.label}</b>: {self.sparsity:.2%} of the weights removed, propagate ="
            f" {self.propagate}{self._dense()}</p>{summary.to_html(float_format='{:.4f}'.format)}{told}"
        )

    def _loss(self) -> str:
        how = "" if "gram" in self.recipe.uses else ", inputs taken as uncorrelated"
        return f"||X (w_hat - w)'|| / ||X w'||{how}"

    def _counts(self) -> tuple[int, int]:
        """The weights of the linears pruned, and those kept."""
        n_weights = sum(linear.d_out * linear.d_in for linear in self.linears)
        return n_weights, sum(linear.kept for linear in self.linears)

    def _dense(self) -> str:
        if not self.left_dense:
            return ""
        kinds = Counter(matrix.reason for matrix in self.left_dense.values())
        return (
            f"; left dense: {', '.join(f'{n} ({kind})' for kind, n in kinds.items())}, so"
            f" {self.overall_sparsity:.2%} of all matrices of the decoder layers removed"
        )
