"""The tree of errors that lorad raises, each with a message, a code and the field at fault."""

from typing import ClassVar


class LoradError(Exception):
    """Root of all errors raised on purpose; anything else that escapes is a fault of ours.

    Args:
        message: What is wrong, with the values, and what to do about it.
        param: Dotted path of the request field at fault.
        code: Stable machine-readable name; the class default when not given.
    """

    default_code: ClassVar[str] = "error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.default_code


class InvalidInput(LoradError):
    default_code = "invalid_input"


class InvalidDataset(InvalidInput):
    default_code = "invalid_dataset"


class InvalidModel(InvalidInput):
    default_code = "invalid_model"


class TooLarge(LoradError):
    default_code = "too_large"


class Unauthenticated(LoradError):
    default_code = "invalid_api_key"


class UntrustedHost(LoradError):
    default_code = "untrusted_host"


class CrossOrigin(LoradError):
    """A browser was on a page of another host when it asked for a change."""

    default_code = "cross_origin"


class NotFound(LoradError):
    default_code = "not_found"


class Conflict(LoradError):
    default_code = "conflict"


class StateConflict(Conflict):
    """The job's state forbids the request; the message names the state and what is allowed."""

    default_code = "state_conflict"


class CheckpointUnusable(Conflict):
    """A checkpoint failed verification or does not fit the run that wants it."""

    default_code = "checkpoint_unusable"


class IdempotencyConflict(Conflict):
    default_code = "idempotency_conflict"


class InUse(Conflict):
    default_code = "in_use"


class RateLimited(LoradError):
    """As much as is allowed at once is asked for already; the same request works later."""

    default_code = "rate_limited"


class Unavailable(LoradError):
    """Something lorad needs is down; the same request may work later."""

    default_code = "unavailable"


class NoWorker(Unavailable):
    default_code = "no_worker"


class StartupError(LoradError):
    """A process cannot start: port in use, home not writable, another instance running."""

    default_code = "startup"


class Fenced(LoradError):
    """Another attempt owns the job now; this one must stop and write nothing more."""

    default_code = "fenced"


class TrainingError(LoradError):
    """A deterministic failure of a run: trying again with the same input fails again."""

    default_code = "training_error"


class NonFiniteStep(TrainingError):
    default_code = "nonfinite_step"


class AdapterUnhealthy(TrainingError):
    """The trained adapter failed its certificate; the message carries the measurement."""

    default_code = "adapter_unhealthy"


class NoMatchingLayers(TrainingError):
    default_code = "no_matching_layers"


class UntrainableModule(TrainingError):
    default_code = "untrainable_module"


class UnusableData(TrainingError):
    default_code = "unusable_data"


class ResumeMismatch(TrainingError):
    """The state on disk is not the state of this run, or it did not load completely."""

    default_code = "resume_mismatch"


class OutOfMemory(TrainingError):
    default_code = "out_of_memory"
