"""Whether records that other code measured are what this code measures: some of them, measured again."""

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from symprune.base.code import code_digest
from symprune.base.files import short_sha256, write_whole
from symprune.base.progress import tell
from symprune.base.records import REPLAY, Record, provenance
from symprune.methods.recipe import Recipe, method_label

ELSEWHERE = 1e-3  # how far a number may be off on another processor, or under other versions

Reused = Sequence[tuple[Any, Record]]  # cells of a grid, and what is on record of them


class SameCode:
    """What this code may reuse of a folder of records: what it measured itself, or would measure again.

    A cell is of several kinds: its measurement, its model, and the score, pattern, refinement and update of
    each recipe. Of every kind that other code has on record one cell is measured again; a kind is trusted
    where the numbers are equal. What was found is kept beside the records, for every process with this code.
    """

    def __init__(self, records: Path):
        self.code, self._folder = code_digest(), records / ".code"
        self._found: dict[str, dict[str, bool]] = {}  # by the code on record: kind -> whether it is the same
        self._told = False

    def trusts(self, cell: Any, record: Record) -> bool:
        """Whether a record may be reused: all its kinds are trusted, and it is no measurement of time."""
        theirs = _code_of(record)
        if theirs == self.code or os.environ.get(REPLAY):
            return True
        found = self._found.get(theirs, {})
        return repeatable(cell) and all(found.get(kind) for kind in kinds(cell))

    def judge(self, reused: Reused, measure: Callable[[Any], dict]) -> list[Record]:
        """Find out what of these may be reused; returns the records that were measured otherwise, anew.

        Where nothing may be measured (SYMPRUNE_REPLAY) it is only told that other code measured them.
        """
        others = [(cell, record) for cell, record in reused if _code_of(record) != self.code]
        if not others:
            return []
        if os.environ.get(REPLAY):
            self._tell_once(f"{len(others)} of {len(reused)} records were measured by other code")
            return []
        if not self._unknown(others):
            return []
        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self._folder / f"{self.code}.lock", is_singleton=True):  # one process judges for all
            self._read()
            anew: list[Record] = []
            for theirs, kinds_ in self._unknown(others).items():
                mine = [(c, r) for c, r in others if _code_of(r) == theirs and self._may_be_reused(c, r)]
                anew += self._judge(theirs, kinds_, mine, measure)
            return anew

    def _judge(
        self, theirs: str, unknown: set[str], others: Reused, measure: Callable[[Any], dict]
    ) -> list[Record]:
        found = self._found.setdefault(theirs, {})
        chosen = sample(others, unknown, self.code)
        tell(f"{len(others)} records are of other code: {len(chosen)} of them are measured again")
        again = [(cell, record, Record(record.run, measure(cell), provenance())) for cell, record in chosen]
        differing = [(cell, new) for cell, old, new in again if first_difference(old, new)]
        same = {kind for cell, old, new in again if not first_difference(old, new) for kind in kinds(cell)}
        found.update(dict.fromkeys(same, True))
        for cell, _ in differing:
            suspects = {kind for kind in kinds(cell) if not found.get(kind)}
            # where each kind is the same by itself, their meeting is not
            found.update(dict.fromkeys(suspects or kinds(cell), False))
        write_whole(self._file, json.dumps(self._found, indent=1, sort_keys=True) + "\n")
        wrong = sorted(kind for kind in unknown if not found.get(kind))
        tell(
            f"other code measures {', '.join(wrong)} otherwise: measured anew" if wrong else "they are equal"
        )
        return [new for _, new in differing]

    def _unknown(self, others: Reused) -> dict[str, set[str]]:
        """By the code on record, the kinds of its cells of which nothing is known."""
        unknown: dict[str, set[str]] = {}
        for cell, record in others:
            if self._may_be_reused(cell, record):
                theirs = _code_of(record)
                unknown.setdefault(theirs, set()).update(kinds(cell) - self._found.get(theirs, {}).keys())
        return {theirs: found for theirs, found in unknown.items() if found}

    def _may_be_reused(self, cell: Any, record: Record) -> bool:
        found = self._found.get(_code_of(record), {})
        return repeatable(cell) and all(found.get(kind, True) for kind in kinds(cell))

    def _read(self) -> None:
        if self._file.exists():
            for theirs, found in json.loads(self._file.read_text(encoding="utf-8")).items():
                self._found.setdefault(theirs, {}).update(found)

    def _tell_once(self, line: str) -> None:
        if not self._told:
            tell(line)
        self._told = True

    @property
    def _file(self) -> Path:
        return self._folder / f"{self.code}.json"


def repeatable(cell: Any) -> bool:
    """Whether a second measurement gives the same: not of seconds, which other code may change."""
    return getattr(cell.measurement, "repeatable", True)


def kinds(cell: Any) -> set[str]:
    """What a cell is one of."""
    task = getattr(cell.measurement, "task", "")
    found = {f"measurement {type(cell.measurement).__name__} {task}".rstrip(), f"model {cell.model}"}
    for subject in cell.subject if isinstance(cell.subject, tuple) else (cell.subject,):
        if isinstance(subject, Recipe):
            found |= {f"score {method_label(subject.score)}", f"pattern {subject.patterns}"}
            found |= {f"refinement {method_label(subject.refine)}"} if subject.refine else set()
            found |= {f"update {method_label(subject.update)}"} if subject.update else set()
    return found


def sample(reused: Reused, wanted: Iterable[str], salt: str) -> list[tuple[Any, Record]]:
    """Few cells of which every kind wanted has one, other ones for another salt."""
    left, chosen = set(wanted), []
    candidates = sorted(reused, key=lambda pair: short_sha256([salt, pair[1].key]))
    while left and candidates:
        best = max(candidates, key=lambda pair: len(left & kinds(pair[0])))
        if not left & kinds(best[0]):
            break
        chosen.append(best)
        left -= kinds(best[0])
    return chosen


def first_difference(old: Record, new: Record) -> str | None:
    """The first metric in which two records differ, seconds aside; None if they agree.

    To the bit on the same processor and under the same versions, else within `ELSEWHERE`.
    """
    here = _place(old) == _place(new)
    for name, value in new.metrics.items():
        if not name.startswith("seconds") and not _agree(
            old.metrics.get(name), value, 0 if here else ELSEWHERE
        ):
            return name
    return None


def _agree(old: Any, new: Any, tolerance: float) -> bool:
    if isinstance(new, dict) and isinstance(old, dict):
        return old.keys() == new.keys() and all(_agree(old[name], new[name], tolerance) for name in new)
    if isinstance(new, list) and isinstance(old, list):
        return len(old) == len(new) and all(_agree(*pair, tolerance) for pair in zip(old, new, strict=True))
    if isinstance(new, float) and isinstance(old, float | int):
        return math.isclose(old, new, rel_tol=tolerance, abs_tol=0)
    return old == new


def _place(record: Record) -> tuple:
    versions = {**record.meta["versions"], "symprune": None}
    return versions, record.meta["machine"], record.meta.get("processor")


def _code_of(record: Record) -> str:
    return record.meta.get("code", "")  # none: from before records knew it
