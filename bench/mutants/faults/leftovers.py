"""Faults in what follows a death: last lines taken in, full disks waited out, hangs noticed."""

from bench.mutants.mutant import Mutant, edit

_LEFTOVERS = "app/services/leftovers.py"
_ATTEMPTS = "app/db/attempts.py"
_RECONCILE = "app/services/reconcile.py"
_SUPERVISOR = "worker/supervisor.py"
_SWEEP = "app/services/sweep.py"
_TESTS = "tests/services/test_leftovers.py"
_DISK = "tests/services/test_disk_full.py"
_SUPERVISING = "tests/worker/test_supervisor.py"
_WATCHING = "tests/worker/test_watchdog.py"
_SWEEPING = "tests/services/test_sweep.py"
_FULL = "tests/worker/training/test_run.py"

MUTANTS = (
    Mutant(
        name="last-lines-of-the-dead-forgotten",
        violates="I6",
        breaks="The reconciler settles a job without what its trainer reported last.",
        edits=[
            edit(
                _RECONCILE,
                "num_lines = leftovers.take_in(db, settings, key, guards=guards)",
                "num_lines = 0",
            )
        ],
        tests=[
            f"{_TESTS}::test_the_reconciler_stores_the_last_lines_and_the_checkpoint_among_them"
        ],
    ),
    Mutant(
        name="unread-lines-forgotten",
        violates="I6",
        breaks="Lines that could not be read when their worker died are never read.",
        edits=[
            edit(
                _ATTEMPTS,
                "AttemptRow.outcome == LOST, AttemptRow.attempt",
                "AttemptRow.attempt < 0, AttemptRow.attempt",
            )
        ],
        tests=[f"{_TESTS}::test_an_attempt_that_could_not_be_read_is_read_by_the_next"],
    ),
    Mutant(
        name="supervisor-takes-nothing-in",
        violates="I6",
        breaks="An attempt begins without looking for what the one before left.",
        edits=[
            edit(
                _SUPERVISOR,
                "        self._retried(lambda: leftovers.take_in_of_job(db, settings, run))\n",
                "",
            )
        ],
        tests=["tests/worker/test_supervisor.py::test_an_attempt_takes_in_what_a_lost_one_left"],
    ),
    Mutant(
        name="lines-done-again-are-taken-in",
        violates="I6",
        breaks="Steps that a later attempt has done again come back from the file of a lost one.",
        edits=[edit(_ATTEMPTS, "AttemptRow.attempt >= last_started)", "AttemptRow.attempt >= 0)")],
        tests=[f"{_TESTS}::test_lines_that_a_later_attempt_has_done_again_are_not_taken_in"],
    ),
    Mutant(
        name="lost-lines-reach-another-branch",
        violates="I6",
        breaks="After a resume from elsewhere the lines of a lost attempt come back.",
        edits=[edit("app/services/resume.py", "    attempts.abandon(session, row.id)\n", "")],
        tests=[f"{_TESTS}::test_a_job_that_starts_again_from_scratch_does_not_meet_what_was_lost"],
    ),
    Mutant(
        name="hole-in-the-lines-ignored",
        violates="I6",
        breaks="Lines behind a missing one are stored as if nothing were missing.",
        edits=[edit(_LEFTOVERS, "if event is None or event.seq != number:", "if event is None:")],
        tests=[f"{_TESTS}::test_a_hole_in_the_numbers_ends_what_is_taken_in"],
    ),
    Mutant(
        name="leftovers-without-a-guard",
        violates="I2",
        breaks="The lines of a dead attempt are stored although the job went on.",
        edits=[
            edit(
                _LEFTOVERS,
                "session, key.job_id, guards=guards, values=values or {}",
                "session, key.job_id, guards=(), values=values or {}",
            )
        ],
        tests=[f"{_TESTS}::test_a_job_that_went_on_is_left_alone"],
    ),
    Mutant(
        name="orphans-swept-before-they-are-taken-in",
        violates="I7",
        breaks="The sweeper removes a checkpoint whose line is not read yet.",
        edits=[
            edit(
                _SWEEP,
                "unread = attempts.unread(session, job_ids)",
                "unread: set[tuple[str, int]] = set()",
            )
        ],
        tests=[f"{_SWEEPING}::test_a_checkpoint_that_may_still_be_taken_in_stays"],
    ),
    Mutant(
        name="committed-checkpoints-swept",
        violates="I5",
        breaks="The sweeper removes checkpoints that have a row.",
        edits=[
            edit(
                _SWEEP,
                "_orphans(folder, job_id, known, unread)",
                "_orphans(folder, job_id, type(known)(), unread)",
            )
        ],
        tests=[
            f"{_SWEEPING}::test_a_checkpoint_without_a_row_is_collected_and_one_with_a_row_stays"
        ],
    ),
    Mutant(
        name="full-disk-is-a-crash",
        violates="D7",
        breaks="A trainer takes a full disk for something else.",
        edits=[
            edit(
                "app/domain/disk.py",
                "error.errno in (errno.ENOSPC, errno.EDQUOT)",
                "error.errno == errno.EDQUOT",
            )
        ],
        tests=[f"{_FULL}::test_a_full_disk_stops_the_run_and_keeps_the_last_good_checkpoint"],
    ),
    Mutant(
        name="full-disk-costs-a-crash",
        violates="D7",
        breaks="A trainer that ends for want of room counts as a crash.",
        edits=[
            edit(
                _SUPERVISOR, "elif self._exit_status == EXIT_DISK_FULL:", "elif EXIT_DISK_FULL < 0:"
            )
        ],
        tests=[f"{_SUPERVISING}::test_a_trainer_without_room_lets_the_job_wait_for_it"],
    ),
    Mutant(
        name="full-disk-goes-back-to-the-queue",
        violates="D7",
        breaks="A job without room is tried again at once, for ever.",
        edits=[
            edit(
                "app/services/runs.py",
                "is_full = row.state_reason == DISK_FULL and row.desired == Desired.RUN",
                "is_full = row.state_reason == row.id",
            )
        ],
        tests=[f"{_DISK}::test_a_job_waits_until_there_is_as_much_space_as_it_needs"],
    ),
    Mutant(
        name="space-not-waited-for",
        violates="D7",
        breaks="A job without room goes on before there is any.",
        edits=[edit(_RECONCILE, "if free < (row.needed_bytes or 0):", "if free < 0:")],
        tests=[f"{_DISK}::test_a_job_waits_until_there_is_as_much_space_as_it_needs"],
    ),
    Mutant(
        name="dead-worker-forgets-the-full-disk",
        violates="D7",
        breaks="A job that was stopping for want of room is queued when its worker dies.",
        edits=[
            edit(
                _RECONCILE,
                "if row.state == JobState.STOPPING and row.state_reason == DISK_FULL:",
                "if row.state == DISK_FULL:",
            )
        ],
        tests=[f"{_DISK}::test_a_worker_that_dies_while_it_stops_for_space_leaves_a_paused_job"],
    ),
    Mutant(
        name="no-preflight",
        violates="D7",
        breaks="A save begins although there is no room for it.",
        edits=[
            edit(
                "worker/training/commit.py",
                "    disk.require(folder.parent, sum(map(len, contents.values())))\n",
                "",
            )
        ],
        tests=["tests/worker/training/test_commit.py::test_without_room_nothing_is_written"],
    ),
    Mutant(
        name="hang-not-noticed",
        violates="B7",
        breaks="A trainer that stands still runs for ever.",
        edits=[
            edit(
                "worker/watchdog.py",
                "return now - self._moved_at > self._seconds",
                "return now < self._moved_at",
            )
        ],
        tests=[f"{_WATCHING}::test_a_counter_that_stands_is_still_after_its_time_and_not_before"],
    ),
    Mutant(
        name="watchdog-judges-before-it-looks",
        violates="B7",
        breaks="A supervisor that was stopped itself ends a trainer that works.",
        edits=[
            edit(
                "worker/watchdog.py",
                "        now = time.monotonic()\n        if now - self._looked_at",
                "        now = time.monotonic()\n"
                "        if now - self._moved_at > self._seconds:\n"
                "            return True\n"
                "        if now - self._looked_at",
            )
        ],
        tests=[f"{_WATCHING}::test_a_supervisor_that_was_stopped_itself_looks_before_it_judges"],
    ),
    Mutant(
        name="sqlite-on-a-network-filesystem",
        violates="C4",
        breaks="An SQLite file on a network filesystem is opened, and corrupted some day.",
        edits=[
            edit("app/db/filesystem.py", "    if found in _NETWORKS:\n", "    if found is None:\n")
        ],
        tests=["tests/db/test_filesystem.py::test_sqlite_on_a_network_filesystem_is_refused"],
    ),
)
