"""Fine-tuning after pruning."""

import tiny
import torch

from symprune.measure.finetuned import fine_tuned
from symprune.models import named_linears


def test_a_fine_tuned_copy_fits_its_text_better_and_leaves_the_model_and_the_random_numbers_alone():
    model, windows = tiny.model(), tiny.windows(1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    tuned = fine_tuned(model, windows.repeat(8, 1), rank=2, rate=1e-2)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert tuned.state_dict().keys() == before.keys()  # merged: no adapter is left
    assert all(
        not torch.equal(linear.weight, before[f"{name}.weight"])
        for name, linear in named_linears(tuned).items()
    )
    with torch.no_grad():
        losses = [m(input_ids=windows, labels=windows).loss.item() for m in (tuned, model)]
    assert losses[0] < losses[1]
    again = fine_tuned(model, windows.repeat(8, 1), rank=2, rate=1e-2)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in tuned.state_dict().items())
