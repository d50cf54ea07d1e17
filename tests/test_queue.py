"""The broker carries a bell: nothing is held, kept or believed there."""

from pathlib import Path

import pytest
from celery import Celery

from app import queue
from app.settings import Settings


@pytest.fixture
def celery(tmp_path: Path) -> Celery:
    return queue.create(Settings(home=tmp_path, redis_url="redis://127.0.0.1:1"))


def test_a_message_is_acknowledged_before_it_is_worked_on(celery: Celery):
    assert celery.conf.task_acks_late is False
    assert celery.conf.task_reject_on_worker_lost is None


def test_nobody_keeps_results(celery: Celery):
    assert celery.conf.result_backend is None
    assert celery.conf.task_ignore_result is True


def test_a_busy_worker_holds_no_message_that_another_could_have(celery: Celery):
    assert celery.conf.worker_prefetch_multiplier == 1
    assert celery.conf.worker_disable_prefetch is True


def test_only_json_is_sent_and_read(celery: Celery):
    assert list(celery.conf.accept_content) == ["json"]
    assert celery.conf.task_serializer == "json"
