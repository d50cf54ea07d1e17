"""Every route but /healthz is closed to whoever has no key, once there is one."""

import re
from collections.abc import Callable

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from app.db.engine import Database
from app.domain.errors import StartupError
from app.domain.jobs import JobState
from app.main import create_app
from app.services import keys
from app.settings import Settings
from app.web import site
from tests.api.answers import refusal
from tests.services.driver import Driver

UNKNOWN = "lorad_0123456789abcdef_" + "A" * 43


@pytest.fixture
def secret(database: Database, settings: Settings) -> str:
    return keys.create(database, settings, name="mine").secret


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def test_without_a_key_every_route_and_document_but_healthz_is_closed(
    client: TestClient, secret: str, driver: Driver
):
    job_id = driver.submit()
    paths = client.get("/openapi.json", headers=bearer(secret)).json()["paths"]
    operations = [(method, path) for path, item in paths.items() for method in item]
    documents = [("get", path) for path in ("/docs", "/redoc", "/openapi.json", "/", "/nowhere")]

    closed: list[str] = []
    for method, path in [*operations, *documents]:
        place = path.replace("{job_id}", job_id)
        answer = client.request(method, re.sub(r"{\w+}", "1", place))
        if answer.status_code == 401:
            if path != "/":  # that one is a page, which asks for the key
                refusal(answer, 401)
            closed.append(f"{method} {path}")

    assert len(operations) > 20
    assert len(closed) == len(operations) + len(documents) - 1
    assert "get /healthz" not in closed
    assert driver.job(job_id).state == "queued"


def test_without_a_key_every_page_and_file_asks_for_one_and_shows_nothing_else(
    client: TestClient, secret: str, driver: Driver
):
    job_id = driver.submit()
    routes = [
        (method, re.sub(r"{[\w:]+}", "1", route.path.replace("{job_id}", job_id)))
        for router in site.ROUTERS
        for route in router.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    ]

    answers = {each: client.request(*each, follow_redirects=False) for each in routes}

    assert len(routes) > 8
    open_ones = {path for (_, path), answer in answers.items() if answer.status_code != 401}
    assert open_ones == set()
    for answer in answers.values():
        assert "Sign in to lorad" in answer.text
        assert job_id not in answer.text.replace(f"/ui/jobs/{job_id}", "")
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert client.get("/ui/jobs", headers=bearer(secret)).status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        f"Bearer {UNKNOWN}",
        f"Basic {UNKNOWN}",
        f"Bearer  {UNKNOWN} x",
        "Bearer",
        "Bearer ",
        "bearer lorad_",
        UNKNOWN,
        "Bearer \xe9\xff",
        "Bearer " + "x" * 10_000,
        ",",
    ],
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_key_that_is_none_is_refused_even_where_none_is_needed(client: TestClient, header: str):
    answer = client.get("/jobs", headers={"authorization": header.encode("latin-1")})

    error = refusal(answer, 401)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert UNKNOWN not in error["message"]


def test_a_key_opens_until_it_is_revoked_and_then_the_door_stays_shut(
    client: TestClient, database: Database, secret: str
):
    opened = client.get("/jobs", headers=bearer(secret))

    keys.revoke(database, secret.split("_")[1])

    assert opened.status_code == 200
    refusal(client.get("/jobs", headers=bearer(secret)), 401)
    refusal(client.get("/jobs"), 401)
    assert client.get("/healthz").status_code == 200


def test_a_key_with_a_changed_secret_is_refused(client: TestClient, secret: str):
    changed = secret[:-1] + ("A" if secret[-1] != "A" else "B")

    refusal(client.get("/jobs", headers=bearer(changed)), 401)


def test_the_secret_itself_is_stored_nowhere(driver: Driver, secret: str):
    rows = driver.sql("SELECT * FROM api_keys")

    assert secret not in repr(rows)
    assert secret.split("_")[2] not in repr(rows)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "", "127.0.0.1.evil", "[::2]"]
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_foreign_host_header_is_refused_everywhere(client: TestClient, host: str):
    for path in ("/jobs", "/healthz", "/docs"):
        error = refusal(client.get(path, headers={"host": host}), 400)
        assert error["code"] == "untrusted_host"
        assert "LORAD_ALLOWED_HOSTS" in error["message"]


@pytest.mark.parametrize("host", ["localhost", "LocalHost:9", "[::1]:8000", "lorad.example"])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_loopback_and_allowed_hosts_are_served(make_client: Callable[..., TestClient], host: str):
    client = make_client(allowed_hosts="other.example, Lorad.example")

    assert client.get("/jobs", headers={"host": host}).status_code == 200


def test_another_address_without_keys_refuses_to_start(settings: Settings):
    with pytest.raises(StartupError, match="lorad keys create"):
        create_app(settings.model_copy(update={"host": "0.0.0.0"}))


def test_another_address_starts_with_a_key_and_not_with_a_revoked_one(
    settings: Settings, database: Database, secret: str
):
    app = create_app(settings.model_copy(update={"host": "0.0.0.0"}))
    app.state.parts.db.close()
    keys.revoke(database, secret.split("_")[1])

    with pytest.raises(StartupError, match="without API keys"):
        create_app(settings.model_copy(update={"host": "0.0.0.0"}))


def test_a_request_that_did_not_come_by_loopback_needs_a_key(
    make_client: Callable[..., TestClient],
):
    client = make_client(allowed_hosts="10.0.0.7")
    client.base_url = "http://10.0.0.7:8000"

    assert "only loopback" in refusal(client.get("/jobs"), 401)["message"]


def test_a_job_of_another_project_is_not_there(client: TestClient, driver: Driver):
    driver.sql("INSERT INTO projects VALUES ('other', 'other', CURRENT_TIMESTAMP)")
    job_id, _ = driver.in_state(JobState.RUNNING)
    driver.sql("UPDATE jobs SET project_id = 'other'")
    driver.sql("UPDATE datasets SET project_id = 'other'")

    listed = [client.get(path).json()["data"] for path in ("/jobs", "/datasets")]

    assert listed == [[], []]
    rests = ("", "/metrics", "/events", "/logs", "/stream", "/checkpoints", "/checkpoints/5")
    for rest in rests:
        refusal(client.get(f"/jobs/{job_id}{rest}"), 404)
    for verb in ("pause", "cancel", "resume", "checkpoints/5/pin"):
        refusal(client.post(f"/jobs/{job_id}/{verb}"), 404)
    refusal(client.delete(f"/jobs/{job_id}"), 404)
    refusal(client.get(f"/datasets/{driver.dataset()}"), 404)
    refusal(client.post("/jobs", json=driver.spec()), 404)
