"""Put the rules of states, fences and stored rows into the database itself.

A trigger refuses what no code of ours should ask for, so a mistake in a WHERE becomes an error and
not a wrong row. Both databases call it a violated constraint. The rules are written down again here
and never import the code: a migration is history.

Whoever rebuilds one of these tables on SQLite (a batch that copies it) has to create its triggers
again, because they go with the old table.

Revision: 0003
Follows: 0002
"""

from typing import NamedTuple

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


class _Rule(NamedTuple):
    """What a statement must not do to a row.

    `violated` is SQL that means the same on both databases; `{differs}` in it is the operator that
    compares values which may be null, and `{lock}` keeps a row as it was read until the commit.
    """

    name: str
    table: str
    event: str
    violated: str
    message: str


_MOVES = (
    "queued>starting queued>paused queued>cancelled paused>queued paused>cancelled "
    "failed>queued cancelled>queued succeeded>queued "
    "starting>running starting>stopping starting>failed starting>queued starting>paused "
    "starting>cancelled running>stopping running>finalizing running>failed running>queued "
    "running>paused running>cancelled finalizing>succeeded finalizing>stopping finalizing>failed "
    "finalizing>queued finalizing>paused finalizing>cancelled "
    "stopping>paused stopping>cancelled stopping>queued"
)
_OWNED = "('starting', 'running', 'stopping', 'finalizing')"
_IS_CLAIM = "(OLD.state = 'queued' AND NEW.state = 'starting')"
_UNOWNED_WITHOUT_OWNER = (
    f"(NEW.state NOT IN {_OWNED} AND (NEW.owner IS NOT NULL OR NEW.lease_expires_at IS NOT NULL))"
)
_OWNED_WITH_OWNER = (
    f"(NEW.state IN {_OWNED} AND (NEW.owner IS NULL OR NEW.lease_expires_at IS NULL))"
)
_FROM_THE_OWNER = (
    "(EXISTS (SELECT 1 FROM jobs WHERE jobs.id = NEW.job_id AND jobs.fence = NEW.fence"
    f" AND jobs.state IN {_OWNED} {{lock}})"
    " OR EXISTS (SELECT 1 FROM attempts WHERE attempts.job_id = NEW.job_id"
    " AND attempts.fence = NEW.fence AND attempts.adopting))"
)


def _quoted(words: str) -> str:
    return "(" + ", ".join(f"'{word}'" for word in words.split()) + ")"


def _changed(columns: str) -> str:
    return "(" + " OR ".join(f"OLD.{name} {{differs}} NEW.{name}" for name in columns.split()) + ")"


