"""Gradient flow: whether every adapter matrix gets a gradient and moves."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

MatrixState = Literal["healthy", "not_applicable", "dead", "not_moving", "nonfinite"]


class MatrixFlow(BaseModel):
    """One trained matrix at one step."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    layer: int | None
    """Number of the layer; null for what belongs to none."""
    module: str
    """Name of the adapted layer inside it, such as `self_attn.q_proj`."""
    matrix: str
    """`A`, `B`, or the name of another trained tensor (a DoRA magnitude, a bias, a saved module).
    """
    grad_norm: float | None
    """L2 norm of its gradient before clipping; null when it was not finite."""
    norm: float | None
    """L2 norm of its weights before the update; null when it was not finite."""
    distance: float | None
    """L2 distance from its weights at the start of the run."""
    update_ratio: float | None
    """L2 norm of this step's update divided by `norm`; null where the norm is 0."""
    state: MatrixState
    """`not_applicable`: no gradient can be expected yet; `dead`: it has none and should."""


class GradientFlow(BaseModel):
    """All trained matrices at one step."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    step: int
    """Optimizer step, counted from 1."""
    is_healthy: bool
    """Whether no matrix is dead, stuck or non-finite and nothing frozen has a gradient."""
    frozen_with_gradient: tuple[str, ...]
    """Names of frozen parameters that got a gradient; there must be none."""
    matrices: tuple[MatrixFlow, ...]
    """In the order of the model."""
