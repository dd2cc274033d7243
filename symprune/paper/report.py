"""The report: one HTML page of what was claimed, what was found and how sure that is, with every verdict,
table and figure of a profile behind it. It needs no file from the network.
"""

import html
import math
import os
import re
from pathlib import Path
from typing import Any

import pandas as pd

from symprune.base import paths
from symprune.base.files import write_whole
from symprune.paper.claims import MARKS, ClaimFound, claims_of
from symprune.paper.compare import in_words, with_unit
from symprune.paper.notebooks import notebook_names
from symprune.paper.style import words_of
from symprune.paper.tables import saved_by
from symprune.paper.verdicts import load_verdicts

TITLES = {
    "paper": "The paper's claims",
    "reviewers": "What its public reviewers asked",
    "ours": "Beyond the paper",
}
_MODELS = {"embedded": "SmolLM2-135M-Instruct"}  # what is installed with the package
_SHOWN = ["of", "claim", "verdict", "evidence"]  # of a verdict
_SIGNS = dict(zip(MARKS, "✓✗±?-", strict=True))

# The axis of effects, from -100 % to +100 %: even near zero, logarithmic beyond; 2 % and 80 % are both read.
_WIDTH, _BEND, _REACH = 240.0, 0.05, 1.0
_TICKS = (-0.8, -0.2, -0.05, 0.0, 0.05, 0.2, 0.8)


def write_report(profile: str) -> Path:
    """Write results/<profile>/report.html from the verdicts, tables and figures that a profile's notebooks
    saved; returns its path.
    """
    import jinja2

    folder = paths.results(profile)
    folder.mkdir(parents=True, exist_ok=True)
    claims, verdicts = claims_of(profile), load_verdicts(profile)
    notebooks = [_notebook(name, profile, verdicts) for name in _names(profile, verdicts)]
    models = [name for name in dict.fromkeys(verdicts["model"]) if name]
    page = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    ).get_template("report.html.j2")
    text = page.render(
        profile=profile,
        models=", ".join(_MODELS.get(name, name) for name in models) or "no model yet",
        sections=[
            {"id": by, "title": title, "claims": [_claim(c, notebooks) for c in claims if c.by == by]}
            for by, title in TITLES.items()
        ],
        counts=_counts([claim for claim in claims if claim.by == "paper"]),
        n_verdicts=len(verdicts),
        notebooks=notebooks,
        shown=_SHOWN,
        ticks=[(place(tick), f"{tick:+.0%}".replace("+0%", "0")) for tick in _TICKS],
        width=_WIDTH,
        signs=_SIGNS,
        records="records.jsonl",
    )
    report = folder / "report.html"
    write_whole(report, text.rstrip() + "\n")
    return report


def place(effect: float) -> float:
    """Where an effect (a fraction) stands on the axis, in units of its width; what lies outside stands at
    the end.
    """
    scaled = math.asinh(effect / _BEND) / math.asinh(_REACH / _BEND)
    return round(_WIDTH / 2 * (1 + 0.94 * max(-1.0, min(1.0, scaled))), 1)


def effect_in_words(claim: ClaimFound) -> tuple[str, str]:
    """A claim's effect and its interval; empty where it has none."""
    if claim.effect is None or claim.low is None or claim.high is None:
        return "", ""
    effect, low, high = (in_words(value, claim.unit) for value in (claim.effect, claim.low, claim.high))
    return with_unit(effect, claim.unit), f"{low} to {high}"


def _counts(claims: list[ClaimFound]) -> list[tuple[str, int]]:
    counts = [(mark, sum(claim.mark == mark for claim in claims)) for mark in MARKS]
    return [(mark, n) for mark, n in counts if n]


def _claim(claim: ClaimFound, notebooks: list[dict[str, Any]]) -> dict[str, Any]:
    """What the page shows of a claim: its words, its row of the forest plot, and links within the page."""
    effect, interval = effect_in_words(claim)
    anchors = {part["id"] for notebook in notebooks for part in (*notebook["tables"], *notebook["figures"])}
    wanted = [(f"table-{name}", f"table {name}") for name in claim.tables]
    wanted += [(f"fig-{name}", f"figure {name}") for name in claim.figures]
    names = {notebook["name"] for notebook in notebooks}
    links = [(name, name[:2]) for name in claim.notebooks if name in names]
    links += [(anchor, text) for anchor, text in wanted if anchor in anchors]
    return {
        "found": claim,
        "effect": effect,
        "interval": interval,
        "strip": _strip(claim) if effect else None,
        "links": links,
    }


