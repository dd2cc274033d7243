"""The report says of every claim what its verdicts say, and its links lead somewhere."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from symprune.base import paths
from symprune.paper.notebooks import notebook_names
from symprune.paper.report import asked, claims_page, save_report
from symprune.paper.tables import VERDICTS, load_verdicts

PUBLISHED = ("cpu", "cpu_full")


@pytest.mark.parametrize("entry", asked(), ids=lambda entry: entry["asked"][:40])
def test_what_an_entry_names_has_been_published(entry):
    verdicts = pd.concat(load_verdicts(profile) for profile in PUBLISHED)
    assert entry["by"] in ("paper", "reviewers")
    for notebook, pattern in entry.get("verdicts", {}).items():
        assert notebook in notebook_names()
        claims = verdicts.loc[verdicts["notebook"] == notebook, "claim"]
        assert any(re.search(pattern, claim) for claim in claims), f"{pattern!r} matches no claim of {notebook}"
    names = [f"table_{name}.md" for name in entry.get("tables", [])] + [f"fig_{name}.png" for name in entry.get("figures", [])]
    assert all(any((paths.figures(profile) / name).exists() for profile in PUBLISHED) for name in names), names


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("SYMPRUNE_OUTPUT", str(tmp_path))
    (tmp_path / "results/mine/verdicts").mkdir(parents=True)
    return tmp_path


def found(project: Path, notebook: str, *verdicts: tuple[str, str, str]) -> None:
    rows = [dict(zip(("claim", "verdict", "evidence"), verdict, strict=True)) for verdict in verdicts]
    (project / f"results/mine/verdicts/{notebook}.json").write_text(json.dumps(rows))


def row_of(asked_for: str) -> list[str]:
    (line,) = [line for line in claims_page("mine").splitlines() if asked_for in line]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_without_verdicts_nothing_was_run(project):
    for entry in asked():
        assert row_of(entry["asked"])[1] == "not run here"


def test_verdicts_are_counted_and_the_largest_decided_difference_is_told(project):
    claim = "m, 60%: R2-DSnoT as published loses less than DSnoT"
    found(
        project,
        "06_dsnot",
        (claim, "undecided", "-40.0% perplexity (wide)"),
        (claim, "reproduced", "-3.0% perplexity (narrow)"),
        (claim, "not reproduced", "+7.5% perplexity (narrow)"),
        ("m: ExactSwap (ours) loses less than the initial mask", "reproduced", "-90.0% perplexity (of another claim)"),
    )
    _, verdict, words, _ = row_of("R2-DSnoT loses less than DSnoT at 60 %")
    assert verdict == "reproduced 1 of 3, not reproduced 1 of 3, undecided 1 of 3"
    assert "+7.5% perplexity (narrow)" in words
    assert "40" not in words
    assert "90.0" not in words


def test_every_verdict_that_exists_can_be_counted(project):
    for verdict in VERDICTS:
        found(project, "03_lp_norm", ("m: p = 2 loses less than p = 1", verdict, "+1.0% perplexity"))
        assert row_of("Norms other than p = 1")[1] == verdict


def test_links_of_the_page_lead_to_files_from_the_folder_it_lies_in(project):
    found(project, "06_dsnot", ("m: R2-DSnoT as published loses less than DSnoT", "undecided", "+0.1% perplexity"))
    (project / "figures/mine").mkdir(parents=True)
    (project / "figures/mine/table_06_dsnot.md").write_text("| a |\n|--|\n| 1 |\n")
    (project / "figures/mine/fig_06_dsnot.png").touch()
    for name in ("06_dsnot.ipynb", "records.jsonl"):
        (project / "results/mine" / name).touch()
    links = re.findall(r"\]\(([^)]+)\)", save_report("mine"))
    folder = project / "results/mine"
    assert {"06_dsnot.ipynb", "records.jsonl"} <= set(links)
    assert any(link.endswith("table_06_dsnot.md") for link in links)
    assert all((folder / link).exists() for link in links)
    assert (folder / "report.md").read_text().count("![") == 1


@pytest.mark.parametrize("profile", PUBLISHED)
def test_links_of_the_published_pages_lead_to_files(profile):
    page = paths.ROOT / "results" / profile / "report.md"
    for link in set(re.findall(r"\]\(([^)]+)\)", page.read_text())):
        assert (page.parent / link).exists(), link
