"""Text as windows of tokens, and zero-shot tasks: embedded, from files, or from the hub."""

from symprune.text.corpora import calibration_windows, evaluation_windows
from symprune.text.tasks import TASKS, load_tasks

__all__ = ["TASKS", "calibration_windows", "evaluation_windows", "load_tasks"]
