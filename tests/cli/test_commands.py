"""Commands print data on stdout and the rest on stderr, and end with the promised codes."""

import json

import pytest

from app.domain.jobs import JobState
from tests.cli.conftest import (
    DATASET_ID,
    JOB_ID,
    Answer,
    listing,
    make_dataset,
    make_job,
    make_step,
    problem,
)

JOB = f"GET /jobs/{JOB_ID}"


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, 2),
        (401, 4),
        (403, 4),
        (404, 3),
        (409, 2),
        (413, 2),
        (422, 2),
        (503, 5),
        (500, 1),
    ],
)
def test_an_answer_decides_the_exit_code(api, lorad, status, code):
    api.on(JOB, problem(status, "that is wrong", param="training.max_steps"))

    done = lorad("show", JOB_ID)

    assert done.code == code
    assert done.stdout == ""
    assert done.stderr == "error: that is wrong\nfield: training.max_steps\n"


def test_every_problem_of_a_request_is_shown(api, lorad):
    answer = problem(422, "r is wrong", param="lora.r")
    answer.body["error"]["details"] = [{"message": "r is wrong"}, {"message": "seed is wrong"}]
    api.on(JOB, answer)

    assert lorad("show", JOB_ID).stderr == (
        "error: r is wrong\n  also: seed is wrong\nfield: lora.r\n"
    )


def test_an_answer_of_something_else_is_no_traceback(api, lorad):
    api.on(JOB, Answer("<html>hello</html>", type="text/html"))

    done = lorad("show", JOB_ID)

    assert done.code == 1
    assert "is it a lorad API" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_api_is_code_5(lorad, monkeypatch):
    monkeypatch.setenv("LORAD_API_URL", "http://127.0.0.1:9")

    done = lorad("ls")

    assert done.code == 5
    assert "lorad up" in done.stderr


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://"])
def test_a_strange_url_is_bad_input(lorad, monkeypatch, url):
    monkeypatch.setenv("LORAD_API_URL", url)

    done = lorad("ls")

    assert done.code == 2
    assert "field: LORAD_API_URL" in done.stderr


def test_an_unknown_option_is_bad_input(lorad):
    assert lorad("ls", "--colour").code == 2


def test_the_key_is_sent(api, lorad, monkeypatch):
    monkeypatch.setenv("LORAD_API_KEY", "lorad_secret")
    api.on("GET /jobs", listing())

    lorad("ls")

    assert api.requests[0].headers["authorization"] == "Bearer lorad_secret"


def test_a_list_is_printed_in_three_ways(api, lorad):
    api.on("GET /jobs", listing(make_job(name="a\x1b[31m\nb")))

    table, ids, text = (lorad("ls", "-o", mode) for mode in ("table", "id", "json"))

    assert table.stdout.splitlines()[0].split()[:3] == ["ID", "STATE", "STEP"]
    assert table.stdout.splitlines()[1].split()[:4] == [JOB_ID, "running", "3/10", "1.25"]
    assert "a?[31m?b" in table.stdout
    assert ids.stdout == f"{JOB_ID}\n"
    assert [job["id"] for job in json.loads(text.stdout)] == [JOB_ID]


def test_pages_are_put_together(api, lorad):
    other = "job-ffffffffffffffffffffffff"
    api.on("GET /jobs", listing(make_job(), has_more=True), listing(make_job(id=other)))

    done = lorad("ls", "--limit", "200", "--state", "running", "-o", "id")

    assert done.stdout.split() == [JOB_ID, other]
    assert api.requests[0].query == "limit=100&state=running"
    assert f"after={JOB_ID}" in api.requests[1].query


def test_metrics_continue_after_the_last_step(api, lorad):
    route = f"GET /jobs/{JOB_ID}/metrics"
    api.on(route, listing(make_step(4), make_step(5), has_more=True), listing(make_step(6)))

    done = lorad("metrics", JOB_ID, "--after-step", "3", "-o", "id")

    assert done.stdout.split() == ["4", "5", "6"]
    assert "after_step=3" in api.requests[0].query
    assert "after_step=5" in api.requests[1].query


def test_an_id_stays_one_part_of_the_path(api, lorad):
    done = lorad("show", "../datasets?x=1")

    assert done.code == 3
    assert api.requests[0].path == "/jobs/..%2Fdatasets%3Fx%3D1"


def test_resume_sends_step_and_changes(api, lorad):
    api.on(f"POST /jobs/{JOB_ID}/resume", Answer(make_job(JobState.QUEUED)))

    done = lorad("resume", JOB_ID, "--from", "20", "--set", "training.max_steps=60", "-o", "id")

    assert done.stdout == f"{JOB_ID}\n"
    assert api.requests[0].json == {"checkpoint": 20, "training": {"max_steps": 60}}


def test_resume_changes_nothing_but_training(api, lorad):
    done = lorad("resume", JOB_ID, "--set", "lora.r=4")

    assert done.code == 2
    assert api.requests == []


def test_a_start_from_scratch_excludes_a_checkpoint(api, lorad):
    api.on(f"POST /jobs/{JOB_ID}/resume", Answer(make_job(JobState.QUEUED)))

    assert lorad("resume", JOB_ID, "--from-scratch", "--from", "20").code == 2
    assert api.requests == []

    assert lorad("resume", JOB_ID, "--from-scratch").code == 0
    assert api.requests[0].json == {"from_scratch": True}


@pytest.mark.parametrize("action", ["pause", "cancel"])
def test_a_stop_shows_the_job(api, lorad, action):
    api.on(f"POST /jobs/{JOB_ID}/{action}", Answer(make_job(JobState.STOPPING)))

    done = lorad(action, JOB_ID, "-o", "json")

    assert json.loads(done.stdout)["state"] == "stopping"


