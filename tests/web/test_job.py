"""The page of one job: what it shows, what is blocked and why, and what its forms do."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import Page, expect

from app.domain.jobs import JobState
from tests.services.driver import Driver
from tests.web.conftest import Site, Watched

HOSTILE = '<script>alert(1)</script> "\u202eesrever"'


def text_of(html: str, element: str) -> str:
    """Return the text of the element with an id."""
    found = re.search(rf'id="{element}"[^>]*>(.*?)</(pre|p|small|dl|div)>', html, re.DOTALL)
    assert found, element
    return unescape(found[1])


@pytest.mark.services
def test_a_job_is_resumed_extended_and_refused_in_place(
    site: Site, visit: Callable[..., Page], watched: Watched
):
    watched.allowed = ("409",)  # the browser's own word for what is refused
    job_id = site.train(name=HOSTILE)
    page = visit(f"/ui/jobs/{job_id}")
    assert "<script>alert(1)</script>" in page.locator("h1").inner_text()
    page.evaluate("() => { window.isSamePage = true; }")

    expect(page.locator("#state")).to_contain_text("succeeded", timeout=60_000)
    expect(page.get_by_role("button", name="Pause")).to_be_disabled()
    expect(page.locator("#why-pause")).to_contain_text("the job is succeeded")
    assert page.title().startswith("succeeded")
    page.get_by_label("Train up to step").fill("12")
    page.get_by_role("button", name="Extend").click()
    expect(page.locator("#problem")).to_contain_text("max_steps")
    assert page.get_by_label("Train up to step").input_value() == "12"
    assert page.evaluate("() => window.isSamePage")

    page.get_by_label("Train up to step").fill("16")
    page.get_by_label("going on from").select_option(label="step 8")
    page.get_by_role("button", name="Extend").click()
    expect(page.locator("#state")).to_contain_text("step 16 of 16", timeout=60_000)
    expect(page.locator("#state")).to_contain_text("succeeded", timeout=60_000)


@pytest.mark.services
def test_what_is_copied_submits_the_same_job(site: Site):
    asked = {
        "base_model": site.http.get(f"/jobs/{site.jobs[0]}").json()["spec"]["base_model"],
        "name": "it's \"quoted\" $HOME `id` \\ 'JOB'\u2028",
        "dataset": {
            "id": site.upload([{"text": "one two"}] * 8),
            "chat_template": "{{ 'a\nJOB' }}",
        },
        "training": {"max_steps": 1, "learning_rate": 3e-4, "save_steps": 7},
        "lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
        "metadata": {"team": "a'b"},
        "priority": -5,
    }
    first = site.submit(asked)
    html = site.http.get(f"/ui/jobs/{first}").text
    run: dict[str, list[str]] = {
        "curl": ["bash", "-c", text_of(html, "copy-curl")],
        "cli": ["bash", "-c", text_of(html, "copy-cli")],
        "sdk": [sys.executable, "-c", text_of(html, "copy-sdk")],
    }
    binaries = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"PATH": binaries, "LORAD_API_URL": site.url, "HOME": str(site.home)}
    specs: dict[str, Any] = {}
    known = {each["id"] for each in site.http.get("/jobs").json()["data"]}
    for name, command in run.items():
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
        every = {each["id"]: each for each in site.http.get("/jobs").json()["data"]}
        [new] = [each for job_id, each in every.items() if job_id not in known]
        known.add(new["id"])
        specs[name] = new["spec"]

    expected = site.http.get(f"/jobs/{first}").json()["spec"]
    assert specs == dict.fromkeys(run, expected)


@pytest.mark.parametrize(
    ("state", "blocked"),
    [
        (JobState.QUEUED, {"resume", "extend", "delete"}),
        (JobState.RUNNING, {"resume", "extend", "delete"}),
        (JobState.PAUSED, {"pause", "delete"}),
        (JobState.SUCCEEDED, {"pause", "cancel", "resume"}),
        (JobState.FAILED, {"pause", "cancel"}),
    ],
)
def test_a_button_that_would_be_refused_is_off_and_says_why(
    client: TestClient, driver: Driver, state: JobState, blocked: set[str]
):
    job_id, _ = driver.in_state(state)

    html = client.get(f"/ui/jobs/{job_id}").text

    off = {name for name in ("pause", "resume", "extend", "cancel", "delete") if is_off(html, name)}
    assert off == blocked
    for name in blocked:
        assert f"the job is {state}" in text_of(html, f"why-{name}")
    for name in {"pause", "resume", "cancel", "delete"} - blocked:
        path = "resume" if name == "extend" else name
        assert f'action="/ui/jobs/{job_id}/{path}"' in html
    for name in blocked - {"extend"}:
        answer = client.post(f"/ui/jobs/{job_id}/{name}", follow_redirects=False)
        assert answer.status_code == 409, name


def is_off(html: str, name: str) -> bool:
    found = re.search(rf'<button form="do-{name}"([^>]*)>', html)
    assert found, name
    return "disabled" in found[1]


def test_each_form_does_what_it_says(client: TestClient, driver: Driver):
    job_id = driver.submit()

    for action, state in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")):
        body = {"checkpoint": "scratch"} if action == "resume" else {}
        answer = client.post(f"/ui/jobs/{job_id}/{action}", data=body, follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, f"/ui/jobs/{job_id}")
        assert driver.job(job_id).state == state
    answer = client.post(f"/ui/jobs/{job_id}/delete", headers={"hx-request": "true"})

    assert (answer.status_code, answer.headers["hx-redirect"]) == (204, "/ui/jobs")
    assert client.get(f"/ui/jobs/{job_id}").status_code == 404


@pytest.mark.parametrize(
    ("data", "param"),
    [({"max_steps": "1e3"}, "max_steps"), ({"num_train_epochs": "two"}, "num_train_epochs")],
)
def test_what_is_no_number_is_refused_by_name(
    client: TestClient, driver: Driver, data: dict[str, str], param: str
):
    job_id, _ = driver.in_state(JobState.SUCCEEDED)

    answer = client.post(f"/ui/jobs/{job_id}/resume", data=data, headers={"hx-request": "true"})

    assert answer.status_code == 422
    assert f"{param} is" in unescape(answer.text)
    assert "<html" not in answer.text


def test_a_failed_job_says_what_to_do_and_a_hostile_name_is_text(
    client: TestClient, driver: Driver
):
    job_id = driver.submit(name=HOSTILE, metadata={"m": "x" * 500})
    run = driver.started()
    driver.train(run, 1, 5, save_every=5)
    driver.fail(run)

    html = client.get(f"/ui/jobs/{job_id}").text

    assert "by hand" in text_of(html, "facts")
    assert "Nothing was saved yet: Resume from the beginning" not in html
    assert "Resume goes on from it" in html
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)" in html


def test_a_job_of_another_project_is_not_there(client: TestClient, driver: Driver):
    job_id = driver.submit()
    driver.sql(
        "INSERT INTO projects (id, name, created_at) VALUES ('other', 'o', '2026-01-01 00:00:00')"
    )
    driver.sql("UPDATE jobs SET project_id = 'other' WHERE id = :id", id=job_id)

    assert client.get(f"/ui/jobs/{job_id}").status_code == 404
    for action in ("pause", "resume", "cancel", "delete"):
        assert client.post(f"/ui/jobs/{job_id}/{action}").status_code == 404
