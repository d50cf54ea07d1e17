"""The watchdog: who moves is left alone, who stands still is told of."""

import time
from pathlib import Path

import pytest

from worker.watchdog import Watchdog


class Clock:
    """A clock that moves when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_counter_that_moves_is_never_still(clock: Clock, tmp_path: Path):
    pulse = tmp_path / "pulse"
    watchdog = Watchdog(pulse, seconds=10)

    for count in range(20):
        pulse.write_bytes(count.to_bytes(8, "little"))
        clock.now += 9
        assert not watchdog.is_still()


def test_a_counter_that_stands_is_still_after_its_time_and_not_before(clock: Clock, tmp_path: Path):
    pulse = tmp_path / "pulse"
    pulse.write_bytes(b"1")
    watchdog = Watchdog(pulse, seconds=10)
    clock.now += 2
    assert not watchdog.is_still()

    clock.now += 10
    assert not watchdog.is_still()
    clock.now += 1
    assert watchdog.is_still()


def test_a_trainer_that_never_counts_is_still_too(clock: Clock, tmp_path: Path):
    watchdog = Watchdog(tmp_path / "pulse", seconds=10)
    clock.now += 100
    watchdog.start()

    clock.now += 9
    assert not watchdog.is_still()
    clock.now += 2
    assert watchdog.is_still()


def test_a_supervisor_that_was_stopped_itself_looks_before_it_judges(clock: Clock, tmp_path: Path):
    pulse = tmp_path / "pulse"
    pulse.write_bytes(b"1")
    watchdog = Watchdog(pulse, seconds=10)
    watchdog.is_still()

    pulse.write_bytes(b"2")
    clock.now += 1000

    assert not watchdog.is_still()
