"""Every class of error that OpenAI's client knows arises with its code and its param."""

from pathlib import Path

import openai
import pytest
from fastapi.testclient import TestClient

from app.services import keys
from app.settings import Settings
from tests.openai.conftest import lines
from tests.services.driver import Driver


def test_a_key_is_looked_at_once_there_is_one(
    client: openai.OpenAI, driver: Driver, http: TestClient
):
    assert client.models.list().data  # no key was ever made: whatever is sent opens
    secret = keys.create(driver.db, driver.settings, name="mine").secret

    with pytest.raises(openai.AuthenticationError) as refused:
        client.models.list()

    assert refused.value.code == "invalid_api_key"
    assert client.with_options(api_key=secret).models.list().data
    assert refused.value.request_id is not None


def test_a_bad_request_names_the_field(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError) as refused:
        client.fine_tuning.jobs.list(limit=0)

    assert refused.value.param == "limit"
    assert refused.value.code == "greater_than_equal"


def test_native_requests_keep_their_422(http: TestClient):
    assert http.get("/jobs", params={"limit": 0}).status_code == 422
    assert http.get("/v1/files", params={"limit": 0}).status_code == 400


def test_what_is_not_there_is_not_found(client: openai.OpenAI):
    with pytest.raises(openai.NotFoundError) as missing:
        client.fine_tuning.jobs.retrieve("ftjob-0123456789abcdef01234567")

    assert (missing.value.param, missing.value.code) == ("job_id", "not_found")
    assert "ftjob-0123456789abcdef01234567" in missing.value.message


def test_a_disk_that_takes_nothing_is_an_error_of_the_server(client: openai.OpenAI, driver: Driver):
    folder = driver.settings.datasets_folder
    folder.parent.mkdir(exist_ok=True)
    Path(folder).write_text("no folder")

    with pytest.raises(openai.InternalServerError) as failed:
        client.with_options(max_retries=0).files.create(
            file=("rows.jsonl", lines()), purpose="fine-tune"
        )

    assert failed.value.status_code == 503
    assert (failed.value.param, failed.value.code) == ("file", "storage_unavailable")


def test_a_file_over_the_limit_of_a_body_is_refused_while_it_comes(
    http: TestClient, settings: Settings
):
    big = b"x" * (settings.max_body_bytes + 1)

    body = http.post("/v1/uploads", content=big, headers={"content-type": "application/json"})
    file = http.post("/v1/files", files={"file": ("a.jsonl", big)}, data={"purpose": "fine-tune"})

    assert body.status_code == 413
    assert file.status_code == 400  # it is taken, and is no data
