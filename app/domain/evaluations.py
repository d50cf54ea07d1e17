"""Evaluations: the loss on rows that are not trained on."""

from pydantic import BaseModel, ConfigDict


class Evaluation(BaseModel):
    """One pass over the evaluation rows; every token weighs the same."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    step: int
    """Optimizer steps done."""
    epoch: float
    """Passes over the training data completed."""
    eval_loss: float | None
    """Cross-entropy in nats per target token; null when it was not finite."""
    token_accuracy: float
    """Share of the target tokens that the model finds most likely, 0 to 1."""
    num_rows: int
    """Rows evaluated on."""
    num_target_tokens: int
    """Tokens that the loss is computed on."""
    is_best: bool
    """Whether this is the lowest loss of the run so far."""
    num_since_best: int
    """Evaluations in a row since the best one; 0 for the best itself."""
    seconds: float
    """Time the evaluation took in seconds."""
