"""Perplexity by the convention of the pruning papers."""

import math

import torch
from torch import nn

from symprune.base.errors import UserError
from symprune.base.progress import track
from symprune.base.types import Windows
from symprune.models.causal import require_causal
from symprune.pruning.cost import batch_size_of
from symprune.pruning.runner import check_windows


class Perplexity(float):
    """A perplexity: a float that says how it came about, by the mean loss of every window."""

    losses: tuple[float, ...]  # mean token loss of each window
    seq_len: int

    def __new__(cls, losses: list[float], seq_len: int):
        # Wanda's convention: each window counts seq_len tokens though only seq_len - 1 are predicted; equal
        # windows make it a plain mean.
        self = super().__new__(cls, math.exp(min(sum(losses) / len(losses), 700)))
        self.losses, self.seq_len = tuple(losses), seq_len
        return self

    @property
    def n_windows(self) -> int:
        """Windows evaluated."""
        return len(self.losses)

    @property
    def n_tokens(self) -> int:
        """Tokens in the windows."""
        return self.n_windows * self.seq_len

    @property
    def stderr(self) -> float:
        """Standard error over windows, carried through the exponential (nan for a single window)."""
        if self.n_windows < 2:
            return math.nan
        return (
            float(self)
            * torch.tensor(self.losses, dtype=torch.float64).std().item()
            / math.sqrt(self.n_windows)
        )

    def __repr__(self) -> str:
        if self.n_windows < 2:
            return f"{float(self):.2f} (one window of {self.seq_len} tokens)"
        return (
            f"{float(self):.2f} ± {self.stderr:.2f} (standard error over {self.n_windows} windows of"
            f" {self.seq_len} tokens)"
        )


@torch.no_grad()
def perplexity(model: nn.Module, windows: Windows, *, batch_size: int | str = 1) -> Perplexity:
    """exp of the mean over windows of the mean token loss (Wanda's convention).

    windows: [n, seq_len], from `evaluation_windows`. batch_size: windows per forward pass, or "auto" (see
    `symprune.pruning.cost`). Raises UserError for windows the model cannot take,
    for a model that is not causal, and on a loss that is NaN.
    """
    check_windows(model, windows)
    require_causal(model)
    if windows.shape[1] < 2:
        raise UserError("perplexity needs windows of at least 2 tokens: raise seq_len")
    device = next(model.parameters()).device
    losses: list[float] = []
    batches = windows.split(batch_size_of(batch_size, model, windows, logits=True))
    for batch in track(batches, "perplexity"):
        ids = batch.to(device)
        logits = model(input_ids=ids, use_cache=False).logits
        # window by window: one float32 copy of the logits at a time
        for row, targets in zip(logits, ids, strict=True):
            loss = nn.functional.cross_entropy(row[:-1].float(), targets[1:]).item()
            if math.isnan(loss):
                raise UserError("the loss is NaN: the weights are broken, or the dtype's range is too small")
            losses.append(loss)
    return Perplexity(losses, windows.shape[1])
