"""The report in Markdown: the paper's claims and its reviewers' questions, each with what was found and where
to look.
"""

import functools
import os
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from symprune.base import paths
from symprune.base.files import write_whole
from symprune.paper.tables import saved_by, saved_figures, saved_tables
from symprune.paper.verdicts import NOT_RUN, VERDICTS, load_verdicts, verdict_page

_TITLES = {
    "paper": "The paper's claims",
    "reviewers": "What its public reviewers asked",
    "ours": "Beyond the paper",
}


def save_report(profile: str) -> str:
    """Write results/<profile>/report.md, all that the notebooks of a profile found, on one page; returns its
    text.
    """
    folder = paths.results(profile)
    folder.mkdir(parents=True, exist_ok=True)
    parts = [
        f"# symprune: {profile}",
        (
            "*reproduced*: the 95 % interval of a paired comparison lies on the claim's side. *not"
            " reproduced*: it lies on the other side. *undecided*: it holds both. All of it on the models of"
            f" this profile: on the paper's own models, **{NOT_RUN}** unless they are named below. The"
            " protocol stands under each table; numbers that are not reported by others come from"
            f" {_link('records', folder / 'records.jsonl', folder)}, whose keys stand in the CSV beside each"
            " table."
        ),
        claims_page(profile),
        f"## Every verdict\n\n{verdict_page(load_verdicts(profile))}",
        "## Tables",
        *(f"### {name}\n\n{table}" for name, table in saved_tables(profile).items()),
        "## Figures",
        *(
            f"### {file.stem.removeprefix('fig_')}\n\n![{file.stem}]({_path(file, folder)})"
            for file in saved_figures(profile)
        ),
    ]
    text = "\n\n".join(part.strip() for part in parts) + "\n"
    write_whole(folder / "report.md", text)
    return text


def claims_page(profile: str) -> str:
    """Markdown: every claim and question, how its comparisons came out, the most telling one, and links to
    what it rests on.
    """
    verdicts = load_verdicts(profile)
    sections = []
    for by, title in _TITLES.items():
        rows = [_answered(entry, verdicts, profile) for entry in asked() if entry["by"] == by]
        sections.append(f"## {title}\n\n{pd.DataFrame(rows).to_markdown(index=False)}")
    return "\n\n".join(sections)


@functools.cache
def asked() -> list[dict[str, Any]]:
    """Claims and questions, as claims.yaml has them."""
    return yaml.safe_load(Path(__file__).with_name("claims.yaml").read_text(encoding="utf-8"))


def _answered(entry: dict[str, Any], verdicts: pd.DataFrame, profile: str) -> dict[str, str]:
    ids = entry.get("verdicts", {})
    answers = [
        id_ in ids.get(notebook, ())
        for notebook, id_ in zip(verdicts["notebook"], verdicts["id"], strict=True)
    ]
    found = verdicts[pd.Series(answers, index=verdicts.index, dtype=bool)]
    counts = {verdict: int((found["verdict"] == verdict).sum()) for verdict in VERDICTS}
    if found.empty:
        verdict = NOT_RUN
    else:
        verdict = ", ".join(
            f"{name} {count} of {len(found)}" if len(found) > 1 else name
            for name, count in counts.items()
            if count
        )
    return {
        "asked": entry["asked"],
        "found here": verdict,
        "in words": " ".join(filter(None, [entry.get("answer"), _most_telling(found)])),
        "look at": ", ".join(_links(entry, profile)),
    }


def _most_telling(found: pd.DataFrame) -> str:
    """The decided comparison with the largest effect, or the largest of all where none is decided: its claim,
    verdict and evidence.
    """
    decided = found["verdict"].isin(["reproduced", "not reproduced"])
    told = (found[decided] if decided.any() else found).dropna(subset="effect")
    if told.empty:
        return ""
    row = told.loc[told["effect"].astype(float).abs().idxmax()]
    largest = "" if pd.isna(row["low"]) else f"Largest {'decided ' if decided.any() else ''}difference: "
    of = f"{row['of']}: " if row["of"] else ""
    return f'{largest}{of}"{row["claim"]}" is {row["verdict"]}: {row["evidence"]}.'


def _links(entry: dict[str, Any], profile: str) -> list[str]:
    """Notebooks, tables and figures of an entry that exist, linked from the report's folder."""
    folder = paths.results(profile)
    targets = [(notebook, folder / f"{notebook}.ipynb") for notebook in entry.get("verdicts", {})]
    wanted = {f"table_{name}.md": f"table {name}" for name in entry.get("tables", [])}
    wanted |= {f"fig_{name}.png": f"figure {name}" for name in entry.get("figures", [])}
    targets += [
        (text, file)
        for name, text in wanted.items()
        for file in saved_by(profile, name.split("_")[1])
        if file.name == name
    ]
    return [_link(text, target, folder) for text, target in targets if target.exists()]


def _link(text: str, target: Path, start: Path) -> str:
    return f"[{text}]({_path(target, start)})"


def _path(target: Path, start: Path) -> str:
    return Path(os.path.relpath(target, start)).as_posix()
