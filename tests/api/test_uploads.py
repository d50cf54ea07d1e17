"""Uploads in every container and format, rows that are kept though bad, and jobs on all of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.domain import records, rows
from app.domain.datasets import Dataset, DatasetReport, data_file
from app.domain.row_types import BadRow
from tests.api.answers import refusal
from tests.row_files import COMPRESSIONS, WRITERS
from tests.services.place import write_model

CONVERSATIONS = [
    {
        "messages": [
            {"role": "user", "content": 'a, "b"\n]'},
            {"role": "assistant", "content": "é", "weight": weight},
        ]
    }
    for weight in (0, 1)
]
GOOD = {"prompt": "a", "completion": "b"}
QUESTION = {"question": "a", "answer": "b"}


def jsonl(*records: Any) -> bytes:
    lines = (each if isinstance(each, str) else json.dumps(each) for each in records)
    return "\n".join(lines).encode()


@pytest.fixture
def upload(client: TestClient) -> Callable[..., str]:
    def upload(content: bytes, **form: str) -> str:
        answer = client.post("/datasets", files={"file": ("rows", content)}, data=form)
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    return upload


def write(container: str) -> bytes:
    tabular = container == "csv"
    return WRITERS[container](
        [{"messages": json.dumps(row["messages"])} for row in CONVERSATIONS]
        if tabular
        else CONVERSATIONS
    )


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("container", WRITERS)
def test_the_same_rows_are_read_from_every_container(
    client: TestClient,
    upload: Callable[..., str],
    home: Path,
    container: str,
    compression: str | None,
):
    dataset_id = upload(COMPRESSIONS[compression](write(container)))

    stored = Dataset.model_validate(client.get(f"/datasets/{dataset_id}").json())
    assert (stored.container, stored.compression) == (container, compression)
    assert (stored.format, stored.num_rows, stored.columns) == ("chat", 2, ["messages"])
    file = data_file(home / "datasets", stored)
    found = records.read(file.path, container=file.container, compression=file.compression)
    parsed = [rows.parse_record(record) for _, record in found if isinstance(record, dict)]
    assert parsed == [rows.parse_record(row) for row in CONVERSATIONS]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_bad_rows_are_kept_and_counted_when_asked_for(
    client: TestClient, upload: Callable[..., str], home: Path
):
    other = {"text": "another format"}
    dataset_id = upload(jsonl(GOOD, "{oops", GOOD, QUESTION, other), on_bad_rows="keep")

    stored = client.get(f"/datasets/{dataset_id}").json()
    report = DatasetReport.model_validate_json(
        (home / "datasets" / dataset_id / "report.json").read_bytes()
    )
    assert (stored["num_rows"], stored["num_bad_rows"]) == (5, 3)
    assert stored["format"] == "prompt-completion"
    assert [(each.number, each.reason) for each in report.problems] == [
        (2, "bad_json"),
        (4, "unknown_format"),
        (5, "other_format"),
    ]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_file_of_bad_rows_only_is_not_kept(client: TestClient, home: Path):
    answer = client.post(
        "/datasets", files={"file": ("rows", b"{\n{")}, data={"on_bad_rows": "keep"}
    )

    assert "line 1" in refusal(answer, 422)["message"]
    assert list((home / "datasets").iterdir()) == []


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_keeping_bad_rows_is_another_upload_under_an_idempotency_key(client: TestClient):
    files, headers = {"file": ("rows", jsonl(GOOD))}, {"idempotency-key": "k"}

    first = client.post("/datasets", files=files, headers=headers)
    other = client.post("/datasets", files=files, headers=headers, data={"on_bad_rows": "keep"})

    assert first.status_code == 201
    refusal(other, 409)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_what_to_do_with_bad_rows_is_one_of_two_words(client: TestClient):
    answer = client.post(
        "/datasets", files={"file": ("rows", jsonl(GOOD))}, data={"on_bad_rows": "skip"}
    )

    assert refusal(answer, 422)["param"] == "on_bad_rows"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_columns_of_no_known_format_are_stored_and_a_job_has_to_say_what_they_are(
    client: TestClient, spec: dict[str, Any], upload: Callable[..., str]
):
    dataset_id = upload(jsonl(QUESTION))

    def submit(**dataset: Any):
        return client.post("/jobs", json=spec | {"dataset": {"id": dataset_id, **dataset}})

    assert client.get(f"/datasets/{dataset_id}").json()["format"] is None
    error = refusal(submit(), 422)
    assert error["param"] == "dataset.format"
    assert "(answer, question)" in error["message"]
    assert refusal(submit(format="text"), 422)["param"] == "dataset.format"
    mapping = {"prompt": "question", "completion": "answer"}
    assert submit(field_mapping=mapping).status_code == 201
    assert submit(field_mapping=mapping, format="prompt-completion").status_code == 201
    error = refusal(submit(field_mapping=mapping, format="alpaca"), 422)
    assert (error["param"], "instruction" in error["message"]) == ("dataset.field_mapping", True)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"quastion": "question"}, ["quastion is none of ours", "prompt", "completion"]),
        ({"prompt": "ask"}, ["names ask", "its columns are: answer, question"]),
    ],
)
def test_a_mapping_of_columns_that_are_not_there_is_refused(
    client: TestClient,
    spec: dict[str, Any],
    upload: Callable[..., str],
    mapping: dict[str, str],
    words: list[str],
):
    dataset = {"id": upload(jsonl(QUESTION)), "field_mapping": mapping}

    error = refusal(client.post("/jobs", json=spec | {"dataset": dataset}), 422)

    assert error["param"] == "dataset.field_mapping"
    assert [word for word in words if word not in error["message"]] == []


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_chat_template_of_the_job_stands_in_for_the_models(
    client: TestClient, spec: dict[str, Any], upload: Callable[..., str], home: Path
):
    write_model(home, "plain", template=None)
    dataset = {"id": upload(jsonl(*CONVERSATIONS))}

    def submit(**more: str):
        return client.post("/jobs", json=spec | {"base_model": "plain", "dataset": dataset | more})

    assert "dataset.chat_template" in refusal(submit(), 422)["message"]
    assert submit(chat_template="{{ messages }}").status_code == 201


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_data_to_evaluate_on_has_to_exist_and_stays_while_a_job_has_it(
    client: TestClient, spec: dict[str, Any], upload: Callable[..., str]
):
    held_out, strange = upload(jsonl(GOOD)), upload(jsonl(QUESTION))
    dataset = spec["dataset"]

    def submit(eval_id: str):
        return client.post("/jobs", json=spec | {"dataset": dataset | {"eval_id": eval_id}})

    missing = refusal(submit(f"ds-{'0' * 24}"), 404)
    unfit = refusal(submit(strange), 422)
    job = submit(held_out)

    assert (missing["param"], missing["code"]) == ("dataset.eval_id", "unknown_dataset")
    assert strange in unfit["message"]
    assert job.status_code == 201
    assert job.json()["id"] in refusal(client.delete(f"/datasets/{held_out}"), 409)["message"]
    assert client.delete(f"/datasets/{strange}").status_code == 200


def test_no_key_of_a_row_is_too_strange_to_store(upload: Callable[..., str], client: TestClient):
    dataset_id = upload(jsonl({"text": "a", "\ud800": 1, "nul\0": 2, "k" * 300: 3}))

    stored = client.get(f"/datasets/{dataset_id}").json()

    assert stored["ignored_keys"] == ["\\ud800", "k" * 200, "nul\\0"]
    assert not any(isinstance(column, BadRow) for column in stored["columns"])
