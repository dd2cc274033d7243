"""The report says of every claim what its verdicts say, and its links lead somewhere."""

import re
from pathlib import Path

import pytest

from symprune.base import paths
from symprune.paper.notebooks import notebook_names
from symprune.paper.report import asked, claims_page, save_report
from symprune.paper.verdicts import VERDICTS, Verdict, load_verdicts, save_verdicts

PUBLISHED = ("cpu", "cpu_full", "cpu_wikitext")
# Its profile says which parts are ablated, and with them which claims are judged.
CHOSEN_BY_PROFILE = "08_ablation"


def published() -> dict[str, dict[str, set[str]]]:
    """The ids judged in each notebook of each published profile."""
    found = {
        profile: load_verdicts(profile).groupby("notebook")["id"].agg(set).to_dict() for profile in PUBLISHED
    }
    assert all(found.values())
    return found


@pytest.mark.parametrize("entry", asked(), ids=lambda entry: entry["asked"][:40])
def test_what_an_entry_names_has_been_published(entry):
    assert entry["by"] in ("paper", "reviewers", "ours")
    for notebook, ids in entry.get("verdicts", {}).items():
        assert notebook in notebook_names()
        judged = [of[notebook] for of in published().values() if notebook in of]
        everywhere = set.union(*judged) if notebook == CHOSEN_BY_PROFILE else set.intersection(*judged)
        assert set(ids) <= everywhere, notebook
    names = [f"table_{name}.md" for name in entry.get("tables", [])] + [
        f"fig_{name}.png" for name in entry.get("figures", [])
    ]
    assert all(any((paths.figures(profile) / name).exists() for profile in PUBLISHED) for name in names), (
        names
    )


def test_every_published_verdict_answers_an_entry_and_none_two_of_one_kind():
    named = [
        (entry["by"], notebook, id_)
        for entry in asked()
        for notebook, ids in entry.get("verdicts", {}).items()
        for id_ in ids
    ]
    assert len(named) == len(set(named))
    judged = {(notebook, id_) for of in published().values() for notebook, ids in of.items() for id_ in ids}
    assert judged == {(notebook, id_) for _, notebook, id_ in named}


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SYMPRUNE_OUTPUT", str(tmp_path))
    (tmp_path / "results/mine/verdicts").mkdir(parents=True)
    return tmp_path


def found(
    id_: str, verdict: str, effect: float, of: str = "m", claim: str = "a loses less than b"
) -> Verdict:
    return Verdict(
        id_, of, claim, verdict, effect, effect - 0.02, effect + 0.02, unit="perplexity", over="8 windows"
    )


def row_of(asked_for: str) -> list[str]:
    (line,) = [line for line in claims_page("mine").splitlines() if asked_for in line]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_without_verdicts_nothing_was_run(project):
    for entry in asked():
        assert row_of(entry["asked"])[1] == "not run here"


def test_verdicts_are_counted_and_the_largest_decided_difference_is_told_with_its_claim(project):
    verdicts = [
        found("r2dsnot_below_dsnot", "undecided", -0.4, "m, from ria"),
        found("r2dsnot_below_dsnot", "reproduced", -0.03, "m, from wanda"),
        found(
            "r2dsnot_as_published_below_dsnot",
            "not reproduced",
            12.05,
            "m, from wanda",
            "R2-DSnoT loses less than DSnoT",
        ),
        found("exact_swap_below_start", "reproduced", -0.9),
    ]
    save_verdicts(verdicts, "mine", "06_dsnot")
    save_verdicts([found("r2dsnot_below_dsnot", "reproduced", -0.95)], "mine", "07_zero_shot")
    _, verdict, words, _ = row_of("R2-DSnoT loses less than DSnoT at 60 %")
    assert verdict == "reproduced 1 of 3, not reproduced 1 of 3, undecided 1 of 3"
    assert words == (
        'Largest decided difference: m, from wanda: "R2-DSnoT loses less than DSnoT" is not reproduced: '
        "+1205.0% perplexity (95 % interval +1203.0% to +1207.0%, paired over 8 windows)."
    )
    _, verdict, words, _ = row_of("ExactSwap, which knows")
    assert verdict == "reproduced"
    assert "-90.0%" in words


def test_where_nothing_is_decided_the_largest_difference_is_told(project):
    save_verdicts(
        [found("dsnot_below_start", "undecided", effect, str(effect)) for effect in (0.01, -0.015)],
        "mine",
        "06_dsnot",
    )
    _, verdict, words, _ = row_of("DSnoT and R2-DSnoT improve")
    assert verdict == "undecided 2 of 2"
    assert words.startswith(
        'Largest difference: -0.015: "a loses less than b" is undecided: -1.5% perplexity'
    )


def test_what_is_exact_is_told_without_a_difference(project):
    exact = Verdict(
        "removal_costs_score",
        "",
        "removing costs",
        "reproduced",
        1e-16,
        unit="largest deviation",
        over="3 pairs",
    )
    save_verdicts([exact], "mine", "01_methods")
    assert row_of("Known scores")[1:3] == [
        "reproduced",
        '"removing costs" is reproduced: largest deviation: 1e-16 over 3 pairs.',
    ]


@pytest.mark.parametrize("verdict", VERDICTS)
def test_every_verdict_that_exists_can_be_counted(project, verdict):
    save_verdicts([found("other_p_below_one", verdict, 0.01)], "mine", "03_lp_norm")
    assert row_of("Norms other than p = 1")[1] == verdict


def test_links_of_the_page_lead_to_files_from_the_folder_it_lies_in(project):
    save_verdicts([found("r2dsnot_below_dsnot", "undecided", 0.001)], "mine", "06_dsnot")
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
