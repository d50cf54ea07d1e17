"""Errors have one form: what is wrong, the nearest valid key, where it is, and the request."""

import pytest

from tests.cli.conftest import DATASET_ID, JOB_ID, problem

JOB = f"""base_model: tiny
dataset: {{id: {DATASET_ID}}}
training:
  # how long
  max_stepps: 5
"""


@pytest.fixture
def job_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(JOB)
    return "job.yaml"


def test_a_slip_in_a_job_file_is_told_with_its_line_and_the_nearest_key(lorad, job_file):
    done = lorad("submit", job_file, "--dry-run")

    assert done.code == 2
    assert done.stderr.splitlines() == [
        "error: unknown key max_stepps; did you mean max_steps?",
        "field: training.max_stepps",
        "where: job.yaml line 5",
    ]


@pytest.mark.parametrize("command", ["submit", "plan"])
def test_what_the_api_refuses_is_told_with_the_line_and_the_request(api, lorad, job_file, command):
    answer = problem(422, "that is too few", param="training.max_stepps")
    answer.headers["x-request-id"] = "req-1"
    api.on("POST /jobs", answer)
    api.on("POST /jobs/plan", answer)

    assert lorad(command, job_file).stderr.splitlines() == [
        "error: that is too few",
        "field: training.max_stepps",
        "where: job.yaml line 5",
        "request: req-1",
    ]


@pytest.mark.parametrize(
    ("pair", "hint"),
    [
        ("training.learning_rte=1", "did you mean learning_rate?"),
        ("trainin.max_steps=1", "did you mean training?"),
        ("max_stepz=1", "did you mean training.max_steps?"),
    ],
)
def test_an_override_that_is_no_key_names_the_nearest_one(lorad, job_file, pair, hint):
    fixed = JOB.replace("max_stepps", "max_steps")
    with open(job_file, "w") as file:  # noqa: PTH123
        file.write(fixed)

    done = lorad("submit", job_file, "--dry-run", "--set", pair)

    assert done.code == 2
    assert hint in done.stderr
    assert f"where: --set {pair}" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["wathc"], "Did you mean 'watch'"),
        (["ls", "--stat"], "--state"),
        (["show"], "JOB"),
        (["ls", "--limit", "0"], "--limit"),
        (["ls", "-o", "xml"], "xml"),
    ],
)
def test_arguments_that_cannot_be_meant_are_told_in_the_same_form(lorad, arguments, words):
    done = lorad(*arguments)

    assert (done.code, done.stdout) == (2, "")
    first, second = done.stderr.splitlines()
    assert first.startswith("error: ")
    assert words in first
    assert second.startswith("help: lorad ")
    assert second.endswith(" --help")


def test_no_arguments_print_the_help(lorad):
    done = lorad()

    assert "Usage: lorad" in done.stdout + done.stderr
    assert "error" not in done.stderr


def test_a_request_id_is_clean_and_told_for_other_errors_too(api, lorad):
    answer = problem(404, "no such job")
    answer.headers["x-request-id"] = "req-2"
    api.on(f"GET /jobs/{JOB_ID}", answer)

    assert "request: req-2\n" in lorad("show", JOB_ID).stderr
