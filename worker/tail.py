"""Reading events.jsonl while the trainer writes it."""

from pathlib import Path

from app.domain.events import TRAINER_EVENT, TrainerEvent


class Tail:
    """Yields the events of a growing file once each; a torn last line waits for its end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> list[TrainerEvent]:
        """Return the events that were completed since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        return [TRAINER_EVENT.validate_json(line) for line in complete.splitlines()]
