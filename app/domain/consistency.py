"""Keys that contradict each other, or would do nothing: refused when a job is submitted."""

from app.domain.errors import InvalidInput
from app.domain.options import TrainingSpec
from app.domain.spec import JobSpec


def require(spec: JobSpec) -> None:
    """Refuse a spec in which one key silently overrides another.

    A stored job is not checked again: a resume may give it a new horizon.

    Raises:
        InvalidInput: Two keys do not go together; the message names both and the remedy.
    """
    _require_one_horizon(spec.training)
    _require_warmup(spec.training)


def _require_one_horizon(training: TrainingSpec) -> None:
    default = TrainingSpec.model_fields["num_train_epochs"].default
    if training.max_steps is not None and training.num_train_epochs != default:
        raise InvalidInput(
            f"max_steps = {training.max_steps} and num_train_epochs = {training.num_train_epochs:g}"
            " both say how long to train; give one of them",
            param="training.num_train_epochs",
            code="contradiction",
        )


def _require_warmup(training: TrainingSpec) -> None:
    default = TrainingSpec.model_fields["warmup_steps"].default
    if training.lr_scheduler_type == "constant" and training.warmup_steps not in (0, default):
        raise InvalidInput(
            f"lr_scheduler_type = constant has no warm-up, so warmup_steps ="
            f" {training.warmup_steps:g} would do nothing; use constant_with_warmup, or leave it"
            " out",
            param="training.warmup_steps",
            code="contradiction",
        )
    if training.max_steps is not None and training.warmup_steps >= max(training.max_steps, 1):
        raise InvalidInput(
            f"warmup_steps = {training.warmup_steps:g} does not end within max_steps ="
            f" {training.max_steps}, so the learning rate is never reached; lower warmup_steps",
            param="training.warmup_steps",
            code="contradiction",
        )
