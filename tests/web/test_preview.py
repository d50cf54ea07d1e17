"""The preview of tokens: a row as the model sees it, and what is trained, told without colour."""

from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import Page, expect

from tests.e2e.rows import ROWS
from tests.services.driver import Driver
from tests.web.conftest import Site


def test_without_a_worker_the_page_says_what_to_start(driver: Driver, client: TestClient):
    spec = driver.spec()
    path = f"/ui/datasets/{spec['dataset']['id']}/preview"

    answer = client.get(path, params={"base_model": spec["base_model"]})

    assert answer.status_code == 503
    assert "lorad worker" in answer.text


@pytest.mark.services
def test_rows_are_shown_one_by_one_with_the_trained_tokens_underlined(
    site: Site, visit: Callable[..., Page]
):
    dataset = site.upload(ROWS)
    (model,) = (site.home / "models").iterdir()
    path = f"/ui/datasets/{dataset}/preview?base_model={model.name}"

    page = visit(path, java_script_enabled=False)

    trained = page.locator("u.target")
    assert "It" in "".join(trained.all_text_contents())
    assert "What" not in "".join(trained.all_text_contents())
    assert "underline" in trained.first.evaluate("e => getComputedStyle(e).textDecorationLine")
    page.get_by_role("link", name="Next row").click()
    expect(page.locator("main")).to_contain_text("Line 2:")
