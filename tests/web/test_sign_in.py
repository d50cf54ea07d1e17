"""Signing in: with a key or a link, for as long as the key lives, and from our own pages only."""

import re
from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient

from app.api.guard import SESSION_COOKIE
from app.db.engine import Database
from app.services import keys, sessions
from app.settings import Settings
from tests.services.driver import Driver


@pytest.fixture
def secret(database: Database, settings: Settings) -> str:
    return keys.create(database, settings, name="mine").secret


def sign_in(client: TestClient, secret: str, place: str = "") -> None:
    answer = client.post("/ui/sign-in", data={"key": secret, "next": place}, follow_redirects=False)
    assert answer.status_code == 303, answer.text


def test_a_key_opens_the_pages_and_what_their_scripts_ask(client: TestClient, secret: str):
    closed = client.get("/ui/jobs?state=failed")
    answer = client.post(
        "/ui/sign-in",
        data={"key": f" {secret} ", "next": "/ui/jobs?state=failed"},
        follow_redirects=False,
    )

    assert closed.status_code == 401
    assert 'value="/ui/jobs?state=failed"' in closed.text
    assert answer.headers["location"] == "/ui/jobs?state=failed"
    cookie = answer.headers["set-cookie"]
    assert all(part in cookie for part in ("HttpOnly", "SameSite=lax", "Path=/", "Max-Age="))
    assert "Secure" not in cookie
    assert client.get("/ui/jobs").status_code == 200
    assert client.get("/jobs").status_code == 200


@pytest.mark.parametrize("way", ["key", "link"])
def test_the_cookie_is_secure_where_the_request_came_by_https(
    make_client: Callable[..., TestClient], database: Database, secret: str, way: str
):
    client = make_client()
    client.base_url = "https://127.0.0.1:8000"

    if way == "key":
        answer = client.post("/ui/sign-in", data={"key": secret}, follow_redirects=False)
    else:
        path = f"/ui/sign-in?once={sessions.make_link(database)}"
        answer = client.get(path, follow_redirects=False)

    assert answer.status_code == 303
    assert "Secure" in answer.headers["set-cookie"]


def test_the_page_says_how_long_a_sign_in_lasts(client: TestClient, secret: str):
    page = client.get("/ui/sign-in").text

    assert f"signed in for {sessions.SECONDS // 86_400} days" in page
    assert f"within {sessions.LINK_SECONDS // 60} minutes" in page


def test_a_wrong_key_is_refused_without_being_repeated(client: TestClient, secret: str):
    wrong = secret[:-4] + "AAAA"

    answer = client.post("/ui/sign-in", data={"key": wrong})

    assert answer.status_code == 401
    assert "is not valid" in answer.text
    assert wrong not in answer.text
    assert SESSION_COOKIE not in answer.cookies
    assert client.get("/ui/jobs").status_code == 401


@pytest.mark.parametrize(
    "place",
    [
        "https://evil.example/",
        "//evil.example",
        "/ui/\\evil",
        "/\\evil",
        "javascript:x",
        "/ui/\r\nx",
    ],
)
def test_signing_in_never_leads_elsewhere(client: TestClient, secret: str, place: str):
    answer = client.post("/ui/sign-in", data={"key": secret, "next": place}, follow_redirects=False)

    assert answer.headers["location"] == "/ui/jobs"


def test_a_session_dies_with_its_key(client: TestClient, database: Database, secret: str):
    sign_in(client, secret)
    keys.revoke(database, secret.split("_")[1])

    assert client.get("/ui/jobs").status_code == 401
    assert client.get("/jobs").status_code == 401


def test_a_session_dies_by_sign_out_even_for_who_kept_the_cookie(client: TestClient, secret: str):
    sign_in(client, secret)
    kept = client.cookies[SESSION_COOKIE]

    client.post("/ui/sign-out")

    answer = client.get("/ui/jobs", headers={"cookie": f"{SESSION_COOKIE}={kept}"})
    assert answer.status_code == 401


def test_a_session_dies_of_age(client: TestClient, driver: Driver, secret: str):
    sign_in(client, secret)
    driver.sql("UPDATE sessions SET expires_at = '2020-01-01 00:00:00.000000'")

    assert client.get("/ui/jobs").status_code == 401


def test_a_cookie_from_before_is_never_taken_over(client: TestClient, secret: str):
    client.cookies.set(SESSION_COOKIE, "planted")

    answer = client.post("/ui/sign-in", data={"key": secret}, follow_redirects=False)

    (token,) = re.findall(rf"{SESSION_COOKIE}=([^;]+)", answer.headers["set-cookie"])
    assert token != "planted"


def test_no_token_is_stored_as_it_is(client: TestClient, driver: Driver, secret: str):
    sign_in(client, secret)
    link = sessions.make_link(driver.db)

    rows = repr(driver.sql("SELECT * FROM sessions"))

    assert client.cookies[SESSION_COOKIE] not in rows
    assert link not in rows


def test_a_link_signs_in_once(client: TestClient, database: Database, secret: str):
    link = sessions.make_link(database)

    first = client.get(f"/ui/sign-in?once={link}", follow_redirects=False)
    opened = client.get("/ui/jobs")
    client.cookies.clear()
    second = client.get(f"/ui/sign-in?once={link}", follow_redirects=False)

    assert first.status_code == 303
    assert first.headers["location"] == "/ui/jobs"
    assert opened.status_code == 200
    assert second.status_code == 401
    assert "used already" in second.text


def test_a_link_gets_too_old_and_is_no_session(client: TestClient, driver: Driver, secret: str):
    link = sessions.make_link(driver.db)

    as_cookie = client.get("/ui/jobs", headers={"cookie": f"{SESSION_COOKIE}={link}"})
    driver.sql("UPDATE sessions SET expires_at = '2020-01-01 00:00:00.000000'")
    late = client.get(f"/ui/sign-in?once={link}")

    assert as_cookie.status_code == 401
    assert late.status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"sec-fetch-site": "cross-site"},
    ],
)
@pytest.mark.parametrize("with_keys", [True, False])
def test_a_page_of_another_host_changes_nothing(
    client: TestClient,
    database: Database,
    settings: Settings,
    driver: Driver,
    headers: dict[str, str],
    with_keys: bool,
):
    job_id = driver.submit()
    if with_keys:
        sign_in(client, keys.create(database, settings, name="").secret)

    answer = client.post(f"/jobs/{job_id}/cancel", headers=headers)

    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "cross_origin"
    assert driver.job(job_id).state == "queued"
    own = {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"}
    assert client.post(f"/jobs/{job_id}/cancel", headers=own).status_code == 200


def test_where_no_key_is_needed_signing_in_is_not(client: TestClient):
    answer = client.get("/ui/sign-in", follow_redirects=False)

    assert answer.headers["location"] == "/ui/jobs"
