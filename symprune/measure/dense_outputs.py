"""What the dense model predicts of a text, kept small, to compare pruned models with."""

import torch
from torch import Tensor, nn

from symprune.base.types import Logits, Windows
from symprune.models.causal import in_eval_mode
from symprune.models.devices import require_memory
from symprune.pruning.cost import batch_size_of
from symprune.pruning.runner import check_windows


class DenseOutputs:
    """A dense model's logits of some windows: its head's inputs, from which the head computes them again.

    The head is never pruned, so a pruned model's is the dense one's. Where the logits are not what the head
    gives (they are scaled or capped after it) the logits themselves are kept.
    """

    def __init__(self, kept: Tensor, by_head: bool):
        self._kept, self._by_head = kept, by_head

    def __len__(self) -> int:
        return len(self._kept)

    def logits(self, model: nn.Module, start: int, n: int) -> Logits:
        """The dense logits [n, seq_len, vocabulary] of n windows; model: the dense one, or it pruned.

        To the bit those of the dense model's own forward pass where its batches were of the same windows.
        """
        kept = self._kept[start : start + n]
        if not self._by_head:
            return kept
        head = model.get_output_embeddings()
        return head.forward(kept.to(head.weight.device))


@torch.no_grad()
@in_eval_mode
def dense_outputs(model: nn.Module, windows: Windows, batch_size: int | str = 1) -> DenseOutputs:
    """What this model predicts of windows [n, seq_len]; for `perplexity` of the model after it is pruned.

    batch_size: as for `perplexity`. Memory: n * seq_len * hidden size numbers on the CPU, or the vocabulary's
    size in its place where the head alone does not give the logits; raises UserError where that is too much,
    or where the windows are not for this model.
    """
    check_windows(model, windows)
    device = next(model.parameters()).device
    head, inputs = model.get_output_embeddings(), []
    hook = head and head.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    kept: list[Tensor] = []
    by_head = True
    try:
        for batch in windows.split(batch_size_of(batch_size, model, windows, logits=2)):
            inputs.clear()
            logits = model(input_ids=batch.to(device), use_cache=False).logits
            if not kept:  # the forward is called as it is: the hook is for the model's own call
                by_head = len(inputs) == 1 and torch.equal(head.forward(inputs[0]), logits)
                size = (inputs[0] if by_head else logits)[0].nbytes * len(windows)
                require_memory(size, "cpu", "the dense model's outputs", "lower n_eval")
            kept.append((inputs[0] if by_head else logits).cpu())
    finally:
        if hook:
            hook.remove()
    return DenseOutputs(torch.cat(kept), by_head)
