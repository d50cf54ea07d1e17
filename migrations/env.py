"""Alembic's entry: runs migrations on the database that the configuration names."""

from alembic import context

from app.db.engine import Database
from app.db.tables import Base
from app.settings import Settings


def run() -> None:
    url = context.config.attributes.get("url") or Settings().sqlalchemy_url
    database = Database(url)
    with database.engine.connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            render_as_batch=connection.dialect.name == "sqlite",
            compare_type=True,
        )
        with context.begin_transaction():
            context.run_migrations()
        connection.commit()
    database.close()


run()
