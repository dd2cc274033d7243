"""The package as people install it: a wheel, in an environment and a folder without the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from symprune.base import paths


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The `symprune` command of a fresh environment: the wheel, with the dependencies of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    source, environment = folder / "source", folder / "environment"
    shutil.copytree(
        paths.ROOT / "symprune", source / "symprune", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(paths.ROOT / name, source)
    alone = ["--no-deps", "--quiet", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", *alone, "--no-build-isolation", "-w", folder, source], check=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(environment, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    subprocess.run([*pip, "--python", environment / "bin/python", "install", *alone, wheel], check=True)
    # As a path alone, the .pth files there are not read: an editable install in this environment stays
    # unknown.
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return environment / "bin/symprune"


@pytest.fixture
def run(installed, tmp_path):
    def command(*args: str) -> subprocess.CompletedProcess:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("SYMPRUNE_", "PYTHON"))
        }
        return subprocess.run(
            [installed, *args], cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    return command


def test_the_embedded_model_is_pruned_evaluated_and_verified_from_another_folder(run, tmp_path):
    size = ["--seq-len", "32", "--n-calib", "1"]
    for args in (
        ["prune", "embedded", "--score", "wanda", "--pattern", "2:4", *size, "--out", "pruned"],
        ["eval", "pruned", "--seq-len", "32", "--n-eval", "2"],
        ["verify", "pruned", "--model", "embedded"],
    ):
        done = run(*args)
        assert done.returncode == 0, done.stderr
    assert "50.00%" in run("verify", "pruned").stdout
    assert (tmp_path / "pruned/masks.safetensors").is_file()


def test_every_module_and_data_file_is_in_the_wheel(installed):
    (package,) = installed.parents[1].rglob("site-packages/symprune")
    here = paths.ROOT / "symprune"
    files = [
        file.relative_to(here)
        for file in here.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    ]
    assert {
        Path("py.typed"),
        Path("__init__.pyi"),
        Path("paper/claims.yaml"),
        Path("measure/dense.yaml"),
    } <= set(files)
    assert all((package / file).read_bytes() == (here / file).read_bytes() for file in files)


@pytest.mark.parametrize("command", ["reproduce", "verify-report", "render"])
def test_what_needs_the_checkout_says_so_in_one_line(run, command):
    done = run(command)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "run inside the project's source, or set SYMPRUNE_ROOT" in line
