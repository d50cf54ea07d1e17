"""Files over OpenAI's client: they are data sets, and everything about them arises by name."""

import io
from collections.abc import Callable
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient

from app.services import sweep
from tests.openai.conftest import Wire, lines
from tests.services.driver import Driver


def upload(client: openai.OpenAI, content: bytes | None = None, **options: Any) -> Any:
    given = lines() if content is None else content
    name = options.pop("name", "rows.jsonl")
    return client.files.create(file=(name, given), purpose="fine-tune", **options)


def test_a_file_comes_back_as_it_was_uploaded(client: openai.OpenAI, http: TestClient):
    file = upload(client)

    again = client.files.wait_for_processing(file.id)

    assert again == file
    assert (file.purpose, file.status, file.filename) == ("fine-tune", "processed", "rows.jsonl")
    assert file.bytes == len(lines())
    assert client.files.content(file.id).content == lines()
    tail = file.id.removeprefix("file-")
    assert http.get("/datasets").json()["data"][0]["id"] == f"ds-{tail}"


def test_a_list_goes_on_over_its_pages_in_both_orders(client: openai.OpenAI):
    ids = [upload(client, name=f"{n}.jsonl").id for n in range(5)]

    newest_first = [file.id for file in client.files.list(limit=2)]
    oldest_first = [file.id for file in client.files.list(limit=2, order="asc")]

    assert newest_first == ids[::-1]
    assert oldest_first == ids
    page = client.files.list(limit=2)
    assert (page.has_more, len(page.data)) == (True, 2)
    assert (page.first_id, page.last_id) == (ids[4], ids[3])  # type: ignore[attr-defined]


def test_results_are_listed_among_the_files_and_read_as_csv(
    client: openai.OpenAI, succeeded: Callable[..., str]
):
    job = client.fine_tuning.jobs.retrieve(succeeded())
    later = upload(client, name="later.jsonl")

    (result_id,) = job.result_files
    result = client.files.retrieve(result_id)
    rows = client.files.content(result_id).text.splitlines()

    assert result.purpose == "fine-tune-results"
    assert result.bytes == len(client.files.content(result_id).content)
    assert rows[0] == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    assert [row.split(",")[0] for row in rows[1:]] == ["1", "2", "3", "4"]
    assert rows[4].endswith(",,1.5,0.5")
    every = [later.id, result_id, job.training_file]
    assert [file.id for file in client.files.list(limit=1)] == every
    assert [file.id for file in client.files.list(limit=1, order="asc")] == every[::-1]
    only = client.files.list(purpose="fine-tune-results")
    assert [file.id for file in only] == [result_id]
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.delete(result_id)
    assert (refused.value.param, refused.value.code) == ("file_id", "not_deletable")


def test_a_malformed_file_is_refused_by_its_line_and_nothing_stays(
    client: openai.OpenAI, driver: Driver
):
    content = lines() + b'{"prompt": "no completion"}\n'

    with pytest.raises(openai.BadRequestError) as refused:
        upload(client, content)

    assert "25" in refused.value.message
    assert (refused.value.param, refused.value.code) == ("file", "invalid_dataset")
    assert client.files.list().data == []
    assert list(driver.settings.datasets_folder.iterdir()) == []


@pytest.mark.parametrize("purpose", ["assistants", "batch", "vision", "user_data", "evals", "x"])
def test_other_purposes_are_refused_by_name(client: openai.OpenAI, purpose: Any):
    with pytest.raises(openai.BadRequestError, match=f"purpose {purpose} is not") as refused:
        client.files.create(file=("rows.jsonl", lines()), purpose=purpose)

    assert (refused.value.param, refused.value.code) == ("purpose", "unsupported_purpose")


def test_a_field_that_nobody_looks_at_is_refused(http: TestClient):
    answer = http.post(
        "/v1/files",
        files={"file": ("rows.jsonl", lines())},
        data={"purpose": "fine-tune", "purpos": "x"},
    )

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "unknown_form_field"


