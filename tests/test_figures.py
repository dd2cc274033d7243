"""Figures, against literal computations of what their marks stand for; and the files kept of them."""

import itertools
import math
import re

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from symprune.base import paths
from symprune.base.records import Record, Store
from symprune.methods.recipe import REFINERS
from symprune.methods.scores import SCORES
from symprune.paper import differences, figures, style
from symprune.paper.frontier import frontier, seconds_of_one_machine, unbeaten

SIDES = {"wanda": 0.0, "ria": -0.05, "stochria": 0.1, "magnitude": 2.0}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SYMPRUNE_OUTPUT", str(tmp_path))
    return tmp_path / "figures" / "test"


def measured(models=("tiny",), patterns=("50%", "2:4"), sides=SIDES) -> pd.DataFrame:
    """Rows whose losses lie off wanda's by what SIDES says, more under the later patterns, and by noise."""
    rng, rows = np.random.default_rng(0), []
    for (m, model), (p, pattern) in itertools.product(enumerate(models), enumerate(patterns)):
        for method, offset in sides.items():
            losses = 3 + m + offset * (1 + p / 2) + 0.01 * rng.standard_normal(6)
            rows.append((model, pattern, method, losses.tolist(), math.exp(losses.mean())))
    frame = pd.DataFrame(rows, columns=["model", "pattern", "method", "window_losses", "perplexity"])
    return frame.assign(seed=None, refine="none")


def ratio(frame: pd.DataFrame, model: str, pattern: str, method: str) -> float:
    of = frame[(frame["model"] == model) & (frame["pattern"] == pattern)].set_index("method")["window_losses"]
    logs = [a - b for a, b in zip(of[method], of["wanda"], strict=True)]
    return math.exp(sum(logs) / len(logs))


def marks(ax) -> list[tuple[float, float]]:
    """Where the dots of a panel stand."""
    return [
        (float(container.lines[0].get_xdata()[0]), float(container.lines[0].get_ydata()[0]))
        for container in ax.containers
    ]


BY = ["model", "pattern", "method"]


def test_differences_are_those_of_mean_losses_within_a_case():
    frame = measured(models=("tiny", "other"))
    found = differences.differences(frame, "method", "wanda", BY).rows
    assert len(found) == 12
    for row in found.itertuples():
        assert row.effect == pytest.approx(ratio(frame, row.model, row.pattern, row.method) - 1)
        assert row.low < row.effect < row.high
    wanda = frame[frame["method"] == "wanda"].set_index(["model", "pattern"])["perplexity"]
    assert found.set_index(["model", "pattern"])["base"].to_dict() == wanda.to_dict()


def test_intervals_are_wider_where_more_hold_together_and_a_case_without_a_reference_is_told():
    frame = measured()
    one = differences.differences(frame[frame["method"].isin(["wanda", "ria"])], "method", "wanda", BY).rows
    all_ = differences.differences(frame, "method", "wanda", BY).rows
    alone, together = (rows[rows["method"] == "ria"].iloc[0] for rows in (one, all_))
    assert together["high"] - together["low"] > alone["high"] - alone["low"]
    assert together["effect"] == alone["effect"]
    missing = frame[(frame["method"] != "wanda") | (frame["pattern"] == "50%")]
    with pytest.raises(ValueError, match="no method = 'wanda' to compare with"):
        differences.differences(missing, "method", "wanda", BY)


def test_dots_stand_at_their_differences_and_what_loses_far_more_on_an_axis_of_its_own():
    frame = measured(models=("tiny", "other"))
    picture = differences.difference_dots(differences.differences(frame, "method", "wanda", BY))
    axes = np.array(picture.figure.axes).reshape(4, 2)
    for (model, pattern), (near, far) in zip(
        itertools.product(("tiny", "other"), ("50%", "2:4")), axes, strict=True
    ):
        assert near.get_title(loc="left").startswith(f"{model}, {pattern}")
        labels = [label.get_text() for label in near.get_yticklabels()]
        drawn = {labels[round(y)]: x for x, y in marks(near)}
        expected = {name: ratio(frame, model, pattern, name) - 1 for name in ("ria", "stochria")}
        assert drawn == pytest.approx(expected)
        assert {labels[round(y)]: x for x, y in marks(far)} == pytest.approx(
            {"magnitude": ratio(frame, model, pattern, "magnitude")}
        )
        assert far.get_xscale() == "log"
        assert max(map(abs, near.get_xlim())) < 1
    for said in ("whiskers", "95 %", "all 12 hold together", "Shaded", "logarithmic"):
        assert said in picture.caption
    assert "ria -" in picture.alt


