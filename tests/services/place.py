"""Fixtures: a home with a model that is never loaded, its settings, database and services."""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from alembic.script import ScriptDirectory

from app.db.engine import Database
from app.services.jobs import Outside
from app.settings import Settings
from tests.fixtures.database import PostgresCluster
from tests.services.driver import Driver, FakeDoorbell, FakeStream

__all__ = ["database", "driver", "home", "outside", "postgres_url", "settings", "shelf", "tmp_path"]

MODEL = "tiny"
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def write_model(home: Path, name: str = MODEL, *, template: str | None = TEMPLATE) -> Path:
    """Write a model folder that passes the look at its files; its weights are not weights."""
    folder = home / "models" / name
    folder.mkdir(parents=True)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: these tests wait for the disk at every commit."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="lorad-test-", dir=memory) as folder:
        yield Path(folder)


class Shelf:
    """Keeps one migrated PostgreSQL database for many tests; a new one costs ten times a cleaning.

    Args:
        cluster: The server it is on.
        template: Name of the migrated database that it is a copy of.
    """

    def __init__(self, cluster: PostgresCluster, template: str) -> None:
        self._cluster = cluster
        self._template = template
        self._name: str | None = None

    def take(self) -> str:
        """Return the URL of a database without a row."""
        if self._name is None:
            self._name = self._cluster.create(template=self._template)
        return self._cluster.url(self._name)

    def put_back(self) -> None:
        """Remove what a test left; a database that cannot be cleaned is thrown away."""
        self._cluster.start()
        assert self._name is not None
        url = self._cluster.url(self._name).replace("+psycopg", "", 1)
        try:
            with psycopg.connect(url, options="-c lock_timeout=500") as connection:
                connection.execute(_CLEANING)
                is_whole = connection.execute(_VERSION).fetchone() == (_HEAD,)
        except psycopg.Error:
            is_whole = False
        if not is_whole:
            self._cluster.drop(self._name)
            self._name = None


_CLEANING = """
DELETE FROM idempotency_keys; DELETE FROM jobs; DELETE FROM datasets; DELETE FROM workers;
DELETE FROM uploads; DELETE FROM api_keys; DELETE FROM projects WHERE id <> 'default'
"""
_VERSION = "SELECT version_num FROM alembic_version"
_HEAD = ScriptDirectory(str(Path(__file__).parents[2] / "migrations")).get_current_head()


@pytest.fixture(scope="session")
def shelf(postgres_cluster: PostgresCluster, postgres_template: str) -> Shelf:
    return Shelf(postgres_cluster, postgres_template)


@pytest.fixture
def postgres_url(shelf: Shelf) -> Iterator[str]:
    """URL of a migrated PostgreSQL database without a row."""
    yield shelf.take()
    shelf.put_back()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    write_model(home)
    return home


@pytest.fixture
def settings(home: Path, database_url: str) -> Settings:
    """Settings whose Redis is away and whose reconciler never wakes."""
    return Settings.model_validate(
        {
            "home": home,
            "database_url": database_url,
            "redis_url": f"unix://{home}/no.sock",
            "reconcile_seconds": 3600,
            "log_level": "error",
        }
    )


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    database = Database(settings.sqlalchemy_url)
    yield database
    database.close()


@pytest.fixture
def outside(settings: Settings) -> Outside:
    return Outside(settings=settings, doorbell=FakeDoorbell(), stream=FakeStream())


@pytest.fixture
def driver(database: Database, outside: Outside) -> Driver:
    """A worker in the hand of the test."""
    return Driver(database, outside)
