"""The copy of the notebooks that Jupyter Lab opens."""

import subprocess

import pytest

from symprune.base import paths
from symprune.base.errors import UserError
from symprune.paper import lab

HEADER = "# ---\n# jupyter:\n#   jupytext_version: {}\n# ---\n"


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (folder / "jupytext.toml").write_text("")
    for name in ("00_first", "01_second"):
        (folder / f"{name}.py").write_text(HEADER.format(1) + f"\n# %%\nprint('{name}')\n")
        (folder / f"{name}.ipynb").write_text("{}")
    monkeypatch.setattr(paths, "NOTEBOOKS", folder)
    return folder


def test_what_was_changed_in_the_copy_stays_and_the_rest_follows_the_project(project, tmp_path):
    copy = tmp_path / "lab"
    assert lab.copy_notebooks(copy) == []
    assert {f.name: f.read_bytes() for f in copy.iterdir() if f.suffix != ".json"} == {
        f.name: f.read_bytes() for f in project.iterdir()
    }
    source, pair = copy / "00_first.py", copy / "00_first.ipynb"
    assert source.stat().st_mtime_ns >= pair.stat().st_mtime_ns  # jupytext refuses it the other way round
    mine = HEADER.format(1) + "\n# %%\nprint('mine')\n"
    source.write_text(mine)
    assert lab.copy_notebooks(copy) == []  # nothing newer to be had
    for name in ("00_first", "01_second"):
        (project / f"{name}.py").write_text("newer")
    assert lab.copy_notebooks(copy) == ["00_first"]
    assert source.read_text() == mine
    assert (copy / "01_second.py").read_text() == "newer"
    source.unlink()
    assert lab.copy_notebooks(copy) == []
    assert source.read_text() == "newer"


def test_cells_are_kept_under_the_projects_own_header(project, tmp_path):
    copy = tmp_path / "lab"
    lab.copy_notebooks(copy)
    cells = "\n# %%\nn = 16\n# ---\nprint(n)\n"
    (copy / "00_first.py").write_text(HEADER.format("of Lab") + cells)
    assert lab.keep(["00"], copy) == [project / "00_first.py"]
    assert (project / "00_first.py").read_text() == HEADER.format(1) + cells
    assert "01_second" in (project / "01_second.py").read_text()
    with pytest.raises(UserError):
        lab.keep(["07"], copy)


def test_git_ignores_the_copy_where_make_lab_opens_it():
    assert lab.FOLDER == paths.ROOT / "lab"
    make = (paths.ROOT / "Makefile").read_text()
    assert "symprune.paper.lab\n\tSYMPRUNE_OUTPUT=lab $(BIN)/jupyter lab --notebook-dir=lab\n" in make
    ignored = subprocess.run(["git", "check-ignore", "-q", "lab/00_quickstart.py"], cwd=paths.ROOT)
    assert ignored.returncode in (0, 128)  # 128: not in a repository
