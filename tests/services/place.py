"""Fixtures: a home with a model that is never loaded, its settings, database and services."""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.db.engine import Database
from app.services.jobs import Outside
from app.settings import Settings
from tests.services.driver import Driver, FakeDoorbell, FakeStream

__all__ = ["database", "driver", "home", "outside", "settings", "tmp_path"]

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
