"""What is done to a model, as plain data: a score, a pattern, and perhaps a refinement and an update."""

import ast
import dataclasses
import hashlib
import html
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from symprune.base.errors import UserError, unknown
from symprune.methods.globs import fits, no_effect
from symprune.methods.masks import NM, PATTERNS, Unstructured
from symprune.methods.refine import REFINERS
from symprune.methods.scores import SCORES
from symprune.methods.update import CHOICES, UPDATES

# What a method of one's own must have to stand in a recipe without a place in a registry.
_NEEDED = {
    "score": ("__call__", "uses"),
    "pattern": ("__call__", "check"),
    "refinement": ("run", "uses", "linears"),
    "update": ("run", "uses"),
}
_REGISTRIES = {"score": SCORES | CHOICES, "pattern": PATTERNS, "refine": REFINERS, "update": UPDATES}


@dataclass(frozen=True)
class Recipe:
    """A score, the pattern of its mask, a refinement of the mask, an update of what it keeps (None: none).

    Each may be given as the command line takes it, `Recipe("ria(alpha=1.0)", "2:4", "dsnot")`, and is kept as
    the object that is meant. In the place of a score, "sparsegpt" chooses the mask itself. by_name: other
    patterns for the linears that a glob fits, `{"layers.0.*": "dense", "mlp.*": "0.7"}`; a glob fits a full
    name or the end of one, from a dot on, and the first that fits decides. Raises UserError for what is no
    score, no pattern, no refinement, or no update.
    """

    score: Any
    pattern: Any = Unstructured()  # noqa: RUF009 (frozen, so shared safely)
    refine: Any = None
    update: Any = None
    by_name: Any = ()

    def __post_init__(self):
        keep = partial(object.__setattr__, self)  # past the freezing
        keep("score", _meant("score", self.score, _REGISTRIES["score"]))
        pattern = parse_pattern(self.pattern) if isinstance(self.pattern, str) else self.pattern
        keep("pattern", _meant("pattern", pattern, PATTERNS))
        for part, kind in (("refine", "refinement"), ("update", "update")):
            method = getattr(self, part)
            wanted = method is not None and method != "none"
            keep(part, _meant(kind, method, _REGISTRIES[part]) if wanted else None)
        pairs = self.by_name.items() if isinstance(self.by_name, Mapping) else self.by_name
        keep("by_name", tuple((glob, self._exception(glob, of)) for glob, of in pairs))

    def _exception(self, glob: Any, pattern: Any) -> Any:
        """The pattern of the linears that a glob fits; None: they are left dense."""
        if not isinstance(glob, str) or not glob:
            raise UserError(f"by_name takes globs of the names of linears, such as 'mlp.*', not {glob!r}")
        if pattern is None or pattern == "dense":
            return None
        group = getattr(self.pattern, "group", "output")
        read = parse_pattern(pattern, group=group) if isinstance(pattern, str) else pattern
        return _meant("pattern", read, PATTERNS)

    def pattern_of(self, name: str) -> Any:
        """The pattern of the linear of this full name; None: it is left dense."""
        return next((pattern for glob, pattern in self.by_name if fits(glob, name)), self.pattern)

    def check_names(self, names: Sequence[str]) -> None:
        """Raise UserError for a glob that decides of none of these linears, and if none of them is pruned."""
        decided = {next((i for i, (g, _) in enumerate(self.by_name) if fits(g, n)), None) for n in names}
        for position, (glob, _) in enumerate(self.by_name):
            if position not in decided:
                raise UserError(no_effect(glob, names))
        if names and all(self.pattern_of(name) is None for name in names):
            raise UserError("every linear would be left dense: nothing is pruned")

    @property
    def label(self) -> str:
        """The recipe in a line, hyperparameters shown where they differ from the default."""
        refinement = f" + {method_label(self.refine)}" if self.refine else ""
        update = f", {method_label(self.update)}" if self.update else ""
        return f"{method_label(self.score)}{refinement}, {self.patterns}{update}"

    @property
    def patterns(self) -> str:
        """The pattern in words, and after it what holds for linears by name."""
        special = (f"{glob}: {pattern_label(of) if of else 'dense'}" for glob, of in self.by_name)
        return ", ".join([pattern_label(self.pattern), *special])

    @property
    def key(self) -> str:
        """A hash that two recipes share only if they do the same."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def uses(self) -> frozenset[str]:
        """The fields of `LayerStats` that the score, the refinement and the update read."""
        return frozenset(use for part in (self.score, self.refine, self.update) if part for use in part.uses)

    def __repr__(self) -> str:
        parts = [getattr(self, part) for part in _REGISTRIES]
        while parts[-1] is None:
            parts.pop()
        by_name = [f"by_name={dict(self.by_name)!r}"] if self.by_name else []
        return f"Recipe({', '.join([*map(_shown, parts), *by_name])})"

    def _repr_html_(self) -> str:
        rows = [
            (part, _name(method), ", ".join(f"{f.name} = {value}" for f, value in hyperparameters(method)))
            for part in _REGISTRIES
            if (method := getattr(self, part))
        ] + [(glob, pattern_label(of) if of else "dense", "") for glob, of in self.by_name]
        cells = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows)
        return (
            f"<p><b>{html.escape(self.label)}</b></p><table>{''.join(f'<tr>{r}</tr>' for r in cells)}</table>"
        )

    def to_dict(self) -> dict:
        """Plain data from which `from_dict` makes an equal recipe; of no update, no names it says nothing."""
        parts: dict[str, Any] = {part: _plain(getattr(self, part)) for part in _REGISTRIES}
        parts["by_name"] = [[glob, _plain(pattern)] for glob, pattern in self.by_name]
        return {part: plain for part, plain in parts.items() if plain or part not in ("update", "by_name")}

    @classmethod
    def from_dict(cls, plain: dict) -> "Recipe":
        """The recipe that `to_dict` described; raises UserError for a name or hyperparameter not known."""
        parts: dict[str, Any] = {}
        for part, method in plain.items():
            if part == "by_name":
                parts[part] = _read_by_name(method)
            elif part not in _REGISTRIES:
                raise unknown("part of a recipe", part, [*_REGISTRIES, "by_name"])
            elif not (part in ("refine", "update") and method is None):
                parts[part] = _read(part, method)
        if "score" not in parts:
            raise UserError("a recipe needs a score")
        return cls(**parts)


def _plain(method: Any) -> dict | None:
    return method_dict(method) if method else None


def _read(part: str, method: Any) -> Any:
    """A part of a recipe from its plain data."""
    if not isinstance(method, dict):
        raise UserError(f"the {part} of a recipe is a name and its hyperparameters, not {method!r}")
    values = {field: value for field, value in method.items() if field != "name"}
    name, registry = method.get("name"), _REGISTRIES[part]
    before = _before(registry[name]) if isinstance(name, str) and name in registry else {}
    return build(part, name, registry, before | values)


def _read_by_name(pairs: Any) -> list[tuple]:
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise UserError(f"by_name of a recipe is a list of globs and patterns, not {pairs!r}")
    return [(glob, None if of is None else _read("pattern", of)) for glob, of in pairs]


def method_dict(method: Any) -> dict:
    """Name and hyperparameters of a score, pattern or refiner as JSON, which knows no infinity.

    Equal methods have equal ones. What is told of fields that came later: `refinement.later`.
    """
    values = {f.name: float(value) if f.type is float else value for f, value in hyperparameters(method)}
    return {
        "name": _name(method),
        **{name: "inf" if value == float("inf") else value for name, value in values.items()},
    }


def method_label(method: Any) -> str:
    """`ria`, or `ria(alpha=1.0)` where a hyperparameter is not its default; `parse_method` reads it back."""
    changed = [
        f"{f.name}={float(value) if f.type is float else value!r}"
        for f, value in hyperparameters(method)
        if value != f.default
    ]
    return _name(method) + (f"({', '.join(changed)})" if changed else "")


def pattern_label(pattern: Unstructured | NM) -> str:
    """`2:4`, or `0.6 per output`."""
    return (
        f"{pattern.n}:{pattern.m}"
        if isinstance(pattern, NM)
        else f"{float(pattern.sparsity)!r} per {pattern.group}"
    )


def parse_method(kind: str, text: str, registry: dict) -> Any:
    """A score or refiner from `name` or `name(field=literal, ...)`; raises UserError for any other text."""
    try:
        tree = ast.parse(text.strip().replace("=inf", "='inf'"), mode="eval").body
        call = tree if isinstance(tree, ast.Call) else ast.Call(func=tree, args=[], keywords=[])
        if call.args or not isinstance(call.func, ast.Name):
            raise ValueError
        values = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise UserError(
            f"cannot read the {kind} {text!r}: write a name, or name(field=value, ...)"
        ) from error
    return build(kind, call.func.id, registry, values)


def parse_pattern(text: str, sparsity: float = 0.5, group: str = "output") -> Unstructured | NM:
    """A pattern from `n:m`, `0.6`, `0.6 per layer`, or `unstructured` with what the other arguments say.

    Raises UserError for any other text.
    """
    n, colon, m = text.partition(":")
    if colon and n.isdecimal() and m.isdecimal():
        return NM(int(n), int(m))
    if found := re.fullmatch(r"(\d*\.\d+)(?: per (\w+))?", text, re.ASCII):
        return Unstructured(float(found[1]), found[2] or group)
    if text != "unstructured":
        raise unknown("pattern", text, ["unstructured", "0.6", "2:4", "4:8"])
    return Unstructured(sparsity, group)


def build(kind: str, name: Any, registry: dict, values: dict) -> Any:
    """registry[name](**values), with every way to get it wrong as a UserError."""
    if not isinstance(name, str) or name not in registry:
        raise unknown(kind, name, registry)
    known = {field.name: field.type for field in dataclasses.fields(registry[name])}
    for field in values:
        if field not in known:
            raise (
                unknown(f"hyperparameter of {name}", field, known)
                if known
                else UserError(f"{name} has no hyperparameters, not even {field!r}")
            )
    for field, value in values.items():
        if known[field] is float and value == "inf":
            values = values | {field: float("inf")}
        elif not isinstance(value, (int, float) if known[field] is float else known[field]) or isinstance(
            value, bool
        ) != (known[field] is bool):
            wanted = getattr(known[field], "__name__", known[field])
            raise UserError(f"hyperparameter {field} of {name} must be of type {wanted}, not {value!r}")
    return registry[name](**values)


def _name(method: Any) -> str:
    """What a method is called on the command line and in records; one of no registry goes by its class."""
    named = {cls: name for registry in _REGISTRIES.values() for name, cls in registry.items()}
    return named.get(type(method), type(method).__name__)


def hyperparameters(method: Any) -> list[tuple[dataclasses.Field, Any]]:
    """The fields of a method that plain data speaks of, and their values."""
    found = [(field, getattr(method, field.name)) for field in dataclasses.fields(method)]
    return [
        (f, value) for f, value in found if not ("before" in f.metadata and value == f.metadata["before"])
    ]


def _shown(method: Any) -> str:
    """A part of a recipe as Python: the text that `Recipe` takes, else the object."""
    if type(method) in PATTERNS.values():
        label = pattern_label(method)
        return repr(method) if "e-" in label else repr(label)  # 1e-05 is no pattern's text
    known = any(type(method) in registry.values() for registry in _REGISTRIES.values())
    return repr(method_label(method)) if known else repr(method)


def _before(cls: type) -> dict[str, Any]:
    """The hyperparameters that plain data leaves out, and what that means."""
    return {f.name: f.metadata["before"] for f in dataclasses.fields(cls) if "before" in f.metadata}


def _meant(kind: str, method: Any, registry: dict) -> Any:
    """The method itself, or the one that a text describes; raises UserError for what is neither."""
    if isinstance(method, str):
        return parse_method(kind, method, registry)
    known = {cls for each in _REGISTRIES.values() for cls in each.values()}
    of_their_own = type(method) not in {*known, type} and all(hasattr(method, n) for n in _NEEDED[kind])
    if type(method) not in registry.values() and not of_their_own:
        classes = ", ".join(cls.__name__ for cls in registry.values())
        raise UserError(
            f"{textwrap.shorten(repr(method), 60)} is no {kind}: give text, as on the command line, or an"
            f" object of {classes}, or of a class of your own with {', '.join(_NEEDED[kind])}"
        )
    return method
