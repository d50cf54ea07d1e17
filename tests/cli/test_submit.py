"""Submitting a job file: data first, one job however often the connection breaks."""

import hashlib
import json

import pytest

from app.domain.jobs import JobState
from tests.cli.conftest import DATASET_ID, JOB_ID, Answer, listing, make_dataset, make_job


@pytest.fixture
def job_file(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    path = tmp_path / "job.yaml"
    path.write_text("base_model: tiny\ndataset: {path: rows.jsonl}\n")
    return str(path)


def test_submit_uploads_the_data_first(api, lorad, job_file):
    api.on("GET /datasets", listing())
    api.on("POST /datasets", Answer(make_dataset(), status=201))
    api.on("POST /jobs", Answer(make_job(JobState.QUEUED), status=201))

    done = lorad("submit", job_file, "--set", "training.max_steps=20", "-o", "id")

    assert (done.code, done.stdout) == (0, f"{JOB_ID}\n")
    uploaded, submitted = api.requests[1], api.requests[2]
    assert b'{"text": "a"}' in uploaded.body
    assert submitted.json == {
        "base_model": "tiny",
        "dataset": {"id": DATASET_ID},
        "training": {"max_steps": 20},
    }
    assert submitted.headers["idempotency-key"] != uploaded.headers["idempotency-key"]


def test_the_same_file_is_not_uploaded_twice(api, lorad, job_file):
    same = hashlib.sha256(b'{"text": "a"}\n').hexdigest()
    api.on("GET /datasets", listing(make_dataset(), make_dataset(sha256=same)))
    api.on("POST /jobs", Answer(make_job(JobState.QUEUED), status=201))

    done = lorad("submit", job_file)

    assert done.code == 0
    assert [request.method for request in api.requests] == ["GET", "POST"]


def test_a_faulty_job_file_uploads_nothing(api, lorad, job_file):
    done = lorad("submit", job_file, "--set", "training.max_stps=20")

    assert done.code == 2
    assert "did you mean max_steps" in done.stderr
    assert api.requests == []


def test_a_lost_submit_is_sent_again_under_the_same_key(api, lorad, tmp_path):
    path = tmp_path / "job.json"
    path.write_text(json.dumps({"base_model": "tiny", "dataset": {"id": DATASET_ID}}))
    job = make_job(JobState.QUEUED)
    api.on("POST /jobs", Answer(job, status=201, breaks=True), Answer(job, status=201))

    done = lorad("submit", str(path), "-o", "id")

    assert (done.code, done.stdout) == (0, f"{JOB_ID}\n")
    first, second = (request.headers["idempotency-key"] for request in api.requests)
    assert first == second


def test_a_dry_run_needs_no_api(lorad, job_file, monkeypatch):
    monkeypatch.setenv("LORAD_API_URL", "http://127.0.0.1:9")

    done = lorad("submit", job_file, "--dry-run")

    assert done.code == 0
    assert json.loads(done.stdout)["training"]["learning_rate"] == 2e-4