def _strip(claim: ClaimFound) -> dict[str, Any]:
    """A claim's row of the forest plot: the claim's side, the interval, the dot."""
    scale = 0.01 if claim.unit == "points" else 1.0
    effect, low, high = (scale * (value or 0.0) for value in (claim.effect, claim.low, claim.high))
    margin = scale * (claim.margin or 0.0)
    sides = {"lower": (-_REACH, 0.0), "higher": (0.0, _REACH), "within": (-margin, margin)}
    side = sides.get(claim.side, (0.0, 0.0))
    return {
        "shade": (place(side[0]), place(side[1])),
        "bar": (place(low), place(high)),
        "dot": place(effect),
        "cut": (low < -_REACH, high > _REACH),
    }


def _names(profile: str, verdicts: pd.DataFrame) -> list[str]:
    """Notebooks that left something."""
    executed = {file.stem for file in paths.results(profile).glob("[0-9][0-9]_*.ipynb")}
    judged = set(verdicts["notebook"])
    known = [*notebook_names(), *sorted((executed | judged) - set(notebook_names()))]
    return [name for name in known if name in executed | judged or saved_by(profile, name)]


def _notebook(name: str, profile: str, verdicts: pd.DataFrame) -> dict[str, Any]:
    """Everything that one notebook left: its title, verdicts, tables and figures."""
    folder, files = paths.results(profile), saved_by(profile, name)
    source = paths.NOTEBOOKS / f"{name}.py"
    heading = re.search(r"^# # (.+)$", source.read_text(encoding="utf-8"), re.M) if source.exists() else None
    executed = folder / f"{name}.ipynb"
    tables = [file for file in files if file.name.startswith("table_") and file.suffix == ".md"]
    own = verdicts[verdicts["notebook"] == name]
    return {
        "name": name,
        "title": heading[1] if heading else name,
        "executed": executed.name if executed.exists() else None,
        "verdicts": own[_SHOWN].to_dict("records"),
        "tables": [_table(file, folder) for file in tables],
        "figures": [_figure(file, folder) for file in files if file.suffix == ".png"],
    }


def _figure(png: Path, folder: Path) -> dict[str, Any]:
    from PIL import Image

    caption, alt = words_of(png)
    name = png.stem.removeprefix("fig_")
    with Image.open(png) as image:
        width, height = (round(pixels * 100 / image.info.get("dpi", (100,))[0]) for pixels in image.size)
    return {
        "id": f"fig-{name}",
        "name": name,
        "src": _path(png, folder),
        "pdf": _path(png.with_suffix(".pdf"), folder),
        "caption": caption,
        "alt": alt,
        "width": width,
        "height": height,
    }


def _table(file: Path, folder: Path) -> dict[str, Any]:
    """A saved table: its columns, its rows, and what stands below it."""
    lines = file.read_text(encoding="utf-8").splitlines()
    rows = [
        [formula(cell.strip().replace("<NA>", "")) for cell in line.strip().strip("|").split("|")]
        for line in lines
        if line.startswith("|")
    ]
    below = " ".join(line.strip("*") for line in lines if line and not line.startswith("|"))
    name = file.stem.removeprefix("table_")
    return {
        "id": f"table-{name}",
        "name": name,
        "columns": rows[0] if rows else [],
        "rows": rows[2:],  # below the rule
        "below": below,
        "csv": _path(file.with_suffix(".csv"), folder),
    }


_SYMBOLS = {
    r"\vert ": "|",
    r"\Vert ": "‖",
    r"\vert": "|",
    r"\Vert": "‖",
    r"\,": " ",
    r"\alpha": "\N{GREEK SMALL LETTER ALPHA}",
}


def formula(cell: str) -> Any:
    """A cell of a table as HTML: formulas between dollars with raised and lowered letters, as far as the
    tables of this package go.
    """
    from markupsafe import Markup

    def drawn(match: re.Match[str]) -> str:
        text = match[1]
        for name, symbol in _SYMBOLS.items():
            text = text.replace(name, symbol)
        text = re.sub(r"\\mathrm\{(\w+)\}", r"\1", text)
        for sign, tag in (("_", "sub"), (r"\^", "sup")):
            text = re.sub(rf" ?{sign}(?:\{{([^{{}}]*)\}}|(\\?\w+))", rf"<{tag}>\1\2</{tag}>", text)
        return "<i>" + re.sub(r"\\widehat\{([^{}]*)\}", r"<span class='hat'>\1</span>", text) + "</i>"

    return Markup(re.sub(r"\$([^$]+)\$", drawn, html.escape(cell)))


def _path(target: Path, start: Path) -> str:
    return Path(os.path.relpath(target, start)).as_posix()
