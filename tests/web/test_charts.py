"""The charts of a job in a real browser: what they show, and what they ask for."""

import csv
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from app.db.engine import Database
from app.services.jobs import Outside
from app.settings import Settings
from tests.fixtures.stack import link_model
from tests.services.driver import Driver, FakeDoorbell, FakeStream
from tests.services.place import write_model
from tests.web.conftest import Site, Watched

pytestmark = pytest.mark.services

_LONG = 5000
_NAN, _PEAK, _ZERO_RATE = 2500, 3001, 1
_TAIL = "document.querySelector('metric-chart').sources[0].data.step"
_QUESTION = {"role": "user", "content": "What is one and one?"}
_ROWS = [
    {"messages": [_QUESTION, {"role": "assistant", "content": f"It is {number}."}]}
    for number in range(24)
]


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, tiny_llama: Path
) -> Iterator[Site]:
    """The whole service; a step takes a moment, so that there is something to watch."""
    home = tmp_path_factory.mktemp("c")
    shutil.copyfile(sqlite_template, home / "lorad.db")
    slow = {"LORAD_FAILPOINTS": "trainer.step=sleep:0.04"}
    stack = Site(home, f"sqlite:///{home / 'lorad.db'}", **slow)
    stack.start("valkey")
    stack.start("api")
    yield stack
    stack.close()


@pytest.fixture(scope="module")
def long_job(site: Site) -> str:
    """A job of many steps that nobody trained: a peak, a step that is not finite, a rate of 0."""
    write_model(site.home)
    settings = Settings(home=site.home)
    database = Database(site.environment["LORAD_DATABASE_URL"])
    driver = Driver(database, Outside(settings, FakeDoorbell(), FakeStream()))
    job_id = driver.submit(name="<b>long</b>", training={"max_steps": _LONG})
    run = driver.started()
    odd: dict[int, dict[str, Any]] = {
        _NAN: {"loss": None, "grad_norm": None},
        _PEAK: {"loss": 99.0},
        _ZERO_RATE: {"learning_rate": 0.0},
    }
    steps = [driver.step(run, step, **odd.get(step, {})) for step in range(1, _LONG + 1)]
    driver.record(run, *steps)
    driver.checkpoint(run, _LONG)
    driver.succeed(run, _LONG)
    database.close()
    return job_id


def until(page: Page, condition: str, seconds: float = 15) -> None:
    """Wait for a condition; the page's policy does not let the browser wait by itself."""
    for _ in range(int(seconds / 0.05)):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"waited {seconds} s in vain for {condition}")


def shown(page: Page) -> dict[str, Any]:
    """Return what the chart of the page holds for its first job, once it is drawn."""
    until(page, f"document.querySelector('canvas') && {_TAIL}.length > 0")
    return page.evaluate(
        "(({data, markers}) => ({data, markers}))"
        "(document.querySelector('metric-chart').sources[0])"
    )


def picture(page: Page) -> str:
    return page.evaluate("document.querySelector('figure canvas').toDataURL()")


@pytest.fixture(scope="module")
def trainee(site: Site, long_job: str, tiny_llama: Path) -> str:
    """The name of a model, with a worker to train it: started after nobody trained `long_job`."""
    link_model(site.home, tiny_llama)
    site.start("worker")
    return tiny_llama.name


def start_training(site: Site, model: str, max_steps: int = 60) -> str:
    """Submit a real job."""
    training = {"max_steps": max_steps, "save_steps": 10, "eval_steps": 20}
    return site.submit(
        {
            "base_model": model,
            "dataset": {"id": site.upload(_ROWS), "val_size": 4},
            "training": {
                **training,
                "save_total_limit": None,
                "per_device_train_batch_size": 2,
            },
            "monitoring": {"gradient_flow_steps": 10},
        }
    )


def test_points_arrive_live_and_a_resume_leaves_one_line_with_a_seam(
    site: Site, visit: Callable[..., Page], watched: Watched, trainee: str
):
    watched.allowed = ("ERR_",)  # the server goes away and comes back
    job_id = start_training(site, trainee)
    page = visit(f"/ui/jobs/{job_id}")
    assert "No points yet" in page.content()
    page.evaluate("window.isSamePage = true")

    until(page, f"{_TAIL}.length >= 25", seconds=60)
    site.post(job_id, "pause")
    site.wait_for_state(job_id, "paused")
    site.post(job_id, "resume", {"checkpoint": 20})
    until(page, f"{_TAIL}.at(-1) >= 30 && {_TAIL}.length < 40", seconds=60)
    site.stop("api")
    site.start("api")
    site.wait_for_state(job_id, "succeeded", seconds=90)
    until(page, f"{_TAIL}.at(-1) === 60", seconds=30)

    live = shown(page)
    assert page.evaluate("window.isSamePage")
    assert live["data"]["step"] == list(range(1, 61))
    assert {"kind": "resume", "step": 20} in live["markers"]
    stored = site.http.get(f"/ui/jobs/{job_id}/curves.json").json()
    assert live["data"]["loss"] == stored["columns"]["loss"]
    assert live["data"]["tokens"] == stored["columns"]["tokens"]
    until(page, "document.querySelector('figure output').value.includes('eval loss')")

    flow = visit(f"/ui/jobs/{job_id}/gradients")
    until(flow, "document.querySelector('grad-heatmap output').value.includes('step 60, layer 1')")
    flow.locator("grad-heatmap canvas").press("ArrowLeft")
    assert "step 50, layer 1: gradient norm" in flow.locator("grad-heatmap output").inner_text()
    flow.locator("select[name=module]").select_option(index=1)
    assert "module=" in flow.url
    assert (
        flow.evaluate(
            "new Set(document.querySelector('grad-heatmap canvas').getContext('2d')"
            ".getImageData(60, 5, 400, 1).data).size"
        )
        > 5
    )


