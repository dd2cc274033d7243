"""What doctor advises follows what it measured."""

import pytest
import torch

from symprune.cli import doctor


@pytest.mark.parametrize(
    ("bfloat16", "advice"),
    [(0.25, "--dtype bfloat16 is faster"), (0.95, "keep --dtype float32"), (3.0, "keep --dtype float32")],
)
def test_the_faster_dtype_is_advised(monkeypatch, bfloat16, advice):
    monkeypatch.setattr(
        doctor,
        "_seconds_of_product",
        lambda dtype, device: {torch.bfloat16: bfloat16, torch.float32: 1.0}[dtype],
    )
    (finding,) = [finding for finding in doctor.examine() if finding.what == "dtype"]
    assert finding.ok
    assert f"takes {bfloat16:.2f} times as long" in finding.found
    assert finding.found.endswith(advice)
