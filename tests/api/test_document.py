"""The API document describes all there is: fields with their units, parameters, every status."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from fastapi.testclient import TestClient

from app.domain.events import TrainerEvent

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

UNITS = {
    r"_seconds$|^seconds$": r"second",
    r"(^|_)bytes$": r"byte",
    r"_gb$": r"GB",
    r"_at$": r"UTC",
    r"sha256": r"SHA-256",
}


@pytest.fixture
def document(client: TestClient) -> dict[str, Any]:
    return client.get("/openapi.json").json()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield f"{method.upper()} {path}", operation


def schemas_of(document: dict[str, Any]) -> dict[str, Any]:
    return document["components"]["schemas"]


def properties(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for name, schema in schemas_of(document).items():
        for key, value in schema.get("properties", {}).items():
            yield name, key, value


def test_every_property_of_every_schema_has_a_description(document: dict[str, Any]):
    schemas = {f"#/components/schemas/{name}": each for name, each in schemas_of(document).items()}

    bare = [
        f"{name}.{key}"
        for name, key, value in properties(document)
        if not described(schemas[value["$ref"]] if "$ref" in value else value)
    ]

    assert len(list(properties(document))) > 100
    assert bare == []


def described(value: dict[str, Any]) -> bool:
    return bool(value.get("description", "").strip())


def test_every_schema_has_a_description(document: dict[str, Any]):
    bare = [name for name, schema in schemas_of(document).items() if not described(schema)]

    # A form has no class of its own that could be described.
    assert "Body_upload_dataset_datasets_post" in bare
    assert [name for name in bare if not name.startswith("Body_")] == []


def test_every_parameter_and_operation_has_a_description(document: dict[str, Any]):
    bare: list[str] = []
    for name, operation in operations(document):
        bare += [name] if not described(operation) else []
        bare += [
            f"{name} {parameter['name']}"
            for parameter in operation.get("parameters", [])
            if not described(parameter)
        ]

    assert bare == []


def test_every_operation_declares_the_errors_that_any_request_can_meet(document: dict[str, Any]):
    for name, operation in operations(document):
        wanted = {"400", "413"} if name == "GET /healthz" else {"400", "401", "413", "503"}
        if operation.get("parameters") or "requestBody" in operation:
            wanted |= {"422"}
        if "{" in name:
            wanted |= {"404"}
        assert wanted <= operation["responses"].keys(), name


def test_every_error_has_the_one_envelope(document: dict[str, Any]):
    for name, operation in operations(document):
        for status, answer in operation["responses"].items():
            if status >= "400":
                schema = answer["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorEnvelope"}, (name, status)
    assert "HTTPValidationError" not in schemas_of(document)


def test_quantities_name_their_units(document: dict[str, Any]):
    without: list[str] = []
    for name, key, value in properties(document):
        for pattern, unit in UNITS.items():
            if re.search(pattern, key) and not re.search(unit, value.get("description", "")):
                without.append(f"{name}.{key}")

    assert without == []


def test_operation_ids_are_unique(document: dict[str, Any]):
    ids = Counter(operation["operationId"] for _, operation in operations(document))

    assert [each for each, count in ids.items() if count > 1] == []
    assert len(ids) > 20


def test_every_route_of_the_design_is_there(document: dict[str, Any]):
    found = {name for name, _ in operations(document)}

    assert found >= {
        *("POST /jobs", "GET /jobs", "GET /jobs/{job_id}", "DELETE /jobs/{job_id}"),
        *(f"POST /jobs/{{job_id}}/{verb}" for verb in ("pause", "cancel", "resume")),
        *(f"GET /jobs/{{job_id}}/{what}" for what in ("metrics", "stream", "events", "logs")),
        *("GET /jobs/{job_id}/checkpoints", "GET /jobs/{job_id}/checkpoints/{which}"),
        *(
            "DELETE /jobs/{job_id}/checkpoints/{which}",
            "POST /jobs/{job_id}/checkpoints/{which}/pin",
        ),
        "GET /jobs/{job_id}/checkpoints/{which}/download",
        *("POST /datasets", "GET /datasets", "GET /datasets/{dataset_id}"),
        *("DELETE /datasets/{dataset_id}", "GET /models", "GET /presets", "GET /workers"),
        *("GET /healthz", "GET /readyz"),
    }


def test_the_stream_names_every_kind_of_event(document: dict[str, Any]):
    said = document["paths"]["/jobs/{job_id}/stream"]["get"]["description"]
    union = get_args(get_args(TrainerEvent)[0])
    kinds = {each.model_fields["kind"].default for each in union} | {"state", "complete"}

    assert set(re.findall(r"`(\w+)`", said)) == kinds
