"""What a profile says: which models, calibrated and evaluated how."""

import ast
import contextlib
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, get_args, get_origin

import yaml

from symprune.base import paths
from symprune.base.errors import UserError, unknown
from symprune.models import EMBEDDED
from symprune.models.folder import max_positions
from symprune.models.load import locate
from symprune.models.precision import check_calibration_dtype
from symprune.pruning.calibrate import OUTPUT_SIDES
from symprune.pruning.checks import PROPAGATE

_SIZES = ("n_calib", "seq_len", "n_eval", "eval_seq_len", "batch_size")  # at least 1
# What a parameter takes that is no field of `Protocol`, where an example of its value does not tell.
_TAKES: dict[str, Any] = {
    "notebooks": str | Sequence[str],
    "dense_lengths": Sequence[int],
    "gammas": Sequence[float],
    "zero_shot_limit": int | None,
}
_INJECTED = "# Parameters"  # the first line of the cell in which papermill gives parameters


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
        """The protocol in a notebook's parameters, given as `globals()`; changes: fields set otherwise.

        Raises UserError also for a parameter that papermill gave and no notebook takes, or of another type.
        """
        _check_injected(parameters)
        named = {field.name: parameters[field.name] for field in fields(cls) if field.name in parameters}
        return cls(**named | changes)


def check_type(name: str, value: Any, kind: Any) -> None:
    """Raise UserError, with the name of the parameter and what it takes, unless the value is of that kind.

    kind: int, float, str, a sequence of one of these, or such a kind or None. A whole number is a number too.
    """
    counts = name in _SIZES
    if not _is_of(value, kind) or (counts and value is not None and value < 1):
        words = _words(kind).replace("number", "number of at least 1") if counts else _words(kind)
        raise UserError(f"{name} takes {words}, not {value!r}")


def check_parameter(name: str, value: Any, example: Any) -> None:
    """Raise UserError unless a parameter takes the value: one of the kind that `Protocol` says, or like the
    example.
    """
    kinds = {field.name: field.type for field in fields(Protocol)} | _TAKES
    kind = kinds.get(name, type(example))
    if name not in kinds and isinstance(example, list):
        kind = types.GenericAlias(Sequence, (type(example[0]) if example else object,))
    check_type(name, value, kind)


def _check_injected(parameters: Mapping[str, Any]) -> None:
    """Check what papermill gave: papermill itself only warns of a name that the notebook does not have, and
    of the many keys of a profile that are for other notebooks.
    """
    cells = list(parameters.get("In", ()))
    for position, cell in enumerate(cells):
        if not cell.startswith(_INJECTED):
            continue
        known = {field.name: field.default for field in fields(Protocol)} | _smoke()
        for before in cells[:position]:
            known |= _literals(before)
        for name in _literals(cell):
            if name not in known:
                raise unknown("parameter", name, known)
            check_parameter(name, parameters[name], known[name])


def _smoke() -> dict[str, Any]:
    """The parameters of all notebooks, if they are here."""
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
        return dict(yaml.safe_load((paths.PARAMS / "smoke.yaml").read_text(encoding="utf-8")))
    return {}


def _literals(cell: str) -> dict[str, Any]:
    """What a cell assigns to names at its top level; None for what is no literal."""
    found: dict[str, Any] = {}
    with contextlib.suppress(SyntaxError):
        for statement in ast.parse(cell).body:
            if not isinstance(statement, ast.Assign):
                continue
            for target in statement.targets:
                if isinstance(target, ast.Name):
                    found[target.id] = None
                    with contextlib.suppress(ValueError):
                        found[target.id] = ast.literal_eval(statement.value)
    return found


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
