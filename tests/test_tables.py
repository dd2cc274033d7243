"""Tables and figures, against literal computations."""

import csv
import json
import math
import statistics

import pandas as pd
import pytest

from symprune.base import paths
from symprune.paper import tables

SPREAD = [
    ("wanda", "50%", 0, 20.0),
    ("wanda", "50%", 1, 22.0),
    ("wanda", "2:4", 0, 40.0),
    ("wanda", "2:4", 1, 44.0),
]
SINGLE = [
    ("dense", "dense", None, 10.0),
    ("magnitude", "50%", None, 31.4159),
    ("magnitude", "2:4", None, 1234.5),
]


@pytest.fixture
def frame() -> pd.DataFrame:
    rows = pd.DataFrame(SINGLE + SPREAD, columns=["method", "pattern", "seed", "perplexity"])
    return rows.assign(
        model="tiny", refine="none", window_losses=[[1.0, 2.0]] * len(rows), recipe_key="0", record="abc"
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SYMPRUNE_OUTPUT", str(tmp_path))
    return tmp_path / "figures" / "test"


@pytest.mark.parametrize(
    ("mean", "std", "digits", "text"),
    [
        (12.345, 0.567, 4, "12.35 ± 0.57"),
        (12.345, math.nan, 4, "12.35"),
        (9.9996, 0.1, 4, "10.000 ± 0.100"),
        (1234.5, 56.7, 2, "1200 ± 100"),
        (0.012345, 0.001, 2, "0.012 ± 0.001"),
        (0.0, 0.0, 3, "0 ± 0"),
        (math.inf, math.nan, 4, "inf"),
    ],
)
def test_mean_and_deviation_are_shown_with_the_digits_of_the_mean(mean, std, digits, text):
    assert tables.mean_and_std(mean, std, digits) == text


def test_a_summary_is_mean_deviation_and_number(frame):
    summary = tables.summarise(frame).set_index(["method", "pattern"])
    assert summary.loc[("wanda", "50%"), ["mean", "std", "n"]].tolist() == [
        21.0,
        statistics.stdev([20.0, 22.0]),
        2,
    ]
    assert summary.loc[("magnitude", "50%"), "n"] == 1
    assert math.isnan(summary.loc[("magnitude", "50%"), "std"])


def test_a_perplexity_table_has_a_row_per_method_and_dense_in_every_column(frame):
    table = tables.perplexity_table(frame)
    assert table.index.tolist() == ["dense", "magnitude", "wanda"]
    assert table.columns.tolist() == ["50%", "2:4"]
    assert table.loc["dense"].tolist() == ["10.00", "10.00"]
    assert table.loc["magnitude"].tolist() == ["31.42", "1234" if round(1234.5) == 1234 else "1235"]
    assert table.loc["wanda"].tolist() == ["21.00 ± 1.41", "42.00 ± 2.83"]


def test_a_method_that_was_not_measured_under_a_pattern_leaves_its_cell_empty(frame):
    table = tables.perplexity_table(frame[~((frame["method"] == "wanda") & (frame["pattern"] == "2:4"))])
    assert table.loc["wanda"].tolist() == ["21.00 ± 1.41", ""]


def test_a_table_of_two_models_keeps_each_dense_row_to_its_model(frame):
    both = pd.concat([frame, frame.assign(model="other", perplexity=frame["perplexity"] * 2)])
    table = tables.perplexity_table(both, index=["model", "method"])
    assert table.loc[("tiny", "dense"), "50%"] == "10.00"
    assert table.loc[("other", "dense"), "2:4"] == "20.00"
    assert table.loc[("other", "wanda"), "50%"] == "42.00 ± 2.83"
    assert len(table) == 6


def test_a_table_of_the_dense_model_alone_is_one_cell(frame):
    assert tables.perplexity_table(frame[:1]).to_numpy().tolist() == [["10.00"]]


def test_curves_cross_where_straight_lines_between_log_perplexities_meet():
    at = [0.4, 0.5, 0.6]
    # in nats; b is lower than a at 0.5 alone
    curves = {"a": [1.0, 2.0, 3.0], "b": [1.5, 1.9, 5.0], "c": [9.0, 9.0, 9.0]}
    rows = [
        ("m", name, x, math.exp(y))
        for name, values in curves.items()
        for x, y in zip(at, values, strict=True)
    ]
    frame = pd.DataFrame([*rows, ("m", "dense", None, 2.0)], columns=["model", "method", "x", "perplexity"])
    found = tables.crossings(frame, "x")
    # Gap a - b: -0.5, 0.1, -2: zero after 0.5 / 0.6 and after 0.1 / 2.1 of a step.
    assert found[["lower before", "lower after", "between"]].to_numpy().tolist() == [
        ["a", "b", "0.4 and 0.5"],
        ["b", "a", "0.5 and 0.6"],
    ]
    assert found["at"].tolist() == pytest.approx([0.4 + 0.1 * 0.5 / 0.6, 0.5 + 0.1 * 0.1 / 2.1], abs=5e-4)
    assert tables.crossings(frame[frame["method"] != "b"], "x").empty


def test_seeds_are_averaged_before_curves_cross():
    rows = [("m", "a", s, x, math.exp(y + s - 0.5)) for s in (0, 1) for x, y in ((1, 1.0), (2, 3.0))]
    rows += [("m", "b", None, x, math.exp(2.0)) for x in (1, 2)]
    frame = pd.DataFrame(rows, columns=["model", "method", "seed", "x", "perplexity"])
    assert tables.crossings(frame, "x")["at"].tolist() == [1.5]


def test_divergence_and_agreement_stand_in_one_cell_and_the_dense_model_in_none():
    rows = [
        ("dense", "dense", None, 0.0, 1.0),
        ("magnitude", "2:4", None, 2.5, 0.25),
        ("wanda", "2:4", 0, 0.5, 0.75),
        ("wanda", "2:4", 1, 0.75, 0.5),
        ("wanda", "4:8", 0, 0.25, 0.875),
    ]
    frame = pd.DataFrame(rows, columns=["method", "pattern", "seed", "kl", "agreement"])
    table = tables.divergence_table(frame)
    assert table.to_dict() == {
        "2:4": {"magnitude": "2.50 (25.0 %)", "wanda": "0.625 ± 0.177 (62.5 ± 17.7 %)"},
        "4:8": {"magnitude": "", "wanda": "0.250 (87.5 %)"},
    }


def test_what_there_is_of_every_window_example_or_linear_stays_out_of_a_csv():
    rows = {
        "acc": [0.5],
        "correct": ["10"],
        "window_losses": [[1.0]],
        "articles": [[0]],
        "linear_jaccard": [[1.0]],
        "recipe_key": ["k"],
        "record": ["abc"],
    }
    assert list(tables.measurements(pd.DataFrame(rows))) == ["acc", "record"]


def test_a_saved_table_is_shown_in_markdown_and_kept_unrounded_in_csv(folder, frame):
    table = tables.perplexity_table(frame)
    assert tables.save_table(table, "test", "02", data=frame).frame is table
    lines = (folder / "table_02.md").read_text().splitlines()
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], lines[4])] == [
        ["method", "50%", "2:4"],
        ["wanda", "21.00 ± 1.41", "42.00 ± 2.83"],
    ]
    with open(folder / "table_02.csv") as f:
        rows = list(csv.DictReader(f))
    assert [float(row["perplexity"]) for row in rows] == frame["perplexity"].tolist()
    assert {row["record"] for row in rows} == {"abc"}
    assert "window_losses" not in rows[0]
    tables.save_table(table, "test", "shown")
    assert (folder / "table_shown.csv").read_text().splitlines()[0] == "method,50%,2:4"


