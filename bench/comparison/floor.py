"""The floor of a step: the arithmetic that nobody can leave out, at the speed of this machine."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """What the arithmetic of a model with its adapter depends on."""

    num_layers: int
    block_parameters: int
    """Weights of all linear layers inside the decoder layers."""
    lora_parameters: int
    attention_width: int
    """Heads times the size of a head."""
    hidden_size: int
    vocabulary: int
    linears: Sequence[Sequence[int]] = ()
    """Inputs and outputs of each linear layer of one decoder layer."""


def step_flops(shape: Shape, lengths: Sequence[int], num_targets: int) -> float:
    """Return the floating-point operations of one optimizer step on rows of these lengths.

    A frozen weight costs 4 per parameter and token (forward, and backward to the input), an
    adapter weight 6, causal attention 7 S d per token and layer (2 forward, 2.5 times that
    backward), and the LM head 4 V d for each target. Padding is work for nothing: none is counted.
    """
    num_tokens = sum(lengths)
    per_token = 4 * shape.block_parameters + 6 * shape.lora_parameters
    pairs = sum(length * length for length in lengths)
    attention = 7 * shape.attention_width * shape.num_layers * pairs
    head = 4 * shape.vocabulary * shape.hidden_size * num_targets
    return float(num_tokens * per_token + attention + head)
