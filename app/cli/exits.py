"""Exit codes: what scripts can rely on, and which error ends with which."""

from enum import IntEnum

from app.domain import errors


class ExitCode(IntEnum):
    OK = 0
    ERROR = 1
    BAD_INPUT = 2
    NOT_FOUND = 3
    UNAUTHENTICATED = 4
    UNREACHABLE = 5
    JOB_FAILED = 100
    JOB_CANCELLED = 103
    NOT_IDENTICAL = 104
    NOT_WHOLE = 105
    TIMED_OUT = 124
    INTERRUPTED = 130


_BY_ERROR: dict[type[errors.LoradError], ExitCode] = {
    errors.InvalidInput: ExitCode.BAD_INPUT,
    errors.TooLarge: ExitCode.BAD_INPUT,
    errors.Conflict: ExitCode.BAD_INPUT,
    errors.StartupError: ExitCode.BAD_INPUT,
    errors.NotFound: ExitCode.NOT_FOUND,
    errors.Unauthenticated: ExitCode.UNAUTHENTICATED,
    errors.UntrustedHost: ExitCode.UNAUTHENTICATED,
    errors.RateLimited: ExitCode.UNREACHABLE,
    errors.Unavailable: ExitCode.UNREACHABLE,
}


def of_error(error: errors.LoradError) -> ExitCode:
    """Return the code of the nearest class in the error's ancestry."""
    for kind in type(error).__mro__:
        if kind in _BY_ERROR:
            return _BY_ERROR[kind]
    return ExitCode.ERROR
