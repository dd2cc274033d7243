"""Whether what is published is what its records say: every table, figure and verdict drawn again from the
records alone.
"""

import math
import re
import tempfile
from collections.abc import Sequence

from symprune.base import paths
from symprune.base.errors import UserError
from symprune.base.records import REPLAY, Store, read_lines
from symprune.paper.notebooks import environment, resolve_notebooks
from symprune.paper.reproduce import reproduce

_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[-+]?\d+)?")
# for the few numbers that a notebook computes from weights, which depend on the processor
_RELATIVE, _ABSOLUTE = 0.01, 1e-9


def verify_report(profile: str, wanted: Sequence[str] = (), show: bool = True) -> list[str]:
    """What differs between a profile's published tables, figures' data and verdicts, and those drawn from its
    published records.

    wanted: notebooks; none means those that the profile has published. They are executed in a folder of their
    own with measuring forbidden: a number without a record ends the run. Words must be equal, numbers to 1 %.
    Raises UserError if a record is missing or damaged, or none is published.
    """
    names = [
        name
        for name in resolve_notebooks(wanted)
        if wanted or (paths.results(profile) / f"{name}.ipynb").exists()
    ]
    if not names:
        raise UserError(f"profile {profile!r} has published no notebook in {paths.results(profile)}")
    published = paths.results(profile) / "records.jsonl"
    try:
        records = read_lines(published)
    except ValueError as error:
        raise UserError(
            f"{published} is damaged ({error}): restore it, or measure again with `symprune reproduce`"
        ) from error
    if not records:
        raise UserError(f"no records of profile {profile!r} are published in {published}")
    theirs = _drawn(profile, names)
    with tempfile.TemporaryDirectory() as folder, environment(SYMPRUNE_OUTPUT=folder, **{REPLAY: "1"}):
        store = Store(paths.records(profile))
        for record in records.values():
            store.put(record)
        reproduce(names, profile, show=show, again=True)
        ours = _drawn(profile, names)
    findings = [f"{name} is published, but no notebook draws it" for name in theirs.keys() - ours.keys()]
    findings += [f"{name} is drawn, but not published" for name in ours.keys() - theirs.keys()]
    for name in theirs.keys() & ours.keys():
        if difference := first_difference(theirs[name], ours[name]):
            findings.append(f"{name}: published {difference[0]!r}, the records say {difference[1]!r}")
    return sorted(findings)


def first_difference(text: str, other: str) -> tuple[str, str] | None:
    """The first line in which two texts differ: in a word, or in a number by more than 1 %; None if in
    none.
    """
    lines, others = text.splitlines(), other.splitlines()
    width = max(len(lines), len(others))
    for a, b in zip(lines + [""] * (width - len(lines)), others + [""] * (width - len(others)), strict=True):
        same_words = _NUMBER.sub("#", _squeezed(a)) == _NUMBER.sub("#", _squeezed(b))
        numbers = zip(*(map(float, _NUMBER.findall(_squeezed(line))) for line in (a, b)), strict=False)
        if not same_words or not all(
            math.isclose(x, y, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE) for x, y in numbers
        ):
            return a, b
    return None


def _squeezed(line: str) -> str:
    """Without what a table's columns are padded with."""
    return re.sub(r" {2,}", " ", re.sub(r"-{2,}", "-", line))


def _drawn(profile: str, names: Sequence[str]) -> dict[str, str]:
    """Tables, figures' data and verdicts of these notebooks, by file name."""
    from symprune.paper.tables import saved_by

    files = [file for name in names for file in saved_by(profile, name) if file.suffix in (".md", ".csv")]
    files += [file for name in names for file in (paths.results(profile) / "verdicts").glob(f"{name}.json")]
    return {file.name: file.read_text(encoding="utf-8") for file in files}
