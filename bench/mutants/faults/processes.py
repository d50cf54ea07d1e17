"""Faults in processes: who ends with whom, and what keeps two trainers apart."""

from bench.mutants.mutant import Mutant, edit

_TRAINER = "worker/trainer.py"
_FORKSERVER = "worker/forkserver.py"
_LAUNCHER = "worker/launcher.py"
_SUPERVISOR = "worker/supervisor.py"
_TESTS = "tests/worker/test_trainer.py"
_E2E = "tests/e2e/test_processes.py"

MUTANTS = (
    Mutant(
        name="end-of-the-pipe-ignored",
        violates="B4",
        breaks="A trainer goes on when its supervisor is gone.",
        edits=[edit(_TRAINER, "        os._exit(2)\n", "        return\n")],
        tests=[f"{_TESTS}::test_the_end_of_the_pipe_ends_the_trainer_at_once"],
    ),
    Mutant(
        name="no-parent-death-signal",
        violates="B4",
        breaks="The kernel does not end a process with its parent.",
        edits=[
            edit(
                _FORKSERVER,
                "ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)",
                "ctypes.CDLL(None, use_errno=True)",
            )
        ],
        tests=[
            "tests/worker/test_launcher.py::test_the_kernel_ends_a_process_with_its_parent",
        ],
        seconds=240,
    ),
    Mutant(
        name="lock-not-taken",
        violates="I9",
        breaks="Two trainers run on one device.",
        edits=[
            edit(
                _TRAINER,
                "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)",
                "fcntl.flock(file, fcntl.LOCK_UN)",
            )
        ],
        tests=[
            f"{_TESTS}::test_the_lock_is_held_while_training",
            f"{_TESTS}::test_a_held_lock_is_reported_as_busy_and_not_as_a_failure",
        ],
    ),
    Mutant(
        name="pause-takes-a-cancel-back",
        violates="I10",
        breaks="A pause that is sent after a cancel turns it into a pause.",
        edits=[edit(_TRAINER, 'if self._stop != "cancel":', "if command.stop:")],
        tests=[f"{_TESTS}::test_a_cancel_is_not_taken_back_by_a_later_pause"],
    ),
    Mutant(
        name="deterministic-failure-tried-again",
        violates="B8",
        breaks="A failure that would repeat is reported as a crash and tried again.",
        edits=[edit(_TRAINER, "        if failure is None:\n", "        if error:\n")],
        tests=[
            "tests/worker/training/test_run.py::test_a_missing_layer_fails_the_run_with_its_name"
        ],
    ),
    Mutant(
        name="children-of-a-trainer-survive",
        violates="B4",
        breaks="Processes that a trainer started outlive it.",
        edits=[edit(_FORKSERVER, "        _kill_group(ended.si_pid)\n", "")],
        tests=[f"{_E2E}::test_processes_that_a_killed_trainer_started_end_with_it"],
        seconds=180,
    ),
    Mutant(
        name="credentials-reach-the-trainer",
        violates="no credentials",
        breaks="A trainer has the URLs of database and broker in its environment.",
        edits=[
            edit(
                _LAUNCHER,
                "if name in _PASSED or name.startswith(_PASSED_PREFIXES)",
                'if name in _PASSED or name.startswith((*_PASSED_PREFIXES, "LORAD_"))',
            )
        ],
        tests=[
            f"{_E2E}::test_a_trainer_of_either_launcher_holds_no_service_modules_and_no_credentials"
        ],
        seconds=240,
    ),
    Mutant(
        name="escalation-dropped",
        violates="I10",
        breaks="A trainer that does not listen is never ended, so its job never stops.",
        edits=[
            edit(
                _SUPERVISOR,
                "            trainer.signal(signal.SIGTERM)\n",
                "            return\n",
            )
        ],
        tests=[f"{_E2E}::test_a_trainer_that_does_not_stop_is_ended_with_its_children"],
        seconds=180,
    ),
    Mutant(
        name="last-lines-not-read",
        violates="I6",
        breaks="What a trainer wrote just before its end is not stored.",
        edits=[
            edit(
                _SUPERVISOR,
                "            self._take(self._tail.read())\n",
                "            self._take([] if has_ended else self._tail.read())\n",
            )
        ],
        # Against a real trainer it is a race: most lines are read before its process is gone.
        tests=[
            "tests/worker/test_supervisor.py"
            "::test_a_job_succeeds_only_with_a_final_adapter_that_verifies"
        ],
    ),
)
