"""Whether a model predicts every token from those before it: what calibration and perplexity rest on."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from symprune.base.errors import UserError
from symprune.models.layers import decoder_layers, max_seq_len
from symprune.models.remembered import holds

_Given = ParamSpec("_Given")
_Found = TypeVar("_Found")
_N_TOKENS = 8
_CROSS_ATTENTION = ("encoder_attn", "cross_attn", "crossattention", "cross_attention")


def in_eval_mode(function: Callable[_Given, _Found]) -> Callable[_Given, _Found]:
    """`function`, whose first argument, `model`, is without dropout inside and as it was afterwards."""

    @functools.wraps(function)
    def without_dropout(*args: _Given.args, **kwargs: _Given.kwargs) -> _Found:
        model: Any = args[0] if args else kwargs["model"]
        training = [module for module in model.modules() if module.training]
        model.eval()
        try:
            return function(*args, **kwargs)
        finally:
            for module in training:
                module.training = True

    return without_dropout


def require_causal(model: nn.Module) -> None:
    """Raise UserError unless earlier tokens know nothing of the last, by a forward of two short inputs.

    They differ in their last token alone. Refused in words of their own are models with an encoder, and those
    that cannot be run on tokens alone.
    """
    holds(model, "is causal", lambda: _is_causal(model))


@torch.no_grad()
@in_eval_mode
def _is_causal(model: nn.Module) -> bool:
    kind = type(model).__name__
    _require_no_encoder(model, kind)
    embedding = model.get_input_embeddings().weight
    n_tokens = min(_N_TOKENS, max_seq_len(model) or _N_TOKENS)
    ids = (torch.arange(n_tokens, device=embedding.device)[None] + len(embedding) // 2) % len(embedding)
    other = ids.clone()
    other[0, -1] = (ids[0, -1] + 1) % len(embedding)
    try:
        one, two = (model(input_ids=each, use_cache=False).logits[0, :-1].float() for each in (ids, other))
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, AttributeError, KeyError, AssertionError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"{kind} cannot be run on tokens alone (does it need an image, or one dtype?): {first}"
        ) from error
    # Experts that receive another number of tokens may round otherwise.
    rounding = torch.finfo(embedding.dtype).eps ** 0.5 * one.abs().max()
    if (one - two).abs().max() > rounding:
        raise UserError(
            f"{kind} is not causal: what it predicts depends on later tokens, so it cannot be calibrated or"
            " scored as a language model (a BERT must say is_decoder in its config)"
        )
    return True


def _require_no_encoder(model: nn.Module, kind: str) -> None:
    made_for = getattr(model.config, "architectures", None) or []
    whole = next((name for name in made_for if name.endswith(("ForConditionalGeneration", "Model"))), None)
    attends = any(
        part in _CROSS_ATTENTION
        for layer in decoder_layers(model)
        for name, _ in layer.named_modules()
        for part in name.lower().split(".")
    )
    if getattr(model.config, "is_encoder_decoder", False) or (attends and whole is not None):
        raise UserError(
            f"{whole or kind} has an encoder that its decoder attends to: only models of a decoder alone can"
            " be pruned"
        )