def test_panels_share_an_axis_unless_one_needs_far_more_and_a_dot_has_its_methods_colour():
    frame = measured(patterns=("a", "b"), sides={"wanda": 0.0, "ria": 0.05})
    frame["window_losses"] = [[3.0, 3.0], [3.05, 3.06], [3.0, 3.0], [2.0, 2.1]]
    frame["text"] = frame["method"].map({"wanda": "home", "ria": "other"})
    of = differences.differences(frame.assign(method="ria"), "text", "home", ["pattern", "method", "text"])
    first, second = differences.difference_dots(of).figure.axes
    assert second.get_xlim()[1] > 3 * first.get_xlim()[1]
    assert "an axis of its own" in second.get_title(loc="left")
    assert first.containers[0].lines[0].get_color() == style.METHODS["ria"][0]
    alike = measured(patterns=("a", "b"), sides={"wanda": 0.0, "ria": 0.05})
    first, second = differences.difference_dots(
        differences.differences(alike, "method", "wanda", BY)
    ).figure.axes
    assert first.get_xlim() == second.get_xlim()


def test_a_curve_stands_at_its_differences_and_keeps_its_colour():
    frame = measured()
    of = differences.differences(frame, "method", "wanda", ["model", "method", "pattern"])
    picture = differences.difference_curves(of, "pattern")
    near, far = picture.figure.axes
    lines = {line.get_label(): line for ax in (near, far) for line in ax.lines if line.get_label()[0] != "_"}
    assert lines.keys() == {"ria", "stochria", "magnitude"}
    for method, line in lines.items():
        expected = [
            ratio(frame, "tiny", pattern, method) - (method != "magnitude") for pattern in ("2:4", "50%")
        ]
        assert line.get_ydata().tolist() == pytest.approx(expected)
        assert line.get_color() == style.METHODS[method][0]


def test_whiskers_that_leave_their_panel_are_told():
    told = []
    for spread in (0.001, 3.0):
        frame = measured(patterns=("50%",), sides={"wanda": 0.0, "ria": 0.1})
        frame["window_losses"] = [[3.0, 3.0], [3.1 - spread, 3.1 + spread]]
        of = differences.differences(frame, "method", "wanda", BY)
        told.append("cut at the edge" in differences.difference_dots(of).caption)
    assert told == [False, True]


@pytest.mark.parametrize("scale", ["linear", "log"])
@pytest.mark.filterwarnings("error")
def test_ticks_stand_where_something_was_measured(scale):
    rows = pd.DataFrame({"method": "wanda", "windows": [1, 2, 32], "perplexity": [30.0, 20.0, 15.0]})
    axis = {"perplexity": "perplexity"}
    ax = figures.sweep_curves(rows, "windows", "calibration windows", axis, scale=scale).figure.axes[0]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "2", "32"]
    assert ax.get_xticks().tolist() == [1, 2, 32]
    single = pd.DataFrame({"method": ["stochria", "ria"], "beta": [0.1, None], "perplexity": [20.0, 15.0]})
    ax = figures.sweep_curves(single, "beta", "fraction", axis, scale=scale, log_y=True).figure.axes[0]
    left, right = ax.get_xlim()
    assert left < 0.1 < right


def test_a_heat_map_has_every_difference_in_its_cell():
    rows = [(a, b, [3 + a + b, 3.01 + a + b]) for a in (0.0, 0.1) for b in (0.0, 0.01, 0.02)]
    frame = pd.DataFrame(rows, columns=["refine.g", "refine.p", "window_losses"]).assign(seed=None)
    frame["perplexity"] = [math.exp(sum(losses) / 2) for losses in frame["window_losses"]]
    ax = figures.heat_map(frame, "refine.p", "refine.g").figure.axes[0]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("p", "g")
    xs, ys = ([tick.get_text() for tick in ticks] for ticks in (ax.get_xticklabels(), ax.get_yticklabels()))
    shown = {(ys[int(t.get_position()[1])], xs[int(t.get_position()[0])]): t.get_text() for t in ax.texts}
    expected = {(f"{a:g}", f"{b:g}"): f"{math.exp(a + b) - 1:+.1%}" for a, b, _ in rows}
    assert shown == expected | {("0", "0"): f"{math.exp(3.005):.4g}"}


