"""Figures of others stand beside ours with their source, and are never mixed with them."""

import pandas as pd

from symprune import SCORES
from symprune.paper.reported import agreement_in_sign, beside_reported, reported_figures
from symprune.paper.verdicts import Verdict

LLAMA2, LLAMA3 = "meta-llama/Llama-2-7b-hf", "meta-llama/Meta-Llama-3-8B"


def ours(model: str, method: str, pattern: str, perplexity: float, refine: str = "none") -> dict:
    return {"model": model, "method": method, "pattern": pattern, "refine": refine, "perplexity": perplexity}


def test_every_figure_has_a_source_and_is_there_once_for_it():
    figures = reported_figures()
    assert not figures[["model", "pattern", "method", "reported", "source"]].isna().any().any()
    assert not figures.duplicated(["model", "pattern", "method", "source"]).any()
    assert set(figures["method"]) <= {*SCORES, "dense", "sparsegpt", "dsnot", "alps"}
    assert set(figures["pattern"]) == {"dense", "0.5", "0.6", "0.7", "0.8", "2:4", "4:8"}
    five = figures[figures["deviation"].notna() & (figures["pattern"] == "0.6")].set_index(
        ["model", "method"]
    )
    assert five.loc[(LLAMA2, "dsnot"), ["reported", "deviation"]].tolist() == [11.47, 0.09]
    wanda = figures[(figures["model"] == LLAMA2) & (figures["method"] == "wanda")]
    wanda = wanda[wanda["source"] == "README of Wanda"].set_index("pattern")
    assert wanda["reported"].to_dict() == {"0.5": 6.42, "4:8": 7.97, "2:4": 11.02}
    assert set(wanda["seq_len"]) == {4096}


def test_ours_stand_beside_the_reported_ones_of_the_same_model_pattern_and_method():
    rows = pd.DataFrame(
        [
            ours(LLAMA2, "dense", "dense", 5.4738, "dense"),
            ours(LLAMA2, "wanda", "0.5 per output", 6.9),
            ours(LLAMA2, "wanda", "0.5 per output", 7.1),
            ours(LLAMA2, "wanda", "0.5 per output", 99.0, "dsnot"),
            ours(LLAMA2, "wanda", "0.5 per layer", 98.0),
            ours(LLAMA2, "wanda", "0.6 per output", 97.0),
        ]
    )
    table = beside_reported(rows, seq_len=2048)
    assert len(table) == len(reported_figures())
    assert (table["ours"] != "not run here").sum() == 4  # two sources have wanda at 50 %
    table = table[table["source"] == "README of Wanda"]
    cells = table[table["model"] == LLAMA2].set_index(["pattern", "method"])
    assert cells.loc[
        ("dense", "dense"), ["ours", "our seq_len", "reported", "reported seq_len"]
    ].tolist() == ["5.474", 2048, 5.12, 4096]
    assert cells.loc[("0.5", "wanda"), ["ours", "reported", "source"]].tolist() == [
        "7.000",
        6.42,
        "README of Wanda",
    ]


def test_models_that_were_not_run_say_so():
    table = beside_reported(pd.DataFrame([ours("embedded", "dense", "dense", 19.2, "dense")]), seq_len=512)
    assert set(table["ours"]) == {"not run here"}
    assert table["our seq_len"].isna().all()


def test_two_sources_of_one_figure_are_two_rows():
    table = beside_reported(pd.DataFrame([ours(LLAMA3, "ria", "2:4", 23.0)]), seq_len=2048)
    both = table[(table["pattern"] == "2:4") & (table["method"] == "ria")]
    assert sorted(both["reported"]) == [22.89, 23.08]
    assert both["source"].nunique() == 2
    assert set(both["ours"]) == {"23.00"}


def test_every_verdict_stands_beside_the_same_pair_on_large_models():
    verdicts = [
        Verdict("wanda_below", "embedded, 0.6 per output", "", "reproduced", -0.9),
        Verdict("dsnot_below", "embedded, 0.6 per output, from wanda", "", "not reproduced", 0.6),
        Verdict("dsnot_below", "embedded, 2:4, from wanda", "", "undecided", 0.01),
        Verdict("dsnot_below", "embedded, 0.65 per output, from wanda", "", "reproduced", -0.1),
        Verdict("other", "embedded, 0.6 per output", "", "reproduced", -0.9),
        Verdict("wanda_below", "embedded, 0.5 per output", "", "not run here"),
    ]
    pairs = {"wanda_below": ("wanda", "magnitude"), "dsnot_below": ("dsnot", "wanda")}
    table = agreement_in_sign(verdicts, pairs)
    assert set(table["pair"]) == {"wanda / magnitude", "dsnot / wanda"}
    assert not table["model"].str.contains("opt").any()
    assert set(table["pattern"]) == {"0.6", "2:4"}
    dsnot = table[table["pair"] == "dsnot / wanda"].set_index(["pattern", "model"])
    assert dsnot.loc[("0.6", LLAMA2), ["ours", "reported", "agrees"]].tolist() == ["+60.0%", "+6.0%", "yes"]
    assert dsnot.loc[("0.6", LLAMA3), ["reported", "agrees"]].tolist() == ["-2.1%", "no"]
    assert set(dsnot.loc["2:4", "agrees"]) == {"undecided"}
    assert set(table[table["pair"] == "wanda / magnitude"]["agrees"]) == {"yes"}
