"""Perplexity by the convention of the pruning papers."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from symprune.base.errors import UserError
from symprune.base.progress import track
from symprune.base.types import Logits, Windows
from symprune.measure.dense_outputs import DenseOutputs
from symprune.models.causal import in_eval_mode, require_causal
from symprune.pruning.cost import batch_size_of
from symprune.pruning.runner import check_windows

_AT_A_TIME = 16  # predictions: what is computed of them stays in the processor's cache


class Perplexity(float):
    """A perplexity: a float that says how it came about, by the mean loss of every window.

    kl, agreement: of each window, beside the dense model; empty where none was given.
    """

    losses: tuple[float, ...]  # mean token loss of each window
    seq_len: int
    kl: tuple[float, ...]
    agreement: tuple[float, ...]

    def __new__(
        cls, losses: list[float], seq_len: int, kl: Sequence[float] = (), agreement: Sequence[float] = ()
    ):
        # Wanda's convention: each window counts seq_len tokens though only seq_len - 1 are predicted; equal
        # windows make it a plain mean.
        self = super().__new__(cls, math.exp(min(sum(losses) / len(losses), 700)))
        self.losses, self.seq_len = tuple(losses), seq_len
        self.kl, self.agreement = tuple(kl), tuple(agreement)
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
@in_eval_mode
def perplexity(
    model: nn.Module, windows: Windows, *, batch_size: int | str = 1, dense: DenseOutputs | None = None
) -> Perplexity:
    """exp of the mean over windows of the mean token loss (Wanda's convention).

    windows: [n, seq_len], from `evaluation_windows`. batch_size: windows per forward pass, or "auto" (see
    `symprune.pruning.cost`). dense: what the dense model predicts of the same windows, from `dense_outputs`:
    then the result tells of each window, as means over its seq_len - 1 predictions, the Kullback-Leibler
    divergence sum_v p[v] log(p[v] / q[v]) of the dense p from this model's q in nats per token (`kl`), and
    how often both have the same first choice (`agreement`). Raises UserError for windows the model cannot
    take, for a model that is not causal, and on a loss that is NaN.
    """
    check_windows(model, windows)
    require_causal(model)
    if windows.shape[1] < 2:
        raise UserError("perplexity needs windows of at least 2 tokens: raise seq_len")
    if dense and len(dense) != len(windows):
        raise UserError(f"the dense model's outputs are of {len(dense)} windows, not of these {len(windows)}")
    device = next(model.parameters()).device
    losses: list[float] = []
    beside: list[tuple[float, float]] = []
    batches = windows.split(batch_size_of(batch_size, model, windows, logits=2 if dense else 1))
    for batch in track(batches, "perplexity"):
        ids = batch.to(device)
        logits = model(input_ids=ids, use_cache=False).logits
        dense_logits = dense.logits(model, len(losses), len(batch)) if dense else None
        # window by window: one float32 copy of the logits at a time
        for i, (row, targets) in enumerate(zip(logits, ids, strict=True)):
            log_q = row[:-1].float().log_softmax(dim=-1)
            loss = nn.functional.nll_loss(log_q, targets[1:]).item()
            if math.isnan(loss):
                raise UserError("the loss is NaN: the weights are broken, or the dtype's range is too small")
            losses.append(loss)
            if dense_logits is not None:
                beside.append(_beside_dense(dense_logits[i, :-1].to(row.device), row[:-1], log_q))
    kl, agreement = zip(*beside, strict=True) if beside else ((), ())
    return Perplexity(losses, windows.shape[1], kl, agreement)


def _beside_dense(dense: Logits, logits: Logits, log_q: Logits) -> tuple[float, float]:
    """Divergence and agreement of one window, [predictions, vocabulary] each."""
    kl = 0.0
    for p, q in zip(dense.split(_AT_A_TIME), log_q.split(_AT_A_TIME), strict=True):
        log_p = p.float().log_softmax(dim=-1)
        difference = log_p - q
        kl += log_p.exp_().mul_(difference).sum(dtype=torch.float64).item()
    return kl / len(log_q), (dense.argmax(dim=-1) == logits.argmax(dim=-1)).double().mean().item()