def test_accuracies_stand_beside_chance_and_their_differences_beside_zero():
    answers = {("wanda", "none"): "1100", ("wanda", "dsnot"): "1110", ("dense", "dense"): "1111"}
    rows = [("tiny", *of, "continuation", correct, 0) for of, correct in answers.items()]
    frame = pd.DataFrame(rows, columns=["model", "method", "refine", "task", "correct", "seed"])
    frame["pattern"] = frame["method"].replace("wanda", "0.6 per output")
    picture = figures.accuracy_dots(frame)
    left, right = picture.figure.axes
    levels = {line.get_label(): line.get_xdata()[0] for line in left.lines}
    assert (levels["chance"], levels["dense"]) == (25, 100)
    assert [x for x, _ in marks(left)] == [50, 75]
    assert marks(right) == [(25, 1)]
    assert "what guessing would give" in picture.caption
    unknown = figures.accuracy_dots(frame.assign(task="a task of one's own")).figure.axes[0]
    assert "chance" not in {line.get_label() for line in unknown.lines}


def test_every_method_has_one_colour_that_no_other_has():
    names = {*SCORES, *REFINERS, "dense", "none"}
    assert names <= style.METHODS.keys()
    colours = [np.array(matplotlib.colors.to_rgb(colour)) for colour, _ in style.METHODS.values()]
    assert min(np.abs(a - b).max() for a, b in itertools.combinations(colours, 2)) > 0.15
    for variant in ("ria(alpha=1.0)", "ria, gradients"):
        assert style.method_style(variant)["color"] == style.method_style("ria")["color"]
        assert style.method_style(variant) != style.method_style("ria")
    assert style.method_style("ria + r2dsnot") == style.method_style("r2dsnot")
    greys = {colour for colour, _ in style.GREYS[1:]}
    assert not greys & {colour for colour, _ in style.METHODS.values()}


def test_a_figure_is_kept_sharp_with_its_words_and_fonts_and_the_same_bytes_each_time(folder):
    files = []
    for _ in range(2):
        of = differences.differences(measured(), "method", "wanda", BY)
        picture = style.save_figure(differences.difference_dots(of), "test", "dots")
        files.append([(folder / f"fig_dots.{kind}").read_bytes() for kind in ("png", "pdf")])
    assert files[0] == files[1]
    with Image.open(folder / "fig_dots.png") as image:
        assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
        assert image.size == tuple(round(200 * inches) for inches in picture.figure.get_size_inches())
    pdf = files[0][1]
    assert pdf.startswith(b"%PDF")
    assert b"/FontFile2" in pdf  # TrueType
    assert b"/Type3" not in pdf
    assert style.words_of(folder / "fig_dots.png") == (picture.caption, picture.alt)
    image = matplotlib.image.imread(folder / "fig_dots.png")[..., :3]
    assert 0.002 < (image.min(axis=2) < 0.9).mean() < 0.5


@pytest.mark.parametrize("words", [1, 20])
def test_a_figure_is_kept_whole(folder, words):
    """No ink on its edge, also where a label is longer than its axis."""
    fig, ax = matplotlib.pyplot.subplots(figsize=(3, 2), layout="constrained")
    ax.set_xlabel(" ".join(["label"] * words))
    style.save_figure(style.Picture(fig, "", ""), "test", "label")
    image = matplotlib.image.imread(folder / "fig_label.png")[..., :3].min(axis=2)
    assert min(edge.min() for edge in (image[0], image[-1], image[:, 0], image[:, -1])) > 0.9
    wide = int(re.search(rb"/MediaBox \[ ?0 0 (\d+)", (folder / "fig_label.pdf").read_bytes())[1])
    assert (wide > 3 * 72) == (words > 1)


def test_a_notebook_shows_a_picture_and_then_its_caption(capsys):
    pytest.importorskip("IPython")
    picture = figures.sweep_curves(
        pd.DataFrame({"method": "ria", "x": [1.0, 2.0], "y": [1.0, 2.0]}), "x", "x", {"y": "height"}
    )
    picture._ipython_display_()
    shown = capsys.readouterr().out
    assert shown.index("Figure") < shown.index("Markdown")
    assert picture.caption == "Height, against x: means of one measurement each."
    assert picture.alt == "Curves against x. height, ria: 1 at 1, 2 at 2."


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=8))
def test_the_frontier_is_what_no_other_beats_in_both(points):
    frame = pd.DataFrame(points, columns=["cost", "value"])
    best = set(unbeaten(frame, "cost", "value").itertuples(index=False, name=None))
    for cost, value in points:
        beaten = any((c <= cost and v < value) or (c < cost and v <= value) for c, v in points)
        assert ((cost, value) in best) == (not beaten)


