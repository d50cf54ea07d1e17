"""Faults in choosing where an attempt starts: only a checkpoint that verifies, and the newest."""

from bench.mutants.mutant import Mutant, edit

_RESUME = "app/services/resume.py"
_CHECKPOINTS = "app/services/checkpoints.py"
_QUERIES = "app/db/checkpoints.py"
_DOMAIN = "app/domain/checkpoints.py"
_SUPERSEDING = "tests/services/test_superseding.py"
_VERIFY = "tests/domain/test_checkpoints.py"
_PASSED_OVER = f"{_SUPERSEDING}::test_a_checkpoint_that_broke_is_passed_over_and_marked"
_AT_THE_START = (
    f"{_SUPERSEDING}::test_a_checkpoint_that_broke_while_the_job_waited_is_passed_over_at_the_start"
)
_BARE_STEP = f"{_SUPERSEDING}::test_a_bare_step_and_latest_mean_the_current_branch"

MUTANTS = (
    Mutant(
        name="newest-by-name",
        violates="D8",
        breaks="The newest checkpoint is the last one by its name, so 9 comes after 10.",
        edits=[
            edit(
                _QUERIES,
                ".order_by(CheckpointRow.step.desc(), CheckpointRow.fence.desc())",
                '.order_by(CheckpointRow.step.op("||")("").desc(), CheckpointRow.fence.desc())',
            )
        ],
        tests=[_PASSED_OVER],
        seconds=60,
    ),
    Mutant(
        name="left-branch-is-latest",
        violates="I6",
        breaks="`latest` is a checkpoint that a resume left behind.",
        edits=[
            edit(
                _QUERIES,
                'CheckpointRow.status == "committed", CheckpointRow.superseded.is_(False)]',
                'CheckpointRow.status == "committed"]',
            )
        ],
        tests=[_BARE_STEP],
    ),
    Mutant(
        name="left-branch-can-be-resumed",
        violates="I6",
        breaks="A job continues from a checkpoint that a resume left behind.",
        edits=[
            edit(_RESUME, "    if found.superseded:\n", "    if not found.id:\n"),
            edit(_RESUME, 'found.status != "committed" or found.superseded:', "not found.id:"),
        ],
        tests=[f"{_SUPERSEDING}::test_a_superseded_checkpoint_cannot_be_resumed_from"],
    ),
    Mutant(
        name="left-behind-after-its-verification",
        violates="I6",
        breaks="A resume does not look again whether its checkpoint is still on the branch.",
        edits=[
            edit(
                _RESUME,
                'found.status != "committed" or found.superseded:',
                'found.status != "committed":',
            )
        ],
        tests=[
            f"{_SUPERSEDING}"
            "::test_a_checkpoint_left_behind_after_its_verification_is_not_resumed_from"
        ],
    ),
    Mutant(
        name="corrupt-not-marked",
        violates="I5",
        breaks="A checkpoint that failed verification stays committed.",
        edits=[
            edit(
                _CHECKPOINTS,
                "        with db.write() as session:\n"
                "            mark_corrupt(session, checkpoint, str(error))\n"
                "        raise CheckpointUnusable(",
                "        raise CheckpointUnusable(",
            )
        ],
        tests=[_PASSED_OVER],
        seconds=30,
    ),
    Mutant(
        name="corrupt-without-an-event",
        violates="I5",
        breaks="Nobody is told that a checkpoint failed verification.",
        edits=[
            edit(
                _CHECKPOINTS,
                "    if checkpoint_queries.mark_corrupt(session, checkpoint.id, reason):\n",
                "    if not checkpoint_queries.mark_corrupt(session, checkpoint.id, reason):\n",
            )
        ],
        tests=[_PASSED_OVER],
    ),
    Mutant(
        name="fallback-without-an-event",
        violates="I5",
        breaks="Nobody is told that an attempt starts elsewhere than its user wanted.",
        edits=[
            edit(
                "app/services/runs.py",
                "if wanted_id is not None and (start is None or start.id != wanted_id):",
                "if wanted_id is not None and start is None:",
            )
        ],
        tests=[_AT_THE_START],
    ),
    Mutant(
        name="verification-skipped",
        violates="I5",
        breaks="A resume does not look at the files of its checkpoint.",
        edits=[
            edit(
                _CHECKPOINTS,
                "checkpoints.verify(\n"
                "            folder_of(settings, checkpoint), "
                "manifest_sha256=checkpoint.manifest_sha256\n"
                "        )",
                "folder_of(settings, checkpoint)",
            )
        ],
        tests=[_AT_THE_START],
    ),
    Mutant(
        name="hash-check-skipped",
        violates="I5",
        breaks="Files are not hashed, so a flipped bit is loaded.",
        edits=[edit(_DOMAIN, "if hash_file(path) != file.sha256:", "if not hash_file(path):")],
        tests=[f"{_VERIFY}::test_a_damaged_file_is_named"],
    ),
    Mutant(
        name="size-check-skipped-with-hash",
        violates="I5",
        breaks="Only the names of files are looked at, so a truncated one is loaded.",
        edits=[
            edit(_DOMAIN, "if hash_file(path) != file.sha256:", "if not hash_file(path):"),
            edit(_DOMAIN, "if size != file.bytes:", "if size < 0:"),
        ],
        tests=[f"{_VERIFY}::test_a_damaged_file_is_named"],
    ),
    Mutant(
        name="manifest-hash-ignored",
        violates="I5",
        breaks="A manifest that was written anew after the commit is believed.",
        edits=[
            edit(
                _DOMAIN,
                "if manifest_sha256 is not None and hashlib",
                'if manifest_sha256 == "" and hashlib',
            )
        ],
        tests=[f"{_VERIFY}::test_a_manifest_that_was_rewritten_after_the_commit_is_refused"],
    ),
    Mutant(
        name="missing-file-is-no-fault",
        violates="D3",
        breaks="A checkpoint without the optimizer's state passes.",
        edits=[
            edit(
                _DOMAIN, "missing = set(required) - listed", "missing = set(required[:2]) - listed"
            )
        ],
        tests=[f"{_VERIFY}::test_a_checkpoint_lists_all_that_is_needed_to_continue"],
    ),
    Mutant(
        name="unlisted-file-is-no-fault",
        violates="I5",
        breaks="Files that nobody hashed lie in a checkpoint.",
        edits=[edit(_DOMAIN, "    if unlisted:\n", "    if missing:\n")],
        tests=[f"{_VERIFY}::test_a_file_that_the_manifest_does_not_list_is_refused"],
    ),
    Mutant(
        name="checkpoint-lost-after-its-verification",
        violates="I5",
        breaks="A resume does not look again, under the lock, at the checkpoint that it verified.",
        edits=[
            edit(
                _RESUME,
                "    if start is not None:\n        _require_still_there(session, start)\n",
                "",
            )
        ],
        tests=[
            f"{_SUPERSEDING}::test_a_checkpoint_lost_after_its_verification_is_not_resumed_from"
        ],
    ),
    Mutant(
        name="resume-forgets-the-fence",
        violates="I2",
        breaks="A resume overtakes a run of the job that came and went meanwhile.",
        edits=[edit(_RESUME, "guards=(job_queries.JobRow.fence == row.fence,),", "guards=(),")],
        tests=[
            f"{_SUPERSEDING}::test_a_job_that_ran_again_while_it_was_being_resumed_is_left_alone"
        ],
    ),
    Mutant(
        name="named-checkpoint-forgotten",
        violates="resume from any",
        breaks="An attempt starts from the newest checkpoint whatever was asked for.",
        edits=[
            edit(
                _QUERIES,
                "        conditions.append(CheckpointRow.step <= up_to_step)\n",
                "        conditions.append(CheckpointRow.step >= 0)\n",
            ),
            edit(
                _RESUME,
                "    leave_behind(session, row.id, after_step=step, before_fence=row.fence + 1)\n",
                "",
            ),
        ],
        tests=[
            f"{_SUPERSEDING}::test_the_next_attempt_starts_from_the_named_checkpoint",
            f"{_SUPERSEDING}::test_a_start_from_the_wanted_checkpoint_is_no_fallback_and_is_told_once",
        ],
    ),
)