def test_a_notebook_shows_every_row_and_every_character_of_a_cell():
    long = "a sentence that goes on & on " * 9
    frame = pd.DataFrame({"claim": [f"{long}{row}" for row in range(70)], "x": range(70)})
    shown = tables.Whole(frame)
    html = shown._repr_html_()
    for row in range(70):
        assert f"{long}{row}" in repr(shown)
        assert f"{long}{row}".replace("&", "&amp;") in html
    assert "white-space: normal" in html
    assert len(repr(shown).splitlines()) == 71


@pytest.mark.parametrize("file", sorted(paths.NOTEBOOKS.glob("*.ipynb")), ids=lambda file: file.stem)
def test_no_cell_of_a_table_is_cut_in_a_rendered_notebook(file):
    outputs = [out for cell in json.loads(file.read_text())["cells"] for out in cell.get("outputs", [])]
    for out in outputs:
        assert "...</td>" not in "".join(out.get("data", {}).get("text/html", ""))


def test_any_value_is_spread_over_its_repetitions_in_the_order_of_the_frame():
    rows = pd.DataFrame(
        {
            "method": ["wanda", "wanda", "ria", "ria"],
            "against": ["z", "z", "z", "a"],
            "overlap": [0.5, 0.7, 0.25, 0.125],
        }
    )
    table = tables.spread_table(rows, "overlap", 3, ["method"], "against")
    assert table.index.tolist() == ["wanda", "ria"]
    assert table.columns.tolist() == ["z", "a"]
    assert table.to_numpy().tolist() == [["0.600 ± 0.141", ""], ["0.250", "0.125"]]


