"""Faults in retention, deletion and the sweeper: what is removed, and when."""

from bench.mutants.mutant import Mutant, edit

_QUERIES = "app/db/checkpoints.py"
_CHECKPOINTS = "app/services/checkpoints.py"
_SWEEP = "app/services/sweep.py"
_BEST = "tests/services/test_best.py"
_STATES = "tests/api/test_states.py"
_SWEEPING = "tests/services/test_sweep.py"
_NEEDED = f"{_STATES}::test_a_checkpoint_that_is_needed_is_not_deleted"
_KEEPS = f"{_BEST}::test_retention_keeps_the_best_and_the_newest"

MUTANTS = (
    Mutant(
        name="retention-deletes-the-best",
        violates="I7",
        breaks="`save_total_limit` removes the checkpoint of the best evaluation.",
        edits=[
            edit(
                _QUERIES,
                "if each.id not in (best_id, wanted_id)]",
                "if each.id not in (wanted_id,)]",
            )
        ],
        tests=[_KEEPS],
    ),
    Mutant(
        name="retention-deletes-what-is-resumed-from",
        violates="I7",
        breaks="`save_total_limit` removes the checkpoint that the job is to continue from.",
        edits=[
            edit(
                _QUERIES,
                "if each.id not in (best_id, wanted_id)]",
                "if each.id not in (best_id,)]",
            )
        ],
        tests=[f"{_BEST}::test_retention_leaves_what_the_job_continues_from"],
    ),
    Mutant(
        name="retention-deletes-the-newest",
        violates="I7",
        breaks="`save_total_limit` keeps the oldest checkpoints.",
        edits=[
            edit(
                _QUERIES,
                ".order_by(CheckpointRow.step.desc())\n    )\n    wanted_id",
                ".order_by(CheckpointRow.step)\n    )\n    wanted_id",
            )
        ],
        tests=[_KEEPS],
    ),
    Mutant(
        name="retention-counts-the-pinned",
        violates="I7",
        breaks="Pinned checkpoints take the place of others within `save_total_limit`.",
        edits=[
            edit(
                _QUERIES,
                "            CheckpointRow.pinned.is_(False),\n        )\n        .order_by(",
                "        )\n        .order_by(",
            )
        ],
        tests=[f"{_BEST}::test_a_pinned_best_does_not_count"],
    ),
    Mutant(
        name="retention-keeps-one-less",
        violates="I7",
        breaks="With a limit of one nothing is left.",
        edits=[
            edit(
                _QUERIES,
                " if any(each.id == best_id for each in found[limit:]) else limit\n",
                "\n",
            )
        ],
        tests=[_KEEPS],
    ),
    Mutant(
        name="corrupt-counts-for-retention",
        violates="I7",
        breaks="Checkpoints that cannot be resumed from push good ones out.",
        edits=[
            edit(
                _QUERIES,
                '            CheckpointRow.status == "committed",\n'
                "            CheckpointRow.superseded.is_(False),\n"
                "            CheckpointRow.pinned",
                '            CheckpointRow.status != "deleting",\n'
                "            CheckpointRow.superseded.is_(False),\n"
                "            CheckpointRow.pinned",
            )
        ],
        tests=[
            "tests/services/test_settling.py"
            "::test_retention_counts_only_checkpoints_that_can_be_resumed"
        ],
    ),
    Mutant(
        name="corrupt-is-the-best",
        violates="I5",
        breaks="`best` is a checkpoint that does not verify.",
        edits=[
            edit(
                _QUERIES,
                '            CheckpointRow.status == "committed",\n'
                "            CheckpointRow.superseded.is_(False),\n"
                "            CheckpointRow.eval_loss",
                '            CheckpointRow.status != "deleting",\n'
                "            CheckpointRow.superseded.is_(False),\n"
                "            CheckpointRow.eval_loss",
            )
        ],
        tests=[f"{_BEST}::test_a_corrupt_checkpoint_is_not_best"],
    ),
    Mutant(
        name="newest-good-can-be-deleted",
        violates="I7",
        breaks="A user deletes the only checkpoint that a paused job can continue from.",
        edits=[
            edit(
                _CHECKPOINTS,
                "if newest is not None and newest.id == found.id and not",
                'if newest is not None and newest.id == "" and not',
            )
        ],
        tests=[_NEEDED],
    ),
    Mutant(
        name="pinned-can-be-deleted",
        violates="I7",
        breaks="A pin keeps nobody from deleting the checkpoint.",
        edits=[
            edit(
                _QUERIES,
                "        CheckpointRow.pinned.is_(False),\n        ~exported.exists(),\n",
                "        ~exported.exists(),\n",
            )
        ],
        tests=[_NEEDED],
    ),
    Mutant(
        name="row-removed-before-the-files",
        violates="I5",
        breaks="What the disk does not let go of is forgotten, and stays for ever.",
        edits=[
            edit(
                _CHECKPOINTS,
                'is not deleted yet: %s", checkpoint.id, error)\n        return\n',
                'is not deleted yet: %s", checkpoint.id, error)\n',
            )
        ],
        tests=[
            "tests/services/test_settling.py"
            "::test_a_disk_that_keeps_a_checkpoint_stops_neither_retention_nor_a_request"
        ],
    ),
    Mutant(
        name="sweeper-touches-running-jobs",
        violates="I5",
        breaks="The sweeper removes the half-written checkpoint of a running job.",
        edits=[
            edit(
                _SWEEP,
                "if job_id in states and states[job_id] not in OWNED_STATES:",
                "if job_id in states:",
            )
        ],
        tests=[f"{_SWEEPING}::test_a_job_that_a_worker_owns_is_not_touched"],
    ),
    Mutant(
        name="sweeper-removes-young-folders",
        violates="I5",
        breaks="The sweeper removes what was written a moment ago.",
        edits=[
            edit(
                _SWEEP,
                "if _seconds_since_change(folder) < _MIN_AGE_SECONDS:",
                "if _seconds_since_change(folder) < -_MIN_AGE_SECONDS:",
            )
        ],
        tests=[
            f"{_SWEEPING}::test_half_written_folders_of_a_job_without_a_worker_go_when_they_are_old"
        ],
    ),
    Mutant(
        name="sweeper-removes-unknown-jobs",
        violates="I1",
        breaks="With a restored database the sweeper removes jobs that the database lacks.",
        edits=[
            edit(
                _SWEEP,
                "if job_id in states and states[job_id] not in OWNED_STATES:",
                "if states.get(job_id) not in OWNED_STATES:",
            )
        ],
        tests=["tests/services/test_sweep.py::test_checkpoints_of_a_job_without_a_row_stay"],
    ),
)
