"""Faults in what is stored of a run: every step once, and one history after a resume."""

from bench.mutants.mutant import Mutant, edit

_RECORDING = "app/services/recording.py"
_EVENTS = "app/db/trainer_events.py"
_REPORTING = "worker/training/reporting.py"
_FENCE = "tests/services/test_fence.py"
_REPLAY = "tests/services/test_replay.py"
_SUPERSEDING = "tests/services/test_superseding.py"
_TWICE = f"{_REPLAY}::test_what_comes_twice_after_a_lost_answer_is_counted_once"
_ONE_ROW = f"{_SUPERSEDING}::test_after_a_resume_every_step_has_one_row_and_it_is_the_newest"
_TOGETHER = f"{_FENCE}::test_a_checkpoint_and_the_steps_before_it_are_stored_together_or_not_at_all"
_TORN = "tests/worker/test_supervisor.py::test_a_trainer_that_died_without_a_word_costs_one"

MUTANTS = (
    Mutant(
        name="batch-committed-in-two",
        violates="I6",
        breaks="Events are committed before the checkpoint that belongs to them is.",
        edits=[
            edit(
                _RECORDING,
                "        _record_one(session, key, event)\n",
                "        _record_one(session, key, event)\n"
                '    session.connection().exec_driver_sql("COMMIT")\n',
            )
        ],
        tests=[f"{_TOGETHER}[sqlite]"],
    ),
    Mutant(
        name="commit-barrier-dropped",
        violates="I6",
        breaks="A checkpoint is stored without the steps that came with it.",
        edits=[
            edit(
                _RECORDING,
                "    event_queries.insert_many(",
                "    saves = any(isinstance(each, CheckpointEvent) for each in new)\n"
                "    new = [each for each in new if not (saves and isinstance(each, StepEvent))]"
                "\n"
                "    event_queries.insert_many(",
            )
        ],
        tests=[
            "tests/e2e/test_processes.py"
            "::test_a_killed_trainer_is_replaced_at_once_and_learns_the_same"
        ],
        seconds=240,
    ),
    Mutant(
        name="high-water-mark-ignored",
        violates="I6",
        breaks="What comes again after a lost answer is taken for new.",
        edits=[
            edit(
                _RECORDING,
                "new = [event for event in events if event.seq > stored]",
                "new = [event for event in events if event.seq > stored * 0]",
            )
        ],
        tests=[_TWICE],
    ),
    Mutant(
        name="high-water-mark-not-moved",
        violates="I6",
        breaks="The mark of what is stored stays where it was.",
        edits=[
            edit(
                _EVENTS,
                ".values(high_water_seq=events[-1].seq)",
                ".values(high_water_seq=AttemptRow.high_water_seq)",
            )
        ],
        tests=[_TWICE],
    ),
    Mutant(
        name="superseding-dropped",
        violates="I6",
        breaks="Steps of a branch that was left stay in the history.",
        edits=[
            edit(
                _EVENTS,
                ".values(superseded=True)",
                ".values(superseded=False)",
            )
        ],
        tests=[_ONE_ROW],
    ),
    Mutant(
        name="superseding-dropped-after-a-crash",
        violates="I6",
        breaks="An attempt after a crash leaves the steps of the one before in the history.",
        edits=[
            edit(
                "app/services/runs.py",
                "        resume.leave_behind(session, run.job_id, after_step=step, "
                "before_fence=run.fence)\n",
                "",
            )
        ],
        tests=[f"{_SUPERSEDING}::test_a_crash_after_a_resume_continues_the_new_branch"],
    ),
    Mutant(
        name="superseded-checkpoints-stay",
        violates="I6",
        breaks="Checkpoints of a branch that was left can be resumed from.",
        edits=[
            edit(
                "app/db/checkpoints.py",
                'values={"superseded": True}',
                'values={"superseded": False}',
            )
        ],
        tests=[f"{_SUPERSEDING}::test_resuming_from_a_step_leaves_what_is_before_it"],
    ),
    Mutant(
        name="metrics-show-left-branches",
        violates="I6",
        breaks="The metrics of a job have several rows for a step.",
        edits=[
            edit(
                _EVENTS,
                "        conditions.append(TrainerEventRow.superseded.is_(False))\n",
                "",
            )
        ],
        tests=[_ONE_ROW],
    ),
    Mutant(
        name="progress-of-an-older-attempt",
        violates="I6",
        breaks="A resumed job shows how far the branch was that it left.",
        edits=[
            edit(
                "app/services/resume.py",
                "    job_queries.set_progress(session, job_id, "
                "_progress(session, job_id, after_step))\n",
                "",
            )
        ],
        tests=[f"{_SUPERSEDING}::test_resuming_from_a_step_leaves_what_is_before_it"],
    ),
    Mutant(
        name="notices-move-the-step",
        violates="I6",
        breaks="A job's step moves with events that are no work.",
        edits=[
            edit(
                _RECORDING,
                "                pass\n    return values",
                '                values["step"] = event.step\n    return values',
            )
        ],
        tests=["tests/services/test_settling.py::test_only_work_that_was_done_moves_the_step"],
    ),
    Mutant(
        name="replayed-steps-not-compared",
        violates="I8",
        breaks="Steps that come out differently after a resume are not noticed.",
        edits=[
            edit(
                "app/services/replay.py",
                "    different = [pair for pair in pairs if differences(",
                "    different = [pair for pair in pairs[:0] if differences(",
            )
        ],
        tests=[f"{_REPLAY}::test_one_different_bit_is_a_mismatch_that_is_told_with_both_values"],
    ),
    Mutant(
        name="torn-last-line-consumed",
        violates="I6",
        breaks="The supervisor reads half of a line that the trainer is writing.",
        edits=[
            edit("worker/tail.py", 'complete = data[: data.rfind(b"\\n") + 1]', "complete = data")
        ],
        tests=["tests/worker/test_tail.py::test_every_line_comes_once_and_only_when_it_is_whole"],
    ),
    Mutant(
        name="tail-reads-again",
        violates="I6",
        breaks="The supervisor reads the file from its beginning each time.",
        edits=[edit("worker/tail.py", "self._offset += len(complete)", "self._offset += 0")],
        tests=["tests/worker/test_tail.py::test_every_line_comes_once_and_only_when_it_is_whole"],
    ),
    Mutant(
        name="half-a-line-stays",
        violates="I6",
        breaks="After a full disk half a line stays in events.jsonl and spoils the next one.",
        edits=[
            edit(
                _REPORTING,
                "            os.ftruncate(self._descriptor, self._bytes)"
                "  # half a line would spoil the next one\n",
                "",
            )
        ],
        tests=["tests/worker/training/test_reporting.py::test_half_a_line_is_taken_back"],
    ),
    Mutant(
        name="events-not-synced",
        violates="I6",
        breaks="A power cut may take the event of a checkpoint that is there.",
        edits=[edit(_REPORTING, "        if durable:\n", "        if not durable:\n")],
        tests=[
            "tests/worker/training/test_reporting.py"
            "::test_a_checkpoint_is_told_of_on_disk_and_a_notice_costs_no_sync"
        ],
    ),
    Mutant(
        name="attempt-started-twice",
        violates="I9",
        breaks="A second trainer of an attempt appends to the events of the first.",
        edits=[
            edit(_REPORTING, "os.O_CREAT | os.O_EXCL | os.O_CLOEXEC", "os.O_CREAT | os.O_CLOEXEC")
        ],
        tests=["tests/worker/test_trainer.py::test_an_attempt_is_not_run_twice"],
    ),
)
