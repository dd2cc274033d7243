"""What SECURITY.md promises."""

import ast
import json
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from symprune import UserError
from symprune.base import paths
from symprune.base.records import provenance
from symprune.cli import main
from symprune.methods.recipe import parse_method
from symprune.methods.scores import SCORES
from symprune.models.load import load_model, load_tokenizer
from symprune.paper.profiles import load_profile

SOURCES = [*sorted((paths.ROOT / "symprune").rglob("*.py")), *sorted(paths.NOTEBOOKS.glob("*.py"))]
# Each can run code from a file or a string.
FORBIDDEN = {
    *("torch.load", "numpy.load", "np.load", "pd.read_pickle", "pandas.read_pickle"),
    *("yaml.full_load", "yaml.unsafe_load", "yaml.load_all", "yaml.full_load_all", "yaml.unsafe_load_all"),
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "shutil.unpack_archive"),
}
SAFE_LOADERS = {"yaml.SafeLoader", "yaml.CSafeLoader", "yaml.BaseLoader"}
FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "tarfile",
    "zipfile",
}


class Bomb:
    """Unpickled, it would leave a file behind."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (open, (str(self.file), "w"))


def test_there_is_something_to_look_through():
    assert len(SOURCES) > 20


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_nothing_that_runs_code_from_a_file_or_a_string_is_called(source):
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in FORBIDDEN, f"line {node.lineno}"
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert ast.unparse(node.func) != "yaml.load" or options.get("Loader") in SAFE_LOADERS, (
                f"line {node.lineno}"
            )
            assert options.get("trust_remote_code", "False") == "False", f"line {node.lineno}"
            assert options.get("shell", "False") == "False", f"line {node.lineno}"
            assert options.get("allow_pickle", "False") == "False", f"line {node.lineno}"
        elif isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & FORBIDDEN_MODULES, (
                f"line {node.lineno}"
            )
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in FORBIDDEN_MODULES, f"line {node.lineno}"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00001.bin", "model.pt"])
def test_a_checkpoint_that_is_a_pickle_is_refused_and_not_opened(checkpoint, tmp_path, name):
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"bomb": Bomb(tmp_path / "exploded")}, folder / name)
    with pytest.raises(UserError, match="but a pickle, which is never loaded"):
        load_model(str(folder))
    assert not (tmp_path / "exploded").exists()


def test_a_pickle_beside_safetensors_is_not_opened(checkpoint, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    torch.save({"bomb": Bomb(tmp_path / "exploded")}, folder / "pytorch_model.bin")
    model = load_model(str(folder))
    assert torch.equal(model.model.norm.weight, load_file(folder / "model.safetensors")["model.norm.weight"])
    assert not (tmp_path / "exploded").exists()


def test_an_adapter_does_not_lead_to_another_model(checkpoint, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "organisation/another"})
    )
    with pytest.raises(UserError, match="holds an adapter: merge it"):
        load_model(str(folder))


@pytest.mark.parametrize("read", [load_model, load_tokenizer], ids=["model", "tokenizer"])
def test_code_that_a_model_brings_is_not_run(checkpoint, tmp_path, read):
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    classes = {
        "AutoConfig": "own.Config",
        "AutoModelForCausalLM": "own.Model",
        "AutoTokenizer": ["own.Tokenizer", None],
    }
    (folder / "config.json").write_text(
        json.dumps({**config, "model_type": "own-family", "auto_map": classes})
    )
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**tokenizer, "tokenizer_class": "Tokenizer", "auto_map": classes})
    )
    (folder / "own.py").write_text(f"open({str(tmp_path / 'exploded')!r}, 'w')\n")
    with pytest.raises(UserError, match="cannot load"):
        read(str(folder))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "text",
    [
        "ria(alpha=__import__('os').getpid())",
        "ria(alpha=open('x'))",
        "__import__('os')",
        "ria(alpha=(lambda: 1)())",
    ],
)
def test_a_method_is_parsed_and_never_evaluated(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        parse_method("score", text, SCORES)
    assert not list(tmp_path.iterdir())


def test_a_profile_cannot_make_objects(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "PARAMS", tmp_path)
    smoke = (paths.ROOT / "papermill_params" / "smoke.yaml").read_text()
    (tmp_path / "smoke.yaml").write_text(smoke)
    (tmp_path / "evil.yaml").write_text(
        f"{smoke}\nseeds: !!python/object/apply:builtins.open ['{tmp_path / 'exploded'}', 'w']\n"
    )
    with pytest.raises(UserError):
        load_profile("evil")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "cpu/../../evil"])
def test_a_profile_is_a_name_and_no_path(name):
    with pytest.raises(UserError, match="unknown profile"):
        load_profile(name)


FUZZED = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture
def profile(tmp_path, monkeypatch):
    """Writes the profile "fuzzed" and reads it; None if it is refused, in one line."""
    smoke = paths.ROOT / "papermill_params" / "smoke.yaml"
    shutil.copy(smoke, tmp_path)
    monkeypatch.setattr(paths, "PARAMS", tmp_path)

    def read(content: bytes) -> dict | None:
        (tmp_path / "fuzzed.yaml").write_bytes(content)
        try:
            return load_profile("fuzzed")
        except UserError as error:
            refusal = str(error)
        assert "\n" not in refusal
        return None

    return read


SOUND = (
    (paths.ROOT / "papermill_params" / "smoke.yaml")
    .read_bytes()
    .replace(b"profile: smoke", b"profile: fuzzed")
)


@given(st.data())
@FUZZED
def test_a_changed_byte_of_a_profile_is_refused_or_changes_one_value(profile, data):
    content = bytearray(SOUND)
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    sound, found = profile(SOUND), profile(bytes(content))
    assert sound is not None
    assert found is None or (
        found.keys() == sound.keys() and sum(found[key] != sound[key] for key in sound) <= 1
    )


@given(st.binary(max_size=100) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
@FUZZED
def test_bytes_of_any_kind_are_no_profile(profile, content):
    assert profile(content) is None
    profile(SOUND.replace(b"embedded", b"[" + content + b"]"))  # amid the rest: a value, or refused


@pytest.mark.parametrize(
    "value",
    [
        "2024-99-99",
        "!!int ''",
        "!!float x",
        "0b_",
        "!!timestamp x",
        "!!bool x",
        "9" * 5000,
        "[" * 500,
        "&a [*b]",
    ],
)
def test_a_value_that_yaml_stumbles_over_is_refused(profile, value):
    assert profile(SOUND + f"extra: {value}\n".encode()) is None


def test_no_secret_is_written_or_printed(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_somebody")
    assert "hf_secret" not in json.dumps(provenance())
    assert main(["verify", "nowhere"]) == 2
    assert "hf_secret" not in "".join(capsys.readouterr())
