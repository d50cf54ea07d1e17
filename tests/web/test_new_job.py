"""The page that makes a job: every key is in it, what is wrong stands at its field."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import Page, expect

from app.domain.spec import GROUPS, JobSpec
from app.web import new_job_form
from tests.e2e.rows import ROWS
from tests.services.driver import Driver
from tests.web.conftest import Site, Watched

FILE = "\n".join(json.dumps(row) for row in ROWS).encode()


def test_every_key_of_a_job_has_a_field_with_its_help():
    keys = {key for key in JobSpec.model_fields if key not in GROUPS}
    keys |= {f"{name}.{key}" for name, group in GROUPS.items() for key in group.model_fields}

    found = {field.path: field for field in new_job_form.fields()}

    assert set(found) == keys
    assert all(field.help for field in found.values())
    assert found["resources.num_gpus"].is_refused
    assert [each.value for each in found["method"].choices if not each.is_available] == ["dpo"]


HARD: dict[str, Any] = {
    "base_model": "m",
    "name": "a=b",
    "metadata": {"a=b": "c", "d": "two\nlines", "e": " f "},
    "lora": {"target_modules": ["q_proj"], "rank_pattern": {"q_proj": 4}},
    "dataset": {"id": "ds-" + "0" * 26, "chat_template": "\n{{ messages }}\n "},
    "training": {"save_total_limit": None, "packing": True, "learning_rate": 1e-5},
}


def test_a_job_comes_through_the_form_as_it_was(driver: Driver):
    spec = JobSpec.model_validate(driver.spec() | HARD | {"dataset": driver.spec()["dataset"]})

    texts = new_job_form.texts_of(spec)

    assert JobSpec.model_validate(new_job_form.given(texts)) == spec
    assert "training.max_grad_norm" not in texts


@pytest.mark.parametrize(
    "changes",
    [
        {"preset": "minimal", "lora": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}},
        {"preset": "full-attention"},
        {"name": "null"},
    ],
)
def test_a_default_written_beside_a_preset_and_a_text_null_are_copied(
    driver: Driver, client: TestClient, changes: dict[str, Any]
):
    job_id = driver.submit(**changes)
    form = Filled(client.get("/ui/new", params={"from": job_id}).text)

    answer = client.post("/ui/new", data=form.values, follow_redirects=False)

    assert answer.status_code == 303, answer.text
    made = answer.headers["location"].rpartition("/")[2]
    assert made != job_id
    assert driver.job(made).spec == driver.job(job_id).spec


class Filled(HTMLParser):
    """The values that a browser without scripts sends of the page's form."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.values: dict[str, str] = {}
        self._name = ""
        self._text: str | None = None
        self._is_first = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = {key: value or "" for key, value in attrs}
        if tag == "input" and own.get("type") != "file":
            self.values[own["name"]] = own.get("value", "")
        elif tag in ("select", "textarea"):
            self._name, self._is_first = own["name"], True
            self._text = "" if tag == "textarea" else None
        elif tag == "option" and (self._is_first or "selected" in own):
            self._is_first = False
            self.values[self._name] = own.get("value", "")

    def handle_data(self, data: str) -> None:
        if self._text is not None:
            self._text += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "textarea" and self._text is not None:
            # The line break behind the tag is no part of the text.
            self.values[self._name] = self._text.removeprefix("\n")
            self._text = None


def key_in(html: str) -> str:
    found = re.search(r'name="key" value="([^"]+)"', html)
    assert found is not None
    return found[1]


def test_the_form_makes_one_job_however_often_it_is_sent(driver: Driver, client: TestClient):
    spec = driver.spec()
    typed = {"base_model": spec["base_model"], "training.max_steps": "7", "name": "by form"}
    typed["key"] = key_in(client.get("/ui/new").text)
    file = {"file": ("rows.jsonl", FILE)}

    answers = [
        client.post("/ui/new", data=typed, files=file, follow_redirects=False) for _ in range(2)
    ]

    assert [each.status_code for each in answers] == [303, 303], answers[0].text
    assert answers[0].headers["location"] == answers[1].headers["location"]
    job = client.get(answers[0].headers["location"].removeprefix("/ui")).json()
    assert (job["name"], job["spec"]["training"]["max_steps"]) == ("by form", 7)


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("training.learning_rate", "fast", "learning_rate"),
        ("training.max_steps", "0", "greater than or equal to 1"),
        ("lora.target_modules", "qproj", "no preset"),
        ("metadata", "no sign", "has no ="),
        ("training.eval_steps", "5", "val_size"),
        ("preset", "tiny-one", "preset"),
    ],
)
def test_what_is_wrong_stands_at_its_field_and_what_was_typed_stays(
    driver: Driver, client: TestClient, path: str, text: str, said: str
):
    spec = driver.spec()
    typed = {"base_model": spec["base_model"], "dataset.id": spec["dataset"]["id"], path: text}

    answer = client.post("/ui/new", data={**typed, "name": "<b>kept"})

    assert answer.status_code == 422
    place = re.search(rf'data-problem="{re.escape(path)}"[^>]*>([^<]*)<', answer.text)
    assert place is not None
    assert said in place[1]
    assert text in answer.text
    assert Filled(answer.text).values[path] == text
    assert 'value="&lt;b&gt;kept"' in answer.text
    assert client.get("/jobs").json()["data"] == []


