"""Every page in a browser: nothing serious for axe, both schemes, and no sideways scroll."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page

from app.web.job.frame import SECTIONS
from tests.web.conftest import Site, Watched

pytestmark = pytest.mark.services

AXE = (Path(__file__).parent / "axe" / "axe.min.js").read_text("utf-8")
PAGES = (
    "/ui/jobs",
    "/ui/jobs?q=nothing",
    "/ui/jobs/job-000000000000000000000000",
    "/ui/settings",
    "/ui/compare",
    "/ui/compare?{all}",
    "/ui/new",
    "/ui/new?from={id}",
    "/ui/playground",
    "/ui/sign-in",
)
PAGES_OF_A_JOB = [f"/ui/jobs/{{id}}/{name}".rstrip("/") for name in SECTIONS]
_RUN = """async () => (await axe.run(document, {resultTypes: ['violations']})).violations
  .filter((each) => ['serious', 'critical'].includes(each.impact))
  .map((each) => `${each.id}: ${each.nodes.slice(0, 3).map((node) => node.html).join(' | ')}`)"""


def addresses(site: Site) -> list[str]:
    of_all = "&".join(f"job={job_id}" for job_id in site.jobs)
    return [
        page.replace("{all}", of_all).replace("{id}", site.jobs[0])
        for page in (*PAGES, *PAGES_OF_A_JOB)
    ]


def test_axe_finds_nothing_serious_in_both_schemes(
    site: Site, visit: Callable[..., Page], watched: Watched
):
    watched.allowed = ("404",)  # one of the pages says that there is no such job
    found: list[str] = []
    for scheme in ("light", "dark"):
        page = visit("/ui/jobs", color_scheme=scheme)
        for address in addresses(site):
            page.goto(address)
            # Through the tool's own way in: the policy of the page forbids an added script.
            page.evaluate(f"() => {{ {AXE} }}")
            found += [f"{scheme} {address} {each}" for each in page.evaluate(_RUN)]

    assert found == []


def test_no_page_scrolls_sideways_on_a_phone(
    site: Site, visit: Callable[..., Page], watched: Watched
):
    watched.allowed = ("404",)
    page = visit("/ui/jobs", viewport={"width": 360, "height": 740})
    too_wide: list[str] = []
    for address in addresses(site):
        page.goto(address)
        if page.evaluate("() => document.documentElement.scrollWidth > innerWidth"):
            too_wide.append(address)

    assert too_wide == []
