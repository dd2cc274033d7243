"""What a model answers, and the grid of questions whose answers are kept as records."""

from symprune.measure.dense_outputs import DenseOutputs, dense_outputs
from symprune.measure.experiment import Experiment
from symprune.measure.finetuned import FineTuned
from symprune.measure.perplexity import Perplexity, perplexity
from symprune.measure.protocol import Protocol
from symprune.measure.questions import Accuracy, MaskOverlap, ScoreTime, WindowLosses
from symprune.measure.refinement_terms import RefinementTerms
from symprune.measure.zero_shot import ZeroShot, zero_shot

__all__ = [
    "Accuracy",
    "DenseOutputs",
    "Experiment",
    "FineTuned",
    "MaskOverlap",
    "Perplexity",
    "Protocol",
    "RefinementTerms",
    "ScoreTime",
    "WindowLosses",
    "ZeroShot",
    "dense_outputs",
    "perplexity",
    "zero_shot",
]
