"""Mask files: one bit per weight, applied to what they were made for, and never believed if a byte is
wrong.
"""

import copy
import json
import struct

import numpy as np
import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from symprune import (
    NM,
    RIA,
    Recipe,
    Unstructured,
    UserError,
    Wanda,
    apply_masks,
    load_masks,
    prune,
    save_masks,
)
from symprune.base.records import Record
from symprune.models.layers import named_linears, weight_view
from symprune.pruning.mask_files import diff_masks, verify_masks
from symprune.pruning.packed_masks import PackedMasks, kept_hash, read_packed, write_packed

PATTERNS = [Unstructured(0.6), Unstructured(0.6, "layer"), NM(2, 4)]


def pruned(family="llama", pattern=PATTERNS[0], score=None):
    """A dense model, the same pruned, its masks and a record of the recipe."""
    dense = tiny.model(family)
    model, recipe = copy.deepcopy(dense), Recipe(score or Wanda(), pattern)
    report = prune(model, tiny.windows(2), recipe, keep_masks=True)
    return dense, model, report.masks, Record({"recipe": recipe.to_dict()}, {"sparsity": report.sparsity}, {})


@pytest.fixture(scope="module")
def llama():
    return pruned()


@pytest.fixture
def file(llama, tmp_path):
    _, model, masks, record = llama
    save_masks(tmp_path / "masks.safetensors", masks, model, record)
    return tmp_path / "masks.safetensors"


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2-moe"])
def test_masks_read_back_and_applied_give_the_pruned_model_bit_for_bit(tmp_path, family, pattern):
    dense, model, masks, record = pruned(family, pattern)
    save_masks(tmp_path / "m", masks, model, record)
    found = load_masks(tmp_path / "m")
    assert list(found.masks) == list(masks) == list(named_linears(dense))
    assert all(torch.equal(found.masks[name], masks[name]) for name in masks)
    assert (found.record, found.pattern) == (record, pattern)
    assert verify_masks(found, model)["pattern"]
    assert apply_masks(dense, found) == []
    assert all(torch.equal(p, q) for p, q in zip(dense.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_linears_left_dense_have_no_mask_and_files_of_the_others_serve_as_ever(tmp_path, family):
    dense, windows = tiny.model(family), tiny.windows(2)
    mlp = "down_proj" if family == "llama" else "mlp.*"
    first = "layers.0.*" if family == "llama" else "h.0.*"
    recipe = Recipe("wanda", "0.5", by_name={first: "dense", mlp: "2:4"})
    names = list(named_linears(dense))
    kept_whole = [name for name in names if ".0." in name]
    model = copy.deepcopy(dense)
    report = prune(model, windows, recipe, keep_masks=True)
    assert list(report.masks) == [name for name in names if name not in kept_whole]
    assert {f"{name}.weight" for name in kept_whole} == set(report.left_dense)
    before, after = named_linears(dense), named_linears(model)
    assert all(torch.equal(before[name].weight, after[name].weight) for name in kept_whole)
    for name, mask in report.masks.items():
        if "down_proj" in name or ("mlp" in name and family == "gpt2"):
            assert (mask.reshape(-1, 4).sum(dim=1) == 2).all()
        else:
            assert (mask.sum(dim=1) == mask.shape[1] - mask.shape[1] // 2).all()
    n_weights = sum(linear.weight.numel() for linear in before.values())
    removed = sum(int((~mask).sum()) for mask in report.masks.values())
    assert report.overall_sparsity == pytest.approx(removed / n_weights)

    resumed = copy.deepcopy(dense)
    for _ in range(2):  # the second from the journal, in which a layer has no mask
        prune(again := copy.deepcopy(dense), windows, recipe, work=tmp_path / "work")
        resumed = again
    assert all(torch.equal(p, q) for p, q in zip(resumed.parameters(), model.parameters(), strict=True))

    save_masks(tmp_path / "m", report.masks, model, Record({"recipe": recipe.to_dict()}, {}, {}))
    found = load_masks(tmp_path / "m")
    assert verify_masks(found, model)["pattern"] == recipe.patterns
    prune(uniform := copy.deepcopy(dense), windows, plain := Recipe("wanda", "0.5"))
    masks = {name: weight_view(linear) != 0 for name, linear in named_linears(uniform).items()}
    save_masks(tmp_path / "u", masks, uniform, Record({"recipe": plain.to_dict()}, {}, {}))
    facts = diff_masks(found, load_masks(tmp_path / "u"))
    assert facts["linears"].keys() == set(names)
    assert facts["linears"][kept_whole[0]]["equal"] == pytest.approx(0.5)
    assert apply_masks(dense, found) == []
    assert all(torch.equal(p, q) for p, q in zip(dense.parameters(), model.parameters(), strict=True))
    with pytest.raises(UserError, match="another model"):  # without a record nobody knows that it is wanted
        save_masks(tmp_path / "n", report.masks, model)


def test_a_file_holds_one_bit_per_weight(tmp_path):
    masks = {"a": torch.rand(64, 800) < 0.5, "b": torch.rand(800, 64) < 0.5}
    write_packed(tmp_path / "m", masks, {})
    assert 2 * 64 * 800 / 8 < (tmp_path / "m").stat().st_size < 2 * 64 * 800 / 8 + 1000
    packed = load_file(tmp_path / "m")  # any reader of safetensors can: bits of a row, the first the highest
    for name, mask in masks.items():
        bits = [
            [int(packed[name][i, j // 8]) >> (7 - j % 8) & 1 for j in range(mask.shape[1])]
            for i in range(len(mask))
        ]
        assert torch.equal(torch.tensor(bits, dtype=torch.bool), mask)


@given(st.integers(1, 5), st.integers(1, 20), st.integers(0, 10**6))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_masks_of_any_width_are_read_back(tmp_path, d_out, d_in, seed):
    mask = torch.rand(d_out, d_in, generator=torch.Generator().manual_seed(seed)) < 0.5
    write_packed(tmp_path / "m", {"../x": mask}, {"note": [1, "two"]})
    masks, about = read_packed(tmp_path / "m")
    assert torch.equal(masks["../x"], mask)
    assert about == {"note": [1, "two"]}


def test_the_hash_of_the_kept_weights_is_of_values_and_places():
    weight, mask = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[True, False, True]])
    original = kept_hash(weight, mask)
    assert kept_hash(torch.tensor([[1.0, 7.0, -0.0]]), mask) == original  # what is removed does not count
    assert kept_hash(weight.bfloat16(), mask) == original
    assert kept_hash(torch.tensor([[1.5, 2.0, 0.0]]), mask) != original
    assert kept_hash(torch.tensor([[0.0, 2.0, 1.0]]), mask) != original


def test_other_weights_are_masked_only_when_asked_for_and_named(llama, file):
    dense, _, masks, _ = llama
    name = "model.layers.1.self_attn.v_proj"
    tuned, found = copy.deepcopy(dense), load_masks(file)
    weight_view(named_linears(tuned)[name]).add_(0.01)  # as merging an adapter does: zeros are gone
    before = copy.deepcopy(tuned)
    with pytest.raises(UserError, match=rf"1 of 21 linears .* {name} first.*--other-weights"):
        apply_masks(tuned, found)
    assert all(torch.equal(p, q) for p, q in zip(tuned.parameters(), before.parameters(), strict=True))
    assert apply_masks(tuned, found, other_weights=True) == [name]
    for linear, weight in ((n, weight_view(module)) for n, module in named_linears(tuned).items()):
        assert torch.equal(weight, weight_view(named_linears(before)[linear]) * masks[linear])


def test_an_adapter_merged_after_pruning_is_masked_again(llama, file):
    peft = pytest.importorskip("peft")
    model = copy.deepcopy(llama[1])
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    merged = adapted.merge_and_unload()
    name = "model.layers.0.self_attn.q_proj"
    assert (named_linears(merged)[name].weight == 0).sum() == 0  # the merge destroys sparsity
    changed = apply_masks(merged, load_masks(file), other_weights=True)
    assert changed == [f"model.layers.{i}.self_attn.q_proj" for i in range(3)]
    assert torch.equal(named_linears(merged)[name].weight != 0, llama[2][name])


@pytest.mark.parametrize(
    "other", [{"num_hidden_layers": 2}, {"num_hidden_layers": 4}, {"intermediate_size": 64}]
)
def test_masks_of_another_model_are_refused(file, other):
    with pytest.raises(UserError, match=r"the masks are of another model: model\.layers"):
        apply_masks(tiny.model(**other), load_masks(file))


def test_verify_finds_what_does_not_hold(llama, file, tmp_path):
    dense, model, masks, record = llama
    found = load_masks(file)
    assert verify_masks(found, dense, applied=False)["checked"] == [
        "counts of every group",
        "hashes of the kept weights",
    ]
    name = "model.layers.2.mlp.up_proj"
    with pytest.raises(
        UserError, match=r"model.layers.0.self_attn.q_proj holds weights that its mask removes"
    ):
        verify_masks(found, dense)
    changed = copy.deepcopy(model)
    weight_view(named_linears(changed)[name])[masks[name]] *= 2
    with pytest.raises(UserError, match=rf"{name} keeps are not those"):
        verify_masks(found, changed)
    for pattern, place in [
        (Unstructured(0.6), "group 3 of"),
        (Unstructured(0.6, "layer"), "group 0 of"),
        (NM(2, 4), "group 24 of"),
    ]:
        _, model, masks, record = pruned(pattern=pattern)
        kept = int(masks[name][3].nonzero()[0])
        wrong = {
            **masks,
            name: masks[name].index_put((torch.tensor(3), torch.tensor(kept)), torch.tensor(False)),
        }
        save_masks(tmp_path / "wrong", wrong, model, record)
        with pytest.raises(
            UserError,
            match=(
                place if not isinstance(pattern, NM) else rf"group {3 * 8 + kept // 4} of {name} keeps 1 of 4"
            ),
        ):
            verify_masks(load_masks(tmp_path / "wrong"))


def test_verify_without_a_record_has_no_pattern_to_check(llama, tmp_path):
    save_masks(tmp_path / "m", llama[2], llama[1])
    facts = verify_masks(load_masks(tmp_path / "m"))
    assert (facts["pattern"], facts["checked"]) == (None, [])
    assert facts["weights"] == sum(mask.numel() for mask in llama[2].values())
    assert facts["sparsity"] == pytest.approx(
        1 - sum(m.double().sum().item() for m in llama[2].values()) / facts["weights"]
    )


def test_diff_counts_what_two_files_share(llama, tmp_path):
    files = [tmp_path / "a", tmp_path / "b"]
    pairs = [pruned(score=score) for score in (Wanda(), RIA())]
    for path, (_, model, masks, record) in zip(files, pairs, strict=True):
        save_masks(path, masks, model, record)
    facts = diff_masks(*map(load_masks, files))
    a, b = ({name: mask.numpy() for name, mask in masks.items()} for _, _, masks, _ in pairs)
    for name, found in facts["linears"].items():
        assert found["jaccard"] == np.sum(a[name] & b[name]) / np.sum(a[name] | b[name])
        assert found["equal"] == np.mean(a[name] == b[name])
    one, two = (np.concatenate([mask.ravel() for mask in side.values()]) for side in (a, b))
    assert facts["jaccard"] == np.sum(one & two) / np.sum(one | two)
    assert facts["equal"] == np.mean(one == two) < 1
    same = diff_masks(load_masks(files[0]), load_masks(files[0]))
    assert (same["jaccard"], same["equal"]) == (1, 1)


def test_diff_of_masks_over_other_linears_is_refused(llama, file, tmp_path):
    _, model, masks, _ = pruned("gpt2")
    save_masks(tmp_path / "other", masks, model)
    with pytest.raises(UserError, match="the second masks are of another model"):
        diff_masks(load_masks(file), load_masks(tmp_path / "other"))


def test_no_masks_make_no_file(llama, tmp_path):
    with pytest.raises(UserError, match="another model"):
        save_masks(tmp_path / "m", {}, llama[1])
    with pytest.raises(UserError, match="no masks to save"):
        PackedMasks().save(tmp_path / "m")
    assert not list(tmp_path.iterdir())


# Damage.


def reads_right_or_refuses(damaged, whole) -> bool:
    """Whether a damaged file is refused; it may only be read as what it was."""
    try:
        found = load_masks(damaged)
    except UserError:
        return True
    original = load_masks(whole)
    assert found.masks.keys() == original.masks.keys()
    assert all(torch.equal(found.masks[name], original.masks[name]) for name in original.masks)
    assert (found.weights, found.record) == (original.weights, original.record)
    return False


@given(st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_changed_byte_is_noticed_wherever_it_is(file, data):
    content = bytearray(file.read_bytes())
    header = 8 + struct.unpack("<Q", content[:8])[0]
    place = data.draw(st.integers(0, header - 1) | st.integers(header, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    damaged = file.with_name("damaged")
    damaged.write_bytes(content)
    # White space may become other white space, and nothing else may change unnoticed.
    assert reads_right_or_refuses(damaged, file) or bytes(file.read_bytes()[place : place + 1]).isspace()


@given(st.integers(0, 10**6))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_truncated_file_is_refused(file, length):
    content = file.read_bytes()
    damaged = file.with_name("damaged")
    damaged.write_bytes(content[: length % len(content)])
    assert reads_right_or_refuses(damaged, file)


@given(st.binary(max_size=300))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_bytes_of_any_kind_are_no_mask_file(file, content):
    damaged = file.with_name("damaged")
    damaged.write_bytes(content)
    assert reads_right_or_refuses(damaged, file)


def forged(file, change):
    """The file with its metadata changed by a function, checksums and all as a forger would write them."""
    from symprune.pruning.packed_masks import _HEADER, _checksum

    content = file.read_bytes()
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    about, tensors = json.loads(header["__metadata__"][_HEADER]), load_file(file)
    del about["checksum"]
    change(about, tensors)
    save_file(tensors, file, metadata={_HEADER: json.dumps({**about, "checksum": _checksum(about, tensors)})})


@pytest.mark.parametrize(
    "change",
    [
        lambda about, tensors: about.update(version=2),
        lambda about, tensors: about["widths"].update(x=8),
        lambda about, tensors: tensors.update(x=torch.zeros(1, 1, dtype=torch.uint8)),
        lambda about, tensors: about["widths"].update({next(iter(about["widths"])): 5}),
        lambda about, tensors: about["widths"].update({next(iter(about["widths"])): -32}),
        lambda about, tensors: about["widths"].update({next(iter(about["widths"])): 32.0}),
        lambda about, tensors: about.update(widths=[]),
        lambda about, tensors: tensors.update({name: tensor.float() for name, tensor in tensors.items()}),
        lambda about, tensors: tensors.update({name: tensor.flatten() for name, tensor in tensors.items()}),
        lambda about, tensors: about.pop("weights"),
        lambda about, tensors: about.update(weights={}),
        lambda about, tensors: about.update(weights=dict.fromkeys(about["weights"], 0)),
        lambda about, tensors: about.update(record=[1]),
        lambda about, tensors: about["record"]["metrics"].update(sparsity=0.1),
        lambda about, tensors: about.update(
            record=Record({"recipe": {"score": {"name": "nothing"}}}, {}, {}).to_dict()
        ),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(file, change):
    forged(file, change)
    with pytest.raises(UserError, match=r"damaged, or no mask file|no mask file of this version"):
        load_masks(file)


def test_names_in_a_file_are_never_paths(llama, file, tmp_path):
    def escape(about, tensors):
        name = next(iter(about["widths"]))
        for part in (about["widths"], about["weights"], tensors):
            part["../../escape"] = part.pop(name)

    # all that this process makes, and the names beside it; other processes have folders of their own there
    def around() -> list:
        return sorted([*tmp_path.parent.rglob("*"), *tmp_path.parent.parent.glob("*")])

    forged(file, escape)
    before = around()
    with pytest.raises(UserError, match="another model"):
        apply_masks(copy.deepcopy(llama[0]), load_masks(file))
    assert around() == before


def test_a_missing_file_and_a_folder_without_masks_say_what_to_give(tmp_path):
    for path in (tmp_path, tmp_path / "nothing", tmp_path / "nothing" / "below"):
        with pytest.raises(
            UserError, match="does not exist: give a mask file, or the folder of a pruned model"
        ):
            load_masks(path)
