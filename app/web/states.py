"""How pages say a state: a mark, a word and a colour, never a colour alone."""

from typing import NamedTuple

from app.domain.jobs import JobState


class Face(NamedTuple):
    """The look of a state; `tone` is a class of app.css, empty for none."""

    mark: str
    tone: str


_FACES = {
    JobState.QUEUED: Face("◔", "quiet"),
    JobState.STARTING: Face("◑", "accent"),
    JobState.RUNNING: Face("▶", "accent"),
    JobState.STOPPING: Face("◼", "warn"),
    JobState.FINALIZING: Face("◕", "accent"),
    JobState.PAUSED: Face("‖", "warn"),
    JobState.SUCCEEDED: Face("✓", "good"),
    JobState.FAILED: Face("✕", "bad"),
    JobState.CANCELLED: Face("⊘", "quiet"),
}


def face(state: JobState) -> Face:
    return _FACES[state]


_MEANINGS = {
    JobState.QUEUED: "waits for a free worker",
    JobState.STARTING: "a worker has taken it and loads model and data",
    JobState.RUNNING: "trains",
    JobState.STOPPING: "saves a checkpoint and stops",
    JobState.FINALIZING: "has trained; the final adapter is written and certified",
    JobState.PAUSED: "stands still with a checkpoint; Resume goes on",
    JobState.SUCCEEDED: "is done; its final adapter is kept",
    JobState.FAILED: "ended with an error; what was saved is kept",
    JobState.CANCELLED: "was stopped for good; what was saved is kept",
}
_REASONS = {
    "drain": "its worker was told to end",
    "crash": "its trainer died and is started again",
    "early_stopping": "the evaluation loss got no better",
    "disk_full": "the disk is full; it goes on by itself when there is space",
}


def meaning(state: JobState, reason: str | None) -> str:
    """Say what a state means for its job, with the reason where one is known."""
    why = _REASONS.get(reason or "")
    return _MEANINGS[state] + (f" ({why})" if why else "")
