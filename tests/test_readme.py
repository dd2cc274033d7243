"""What the README says is what the last run made, and what it names exists."""

import re
from pathlib import Path

import pytest

from symprune.paper.claims import NOT_RUN, claims_of
from symprune.paper.findings import claims_table, findings
from symprune.paper.verdicts import load_verdicts

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


FINDINGS = (ROOT / "docs" / "findings.md").read_text()
MADE = {
    "README.md": ("claims", README, ROOT / "results" / "full" / "claims.md"),
    "docs/findings.md": ("findings", FINDINGS, ROOT / "results" / "full" / "findings.md"),
}


@pytest.mark.parametrize("page", MADE)
def test_what_was_found_is_what_the_last_run_found(page):
    name, text, made = MADE[page]
    blocks = re.findall(r"<!-- (\w+) -->\n(.*?)<!-- end -->", text, flags=re.S)
    assert [block for block, _ in blocks] == [name]
    assert blocks[0][1].strip() == made.read_text().strip()


def test_findings_are_made_from_verdicts():
    claims = claims_of("full")
    assert findings(claims) == MADE["docs/findings.md"][2].read_text()
    assert claims_table(claims) == MADE["README.md"][2].read_text()
    verdicts = load_verdicts("full")
    known = set(verdicts["notebook"] + "/" + verdicts["id"] + "/" + verdicts["of"])
    for claim in claims:
        assert set(claim.verdicts) <= known
        assert bool(claim.verdicts) == (claim.mark != NOT_RUN)


@pytest.mark.parametrize("page", MADE)
def test_no_sentence_of_ours_tells_a_number_that_no_verdict_holds(page):
    """Percentages outside the blocks that are made from verdicts: none is typed by hand."""
    prose = re.sub(r"<!-- \w+ -->.*?<!-- end -->|```.*?```", "", MADE[page][1], flags=re.S)
    assert set(re.findall(r"[\d.]+ ?%", prose)) <= {"95 %", "80 %"}  # of intervals, and of power


def test_the_readme_is_read_in_a_minute():
    assert len(re.sub(r"<!-- \w+ -->.*?<!-- end -->", "", README, flags=re.S).split()) <= 700
    assert README.count("![") == 1


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_linked_files_exist(target):
    assert (ROOT / target).exists()


@pytest.mark.parametrize("command", sorted(set(re.findall(r"\bmake (\w+)", README))))
def test_make_targets_exist(command):
    assert re.search(rf"^{command}:", (ROOT / "Makefile").read_text(), flags=re.M)


def test_continuous_integration_runs_the_readmes_test_command():
    assert re.search(r"^make test$", (ROOT / ".ci" / "run").read_text(), flags=re.M)


def test_python_examples_run_as_written():
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    small = (
        example.replace("n_calib=16", "n_calib=1")
        .replace("seq_len=512", "seq_len=16")
        .replace("n_windows=12", "n_windows=2")
    )
    assert small != example
    exec(compile(small, "README.md", "exec"), {})
