"""What a job's pages say of its rows and keys, and what a log's reader is answered."""

import json
import re
from collections.abc import Callable
from html import unescape

import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import Page, expect

from app.domain.jobs import JobState
from app.domain.runs import LOG_FILE
from app.services import raw_rows
from tests.services.driver import Driver
from tests.web.conftest import Site

# How far the end of the log is below what is seen of it.
_BELOW = (
    "(({bottom}) => document.querySelector('pre code').getBoundingClientRect().bottom - bottom)"
    "(document.querySelector('pre').getBoundingClientRect())"
)


@pytest.mark.parametrize(
    "options",
    ['{"id": "x"}', '{"eval_id": null}', "[" * 15_000, '{"max_length": 8, "max_length": 9}'],
)
def test_options_that_cannot_be_are_refused_by_name(
    client: TestClient, driver: Driver, options: str
):
    spec = driver.spec()

    answer = client.get(
        f"/ui/datasets/{spec['dataset']['id']}/preview",
        params={"base_model": spec["base_model"], "options": options},
    )

    assert answer.status_code == 422
    assert "<code>options</code>" in answer.text


def test_a_row_is_shown_as_the_file_has_it_and_says_where_it_is_cut(
    client: TestClient, driver: Driver, monkeypatch: pytest.MonkeyPatch
):
    rows = [{"text": "one <b>"}, {"text": "\ud800"}, {"text": "x" * 30_000}]
    content = "\n\n".join(json.dumps(row) for row in rows) + "\n{broken\n"
    answer = client.post(
        "/datasets",
        files={"file": ("rows.jsonl", content)},
        data={"on_bad_rows": "keep"},
    )
    assert answer.status_code == 201, answer.text
    look: Callable[[int], raw_rows.RawRow | None] = lambda offset: raw_rows.at(  # noqa: E731
        driver.db, driver.settings, "default", answer.json()["id"], offset
    )

    first, half, long, bad = (look(offset) for offset in range(4))

    assert first is not None
    assert (first.place, json.loads(first.text)) == ("line 1", rows[0])
    assert half is not None
    assert half.text.encode()
    assert half.place == "line 3"
    assert long is not None
    assert long.is_cut
    assert len(long.text) == raw_rows.MAX_CHARACTERS
    assert long.num_characters > 30_000
    assert bad is not None
    assert "not valid JSON" in bad.text
    assert look(4) is None
    monkeypatch.setattr(raw_rows, "MAX_SECONDS", -1.0)
    with pytest.raises(raw_rows.InvalidInput, match="too far"):
        look(3)


def test_what_a_preset_or_an_adapter_fills_in_is_not_called_yours(
    client: TestClient, driver: Driver
):
    job_id = driver.submit(preset="standard", adapter="qlora", lora={"lora_alpha": 32})

    html = client.get(f"/ui/jobs/{job_id}/config").text

    rows = dict(re.findall(r"<code>([\w.]+)</code></th>(.*?)</tr>", html))
    assert "preset: standard" in rows["lora.r"]
    assert "<strong>" not in rows["lora.r"]
    assert "adapter: qlora" in rows["quantization.load_in_4bit"]
    # The plain default, written against the preset, is a choice.
    assert "<strong>you</strong>" in rows["lora.lora_alpha"]
    assert "instead of 16" in rows["lora.lora_alpha"]
    assert ">default<" in rows["training.save_steps"]


def test_the_format_is_the_one_that_was_found(client: TestClient, driver: Driver):
    job_id = driver.submit()

    html = client.get(f"/ui/jobs/{job_id}/data").text

    assert "<dt>Format</dt><dd>prompt-completion</dd>" in html


def test_nothing_new_in_a_log_changes_nothing_in_the_page(client: TestClient, driver: Driver):
    job_id, run = driver.in_state(JobState.RUNNING)
    log = driver.attempt(run) / LOG_FILE
    log.write_text("first\n")
    path = f"/ui/jobs/{job_id}/logs/new?attempt={run.attempt}&offset="

    nothing = client.get(f"{path}6")
    log.write_text("first\nsecond\n")
    more = client.get(f"{path}6")
    driver.fail(run)
    end = client.get(f"{path}13")

    assert (nothing.status_code, nothing.text) == (204, "")
    assert more.text.startswith("second\n")
    assert f"attempt={run.attempt}&offset=13" in unescape(more.text)
    assert end.status_code == 200
    assert "hx-get" not in end.text


@pytest.mark.services
def test_output_comes_by_itself_while_a_job_runs_and_rows_have_tokens_beside_them(
    site: Site, visit: Callable[..., Page]
):
    job_id = site.train(steps=4000)
    site.wait_for_step(job_id, 2)
    [log] = (site.home / "jobs" / job_id).glob(f"attempts/*/{LOG_FILE}")
    page = visit(f"/ui/jobs/{job_id}/logs")
    page.evaluate("() => { window.isSamePage = true; }")
    streams: list[str] = []
    page.on("request", lambda each: streams.append(each.url) if "/live" in each.url else None)

    for text in ("<b>first</b> from the test", "second from the test"):
        with log.open("a") as file:
            file.write("many\n" * 100 + f"{text}\n")
        expect(page.locator("pre")).to_contain_text(text, timeout=10_000)
        assert page.evaluate(_BELOW) < 5  # pixels
    assert page.evaluate("() => window.isSamePage")
    assert streams == []  # the stream of the head goes on and is not opened again
    site.post(job_id, "cancel")
    site.wait_for_state(job_id, "cancelled")
    expect(page.locator("pre [hx-get]")).to_have_count(0, timeout=10_000)

    rows = visit(f"/ui/jobs/{site.jobs[0]}/data").locator("token-preview")
    expect(rows.locator("u.target").first).to_be_visible(timeout=30_000)
    expect(rows.locator("pre")).to_contain_text("What is 0 and one?")
    rows.get_by_role("link", name="Next row").click()
    expect(rows.locator("pre")).to_contain_text("What is 1 and one?", timeout=30_000)