def test_the_frontier_shows_every_way_and_says_what_it_joins():
    rows = pd.DataFrame(
        [("0.6 per output", way, 10.0 * i, 2.0 * i, 90.0 - i) for i, way in enumerate("abc", start=1)],
        columns=["pattern", "way", "seconds", "gib", "perplexity"],
    )
    picture = frontier(rows, {"seconds": "seconds", "gib": "GiB"}, "perplexity", "perplexity", "way")
    assert len(picture.figure.axes) == 2
    for ax, cost in zip(picture.figure.axes, ("seconds", "gib"), strict=True):
        drawn = [tuple(map(float, line.get_xydata()[0])) for line in ax.lines if len(line.get_xydata()) == 1]
        assert np.allclose(drawn, rows[[cost, "perplexity"]])
    assert "nothing beats" in picture.caption
    assert "a: 89" in picture.alt


def test_no_two_ways_of_a_frontier_look_alike():
    ways = ["ria", "ria, refit", "wanda, refit", "ria, swaps, refit", "ria, swaps", "mine", "mine, other"]
    rows = pd.DataFrame({"way": ways, "cost": range(1, 8), "perplexity": range(17, 10, -1), "pattern": "2:4"})
    picture = frontier(rows, {"cost": "cost"}, "perplexity", "perplexity", "way")
    looks = {
        (line.get_color(), line.get_marker(), line.get_fillstyle(), line.get_markerfacecolor())
        for line in picture.figure.axes[0].lines
        if line.get_label() in ways
    }
    assert len(looks) == len(ways)


def test_what_has_no_cost_is_left_out_of_its_frontier_alone():
    rows = pd.DataFrame(
        {"way": ["a", "b"], "seconds": [math.nan, 5.0], "gib": [1.0, 2.0], "perplexity": [80, 90]}
    )
    picture = frontier(
        rows.assign(pattern="2:4"), {"seconds": "seconds", "gib": "GiB"}, "perplexity", "perplexity", "way"
    )
    joined = [ax.lines[-1].get_xydata().tolist() for ax in picture.figure.axes]
    assert np.allclose(joined, [[[5.0, 90.0]], [[1.0, 80.0]]])


def test_seconds_are_the_least_of_the_machine_that_measured_most_recipes_of_a_pattern_then_most_draws(folder):
    store = Store(paths.records("test"))
    cases = [  # pattern, recipe, machine, seconds
        ("0.6", "a", "a GPU", 1.0),
        ("0.6", "a", "a GPU", 1.5),
        ("0.6", "a", "a CPU", 100.0),
        ("0.6", "b", "a GPU", 2.0),
        ("0.5", "a 0.5", "a CPU", 90.0),
        ("2:4", "a 2:4", "a GPU", 1.5),
        ("2:4", "a 2:4", "a GPU", 1.6),
        ("2:4", "a 2:4", "a CPU", 80.0),
        ("2:4", "b 2:4", "a CPU", 81.0),
        ("4:8", "a 4:8", "a CPU", 70.0),
        ("4:8", "b 4:8", "a CPU", 71.0),
        ("4:8", "a 4:8", "a GPU", 1.7),
        ("4:8", "a 4:8", "a GPU", 1.8),
        ("4:8", "b 4:8", "a GPU", 1.9),
    ]
    keys = [store.put(Record({"n": i}, {}, {"machine": of[2]})).key for i, of in enumerate(cases)]
    rows = pd.DataFrame(cases, columns=["pattern", "recipe_key", "machine", "seconds_prune"])
    rows = rows.assign(record=keys, model="m")
    found = seconds_of_one_machine(rows, "test")
    assert found.dropna().tolist() == [1.0, 2.0, 90.0, 80.0, 81.0, 1.7, 1.9]
    other = rows.assign(model="n", seconds_prune=10 * rows["seconds_prune"])
    of_two = seconds_of_one_machine(pd.concat([rows, other], ignore_index=True), "test")
    assert of_two.dropna().tolist() == [*found.dropna(), *10 * found.dropna()]
