"""Whatever is typed or found in a file: exit code 2, one line on stderr, nothing else printed or written."""

import re
import shutil
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_cli import contents

from symprune.cli import main
from symprune.models.folder import MASKS

GENERATED = settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


@pytest.fixture(scope="module")
def pruned(checkpoint, tmp_path_factory):
    """A pruned model's folder, made once."""
    out = tmp_path_factory.mktemp("pruned") / "p"
    assert main(["prune", str(checkpoint), "--score", "magnitude", "--out", str(out)]) == 0
    return out


@pytest.fixture
def refused(capfd, tmp_path, monkeypatch, pruned):
    """Runs a command that must be refused and leave former work as it was; returns the line it printed."""
    work = tmp_path / "work"
    if not work.exists():
        (work / "former").mkdir(parents=True)
        (work / "former" / "model.safetensors").write_bytes(b"years of work")
    monkeypatch.chdir(work)

    def run(*argv: object) -> str:
        before = contents(work)
        capfd.readouterr()
        try:
            code = main([str(word) for word in argv])
        except SystemExit as end:
            code = end.code
        out, err = capfd.readouterr()
        assert (code, out) == (2, ""), (argv, code, out, err)
        assert re.fullmatch(r"symprune: error: [^\n]+\n", err), (argv, err)
        assert "Traceback" not in err
        assert contents(work) == before, argv
        return err

    return run


# Generated.

words = st.text(string.ascii_letters + string.digits + "_=(),.:'\"[]{}- /\\*éλ\u2028\n\0", max_size=20)
known_scores = {
    "magnitude",
    "wanda",
    "owanda",
    "symwanda",
    "symmetric",
    "ri",
    "ria",
    "lp_norm",
    "stochria",
    "general_diagonal",
}


@given(
    words.filter(lambda text: text.partition("(")[0].strip() not in known_scores and not text.startswith("-"))
)
@GENERATED
def test_a_score_that_is_none(refused, text):
    refused("prune", "embedded", "--out", "new", "--score", text)


@given(
    words.filter(
        lambda text: (
            text.strip() not in ("none", "dsnot", "r2dsnot") and not text.startswith("-") and "(" not in text
        )
    )
)
@GENERATED
def test_a_refinement_that_is_none(refused, text):
    if text.strip() not in ("exact_swap", "exactswap"):
        refused("prune", "embedded", "--out", "new", "--refine", text)


@given(st.integers(-10, 100), st.integers(-10, 100), st.sampled_from([":", "-", "::", " of ", ""]))
@GENERATED
def test_a_pattern_that_is_none(refused, n, m, between):
    if not (between == ":" and 0 < n <= m):
        refused("prune", "embedded", "--out", "new", f"--pattern={n}{between}{m}")


@given(st.floats().filter(lambda x: not 0 <= x < 1) | words.filter(lambda text: not re.search(r"\d", text)))
@GENERATED
def test_a_sparsity_that_is_none(refused, value):
    refused("prune", "embedded", "--out", "new", f"--sparsity={value}")


@given(
    st.sampled_from(["--n-calib", "--seq-len", "--batch-size"]),
    st.integers(max_value=0) | st.floats() | words.filter(lambda t: not t.isdecimal()),
)
@GENERATED
def test_a_number_that_is_none(refused, option, value):
    refused("prune", "embedded", "--out", "new", f"{option}={value}")


@given(st.sampled_from(["prune", "eval", "apply", "verify", "diff", "reproduce", "render", "doctor"]), words)
@GENERATED
def test_an_option_that_is_none(refused, command, text):
    refused(command, f"--no-such-option-{text}")


@given(st.binary(max_size=200))
@GENERATED
def test_a_mask_file_of_any_bytes(refused, tmp_path, content):
    file = tmp_path / "junk"
    file.write_bytes(content)
    refused("verify", file)
    refused("diff", file, file)


