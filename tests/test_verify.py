"""Published tables are what their records say, or it is told which are not."""

import json

import pytest
from test_reproduce import notebook, project  # noqa: F401

from symprune import UserError
from symprune.base import paths
from symprune.paper.reproduce import reproduce
from symprune.paper.verify import first_difference, verify_report

CODE = """
import pandas as pd
from symprune.base import paths
from symprune.base.records import Store
from symprune.paper.tables import save_table
from symprune.paper.verdicts import Verdict, save_verdicts
record = Store(paths.records(profile)).get_or_run({"number": number}, lambda: {"x": 123.25 + number})
x = record.metrics["x"]
save_table(pd.DataFrame({"method": ["wanda"], "x": [x]}).set_index("method"), profile, "00_first")
found = "reproduced" if x < 200 else "not reproduced"
verdict = Verdict("less", "all", "less", found, effect=x, unit="x", over="1 record")
save_verdicts([verdict], profile, "00_first")
"""


@pytest.fixture
def published(project):  # noqa: F811
    notebook(project, "00_first", CODE)
    reproduce([], "full", show=False)
    return paths.results("full") / "records.jsonl"


def test_what_agrees_has_no_findings_and_nothing_published_is_touched(published):
    before = {file: file.read_bytes() for file in paths.ROOT.rglob("*") if file.is_file()}
    assert verify_report("full", show=False) == []
    assert {file: file.read_bytes() for file in paths.ROOT.rglob("*") if file.is_file()} == before


def test_a_notebook_that_was_not_published_is_not_asked_for(published):
    notebook(
        paths.ROOT,
        "01_second",
        CODE.replace("00_first", "01_second").replace('"number": number', '"number": -number'),
    )
    assert verify_report("full", show=False) == []
    with pytest.raises(UserError, match="a number has no record behind it"):
        verify_report("full", ["01"], show=False)


def test_a_changed_number_a_changed_verdict_and_a_stray_table_are_told(published):
    table = paths.figures("full") / "table_00_first.md"
    table.write_text(table.read_text().replace("164.25", "146.25"))
    verdicts = paths.results("full") / "verdicts/00_first.json"
    verdicts.write_text(verdicts.read_text().replace('"reproduced"', '"not reproduced"'))
    (paths.figures("full") / "table_00_stray.md").write_text("| x |")
    verdict, table, stray = verify_report("full", show=False)
    assert "'not reproduced'" in verdict.replace('"', "'")
    assert "146.25" in table
    assert "164.25" in table
    assert stray == "table_00_stray.md is published, but no notebook draws it"


def test_a_number_without_a_record_ends_it(published):
    published.write_text("")
    with pytest.raises(UserError, match="no records of profile 'full' are published"):
        verify_report("full", show=False)
    other = {"run": {"number": 7}, "metrics": {"x": 1}, "meta": {}}
    published.write_text(json.dumps(other) + "\n")
    with pytest.raises(UserError, match="a number has no record behind it"):
        verify_report("full", show=False)


def test_a_tampered_record_is_damaged(published):
    published.write_text(published.read_text().replace("164.25", "164.26"))
    with pytest.raises(UserError, match="is damaged"):
        verify_report("full", show=False)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("| a  | 1.000 |", "| a | 1.005 |", True),
        ("| a | 1.00 |", "| a | 1.02 |", False),
        ("-5 %", "5 %", False),
        ("1e-16", "4e-17", True),
        ("a\nb", "a", False),
        ("reproduced 1", "not reproduced 1", False),
        ("|  -5 |", "|   5 |", False),
        ("3.1 and 4", "3.1 and", False),
    ],
)
def test_words_are_compared_exactly_and_numbers_to_a_percent(a, b, same):
    assert (first_difference(a, b) is None) == same