def test_every_output_has_its_place_under_the_output_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SYMPRUNE_OUTPUT", str(tmp_path))
    assert paths.figures("cpu") == tmp_path / "figures/cpu"
    assert paths.records("cpu") == tmp_path / "results/cpu/records"
    monkeypatch.setenv("SYMPRUNE_OUTPUT", "build/elsewhere")
    monkeypatch.chdir(tmp_path)
    assert paths.output() == paths.ROOT / "build/elsewhere"  # whatever the folder a kernel runs in
    monkeypatch.delenv("SYMPRUNE_OUTPUT")
    assert paths.output() == paths.ROOT


def test_progress_is_announced_only_to_whoever_asked(tmp_path, monkeypatch):
    from symprune.base import progress

    progress.announce("nobody listens", 0, 1)
    monkeypatch.setenv("SYMPRUNE_PROGRESS", str(tmp_path / "progress"))
    progress.announce("one", 0, 2)
    progress.announce("two ±", 1, 2, measured=False)
    lines = (tmp_path / "progress").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"label": "one", "done": 0, "total": 2, "measured": True},
        {"label": "two ±", "done": 1, "total": 2, "measured": False},
    ]


def test_the_protocol_lists_what_differs_and_leaves_out_rows_that_were_not_calibrated():
    common = {"evaluated_on": "embedded", "n_windows": 8, "eval_seq_len": 512, "dtype": "float32"}
    calibrated = {"n_calib": 4.0, "seq_len": 512.0, "propagate": "dense"}
    rows = [
        {**common, "corpus": "none"},
        *({**common, **calibrated, "corpus": name, "seed": seed} for name, seed in [("lee", 0), ("c4", 1)]),
    ]
    expected = "Evaluated on embedded: 8 windows of 512 tokens."
    assert tables.protocol(pd.DataFrame(rows)) == (
        f"{expected} Calibrated on lee, c4: 4 windows of 512 tokens, seed 0, 1, dense propagation. Float32."
    )
    assert tables.protocol(pd.DataFrame(rows[:1])) == f"{expected} Float32."
    assert tables.protocol(pd.DataFrame([{"accuracy": 0.5}])) == ""
    told = [{**row, "articles": [0, 0, 3]} for row in rows[:1]]
    assert tables.protocol(pd.DataFrame(told)).startswith(expected[:-1] + ", of 2 articles. ")
    answered = [{"task": "rte", "n": 277}, {"task": "boolq", "n": 400}, {"task": "rte", "n": 277}]
    assert tables.protocol(pd.DataFrame(answered)) == "Evaluated on rte, boolq: 277, 400 examples."
