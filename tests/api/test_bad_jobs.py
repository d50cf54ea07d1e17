"""A job that cannot run is refused by name, with a remedy, and nothing of it is stored."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.api.answers import refusal
from tests.services.driver import Driver
from tests.services.place import write_model

# What is wrong -> (change of the top, change of the groups), param, words of the message.
SPECS: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "unknown key": ({"lorra": {}}, "lorra", ["unknown key lorra", "did you mean lora?"]),
    "unknown key in a group": (
        {"training": {"max_step": 3}},
        "training.max_step",
        ["unknown key max_step", "did you mean max_steps?"],
    ),
    "key outside its group": (
        {"learning_rate": 1e-4},
        "learning_rate",
        ["did you mean training.learning_rate?"],
    ),
    "wrong type": ({"seed": "x"}, "seed", ["seed", "valid integer"]),
    "text for a number": ({"lora": {"r": "16"}}, "lora.r", ["lora.r", "valid integer"]),
    "r of zero": ({"lora": {"r": 0}}, "lora.r", ["lora.r", "greater than or equal to 1"]),
    "negative r": ({"lora": {"r": -4}}, "lora.r", ["lora.r", "greater than or equal to 1"]),
    "alias against its key": (
        {"lora": {"r": 8, "lora_rank": 16}},
        "lora.lora_rank",
        ["lora_rank is another name of lora.r", "give one of them"],
    ),
    "max_steps of zero": (
        {"training": {"max_steps": 0}},
        "training.max_steps",
        ["training.max_steps", "greater than or equal to 1"],
    ),
    "a path as the data set": (
        {"dataset": {"id": "/data/rows.jsonl"}},
        "dataset.id",
        ["/data/rows.jsonl", "upload the file with POST /datasets"],
    ),
    "a data set by path": (
        {"dataset": {"path": "rows.jsonl"}},
        "dataset.path",
        ["rows.jsonl", "upload the file with POST /datasets"],
    ),
    "a path as the model": (
        {"base_model": "../../etc"},
        "base_model",
        ["'../../etc' is no name of a model", "lorad models add"],
    ),
    "a hub id as the model": (
        {"base_model": "hf.co/HuggingFaceTB/SmolLM2-135M"},
        "base_model",
        ["not loaded from a hub", "GET /models"],
    ),
    "two horizons": (
        {"training": {"max_steps": 5, "num_train_epochs": 3}},
        "training.num_train_epochs",
        ["max_steps = 5", "num_train_epochs = 3", "give one of them"],
    ),
    "a warm-up that the schedule has not": (
        {"training": {"lr_scheduler_type": "constant", "warmup_steps": 10}},
        "training.warmup_steps",
        ["constant has no warm-up", "constant_with_warmup"],
    ),
    "a warm-up longer than the run": (
        {"training": {"max_steps": 3, "warmup_steps": 500}},
        "training.warmup_steps",
        ["does not end within max_steps = 3"],
    ),
    "early stopping without evaluation": (
        {"training": {"early_stopping_patience": 2}},
        "training.early_stopping_patience",
        ["training.eval_steps"],
    ),
    "a huge number": ({"seed": 10**30}, "seed", ["seed", "less than or equal to 2147483647"]),
    "NUL in a name": ({"name": "a\0b"}, "name", ["name", "NUL"]),
    "half a character in a name": ({"name": "\ud800"}, "name", ["name", "surrogate"]),
    "a long name": ({"name": "x" * 201}, "name", ["at most 200 characters, it has 201"]),
    "a blank name": ({"name": " "}, "name", ["name", "must not be blank"]),
    "a key of metadata without a name": (
        {"metadata": {"": "a"}},
        "metadata",
        ["a key of metadata must have at least 1 character, it has 0"],
    ),
    "to resume another job": (
        {"resume_from": {"job_id": "job-1"}},
        "resume_from",
        ["resume_from is not available yet", "POST /jobs/{id}/resume continues the same job"],
    ),
    "not built": ({"method": "dpo"}, "method", ["method", "not available", "leave it out"]),
    "a group that is a list": ({"lora": []}, "lora", ["lora"]),
}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("name", SPECS)
def test_a_bad_spec_is_refused_with_field_and_remedy(
    client: TestClient, spec: dict[str, Any], name: str
):
    change, param, words = SPECS[name]

    answer = client.post("/jobs", content=json.dumps({**spec, **change}), headers=JSON)

    error = refusal(answer, 422)
    assert error["param"] == param
    assert [word for word in words if word not in error["message"]] == []
    assert client.get("/jobs").json()["data"] == []


JSON = {"content-type": "application/json"}


def test_several_faults_are_told_at_once(client: TestClient, spec: dict[str, Any]):
    bad = {**spec, "lora": {"r": 0}, "training": {"max_steps": 0}}

    error = refusal(client.post("/jobs", json=bad), 422)

    assert {each["param"] for each in error["details"]} == {"lora.r", "training.max_steps"}


def test_an_unknown_model_is_a_404_that_names_those_there_are(
    client: TestClient, spec: dict[str, Any]
):
    answer = client.post("/jobs", json={**spec, "base_model": "llama-9"})

    error = refusal(answer, 404)
    assert (error["param"], error["code"]) == ("base_model", "unknown_model")
    assert "there: tiny" in error["message"]
    assert "lorad models add" in error["message"]
    assert client.get("/jobs").json()["data"] == []


def code_of_its_own(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama", "auto_map": {"A": "m.A"}}')


def pickled(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def broken(folder: Path) -> None:
    (folder / "config.json").write_text("{")


FOLDERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "auto_map": (code_of_its_own, "never runs such code"),
    "pickle": (pickled, "convert it to safetensors"),
    "no weights": (no_weights, "no .safetensors file"),
    "bad JSON": (broken, "config.json is not valid JSON"),
}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("name", FOLDERS)
def test_a_model_folder_that_is_not_safe_is_refused_and_listed_with_its_problem(
    client: TestClient, spec: dict[str, Any], home: Path, name: str
):
    spoil, words = FOLDERS[name]
    spoil(write_model(home, "bad"))

    error = refusal(client.post("/jobs", json={**spec, "base_model": "bad"}), 422)

    assert error["param"] == "base_model"
    assert words in error["message"]
    listed = {model["id"]: model for model in client.get("/models").json()["data"]}
    assert not listed["bad"]["usable"]
    assert words in listed["bad"]["problem"]
    assert listed["tiny"]["usable"]
    assert client.get("/jobs").json()["data"] == []


def test_chat_rows_need_a_model_with_a_chat_template(
    client: TestClient, spec: dict[str, Any], home: Path
):
    write_model(home, "plain", template=None)
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    chat = client.post("/datasets", files={"file": ("c.jsonl", json.dumps(row))}).json()["id"]

    refused = client.post("/jobs", json={**spec, "base_model": "plain", "dataset": {"id": chat}})
    prompts = client.post("/jobs", json={**spec, "base_model": "plain"})
    templated = client.post("/jobs", json={**spec, "dataset": {"id": chat}})

    error = refusal(refused, 422)
    assert error["param"] == "base_model"
    assert "chat template" in error["message"]
    assert (prompts.status_code, templated.status_code) == (201, 201)


def test_a_missing_data_set_is_a_404_that_says_how_to_upload(
    client: TestClient, spec: dict[str, Any]
):
    answer = client.post("/jobs", json={**spec, "dataset": {"id": f"ds-{'0' * 24}"}})

    error = refusal(answer, 404)
    assert (error["param"], error["code"]) == ("dataset.id", "unknown_dataset")
    assert "POST /datasets" in error["message"]
    assert client.get("/jobs").json()["data"] == []


def test_a_format_that_the_rows_do_not_have_is_refused(client: TestClient, driver: Driver):
    spec = driver.spec(dataset={"id": driver.dataset(), "format": "chat"})

    error = refusal(client.post("/jobs", json=spec), 422)

    assert error["param"] == "dataset.format"
    assert "chat rows need messages" in error["message"]
    assert "completion, prompt" in error["message"]


def test_a_holdout_of_every_row_is_refused(client: TestClient, driver: Driver):
    spec = driver.spec(dataset={"id": driver.dataset(), "val_size": 1000})

    error = refusal(client.post("/jobs", json=spec), 422)

    assert error["param"] == "dataset.val_size"
    assert "val_size = 1000 holds out all of the" in error["message"]


BODIES: dict[str, tuple[bytes, dict[str, str], int]] = {
    "no JSON": (b"{", JSON, 422),
    "empty": (b"", JSON, 422),
    "null": (b"null", JSON, 422),
    "a list": (b"[]", JSON, 422),
    "not UTF-8": (b'{"name": "\xff"}', JSON, 422),
    "nested too deep": (b"[" * 100_000, JSON, 422),
    "nested deep": (b'{"metadata":' + b"[" * 200 + b"]" * 200 + b"}", JSON, 422),
    "too many digits": (b'{"seed": ' + b"9" * 5000 + b"}", JSON, 422),
    "NaN": (b'{"training": {"learning_rate": NaN}}', JSON, 422),
    "Infinity": (b'{"training": {"max_grad_norm": Infinity}}', JSON, 422),
    "a form": (b"a=b", {"content-type": "application/x-www-form-urlencoded"}, 422),
    "text": (b'{"base_model": "tiny"}', {"content-type": "text/plain"}, 422),
    "no type": (b'{"base_model": "tiny"}', {}, 422),
}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_no_spec_is_refused(client: TestClient, name: str):
    content, headers, status = BODIES[name]

    answer = client.post("/jobs", content=content, headers=headers)

    refusal(answer, status)
    assert client.get("/jobs").json()["data"] == []


UNREADABLE: dict[str, tuple[bytes, str]] = {
    "no JSON": (b'{"a": }', "line 1 column 7"),
    "not UTF-8": (b'{"name": "\xff"}', "byte 10 is not UTF-8"),
    "nested too deep": (b"[" * 100_000, "nested too deep"),
    "too many digits": (b'{"seed": ' + b"9" * 10_000 + b"}", "too many digits"),
}


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_json_that_cannot_be_read_says_why_and_what_to_send(client: TestClient, name: str):
    content, reason = UNREADABLE[name]

    error = refusal(client.post("/jobs", content=content, headers=JSON), 422)

    assert error["code"] == "invalid_json"
    assert reason in error["message"]
    assert "send one JSON object" in error["message"]


@pytest.mark.parametrize("path", ["/jobs", "/datasets"])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_compressed_body_is_told_to_come_uncompressed(
    client: TestClient, spec: dict[str, Any], path: str
):
    content = gzip.compress(json.dumps(spec).encode())

    answer = client.post(path, content=content, headers={**JSON, "content-encoding": "gzip"})

    error = refusal(answer, 422)
    assert error["code"] == "unsupported_encoding"
    assert "'gzip'" in error["message"]
    assert "uncompressed" in error["message"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_key_given_twice_is_refused_at_any_depth(client: TestClient, spec: dict[str, Any]):
    text = json.dumps({**spec, "training": {"max_steps": 3}})
    twice = text.replace('"max_steps": 3', '"max_steps": 3, "max_steps": 4')

    error = refusal(client.post("/jobs", content=twice, headers=JSON), 422)

    assert (error["param"], error["code"]) == ("max_steps", "duplicate_key")
    assert client.get("/jobs").json()["data"] == []
    assert client.post("/jobs", content=text, headers=JSON).status_code == 201


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_number_that_is_none_is_refused_by_field(
    client: TestClient, spec: dict[str, Any], word: str
):
    text = json.dumps({**spec, "training": {"learning_rate": "?"}}).replace('"?"', word)

    error = refusal(client.post("/jobs", content=text, headers=JSON), 422)

    assert error["param"] == "training.learning_rate"


def test_json_of_another_type_is_told_to_come_as_json(client: TestClient, spec: dict[str, Any]):
    answer = client.post("/jobs", content=json.dumps(spec), headers={"content-type": "text/plain"})

    assert "application/json" in refusal(answer, 422)["message"]


def test_a_body_over_the_cap_is_refused_announced_or_not(
    make_client: Callable[..., TestClient], spec: dict[str, Any]
):
    client = make_client(max_body_bytes=2000)
    content = json.dumps({**spec, "name": "x" * 3000}).encode()

    announced = client.post("/jobs", content=content, headers=JSON)
    chunked = client.post("/jobs", content=iter([content[:1500], content[1500:]]), headers=JSON)
    small = client.post("/jobs", json=spec)

    for answer in (announced, chunked):
        error = refusal(answer, 413)
        assert "larger than 2000 bytes" in error["message"]
    assert small.status_code == 201
    assert len(client.get("/jobs").json()["data"]) == 1
