"""Steps done again after a resume: are they, bit for bit, what they were the first time?"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from app.db import jobs as job_queries
from app.db import replays
from app.db.replays import DoneStep, Start
from app.domain.events import StepEvent, TrainerEvent
from app.domain.metrics import StepMetrics
from app.domain.runs import AttemptKey

MISMATCH = "replay_mismatch"
COMPARED = ("loss", "grad_norm", "batch_sha")
# What changes no number of a step; any other difference makes two specs two runs.
_HARMLESS = ("name", "priority", "metadata", "resources", "monitoring", "preset")
_HARMLESS_IN_TRAINING = (
    "save_steps",
    "save_total_limit",
    "eval_steps",
    "logging_steps",
    "early_stopping_patience",
)

# The specs that made the steps of a history, in their order: (first step - 1, last step, numbers).
_History = list[tuple[int, int, dict[str, Any]]]


def compare(session: Session, key: AttemptKey, events: Sequence[TrainerEvent]) -> None:
    """Compare new steps with the same steps of earlier attempts, and count and tell differences.

    A step is compared with the newest earlier attempt that did it by the same spec, from the first
    step on, in all that changes numbers; one that did it by another spec has no equal to be.
    """
    new = [event for event in events if isinstance(event, StepEvent)]
    if key.attempt == 1 or not new:
        return
    done = replays.done_steps(
        session,
        key.job_id,
        first=min(event.step for event in new),
        last=max(event.step for event in new),
        before_fence=key.fence,
    )
    pairs = _pairs(session, key, new, [each for each in done if each.superseded])
    if not pairs:
        return
    different = [pair for pair in pairs if differences(pair[0].metrics, pair[1].metrics)]
    replays.count(
        session, key.job_id, fence=key.fence, replayed=len(pairs), mismatches=len(different)
    )
    if different and not replays.has_event(session, key.job_id, attempt=key.attempt, kind=MISMATCH):
        _tell(session, key, *different[0])


def differences(before: StepMetrics, now: StepMetrics) -> dict[str, Any]:
    """Return the values of two measurements of a step that are not the same to the last bit."""
    return {
        name: {"before": getattr(before, name), "now": getattr(now, name)}
        for name in COMPARED
        if _bits(getattr(before, name)) != _bits(getattr(now, name))
    }


def numbers_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a stored spec that decides the numbers of a key."""
    left = {key: value for key, value in spec.items() if key not in _HARMLESS}
    training = spec["training"]
    left["training"] = {k: v for k, v in training.items() if k not in _HARMLESS_IN_TRAINING}
    return left


def history(
    starts: Sequence[Start], saved: Sequence[tuple[int, int]], fence: int, step: int
) -> _History:
    """Return by which specs the steps up to `step` were made that attempt `fence` stands on.

    Args:
        starts: How the attempts of the job began.
        saved: (fence, step) of every checkpoint that was ever committed.
        fence: The attempt that did `step`.
        step: The end of the history.
    """
    by_fence = {each.fence: each for each in starts}
    parts: _History = []
    while True:
        start = by_fence[fence]
        parts.insert(0, (start.step, step, numbers_of(start.spec)))
        writers = [f for f, saved_step in saved if saved_step == start.step and f < fence]
        if start.step == 0 or not writers:
            return _joined(parts)
        # What is left behind cannot be resumed from, so it was the newest that wrote this step.
        fence, step = max(writers), start.step


def _joined(parts: _History) -> _History:
    """Join neighbours of equal numbers; a pause between them changed nothing."""
    joined: _History = []
    for begin, end, numbers in parts:
        if begin == end and begin > 0:
            continue  # it did no step
        if joined and joined[-1][2] == numbers:
            joined[-1] = (joined[-1][0], end, numbers)
        else:
            joined.append((begin, end, numbers))
    return joined


def _pairs(
    session: Session, key: AttemptKey, new: Sequence[StepEvent], done: Sequence[DoneStep]
) -> list[tuple[DoneStep, StepEvent]]:
    """Pair each new step with the newest earlier one that has the same history."""
    if not done:
        return []
    starts = replays.starts(session, key.job_id)
    saved = replays.saved_steps(session, key.job_id)
    pairs: list[tuple[DoneStep, StepEvent]] = []
    for event in new:
        ours = history(starts, saved, key.fence, event.step)
        for before in done:
            if before.metrics.step != event.step:
                continue
            if history(starts, saved, before.fence, event.step) == ours:
                pairs.append((before, event))
                break
    return pairs


def _tell(session: Session, key: AttemptKey, before: DoneStep, event: StepEvent) -> None:
    found = differences(before.metrics, event.metrics)
    values = "; ".join(f"{name} {each['before']} -> {each['now']}" for name, each in found.items())
    message = (
        f"step {event.step} was done again and is not what it was: {values}. Further differences"
        " of this attempt are counted in replay_mismatches only"
    )
    if replays.has_event(session, key.job_id, attempt=key.attempt, kind="surroundings_changed"):
        message += "; it runs in other surroundings, see the event surroundings_changed"
    job_queries.add_event(
        session,
        key.job_id,
        MISMATCH,
        message,
        attempt=key.attempt,
        data={"step": event.step, "fence_before": before.fence, **found},
    )


def _bits(value: object) -> object:
    return value.hex() if isinstance(value, float) else value
