"""Faults in how attempts end: crash budget, back-off, requests; and in how jobs are submitted."""

from bench.mutants.mutant import Mutant, edit

_RUNS = "app/services/runs.py"
_JOBS = "app/services/jobs.py"
_SUPERVISOR = "worker/supervisor.py"
_SETTLING = "tests/services/test_settling.py"
_LISTS = "tests/api/test_lists.py"
_BUDGET = f"{_SETTLING}::test_a_new_checkpoint_gives_the_budget_back_and_a_mere_start_does_not"

MUTANTS = (
    Mutant(
        name="crash-budget-reset-on-start",
        violates="A6",
        breaks="Every start gives the crash budget back, so a job that always crashes never ends.",
        edits=[
            edit(
                _RUNS,
                'require_owner(session, run, {"resume_checkpoint_id": None})',
                'require_owner(session, run, {"resume_checkpoint_id": None, "crash_streak": 0})',
            )
        ],
        tests=[_BUDGET],
    ),
    Mutant(
        name="crash-budget-never-reset",
        violates="A6",
        breaks="Progress does not give the crash budget back, so long jobs fail.",
        edits=[
            edit(
                "app/services/recording.py",
                'values |= {"step": event.step, "crash_streak": 0}',
                'values |= {"step": event.step}',
            )
        ],
        tests=[_BUDGET],
    ),
    Mutant(
        name="back-off-dropped",
        violates="crash budget",
        breaks="A job that crashed twice is tried again at once.",
        edits=[
            edit(
                _RUNS,
                '"not_before": db_now(wait_seconds),\n'
                '            "rung_at": db_now(wait_seconds - settings',
                '"not_before": db_now(),\n            "rung_at": db_now(wait_seconds - settings',
            )
        ],
        tests=["tests/services/test_claim.py::test_a_job_in_its_back_off_is_not_taken"],
    ),
    Mutant(
        name="drain-with-penalty",
        violates="B6",
        breaks="A deploy costs its jobs a crash.",
        edits=[
            edit(
                _RUNS,
                '"not_before": db_now()}\n        if is_full:',
                '"not_before": db_now()}\n'
                '        values["crash_streak"] = row.crash_streak + 1\n'
                "        if is_full:",
            )
        ],
        tests=[f"{_SETTLING}::test_a_stopped_job_ends_by_what_is_asked_at_the_last_moment"],
    ),
    Mutant(
        name="busy-device-costs-a-crash",
        violates="crash budget",
        breaks="A trainer that finds its device held counts as a crash.",
        edits=[edit(_SUPERVISOR, "elif self._exit_status == EXIT_BUSY:", "elif EXIT_BUSY == 0:")],
        tests=[
            "tests/worker/test_supervisor.py"
            "::test_a_trainer_that_found_its_device_held_costs_no_crash_budget"
        ],
    ),
    Mutant(
        name="late-cancel-ignored",
        violates="I10",
        breaks="A cancel that was accepted while the job was finalizing is forgotten.",
        edits=[
            edit(
                _RUNS,
                "if row is not None and row.desired == Desired.CANCEL:",
                "if row is None:",
            )
        ],
        tests=[
            f"{_SETTLING}"
            "::test_a_cancel_accepted_before_the_end_cancels_a_job_whose_training_is_done"
        ],
    ),
    Mutant(
        name="crash-forgets-the-request",
        violates="I10",
        breaks="A job whose trainer dies while it is being cancelled runs again.",
        edits=[
            edit(
                _RUNS,
                "        if row.desired != Desired.RUN:\n"
                "            _end_as_wished(session, run, source, Desired(row.desired), what, "
                "outcome)\n"
                "            return\n",
                "",
            )
        ],
        tests=[f"{_SETTLING}::test_a_crash_ends_a_job_as_its_user_wished"],
    ),
    Mutant(
        name="lost-answer-is-an-error",
        violates="C2",
        breaks="A move whose commit was confirmed to nobody cannot be made again.",
        edits=[
            edit(
                _RUNS,
                "if not moved and not _is_there(session, run, target):",
                "if not moved:",
            )
        ],
        tests=["tests/services/test_fence.py::test_a_move_whose_answer_was_lost_can_be_made_again"],
    ),
    Mutant(
        name="final-adapter-not-verified",
        violates="I5",
        breaks="A job succeeds with a final adapter that is not what its trainer wrote.",
        edits=[
            edit(
                _SUPERVISOR,
                "checkpoints.verify(\n"
                "                self._folder / FINAL_FOLDER, "
                "manifest_sha256=finished.manifest_sha256\n"
                "            )",
                "pass",
            )
        ],
        tests=[
            "tests/worker/test_supervisor.py"
            "::test_a_job_succeeds_only_with_a_final_adapter_that_verifies"
        ],
    ),
    Mutant(
        name="submission-does-not-ring",
        violates="prompt start",
        breaks="A submitted job waits for the reconciler although a worker is free.",
        edits=[
            edit(
                _JOBS,
                "    outside.doorbell.ring()\n    return get(db, outside.settings",
                "    return get(db, outside.settings",
            )
        ],
        tests=[f"{_SETTLING}::test_the_worker_is_told_of_a_request_after_it_is_stored"],
    ),
    Mutant(
        name="idempotency-key-not-remembered",
        violates="A4",
        breaks="A submission that is repeated under its key makes a second job.",
        edits=[
            edit(
                _JOBS,
                "        if idempotency_key is not None:\n            key_queries.remember(",
                '        if idempotency_key == "":\n            key_queries.remember(',
            )
        ],
        tests=[f"{_LISTS}::test_the_same_key_and_body_give_the_same_thing"],
    ),
    Mutant(
        name="idempotency-key-for-any-body",
        violates="A4",
        breaks="Another job under a used key is silently not made.",
        edits=[edit(_JOBS, "if known.body_sha256 != body_sha256:", "if not known.body_sha256:")],
        tests=[f"{_LISTS}::test_the_same_key_and_body_give_the_same_thing"],
    ),
)
