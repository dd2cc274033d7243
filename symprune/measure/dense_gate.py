"""The dense gate: a model whose own perplexity is not what it should be is not worth pruning."""

import functools
import warnings
from pathlib import Path

import yaml

from symprune.base.errors import UserError
from symprune.measure.protocol import Protocol
from symprune.models import EMBEDDED


def is_gated(model: str, protocol: Protocol) -> bool:
    """Whether the dense perplexity must be known before `model` is pruned: a value is stored for it, or it is
    a model of the hub.
    """
    return _expected(model, protocol) is not None or _is_of_the_hub(model)


def check_dense(model: str, protocol: Protocol, perplexity: float, bos: bool) -> None:
    """Compare a dense perplexity with the one stored for the model and protocol (corpus, split, seq_len,
    n_eval).

    Raises UserError for one that deviates by more than the tolerance; warns of a model of the hub for which
    none is stored.
    """
    expected = _expected(model, protocol)
    if expected is None:
        if _is_of_the_hub(model):
            warnings.warn(
                f"no dense perplexity is stored for {model} under this protocol: {perplexity:.2f} goes on"
                " record, compare it with a published one",
                stacklevel=2,
            )
    elif not abs(perplexity / expected["perplexity"] - 1) <= expected["tolerance"]:
        policy = "with" if bos else "without"
        raise UserError(
            f"the dense perplexity of {model} is {perplexity:.2f}, not {expected['perplexity']:.2f} within"
            f" {expected['tolerance']:.1%} ({expected['source']}), so nothing is pruned: look for other"
            f" weights, another tokenizer or BOS policy (here {policy} BOS), other evaluation text, or a"
            " dtype too narrow"
        )


def _expected(model: str, protocol: Protocol) -> dict | None:
    evaluation = {
        "corpus": protocol.evaluation_corpus,
        "split": protocol.evaluation_split,
        "seq_len": protocol.eval_seq_len,
        "n_eval": protocol.n_eval,
    }
    found = (entry for entry in _entries() if (entry["model"], entry["protocol"]) == (model, evaluation))
    return next(found, None)


def _is_of_the_hub(model: str) -> bool:
    return model != EMBEDDED and not Path(model).is_dir()


@functools.cache
def _entries() -> list[dict]:
    return yaml.safe_load(Path(__file__).with_name("dense.yaml").read_text(encoding="utf-8"))
