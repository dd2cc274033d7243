"""The card of a pruned model: what it is, how it was made, and what it is not."""

from typing import Any

import yaml

from symprune.base.errors import UserError
from symprune.base.records import Record
from symprune.methods.recipe import Recipe
from symprune.models.load import EMBEDDED

_BASES = {EMBEDDED: "HuggingFaceTB/SmolLM2-135M-Instruct"}
_LIMITS = """## What it is not

It is no smaller and no faster than the dense model: zeros are stored as any number (`symprune pack` leaves
them out of the files). Nothing was measured beyond what stands here.

`symprune.json` is the whole record, `masks.safetensors` holds the masks.
"""


def model_card(record: Record) -> str:
    """The README.md of a pruned model's folder, with front matter as model hubs read it, from its record."""
    model = record.run.get("model") or {}
    named = str(model.get("name", "an unnamed model"))
    name = _BASES.get(named, named)
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    front |= {"tags": ["pruned", "symprune"]}
    # a hub id; a folder is told below alone
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        front["base_model"] = name
    metrics = record.metrics
    facts = {
        "Base model": f"`{name}`, {model.get('dtype', 'unknown dtype')}",
        "Recipe": _recipe(record),
        "Sparsity": f"{metrics['sparsity']:.2%} of the weights of the linears that are pruned",
        "Of all matrices of the decoder layers": _percent(metrics.get("overall_sparsity")),
        "Calibration": _calibration(record.run.get("masks_of") or record.run),
        "Perplexity": f"{metrics['perplexity']:.4g}" if "perplexity" in metrics else None,
        "Made with": f"symprune {(record.meta.get('versions') or {}).get('symprune') or _version()}",
    }
    lines = "\n".join(f"- **{title}**: {text}" for title, text in facts.items() if text)
    head = (
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {name.rstrip('/').rsplit('/', 1)[-1]}, pruned"
    )
    return f"{head}\n\n{lines}\n\n{_LIMITS}"


def _recipe(record: Record) -> str | None:
    plain = record.run.get("recipe")
    if not isinstance(plain, dict):
        return None
    try:
        return f"`{Recipe.from_dict(plain).label}`"
    except UserError:  # a method of somebody's own
        return f"`{plain}`"


def _calibration(run: dict) -> str | None:
    if "calibration" not in run:
        return None
    asked = run["calibration"]
    if not asked:
        return "none: the recipe reads no text"
    if "corpus" not in asked:
        return "statistics gathered before"
    return (
        f"{asked['n_calib']} windows of {asked['seq_len']} tokens of `{asked['corpus']}`,"
        f" seed {asked['seed']}, propagate {asked['propagate']}"
    )


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value:.2%}"


def _version() -> str:
    import symprune

    return symprune.__version__
