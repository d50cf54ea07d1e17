"""What every page has: headers that keep others out, and errors that are pages."""

import pytest
from fastapi.testclient import TestClient


def test_every_page_forbids_what_is_inline_or_from_elsewhere(client: TestClient):
    for path in ("/ui/jobs", "/ui/settings", "/ui/nowhere", "/ui/jobs?state=flying"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("method", "path", "status", "said"),
    [
        ("GET", "/ui/nowhere", 404, "there is nothing at /ui/nowhere"),
        ("GET", "/ui/<b>", 404, "&lt;b&gt;"),
        ("DELETE", "/ui/jobs", 405, "possible: GET"),
        ("GET", "/ui/jobs?state=flying", 422, "state"),
        ("GET", "/ui/jobs?nope=1", 422, "unknown parameter nope"),
        ("GET", "/ui/jobs?after=7", 422, "is no cursor"),
        ("GET", "/ui/static/../site.py", 404, "nothing at"),
        ("GET", "/ui/static/nope.js", 404, "there is no file"),
        ("POST", "/ui/settings/keys/nope/revoke", 404, "no such key"),
    ],
)
def test_an_error_is_a_page_that_says_what_to_do(
    client: TestClient, method: str, path: str, status: int, said: str
):
    answer = client.request(method, path)

    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("text/html")
    assert said in answer.text
    assert "<b>" not in answer.text
    assert 'href="/ui/jobs"' in answer.text


def test_a_swap_gets_the_part_alone(client: TestClient):
    answer = client.get("/ui/jobs?nope=1", headers={"hx-request": "true"})

    assert answer.status_code == 422
    assert "<html" not in answer.text
    assert "unknown parameter" in answer.text


def test_files_are_kept_by_browsers_for_as_long_as_their_name_holds(client: TestClient):
    html = client.get("/ui/jobs").text
    (address,) = {part for part in html.split('"') if part.startswith("/ui/static/app.css")}

    answer = client.get(address)

    assert answer.status_code == 200
    assert "immutable" in answer.headers["cache-control"]
