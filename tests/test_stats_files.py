"""Sums in files come back to the bit, merge to the bits of one go however the windows are split, and say
nothing but sums.
"""

import itertools
import json
import random

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from test_cli import call, refused, small  # noqa: F401 (fixtures)

from symprune import Recipe, StatsAccumulator, Unstructured, UserError, Wanda, prune
from symprune.methods.recipe import NM
from symprune.methods.scores import RIA
from symprune.models.layers import named_linears
from symprune.models.load import load_model
from symprune.pruning import stats_files
from symprune.pruning.calibrate import accumulate, gather
from symprune.pruning.stats_files import Calibration, load, merge, remembered, save
from symprune.text.corpora import digest

USES = frozenset({"input_norm", "output_norm", "gram", "sketch8"})
ASKED = stats_files.asked("w", USES, dtype="float32", device="cpu", seq_len=12)
EXACT = ("input_norm", "input_mean", "input_var", "input_var_within", "output_norm", "sketch")
WANDA = Recipe(Wanda(), Unstructured(0.5))


def calibrated(windows: torch.Tensor, model=None) -> Calibration:
    sums = accumulate(tiny.model() if model is None else model, windows, USES)
    return Calibration(sums, ASKED, [{"windows": digest(windows), "n_windows": len(windows)}])


def same(first: dict, second: dict, fields=(*EXACT, "gram")) -> bool:
    assert first.keys() == second.keys()
    return all(
        torch.equal(getattr(first[name], field), getattr(second[name], field))
        for name in first
        for field in fields
        if getattr(first[name], field) is not None
    ) and all(
        (first[name].n_tokens, first[name].n_samples) == (second[name].n_tokens, second[name].n_samples)
        for name in first
    )


@pytest.fixture(scope="module")
def alone() -> list[Calibration]:
    """One calibration for each of 12 windows."""
    model, windows = tiny.model(), tiny.windows(12)
    return [calibrated(windows[i : i + 1], model) for i in range(12)]


@pytest.fixture(scope="module")
def whole():
    """Statistics of the same windows in one go."""
    return gather(tiny.model(), tiny.windows(12), USES)


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(12)), cuts=st.sets(st.integers(1, 11)), seed=st.integers(0, 99))
def test_any_split_in_any_order_merges_to_the_bits_of_one_go(alone, whole, order, cuts, seed):
    bounds = [0, *sorted(cuts), 12]
    parts = [merge([alone[i] for i in order[a:b]]) for a, b in itertools.pairwise(bounds)]
    random.Random(seed).shuffle(parts)
    found = merge(parts)
    assert same(found.statistics, whole, EXACT)
    # float64 sums of X^T X, shown in float32: one unit in the last place
    for name, stats in found.statistics.items():
        torch.testing.assert_close(stats.gram, whole[name].gram, rtol=2**-23, atol=1e-12)
        assert torch.equal(
            RIA()(torch.ones(3, len(stats.input_norm)), stats),
            RIA()(torch.ones(3, len(stats.input_norm)), whole[name]),
        )
    assert sum(part["n_windows"] for part in found.parts) == 12


@settings(max_examples=40, deadline=None)
@given(values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=40), seed=st.integers(0, 99))
def test_the_order_of_sums_does_not_show(values, seed):
    def total(numbers):
        accumulator = StatsAccumulator(1, 1)
        for number in numbers:
            accumulator.update(torch.tensor([[number]]))
        return accumulator.moments.sums.high

    shuffled = random.Random(seed).sample(values, len(values))
    assert torch.equal(total(values), total(shuffled))


