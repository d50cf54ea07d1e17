"""The page of one job: what it shows, what is blocked and why, and resuming from it."""

import pytest

pytestmark = pytest.mark.services


def test_a_finished_job_is_extended_from_a_chosen_checkpoint(site, visit):
    job_id = site.train(name="<script>alert(1)</script>")
    site.wait_for_state(job_id, "succeeded", seconds=60)
    page = visit(f"/ui/jobs/{job_id}")

    assert "<script>alert(1)</script>" in page.locator("h1").inner_text()
    pause = page.get_by_role("button", name="Pause")
    assert pause.is_disabled()
    assert "the job is succeeded" in page.locator("#why-pause").inner_text()

    page.get_by_label("From").select_option(label="step 8")
    page.get_by_label("New last step").fill("16")
    page.get_by_role("button", name="Resume").click()
    site.wait_for_state(job_id, "succeeded", seconds=60)
    page.goto(f"/ui/jobs/{job_id}")
    assert "16 of 16" in page.locator("dl.facts").first.inner_text()
