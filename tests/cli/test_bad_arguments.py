"""Whatever is typed, and wherever the output goes, ends in one line and an exit code."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import JOB_ID, Answer, listing, make_dataset, make_job, problem


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["wait", JOB_ID, "--timeout", "inf"], 2, "inf is not between"),
        (["wait", JOB_ID, "--timeout", "1e30"], 2, "1e+30 is not between"),
        (["watch", JOB_ID, "--timeout", "nan"], 2, "nan is not between"),
        (["show", "job-\udcff"], 2, "udcff is not UTF-8"),
        (["datasets", "upload", "bad\udcff.jsonl"], 2, "is not UTF-8"),
        (["keys", "create", "--name", "a\udcffb"], 2, "is not UTF-8"),
        (["keys", "create", "--name", " "], 2, "--name is blank"),
        (["keys", "list", "--home", ""], 2, "--home is empty"),
    ],
)
def test_an_argument_that_cannot_be_meant_is_refused(api, lorad, arguments, code, words):
    done = lorad(*arguments)

    assert (done.code, done.stdout) == (code, "")
    assert words in done.stderr
    assert api.requests == []


@pytest.mark.parametrize("url", ["http://[::1", "http://127.0.0.1:99999", "127.0.0.1:8000"])
def test_an_address_that_is_none_is_refused(lorad, monkeypatch, url):
    monkeypatch.setenv("LORAD_API_URL", url)

    done = lorad("ls")

    assert done.code == 2
    assert done.stderr.count("\n") == 2
    assert "is no URL of an API" in done.stderr


def test_lines_of_a_receipt_without_an_api_are_unreachable(lorad, monkeypatch):
    monkeypatch.setenv("LORAD_API_URL", "http://127.0.0.1:1")

    done = lorad("receipt", JOB_ID, "--lines")

    assert done.code == 5
    assert done.stderr.startswith("error: cannot reach the API")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("checkpoint", ["9" * 5000, "\u0665", "\u00b2"])
def test_a_checkpoint_that_is_no_step_is_left_to_the_api(api, lorad, checkpoint):
    api.on(f"POST /jobs/{JOB_ID}/resume", problem(404, "no such checkpoint"))

    done = lorad("resume", JOB_ID, "--checkpoint", checkpoint)

    assert done.code == 3
    assert api.requests[0].json == {"checkpoint": checkpoint}


def test_a_data_set_of_a_user_that_is_none_is_refused(lorad, tmp_path: Path):
    spec = tmp_path / "job.yaml"
    spec.write_text("base_model: tiny\ndataset: {path: ~nosuchuser/rows.jsonl}\n")

    done = lorad("submit", str(spec), "--dry-run")

    assert done.code == 2
    assert "dataset.path" in done.stderr


def test_a_file_with_a_long_name_is_uploaded_under_its_beginning(api, lorad, tmp_path: Path):
    path = tmp_path / ("x" * 220 + ".jsonl")
    path.write_text('{"text": "a"}\n')
    api.on("POST /datasets", Answer(make_dataset(format=None), status=201))

    done = lorad("datasets", "upload", str(path))

    assert done.code == 0
    body = api.requests[0].body
    assert b"\r\n\r\n" + b"x" * 200 + b"\r\n" in body
    assert "a job has to give dataset.format" in done.stderr


def test_the_first_key_and_the_last_tell_what_follows(lorad, tmp_path: Path):
    home = str(tmp_path / "home")

    first = lorad("keys", "create", "--home", home)
    second = lorad("keys", "create", "--home", home)
    ids = lorad("keys", "list", "--home", home, "-o", "id").stdout.split()
    revoked = [lorad("keys", "revoke", each, "--home", home) for each in ids]

    assert "requests without a key are refused from now on" in first.stderr
    assert "refused" not in second.stderr
    assert ["no active key is left" in each.stderr for each in revoked] == [False, True]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("mode", ["json", "table"])
def test_output_that_cannot_be_written_is_one_line(api, mode):
    api.on("GET /jobs", listing(*[make_job()] * (1 if mode == "table" else 9)))

    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "app.cli.main", "ls", "-o", mode],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert done.returncode == 1
    assert done.stderr == "error: No space left on device\n"
