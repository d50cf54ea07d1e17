"""Losses and gradients that are not finite: the update is not applied, and then?"""

import math
from collections.abc import Sequence

from pydantic import JsonValue
from torch import nn

from app.domain.errors import NonFiniteStep
from worker.training.gradients import place_of, shortened
from worker.training.reporting import EventLog
from worker.training.session import Session
from worker.training.step import NotApplied, StepResult

_LINES_IN_MESSAGE = 20
_LINES_IN_DATA = 1000


def settle(session: Session, log: EventLog, step: int, error: NotApplied) -> StepResult:
    """Do what `monitoring.on_nonfinite` says with a step whose update was not applied.

    Returns:
        What the skipped step measured.

    Raises:
        NonFiniteStep: The policy is to stop, too many steps in a row were skipped, or the weights
            are broken, so that no later step could be any better.
    """
    monitoring, progress = session.run.spec.monitoring, session.progress
    what = f"step {step} is not finite: {error.message}. {_blame(session, error)}"
    lines = session.lines_of(step)
    what += f"Its data: {_of_lines(lines)}."
    if error.result.param_norm is None:
        what += " The weights themselves are not finite, so no later step could be any better."
    elif monitoring.on_nonfinite == "skip":
        if progress.skipped_in_a_row < monitoring.max_nonfinite_in_a_row:
            _skip(session, log, step, what, lines)
            return error.result
        what += (
            f" {progress.skipped_in_a_row} steps in a row were skipped before it, as many as"
            " monitoring.max_nonfinite_in_a_row allows."
        )
    session.flow.report(log, step=step, learning_rate=0.0, num_updates=progress.num_updates)
    log.notice(step=step, code="nonfinite_step", message=what, **_data(lines))
    raise NonFiniteStep(f"{what} {_remedy(session)}")


def may_save(session: Session) -> bool:
    """Tell whether the weights are fit for a checkpoint.

    An update can break them, say by overflow, after its step was judged. After the last step that
    is for the certificate to tell; there is just no checkpoint of them.

    Raises:
        NonFiniteStep: A trained weight is not finite, and there are steps to go.
    """
    norm = nn.utils.get_total_norm([p.detach() for p in session.parameters]).item()
    if math.isfinite(norm):
        return True
    if session.is_done():
        return False
    raise NonFiniteStep(
        f"the update of step {session.progress.step} left weights that are not finite (norm"
        f" {norm}); they are not saved. {_remedy(session)}"
    )


def _skip(session: Session, log: EventLog, step: int, what: str, lines: Sequence[int]) -> None:
    progress = session.progress
    progress.num_skipped += 1
    progress.skipped_in_a_row += 1
    log.notice(
        step=step,
        code="nonfinite_skipped",
        message=f"{what} Skipped; {progress.num_skipped} steps so far,"
        f" {progress.skipped_in_a_row} in a row",
        num_skipped=progress.num_skipped,
        skipped_in_a_row=progress.skipped_in_a_row,
        **_data(lines),
    )


def _blame(session: Session, error: NotApplied) -> str:
    names = list(session.adapted.parameters)
    broken = [str(place_of(names[index])) for index in error.broken]
    if not broken or len(broken) == len(names):
        return ""
    return f"The gradient is not finite in {shortened(broken)}. "


def _of_lines(lines: Sequence[int]) -> str:
    shown = ", ".join(map(str, lines[:_LINES_IN_MESSAGE]))
    rest = len(lines) - _LINES_IN_MESSAGE
    return f"line{'s' if len(lines) > 1 else ''} {shown}" + (
        f" and {rest} more" if rest > 0 else ""
    )


def _data(lines: Sequence[int]) -> dict[str, JsonValue]:
    return {"lines": list(lines[:_LINES_IN_DATA]), "num_lines": len(lines)}


def _remedy(session: Session) -> str:
    saved = session.saved.step
    kept = (
        f"The checkpoint of step {saved} is kept; resume from it with a lower learning rate"
        f" (`lorad resume JOB --from {saved} --set training.learning_rate=...`)"
        if saved
        else "There is no checkpoint yet; submit the job again with a lower learning rate"
    )
    return f"{kept}, mend the lines, or set monitoring.on_nonfinite to skip in a new job"
