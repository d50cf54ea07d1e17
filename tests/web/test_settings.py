"""The page of settings: keys are made, shown once and revoked; licences are named."""

import re

from fastapi.testclient import TestClient

from app.db.engine import Database
from app.services import keys, sessions
from app.web import settings
from tests.services.driver import Driver


def test_the_first_key_is_shown_once_locks_the_door_and_signs_this_browser_in(
    client: TestClient, database: Database
):
    before = client.get("/ui/settings")

    made = client.post("/ui/settings/keys", data={"name": "<i>me</i>"})
    (secret,) = re.findall(r"lorad_[0-9a-f]{16}_[\w-]{43}", made.text)

    assert "No key was ever made" in before.text
    assert "<i>me" not in made.text
    assert made.headers["cache-control"] == "no-store"
    assert keys.are_required(database)
    again = client.get("/ui/settings")
    assert again.status_code == 200
    assert secret not in again.text
    client.cookies.clear()
    assert client.get("/ui/settings").status_code == 401
    bearer = {"authorization": f"Bearer {secret}"}
    assert client.get("/jobs", headers=bearer).status_code == 200


def test_revoking_the_key_of_a_session_ends_it(client: TestClient, database: Database):
    client.post("/ui/settings/keys", data={"name": "mine"})
    (key,) = keys.list_all(database)

    answer = client.post(f"/ui/settings/keys/{key.id}/revoke", follow_redirects=False)

    assert answer.status_code == 303
    assert client.get("/ui/settings").status_code == 401


def test_sign_out_everywhere_ends_every_session(client: TestClient):
    client.post("/ui/settings/keys", data={"name": "mine"})

    client.post("/ui/settings/sign-out-everywhere", follow_redirects=False)

    assert client.get("/ui/settings").status_code == 401


def test_a_browser_is_named_and_can_be_signed_out_alone(client: TestClient, database: Database):
    client.post("/ui/settings/keys", data={"name": "mine"})
    link = sessions.make_link(database)
    other = sessions.redeem(database, link)
    html = client.get("/ui/settings").text
    place = f"/ui/settings/sessions/{sessions.public_id(other)}/end"

    answers = [client.post(place, follow_redirects=False) for _ in range(2)]

    assert place in html
    assert html.count("(this browser)") == 1
    assert [each.status_code for each in answers] == [303, 404]
    assert sessions.find(database, other) is None
    assert client.get("/ui/settings").status_code == 200


def test_licences_are_told_of_every_package_that_the_service_stands_on():
    found = {name.lower(): licence for name, _, licence in settings.packages()}

    assert list(found) == sorted(found)
    # Direct, by an extra that is asked for, and two steps away; none of the tools of development.
    assert {"fastapi", "kombu", "uvloop", "anyio", "markupsafe", "psycopg-binary"} <= set(found)
    assert not {"pytest", "ruff", "torch", "lorad"} & set(found)
    assert all(found.values())


def test_storage_versions_and_licences_are_told(client: TestClient, driver: Driver):
    driver.dataset()

    html = client.get("/ui/settings").text

    for part in ("htmx.org", "0BSD", "uplot", "fastapi", "Schema of the database", "datasets"):
        assert part in html
    assert "see its files" not in html
