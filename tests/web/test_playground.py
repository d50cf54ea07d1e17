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
