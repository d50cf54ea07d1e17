"""A file that cannot be trained on is refused by line, and nothing of it stays behind."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app.domain.rows import MAX_LINE_BYTES
from tests.api.answers import refusal

GOOD = b'{"prompt": "a", "completion": "b"}\n'
LONG = b'{"text": "' + b"x" * MAX_LINE_BYTES + b'"}\n'


def chat(*messages: dict[str, str]) -> bytes:
    return json.dumps({"messages": messages}).encode() + b"\n"


FILES: dict[str, tuple[bytes, list[str]]] = {
    "empty": (b"", ["the file is empty", "at least one row"]),
    "only blank lines": (b"\n\n  \n", ["the file is empty"]),
    "not UTF-8": (GOOD + b'{"text": "\xff"}\n', ["line 2", "not UTF-8", "save the file as UTF-8"]),
    "UTF-16": ('{"text": "a"}\n'.encode("utf-16"), ["line 1", "not UTF-8"]),
    "bad JSON": (GOOD * 2 + b"{oops}\n", ["line 3", "not valid JSON"]),
    "a row over several lines": (
        b'{\n  "text": "a"\n}\n',
        ["line 1", "write one object per line, or an array"],
    ),
    "lines that end in CR": (b'{"text": "a"}\r{"text": "b"}\r', ["line 1", "end in CR alone"]),
    "a number of 5000 digits": (
        b'{"text": ' + b"9" * 5000 + b"}\n",
        ["line 1", "not valid JSON: a number has too many digits"],
    ),
    "rows within a hundred lists": (
        GOOD + b'{"a": ' + b"[" * 100_000 + b"\n",
        ["line 2", "not valid JSON: it is nested too deep"],
    ),
    "no object": (GOOD + b"[]\n", ["line 2", "expected a JSON object, got list"]),
    "a line over the cap": (GOOD + LONG, ["line 2", "longer than", "split the row"]),
    "a message without role": (
        chat({"content": "hi"}, {"role": "assistant", "content": "b"}),
        ["line 1", "messages[0] has no role", "give one of"],
    ),
    "no assistant turn": (
        GOOD + chat({"role": "user", "content": "hi"}),
        ["line 2", "no assistant turn"],
    ),
    "two formats": (GOOD + b'{"text": "a"}\n', ["several formats", "text from line 2"]),
    "keys of no format among others": (GOOD + b'{"question": "a"}\n', ["line 2", "keys found: q"]),
    "preferences": (b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n', ["line 1", "chosen"]),
    "images": (b'{"text": "a", "images": ["b.png"]}\n', ["line 1", "only text is trained on"]),
    "deep": (GOOD + b"[" * 100_000 + b"\n", ["line 2", "not valid JSON"]),
    "an array that does not end": (b'[{"text": "a"}, {"te', ["row 2", "ends before its array"]),
    "a bad element": (b'[{"text": "a"}, {"text": 1}]', ["row 2", "text must be a string"]),
    "two arrays": (b'[{"text": "a"}] []', ["something follows the array"]),
    "a zip archive": (b"PK\x03\x04" + bytes(50), ["zip archive", "CSV"]),
    "a cut gzip file": (gzip.compress(GOOD * 100)[:-9], ["cut off or damaged"]),
    "a broken Parquet file": (b"PAR1" + bytes(50) + b"PAR1", ["row 1", "Parquet", "damaged"]),
    "a shifted label": (b'{"input_ids": [1, 2], "labels": [2, 1]}', ["line 1", "do not shift"]),
    "how to keep them": (GOOD + b"{\n", ["on_bad_rows=keep"]),
    "a key twice": (b'{"text": "a", "text": "b"}\n', ["line 1", "text is given twice"]),
    "half a character": (b'{"text": "\\ud800"}\n', ["line 1", "surrogate"]),
}


def upload(client: TestClient, content: bytes, name: str = "rows.jsonl", **form: str):
    return client.post("/datasets", files={"file": (name, content)}, data=form)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("name", FILES)
def test_a_file_with_an_unusable_line_is_refused_whole(client: TestClient, home: Path, name: str):
    content, words = FILES[name]

    error = refusal(upload(client, content), 422)

    assert (error["param"], error["code"]) == ("file", "invalid_dataset")
    assert [word for word in words if word not in error["message"]] == []
    assert client.get("/datasets").json()["data"] == []
    assert list((home / "datasets").iterdir()) == []


def test_an_open_quote_of_a_csv_file_loses_no_row_after_it(client: TestClient):
    good = b"".join(b"q%d,a%d\n" % (number, number) for number in range(100))
    content = b"prompt,completion\n" + good + b'bad,"open quote\n' + good * 8

    refused = refusal(upload(client, content, "rows.csv"), 422)
    kept = upload(client, content, "rows.csv", on_bad_rows="keep").json()

    assert "line 102: the quote opened at line 102 is never closed" in refused["message"]
    assert (kept["num_rows"], kept["num_bad_rows"]) == (901, 1)


def test_of_many_bad_lines_the_first_ones_are_named(client: TestClient):
    error = refusal(upload(client, b"{\n" * 50), 422)

    assert "line 1:" in error["message"]
    assert "line 10:" in error["message"]
    assert "and more" in error["message"]
    assert "line 12:" not in error["message"]


def test_an_upload_over_the_cap_is_refused_announced_or_not(
    make_client: Callable[..., TestClient], home: Path
):
    client = make_client(max_upload_bytes=4096)
    head = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
    body = head + GOOD * 4000 + b"\r\n--b--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=b"}

    file = upload(client, GOOD * 200)
    announced = client.post("/datasets", content=body, headers=headers)
    pieces = iter([body[at : at + 10_000] for at in range(0, len(body), 10_000)])
    chunked = client.post("/datasets", content=pieces, headers=headers)

    bomb = upload(client, gzip.compress(GOOD * 200))

    assert "LORAD_MAX_UPLOAD_BYTES" in refusal(file, 413)["message"]
    assert "once decompressed (LORAD_MAX_UPLOAD_BYTES)" in refusal(bomb, 413)["message"]
    for answer in (announced, chunked):
        assert "larger than" in refusal(answer, 413)["message"]
    assert client.get("/datasets").json()["data"] == []
    assert not any((home / "datasets").glob("*"))
    assert upload(client, GOOD).status_code == 201


FORMS: dict[str, tuple[bytes, str, int]] = {
    "no file": (
        b'--b\r\ncontent-disposition: form-data; name="name"\r\n\r\na\r\n--b--\r\n',
        "b",
        422,
    ),
    "file as text": (
        b'--b\r\ncontent-disposition: form-data; name="file"\r\n\r\na\r\n--b--\r\n',
        "b",
        422,
    ),
    "cut": (b'--b\r\ncontent-disposition: form-data; name="name"\r\n\r\na', "b", 422),
    "no boundary": (b"x", "", 400),
    "nothing": (b"", "b", 422),
}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("name", FORMS)
def test_a_form_without_a_file_is_refused(client: TestClient, name: str):
    content, boundary, status = FORMS[name]
    kind = "multipart/form-data" + (f"; boundary={boundary}" if boundary else "")

    answer = client.post("/datasets", content=content, headers={"content-type": kind})

    error = refusal(answer, status)
    assert status == 422 or "/openapi.json" in error["message"]
    assert client.get("/datasets").json()["data"] == []


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_unknown_form_field_is_refused(client: TestClient):
    error = refusal(upload(client, GOOD, nam="mine"), 422)

    assert (error["param"], error["code"]) == ("nam", "unknown_form_field")
    assert "did you mean name?" in error["message"]
    assert client.get("/datasets").json()["data"] == []


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_second_file_is_refused(client: TestClient):
    files = [("file", ("a.jsonl", GOOD)), ("file", ("b.jsonl", GOOD))]

    error = refusal(client.post("/datasets", files=files), 422)

    assert (error["param"], error["code"]) == ("file", "repeated_form_field")
    assert client.get("/datasets").json()["data"] == []


def test_a_json_body_is_told_to_be_a_form(client: TestClient):
    error = refusal(client.post("/datasets", json={"path": "/data/rows.jsonl"}), 422)

    assert error["param"] == "file"


def test_a_full_disk_is_told_and_leaves_nothing(
    client: TestClient, home: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LORAD_FAILPOINTS", "dataset.fsync=raise:ENOSPC")
    refused = upload(client, GOOD)
    monkeypatch.delenv("LORAD_FAILPOINTS")

    error = refusal(refused, 503)

    assert "No space left on device" in error["message"]
    assert list((home / "datasets").iterdir()) == []
    assert upload(client, GOOD).status_code == 201


@pytest.mark.parametrize("filename", ["../../etc/passwd", "a\0b.jsonl", "/", "..", "x" * 400, "日"])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_file_name_is_a_label_and_no_path(client: TestClient, home: Path, filename: str):
    answer = upload(client, GOOD, filename)

    assert answer.status_code == 201
    dataset = answer.json()
    assert "/" not in dataset["filename"]
    assert 0 < len(dataset["filename"]) <= 255
    assert [path.name for path in (home / "datasets").iterdir()] == [dataset["id"]]


def test_a_name_that_no_database_can_store_is_refused(client: TestClient, home: Path):
    field = b'--b\r\ncontent-disposition: form-data; name="name"\r\n\r\na\0b\r\n'
    file = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n' + GOOD
    headers = {"content-type": "multipart/form-data; boundary=b"}

    answer = client.post("/datasets", content=field + file + b"\r\n--b--\r\n", headers=headers)

    error = refusal(answer, 422)

    assert error["param"] == "name"
    assert client.get("/datasets").json()["data"] == []


def test_an_upload_is_stored_with_what_was_found(client: TestClient, home: Path):
    answer = upload(client, b"\xef\xbb\xbf" + GOOD + b"\n" + GOOD, name="mine")

    dataset = answer.json()
    assert answer.status_code == 201
    assert (dataset["name"], dataset["num_rows"]) == ("mine", 2)
    assert dataset["format"] == "prompt-completion"
    assert client.get(f"/datasets/{dataset['id']}").json() == dataset
    assert client.get("/datasets").json()["data"] == [dataset]
    stored = (home / "datasets" / dataset["id"] / "data.jsonl").read_bytes()
    assert len(stored) == dataset["bytes"]


def test_a_data_set_is_deleted_with_its_files_unless_a_job_has_it(
    client: TestClient, spec: dict[str, object], home: Path
):
    used = client.get("/datasets").json()["data"][0]["id"]
    job = client.post("/jobs", json=spec).json()["id"]
    free = upload(client, GOOD).json()["id"]

    refused = client.delete(f"/datasets/{used}")
    deleted = client.delete(f"/datasets/{free}")

    error = refusal(refused, 409)
    assert job in error["message"]
    assert error["code"] == "in_use"
    assert deleted.json() == {"id": free, "object": "dataset", "deleted": True}
    assert [path.name for path in (home / "datasets").iterdir()] == [used]
    refusal(client.get(f"/datasets/{free}"), 404)
