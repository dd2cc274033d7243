"""What a profile says: which models, calibrated and evaluated how."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from symprune.base.errors import UserError, unknown
from symprune.models import EMBEDDED
from symprune.pruning.calibrate import OUTPUT_SIDES
from symprune.pruning.prune import PROPAGATE


@dataclass(frozen=True)
class Protocol:
    """The protocol of an experiment; its fields are the parameters of a profile, lists read as tuples.

    eval_seq_len: seq_len unless said otherwise; n_eval: None takes the whole split. seeds: draws of
    calibration text. Raises UserError for values with which nothing could be measured.
    """

    profile: str
    models: Sequence[str] = (EMBEDDED,)
    device: str = "cpu"
    dtype: str = "float32"
    calibration_corpus: str = "embedded"
    n_calib: int = 16
    seq_len: int = 512
    seeds: Sequence[int] = (0, 1)
    propagate: str = "pruned"
    output_side: str = "activations"
    evaluation_corpus: str = "embedded"
    evaluation_split: str = "evaluation"
    eval_seq_len: int | None = None
    n_eval: int | None = 16
    batch_size: int = 1

    def __post_init__(self):
        settled = {"models": tuple(self.models), "seeds": tuple(self.seeds)}
        for name, value in {**settled, "eval_seq_len": self.eval_seq_len or self.seq_len}.items():
            object.__setattr__(self, name, value)
        for name in ("n_calib", "seq_len", "n_eval", "eval_seq_len", "batch_size"):
            if (size := getattr(self, name)) is not None and size < 1:
                raise UserError(f"{name} must be at least 1, not {size}")
        if not self.seeds or not self.models:
            raise UserError("an experiment needs at least one model and one seed")
        for name, known in {"propagate": PROPAGATE, "output_side": OUTPUT_SIDES}.items():
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        if self.output_side == "gradients" and self.propagate == "pruned":
            raise UserError(
                "output_side 'gradients' is gathered on the dense model: it needs propagate 'dense'"
            )

    @classmethod
    def of(cls, parameters: Mapping[str, Any], **changes: Any) -> "Protocol":
        """The protocol in a notebook's parameters, given as `globals()`; changes: fields set otherwise."""
        named = {field.name: parameters[field.name] for field in fields(cls) if field.name in parameters}
        return cls(**named | changes)
