"""The page of all jobs in a browser: lines change in place, and the keyboard reaches everything."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.web.conftest import Site, Watched

pytestmark = pytest.mark.services


def test_a_line_changes_in_place_and_focus_and_marks_stay(site: Site, visit: Callable[..., Page]):
    job_id = site.train(steps=60, name="live")
    page = visit("/ui/jobs")
    line = page.locator(f"#line-{job_id}")
    line.locator("a").focus()
    page.keyboard.press("x")

    expect(line.locator(".state")).to_have_text("succeeded", timeout=60_000)

    assert page.evaluate("() => document.activeElement.textContent").strip("\u2068\u2069") == "live"
    expect(line.locator("[name=job]")).to_be_checked()
    expect(line).to_contain_text("60/60")
    assert line.locator("path").get_attribute("d")
    other = site.train(steps=2)
    expect(page.locator("#news")).to_have_text("1 new job: show", timeout=15_000)
    expect(page.locator(f"#line-{other}")).to_have_count(0)
    page.locator("#news a").click()
    expect(page.locator(f"#line-{other}")).to_have_count(1)


def test_keys_alone_find_mark_and_open(site: Site, visit: Callable[..., Page]):
    page = visit("/ui/jobs")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("x")
    expect(page.locator("#jobs tbody tr").first.locator("[name=job]")).to_be_checked()
    page.keyboard.press("?")
    expect(page.locator("#keys")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("first")
    page.keyboard.press("Enter")
    page.wait_for_url("**q=first**")
    expect(page.locator("#jobs tbody tr")).to_have_count(1)
    page.go_back()
    expect(page.locator("#jobs tbody tr").nth(1)).to_be_visible()


def test_the_filter_changes_the_table_alone_and_the_new_one_is_live(
    site: Site, visit: Callable[..., Page]
):
    job_id = site.train(steps=40, name="narrow")
    page = visit("/ui/jobs")
    page.evaluate("() => { window.isSamePage = true; }")
    page.locator("[name=q]").press_sequentially("narr")

    expect(page.locator("#jobs tbody tr")).to_have_count(1)
    page.wait_for_url("**q=narr**")
    assert page.evaluate("() => document.activeElement.name") == "q"
    expect(page.locator(f"#line-{job_id} .state")).to_have_text("succeeded", timeout=60_000)
    page.get_by_role("link", name="Show all").click()
    page.wait_for_url("**/ui/jobs")
    assert page.locator("#jobs tbody tr").count() > 1
    page.evaluate("() => { window.isSamePage = true; }")
    page.locator("[name=state]").select_option("failed")
    expect(page.locator("#found")).to_contain_text("No job is like that")
    assert page.evaluate("() => window.isSamePage")


def test_a_server_that_goes_away_and_returns(
    site: Site, visit: Callable[..., Page], watched: Watched
):
    watched.allowed = ("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED", "ERR_CONNECTION_RESET")
    page = visit("/ui/jobs")
    site.kill_tree("api")
    expect(page.locator("#connection")).to_contain_text("no connection")

    site.start("api")

    expect(page.locator("#connection")).to_have_text("", timeout=20_000)
    job_id = site.train(steps=2)
    expect(page.locator("#news")).to_contain_text("new job", timeout=15_000)
    site.wait_for_state(job_id, "succeeded")
