"""Every causal family of transformers: statistics as of plain forwards, or refused in one line."""

import families
import pytest


@pytest.fixture(scope="module")
def found() -> dict[str, families.Found]:
    return {family: families.find(family) for family in families.FAMILIES}


def test_the_table_of_families_is_the_one_committed(found):
    committed = families.TABLE.read_text(encoding="utf-8").splitlines()
    now = families.table(found).splitlines()
    differing = [
        f"{there!r}, now {here!r}" for there, here in zip(committed, now, strict=False) if there != here
    ]
    assert committed == now, f"python tests/families.py draws it again: {differing[:5]}"


def test_most_families_are_built(found):
    built = [family for family, each in found.items() if not each.way.startswith("not built")]
    assert len(built) >= 160


def test_nothing_lies_between_right_and_refused(found):
    ways = [each.way.split(":")[0] for each in found.values()]
    assert set(ways) == {"layer by layer", "whole model", "refused", "not built"}
    assert ways.count("refused") <= 15


def test_whatever_is_not_pruned_of_a_family_has_a_reason(found):
    for family, each in found.items():
        assert each.linears or each.way.startswith(("refused: ", "crashes", "not built: ")), family
    assert "2 router" in found["mixtral"].left_dense
    assert "2 reached by no token" in found["mamba"].left_dense
    assert found["llama"] == families.Found("layer by layer", 14, "")
