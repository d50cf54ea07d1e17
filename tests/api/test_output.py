"""What a job leaves can be fetched: the adapter as a zip, and what its trainer printed."""

import io
import json
import zipfile

import httpx2
import pytest
from fastapi.testclient import TestClient

from app.domain.jobs import JobState
from tests.api.answers import refusal
from tests.services.driver import Driver


def download(client: TestClient, job_id: str, which: str) -> httpx2.Response:
    return client.get(f"/jobs/{job_id}/checkpoints/{which}/download")


@pytest.mark.parametrize("which", ["5", "latest", "final"])
def test_an_adapter_comes_as_a_zip_that_peft_can_read(
    client: TestClient, driver: Driver, which: str
):
    job_id, run = driver.in_state(JobState.SUCCEEDED)

    answer = download(client, job_id, which)

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/zip"
    assert f"{job_id}-" in answer.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert set(archive.namelist()) == {
            "adapter_config.json",
            "adapter_model.safetensors",
            "MANIFEST.json",
        }
        config = json.loads(archive.read("adapter_config.json"))
        weights = archive.read("adapter_model.safetensors")
    assert config == {"peft_type": "LORA", "r": run.spec.lora.r}
    folder = "final" if which == "final" else "checkpoint-5"
    assert weights == (driver.attempt(run) / folder / "adapter_model.safetensors").read_bytes()


def test_a_large_adapter_comes_in_pieces(client: TestClient, driver: Driver):
    job_id, run = driver.in_state(JobState.SUCCEEDED)
    folder = driver.attempt(run) / "checkpoint-5"

    with client.stream("GET", f"/jobs/{job_id}/checkpoints/5/download") as answer:
        pieces = list(answer.iter_raw())

    assert "content-length" not in answer.headers
    assert len(pieces) > 1
    assert sum(map(len, pieces)) > (folder / "adapter_model.safetensors").stat().st_size


@pytest.mark.parametrize(("which", "folder"), [("5", "checkpoint-5"), ("final", "final")])
def test_an_adapter_that_was_changed_is_a_409(
    client: TestClient, driver: Driver, which: str, folder: str
):
    job_id, run = driver.in_state(JobState.SUCCEEDED)
    (driver.attempt(run) / folder / "adapter_model.safetensors").write_bytes(b"?")

    error = refusal(download(client, job_id, which), 409)

    assert error["code"] == "checkpoint_unusable"
    assert "adapter_model.safetensors" in error["message"]


@pytest.mark.parametrize("state", [state for state in JobState if state is not JobState.SUCCEEDED])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_before_a_job_succeeded_it_has_no_final_adapter(
    client: TestClient, driver: Driver, state: JobState
):
    job_id, _ = driver.in_state(state)

    error = refusal(download(client, job_id, "final"), 404)

    assert f"it is {state}" in error["message"]


def test_a_superseded_checkpoint_is_listed_and_fetched_by_id_on_demand(
    client: TestClient, driver: Driver
):
    job_id, _ = driver.in_state(JobState.CANCELLED)
    path = f"/jobs/{job_id}/checkpoints"
    client.post(f"/jobs/{job_id}/resume", json={"from_scratch": True})

    current = client.get(path).json()["data"]
    (left,) = client.get(path, params={"include": "superseded"}).json()["data"]

    assert current == []
    assert (left["step"], left["superseded"]) == (5, True)
    assert client.get(f"{path}/{left['id']}").json() == left
    assert download(client, job_id, left["id"]).status_code == 200
    refusal(download(client, job_id, "5"), 404)


def logged(driver: Driver, content: bytes) -> str:
    job_id, run = driver.in_state(JobState.RUNNING)
    (driver.attempt(run) / "trainer.log").write_bytes(content)
    return job_id


def read_all(client: TestClient, job_id: str) -> list[str]:
    """Read a log from piece to piece as a client does, until there is no more."""
    pieces: list[str] = []
    offset = 0
    while True:
        answer = client.get(f"/jobs/{job_id}/logs", params={"offset": offset})
        assert answer.status_code == 200
        if not answer.text:
            return pieces
        pieces.append(answer.text)
        offset = int(answer.headers["x-next-offset"])


@pytest.mark.parametrize("shift", range(4))
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_log_is_read_in_pieces_that_cut_no_character(
    client: TestClient, driver: Driver, shift: int
):
    text = "x" * shift + "é日😀" * 40_000
    job_id = logged(driver, text.encode())

    pieces = read_all(client, job_id)

    assert len(pieces) == 2
    assert "".join(pieces) == text


def test_a_character_that_is_not_complete_yet_waits(client: TestClient, driver: Driver):
    job_id = logged(driver, b"loss \xe6\x97")
    first = client.get(f"/jobs/{job_id}/logs")
    logged_path = next(driver.settings.home.glob(f"jobs/{job_id}/attempts/*/trainer.log"))
    logged_path.write_bytes("loss 日".encode())

    second = client.get(f"/jobs/{job_id}/logs", params={"offset": first.headers["x-next-offset"]})

    assert first.text == "loss "
    assert (second.text, second.headers["x-next-offset"]) == ("日", "8")


def test_bytes_that_are_no_text_do_not_stop_a_log(client: TestClient, driver: Driver):
    job_id = logged(driver, b"a\xff\x80b\n")

    answer = client.get(f"/jobs/{job_id}/logs")

    assert answer.text.startswith("a")
    assert answer.text.endswith("b\n")
    assert answer.headers["x-next-offset"] == "5"


def test_a_log_past_its_end_is_empty_and_its_offset_stays(client: TestClient, driver: Driver):
    job_id = logged(driver, b"abc")

    answer = client.get(f"/jobs/{job_id}/logs", params={"offset": 99})

    assert (answer.text, answer.headers["x-next-offset"]) == ("", "99")


def test_every_attempt_has_its_log_and_an_unknown_one_is_a_404(client: TestClient, driver: Driver):
    job_id = logged(driver, b"first")
    waiting = driver.submit()

    named = client.get(f"/jobs/{job_id}/logs", params={"attempt": 1})
    unknown = client.get(f"/jobs/{job_id}/logs", params={"attempt": 2})
    none_yet = client.get(f"/jobs/{waiting}/logs")

    assert (named.text, named.headers["x-attempt"]) == ("first", "1")
    error = refusal(unknown, 404)
    assert error["param"] == "attempt"
    assert "newest is 1" in error["message"]
    assert (none_yet.text, none_yet.headers["x-attempt"]) == ("", "0")