def test_a_comparison_shows_new_points_by_itself(
    site: Site, long_job: str, trainee: str, visit: Callable[..., Page]
):
    job_id = start_training(site, trainee, max_steps=4000)
    site.wait_for_step(job_id, 2)
    page = visit(f"/ui/compare?job={job_id}&job={long_job}")
    page.evaluate("() => { window.isSamePage = true; }")
    drawn = shown(page)["data"]["step"]
    before = picture(page)

    until(page, f"{_TAIL}.at(-1) > {drawn[-1]}", seconds=20)

    assert page.evaluate("() => window.isSamePage")
    assert page.evaluate(_TAIL)[: len(drawn)] == drawn
    page.wait_for_timeout(100)  # a frame or two
    assert picture(page) != before
    site.post(job_id, "cancel")
    site.wait_for_state(job_id, "cancelled")


def test_a_zoom_asks_for_finer_points_and_the_way_back_is_the_browsers(
    long_job: str, visit: Callable[..., Page]
):
    page = visit(f"/ui/jobs/{long_job}")
    before = shown(page)["data"]["step"]
    assert len(before) <= 2000
    plot = page.locator("figure .u-over").first
    box = plot.bounding_box()
    assert box

    # `drag_to` looks for the plot once more: it may have moved since the page was drawn first.
    with page.expect_response(lambda answer: "from_step=" in answer.url) as asked:
        plot.drag_to(
            plot,
            source_position={"x": box["width"] * 0.4, "y": 50},
            target_position={"x": box["width"] * 0.6, "y": 60},
            steps=5,
        )
    finer = asked.value.json()["columns"]["step"]

    assert len(finer) > sum(finer[0] <= step <= finer[-1] for step in before)
    until(page, f"{_TAIL}.length > {len(before)}")
    assert shown(page)["data"]["step"] == sorted(set(before) | set(finer))
    assert "from=" in page.url
    page.go_back()
    until(page, "document.querySelector('metric-chart').range === null")
    assert "from=" not in page.url


def test_what_is_not_finite_and_what_sticks_out_survive_thinning(
    long_job: str, visit: Callable[..., Page]
):
    page = visit(f"/ui/jobs/{long_job}?log=1&x=tokens&smooth=0.9")

    held = shown(page)

    loss = dict(zip(held["data"]["step"], held["data"]["loss"], strict=True))
    assert (loss[_NAN], loss[_PEAK]) == (None, 99.0)
    assert {"kind": "spike", "step": _PEAK} in held["markers"]
    # On a log scale 0 is no value; everything else is drawn.
    rates = page.evaluate("document.querySelector('metric-chart').plots[1].data[1]")
    assert rates[0] is None
    assert all(rates[1:])
    assert "long" in page.title()
    assert page.locator("h1 b").count() == 0


def test_the_scheme_the_size_and_the_keys_change_the_picture(
    long_job: str, visit: Callable[..., Page]
):
    page = visit(f"/ui/jobs/{long_job}", viewport={"width": 360, "height": 800})
    shown(page)
    until(page, "document.querySelector('figure output').value !== ''")
    light = picture(page)

    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(100)
    assert picture(page) != light
    chart = page.locator("figure .plot").first
    chart.press("Home")
    assert "step 1 " in (chart.get_attribute("aria-valuetext") or "")
    chart.press("ArrowRight")
    assert "step 1 " not in (chart.get_attribute("aria-valuetext") or "")
    chart.press("+")
    assert "to=" in page.url
    chart.press("Escape")
    assert "to=" not in page.url
    page.get_by_label("Log scale").check()
    assert "log=1" in page.url
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_a_chart_can_be_saved_as_a_picture_and_as_csv(
    site: Site, long_job: str, visit: Callable[..., Page], tmp_path: Path
):
    page = visit(f"/ui/jobs/{long_job}")
    shown(page)

    with page.expect_download() as saved:
        page.get_by_label("Loss as PNG").click()
    saved.value.save_as(tmp_path / "loss.png")
    rows = list(csv.DictReader(io.StringIO(site.http.get(f"/ui/jobs/{long_job}/metrics.csv").text)))
    told = site.http.get(f"/jobs/{long_job}/metrics?limit=10000").json()["data"]

    content = (tmp_path / "loss.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 4000
    assert [json.loads(row["loss"] or "null") for row in rows] == [each["loss"] for each in told]
    assert list(rows[0]) == list(told[0])


def test_without_scripts_there_are_tables(site: Site, long_job: str):
    curves = site.http.get(f"/ui/jobs/{long_job}").text
    flow = site.http.get(f"/ui/jobs/{long_job}/gradients").text

    assert "not finite" in curves
    assert f"of {_LONG:,} steps" in curves
    assert "&lt;b&gt;long&lt;/b&gt;" in curves
    assert "No sample yet" in flow


@pytest.mark.parametrize("query", ["x=miles", "smooth=2", "log=2", "colour=red", "from=9&to=3"])
def test_a_view_that_there_is_not_is_refused_by_name(site: Site, long_job: str, query: str):
    answer = site.http.get(f"/ui/jobs/{long_job}?{query}")

    assert answer.status_code == 422
    assert query.split("=")[0] in answer.text
