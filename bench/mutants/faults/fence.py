"""Faults in the fence and in the claim: who may write to a job, and who may take it."""

from bench.mutants.mutant import Mutant, edit

_JOBS = "app/db/jobs.py"
_RUNS = "app/services/runs.py"
_FENCE = "tests/services/test_fence.py"
_CLAIM = "tests/services/test_claim.py"
_TRANSITION = "tests/db/test_transition.py"
_REPLACED = f"{_FENCE}::test_an_attempt_that_another_one_replaced_changes_no_row"
_REQUEUED = f"{_FENCE}::test_an_attempt_whose_job_went_back_to_the_queue_changes_no_row"

MUTANTS = (
    Mutant(
        name="fence-dropped-everywhere",
        violates="I2",
        breaks="No write of an attempt asks for its fence.",
        edits=[
            edit(
                _JOBS,
                "return (JobRow.fence == fence, JobRow.state.in_(_OWNED))",
                "return (JobRow.state.in_(_OWNED),)",
            )
        ],
        tests=[_REPLACED],
    ),
    Mutant(
        name="owned-state-not-asked-for",
        violates="I2",
        breaks="An attempt may write although its job is back in the queue.",
        edits=[
            edit(
                _JOBS,
                "return (JobRow.fence == fence, JobRow.state.in_(_OWNED))",
                "return (JobRow.fence == fence,)",
            )
        ],
        tests=[_REQUEUED],
    ),
    Mutant(
        name="fence-dropped-from-renewal",
        violates="I2",
        breaks="A replaced attempt keeps the lease of the one that replaced it alive.",
        edits=[
            edit(
                _JOBS,
                ".where(JobRow.id == job_id, *owned_by(fence))\n        .values(lease_expires_at",
                ".where(JobRow.id == job_id, JobRow.state.in_(_OWNED))\n"
                "        .values(lease_expires_at",
            )
        ],
        tests=[
            f"{_REPLACED}[sqlite-renew]",
            "tests/worker/test_supervisor.py::test_a_lease_that_was_taken_over_says_so",
        ],
        seconds=45,
    ),
    Mutant(
        name="fence-dropped-from-records",
        violates="I2",
        breaks="A replaced attempt still stores metrics and checkpoints.",
        edits=[
            edit(
                _JOBS,
                "update_guarded(session, job_id, guards=owned_by(fence), values=values)",
                "update_guarded(session, job_id, guards=owned_by(fence)[1:], values=values)",
            )
        ],
        tests=[_REPLACED],
    ),
    Mutant(
        name="fence-dropped-from-moves",
        violates="I2",
        breaks="A replaced attempt still moves the job and settles it.",
        edits=[edit(_RUNS, "guards=job_queries.owned_by(run.fence),", "guards=(),")],
        tests=[_REPLACED],
    ),
    Mutant(
        name="fence-not-minted",
        violates="I2",
        breaks="A claim keeps the fence of the attempt before.",
        edits=[edit(_JOBS, '"fence": JobRow.fence + 1,', '"fence": JobRow.fence,')],
        tests=[f"{_FENCE}::test_every_claim_mints_a_higher_fence_and_attempt"],
    ),
    Mutant(
        name="compare-and-set-dropped",
        violates="I3",
        breaks="A move does not ask whether the job is still in the state that it moves from.",
        edits=[
            edit(
                _JOBS,
                ".where(JobRow.id == job_id, JobRow.state == source.value, *guards)",
                ".where(JobRow.id == job_id, *guards)",
            )
        ],
        tests=[f"{_TRANSITION}::test_a_move_is_recorded_with_both_states_and_a_refused_one_is_not"],
    ),
    Mutant(
        name="move-without-its-event",
        violates="I3",
        breaks="A change of state leaves no row in the job's history.",
        edits=[
            edit(
                _JOBS,
                "    add_event(\n"
                '        session, job_id, "state", message, attempt=attempt, source=source,'
                " target=target, data=data\n"
                "    )\n"
                "    return True",
                "    return True",
            )
        ],
        tests=[f"{_TRANSITION}::test_a_move_is_recorded_with_both_states_and_a_refused_one_is_not"],
    ),
    Mutant(
        name="terminal-state-leaves-by-another-verb",
        violates="I4",
        breaks="The API may move a job that has ended to paused.",
        edits=[
            edit(
                "app/domain/jobs.py",
                '_moves(Actor.API, "failed cancelled succeeded", "queued")',
                '_moves(Actor.API, "failed cancelled succeeded", "queued paused")',
            )
        ],
        tests=[
            f"{_TRANSITION}::test_the_table_has_the_moves_of_the_design_and_no_other",
            f"{_TRANSITION}::test_every_pair_outside_the_table_is_refused_and_changes_nothing",
        ],
    ),
    Mutant(
        name="running-job-can-be-deleted",
        violates="I1",
        breaks="A delete removes a job that has not ended.",
        edits=[
            edit(
                _JOBS,
                "JobRow.id == job_id, JobRow.state.in_([state.value for state in TERMINAL_STATES])"
                "\n    )",
                "JobRow.id == job_id\n    )",
            )
        ],
        tests=["tests/api/test_states.py::test_a_request_moves_a_job_or_says_what_is_allowed"],
    ),
    Mutant(
        name="claim-ignores-the-back-off",
        violates="crash budget",
        breaks="A job is taken before the wait after its crash is over.",
        edits=[
            edit(
                _JOBS,
                "JobRow.not_before <= db_now(),\n            JobRow.base_model",
                "JobRow.base_model",
            ),
            edit(_JOBS, "JobRow.not_before <= db_now(), busy < slots),", "busy < slots),"),
        ],
        tests=[f"{_CLAIM}::test_a_job_in_its_back_off_is_not_taken"],
    ),
    Mutant(
        name="job-in-its-back-off-blocks-the-queue",
        violates="I1",
        breaks="The best queued job is one that may not start yet, so nobody gets the next one.",
        edits=[
            edit(
                _JOBS,
                "JobRow.not_before <= db_now(),\n            JobRow.base_model",
                "JobRow.base_model",
            )
        ],
        tests=[
            "tests/services/test_claim.py"
            "::test_a_job_in_its_back_off_does_not_keep_the_next_one_waiting"
        ],
    ),
    Mutant(
        name="slots-not-counted",
        violates="I9",
        breaks="A claim does not ask whether its worker has a free slot.",
        edits=[
            edit(
                _JOBS,
                "JobRow.not_before <= db_now(), busy < slots),",
                "JobRow.not_before <= db_now()),",
            )
        ],
        tests=[f"{_CLAIM}::test_a_worker_without_a_free_slot_gets_nothing"],
    ),
    Mutant(
        name="claim-takes-what-the-worker-cannot-run",
        violates="who can run what",
        breaks="A claim does not look at the models that its worker has.",
        edits=[edit(_JOBS, "            JobRow.base_model.in_(capability.models),\n", "")],
        tests=[f"{_CLAIM}::test_a_worker_takes_only_jobs_whose_model_and_device_it_has"],
    ),
)
