"""The report in Markdown: the paper's claims and its reviewers' questions, each with what was found and where
to look.
"""

import os
from pathlib import Path

import pandas as pd

from symprune.base import paths
from symprune.base.files import write_whole
from symprune.paper.claims import ClaimFound, claims_of
from symprune.paper.tables import saved_by, saved_figures, saved_tables
from symprune.paper.verdicts import NOT_RUN, load_verdicts, verdict_page

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
    """Markdown: every claim and question, how its comparisons came out, and links to what it rests on."""
    claims, sections = claims_of(profile), []
    for by, title in _TITLES.items():
        rows = [_answered(claim, profile) for claim in claims if claim.by == by]
        sections.append(f"## {title}\n\n{pd.DataFrame(rows).to_markdown(index=False)}")
    return "\n\n".join(sections)


def _answered(claim: ClaimFound, profile: str) -> dict[str, str]:
    return {
        "asked": claim.asked,
        "found here": claim.mark,
        "in words": " ".join(filter(None, [claim.answer, claim.sentence])),
        "look at": ", ".join(_links(claim, profile)),
    }


def _links(claim: ClaimFound, profile: str) -> list[str]:
    """Notebooks, tables and figures of a claim that exist, linked from the report's folder."""
    folder = paths.results(profile)
    targets = [(notebook, folder / f"{notebook}.ipynb") for notebook in claim.notebooks]
    wanted = {f"table_{name}.md": f"table {name}" for name in claim.tables}
    wanted |= {f"fig_{name}.png": f"figure {name}" for name in claim.figures}
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
