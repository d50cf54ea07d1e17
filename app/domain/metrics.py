"""StepMetrics: what is measured at every optimizer step."""

from pydantic import BaseModel, ConfigDict


class StepMetrics(BaseModel):
    """Measurements of one optimizer step."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    step: int
    """Optimizer step, counted from 1."""
    epoch: float
    """Passes over the data completed after this step."""
    loss: float | None
    """Cross-entropy in nats per target token; null when it was not finite."""
    grad_norm: float | None
    """L2 norm of the adapter's gradient before clipping; null when it was not finite."""
    param_norm: float | None
    """L2 norm of the adapter's weights before the update."""
    learning_rate: float
    """Learning rate of this update."""
    num_tokens: int
    """Tokens in the step, prompts included, no padding."""
    num_target_tokens: int
    """Tokens that the loss is computed on."""
    step_seconds: float
    """Wall-clock time of the step in seconds."""
    tokens_per_second: float
    """num_tokens / step_seconds."""
    peak_memory_bytes: int
    """Highest memory use so far in bytes: of the GPU on CUDA, of the trainer process on CPU."""
    batch_sha: str
    """First 16 hex digits of the SHA-256 of the step's row numbers: equal steps saw equal rows."""
