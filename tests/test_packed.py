"""Packed folders: smaller, read back to the byte, refused where a byte is wrong."""

import json
import shutil

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from symprune import Recipe, UserError, prune
from symprune.models.load import fingerprint, load_model
from symprune.models.packed import pack, packed_sizes, unpack, unpacked

RECIPES = {"half": Recipe("magnitude", "0.5"), "2:4": Recipe("magnitude", "2:4")}


def saved(folder, family="llama", pattern="half", dtype=torch.float32, tied=False, **how):
    """A pruned model's folder, as transformers writes it, and files that are no weights beside it."""
    model = tiny.model(family, dtype=dtype, tie_word_embeddings=tied)
    prune(model, None, RECIPES[pattern])
    model.save_pretrained(folder, **how)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "notes").mkdir()
    (folder / "notes" / "readme.txt").write_text("mine")
    return model


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2-moe"])
@pytest.mark.parametrize("pattern", list(RECIPES))
@pytest.mark.parametrize(
    ("dtype", "how"),
    [(torch.float32, {}), (torch.bfloat16, {"max_shard_size": "20KB"}), (torch.float16, {"tied": True})],
)
def test_what_is_unpacked_is_every_byte_of_what_was_packed(tmp_path, family, pattern, dtype, how):
    model = saved(plain := tmp_path / "plain", family, pattern, dtype, **how)
    sizes = pack(plain, tmp_path / "packed")
    assert sizes == packed_sizes(tmp_path / "packed")
    assert sizes.plain == sum(file.stat().st_size for file in plain.glob("*.safetensors"))
    unpack(tmp_path / "packed", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(plain)
    assert fingerprint(str(tmp_path / "packed")) == fingerprint(str(plain))
    loaded = load_model(str(tmp_path / "packed"), str(dtype).removeprefix("torch."))
    assert loaded.name_or_path == str(tmp_path / "packed")
    for (name, tensor), other in zip(loaded.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name
    assert contents(tmp_path / "packed").keys() >= {"config.json", "notes/readme.txt", "tokenizer.json"}


def test_a_packed_file_holds_a_bit_of_each_weight_and_the_weights_that_are_not_zero(tmp_path):
    weight = torch.randn(64, 100)
    weight[torch.rand(64, 100) < 0.6] = 0
    weight[0, 0] = -0.0  # a bit is set: it is kept
    (tmp_path / "plain").mkdir()
    save_file(
        {"w": weight, "norm": torch.ones(7), "n": torch.tensor([3])}, tmp_path / "plain/model.safetensors"
    )
    pack(tmp_path / "plain", tmp_path / "packed")
    found = load_file(tmp_path / "packed/packed-model.safetensors")  # any reader of safetensors can
    assert found.keys() == {"w.kept", "w.bits", "norm", "n"}
    flat = weight.flatten()
    kept = [x for x in flat if x != 0 or torch.signbit(x)]
    assert torch.equal(found["w.kept"], torch.stack(kept))
    bits = [int(found["w.bits"][i // 8]) >> (7 - i % 8) & 1 for i in range(6400)]
    assert bits == [int(x != 0 or torch.signbit(x)) for x in flat]
    assert (found["norm"].tolist(), found["n"].tolist()) == ([1.0] * 7, [3])


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_any_tensors_come_back(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("any")
    (folder / "plain").mkdir()
    tensors = {}
    for i in range(data.draw(st.integers(1, 4))):
        dtype = data.draw(
            st.sampled_from([torch.float64, torch.bfloat16, torch.float32, torch.int64, torch.bool])
        )
        shape = data.draw(st.lists(st.integers(0, 9), max_size=3))
        rows = torch.tensor(np.random.default_rng(i).integers(0, 3, shape))
        tensors[f"t{i}"] = torch.where(rows == 1, 0, rows).to(dtype)
    save_file(tensors, folder / "plain/model.safetensors", {"format": "pt", "padding": "  "})
    pack(folder / "plain", folder / "packed")
    unpack(folder / "packed", folder / "again")
    assert contents(folder / "again") == contents(folder / "plain")
    with safe_open(folder / "packed/packed-model.safetensors", "pt") as f:
        assert all(len(f.get_tensor(name)) >= 0 for name in f.keys() if name.endswith((".kept", ".bits")))  # noqa: SIM118


def test_transformers_and_streaming_refuse_a_packed_folder_in_words(tmp_path):
    import transformers

    from symprune.pruning.stream import StreamedRun

    saved(tmp_path / "plain", max_shard_size="20KB")
    pack(tmp_path / "plain", tmp_path / "packed")
    with pytest.raises(OSError, match=r"no file named .*model\.safetensors"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    with pytest.raises(UserError, match="symprune unpack"):
        StreamedRun(str(tmp_path / "packed"), None, Recipe("magnitude"))
    with pytest.raises(UserError, match="is packed"):
        pack(tmp_path / "packed", tmp_path / "twice")
    with pytest.raises(UserError, match="is not packed"):
        unpack(tmp_path / "plain", tmp_path / "never")


def test_a_damaged_packed_folder_is_never_believed(tmp_path):
    saved(tmp_path / "plain")
    pack(tmp_path / "plain", tmp_path / "packed")
    file = tmp_path / "packed/packed-model.safetensors"
    good = file.read_bytes()
    head = 8 + int.from_bytes(good[:8], "little")
    for content in [good[:-1], good[:100], b"", good[:head] + bytes([good[head] ^ 1]) + good[head + 1 :]]:
        file.write_bytes(content)
        with pytest.raises(UserError, match="damaged"), unpacked(tmp_path / "packed"):
            pass
    file.unlink()
    with pytest.raises(UserError, match="missing or damaged"):
        load_model(str(tmp_path / "packed"))
    for text in ["", "[]", '{"version": 2, "files": {"a": 1}}', '{"version": 1, "files": {"../a": {}}}']:
        (tmp_path / "packed/packed.json").write_text(text)
        with pytest.raises(UserError, match=r"packed\.json is damaged"):
            load_model(str(tmp_path / "packed"))


def test_pack_and_unpack_are_commands(capsys, tmp_path, checkpoint):
    from symprune.cli import main

    shutil.copytree(checkpoint, plain := tmp_path / "plain")
    tensors = load_file(plain / "model.safetensors")
    save_file({n: t * (torch.rand(t.shape) < 0.5) for n, t in tensors.items()}, plain / "model.safetensors")
    assert main(["pack", str(plain), "--out", str(tmp_path / "packed"), "--json"]) == 0
    assert 0.5 < json.loads(capsys.readouterr().out)["ratio"] < 0.9  # of a tiny model, heads are much
    assert main(["unpack", str(tmp_path / "packed"), "--out", str(tmp_path / "again")]) == 0
    assert contents(tmp_path / "again") == contents(plain)
    capsys.readouterr()
    for argv in (["unpack", str(plain)], ["pack", str(tmp_path / "packed")], ["unpack", "nowhere"]):
        assert main([*argv, "--out", str(tmp_path / "never")]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "never").exists()
