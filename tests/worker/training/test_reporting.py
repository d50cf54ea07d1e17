"""events.jsonl: every line is whole, and what must not be lost is on disk."""

import os
from pathlib import Path

import pytest

from tests.training_runs import TRAINER_EVENT
from worker.training.reporting import EventLog


def test_half_a_line_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "events.jsonl"
    real = os.write
    with EventLog(path) as log:
        log.notice(step=1, code="a", message="m")
        monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[: len(data) // 2]))
        with pytest.raises(OSError, match="bytes of an event written"):
            log.notice(step=2, code="b", message="m")
        monkeypatch.undo()
        log.notice(step=2, code="c", message="m")

    events = [TRAINER_EVENT.validate_json(each) for each in path.read_bytes().splitlines()]
    assert [(each.seq, each.code) for each in events] == [(1, "a"), (2, "c")]


def test_a_checkpoint_is_told_of_on_disk_and_a_notice_costs_no_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    with EventLog(tmp_path / "events.jsonl") as log:
        log.notice(step=1, code="a", message="m")
        before = len(synced)
        log.checkpoint(step=1, manifest_sha256="0" * 64, bytes=1, loss=1.0, save_seconds=0.1)

    assert (before, len(synced)) == (0, 1)
