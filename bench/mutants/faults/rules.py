"""Faults in the rules that the database itself holds: a trigger that lets everything pass."""

from bench.mutants.mutant import Mutant, edit

_MIGRATION = "migrations/versions/0003_rules_of_states_fences_and_rows.py"
_TESTS = "tests/db/test_rules.py"
_STATES = "tests/api/test_states.py::test_a_request_moves_a_job_or_says_what_is_allowed"
_BREACH = (
    "tests/api/test_faults.py"
    "::test_what_a_rule_of_the_database_refuses_is_a_500_at_once_with_the_rule_in_the_log"
)

MUTANTS = (
    Mutant(
        name="rule-of-states-with-one-pair-too-many",
        violates="I4",
        breaks="The database lets a job that succeeded fail.",
        edits=[
            edit(
                _MIGRATION,
                '"queued>starting queued>paused',
                '"succeeded>failed queued>starting queued>paused',
            )
        ],
        tests=[f"{_TESTS}::test_a_state_changes_only_along_the_pairs_of_the_table"],
    ),
    Mutant(
        name="rule-of-fences-dropped",
        violates="I2",
        breaks="The database lets any statement change a fence.",
        edits=[
            edit(
                _MIGRATION,
                ' AND (NEW.fence <> OLD.fence OR NEW.attempt <> OLD.attempt)))"',
                ' AND NEW.fence < 0))"',
            )
        ],
        tests=[f"{_TESTS}::test_nothing_but_a_claim_changes_fence_or_attempt"],
    ),
    Mutant(
        name="rule-of-claims-dropped",
        violates="I2",
        breaks="The database lets a claim keep the fence.",
        edits=[
            edit(
                _MIGRATION,
                "(NEW.fence <> OLD.fence + 1 OR NEW.attempt <> OLD.attempt + 1)",
                "NEW.attempt <> OLD.attempt + 1",
            )
        ],
        tests=[f"{_TESTS}::test_a_claim_raises_fence_and_attempt_by_one"],
    ),
    Mutant(
        name="rule-of-owners-dropped",
        violates="I1",
        breaks="The database lets a job be owned by nobody.",
        edits=[
            edit(
                _MIGRATION,
                'f"({_OWNED_WITH_OWNER} OR {_UNOWNED_WITHOUT_OWNER})"',
                'f"{_UNOWNED_WITHOUT_OWNER}"',
            )
        ],
        tests=[f"{_TESTS}::test_an_owned_job_has_an_owner_and_a_lease"],
    ),
    Mutant(
        name="rule-of-events-dropped",
        violates="I2",
        breaks="The database takes events of an attempt that was replaced.",
        edits=[
            edit(
                _MIGRATION,
                '"INSERT",\n        f"NOT {_FROM_THE_OWNER}",\n        "a trainer event',
                '"INSERT",\n        "NEW.fence < 0",\n        "a trainer event',
            )
        ],
        tests=[
            f"{_TESTS}::test_an_attempt_whose_fence_is_forgotten_in_the_code_is_refused_by_the_"
            "database"
        ],
    ),
    Mutant(
        name="rule-of-corrupt-checkpoints-dropped",
        violates="I5",
        breaks="The database lets a corrupt checkpoint become a good one again.",
        edits=[
            edit(
                _MIGRATION,
                '"committed>corrupt committed>deleting corrupt>deleting"',
                '"committed>corrupt committed>deleting corrupt>deleting corrupt>committed"',
            )
        ],
        tests=[f"{_TESTS}::test_the_status_of_a_checkpoint_never_gets_better"],
    ),
    Mutant(
        name="rule-of-fences-left-out",
        violates="I2",
        breaks="The migration makes no trigger that keeps fences from being raised by mistake.",
        edits=[
            edit(
                _MIGRATION,
                "    for rule in _RULES:\n        for statement",
                "    for rule in [each for each in _RULES if 'fence_is' not in each.name]:\n"
                "        for statement",
            )
        ],
        tests=[_BREACH],
    ),
    Mutant(
        name="breach-taken-for-an-outage",
        violates="no retry for ever",
        breaks="What a rule of the database refuses is answered with 'try again'.",
        edits=[edit("app/db/engine.py", "        if is_outage(error):\n", "        if True:\n")],
        tests=[_BREACH],
    ),
    Mutant(
        name="paused-job-cannot-be-cancelled",
        violates="I10",
        breaks="A cancel of a paused job is refused.",
        edits=[
            edit(
                "app/services/jobs.py",
                "if row.state in (JobState.QUEUED, JobState.PAUSED):",
                "if row.state == JobState.QUEUED:",
            )
        ],
        tests=[_STATES],
    ),
    Mutant(
        name="pause-accepted-too-late",
        violates="I3",
        breaks="A pause of a job whose training is done is accepted, and then without effect.",
        edits=[
            edit(
                "app/services/jobs.py",
                "_PAUSABLE = (JobState.STARTING, JobState.RUNNING)",
                "_PAUSABLE = (JobState.STARTING, JobState.RUNNING, JobState.FINALIZING)",
            )
        ],
        tests=[_STATES],
    ),
)
