"""Faults that show when a request or a worker fails midway, or when users come in any order."""

from bench.mutants.mutant import Mutant, edit

_CHECKPOINTS = "app/db/checkpoints.py"
_FAULTS = "tests/api/test_faults.py"
_TWICE = f"{_FAULTS}::test_a_request_that_fails_anywhere_is_done_once_when_it_is_sent_again"
_MACHINE = "tests/services/test_state_machine.py::test_no_order_of_events_breaks_a_promise"
_BEST = (
    "tests/services/test_best.py::test_a_resume_puts_the_evaluations_back_to_those_of_the_branch"
)
_STREAMS = (
    "tests/chaos/test_api_deaths.py::test_streams_go_on_without_a_gap_across_deaths_of_the_api"
)
_API = (
    "tests/chaos/test_api_deaths.py"
    "::test_a_request_during_which_the_api_fails_is_done_once_when_it_is_sent_again"
)
_TOKENS = (
    "tests/chaos/test_failpoints.py"
    "::test_tokens_that_cannot_be_kept_leave_nothing_behind_that_is_taken_for_them"
)

MUTANTS = (
    Mutant(
        name="idempotency-key-remembered-after-the-job",
        violates="A4",
        breaks="A job whose answer was lost at the wrong moment is made again under its key.",
        edits=[
            edit(
                "app/services/jobs.py",
                "        job_id = job_queries.insert(session, project_id, spec)\n",
                "        job_id = job_queries.insert(session, project_id, spec)\n"
                "    with db.write() as session:\n",
            )
        ],
        tests=[_TWICE],
    ),
    Mutant(
        name="upload-key-not-remembered",
        violates="A4",
        breaks="An upload that is sent again under its key is stored twice.",
        edits=[
            edit(
                "app/services/datasets.py",
                "                _SCOPE,\n                idempotency_key,\n",
                "                _SCOPE,\n                dataset_id,\n",
            )
        ],
        tests=[_API],
        seconds=240.0,
    ),
    Mutant(
        name="upload-not-synced",
        violates="C5",
        breaks="The place where an upload is put on disk for good is never reached.",
        edits=[
            edit(
                "app/services/datasets.py",
                '        failpoints.hit("dataset.fsync")\n        os.fsync(file.fileno())\n',
                '        if size < 0:\n            failpoints.hit("dataset.fsync")\n',
            )
        ],
        tests=[_TWICE],
    ),
    Mutant(
        name="held-device-costs-a-crash",
        violates="crash budget",
        breaks="A job that finds its device held is counted as crashed.",
        edits=[
            edit(
                "app/services/runs.py",
                'values = {"not_before": db_now(wait_seconds), "rung_at": db_now()}',
                'values = {"not_before": db_now(wait_seconds), "rung_at": db_now()}\n'
                '        values["crash_streak"] = row.crash_streak + 1',
            )
        ],
        tests=[_MACHINE],
    ),
    Mutant(
        name="unpinned-stays-pinned",
        violates="retention",
        breaks="A checkpoint that was pinned once can never be deleted again.",
        edits=[edit(_CHECKPOINTS, 'values={"pinned": pinned}', 'values={"pinned": True}')],
        tests=[_MACHINE],
    ),
    Mutant(
        name="best-of-a-left-branch",
        violates="best",
        breaks="The best checkpoint is one that was left behind by a resume.",
        edits=[
            edit(
                _CHECKPOINTS,
                "            CheckpointRow.superseded.is_(False),\n"
                "            CheckpointRow.eval_loss.is_not(None),\n",
                "            CheckpointRow.eval_loss.is_not(None),\n",
            )
        ],
        tests=[_BEST],
    ),
    Mutant(
        name="stream-starts-again",
        violates="E4",
        breaks="A client that comes back gets everything again.",
        edits=[
            edit(
                "app/api/stream.py",
                "return int(match.group(1)), int(match.group(2))",
                "return 0, 0",
            )
        ],
        tests=[_STREAMS],
        seconds=240.0,
    ),
    Mutant(
        name="half-written-tokens-stay",
        violates="D7",
        breaks="Tokens that could not be kept stay on the full disk.",
        edits=[
            edit(
                "worker/training/token_cache.py",
                "        shutil.rmtree(temporary, ignore_errors=True)\n",
                "        pass\n",
            )
        ],
        tests=[_TOKENS],
    ),
)
