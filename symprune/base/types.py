"""Tensor shapes as types: checked at run time in the test suite, documentation everywhere else."""

from jaxtyping import Bool, Float, Int
from torch import Tensor

Weight = Float[Tensor, "d_out d_in"]
Scores = Float[Tensor, "d_out d_in"]
Mask = Bool[Tensor, "d_out d_in"]  # True = kept
# Tokens of one sample [tokens, d], or of several [samples, ..., d] with all that lies between as tokens.
Inputs = Float[Tensor, "... d_in"]
Outputs = Float[Tensor, "... d_out"]
Windows = Int[Tensor, "windows seq_len"]
Logits = Float[Tensor, "... vocabulary"]
