"""Faults in the live stream: a gap, something twice, or a branch that was left."""

from bench.mutants.mutant import Mutant, edit

_EVENTS = "app/db/trainer_events.py"
_STREAM = "app/stream.py"
_API = "app/api/stream.py"
_METRICS = "app/services/metrics.py"
_SUPERSEDING = "tests/services/test_superseding.py"
_TESTS = "tests/api/test_stream.py"
_ONE_HISTORY = f"{_SUPERSEDING}::test_a_replay_gives_one_history_whatever_the_cursor_sits_on"

MUTANTS = (
    Mutant(
        name="replay-starts-one-too-late",
        violates="E4",
        breaks="A client that comes back misses the first event.",
        edits=[
            edit(
                _EVENTS,
                "tuple_(TrainerEventRow.fence, TrainerEventRow.seq) > (fence, seq),",
                "tuple_(TrainerEventRow.fence, TrainerEventRow.seq) > (fence, seq + 1),",
            )
        ],
        tests=[_ONE_HISTORY],
    ),
    Mutant(
        name="replay-shows-left-branches",
        violates="E4",
        breaks="A stream replays steps that a resume left behind.",
        edits=[
            edit(
                _EVENTS,
                "            TrainerEventRow.superseded.is_(False),\n            tuple_(",
                "            tuple_(",
            )
        ],
        tests=[_ONE_HISTORY],
    ),
    Mutant(
        name="replay-ends-before-left-branches",
        violates="E4",
        breaks="A stream gets the left branch from Redis after the replay has passed it over.",
        edits=[
            edit(
                _METRICS,
                "return Replay(found, max(after, last, newest))",
                "return Replay(found, max(after, last))",
            )
        ],
        tests=[f"{_SUPERSEDING}::test_a_replay_ends_behind_what_was_superseded"],
    ),
    Mutant(
        name="gaps-in-the-live-stream",
        violates="E4",
        breaks="A live event that was lost is not fetched from the database.",
        edits=[
            edit(
                _API,
                "return (entry.fence, entry.seq - 1) == self._cursor",
                "return (entry.fence, entry.seq) > self._cursor",
            )
        ],
        tests=[f"{_TESTS}::test_a_live_event_that_was_lost_is_taken_from_the_database"],
    ),
    Mutant(
        name="duplicates-at-the-seam",
        violates="E4",
        breaks="The event at the seam between database and Redis is sent twice.",
        edits=[
            edit(
                _API,
                "return (entry.fence, entry.seq - 1) == self._cursor",
                "return (entry.fence, entry.seq) >= self._cursor",
            ),
            edit(
                _STREAM,
                'keys = {_live_key(job_id): f"{after[0]}-{after[1]}"',
                'keys = {_live_key(job_id): f"{after[0]}-{max(after[1] - 1, 0)}"',
            ),
        ],
        tests=[f"{_TESTS}::test_what_is_stored_is_replayed_and_what_comes_follows_until_the_end"],
        seconds=90,
    ),
    Mutant(
        name="redis-numbers-the-entries",
        violates="E4",
        breaks="Redis numbers the entries itself, so that no live event joins on to those before.",
        edits=[edit(_STREAM, 'id=f"{fence}-{event.seq}"', 'id="*"')],
        tests=[f"{_TESTS}::test_a_live_event_arrives_before_the_database_has_it"],
        seconds=90,
    ),
    Mutant(
        name="redis-outage-stops-the-stream",
        violates="E1",
        breaks="A stream ends with an error when Redis is away.",
        edits=[edit(_API, "except ConnectionError:", "except BlockingIOError:")],
        tests=[f"{_TESTS}::test_without_redis_a_stream_goes_on_from_the_database"],
        seconds=90,
    ),
    Mutant(
        name="redis-outage-stops-the-worker",
        violates="E1",
        breaks="A nudge or a hint fails its request when Redis is away.",
        edits=[
            edit(
                _STREAM,
                '_log.debug("Redis did not take a %s: %s", what, error)',
                "raise",
            )
        ],
        tests=["tests/api/test_outage.py::test_without_redis_a_job_is_accepted_and_can_be_claimed"],
    ),
)
