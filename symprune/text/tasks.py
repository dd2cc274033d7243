"""Zero-shot tasks for lm-eval: seven of its own, and one made of the embedded corpus.

The data of the seven come from SYMPRUNE_DATA or the hub.
"""

import contextlib
import functools
import hashlib
import io
import itertools
import json
import logging
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from symprune.base import paths
from symprune.base.errors import UserError, unknown
from symprune.models.load import quiet_transformers
from symprune.text.embedded import embedded_articles, embedded_titles

CONTINUATION = "continuation"

# The official file of each task inside lm_eval/tasks: named, so that 14 000 others need not be read.
_OFFICIAL = {
    "boolq": "super_glue/boolq/default.yaml",
    "rte": "glue/rte/default.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "winogrande": "winogrande/default.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
}

TASKS = (CONTINUATION, *_OFFICIAL)

_CHOICE_WORDS, _CONTEXT_WORDS = 12, (20, 48)  # words of a choice; fewest and most of a context


def load_tasks(names: Sequence[str]) -> dict[str, Any]:
    """lm-eval's task objects by name, in order: official prompts, without examples in them.

    Raises UserError for an unknown task, and where its data are neither in SYMPRUNE_DATA nor to be had from
    the hub.
    """
    for name in names:
        if name not in TASKS:
            raise unknown("task", name, TASKS)
    if not names:
        raise UserError(f"no task is named: choose from {', '.join(TASKS)}")
    require_lm_eval()
    return {
        name: _continuation_task() if name == CONTINUATION else _official_task(name)
        for name in dict.fromkeys(names)
    }


def source_of(name: str) -> dict[str, str]:
    """Where an official task reads on the hub: `repo`, `config` and `split`.

    Raises UserError if it is none of the seven.
    """
    if name not in _OFFICIAL:
        raise unknown("task of the hub", name, _OFFICIAL)
    found: dict[str, Any] = {}
    file: Path | None = _official_file(name)
    while file:  # a file may include another, whose entries it overrides
        entries = yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
        found = {**entries, **found}
        file = file.parent / entries["include"] if "include" in entries else None
    splits = [found[key] for key in ("test_split", "validation_split") if found.get(key, "null") != "null"]
    config = found.get("dataset_name", "null")
    return {
        "repo": found["dataset_path"],
        "config": "default" if config == "null" else config,
        "split": splits[0],
    }


@functools.lru_cache
def identity(task: Any, limit: int | None) -> dict:
    """What a task's score depends on: its version, a hash of the first `limit` examples (None: of all)."""
    digest = hashlib.sha256()
    with quiet():  # lm-eval prepares all examples anew
        for example in itertools.islice(task.eval_docs, limit):
            digest.update(json.dumps(example, sort_keys=True).encode())
    return {"version": str(task.config.metadata["version"]), "examples": digest.hexdigest()[:16]}


def continuation_examples(split: str = "evaluation") -> list[dict]:
    """Which of four passages continues an article of the embedded corpus?

    Each row holds a context, four choices, and the label of the true one. The context ends where a sentence
    begins; the choices are the first twelve words of that sentence and of three other sentences, from other
    paragraphs of the same article. What is chosen and in which order is decided by hashes: the same
    everywhere, and the first n rows are of many articles.
    """
    articles = embedded_articles()
    rows = {}
    for title in embedded_titles(split):
        paragraphs = [_sentences(paragraph) for paragraph in articles[title].split("\n\n")]
        starts = [
            (p, s)
            for p, sentences in enumerate(paragraphs)
            for s in range(len(sentences))
            if len(sentences[s]) >= _CHOICE_WORDS
        ]
        around = sorted(starts, key=lambda start, title=title: _order(title, *start))
        for turn, (p, s) in enumerate(around):
            context = [word for sentence in paragraphs[p][:s] for word in sentence][-_CONTEXT_WORDS[1] :]
            if len(context) < _CONTEXT_WORDS[0]:
                continue
            others = (start for start in around[turn:] + around[:turn] if start[0] != p)
            places = [(p, s), *itertools.islice(others, 3)]
            key = _order(title, p, s)
            places.sort(key=lambda place, key=key: _order(key, *place))
            choices = [" ".join(paragraphs[p][s][:_CHOICE_WORDS]) for p, s in places]
            if len(set(choices)) == 4:
                rows[key] = {
                    "title": title,
                    "context": " ".join(context),
                    "choices": choices,
                    "label": places.index((p, s)),
                }
    return [rows[key] for key in sorted(rows)]


@contextlib.contextmanager
def quiet(progress: bool = False) -> Iterator[None]:
    """Inside, lm-eval, datasets, transformers and the hub's client are silent; progress: but for bars."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with (
            quiet_transformers(),
            contextlib.nullcontext() if progress else contextlib.redirect_stderr(io.StringIO()),
        ):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def require_lm_eval() -> None:
    """Raises UserError where lm-eval is not installed."""
    try:
        import lm_eval.tasks  # noqa: F401
    except ImportError as error:
        raise UserError(
            "zero-shot evaluation needs lm-eval: run `pip install 'symprune[zeroshot]'`"
        ) from error


def _sentences(paragraph: str) -> list[list[str]]:
    return [sentence.split() for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", paragraph)]


def _order(*of: object) -> str:
    return hashlib.sha256("|".join(map(str, of)).encode()).hexdigest()


def _continuation_task() -> Any:
    from datasets import Dataset

    rows = continuation_examples()
    metrics = [
        {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")
    ]
    config = {
        "task": CONTINUATION,
        "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_target": "label",
        "doc_to_choice": "choices",
        "num_fewshot": 0,
        "metric_list": metrics,
        "metadata": {"version": 1.0},
    }
    return _load(config)


def _official_task(name: str) -> Any:
    from datasets.exceptions import DatasetsError

    source, mirror = source_of(name), paths.hub_mirror()
    local = mirror / source["repo"] if mirror and (mirror / source["repo"]).is_dir() else None
    # lm-eval looks at the splits that examples in the prompt would come from, though there are none.
    splits = {f"{kind}_split": None for kind in ("training", "validation", "test")} | {
        "test_split": source["split"]
    }
    config = {"include": str(_official_file(name)), "dataset_path": str(local or source["repo"]), **splits}
    try:
        with tempfile.TemporaryDirectory() as folder:
            if local:
                # datasets tells folders apart by their last names, whatever lies in them: its own cache would
                # answer with the rows of another, or with those that lay here before
                config["dataset_kwargs"] = {"cache_dir": folder, "keep_in_memory": True}
            file = Path(folder) / f"{name}.yaml"
            file.write_text(yaml.safe_dump(config), encoding="utf-8")
            return _load(str(file))
    except Exception as error:  # whatever broken data make of it
        if local:
            raise UserError(
                f"cannot read {source['config']} of {local} for the task {name}: fetch it again"
            ) from error
        if not isinstance(error, (OSError, DatasetsError, ValueError)):
            raise
        raise UserError(
            f"cannot reach the hub for the task {name}: provide a connection to it, or"
            f" $SYMPRUNE_DATA/{source['repo']} (`symprune fetch` writes it), or take the task"
            f" {CONTINUATION!r}"
        ) from error


def _official_file(name: str) -> Path:
    import lm_eval

    return Path(lm_eval.__file__).parent / "tasks" / _OFFICIAL[name]


def _load(spec: dict | str) -> Any:
    from lm_eval.tasks import TaskManager

    with quiet():
        (task,) = TaskManager(include_defaults=False).load([spec])["tasks"].values()
    return task