def test_logs_are_followed_to_the_end(api, lorad):
    def log(*, text, end):
        return Answer(text, type="text/plain", headers={"x-next-offset": str(end)})

    route = f"GET /jobs/{JOB_ID}/logs"
    api.on(
        route,
        log(text="one\n", end=4),
        log(text="", end=4),
        log(text="two\n", end=8),
        log(text="", end=8),
    )
    api.on(JOB, Answer(make_job(JobState.SUCCEEDED)))

    done = lorad("logs", JOB_ID, "-f", "--attempt", "2")

    assert (done.code, done.stdout) == (0, "one\ntwo\n")
    assert [r.query for r in api.requests if r.path.endswith("logs")][:3] == [
        "offset=0&attempt=2",
        "offset=4&attempt=2",
        "offset=4&attempt=2",
    ]


def test_a_download_is_whole_or_absent(api, lorad, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    route = f"GET /jobs/{JOB_ID}/checkpoints/final/download"
    api.on(
        route,
        Answer(b"half", type="application/zip", breaks=True),
        Answer(b"whole", type="application/zip"),
    )

    broken = lorad("download", JOB_ID)
    assert (broken.code, list(tmp_path.iterdir())) == (5, [])

    done = lorad("download", JOB_ID)
    assert (tmp_path / done.stdout.strip()).read_bytes() == b"whole"

    again = lorad("download", JOB_ID)
    assert again.code == 2
    assert "exists already" in again.stderr


def test_questions_are_asked_one_by_one(api, lorad):
    answer = {"object": "generation", "checkpoint": "base", "answers": ["A", "B"], "seconds": 1.0}
    api.on(f"POST /jobs/{JOB_ID}/generate", Answer(answer))

    done = lorad("generate", JOB_ID, "first", "second", "--checkpoint", "base")

    assert done.stdout == "A\nB\n"
    assert api.requests[0].json == {
        "messages": [
            [{"role": "user", "content": "first"}],
            [{"role": "user", "content": "second"}],
        ],
        "checkpoint": "base",
        "max_new_tokens": 64,
    }


def test_data_sets_are_uploaded_listed_and_shown(api, lorad, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n')
    api.on("POST /datasets", Answer(make_dataset(), status=201))
    api.on("GET /datasets", listing(make_dataset()))
    api.on(f"GET /datasets/{DATASET_ID}", Answer(make_dataset()))

    assert lorad("datasets", "upload", str(path), "-o", "id").stdout == f"{DATASET_ID}\n"
    assert lorad("datasets", "list", "-o", "id").stdout == f"{DATASET_ID}\n"
    assert "num_rows" in lorad("datasets", "show", DATASET_ID, "-o", "json").stdout
    assert lorad("datasets", "upload", str(tmp_path / "absent")).code == 2


@pytest.mark.parametrize("word", ["refuse", "keep"])
def test_an_upload_says_what_to_do_with_bad_rows(api, lorad, tmp_path, word):
    path = tmp_path / "rows.csv"
    path.write_text("text\na\n")
    kept = make_dataset(container="csv", compression="gz", columns=["text"], num_bad_rows=3)
    api.on("POST /datasets", Answer(kept, status=201))

    shown = lorad("datasets", "upload", str(path), "--on-bad-rows", word).stdout

    assert f'name="on_bad_rows"\r\n\r\n{word}\r\n'.encode() in api.requests[0].body
    assert "csv.gz" in shown
    assert lorad("datasets", "upload", str(path), "--on-bad-rows", "skip").code == 2


def test_models_are_listed(api, lorad):
    model = {
        "id": "tiny",
        "usable": False,
        "problem": "no weights",
        "architecture": None,
        "bytes": 5,
    }
    api.on("GET /models", listing(model))

    assert "no: no weights" in lorad("models", "list").stdout


@pytest.mark.parametrize("source", ["HuggingFaceTB/SmolLM2", "absent.gguf"])
def test_a_model_that_is_no_file_is_refused(lorad, tmp_path, source):
    done = lorad("models", "add", source, "--home", str(tmp_path / "home"))

    assert done.code == 2


def test_keys_are_created_listed_and_revoked(lorad, tmp_path):
    home = ("--home", str(tmp_path / "home"))

    created = lorad("keys", "create", "--name", "ci", *home)
    listed = json.loads(lorad("keys", "list", "-o", "json", *home).stdout)

    assert created.stdout.startswith("lorad_")
    assert created.stdout.strip() not in created.stderr
    assert [(key["name"], key["status"]) for key in listed] == [("ci", "active")]
    assert set(listed[0]) == {"id", "name", "status", "created_at"}
    assert lorad("keys", "revoke", listed[0]["id"], *home).code == 0
    assert "revoked" in lorad("keys", "list", *home).stdout
    assert lorad("keys", "revoke", "absent", *home).code == 3


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("secret", 2),
        ("mysql://user:secret@host/name", 2),
        ("postgresql+psycopg://user:secret@127.0.0.1:9/name", 5),
    ],
)
def test_a_database_that_cannot_be_used_is_named_without_its_password(
    lorad, monkeypatch, url, code
):
    monkeypatch.setenv("LORAD_DATABASE_URL", url)

    done = lorad("migrate")

    assert done.code == code
    assert "LORAD_DATABASE_URL" in done.stderr
    assert "secret" not in done.stderr


def test_migrating_twice_changes_nothing(lorad, tmp_path):
    home = str(tmp_path / "home")

    assert [lorad("migrate", "--home", home).code for _ in range(2)] == [0, 0]
    assert (tmp_path / "home" / "lorad.db").is_file()
