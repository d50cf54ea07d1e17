"""Events: a line of events.jsonl is read back as it was written."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from app.domain.events import TRAINER_EVENT, FailedEvent, NoticeEvent, StepEvent, TrainerEvent
from app.domain.metrics import StepMetrics

KINDS = get_args(get_args(TrainerEvent)[0])
# All of a run's numbers are finite: JSON has no other.
FINITE = st.floats(allow_nan=False, allow_infinity=False)
OPTIONAL = st.none() | FINITE
MOMENTS = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - Hypothesis wants naive bounds
# Also in the reports inside events, whose fields Hypothesis fills in by their types.
st.register_type_strategy(float, FINITE)


def events() -> st.SearchStrategy[Any]:
    special = {"at": MOMENTS, "loss": OPTIONAL}
    return st.one_of(
        st.builds(kind, **{key: special[key] for key in special if key in kind.model_fields})
        for kind in KINDS
    )


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(events())
def test_an_event_is_read_back_as_it_was_written(event: Any):
    line = TRAINER_EVENT.dump_json(event)

    assert b"\n" not in line
    assert TRAINER_EVENT.validate_json(line) == event


def test_every_kind_has_a_name_of_its_own():
    names = [kind.model_fields["kind"].default for kind in KINDS]

    assert len(set(names)) == len(KINDS) == 12


def test_a_loss_that_is_not_finite_is_written_as_null():
    metrics = StepMetrics(
        step=1,
        epoch=0.1,
        loss=float("nan"),
        grad_norm=float("inf"),
        param_norm=None,
        learning_rate=1e-4,
        num_tokens=10,
        num_target_tokens=5,
        step_seconds=0.5,
        tokens_per_second=20.0,
        peak_memory_bytes=1,
        batch_sha="0" * 16,
    )
    event = StepEvent(seq=1, at=datetime.now(UTC), step=1, metrics=metrics)

    read = TRAINER_EVENT.validate_json(TRAINER_EVENT.dump_json(event))

    assert isinstance(read, StepEvent)
    assert (read.metrics.loss, read.metrics.grad_norm) == (None, None)


@pytest.mark.parametrize(
    "change", [{"kind": "progress"}, {"extra": 1}, {"seq": None}, {"step": "one"}, {"kind": None}]
)
def test_a_line_of_another_shape_is_refused(change: dict[str, Any]):
    good = NoticeEvent(seq=1, at=datetime.now(UTC), step=0, code="c", message="m")
    line = json.dumps({**good.model_dump(mode="json"), **change})

    with pytest.raises(ValidationError):
        TRAINER_EVENT.validate_json(line)


def test_a_torn_line_is_refused_at_every_length():
    event = FailedEvent(seq=3, at=datetime.now(UTC), step=2, code="out_of_memory", message="é")
    line = TRAINER_EVENT.dump_json(event)

    for length in range(len(line)):
        with pytest.raises(ValidationError):
            TRAINER_EVENT.validate_json(line[:length])


def test_times_keep_their_instant():
    at = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
    event = NoticeEvent(seq=1, at=at, step=0, code="c", message="m")

    read = TRAINER_EVENT.validate_json(TRAINER_EVENT.dump_json(event))

    assert read.at == at
    assert read.at.utcoffset() == timedelta(0)
