"""Published tables are what their records say, or it is told which are not."""

import json

import matplotlib.pyplot as plt
import pytest
from test_reproduce import notebook, project  # noqa: F401

from symprune import UserError
from symprune.base import paths
from symprune.paper.reproduce import reproduce
from symprune.paper.style import Picture, save_figure
from symprune.paper.verify import first_difference, pages_differ, pictures_differ, verify_report

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

# Two figures and two tables of one size.
DRAWN = """
from symprune.paper.figures import sweep_curves
from symprune.paper.style import save_figure
for name, values in (("00_up", [1.0, 2.0]), ("00_down", [2.0, 1.0])):
    rows = pd.DataFrame({"method": "wanda", "x": [1.0, 2.0], "y": values})
    save_figure(sweep_curves(rows, "x", "x", {"y": "y"}), profile, name)
    save_table(rows.set_index("method"), profile, name)
other = Verdict("more", "all", "more", "undecided", effect=x, unit="x", over="1 record")
save_verdicts([verdict, other], profile, "00_first")
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


def exchange(file, other):
    content = file.read_bytes()
    file.write_bytes(other.read_bytes())
    other.write_bytes(content)


def test_an_exchanged_picture_page_table_verdict_or_report_is_told(project):  # noqa: F811
    notebook(project, "00_first", CODE + DRAWN)
    reproduce([], "full", show=False)
    assert verify_report("full", show=False) == []
    folder = paths.figures("full")
    exchange(folder / "fig_00_up.png", folder / "fig_00_down.png")
    exchange(folder / "fig_00_up.pdf", folder / "fig_00_down.pdf")
    exchange(folder / "table_00_up.md", folder / "table_00_down.md")
    verdicts = paths.results("full") / "verdicts/00_first.json"
    first, second = json.loads(verdicts.read_text())
    swapped = [first | {"verdict": second["verdict"]}, second | {"verdict": first["verdict"]}]
    verdicts.write_text(json.dumps(swapped, indent=1) + "\n")
    page = paths.results("full") / "report.html"
    page.write_text(page.read_text().replace("A loses less", "B loses less").replace("RIA", "Wanda", 1))
    told = [finding.split(":")[0] for finding in verify_report("full", show=False)]
    assert told == [
        "00_first.json",
        "fig_00_down.pdf",
        "fig_00_down.png",
        "fig_00_up.pdf",
        "fig_00_up.png",
        "report.html",
        "table_00_down.md",
        "table_00_up.md",
    ]


def drawn(folder, name, values, caption="", width=3.0):
    """A line through some values, saved as figures are."""
    figure, ax = plt.subplots(figsize=(width, 2))
    ax.plot(values, "o-")
    ax.set_ylim(0, 3)
    save_figure(Picture(figure, caption, "a line"), "test", name)
    return folder / "figures/test" / f"fig_{name}.png"


def test_pictures_may_differ_by_a_percent_and_by_no_more(tmp_path, monkeypatch):
    monkeypatch.setenv("SYMPRUNE_OUTPUT", str(tmp_path))
    one = drawn(tmp_path, "one", [1.0, 2.0, 1.5], "Losses 1.00")
    near = drawn(tmp_path, "near", [1.005, 2.01, 1.5], "Losses 1.005")
    assert pictures_differ(one, near) == ""
    assert pages_differ(one.with_suffix(".pdf"), near.with_suffix(".pdf")) == ""
    other = drawn(tmp_path, "other", [1.0, 1.4, 1.5], "Losses 1.00")
    assert "root mean square" in pictures_differ(one, other)
    assert "page differs" in pages_differ(one.with_suffix(".pdf"), other.with_suffix(".pdf"))
    assert "another size" in pictures_differ(
        one, drawn(tmp_path, "wide", [1.0, 2.0, 1.5], "Losses 1.00", 3.5)
    )
    assert "with the words" in pictures_differ(one, drawn(tmp_path, "said", [1.0, 2.0, 1.5], "Gains 1.00"))
    more = drawn(tmp_path, "more", [1.0, 2.0, 1.5, 1.5], "Losses 1.00")
    assert pages_differ(one.with_suffix(".pdf"), more.with_suffix(".pdf"))


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
