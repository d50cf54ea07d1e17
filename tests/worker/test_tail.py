"""A growing file is read once, and never half a line of it."""

from datetime import UTC, datetime
from pathlib import Path

from app.domain.events import NoticeEvent
from worker.tail import Tail


def line(seq: int) -> bytes:
    event = NoticeEvent(seq=seq, at=datetime.now(UTC), step=seq, code="c", message="m")
    return event.model_dump_json().encode() + b"\n"


def test_every_line_comes_once_and_only_when_it_is_whole(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    tail = Tail(path)
    nothing = tail.read()
    path.write_bytes(line(1) + line(2)[:20])
    first = tail.read()
    again = tail.read()
    with path.open("ab") as file:
        file.write(line(2)[20:])

    second = tail.read()

    assert nothing == again == []
    assert [event.seq for event in first] == [1]
    assert [event.seq for event in second] == [2]
