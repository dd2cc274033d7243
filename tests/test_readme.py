"""What the README says is what the last run made, and what it names exists."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_tables_are_those_of_the_last_run():
    blocks = re.findall(r"<!-- (table_\w+) -->\n(.*?)<!-- end -->", README, flags=re.S)
    assert blocks
    for name, shown in blocks:
        assert shown.strip() == (ROOT / "figures" / "cpu_full" / f"{name}.md").read_text().strip(), name


def test_draws_agree_where_a_published_comparison_is_decided():
    published = [
        v
        for file in (ROOT / "results/cpu_full/verdicts").glob("*.json")
        for v in json.loads(file.read_text())
    ]
    decided = [v for v in published if v["draws"] and (v["low"] > 0 or v["high"] < 0)]
    assert decided
    assert all((draw > 0) == (v["effect"] > 0) for v in decided for draw in v["draws"])


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
