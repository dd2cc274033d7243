"""What was found out about a model by running it, for as long as it is built as it was."""

import weakref
from collections.abc import Callable, Hashable
from typing import Any

from torch import nn

# By model: how it was built, and what held of it then.
_found: weakref.WeakKeyDictionary[nn.Module, tuple[tuple, set[Hashable]]] = weakref.WeakKeyDictionary()


def holds(model: nn.Module, question: Hashable, check: Callable[[], bool]) -> bool:
    """The answer of `check`, which is not asked again where it held before for this very model as it is now.

    question: what is asked, and what else the answer depends on. A model counts as another one as soon as a
    module, a forward, a hook, its config, or the shape, type or device of a parameter is another; the values
    of weights are no part of it. What did not hold is asked again: it can lie in the values (an overflow).
    """
    built = _built(model)
    before, held = _found.get(model, (None, frozenset()))
    if before == built and question in held:
        return True
    answer = check()
    if answer:
        _found[model] = built, {question, *(held if before == built else ())}
    return answer


def _built(model: nn.Module) -> tuple:
    """How a model is built; it holds on to nothing of the model, or the model would never be let go."""
    configs = {id(c): c for module in model.modules() if (c := getattr(module, "config", None)) is not None}
    modules = tuple(
        (
            name,
            type(module),
            _weakly(type(module).forward),
            _weakly(vars(module).get("forward")),  # set by another library, accelerate for one
            tuple(module._forward_hooks),
            tuple(module._forward_pre_hooks),
            module.training,
        )
        for name, module in model.named_modules()
    )
    tensors = tuple((name, p.shape, p.dtype, p.device) for name, p in model.named_parameters())
    return modules, tensors, tuple(map(_told, configs.values())), getattr(model, "layers_path", None)


def _told(config: Any) -> str:
    return repr(vars(config) if hasattr(config, "__dict__") else config)


def _weakly(function: Any) -> Any:
    return None if function is None else weakref.ref(function)
