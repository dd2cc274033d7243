"""Zero-shot accuracy by lm-eval, on a model as it lies in memory."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from symprune.base import progress
from symprune.base.errors import UserError
from symprune.pruning.runner import check_token_ids
from symprune.text import corpora
from symprune.text.tasks import load_tasks, quiet, require_lm_eval


@dataclass(frozen=True)
class TaskScore:
    """One task's accuracy, its standard error (nan for a single example), and which of the examples were
    answered rightly.

    acc_norm: accuracy by log-likelihood per character, where the task defines it; never mixed into `acc`.
    """

    task: str
    acc: float
    stderr: float
    version: str
    correct: tuple[bool, ...]
    acc_norm: float | None = None

    @property
    def n(self) -> int:
        """Examples scored."""
        return len(self.correct)

    def __str__(self) -> str:
        return f"{self.task} {self.acc:.4f} ± {self.stderr:.4f} ({sum(self.correct)} of {self.n})"


@dataclass(frozen=True, repr=False)
class ZeroShot:
    """The score of every task, and the mean of their accuracies."""

    scores: dict[str, TaskScore]

    @property
    def mean(self) -> float:
        """The mean accuracy over tasks, each counted once whatever its size."""
        return sum(score.acc for score in self.scores.values()) / len(self.scores)

    def frame(self):
        """One row per task (pandas)."""
        import pandas as pd

        columns = ("task", "acc", "stderr", "n", "version", "acc_norm")
        return pd.DataFrame(
            [{name: getattr(score, name) for name in columns} for score in self.scores.values()]
        ).set_index("task")

    def __repr__(self) -> str:
        return f"mean {self.mean:.4f}: " + "; ".join(map(str, self.scores.values()))


def zero_shot(
    model: nn.Module,
    tokenizer,
    tasks: Sequence[str] | Mapping[str, Any],
    limit: int | None = None,
    batch_size: int | str = 8,
) -> ZeroShot:
    """Accuracy of `model` on zero-shot tasks, by names of `symprune.text.tasks.TASKS` or as `load_tasks`
    returned them.

    limit: score the first so many examples of each task; None scores all. batch_size: requests per forward
    pass; of long prompts eight fill a few GiB. The tokenizer puts its own special tokens before a prompt, as
    before the text that perplexity is taken of. Raises UserError for an unknown task, a size below 1 or
    "auto", a task without data, tokens that the model does not know, and where lm-eval is not installed.
    """
    for name, size in {"limit": 1 if limit is None else limit, "batch_size": batch_size}.items():
        # "auto" probes 64 full-length windows
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise UserError(f"{name} must be a whole number of at least 1, not {size!r}")
    require_lm_eval()
    loaded = tasks if isinstance(tasks, Mapping) else load_tasks(tasks)
    import lm_eval

    with quiet(progress.shown()):
        harness = _harness(model, tokenizer, batch_size)
        # bootstrap_iters: the standard error of a mean is exact, nothing is resampled.
        found = lm_eval.evaluate(
            lm=harness, task_dict={"tasks": dict(loaded)}, limit=limit, bootstrap_iters=1, log_samples=True
        )
    return ZeroShot(
        {
            name: _score(name, found["results"][name], found["versions"][name], found["samples"][name])
            for name in loaded
        }
    )


def _harness(model: nn.Module, tokenizer, batch_size: int) -> Any:
    """lm-eval's view of this very object."""
    import copy

    from lm_eval.models.huggingface import HFLM

    class Harness(HFLM):
        """lm-eval's, which looks at every token before the model sees the first."""

        def _loglikelihood_tokens(self, requests: list[tuple], *args, **kwargs):
            ids = {token for _, context, continuation in requests for token in (*context, *continuation)}
            check_token_ids(model, min(ids), max(ids))
            return super()._loglikelihood_tokens(requests, *args, **kwargs)

    # A copy of the tokenizer: lm-eval gives it a padding token.
    harness = Harness(
        pretrained=model,
        tokenizer=copy.deepcopy(tokenizer),
        batch_size=batch_size,
        add_bos_token=corpora.adds_bos(tokenizer),
    )
    if harness.model is not model:
        raise RuntimeError("lm-eval would score another model than the one it was given")
    return harness


def _score(name: str, result: dict, version: Any, samples: list[dict]) -> TaskScore:
    stderr, acc_norm = result["acc_stderr,none"], result.get("acc_norm,none")
    return TaskScore(
        task=name,
        acc=float(result["acc,none"]),
        stderr=float(stderr) if isinstance(stderr, float) else math.nan,
        version=str(version),
        correct=tuple(bool(sample["acc"]) for sample in sorted(samples, key=lambda sample: sample["doc_id"])),
        acc_norm=None if acc_norm is None else float(acc_norm),
    )
