"""Tensor shapes as types: checked at run time in the test suite, documentation everywhere else."""

from jaxtyping import Bool, Float, Int
from torch import Tensor

Weight = Float[Tensor, "d_out d_in"]
Scores = Float[Tensor, "d_out d_in"]
Mask = Bool[Tensor, "d_out d_in"]  # True = kept
Inputs = Float[Tensor, "tokens d_in"] | Float[Tensor, "samples tokens d_in"]
Outputs = Float[Tensor, "tokens d_out"] | Float[Tensor, "samples tokens d_out"]
Windows = Int[Tensor, "windows seq_len"]
