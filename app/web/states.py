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
