"""The report says of every claim what its verdicts say, and its links lead somewhere."""

import re
from pathlib import Path

import pytest

from symprune.base import paths
from symprune.paper.claims import asked, cases_of, claims_of
from symprune.paper.report import claims_page, save_report
from symprune.paper.verdicts import Verdict, load_verdicts, save_verdicts

PUBLISHED = ("cpu", "cpu_full", "cpu_wikitext")


@pytest.mark.parametrize("entry", asked(), ids=lambda entry: entry["id"])
def test_what_an_entry_names_has_been_published(entry):
    judged = {(row.notebook, row.id) for profile in PUBLISHED for row in load_verdicts(profile).itertuples()}
    assert {(notebook, id_) for notebook, id_, _ in cases_of(entry)} <= judged
    names = [f"table_{name}.md" for name in entry.get("tables", [])] + [
        f"fig_{name}.png" for name in entry.get("figures", [])
    ]
    assert all(any((paths.figures(profile) / name).exists() for profile in PUBLISHED) for name in names), (
        names
    )


@pytest.mark.parametrize("profile", PUBLISHED)
def test_every_published_verdict_belongs_to_a_claim(profile):
    answered = [verdict for claim in claims_of(profile) for verdict in claim.verdicts]
    verdicts = load_verdicts(profile)
    assert len(verdicts)
    assert set(answered) == {f"{row.notebook}/{row.id}/{row.of}" for row in verdicts.itertuples()}


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SYMPRUNE_OUTPUT", str(tmp_path))
    (tmp_path / "results/mine/verdicts").mkdir(parents=True)
    return tmp_path


def row_of(asked_for: str) -> list[str]:
    (line,) = [line for line in claims_page("mine").splitlines() if asked_for in line]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_without_verdicts_nothing_was_run(project):
    for entry in asked():
        assert row_of(entry["asked"])[1] == "not run here"


def test_a_claim_is_told_by_its_mark_and_its_sentence(project):
    below = Verdict(
        "ria_below_wanda", "2:4", "ria loses less than wanda", "reproduced", -0.08, -0.11, -0.05, "perplexity"
    )
    save_verdicts([below], "mine", "02_perplexity")
    _, mark, words, _ = row_of("RIA loses less than Wanda.")
    (claim,) = [claim for claim in claims_of("mine") if claim.id == "ria_below_wanda"]
    assert (mark, words) == (claim.mark, claim.sentence)
    assert "2:4: perplexity 8.0% lower" in words


def test_links_of_the_page_lead_to_files_from_the_folder_it_lies_in(project):
    undecided = Verdict("r2dsnot_below_dsnot", "0.6 per output, from ria", "a loses less", "undecided")
    save_verdicts([undecided], "mine", "06_dsnot")
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
