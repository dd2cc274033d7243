"""Profiles, notebook pairs, and the runner with a real kernel."""

import ast
import contextlib
import json
import re
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml

from symprune import UserError
from symprune.base import paths, progress
from symprune.base.records import Record, read_lines, write_lines
from symprune.cli import main
from symprune.paper import notebooks, reproduce
from symprune.paper.notebooks import notebook_names, parameters_of, resolve_notebooks
from symprune.paper.profiles import load_profile
from symprune.paper.reproduce import compare_with_published

PROFILES = sorted(file.stem for file in paths.PARAMS.glob("*.yaml"))
NOTEBOOKS = notebook_names()

HEADER = """# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

"""


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A project of one notebook and one profile."""
    for name, folder in {
        "ROOT": tmp_path,
        "NOTEBOOKS": tmp_path / "notebooks",
        "PARAMS": tmp_path / "papermill_params",
    }.items():
        folder.mkdir(exist_ok=True)
        monkeypatch.setattr(paths, name, folder)
    profile(tmp_path, "smoke", profile="smoke", number=1)
    profile(tmp_path, "full", profile="full", number=41)
    notebook(tmp_path, "00_first", "print(profile, number + 1)")
    return tmp_path


def profile(root: Path, name: str, **values) -> None:
    (root / f"papermill_params/{name}.yaml").write_text(yaml.safe_dump(values))


def notebook(root: Path, name: str, code: str, parameters: str = 'profile = "smoke"\nnumber = 1') -> None:
    (root / f"notebooks/{name}.py").write_text(
        f'{HEADER}# %% tags=["parameters"]\n{parameters}\n\n# %%\n{code}\n'
    )


def output(file: Path) -> str:
    """What the cells of an executed notebook printed."""
    return "".join(
        out.get("text", "") for cell in nbformat.read(file, 4).cells for out in cell.get("outputs", [])
    )


# Profiles.


def test_the_profiles_that_the_readme_promises_are_there():
    assert {"cpu", "gpu", "smoke"} <= set(PROFILES)


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_has_the_same_keys_and_says_its_name(name):
    values = load_profile(name)
    assert values.keys() == load_profile("smoke").keys()
    assert values["profile"] == name
    assert values == yaml.safe_load((paths.PARAMS / f"{name}.yaml").read_text())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"profile": "full", "numbr": 1, "number": 1},
            r"unknown key in papermill_params/full.yaml 'numbr': did you mean number",
        ),
        ({"profile": "full"}, "full.yaml lacks number"),
        ({"profile": "smoke", "number": 1}, "says profile: smoke: it must say full"),
    ],
)
def test_a_profile_with_other_keys_is_refused_before_anything_runs(project, values, words):
    profile(project, "full", **values)
    with pytest.raises(UserError, match=words):
        reproduce.reproduce([], "full", show=False)
    assert not (project / "results").exists()


@pytest.mark.parametrize("text", ["", "- a\n- b", "{", "a: b: c", "\x00"])
def test_a_profile_that_is_no_yaml_mapping_is_named(project, text):
    (project / "papermill_params/full.yaml").write_text(text)
    with pytest.raises(UserError, match=r"full.yaml (is not readable YAML|must hold key: value lines)"):
        load_profile("full")


def test_an_unknown_profile_is_named_with_those_there_are(project):
    with pytest.raises(UserError, match="unknown profile 'ful': did you mean full"):
        load_profile("ful")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n_calb": 1}, "unknown key of a profile 'n_calb': did you mean n_calib"),
        ({"n_calib": "many"}, "n_calib takes a whole number of at least 1, not 'many'"),
        ({"n_calib": True}, "n_calib takes a whole number of at least 1, not True"),
        ({"n_eval": 1.5}, "n_eval takes a whole number of at least 1 or null, not 1.5"),
        ({"models": "embedded"}, "models takes a list of texts, not 'embedded'"),
        ({"seeds": [0, "a"]}, r"seeds takes a list of whole numbers, not \[0, 'a'\]"),
        ({"p_values": 2}, "p_values takes a list of numbers, not 2"),
        ({"gammas": ["a"]}, "gammas takes a list of numbers, not"),
        ({"notebooks": 1}, "notebooks takes text or a list of texts, not 1"),
        ({"profile": "cpu"}, "profile 'cpu' is no name for other settings"),
        ({"profile": "../up"}, "is no name for other settings"),
    ],
)
def test_a_setting_that_the_profile_could_not_have_is_named_with_what_it_takes(settings, words):
    with pytest.raises(UserError, match=words):
        load_profile("smoke", settings)


def test_settings_stand_in_place_of_the_profiles_values_under_a_name_of_their_own():
    settings = {"n_eval": None, "p_values": [1, float("inf")], "models": ["a/b"]}
    assert load_profile("cpu", settings) == load_profile("cpu") | settings | {"profile": "cpu_set"}
    assert load_profile("cpu", {"profile": "trial"}) == load_profile("cpu") | {"profile": "trial"}


def test_what_a_command_sets_reaches_the_notebook_and_leaves_the_profile_alone(project, capsys):
    notebook(project, "00_first", "print(profile, number)")
    assert main(["reproduce", "--profile", "full", "--set", "number=7", "--json"]) == 0
    assert output(project / "results/full_set/00_first.ipynb") == "full_set 7\n"
    assert not (project / "results/full").exists()
    for wrong, words in {
        "number": "must be KEY=VALUE",
        "number=[": "must be KEY=VALUE",
        "number=a": "takes",
    }.items():
        with contextlib.suppress(SystemExit):
            assert main(["reproduce", "--profile", "full", "--set", wrong]) == 2
        assert words in capsys.readouterr().err


# Notebooks and their parameters.


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_parameters_of_a_notebook_are_the_values_of_the_smoke_profile(name):
    parameters, smoke = parameters_of(name), load_profile("smoke")
    assert parameters == {key: smoke[key] for key in parameters}
    assert "profile" in parameters


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_narrates_and_the_library_computes(name):
    for cell in jupytext.read(paths.NOTEBOOKS / f"{name}.py").cells:
        if cell.cell_type == "code":
            assert not re.search(r"^\s*[!%]", cell.source, re.M), "shell lines and magics"
            nodes = list(ast.walk(ast.parse(cell.source)))
            assert not any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in nodes)
            modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
            assert not modules & {"matplotlib.pyplot", "os", "pathlib", "subprocess"}


@pytest.mark.parametrize(
    "parameters",
    [
        "number = 1 + x",
        "number = len('a')",
        "a, b = 1, 2",
        "number: int = 0",
        "import os",
        "number = (",
        "a = b = 1",
        "number += 1",
    ],
)
def test_a_parameters_cell_holds_assignments_of_literals_only(project, parameters):
    notebook(project, "00_first", "", parameters)
    with pytest.raises(UserError, match="assignments of literals only"):
        parameters_of("00_first")


def test_a_notebook_needs_one_parameters_cell(project):
    (project / "notebooks/00_first.py").write_text(HEADER + "# %%\n1\n")
    with pytest.raises(UserError, match="exactly one cell tagged parameters, it has 0"):
        reproduce.reproduce([], "smoke", show=False)


def test_a_parameter_that_no_profile_has_stops_everything_before_it_starts(project):
    notebook(project, "01_second", "", "numbr = 1")
    with pytest.raises(
        UserError, match="unknown parameter in notebook 01_second 'numbr': did you mean number"
    ):
        reproduce.reproduce([], "smoke", show=False)
    assert not (project / "results").exists()


def test_notebooks_are_found_by_name_or_number_each_once(project):
    notebook(project, "02_third", "")
    assert resolve_notebooks([]) == ["00_first", "02_third"]
    assert resolve_notebooks(["02", "02_third"]) == resolve_notebooks(["2"]) == ["02_third"]
    assert resolve_notebooks(["0"]) == ["00_first"]
    with pytest.raises(UserError, match="unknown notebook ''"):
        resolve_notebooks([""])
    with pytest.raises(UserError, match="unknown notebook 'third': did you mean 02_third"):
        resolve_notebooks(["00", "third"])


def test_a_profile_runs_the_notebooks_it_lists_and_others_only_if_named(project):
    for name in ("smoke", "full"):
        profile(project, name, profile=name, number=1, notebooks=["00_first"])
    notebook(project, "01_second", "print(number)")
    reproduce.reproduce([], "full", show=False)
    assert [file.name for file in (project / "results/full").glob("*.ipynb")] == ["00_first.ipynb"]
    reproduce.reproduce(["01"], "full", show=False)
    assert (project / "results/full/01_second.ipynb").exists()
    profile(project, "full", profile="full", number=1, notebooks=["11_none"])
    with pytest.raises(UserError, match="unknown notebook '11_none'"):
        reproduce.reproduce([], "full", show=False)


def test_every_notebook_is_checked():
    make = (paths.ROOT / "Makefile").read_text()
    assert re.search(r"\$\(NBVAL\) notebooks/\*\.ipynb", make)


# Pairs.


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_source_and_its_rendered_pair_hold_the_same_cells(name):
    def cells(suffix: str) -> list:
        read = jupytext.read(paths.NOTEBOOKS / f"{name}{suffix}")
        return [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in read.cells]

    assert cells(".ipynb") == cells(".py")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_rendered_notebook_was_executed_without_errors_and_tells_nothing_of_where(name):
    rendered = nbformat.read(paths.NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbformat.validate(rendered)
    code = [cell for cell in rendered.cells if cell.cell_type == "code" and cell.source.strip()]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [out for cell in code for out in cell.outputs]
    assert outputs
    assert not any(out.output_type == "error" or out.get("name") == "stderr" for out in outputs)
    assert rendered.metadata.keys() == {"kernelspec", "language_info"}
    assert rendered.metadata.kernelspec.name == "python3"
    assert all(cell.metadata.keys() <= {"tags"} for cell in rendered.cells)
    text = json.dumps([out for out in outputs if "image/png" not in out.get("data", {})])
    assert str(Path.home()) not in text
    assert str(paths.ROOT) not in text


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_source_is_in_jupytexts_normal_form(name):
    file = paths.NOTEBOOKS / f"{name}.py"

    def body(text: str) -> str:
        return text.split("# ---\n", 2)[2]

    assert body(jupytext.writes(jupytext.read(file), fmt="py:percent")) == body(file.read_text())
    assert "name: python3" in file.read_text().split("# ---\n", 2)[1]


# The runner.


def test_a_notebook_runs_under_a_profile_with_a_real_kernel_and_ends_in_a_report(
    project, capsys, monkeypatch
):
    notebook(
        project, "00_first", "import os\nprint(profile, number + 1, os.getcwd(), os.environ['SYMPRUNE_DATA'])"
    )
    monkeypatch.setenv("SYMPRUNE_DATA", "data")  # relative to this process, whose folder is not the kernel's
    monkeypatch.chdir(project)
    assert main(["reproduce", "--profile", "full", "--json"]) == 0
    report = Path(json.loads(capsys.readouterr().out)["report"])
    executed = project / "results/full/00_first.ipynb"
    assert output(executed) == f"full 42 {project / 'notebooks'} {project / 'data'}\n"
    assert report == project / "results/full/report.html"
    assert "Profile <b>full</b>" in report.read_text()
    read = nbformat.read(executed, 4)
    nbformat.validate(read)
    assert [cell.metadata.get("tags", []) for cell in read.cells] == [
        ["parameters"],
        ["injected-parameters"],
        [],
    ]
    assert read.metadata.keys() == {"kernelspec", "language_info"}
    assert sorted(path.name for path in (project / "results/full").iterdir()) == [
        "00_first.ipynb",
        "claims.md",
        "findings.md",
        "records.jsonl",
        "report.html",
        "stamps",
    ]

    # Now it fails: the last good run stays, and the cell is named.
    before = executed.read_bytes()
    notebook(project, "00_first", "print('so far')\nraise ArithmeticError('first line\\nsecond line')")
    assert main(["reproduce", "--profile", "full", "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    failed = project / "results/full/00_first.failed.ipynb"
    assert (
        f"notebook 00_first failed in cell 2 with ArithmeticError: first line; see {failed}" in captured.err
    )
    assert "Traceback" not in captured.err
    assert executed.read_bytes() == before
    assert "so far" in output(failed)

    # And a message for the user inside a notebook reaches the user.
    notebook(project, "00_first", "from symprune import UserError\nraise UserError('choose another')")
    assert main(["reproduce", "--profile", "full", "--json"]) == 2
    assert "symprune: error: notebook 00_first: choose another\n" in capsys.readouterr().err
    assert executed.read_bytes() == before


def test_a_notebook_whose_kernel_dies_is_named(project, capsys):
    notebook(project, "00_first", "import os\nos._exit(9)")
    assert main(["reproduce", "--profile", "smoke", "--json"]) == 1
    err = capsys.readouterr().err
    assert "notebook 00_first failed: Kernel died" in err
    assert "Traceback" not in err
    assert not (project / "results/smoke/00_first.ipynb").exists()


def test_rendering_is_the_same_bytes_each_time_and_a_failure_keeps_the_former(project, capsys):
    notebook(project, "01_second", "import os\nprint(sorted(os.listdir(os.environ['SYMPRUNE_OUTPUT'])))")
    notebook(
        project,
        "00_first",
        "import os, pathlib\nprint(pathlib.Path(os.environ['SYMPRUNE_OUTPUT'], 'left').write_text('x'))",
    )
    pairs = notebooks.render()
    first = {pair.name: pair.read_bytes() for pair in pairs}
    assert first.keys() == {"00_first.ipynb", "01_second.ipynb"}
    assert output(pairs[1]) == "['left']\n"  # a report finds what the notebooks before it wrote
    assert not (project / "results").exists()
    notebooks.render(["00"])
    notebook(project, "01_second", "raise ArithmeticError('no')")
    assert main(["render", "01"]) == 1
    assert "notebook 01_second failed with ArithmeticError: no" in capsys.readouterr().err
    assert {pair.name: pair.read_bytes() for pair in pairs} == first


def test_the_bar_follows_the_progress_file_and_survives_a_line_half_written(capfd):
    import time

    with progress.following("[1/1] 00_first", show=True) as file, open(file, "a") as f:
        f.write('{"label": "tiny dense, seed 0", "done": 0, "total": 4}\n{"label": "tiny wanda, seed 0", "do')
        f.flush()
        time.sleep(0.8)
        f.write('ne": 3, "total": 4}\n')
        f.flush()
        time.sleep(0.8)
    err = capfd.readouterr().err
    assert "[1/1] 00_first 0/4: tiny dense, seed 0\n" in err  # not a terminal: a line for each recipe
    assert "[1/1] 00_first 3/4: tiny wanda, seed 0\n" in err
    assert "Traceback" not in err
    assert "Exception" not in err


def test_published_records_are_compared_by_question_and_read_back_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("SYMPRUNE_OUTPUT", str(tmp_path))
    folder = tmp_path / "results" / "cpu"
    folder.mkdir(parents=True)
    theirs = [Record({"asked": i}, {"perplexity": 10.0 + i}, {}) for i in range(3)]
    write_lines(folder / "records.jsonl", theirs)
    assert read_lines(folder / "records.jsonl") == {record.key: record for record in theirs}
    ours = [
        Record({"asked": 1}, {"perplexity": 11.0 * 1.02}, {}),
        Record({"asked": 9}, {"perplexity": 1.0}, {}),
    ]
    assert "1 perplexities" in compare_with_published({r.key: r for r in ours}, "cpu")
    assert "2.00%" in compare_with_published({r.key: r for r in ours}, "cpu")
    assert "no perplexity" in compare_with_published({ours[1].key: ours[1]}, "cpu")


def test_what_would_only_be_done_again_is_passed_over(project):
    counter = project / "runs"
    counter.write_text("")
    code = f"with open({str(counter)!r}, 'a') as f: f.write(profile)"
    notebook(project, "00_first", code)
    notebook(project, "01_second", "print(number)")

    def runs_after(*wish: str) -> int:
        assert main(["reproduce", "--profile", "smoke", "--json", *wish]) == 0
        return len(counter.read_text()) // len("smoke")

    assert [runs_after(), runs_after()] == [1, 1]
    assert runs_after("--again") == 2
    (project / "results/smoke/00_first.ipynb").unlink()  # its result is gone
    assert [runs_after(), runs_after()] == [3, 3]
    notebook(project, "00_first", code + "  # edited")
    assert [runs_after(), runs_after()] == [4, 4]
    profile(project, "smoke", profile="smoke", number=2)
    assert [runs_after(), runs_after()] == [5, 5]
    assert output(project / "results/smoke/01_second.ipynb") == "2\n"  # and what follows it ran too
