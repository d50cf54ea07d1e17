"""Faults in the broker's configuration and in what makes a transaction one."""

from bench.mutants.mutant import Mutant, edit

_QUEUE = "app/queue.py"
_ENGINE = "app/db/engine.py"
_ACCEPTED = "tests/api/test_outage.py::test_without_redis_a_job_is_accepted_and_can_be_claimed"
_LOCKED = "tests/api/test_outage.py::test_a_locked_sqlite_file_is_a_503_for_writes_and_reads_go_on"

MUTANTS = (
    Mutant(
        name="ack-late",
        violates="A1",
        breaks="Messages are acknowledged after the work, so the broker delivers them again.",
        edits=[edit(_QUEUE, "task_acks_late=False", "task_acks_late=True")],
        tests=["tests/test_queue.py::test_a_message_is_acknowledged_before_it_is_worked_on"],
    ),
    Mutant(
        name="result-backend-on",
        violates="A9",
        breaks="The broker keeps results, which nobody reads and which expire.",
        edits=[
            edit(_QUEUE, "result_backend=None", 'result_backend="cache+memory://"'),
            edit(_QUEUE, "task_ignore_result=True", "task_ignore_result=False"),
        ],
        tests=["tests/test_queue.py::test_nobody_keeps_results"],
    ),
    Mutant(
        name="prefetch-on",
        violates="A7",
        breaks="A busy worker holds messages while another one idles.",
        edits=[
            edit(_QUEUE, "worker_prefetch_multiplier=1", "worker_prefetch_multiplier=4"),
            edit(_QUEUE, "worker_disable_prefetch=True", "worker_disable_prefetch=False"),
        ],
        tests=["tests/test_queue.py::test_a_busy_worker_holds_no_message_that_another_could_have"],
    ),
    Mutant(
        name="pickled-messages-accepted",
        violates="no pickle",
        breaks="Whoever reaches the broker runs code in the workers.",
        edits=[edit(_QUEUE, 'accept_content=["json"]', 'accept_content=["json", "pickle"]')],
        tests=["tests/test_queue.py::test_only_json_is_sent_and_read"],
    ),
    Mutant(
        name="lost-bell-is-an-error",
        violates="I1",
        breaks="A submission fails when the broker is away, although the job is stored.",
        edits=[
            edit(
                _QUEUE,
                '_log.warning("the broker did not take %s: %s", task, error)\n'
                "            return False",
                "raise error",
            )
        ],
        tests=[_ACCEPTED],
    ),
    Mutant(
        name="every-statement-commits",
        violates="I3",
        breaks="On SQLite a unit of work is no transaction: half of it stays after a failure.",
        edits=[
            edit(
                _ENGINE,
                'connection.exec_driver_sql(connection.get_execution_options().get("lorad_begin", '
                '"BEGIN"))',
                "connection.get_execution_options()",
            )
        ],
        tests=[
            "tests/services/test_fence.py::test_a_checkpoint_and_the_steps_before_it_are_stored_"
            "together_or_not_at_all"
        ],
    ),
    Mutant(
        name="commits-not-synced",
        violates="C5",
        breaks="A power cut may undo a committed job on SQLite.",
        edits=[edit(_ENGINE, "PRAGMA synchronous=FULL", "PRAGMA synchronous=NORMAL")],
        tests=["tests/db/test_sqlite.py::test_what_every_connection_is_set_to"],
    ),
    Mutant(
        name="reads-wait-for-writers",
        violates="C3",
        breaks="SQLite is not in WAL mode, so a writer stops every reader.",
        edits=[edit(_ENGINE, "PRAGMA journal_mode=WAL", "PRAGMA journal_mode=DELETE")],
        tests=["tests/db/test_sqlite.py::test_what_every_connection_is_set_to"],
    ),
)
