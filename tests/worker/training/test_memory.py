"""Memory: measured by phase, at the first step, at the end and on failure."""

import mmap
from pathlib import Path

import pytest
import torch

from app.domain.events import MemoryEvent
from tests.training_runs import Attempt, Workplace
from worker.training import memory
from worker.training.memory import MemoryMeter

_BLOCK = 64 << 20


@pytest.fixture
def meter() -> MemoryMeter:
    return MemoryMeter(torch.device("cpu"))


@pytest.fixture(scope="module")
def attempt(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Attempt:
    workplace = Workplace(tmp_path_factory.mktemp("run"), tiny_llama)
    return workplace.train(
        training={"max_steps": 3, "per_device_train_batch_size": 2, "eval_steps": 2},
        dataset={"val_size": 2},
    )


def use_a_block() -> None:
    # A map of its own: an allocator might serve it from what is resident already, or keep it.
    with mmap.mmap(-1, _BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        for offset in range(0, _BLOCK, mmap.PAGESIZE):
            block[offset] = 1


def reports(attempt: Attempt) -> list[MemoryEvent]:
    return [event for event in attempt.events if isinstance(event, MemoryEvent)]


def test_a_phase_shows_its_own_peak_and_not_an_earlier_one(meter: MemoryMeter):
    with meter.phase("data"):
        use_a_block()
    before = memory.resident_bytes()
    with meter.phase("train"):
        pass

    peaks = {each.phase: each.peak_bytes for each in meter.measured().phases}

    assert list(peaks) == ["data", "train"]
    assert peaks["data"] > before + _BLOCK // 2
    assert peaks["train"] < peaks["data"] - _BLOCK // 2
    assert meter.measured().peak_bytes == peaks["data"]


def test_a_phase_inside_another_counts_for_itself(meter: MemoryMeter):
    with meter.phase("train"), meter.phase("probe"):
        use_a_block()

    peaks = {each.phase: each.peak_bytes for each in meter.measured().phases}

    assert peaks["train"] < peaks["probe"] - _BLOCK // 2


def test_where_peaks_cannot_be_reset_the_report_says_so(
    meter: MemoryMeter, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(memory, "_CLEAR", Path("/nowhere/clear_refs"))

    with meter.phase("load"):
        pass

    assert meter.measured().is_by_phase is False
    assert meter.measured().peak_bytes > 0


def test_steps_that_follow_each_other_reset_nothing(
    meter: MemoryMeter, monkeypatch: pytest.MonkeyPatch
):
    resets: list[str] = []
    monkeypatch.setattr(MemoryMeter, "_reset", lambda self: resets.append("reset"))

    for _ in range(5):
        with meter.phase("train"):
            pass

    assert resets == ["reset"]


def test_an_attempt_reports_after_its_first_step_and_at_its_end(attempt: Attempt):
    first, last = reports(attempt)

    kinds = [event.kind for event in attempt.events]
    assert kinds.index("memory") < [i for i, kind in enumerate(kinds) if kind == "step"][1]
    assert kinds[-2:] == ["memory", "finished"]
    assert [each.phase for each in first.memory.phases] == ["data", "load", "train"]
    assert {"data", "load", "train", "evaluate", "save", "certify"} == {
        each.phase for each in last.memory.phases
    }
    assert last.memory.peak_bytes == max(each.peak_bytes for each in last.memory.phases)
    assert last.memory.limit_bytes is None


def test_step_metrics_show_the_highest_use_and_never_less_later(attempt: Attempt):
    peaks = [event.metrics.peak_memory_bytes for event in attempt.steps]

    assert peaks == sorted(peaks)
    assert peaks[0] > 50_000_000