_RULES = (
    _Rule(
        "jobs_begin_in_the_queue",
        "jobs",
        "INSERT",
        "(NEW.state <> 'queued' OR NEW.fence <> 0 OR NEW.attempt <> 0"
        " OR NEW.owner IS NOT NULL OR NEW.lease_expires_at IS NOT NULL)",
        "a new job is queued, without an owner, and its fence and attempt are 0",
    ),
    _Rule(
        "jobs_move_by_the_state_table",
        "jobs",
        "UPDATE OF state",
        "(OLD.state <> NEW.state AND OLD.state || '>' || NEW.state NOT IN " + _quoted(_MOVES) + ")",
        "the state table has no such move of a job",
    ),
    _Rule(
        "jobs_fence_is_raised_by_a_claim_only",
        "jobs",
        "UPDATE OF state, fence, attempt",
        f"(({_IS_CLAIM} AND (NEW.fence <> OLD.fence + 1 OR NEW.attempt <> OLD.attempt + 1))"
        f" OR (NOT {_IS_CLAIM} AND (NEW.fence <> OLD.fence OR NEW.attempt <> OLD.attempt)))",
        "a claim raises fence and attempt of a job by one, and nothing else changes them",
    ),
    _Rule(
        "jobs_owned_have_a_lease",
        "jobs",
        "UPDATE OF state, owner, lease_expires_at",
        f"({_OWNED_WITH_OWNER} OR {_UNOWNED_WITHOUT_OWNER})",
        "a job has an owner and a lease exactly while it is owned",
    ),
    _Rule(
        "attempts_are_of_the_newest_fence",
        "attempts",
        "INSERT",
        "NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.id = NEW.job_id"
        " AND jobs.attempt = NEW.attempt AND jobs.fence = NEW.fence)",
        "an attempt has the number and the fence of its job",
    ),
    _Rule(
        "attempts_keep_their_fence",
        "attempts",
        "UPDATE OF job_id, attempt, fence",
        _changed("job_id attempt fence"),
        "number and fence of an attempt never change",
    ),
    _Rule(
        "trainer_events_are_of_the_owner",
        "trainer_events",
        "INSERT",
        f"NOT {_FROM_THE_OWNER}",
        "a trainer event needs the fence of an owned job, or of an attempt that is being adopted",
    ),
    _Rule(
        "trainer_events_never_change",
        "trainer_events",
        "UPDATE",
        "("
        + _changed("job_id fence seq kind step body")
        + " OR (OLD.superseded AND NOT NEW.superseded))",
        "a trainer event never changes, and stays superseded once it is",
    ),
    _Rule(
        "checkpoints_are_of_the_owner",
        "checkpoints",
        "INSERT",
        f"NOT {_FROM_THE_OWNER}",
        "a checkpoint needs the fence of an owned job, or of an attempt that is being adopted",
    ),
    _Rule(
        "checkpoints_keep_what_they_are",
        "checkpoints",
        "UPDATE",
        _changed("id job_id attempt fence step manifest_sha256"),
        "job, attempt, fence, step and manifest of a checkpoint never change",
    ),
    _Rule(
        "checkpoints_never_get_better",
        "checkpoints",
        "UPDATE OF status, superseded",
        "((OLD.status <> NEW.status AND OLD.status || '>' || NEW.status NOT IN "
        + _quoted("committed>corrupt committed>deleting corrupt>deleting")
        + ") OR (OLD.superseded AND NOT NEW.superseded))",
        "a checkpoint goes from committed to corrupt to deleting, and stays superseded once it is",
    ),
)


def upgrade() -> None:
    op.add_column("jobs", sa.Column("needed_bytes", sa.BigInteger()))
    op.add_column(
        "attempts",
        sa.Column("adopting", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    op.create_index("uq_attempts_fence", "attempts", ["job_id", "fence"], unique=True)
    for rule in _RULES:
        for statement in _creation(rule):
            op.execute(statement)


def downgrade() -> None:
    for rule in _RULES:
        if _is_sqlite():
            op.execute(f"DROP TRIGGER {rule.name}")
        else:
            op.execute(f"DROP TRIGGER {rule.name} ON {rule.table}")
            op.execute(f"DROP FUNCTION {rule.name}()")
    op.drop_index("uq_attempts_fence", table_name="attempts")
    op.drop_column("attempts", "adopting")
    op.drop_column("jobs", "needed_bytes")


def _is_sqlite() -> bool:
    return op.get_context().dialect.name == "sqlite"


def _creation(rule: _Rule) -> list[str]:
    if _is_sqlite():
        violated = rule.violated.format(differs="IS NOT", lock="")
        return [
            f"CREATE TRIGGER {rule.name} BEFORE {rule.event} ON {rule.table} FOR EACH ROW"
            f" WHEN {violated} BEGIN SELECT RAISE(ABORT, '{rule.name}: {rule.message}'); END"
        ]
    # Without the lock, a claim could commit between this look and the commit of the row.
    violated = rule.violated.format(differs="IS DISTINCT FROM", lock="FOR SHARE OF jobs")
    return [
        f"CREATE FUNCTION {rule.name}() RETURNS trigger LANGUAGE plpgsql AS $rule$ BEGIN"
        f" IF {violated} THEN"
        f" RAISE EXCEPTION USING ERRCODE = 'integrity_constraint_violation',"
        f" MESSAGE = '{rule.name}: {rule.message}';"
        " END IF; RETURN NEW; END $rule$",
        f"CREATE TRIGGER {rule.name} BEFORE {rule.event} ON {rule.table} FOR EACH ROW"
        f" EXECUTE FUNCTION {rule.name}()",
    ]
