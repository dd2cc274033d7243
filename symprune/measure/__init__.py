"""What a model answers, and the grid of questions whose answers are kept as records."""

from symprune.measure.experiment import Experiment
from symprune.measure.perplexity import Perplexity, perplexity
from symprune.measure.zero_shot import ZeroShot, zero_shot

__all__ = ["Experiment", "Perplexity", "ZeroShot", "perplexity", "zero_shot"]
