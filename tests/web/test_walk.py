"""The whole way in a browser on the real model: form, live points, pause, resume, chat, compare."""

import json
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect

from tests.cli.test_up import Up
from tests.web.conftest import Watched
from tests.web.test_charts import until

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]

_STEPS = "document.querySelector('metric-chart').sources[0].data.step"
_MARKERS = "document.querySelector('metric-chart').sources[0].markers"
_ROWS = [
    {"prompt": f"What is {number} plus one?", "completion": f"It is {number + 1}."}
    for number in range(40)
]
_FILE = "".join(json.dumps(row) + "\n" for row in _ROWS).encode()


@pytest.fixture
def site(tmp_path: Path, smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Up]:
    """A real `lorad up` with the real model; a step takes a moment longer, to be seen."""
    (tmp_path / "home" / "models").mkdir(parents=True)
    (tmp_path / "home" / "models" / smollm2.name).symlink_to(smollm2)
    monkeypatch.setenv("LORAD_FAILPOINTS", "trainer.step=sleep:0.1")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    up = Up(tmp_path / "home", port)
    yield up
    up.close()


@pytest.fixture
def watched(site: Up) -> Watched:
    return Watched(urlsplit(str(site.url)).netloc)


def test_a_user_walks_from_the_form_to_a_comparison(site: Up, visit: Callable[..., Page]):
    page = visit("/ui/new")
    job = submit_by_keys(page)

    # Points arrive without a reload, then the job is paused and goes on from an earlier step.
    page.evaluate("() => { window.isSamePage = true; }")
    until(page, f"{_STEPS}.length >= 5", seconds=90)
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#state")).to_contain_text("paused", timeout=60_000)
    page.get_by_label("Resume from").select_option(label="step 4")
    assert page.evaluate("() => window.isSamePage")
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("#state")).not_to_contain_text("paused", timeout=60_000)
    until(page, f"{_MARKERS}.some(({{kind, step}}) => kind === 'resume' && step === 4)", seconds=90)
    expect(page.locator("#state")).to_contain_text("succeeded", timeout=120_000)
    until(page, f"{_STEPS}.at(-1) === 12")
    assert page.evaluate(_STEPS) == list(range(1, 13))
    assert page.title().startswith("succeeded")

    see_the_sections(page)
    chat(page)
    compare_with_a_duplicate(page, job)


def see_the_sections(page: Page) -> None:
    """Open the sections of the finished job by its tabs, up to the link that tries a step."""
    tabs = page.get_by_role("navigation", name="Sections of the job")
    tabs.get_by_role("link", name="Gradients").click()
    until(page, "document.querySelector('grad-heatmap output').value.includes('layer 29')")
    tabs.get_by_role("link", name="Data").click()
    expect(page.locator("token-preview u.target").first).to_be_visible()
    expect(page.locator("main")).to_contain_text("40 lines: 40 used whole")
    tabs.get_by_role("link", name="Certificate").click()
    expect(page.locator("main")).to_contain_text("✓ passed")
    tabs.get_by_role("link", name="Logs").click()
    expect(page.locator("main")).to_contain_text("Output of attempt 2")
    tabs.get_by_role("link", name="Checkpoints").click()
    page.get_by_role("link", name="Try: step 8").click()


def compare_with_a_duplicate(page: Page, job: str) -> None:
    """Start the job once more from its form and look at both side by side."""
    page.goto(f"/ui/jobs/{job}")
    page.get_by_role("link", name="Duplicate").click()
    page.get_by_role("button", name="Start job").click()
    page.wait_for_url(re.compile("/ui/jobs/job-"))
    other = page.url.rpartition("/")[2]
    page.get_by_role("button", name="Pause").click()
    page.goto(f"/ui/compare?job={job}&job={other}")
    expect(page.locator("table").first.locator("tbody tr")).to_have_count(2)
    until(page, "document.querySelectorAll('figure canvas').length > 3")
    expect(page.locator("main")).not_to_contain_text("training.max_steps")


def submit_by_keys(page: Page) -> str:
    """Fill the form and send it with the keyboard alone; return the id of the job."""
    page.set_input_files("#f-file", files={"name": "sums.jsonl", "mimeType": "", "buffer": _FILE})
    expect(page.locator("#f-dataset")).not_to_have_value("")
    page.locator("summary", has_text="training").press("Enter")
    for key, value in {"max_steps": "12", "save_steps": "4", "eval_steps": "4"}.items():
        page.locator(f"#f-training-{key}").press_sequentially(value)
    page.locator("summary", has_text="dataset").press("Enter")
    page.locator("#f-dataset-val_size").press_sequentially("4")
    page.locator("summary", has_text="monitoring").press("Enter")
    page.locator("#f-monitoring-gradient_flow_steps").press_sequentially("4")
    expect(page.locator("#plan")).to_contain_text("12 (", timeout=60_000)
    page.get_by_role("button", name="Start job").press("Enter")
    page.wait_for_url(re.compile("/ui/jobs/job-"))
    return page.url.rpartition("/")[2]


def chat(page: Page) -> None:
    """Ask a checkpoint and its base, and see both answers come."""
    page.locator("[name=max_tokens]").fill("6")
    page.locator("[name=prompt]").press_sequentially("What is 3 plus one?")
    page.locator("[name=prompt]").press("Enter")
    cards = page.locator("article.card")
    expect(cards).to_have_count(2)
    for card in (cards.first, cards.last):
        expect(card).to_contain_text("finished: ", timeout=60_000)
