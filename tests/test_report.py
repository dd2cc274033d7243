"""The report shows of every claim what was found; its links lead somewhere; it needs no network."""

import html
import re
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from symprune.base import paths
from symprune.paper import report
from symprune.paper.claims import MARKS, ClaimFound, asked, cases_of, claims_of
from symprune.paper.style import Picture, save_figure
from symprune.paper.verdicts import Verdict, load_verdicts, save_verdicts

PUBLISHED = ("cpu",)

LESS = ClaimFound(
    id="a_below_b",
    by="paper",
    asked="A loses <less> than B.",
    mark="mixed",
    sentence="Reproduced in 1, undecided in 2 of 3 cases.",
    reproduced=1,
    contradicted=0,
    undecided=2,
    not_run=0,
    effect=-0.04,
    low=-0.12,
    high=0.05,
    unit="perplexity",
    side="lower",
    margin=None,
    power=0.02,
    verdicts=("02_perplexity/a_below_b/x",),
    answer="",
    notebooks=("02_perplexity",),
    tables=("02_perplexity", "02_missing"),
    figures=("02_perplexity",),
)


@pytest.mark.parametrize("entry", asked(), ids=lambda entry: entry["id"])
def test_what_an_entry_names_has_been_published(entry):
    verdicts = pd.concat([load_verdicts(profile) for profile in PUBLISHED])
    published = set(verdicts["notebook"])  # what is not published is told as not run
    judged = set(zip(verdicts["notebook"], verdicts["id"], strict=True))
    for name, id_, _ in cases_of(entry):  # what no published profile asks, its notebook would
        source = (paths.NOTEBOOKS / f"{name}.py").read_text()
        assert (name, id_) in judged or f'"{id_}"' in source, (name, id_)
    numbers = {name[:2] for name in published}
    for prefix, key, suffix in (("table", "tables", "md"), ("fig", "figures", "png")):
        for name in (name for name in entry.get(key, []) if name[:2] in numbers):
            assert any((paths.figures(p) / f"{prefix}_{name}.{suffix}").exists() for p in PUBLISHED), name


@pytest.mark.parametrize("profile", PUBLISHED)
def test_every_published_verdict_belongs_to_a_claim(profile):
    answered = [verdict for claim in claims_of(profile) for verdict in claim.verdicts]
    verdicts = load_verdicts(profile)
    assert len(verdicts)
    assert set(answered) == {f"{row.notebook}/{row.id}/{row.of}" for row in verdicts.itertuples()}


def test_without_verdicts_every_claim_stands_there_as_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("SYMPRUNE_OUTPUT", str(tmp_path))
    text = report.write_report("mine").read_text(encoding="utf-8")
    for entry in asked():
        row = row_of(text, entry["id"])
        assert entry["asked"] in html.unescape(row)
        assert "not run here" in row


@pytest.fixture
def page(tmp_path, monkeypatch):
    """Draws the page of some claims beside a notebook's verdict, table and figure."""
    monkeypatch.setenv("SYMPRUNE_OUTPUT", str(tmp_path))
    folder = tmp_path / "results/mine"
    (tmp_path / "figures/mine").mkdir(parents=True)
    (tmp_path / "figures/mine/table_02_perplexity.md").write_text(
        "| method | 0.6 |\n|:--|--:|\n| $\\vert W_{ij}\\vert $ & x | 3.5 |\n\n*Evaluated on text.*\n"
    )
    (tmp_path / "figures/mine/table_02_perplexity.csv").write_text("method\n")
    verdict = Verdict(
        "a_below_b",
        "x",
        "a loses less than b",
        "undecided",
        0.01,
        -0.02,
        0.04,
        "perplexity",
        model="embedded",
    )
    save_verdicts([verdict], "mine", "02_perplexity")
    save_figure(
        Picture(plt.figure(figsize=(3, 2)), 'Dots & "whiskers".', "What it shows."), "mine", "02_perplexity"
    )
    for name in ("02_perplexity.ipynb", "records.jsonl"):
        (folder / name).touch()

    def draw(*claims: ClaimFound) -> str:
        monkeypatch.setattr(report, "claims_of", lambda profile: list(claims))
        return report.write_report("mine").read_text(encoding="utf-8")

    return draw


def row_of(text: str, id_: str) -> str:
    return re.search(rf'<tr id="{id_}">.*?</tr>', text, re.S)[0]


def test_the_page_has_a_title_and_asks_the_network_for_nothing(page):
    text = page(LESS)
    assert re.search("<title>.*mine.*SmolLM2-135M-Instruct</title>", text)
    assert not re.search(r"https?:|//[a-z]|<script|<link|@import|url\(", text)
    assert text == page(LESS)


def test_links_lead_to_files_and_anchors_that_exist_once(page):
    text = page(LESS)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    links = [html.unescape(link) for link in re.findall(r'(?:href|src)="([^"]+)"', text)]
    assert {"#02_perplexity", "#table-02_perplexity", "#fig-02_perplexity", "02_perplexity.ipynb"} <= set(
        links
    )
    for link in links:
        assert link[1:] in ids if link[0] == "#" else (paths.results("mine") / link).exists(), link


