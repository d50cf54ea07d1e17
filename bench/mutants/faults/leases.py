"""Faults in leases and in the reconciler: who is alive, and what becomes of dead workers' jobs."""

from bench.mutants.mutant import Mutant, edit

_JOBS = "app/db/jobs.py"
_LEASE = "worker/lease.py"
_RECONCILE = "app/services/reconcile.py"
_WORKERS = "app/services/workers.py"
_FENCE = "tests/services/test_fence.py"
_TESTS = "tests/services/test_reconcile.py"
_SUPERVISOR = "tests/worker/test_supervisor.py"
_GUARD = "guards.append(job_queries.JobRow.lease_expires_at < db_now(-grace_seconds(settings)))"

MUTANTS = (
    Mutant(
        name="lease-not-extended",
        violates="I2",
        breaks="A renewal leaves the lease where it was, so a live worker is reaped.",
        edits=[
            edit(
                _JOBS,
                ".values(lease_expires_at=db_now(lease_seconds))",
                ".values(lease_expires_at=JobRow.lease_expires_at)",
            )
        ],
        tests=[f"{_FENCE}::test_renewing_moves_the_lease_and_tells_what_is_asked"],
    ),
    Mutant(
        name="lease-ignores-what-is-asked",
        violates="I10",
        breaks="The heartbeat does not bring what the user asked of the job.",
        edits=[
            edit(
                _LEASE,
                "self._desired = runs.renew(self._db, self._settings, self._run)",
                "runs.renew(self._db, self._settings, self._run)",
            )
        ],
        tests=[f"{_SUPERVISOR}::test_a_lease_is_renewed_and_brings_what_is_asked"],
        seconds=30,
    ),
    Mutant(
        name="lost-lease-not-told",
        violates="I2",
        breaks="A supervisor that lost its lease goes on with its trainer.",
        edits=[edit(_LEASE, "self._lost = error", '_log.warning("%s", error)')],
        tests=[f"{_SUPERVISOR}::test_a_lease_that_was_taken_over_says_so"],
        seconds=30,
    ),
    Mutant(
        name="no-self-fence",
        violates="I2",
        breaks="A worker that was stopped for longer than its lease writes before it renews.",
        edits=[
            edit(
                _LEASE,
                "if time.monotonic() - self._renewed_at > self._settings.lease_seconds:\n"
                "            self._renew()",
                "if self._renewed_at < 0:\n            self._renew()",
            )
        ],
        tests=[
            f"{_SUPERVISOR}::test_after_a_long_stop_the_lease_is_renewed_before_anything_is_written"
        ],
    ),
    Mutant(
        name="self-fence-not-asked",
        violates="I2",
        breaks="The supervisor stores a batch without asking whether its lease may have ended.",
        edits=[edit("worker/supervisor.py", "            self._lease.confirm()\n", "")],
        tests=[
            f"{_SUPERVISOR}::test_a_batch_is_stored_only_under_a_lease_that_may_not_have_ended",
        ],
    ),
    Mutant(
        name="lease-counts-from-the-answer",
        violates="I2",
        breaks="A renewal that took long counts as fresh, though the database's lease is older.",
        edits=[edit(_LEASE, "self._renewed_at = began", "self._renewed_at = time.monotonic()")],
        tests=[
            "tests/worker/test_supervisor.py"
            "::test_a_lease_counts_from_before_the_database_was_asked"
        ],
    ),
    Mutant(
        name="outage-never-ends",
        violates="C1",
        breaks="A worker trains on for ever without the database.",
        edits=[
            edit(
                _LEASE,
                "if away_seconds > self._settings.database_outage_seconds:",
                "if away_seconds < 0:",
            )
        ],
        tests=[
            "tests/worker/test_supervisor.py"
            "::test_a_job_goes_on_without_its_database_for_a_limited_time"
        ],
        seconds=45,
    ),
    Mutant(
        name="reaper-ignores-the-lease",
        violates="I2",
        breaks="The reconciler takes jobs away from workers that are alive.",
        edits=[
            edit(
                _JOBS,
                "JobRow.state.in_(_OWNED), JobRow.lease_expires_at < db_now(-grace_seconds)\n",
                "JobRow.state.in_(_OWNED)\n",
            ),
            edit(_RECONCILE, _GUARD, "pass"),
        ],
        tests=[f"{_TESTS}::test_a_job_whose_lease_expired_goes_where_the_table_says"],
    ),
    Mutant(
        name="lease-renewed-meanwhile-is-reaped",
        violates="I2",
        breaks="A lease that is renewed between the reaper's look and its write is reaped all the"
        " same.",
        edits=[edit(_RECONCILE, _GUARD, "pass")],
        tests=[
            "tests/services/test_leftovers.py"
            "::test_a_worker_that_comes_back_while_its_job_is_settled_keeps_it",
            f"{_TESTS}::test_a_job_renewed_in_time_is_left_alone",
            f"{_TESTS}::test_a_request_that_comes_while_a_job_is_settled_is_not_lost",
        ],
    ),
    Mutant(
        name="reaper-forgets-the-fence",
        violates="I2",
        breaks="A job that was taken anew between the reaper's look and its write is settled for"
        " the attempt before.",
        edits=[
            edit(
                _RECONCILE,
                "guards = list(job_queries.owned_by(seen.fence))",
                "guards = list(job_queries.owned_by(seen.fence))[1:]",
            )
        ],
        tests=[
            "tests/services/test_reconcile.py"
            "::test_a_job_that_was_taken_anew_meanwhile_is_not_settled_for_the_attempt_before"
        ],
    ),
    Mutant(
        name="reaper-does-not-wait-after-its-start",
        violates="C1",
        breaks="The reconciler reaps before live workers could renew after its own absence.",
        edits=[
            edit(
                _RECONCILE,
                "self._reap_from = time.monotonic() + settings.lease_seconds\n        self._sweep",
                "self._reap_from = time.monotonic()\n        self._sweep",
            )
        ],
        tests=[
            f"{_TESTS}::test_after_its_own_start_the_reconciler_waits_one_lease_before_it_reaps"
        ],
    ),
    Mutant(
        name="reaper-does-not-wait-after-an-outage",
        violates="C1",
        breaks="After an outage of the database the reconciler reaps before workers could renew.",
        edits=[
            edit(
                _RECONCILE,
                '_log.warning("reconciler: %s", error)\n'
                "                self._reap_from = time.monotonic() + self._settings.lease_seconds",
                '_log.warning("reconciler: %s", error)',
            )
        ],
        tests=[
            "tests/services/test_reconcile.py"
            "::test_after_an_outage_the_reconciler_waits_one_lease_again"
        ],
    ),
    Mutant(
        name="live-owner-taken-for-dead",
        violates="I2",
        breaks="The reconciler takes every owner for dead.",
        edits=[
            edit(
                _RECONCILE,
                "if identity is not None and workers.is_dead(identity)]",
                "if identity is not None]",
            )
        ],
        tests=[f"{_TESTS}::test_a_dead_owner_on_this_machine_is_settled_before_its_lease_ends"],
    ),
    Mutant(
        name="reused-process-id-taken-for-the-owner",
        violates="B1",
        breaks="Another process with the id of a dead worker keeps its jobs.",
        edits=[
            edit(
                _WORKERS,
                "return _start_time(identity.pid) != identity.started",
                "return _start_time(identity.pid) < 0",
            )
        ],
        tests=[f"{_TESTS}::test_a_dead_owner_on_this_machine_is_settled_before_its_lease_ends"],
    ),
    Mutant(
        name="reaper-forgets-a-cancel",
        violates="I10",
        breaks="A job that was to be cancelled runs again when its worker dies.",
        edits=[
            edit(
                _RECONCILE,
                "if row.desired == Desired.CANCEL:\n        return JobState.CANCELLED",
                "if row.desired == settings.home:\n        return JobState.CANCELLED",
            )
        ],
        tests=[f"{_TESTS}::test_a_job_whose_lease_expired_goes_where_the_table_says"],
    ),
    Mutant(
        name="request-during-the-reaping-is-lost",
        violates="I10",
        breaks="The reconciler decides by what was asked when it looked, not when it writes.",
        edits=[
            edit(
                _RECONCILE,
                "target, reason, values = _outcome(settings, row, what)",
                "target, reason, values = _outcome(settings, seen, what)",
            )
        ],
        tests=[f"{_TESTS}::test_a_request_that_comes_while_a_job_is_settled_is_not_lost"],
    ),
    Mutant(
        name="lost-workers-cost-nothing",
        violates="A6",
        breaks="A job that takes its workers down is tried for ever.",
        edits=[
            edit(
                _RECONCILE,
                "streak = row.crash_streak + 1",
                "streak = row.crash_streak",
            )
        ],
        tests=[f"{_TESTS}::test_the_third_loss_without_a_checkpoint_fails_the_job"],
    ),
    Mutant(
        name="drain-costs-when-the-worker-vanishes",
        violates="B6",
        breaks="A deploy that ends with SIGKILL costs its jobs a crash.",
        edits=[
            edit(
                _RECONCILE,
                "if row.state == JobState.STOPPING:",
                'if row.state == "drained":',
            )
        ],
        tests=[f"{_TESTS}::test_a_drained_job_whose_worker_vanished_pays_nothing"],
    ),
    Mutant(
        name="reconciler-does-not-ring",
        violates="I1",
        breaks="A job whose bell was lost waits for ever.",
        edits=[edit(_RECONCILE, "return doorbell.ring() if forgotten else False", "return False")],
        tests=[f"{_TESTS}::test_the_bell_rings_for_a_forgotten_job_when_a_worker_could_take_it"],
    ),
)
