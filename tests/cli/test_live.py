"""The live stream misses nothing and repeats nothing when the connection is lost."""

import pytest

from app.cli import live
from app.cli.client import Client
from app.domain.errors import NotFound, Unavailable
from app.domain.jobs import JobState
from tests.cli.conftest import JOB_ID, make_job, problem, sse, step_message, stream

ROUTE = f"GET /jobs/{JOB_ID}/stream"
COMPLETE = sse("complete", make_job(JobState.SUCCEEDED))
STATE = sse("state", make_job())


def read(api, **options):
    with Client(api.url) as client:
        return [(m.event, m.id) for m in live.messages(client, JOB_ID, **options)]


def test_a_stream_ends_with_complete(api):
    api.on(
        ROUTE, stream(": hello\nretry: 3000\n\n", ": ping\n\n", STATE, step_message(1), COMPLETE)
    )

    assert [event for event, _ in read(api)] == ["state", "step", "complete"]
    assert "last-event-id" not in api.requests[0].headers


@pytest.mark.parametrize("breaks", [True, False])
def test_a_lost_connection_goes_on_after_the_last_message(api, breaks):
    lost = []
    api.on(
        ROUTE,
        stream(step_message(1), step_message(2), STATE, breaks=breaks),
        stream(step_message(3), COMPLETE),
    )

    seen = read(api, on_lost=lost.append)

    assert [event_id for event, event_id in seen if event == "step"] == ["1-1", "1-2", "1-3"]
    assert api.requests[1].headers["last-event-id"] == "1-2"
    assert len(lost) == 1


def test_an_api_that_restarts_is_waited_for(api):
    away = problem(503, "starting")
    api.on(ROUTE, stream(step_message(1), breaks=True), away, away, stream(COMPLETE))

    assert [event for event, _ in read(api)] == ["step", "complete"]
    assert api.requests[3].headers["last-event-id"] == "1-1"


def test_patience_ends(api):
    api.on(ROUTE, stream(step_message(1), breaks=True), problem(503, "starting"))

    with pytest.raises(Unavailable, match="cannot be read: starting"):
        read(api, patience_seconds=0)


def test_an_unknown_job_is_not_waited_for(api):
    api.on(ROUTE, problem(404, "no job"))

    with pytest.raises(NotFound, match="no job"):
        read(api)


def test_an_api_that_was_never_there_is_not_waited_for():
    with Client("http://127.0.0.1:9") as client, pytest.raises(Unavailable):
        list(live.messages(client, JOB_ID))