def test_a_file_comes_back_to_the_bit_with_shared_gram_matrices_once(alone, tmp_path):
    save(tmp_path / "a.safetensors", alone[0])
    found = load(tmp_path / "a.safetensors")
    assert same(found.statistics, alone[0].statistics)
    assert (found.asked, found.parts) == (alone[0].asked, alone[0].parts)
    again = merge([found, alone[1]])
    assert same(again.statistics, merge([alone[0], alone[1]]).statistics)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        grams = [key for key in file.keys() if key.endswith(".gram")]  # noqa: SIM118
    assert len(grams) == 3 * 4  # qkv, o, gate and up, down
    assert found.sums.group_of == alone[0].sums.group_of
    layer = [group for name, group in found.sums.group_of.items() if ".layers.0." in name]
    assert layer[0] == layer[1] == layer[2]
    assert len(set(layer)) == 4


def test_a_file_holds_sums_and_no_token(tmp_path):
    windows = tiny.windows(5)
    save(tmp_path / "a.safetensors", calibrated(windows))
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        about = json.loads(file.metadata()["symprune_sums"])
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float64}  # noqa: SIM118
        shapes = {key: tuple(file.get_tensor(key).shape) for key in file.keys()}  # noqa: SIM118
    assert about.keys() == {"asked", "parts", "linears", "checksum"}
    assert about["parts"] == [{"windows": digest(windows), "n_windows": 5}]
    for key, shape in shapes.items():  # no dimension grows with windows or tokens
        d_out, d_in = named_linears(tiny.model())[key.rsplit(".", 1)[0]].weight.shape
        assert (
            shape
            == {"inputs": (2, 3, d_in), "gram": (d_in, d_in), "sketch": (2, d_in, 8), "outputs": (2, d_out)}[
                key.rsplit(".", 1)[1]
            ]
        )


@pytest.mark.parametrize("cut", [0, 7, 300, -9])
def test_a_damaged_file_is_refused(alone, tmp_path, cut):
    file = tmp_path / "a.safetensors"
    save(file, alone[0])
    content = file.read_bytes()
    file.write_bytes(content[:cut] if cut >= 0 else content[:cut] + b"123456789")
    with pytest.raises(UserError, match=r"a\.safetensors is damaged"):
        load(file)
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "b.safetensors")


def test_what_was_gathered_otherwise_or_twice_is_not_merged(alone):
    with pytest.raises(UserError, match="count twice"):
        merge([alone[0], merge([alone[0], alone[1]])])
    other = Calibration(alone[1].sums, {**ASKED, "dtype": "bfloat16"}, alone[1].parts)
    with pytest.raises(UserError, match="different dtype"):
        merge([alone[0], other])


def test_what_is_remembered_stays_within_its_bytes_and_the_last_used_stays(tmp_path, monkeypatch):
    sums = accumulate(tiny.model(), tiny.windows(1))
    size, gathered = None, []

    def ask(windows: str):
        return remembered(tmp_path, ASKED, windows, lambda: gathered.append(windows) or sums)

    assert same(ask("a"), sums.finish(), EXACT)
    (file,) = tmp_path.iterdir()
    size = file.stat().st_size
    monkeypatch.setattr(stats_files, "CACHE_BYTES", int(2.5 * size))
    ask("b")
    ask("a")  # used later than b
    ask("c")
    ask("a")
    assert gathered == ["a", "b", "c"]
    ask("b")
    assert gathered == ["a", "b", "c", "b"]
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 2.5 * size


