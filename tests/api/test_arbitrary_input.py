"""Whatever is sent, the API answers with its own words and never with a fault."""

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.domain.aliases import ALIASES
from app.domain.spec import GROUPS, JobSpec
from tests.services.driver import Driver

JSON = {"content-type": "application/json"}
SEARCH = settings(
    max_examples=60,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

text = st.text(st.characters(), max_size=8)  # halves of surrogate pairs and NUL included
numbers = st.integers() | st.integers(min_value=2**62) | st.floats()
scalars = st.none() | st.booleans() | numbers | text
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
group_keys = [key for group in GROUPS.values() for key in group.model_fields]
keys = st.sampled_from([*JobSpec.model_fields, *group_keys, *ALIASES]) | text
objects = st.dictionaries(keys, values | st.dictionaries(keys, values, max_size=4), max_size=5)


def encode(value: object) -> bytes:
    return json.dumps(value).encode()


@SEARCH
@given(change=objects | values, merged=st.booleans())
def test_any_json_as_a_job_is_taken_or_refused(
    client: TestClient, spec: dict[str, Any], change: Any, merged: bool
):
    body = {**spec, **change} if merged and isinstance(change, dict) else change

    answer = client.post("/jobs", content=encode(body), headers=JSON)

    assert answer.status_code in (201, 400, 404, 422), answer.text


resume_keys = st.sampled_from(["checkpoint", "from_scratch", "training"])
training = st.dictionaries(
    st.sampled_from(["max_steps", "learning_rate", "num_train_epochs", "eval_steps"]) | text,
    values,
    max_size=3,
)
resumes = st.dictionaries(resume_keys | text, values | training | st.just("latest"), max_size=3)


@SEARCH
@given(body=resumes | values)
def test_any_json_as_a_resume_is_taken_or_refused(client: TestClient, driver: Driver, body: Any):
    job_id = paused_job(driver)

    answer = client.post(f"/jobs/{job_id}/resume", content=encode(body), headers=JSON)

    assert answer.status_code in (200, 400, 404, 409, 422), answer.text


def paused_job(driver: Driver) -> str:
    for (job_id,) in driver.sql("SELECT id FROM jobs"):
        driver.sql("UPDATE jobs SET state = 'paused'")
        return job_id
    return driver.submit()


lines = st.lists(
    st.binary(max_size=20) | values.map(encode) | st.just(b'{"text": "a"}'), max_size=4
)


@SEARCH
@given(content=lines.map(b"\n".join), name=text)
def test_any_bytes_as_a_file_are_taken_or_refused(client: TestClient, content: bytes, name: str):
    label = name.encode("utf-8", "surrogatepass").replace(b"\r", b"").replace(b"\n", b"")
    head = b'--b\r\ncontent-disposition: form-data; name="file"; filename="' + label + b'"\r\n\r\n'
    kind = {"content-type": "multipart/form-data; boundary=b"}

    answer = client.post("/datasets", content=head + content + b"\r\n--b--\r\n", headers=kind)

    assert answer.status_code in (201, 400, 422), answer.text


@SEARCH
@given(content=st.binary(max_size=200), kind=st.sampled_from([*JSON.values(), "text/plain", "a/b"]))
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_any_bytes_as_a_body_are_refused(client: TestClient, content: bytes, kind: str):
    for path in ("/jobs", "/datasets"):
        answer = client.post(path, content=content, headers={"content-type": kind})

        assert answer.status_code in (400, 422), answer.text


prompts = st.lists(st.lists(st.fixed_dictionaries({"role": text, "content": text}), max_size=2))


@SEARCH
@given(messages=prompts, checkpoint=scalars)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_any_conversation_is_refused_or_unanswered(
    client: TestClient, driver: Driver, messages: Any, checkpoint: Any
):
    driver.other_worker()
    job_id = paused_job(driver)
    user = [{**turn, "role": "user"} for prompt in messages for turn in prompt]
    body = {"messages": [user] if user else messages, "checkpoint": checkpoint or "base"}

    answer = client.post(f"/jobs/{job_id}/generate", content=encode(body), headers=JSON)

    assert answer.status_code in (400, 404, 409, 422, 503), answer.text
