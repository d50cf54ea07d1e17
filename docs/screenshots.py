"""Makes the pictures of docs/screenshots: jobs on the real model, looked at in a real browser.

python docs/screenshots.py              needs Chromium and the model of the demo
python docs/screenshots.py --all DIR    every page, light, dark and 360 pixels wide
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
FOLDER = ROOT / "docs" / "screenshots"
ROWS = ROOT / "examples" / "data" / "lighthouse.jsonl"
# Where a page is told from the others by its name: (name, address, colours, width).
PICTURES = (
    ("jobs", "/ui/jobs", "light", 1280),
    ("job", "/ui/jobs/{first}", "light", 1280),
    ("job-dark", "/ui/jobs/{first}", "dark", 1280),
    ("gradients", "/ui/jobs/{first}/gradients", "light", 1280),
    ("checkpoints", "/ui/jobs/{first}/checkpoints", "light", 1280),
    ("data", "/ui/jobs/{first}/data", "light", 1280),
    ("compare", "/ui/compare?job={first}&job={second}", "light", 1280),
    ("new", "/ui/new?from={first}", "light", 1280),
    ("playground", "/ui/playground?model={first}:latest&beside={first}:base", "light", 1280),
    ("narrow", "/ui/jobs/{first}", "dark", 360),
)
MORE = ("events", "logs", "config", "certificate", "memory")


def main() -> None:
    """Train, then take the pictures."""
    from docs import transcripts

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--all", type=Path, help="every page in every look, into this folder")
    folder = parser.parse_args().all
    with tempfile.TemporaryDirectory(prefix="lorad-pictures-") as name:
        home = Path(name)
        models = home / ".lorad" / "models"
        models.mkdir(parents=True)
        (models / transcripts.MODEL.name).symlink_to(transcripts.MODEL)
        with transcripts.service(home) as environment:
            jobs = train(environment)
            with sync_playwright() as playwright:
                take(playwright, environment["LORAD_API_URL"], jobs, folder)


def train(environment: dict[str, str]) -> dict[str, str]:
    """Run two jobs to their end, the first with a resume on its way; return their ids."""
    with httpx2.Client(base_url=environment["LORAD_API_URL"], timeout=60) as client:
        stored = client.post("/datasets", files={"file": (ROWS.name, ROWS.read_bytes())}).json()
        found: dict[str, str] = {}
        for place, rank in (("first", 16), ("second", 4)):
            job = client.post("/jobs", json=spec(stored["id"], rank)).json()
            found[place] = job["id"]
            wait_until_succeeded(client, job["id"])
        more = {"checkpoint": 16, "training": {"max_steps": 32}}
        client.post(f"/jobs/{found['first']}/resume", json=more).raise_for_status()
        wait_until_succeeded(client, found["first"])
        client.post("/jobs", json=spec(stored["id"], 8) | {"name": "keeper, longer"})
    return found


def wait_until_succeeded(client: httpx2.Client, job_id: str) -> None:
    deadline = time.monotonic() + 900
    while (job := client.get(f"/jobs/{job_id}").json())["state"] != "succeeded":
        assert job["state"] not in ("failed", "cancelled"), job["error"]
        assert time.monotonic() < deadline, job
        time.sleep(0.5)


def spec(dataset_id: str, rank: int) -> dict[str, Any]:
    return {
        "base_model": "smollm2-135m-instruct",
        "name": f"keeper, rank {rank}",
        "dataset": {"id": dataset_id, "val_size": 16},
        "lora": {"r": rank},
        "training": {
            "max_steps": 24,
            "learning_rate": 1e-3,
            "save_steps": 8,
            "eval_steps": 4,
            "per_device_train_batch_size": 2,
        },
        "monitoring": {"gradient_flow_steps": 4},
    }


def take(playwright: Any, url: str, jobs: dict[str, str], folder: Path | None) -> None:
    """Open each page as it is listed, wait for what it draws, and keep a picture of it."""
    path = shutil.which("chromium")
    assert path, "chromium is not installed"
    target = folder or FOLDER
    target.mkdir(parents=True, exist_ok=True)
    browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
    for name, address, scheme, width in every() if folder else PICTURES:
        size = {"width": width, "height": 900}
        context = browser.new_context(base_url=url, color_scheme=scheme, viewport=size)
        page = context.new_page()
        page.goto(address.format(**jobs))
        if name.startswith("playground"):
            ask(page)
        page.wait_for_timeout(2500)
        page.screenshot(path=target / f"{name}.png", full_page=folder is not None or width < 500)
        context.close()
    browser.close()


def every() -> Iterator[tuple[str, str, str, int]]:
    pages = {name.partition("-")[0]: address for name, address, _, _ in PICTURES}
    pages |= {name: f"/ui/jobs/{{first}}/{name}" for name in MORE} | {"settings": "/ui/settings"}
    del pages["narrow"]
    for name, address in pages.items():
        for look, scheme, width in (("light", "light", 1280), ("dark", "dark", 1280)):
            yield f"{name}-{look}", address, scheme, width
        yield f"{name}-360", address, "light", 360


def ask(page: Page) -> None:
    page.fill("[name=max_tokens]", "40")
    page.fill("[name=prompt]", "Who keeps the lighthouse?")
    page.press("[name=prompt]", "Enter")
    page.locator("article.card", has_text="finished: ").nth(1).wait_for(timeout=120_000)


if __name__ == "__main__":
    main()