@given(st.data())
@GENERATED
def test_a_damaged_mask_file(refused, tmp_path, pruned, data):
    content = bytearray((pruned / MASKS).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if chr(content[place]).isspace():
        return  # of a header's padding
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    file = tmp_path / "damaged"
    file.write_bytes(content)
    refused("verify", file)


@given(st.data())
@settings(GENERATED, max_examples=20)
def test_a_truncated_mask_file(refused, tmp_path, checkpoint, pruned, data):
    content = (pruned / MASKS).read_bytes()
    file = tmp_path / "cut"
    file.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    refused("apply", checkpoint, file, "--out", "new")


# By hand.


@pytest.mark.parametrize(
    "command", [["apply", "MODEL", "MASKS", "--out", "former"], ["prune", "MODEL", "--out", "former"]]
)
def test_former_output_is_left_untouched(refused, checkpoint, pruned, command):
    line = refused(*[{"MODEL": checkpoint, "MASKS": pruned}.get(word, word) for word in command])
    assert "former exists already" in line


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["prune", "MODEL"], ["nothing to write", "--out", "--masks"]),
        (["prune", "MODEL", "--masks", "former"], ["former exists already: choose another --masks"]),
        (["prune", "MODEL", "--masks", "former/model.safetensors/m"], ["cannot make folders"]),
        (
            ["prune", "MODEL", "--score", "magnitude", "--out", "new", "--work", "former"],
            ["holds something else than a pruning run"],
        ),
        (
            ["prune", "MODEL", "--score", "magnitude", "--out", "new", "--work", "former/model.safetensors"],
            ["is no folder"],
        ),
        (
            ["prune", "MODEL", "--score", "magnitude", "--out", "new", "--layers-path", "model.blocks"],
            ["model.blocks", "model.layers"],
        ),
        (["apply", "MODEL"], ["MASKS"]),
        (["apply", "MODEL", "PRUNED"], ["--out"]),
        (["apply", "MODEL", "nowhere", "--out", "new"], ["nowhere does not exist"]),
        (["apply", "MODEL", "former", "--out", "new"], ["does not exist: give a mask file"]),
        (["apply", "nowhere", "PRUNED", "--out", "new"], ["unknown model 'nowhere'"]),
        (["apply", "MODEL", "PRUNED", "--out", "new", "--dtype", "int4"], ["unknown dtype 'int4'"]),
        (
            ["apply", "MODEL", "PRUNED", "--out", "new", "--dtype", "bfloat16"],
            ["are not those that were pruned", "--other-weights"],
        ),
        (["apply", "MODEL", "PRUNED", "--out", "new", "--device", "cuda:99"], ["cuda:99"]),
        (["apply", "MODEL", "PRUNED", "--out", "former/model.safetensors/new"], ["cannot make folders"]),
        (["verify"], ["MASKS"]),
        (["verify", "MODEL"], ["does not exist"]),
        (["verify", "PRUNED", "--model", "nowhere"], ["unknown model 'nowhere'"]),
        (["verify", "former/model.safetensors"], ["damaged, or no mask file"]),
        (["verify", "MODEL/model.safetensors"], ["damaged, or no mask file"]),
        (["verify", "MODEL/config.json"], ["damaged, or no mask file"]),
        (["verify", ""], ["does not exist"]),
        (["verify", "/dev/null"], ["cannot read /dev/null"]),
        (["verify", "x" * 5000], ["x"]),
        (["diff", "PRUNED"], ["B"]),
        (["diff", "PRUNED", "nowhere"], ["nowhere does not exist"]),
        (["diff", "PRUNED", "MODEL"], ["does not exist"]),
        (["eval", "x" * 5000], ["x"]),
        (["prune", "MODEL", "--score", "magnitude", "--out", "x" * 5000], ["File name too long"]),
        (["prune", "MODEL", "--score", "magnitude", "--masks", "x" * 5000], ["File name too long"]),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_by_hand(refused, checkpoint, pruned, argv, words):
    places = {"MODEL": str(checkpoint), "PRUNED": str(pruned)}
    line = refused(*[re.sub("MODEL|PRUNED", lambda found: places[found[0]], word) for word in argv])
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    "change", ["kept weight", "removed weight", "tensor missing", "masks missing", "masks of another"]
)
def test_a_pruned_model_that_is_not_what_it_was(refused, pruned, tmp_path, change):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(pruned, folder)
    tensors = load_file(folder / "model.safetensors")
    weight = tensors["model.layers.1.mlp.up_proj.weight"]
    if change == "kept weight":
        weight[weight != 0] *= 1.0001
    elif change == "removed weight":
        weight[weight == 0] = 1e-9
    elif change == "tensor missing":
        del tensors["model.layers.1.mlp.up_proj.weight"]
    elif change == "masks missing":
        (folder / MASKS).unlink()
    else:
        (folder / MASKS).write_bytes((folder / "model.safetensors").read_bytes())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    line = refused("verify", folder)
    expected = {
        "kept weight": "keeps are not those that were pruned",
        "removed weight": "model.layers.1.mlp.up_proj holds weights that its mask removes",
        "tensor missing": "incomplete",
        "masks missing": "does not exist",
        "masks of another": "no mask file",
    }
    assert expected[change] in line


# What must work, so that the refusals mean something.


def test_what_is_right_is_not_refused(capsys, checkpoint, pruned, tmp_path):
    model, masks, out = str(checkpoint), tmp_path / "new" / "m.safetensors", tmp_path / "again"
    for argv in (
        ["verify", pruned],
        ["verify", pruned / MASKS, "--model", model],
        [
            "prune",
            model,
            "--score",
            "magnitude",
            "--masks",
            masks,
            "--work",
            tmp_path / "work",
            "--layers-path",
            "model.layers",
        ],
        ["diff", pruned, masks],
        ["diff", pruned, masks, "--json"],
        ["apply", model, masks, "--out", out],
        ["verify", out, "--json"],
        ["apply", model, masks, "--out", tmp_path / "half", "--dtype", "bfloat16", "--other-weights"],
    ):
        assert main([str(word) for word in argv]) == 0, capsys.readouterr().err
    assert (out / "model.safetensors").read_bytes() == (pruned / "model.safetensors").read_bytes()
    assert "14 of 14 linears had other weights" in capsys.readouterr().out
