"""Add what evaluations, replays after a resume, and more data formats need.

Revision: 0002
Follows: 0001
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    for name in ("replayed_steps", "replay_mismatches", "skipped_steps"):
        op.add_column("jobs", sa.Column(name, sa.Integer(), nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("eval_loss", sa.Float()))
    op.add_column("jobs", sa.Column("best_eval_loss", sa.Float()))
    op.add_column("jobs", sa.Column("best_step", sa.Integer()))
    # Written out, because SQLite adds a foreign key together with its column or not at all.
    op.execute("ALTER TABLE jobs ADD COLUMN eval_dataset_id VARCHAR(40) REFERENCES datasets (id)")
    op.add_column("checkpoints", sa.Column("eval_loss", sa.Float()))
    op.add_column(
        "datasets",
        sa.Column("container", sa.String(length=16), nullable=False, server_default="jsonl"),
    )
    op.add_column("datasets", sa.Column("compression", sa.String(length=8)))
    op.add_column(
        "datasets", sa.Column("columns", _JSON, nullable=False, server_default=sa.text("'[]'"))
    )
    op.add_column(
        "datasets", sa.Column("num_bad_rows", sa.Integer(), nullable=False, server_default="0")
    )