def test_a_file_expires(client: openai.OpenAI, driver: Driver):
    file = upload(client, expires_after={"anchor": "created_at", "seconds": 3600})
    other = upload(client, name="other.jsonl")

    driver.sql("UPDATE datasets SET expires_at = '2020-01-01' WHERE expires_at IS NOT NULL")
    sweep.sweep(driver.db, driver.settings)

    assert file.expires_at is not None
    assert abs(file.expires_at - file.created_at - 3600) <= 1
    assert other.expires_at is None
    assert [each.id for each in client.files.list()] == [other.id]
    assert len(list(driver.settings.datasets_folder.iterdir())) == 1
    assert driver.sql("SELECT count(*) FROM datasets") == [(1,)]
    with pytest.raises(openai.NotFoundError) as gone:
        client.files.retrieve(file.id)
    assert (gone.value.param, gone.value.code) == ("file_id", "file_not_found")


def test_a_file_lives_an_hour_to_thirty_days(client: openai.OpenAI):
    for seconds in (3599, 2_592_001):
        with pytest.raises(openai.BadRequestError) as refused:
            upload(client, expires_after={"anchor": "created_at", "seconds": seconds})
        assert refused.value.param == "expires_after.seconds"


def test_a_file_that_a_job_goes_on_with_stays(
    client: openai.OpenAI, make_job: Callable[..., Any], driver: Driver, wire: Wire
):
    job = make_job()
    wire.requests.clear()

    with pytest.raises(openai.ConflictError, match=job.id) as refused:
        client.files.delete(job.training_file)

    assert refused.value.code == "in_use"
    assert len(wire.requests) == 1
    client.fine_tuning.jobs.cancel(job.id)
    assert client.files.delete(job.training_file).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.content(job.training_file)
    assert list(driver.settings.datasets_folder.iterdir()) == []
    assert client.files.list().data == []
    assert client.fine_tuning.jobs.retrieve(job.id).training_file == job.training_file
    with pytest.raises(openai.ConflictError) as gone:
        client.fine_tuning.jobs.resume(job.id)
    assert (gone.value.param, gone.value.code) == ("training_file", "file_deleted")
    with pytest.raises(openai.NotFoundError):
        make_job(training_file=job.training_file)


def test_a_file_whose_bytes_are_gone_says_so(client: openai.OpenAI, driver: Driver):
    file = upload(client)
    (folder,) = driver.settings.datasets_folder.iterdir()

    (folder / "data.jsonl").write_bytes(b"")

    found = client.files.retrieve(file.id)
    assert found.status == "error"
    assert found.status_details is not None
    assert "upload it again" in found.status_details


def test_an_upload_whose_answer_was_lost_makes_one_file(client: openai.OpenAI, wire: Wire):
    wire.cuts = 1

    file = upload(client)

    assert len(wire.requests) == 2
    assert [each.id for each in client.files.list()] == [file.id]
    assert upload(client).id != file.id  # asked for twice on purpose, it is stored twice


def test_one_idempotency_key_makes_one_file(client: openai.OpenAI):
    key = {"Idempotency-Key": "mine"}

    first, second = upload(client, extra_headers=key), upload(client, extra_headers=key)

    assert first.id == second.id
    with pytest.raises(openai.ConflictError) as refused:
        upload(client, lines()[:100].rpartition(b"\n")[0], extra_headers=key)
    assert refused.value.code == "idempotency_conflict"


def test_a_cursor_that_is_none_is_refused(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.list(after="file-0123456789abcdef01234567")

    assert (refused.value.param, refused.value.code) == ("after", "invalid_cursor")


def test_a_stream_of_bytes_is_taken_as_a_file(client: openai.OpenAI):
    source = io.BytesIO(lines())
    source.name = "named.jsonl"

    file = client.files.create(file=source, purpose="fine-tune")

    assert file.filename == "named.jsonl"