def test_a_claim_is_shown_with_its_mark_effect_interval_and_sentence(page):
    row = row_of(page(LESS), "a_below_b")
    words = " ".join(html.unescape(re.sub("<[^>]*>", " ", row)).split())
    for said in ("A loses <less> than B.", "mixed", "-4.0% perplexity", "-12.0% to +5.0%", LESS.sentence):
        assert said in words
    assert "mark mixed" in row


@pytest.mark.parametrize("mark", MARKS)
def test_every_mark_is_a_word_and_a_colour_and_is_counted(page, mark):
    text = page(
        replace(LESS, mark=mark), replace(LESS, mark=mark, id="other"), replace(LESS, id="more", by="ours")
    )
    assert f"2 {mark}" in text
    assert re.search(rf"\.mark\.{mark.replace(' ', '-')} {{[^}}]*(?:background|outline)", text)


def numbers(row: str, tag: str, of: str) -> dict[str, float]:
    found = re.search(rf'<{tag} ([^>]*)class="{of}"', row)
    return {name: float(value) for name, value in re.findall(r'(\w+)="([-\d.]+)"', found[1])}


def test_the_plot_has_the_interval_around_the_dot_and_shades_the_side_of_the_claim(page):
    middle = report.place(0)
    for side, margin, expected in (
        ("lower", None, (report.place(-1), middle)),
        ("higher", None, (middle, report.place(1))),
        ("within", 0.05, (report.place(-0.05), report.place(0.05))),
    ):
        row = row_of(page(replace(LESS, side=side, margin=margin)), LESS.id)
        shade, bar = numbers(row, "rect", "side"), numbers(row, "line", "bar")
        assert (shade["x"], shade["x"] + shade["width"]) == pytest.approx(expected)
        dot = float(re.search(r'<circle cx="([\d.]+)"', row)[1])
        assert (bar["x1"], dot, bar["x2"]) == tuple(map(report.place, (-0.12, -0.04, 0.05)))
    points = row_of(page(replace(LESS, unit="points", effect=-4.0, low=-12.0, high=5.0)), LESS.id)
    assert f'cx="{report.place(-0.04)}"' in points
    assert "-4.0 points" in points
    assert "<path" not in row
    far = row_of(page(replace(LESS, effect=5.0, low=0.1, high=12.0)), LESS.id)
    assert far.count("<path") == 1
    assert "6 times" in far


def test_the_axis_is_symmetric_and_keeps_the_order():
    at = [report.place(x) for x in (-3, -1, -0.8, -0.05, -0.01, 0, 0.01, 0.05, 0.8, 1, 3)]
    assert at == sorted(at)
    assert at[0] == at[1]
    assert [a + b for a, b in zip(at, at[::-1], strict=True)] == pytest.approx([2 * at[5]] * len(at))
    assert at[6] - at[5] > 3  # a percent is seen


def test_what_was_not_run_or_has_no_interval_stays_visible_without_a_plot(page):
    bare = replace(LESS, mark="not run here", effect=None, low=None, high=None, sentence="Not run here.")
    row = row_of(page(bare), LESS.id)
    assert "Not run here." in row
    assert "<svg" not in row


def test_tables_are_folded_and_pictures_have_captions_and_alternative_texts(page):
    text = page(LESS)
    folded = re.search(r"<details><summary>Table 02_perplexity</summary>.*?</details>", text, re.S)[0]
    assert (
        '<td data-label="method"><i>|W<sub>ij</sub>|</i> &amp; x</td><td data-label="0.6">3.5</td>' in folded
    )
    assert "Evaluated on text." in folded
    picture = re.search(r"<figure .*?</figure>", text, re.S)[0]
    assert 'alt="What it shows." width="300" height="200"' in picture
    assert "<figcaption>Dots &amp; &#34;whiskers&#34;.</figcaption>" in picture


@pytest.mark.parametrize(
    ("tex", "shown"),
    [
        (r"a < b", "a &lt; b"),
        (r"$\Vert A_{:j}\Vert _2^\alpha\, X^{\mathrm{ri}}$, x", None),
        (
            r"$\widehat{\Vert W_{i:}\Vert _1}^{-1}$",
            "<i><span class='hat'>‖W<sub>i:</sub>‖<sub>1</sub></span><sup>-1</sup></i>",
        ),
    ],
)
def test_formulas_are_drawn_without_a_script(tex, shown):
    drawn = str(report.formula(tex))
    assert "\\" not in drawn
    assert "$" not in drawn
    assert shown in (None, drawn)


def test_formulas_of_the_published_table_leave_no_tex_behind():
    table = Path(paths.ROOT / "figures/cpu/table_01_methods.md").read_text(encoding="utf-8")
    assert not re.search(r"[$\\{}^]", str(report.formula(table)).replace("\n", " "))


@pytest.mark.parametrize(
    "profile", sorted(file.parent.name for file in paths.ROOT.glob("results/*/report.html"))
)
def test_links_of_the_published_pages_lead_to_files(profile):
    file = paths.ROOT / "results" / profile / "report.html"
    for link in set(re.findall(r'(?:href|src)="([^"#][^"]*)"', file.read_text(encoding="utf-8"))):
        assert (file.parent / html.unescape(link)).exists(), link