def test_shards_are_gathered_merged_and_pruned_with_by_commands(capsys, tmp_path, small, checkpoint):  # noqa: F811
    options = [*small[1:6], "--seq-len", 32, "--n-calib", 5, "--json"]
    for i in (1, 2, 3):
        code, out, err = call(
            capsys, "calibrate", *options, "--shard", f"{i}/3", "--out", tmp_path / f"{i}.safetensors"
        )
        assert (code, err) == (0, ""), err
    assert json.loads(out)["windows"] == 1
    assert call(capsys, "calibrate", *options, "--out", tmp_path / "whole.safetensors")[0] == 0
    code, out, _ = call(
        capsys,
        "merge",
        tmp_path / "3.safetensors",
        tmp_path / "1.safetensors",
        "--out",
        tmp_path / "13.safetensors",
        "--json",
    )
    assert json.loads(out)["missing_shards"] == ["2/3"]
    call(
        capsys,
        "merge",
        tmp_path / "13.safetensors",
        tmp_path / "2.safetensors",
        "--out",
        tmp_path / "all.safetensors",
    )
    assert same(
        load(tmp_path / "all.safetensors").statistics, load(tmp_path / "whole.safetensors").statistics, EXACT
    )
    for name in ("all", "whole"):
        code, *_ = call(
            capsys,
            "prune",
            checkpoint,
            "--statistics",
            tmp_path / f"{name}.safetensors",
            "--pattern",
            "2:4",
            "--out",
            tmp_path / name,
        )
        assert code == 0
    code, _, err = call(
        capsys,
        *small[:6],
        "--seq-len",
        32,
        "--n-calib",
        5,
        "--propagate",
        "dense",
        "--pattern",
        "2:4",
        "--stream",
        "--out",
        tmp_path / "streamed",
    )
    assert code == 0
    assert "predicted" in err
    expected = load_model(str(checkpoint))
    prune(expected, load(tmp_path / "whole.safetensors").statistics, Recipe(RIA(), NM(2, 4)), "dense")
    for name in ("all", "whole", "streamed"):
        state = load_model(str(tmp_path / name)).state_dict()
        assert all(torch.equal(state[key], tensor) for key, tensor in expected.state_dict().items())


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["calibrate", "--shard", "0/2", "--out", "a"], ["--shard", "'0/2'"]),
        (["calibrate", "--shard", "2/9", "--n-calib", 3, "--out", "a"], ["2/9", "3 windows"]),
        (["calibrate", "--gather", "grams", "--out", "a"], ["'grams'", "gram"]),
        (["merge", "nowhere", "--out", "a"], ["nowhere", "does not exist"]),
        (["prune", "--statistics", "nowhere", "--out", "a"], ["nowhere", "does not exist"]),
        (["prune", "--memory", "6GiB", "--out", "a"], ["--stream"]),
        (["prune", "--stream", "--memory", "six", "--out", "a"], ["--memory", "'six'", "6GiB"]),
        (["prune", "--stream", "--memory", "6-GiB", "--out", "a"], ["--memory", "'6-GiB'"]),
        (["prune", "--stream", "--memory", "1MB", "--out", "a"], ["GiB", "--memory"]),
        (["prune", "--stream", "--masks", "a"], ["--stream", "--masks"]),
    ],
    ids=lambda value: " ".join(map(str, value[:3])),
)
def test_bad_commands_get_one_line(refused, small, argv, words):  # noqa: F811
    options = [] if argv[0] == "merge" else small[1:2] if "--statistics" in argv else small[1:6]
    line = refused(argv[0], *options, *argv[1:])
    assert all(word in line for word in words), line


@pytest.mark.parametrize("command", ["calibrate", "merge"])
def test_help_teaches(capsys, command):
    code, out, _ = call(capsys, command, "--help")
    assert code == 0
    assert f"example: symprune {command}" in out
    assert "--json" in out


def test_the_batch_size_auto_is_kept_as_the_number_it_came_to(checkpoint, corpus, tmp_path, capsys):
    options = [checkpoint, "--corpus", corpus, "--n-calib", 5, "--seq-len", 32, "--device", "auto"]
    for size in ("auto", "16"):
        code, _, err = call(
            capsys, "calibrate", *options, "--batch-size", size, "--out", tmp_path / f"{size}.safetensors"
        )
        assert code == 0, err
    auto, sixteen = (load(tmp_path / f"{size}.safetensors") for size in ("auto", "16"))
    assert auto.asked == sixteen.asked  # 512 tokens hold 16 windows of 32
    assert auto.asked["batch_size"] == 16
    assert auto.asked["device"] == "cpu"
    assert (tmp_path / "auto.safetensors").read_bytes() == (tmp_path / "16.safetensors").read_bytes()
