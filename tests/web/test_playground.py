"""The playground: two models answer one question, stop when told, and say what is wrong."""

from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import Page, expect

from tests.services.driver import Driver
from tests.web.conftest import Site


def test_without_a_worker_the_answer_says_what_to_start_and_keeps_the_question(
    driver: Driver, client: TestClient
):
    model = driver.spec()["base_model"]

    answer = client.post("/ui/playground", data={"model": model, "prompt": "<b>hi"})
    wrong = client.post("/ui/playground", data={"model": model, "prompt": "hi", "top_p": "most"})

    assert answer.status_code == 503
    assert "lorad worker" in answer.text
    assert "&lt;b&gt;hi</textarea>" in answer.text
    assert wrong.status_code == 422
    assert "top_p" in wrong.text


def test_what_was_typed_stays_when_it_is_too_long_or_no_model_is_chosen(
    driver: Driver, client: TestClient
):
    model = driver.spec()["base_model"]
    long = "\nlong " * 20_000

    answer = client.post("/ui/playground", data={"model": model, "prompt": long, "system": "kept"})
    none = client.post("/ui/playground", data={"prompt": "kept too"})

    assert answer.status_code == 422
    assert "prompt has 120,000 characters" in answer.text
    assert f"\n{long}</textarea>" in answer.text
    assert ">\nkept</textarea>" in answer.text
    assert none.status_code == 422
    assert "no model is chosen" in none.text
    assert ">\nkept too</textarea>" in none.text


def test_a_job_behind_many_is_found_and_its_newest_checkpoint_stands_beside_its_base(
    driver: Driver, client: TestClient
):
    old = driver.submit(name="<b>old one")
    run = driver.started()
    driver.train(run, 1, 20, save_every=5)
    driver.succeed(run)
    for _ in range(21):
        driver.submit(name="new")

    for text in (old, "OLD one"):
        html = client.get("/ui/playground", params={"job": text}).text
        assert f'<option value="{old}:5">&lt;b&gt;old one, step 5' in html
        assert f'<option value="{old}:20" selected>' in html
        assert '<option value="tiny" selected>' in html
    assert f"{old}:5" not in client.get("/ui/playground").text
    assert "Several jobs" in client.get("/ui/playground", params={"job": "new"}).text
    assert "No job has that" in client.get("/ui/playground", params={"job": "job-none"}).text


def test_a_job_without_a_checkpoint_says_what_to_do(driver: Driver, client: TestClient):
    job_id = driver.submit()
    queued = client.get("/ui/playground", params={"job": job_id}).text
    client.post(f"/jobs/{job_id}/cancel")

    ended = client.get("/ui/playground", params={"job": job_id}).text

    assert "It is queued; it saves one every" in queued
    assert f'href="/ui/new?from={job_id}"' in ended


@pytest.mark.services
def test_base_and_checkpoint_stream_side_by_side_and_stop(site: Site, visit: Callable[..., Page]):
    (model,) = (site.home / "models").iterdir()
    step = f"{site.jobs[0]}:4"
    page = visit(f"/ui/playground?model={model.name}&beside={step}")
    assert page.locator("select[name=beside]").input_value() == step
    page.fill("[name=max_tokens]", "5")
    page.fill("[name=seed]", "1")

    page.fill("[name=prompt]", "What is 3 and one?")
    page.press("[name=prompt]", "Enter")

    cards = page.locator("article.card")
    expect(cards).to_have_count(2)
    for card in (cards.first, cards.last):
        expect(card).to_contain_text("tokens/s")
        expect(card).to_contain_text("finished: ")
    expect(page.locator("#as-curl")).to_contain_text(model.name)

    page.fill("[name=max_tokens]", "")
    page.fill("[name=prompt]", "Tell a very long story.")
    page.press("[name=prompt]", "Enter")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    expect(cards.nth(2)).to_contain_text("stopped")


@pytest.mark.services
def test_without_a_script_a_form_asks_both(site: Site, visit: Callable[..., Page]):
    (model,) = (site.home / "models").iterdir()
    page = visit(
        f"/ui/playground?model={model.name}&beside={site.jobs[0]}", java_script_enabled=False
    )
    page.fill("[name=max_tokens]", "4")
    page.fill("[name=prompt]", "What is 3 and one?")

    page.get_by_role("button", name="Send").click()

    expect(page.locator("article.card", has_text="finished:")).to_have_count(2)