def test_a_bad_file_is_refused_with_its_lines_and_an_unknown_field_by_name(client: TestClient):
    file = {"file": ("bad.jsonl", b'{"text": "fine"}\n{"text": \n')}

    answer = client.post("/ui/new", data={"name": "kept"}, files=file)
    unknown = client.post("/ui/new", data={"lora.rank": "4"})

    assert answer.status_code == 422
    assert "line 2" in answer.text
    assert "kept" in answer.text
    assert unknown.status_code == 422
    assert "unknown field lora.rank" in unknown.text


def test_the_form_is_filled_in_like_a_job(driver: Driver, client: TestClient):
    job_id = driver.submit(name="twin", training={"learning_rate": 3e-3})

    html = client.get("/ui/new", params={"from": job_id}).text

    assert 'value="twin"' in html
    assert 'value="0.003"' in html
    assert client.get("/ui/new", params={"from": "job-none"}).status_code == 404


def test_the_shown_json_and_command_say_what_the_form_says(driver: Driver, client: TestClient):
    spec = driver.spec()
    typed = {"base_model": spec["base_model"], "dataset.id": spec["dataset"]["id"]}
    typed |= {"name": "it's <JOB>", "metadata": "a=b\nc=d", "training.save_total_limit": "null"}

    html = client.post("/ui/new/plan", data=typed, headers={"hx-request": "true"}).text
    shown, command = (
        unescape(text) for text in re.findall(r'<pre id="spec-[a-z]+"[^>]*>(.*?)</pre>', html, re.S)
    )
    sent = client.post("/jobs", json=json.loads(shown)).json()["spec"]
    lorad = Path(sys.executable).with_name("lorad")
    dry = command.replace("lorad submit -", f"{lorad} submit --dry-run --json -", 1)
    ran = subprocess.run(["bash", "-c", dry], capture_output=True, text=True, timeout=60)

    assert json.loads(shown).keys() == {"base_model", "name", "metadata", "dataset", "training"}
    assert (sent["name"], sent["metadata"]) == ("it's <JOB>", {"a": "b", "c": "d"})
    assert sent["training"]["save_total_limit"] is None
    assert ran.returncode == 0, ran.stderr
    assert JobSpec.model_validate_json(ran.stdout) == JobSpec.model_validate(sent)


@pytest.mark.services
def test_a_browser_uploads_plans_and_starts_a_job(
    site: Site, visit: Callable[..., Page], watched: Watched
):
    watched.allowed = ("422",)  # browsers log every refusal, such as the one of the bad file
    page = visit("/ui/new")

    page.set_input_files("#f-file", files={"name": "bad.jsonl", "mimeType": "", "buffer": b"{\n"})
    expect(page.locator("#p-dataset")).to_contain_text("line 1")
    page.set_input_files("#f-file", files={"name": "r.jsonl", "mimeType": "", "buffer": FILE})
    expect(page.locator("#plan")).to_contain_text("Steps")
    expect(page.locator("token-preview u.target").first).to_be_visible()
    page.locator("summary", has_text="training").click()
    page.fill("#f-training-max_steps", "3")
    expect(page.locator("#plan dd").first).to_contain_text("3 (")
    page.fill("#f-training-learning_rate", "fast")
    expect(page.locator('[data-problem="training.learning_rate"]')).to_contain_text("✗")
    page.fill("#f-training-learning_rate", "0.001")
    expect(page.locator("#spec-json")).to_contain_text("0.001")
    page.get_by_role("button", name="Start job").click()
    page.wait_for_url(re.compile("/ui/jobs/job-"))

    job_id = page.url.rpartition("/")[2]
    assert site.wait_for_state(job_id, "succeeded", seconds=60)["step"] == 3
