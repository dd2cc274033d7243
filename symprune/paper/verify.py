"""Whether what is published is what its records say: every table, figure, verdict and the report drawn again
from the records alone.
"""

import math
import re
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from symprune.base import paths
from symprune.base.errors import UserError
from symprune.base.records import REPLAY, Store, read_lines
from symprune.paper.notebooks import environment, resolve_notebooks
from symprune.paper.reproduce import reproduce
from symprune.paper.style import words_of

_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[-+]?\d+)?")
# for the few numbers that a notebook computes from weights, which depend on the processor
_RELATIVE, _ABSOLUTE = 0.01, 1e-9
# of pictures: what a number to 1 % may move, far from what another figure changes
_RMS, _POINTS = 6.0, 3.0


def verify_report(profile: str, wanted: Sequence[str] = (), show: bool = True) -> list[str]:
    """What differs between a profile's published tables, figures, verdicts and report, and those drawn from
    its published records.

    wanted: notebooks; none means those that the profile has published, and the report of them all. They are
    executed in a folder of their own with measuring forbidden: a number without a record ends the run. Words
    must be equal, numbers to 1 %; PNGs by their words and the mean square of their pixels' differences, PDFs
    by what is drawn on the page. Raises UserError if a record is missing or damaged, or none is published.
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
    theirs = _drawn(profile, names, report=not wanted)
    with tempfile.TemporaryDirectory() as folder, environment(SYMPRUNE_OUTPUT=folder, **{REPLAY: "1"}):
        store = Store(paths.records(profile))
        for record in records.values():
            store.put(record)
        reproduce(names, profile, show=show, again=True)
        ours = _drawn(profile, names, report=not wanted)
        findings = [f"{name} is published, but no notebook draws it" for name in theirs.keys() - ours.keys()]
        findings += [f"{name} is drawn, but not published" for name in ours.keys() - theirs.keys()]
        for name in theirs.keys() & ours.keys():
            if difference := _COMPARED.get(Path(name).suffix, _texts_differ)(theirs[name], ours[name]):
                findings.append(f"{name}: {difference}")
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


def pictures_differ(theirs: Path, ours: Path) -> str:
    """How two PNGs differ: in what their captions and alternative texts say, in size, or in more pixels than
    fonts and rounding change; "" where they do not.
    """
    from matplotlib.testing.compare import calculate_rms
    from matplotlib.testing.exceptions import ImageComparisonFailure
    from PIL import Image

    for said, says in zip(words_of(theirs), words_of(ours), strict=True):
        if difference := first_difference(said, says):
            return f"published with the words {difference[0]!r}, the records say {difference[1]!r}"
    images = []
    for file in (theirs, ours):
        with Image.open(file) as image:
            images.append(np.asarray(image.convert("RGB"), dtype=np.int16))
    try:
        rms = calculate_rms(*images)
    except ImageComparisonFailure:
        return "published in another size than the records draw it"
    return (
        f"the picture differs from what the records draw (root mean square {rms:.1f})" if rms > _RMS else ""
    )


def pages_differ(theirs: Path, ours: Path) -> str:
    """How two PDFs of figures differ: in what is drawn, or by more than a few points in where; "" where they
    do not.
    """
    pages = [_page(file) for file in (theirs, ours)]
    words = [_NUMBER.sub("#", page) for page in pages]
    numbers = [list(map(float, _NUMBER.findall(page))) for page in pages]
    if words[0] != words[1] or any(abs(a - b) > _POINTS for a, b in zip(*numbers, strict=True)):
        return "the page differs from what the records draw"
    return ""


def _page(pdf: Path) -> str:
    """Size and marks of a page that matplotlib drew, as PDF's operators."""
    data = pdf.read_bytes()
    box = re.search(rb"/MediaBox \[[^\]]*\]", data)
    parts = [box[0].decode("latin-1") if box else ""]
    for stream in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", data, re.S):
        try:
            text = zlib.decompress(stream).decode("latin-1")
        except zlib.error:
            continue
        if re.search(r"\d (?:l|re|cm|Do|Td)\n", text):  # neither a font nor a table of glyphs
            parts.append(text)
    return "\n".join(parts)


def _texts_differ(theirs: str, ours: str) -> str:
    difference = first_difference(theirs, ours)
    return f"published {difference[0]!r}, the records say {difference[1]!r}" if difference else ""


_COMPARED: dict[str, Callable[[Any, Any], str]] = {".png": pictures_differ, ".pdf": pages_differ}


def _drawn(profile: str, names: Sequence[str], report: bool) -> dict[str, str | Path]:
    """Tables, figures and verdicts of these notebooks, and the report, by file name: text read, pictures as
    their files.
    """
    from symprune.paper.tables import saved_by

    files = [file for name in names for file in saved_by(profile, name)]
    files += [file for name in names for file in (paths.results(profile) / "verdicts").glob(f"{name}.json")]
    if report:
        made = (paths.results(profile) / name for name in ("report.html", "claims.md", "findings.md"))
        files += [file for file in made if file.exists()]
    return {
        file.name: file if file.suffix in _COMPARED else file.read_text(encoding="utf-8") for file in files
    }
