"""What a profile says: which models, calibrated and evaluated how."""

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, get_args, get_origin

from symprune.base.errors import UserError, unknown
from symprune.models import EMBEDDED
from symprune.models.folder import max_positions
from symprune.models.load import locate
from symprune.models.precision import check_calibration_dtype
from symprune.pruning.calibrate import OUTPUT_SIDES
from symprune.pruning.prune import PROPAGATE


@dataclass(frozen=True)
class Protocol:
    """The protocol of an experiment; its fields are the parameters of a profile, lists read as tuples.

    calibration_dtype: see `symprune.models.precision.calibrating_in`; None: the model's own.
    eval_seq_len: seq_len unless said otherwise; n_eval: None takes the whole split. seeds: draws of
    calibration text. Raises UserError for a value of another type, and for one with which nothing could be
    measured.
    """

    profile: str
    models: Sequence[str] = (EMBEDDED,)
    device: str = "cpu"
    dtype: str = "float32"
    calibration_dtype: str | None = None
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
        for field in fields(self):
            check_type(field.name, getattr(self, field.name), field.type)
        settled = {"models": tuple(self.models), "seeds": tuple(self.seeds)}
        for name, value in {**settled, "eval_seq_len": self.eval_seq_len or self.seq_len}.items():
            object.__setattr__(self, name, value)
        for name in ("n_calib", "seq_len", "n_eval", "eval_seq_len", "batch_size"):
            if (size := getattr(self, name)) is not None and size < 1:
                raise UserError(f"{name} must be at least 1, not {size}")
        if not self.seeds or not self.models:
            raise UserError("an experiment needs at least one model and one seed")
        check_calibration_dtype(self.calibration_dtype)
        for name, known in {"propagate": PROPAGATE, "output_side": OUTPUT_SIDES}.items():
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        if self.output_side == "gradients" and self.propagate == "pruned":
            raise UserError(
                "output_side 'gradients' is gathered on the dense model: it needs propagate 'dense'"
            )

    def over_whole_splits(self, lengths: Sequence[int]) -> "list[Protocol]":
        """For each length of a window this protocol over the whole split, of the models that have so many
        positions.
        """
        limits = {name: max_positions(locate(name)) for name in self.models} if lengths else {}
        found = []
        for length in lengths:
            able = [name for name, limit in limits.items() if limit is None or length <= limit]
            if able:
                found.append(replace(self, models=able, n_eval=None, eval_seq_len=length))
        return found

    @classmethod
    def of(cls, parameters: Mapping[str, Any], **changes: Any) -> "Protocol":
        """The protocol in a notebook's parameters, given as `globals()`; changes: fields set otherwise."""
        named = {field.name: parameters[field.name] for field in fields(cls) if field.name in parameters}
        return cls(**named | changes)


def check_type(name: str, value: Any, kind: Any) -> None:
    """Raise UserError, with the name of the parameter and what it takes, unless the value is of that kind.

    kind: int, float, str, a sequence of one of these, or such a kind or None. A whole number is a number too.
    """
    if not _is_of(value, kind):
        raise UserError(f"{name} takes {_words(kind)}, not {value!r}")


def _is_of(value: Any, kind: Any) -> bool:
    if isinstance(kind, types.UnionType):
        return any(_is_of(value, one) for one in get_args(kind))
    if get_origin(kind) is Sequence:
        return (
            isinstance(value, Sequence)
            and not isinstance(value, str)
            and all(_is_of(one, get_args(kind)[0]) for one in value)
        )
    return isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)


def _words(kind: Any, many: bool = False) -> str:
    if isinstance(kind, types.UnionType):
        return " or ".join(map(_words, get_args(kind)))
    if get_origin(kind) is Sequence:
        return f"a list of {_words(get_args(kind)[0], many=True)}"
    one, more = _WORDS.get(kind, (kind.__name__, kind.__name__))
    return more if many else one


_WORDS = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
    type(None): ("null", "null"),
}
