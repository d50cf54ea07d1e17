"""Uploads over OpenAI's client: parts become the file that they were cut from."""

import hashlib
from pathlib import Path

import openai
import pytest

from app.services import sweep
from tests.openai.conftest import Wire, lines
from tests.services.driver import Driver


def begin(client: openai.OpenAI, num_bytes: int | None = None) -> openai.types.Upload:
    return client.uploads.create(
        bytes=len(lines()) if num_bytes is None else num_bytes,
        filename="rows.jsonl",
        mime_type="application/jsonl",
        purpose="fine-tune",
    )


def add(client: openai.OpenAI, upload_id: str, *contents: bytes) -> list[str]:
    return [client.uploads.parts.create(upload_id, data=each).id for each in contents]


def code_of(refused: pytest.ExceptionInfo[openai.APIStatusError]) -> tuple[object, object]:
    return refused.value.param, refused.value.code


def test_a_file_in_chunks_is_the_file(client: openai.OpenAI, tmp_path: Path, driver: Driver):
    path = tmp_path / "big.jsonl"
    path.write_bytes(lines())

    upload = client.uploads.upload_file_chunked(
        file=path, mime_type="application/jsonl", purpose="fine-tune", part_size=100
    )

    assert upload.status == "completed"
    assert upload.file is not None
    assert client.files.content(upload.file.id).content == lines()
    assert upload.file.filename == "big.jsonl"
    assert list((driver.settings.home / "uploads").iterdir()) == []


def test_the_order_is_that_of_the_completion(client: openai.OpenAI):
    upload, whole = begin(client), lines()
    second, first = add(client, upload.id, whole[300:], whole[:300])
    md5 = hashlib.md5(whole, usedforsecurity=False).hexdigest()

    with pytest.raises(openai.BadRequestError) as refused:
        client.uploads.complete(upload.id, part_ids=[second, first], md5=md5)
    done = client.uploads.complete(upload.id, part_ids=[first, second], md5=md5)
    again = client.uploads.complete(upload.id, part_ids=[first, second], md5=md5)

    assert code_of(refused) == ("md5", "wrong_md5")
    assert done.file is not None
    assert done == again
    assert client.files.content(done.file.id).content == whole
    assert len(client.files.list().data) == 1


def test_parts_that_are_not_the_file_are_refused(client: openai.OpenAI):
    upload, whole = begin(client), lines()
    first, second = add(client, upload.id, whole[:300], whole[300:])
    cases = {
        "wrong_size": [first],
        "invalid_part": [first, second, "part_0123456789abcdef01234567"],
    }

    for code, part_ids in cases.items():
        with pytest.raises(openai.BadRequestError) as refused:
            client.uploads.complete(upload.id, part_ids=part_ids)
        assert code_of(refused) == ("part_ids", code)
    with pytest.raises(openai.BadRequestError, match="named twice"):
        client.uploads.complete(upload.id, part_ids=[first, first])

    assert client.uploads.complete(upload.id, part_ids=[first, second]).status == "completed"


def test_a_bad_row_is_refused_at_the_completion_and_stores_nothing(client: openai.OpenAI):
    content = b'{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n'
    upload = begin(client, len(content))
    part_ids = add(client, upload.id, content)

    with pytest.raises(openai.BadRequestError, match="2") as refused:
        client.uploads.complete(upload.id, part_ids=part_ids)

    assert refused.value.code == "invalid_dataset"
    assert client.files.list().data == []
    assert client.uploads.cancel(upload.id).status == "cancelled"


def test_an_upload_that_has_ended_takes_nothing_more(client: openai.OpenAI, driver: Driver):
    cancelled, late = begin(client), begin(client)
    part_ids = add(client, cancelled.id, b"x")
    client.uploads.cancel(cancelled.id)
    driver.sql("UPDATE uploads SET expires_at = '2020-01-01' WHERE state = 'pending'")

    for upload, state in ((cancelled, "cancelled"), (late, "expired")):
        with pytest.raises(openai.BadRequestError, match=f"is {state}") as refused:
            client.uploads.parts.create(upload.id, data=b"x")
        assert code_of(refused) == ("upload_id", "invalid_upload_state")
        with pytest.raises(openai.BadRequestError, match=f"is {state}"):
            client.uploads.complete(upload.id, part_ids=part_ids)
    assert client.uploads.cancel(cancelled.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="is expired"):
        client.uploads.cancel(late.id)


def test_the_parts_of_an_expired_upload_are_removed(client: openai.OpenAI, driver: Driver):
    late, other = begin(client), begin(client)
    add(client, late.id, b"x")
    add(client, other.id, b"x")
    own_id = late.id.replace("_", "-")
    driver.sql("UPDATE uploads SET expires_at = '2020-01-01' WHERE id = :id", id=own_id)

    sweep.sweep(driver.db, driver.settings)

    left = [path.name for path in (driver.settings.home / "uploads").iterdir()]
    assert left == [other.id.replace("_", "-")]
    assert driver.sql("SELECT state FROM uploads WHERE id = :id", id=own_id) == [("expired",)]


def test_more_bytes_than_announced_are_refused(client: openai.OpenAI, driver: Driver):
    upload = begin(client, 10)

    with pytest.raises(openai.BadRequestError) as refused:
        client.uploads.parts.create(upload.id, data=b"12345678901")

    assert code_of(refused) == ("data", "wrong_size")
    assert list(driver.settings.home.glob("uploads/*/*")) == []
    assert list(driver.settings.home.glob("uploads/*/.tmp*")) == []


def test_a_file_over_the_limit_is_refused_before_it_comes(client: openai.OpenAI):
    with pytest.raises(openai.APIStatusError) as refused:
        begin(client, 2**40)

    assert refused.value.status_code == 413
    assert refused.value.param == "bytes"


def test_what_comes_again_because_no_answer_came_is_done_once(client: openai.OpenAI, wire: Wire):
    wire.cuts = 1
    upload = begin(client)
    wire.cuts = 1
    part_ids = add(client, upload.id, lines())
    wire.cuts = 1
    done = client.uploads.complete(upload.id, part_ids=part_ids)

    assert len(wire.requests) == 6
    assert done.file is not None
    assert [file.id for file in client.files.list()] == [done.file.id]


def test_an_upload_that_is_none_is_a_404(client: openai.OpenAI):
    with pytest.raises(openai.NotFoundError) as missing:
        client.uploads.cancel("upload_0123456789abcdef01234567")

    assert code_of(missing) == ("upload_id", "upload_not_found")
