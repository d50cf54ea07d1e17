"""What is told of an error: whose fault it is, and what to do."""

import traceback

from app.domain.errors import InvalidInput, LoradError, OutOfMemory, TrainingError
from app.domain.inference import Failed
from worker.training.inference import room


def failure_of(error: Exception) -> Failed:
    """Say what becomes of a request that met an error; what nobody expected goes to the log."""
    if isinstance(error, LoradError):
        is_input = isinstance(error, InvalidInput | TrainingError)
        return Failed(
            code=error.code,
            message=error.message,
            param=error.param,
            is_input_at_fault=is_input and not isinstance(error, OutOfMemory),
        )
    if room.is_lack_of_memory(error):
        return Failed(code="no_memory", message=f"the model host ran out of memory: {error}")
    traceback.print_exception(error)
    return Failed(code="internal", message=f"{type(error).__name__}: {error}")
