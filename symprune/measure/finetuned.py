"""Fine-tuning after pruning: LoRA on the pruned linears, merged, and the masks applied again."""

import copy
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from symprune import models
from symprune.base.errors import UserError
from symprune.base.progress import track
from symprune.base.records import Record
from symprune.base.types import Windows
from symprune.measure.bench import Bench
from symprune.measure.perplexity import perplexity
from symprune.measure.questions import pruned_name
from symprune.measure.record_rows import (
    calibration_columns,
    evaluation_columns,
    key_columns,
    loss_columns,
    name_columns,
    recipe_of,
)
from symprune.methods.recipe import Recipe
from symprune.pruning.mask_files import apply_masks, load_masks, save_masks
from symprune.text import corpora


def fine_tuned(
    model: nn.Module, windows: Windows, rank: int = 8, rate: float = 5e-4, seed: int = 0
) -> nn.Module:
    """A copy of the model with LoRA of its prunable linears trained on the windows and merged: dense again.

    One step of AdamW on each window, in order. Raises UserError where peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UserError("fine-tuning needs peft: run `pip install 'symprune[finetune]'`") from error
    model = copy.deepcopy(model)
    linears = [name for name, linear in models.named_linears(model).items() if isinstance(linear, nn.Linear)]
    device = next(model.parameters()).device
    with torch.random.fork_rng(), torch.enable_grad(), warnings.catch_warnings():
        # peft asks transformers by a name that it has given up
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(seed)
        adapted: Any = get_peft_model(
            model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=linears, task_type="CAUSAL_LM")
        )
        optimizer = torch.optim.AdamW((p for p in adapted.parameters() if p.requires_grad), lr=rate)
        for window in track(windows, "fine-tuning"):
            ids = window[None].to(device)
            adapted(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return adapted.merge_and_unload()


@dataclass(frozen=True)
class FineTuned:
    """Perplexity of the dense model, pruned, fine-tuned by LoRA and merged, and with its masks applied again;
    subject: a recipe.

    n_windows: of calibration text, one step each; rank, rate: see `fine_tuned`.
    """

    n_windows: int = 32
    rank: int = 8
    rate: float = 5e-4

    def question(self, bench: Bench, recipe: Recipe, seed: int) -> dict:
        """Model, recipe, calibration, evaluation, and what it is fine-tuned on and how."""
        lora = {**vars(self), "windows": corpora.digest(self._windows(bench, seed))}
        name = {**pruned_name(bench, recipe, seed), "evaluation": bench.evaluation_name()}
        name["model"] = name["model"] | bench.device_name  # training makes more of rounding
        return {**name, "finetuning": {"lora": lora, "seed": seed}}

    def measure(self, bench: Bench, recipe: Recipe, seed: int) -> dict:
        """Each stage on the same evaluation windows; masks go through a file, as with `symprune apply`."""
        stages = {"dense": self._stage(bench, bench.loaded.pristine())}
        model, _ = bench.pruned(recipe, seed)
        stages["pruned"] = self._stage(bench, model)
        weights = {name: models.weight_view(linear) for name, linear in models.named_linears(model).items()}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "masks.safetensors"
            save_masks(file, {name: weight != 0 for name, weight in weights.items()}, model)
            start = time.perf_counter()
            tuned = fine_tuned(model, self._windows(bench, seed), self.rank, self.rate, seed)
            seconds = time.perf_counter() - start
            stages["fine-tuned, merged"] = self._stage(bench, tuned)
            apply_masks(tuned, load_masks(file), other_weights=True)
        stages["masked again"] = self._stage(bench, tuned)
        return {"stages": stages, "seconds_finetune": seconds}

    def rows(self, record: Record) -> list[dict]:
        """A row for each stage."""
        recipe = recipe_of(record.run)
        return [
            {
                **name_columns(record, recipe),
                "stage": stage,
                "zeros": metrics["zeros"],
                **calibration_columns(record.run["calibration"]),
                **evaluation_columns(record),
                "dtype": record.run["model"]["dtype"],
                **loss_columns(metrics),
                "seconds_finetune": record.metrics["seconds_finetune"],
                **key_columns(record, recipe),
            }
            for stage, metrics in record.metrics["stages"].items()
        ]

    def _windows(self, bench: Bench, seed: int) -> Windows:
        p = bench.protocol
        return corpora.calibration_windows(
            p.calibration_corpus, bench.tokenizer, self.n_windows, p.seq_len, seed
        )

    @staticmethod
    def _stage(bench: Bench, model: nn.Module) -> dict[str, Any]:
        """Perplexity, and the share of zeros among the weights of the prunable linears."""
        value = perplexity(model, bench.evaluation_windows, batch_size=bench.protocol.batch_size)
        weights = [models.weight_view(linear) for linear in models.named_linears(model).values()]
        return {
            "perplexity": float(value),
            "perplexity_stderr": None if value.stderr != value.stderr else value.stderr,
            "window_losses": list(value.losses),
            "zeros": sum(int((weight == 0).sum()) for weight in weights) / sum(w.numel() for w in weights),
        }
