"""`diff`, `open`, `init`, `preview` of job files, and what shells offer to complete."""

import json
import subprocess
import sys
import time
from urllib.parse import parse_qs

import pytest
import yaml

from app.cli import specs
from app.domain.jobs import JobState
from app.domain.presets import PRESETS
from tests.cli.conftest import DATASET_ID, JOB_ID, Answer, listing, make_dataset, make_job, problem
from tests.cli.test_reports import PREVIEW

OTHER = "job-ffffffffffffffffffffffff"


@pytest.fixture
def two_jobs(api):
    first = make_job(JobState.SUCCEEDED, best_eval_loss=1.5, best_step=20)
    second = make_job(JobState.FAILED, id=OTHER, loss=None)
    second["spec"] = {**first["spec"], "seed": 7}
    second["spec"]["lora"] = {**first["spec"]["lora"], "r": 4}
    api.on(f"GET /jobs/{JOB_ID}", Answer(first))
    api.on(f"GET /jobs/{OTHER}", Answer(second))


def test_diff_names_the_keys_that_differ_and_no_other(two_jobs, lorad):
    said = json.loads(lorad("diff", JOB_ID, OTHER, "--json").stdout)
    shown = [line.split() for line in lorad("diff", JOB_ID, OTHER).stdout.splitlines()]

    assert said["keys"] == {"seed": [42, 7], "lora.r": [16, 4]}
    assert said["figures"]["best_eval_loss"] == [1.5, None]
    assert ["lora.r", "16", "4"] in shown
    assert ["state", "succeeded", "failed"] in shown
    assert ["loss", "1.25", "-"] in shown
    assert lorad("diff", JOB_ID, OTHER, "-o", "id").stdout.split() == ["seed", "lora.r"]
    assert "no key differs" in lorad("diff", JOB_ID, JOB_ID).stdout


def test_open_prints_the_address_of_a_page(api, lorad, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or len(opened) == 1)

    assert lorad("open", "--print").stdout == f"{api.url}/ui/jobs\n"
    assert lorad("open", "../x", "--print").stdout == f"{api.url}/ui/jobs/..%2Fx\n"
    assert opened == []
    assert lorad("open", JOB_ID).stdout == ""
    without = lorad("open", JOB_ID)
    assert (without.stdout, without.code) == (f"{api.url}/ui/jobs/{JOB_ID}\n", 0)
    assert "no browser" in without.stderr
    assert opened == [f"{api.url}/ui/jobs/{JOB_ID}"] * 2


@pytest.mark.parametrize("preset", list(PRESETS))
def test_init_writes_a_file_that_is_valid_with_every_key_explained(
    lorad, tmp_path, monkeypatch, preset
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("{}")
    arguments = ("--preset", preset, "--base-model", "tiny", "--data", "rows.jsonl")

    done = lorad(
        "init", "job.yaml", *arguments, "--set", "training.max_steps=20", "--set", "seed=7"
    )

    text = (tmp_path / "job.yaml").read_text()
    assert done.code == 0
    job = specs.validate(specs.with_dataset(specs.read("job.yaml"), specs.PLACEHOLDER_DATASET))
    assert (job.preset, job.training.max_steps, job.seed) == (preset, 20, 7)
    assert "  # Longest sequence in tokens.\n  # max_length: 2048\n" in text
    assert lorad("init", "job.yaml", *arguments).code == 2
    assert lorad("init", "job.yaml", *arguments, "--force").code == 0


def test_every_key_that_init_comments_out_may_be_switched_on(lorad):
    text = lorad("init", "-", "--base-model", "tiny").stdout

    commented = [line for line in text.splitlines() if line.lstrip().startswith("# ")]
    keys = [line.partition("# ")[2] for line in commented]
    switched = [key for key in keys if key.partition(":")[0].replace("_", "").isalnum()]
    assert len(switched) > 40
    on = yaml.safe_load("\n".join(_switched_on(text)))
    assert specs.validate(specs.with_dataset(on, specs.PLACEHOLDER_DATASET)).base_model == "tiny"


def _switched_on(text):
    """Uncomment every line that is a key; explanations stay comments."""
    for line in text.splitlines():
        indent, sign, rest = line.partition("# ")
        key = rest.partition(":")[0]
        is_key = bool(sign) and key.replace("_", "").isalnum() and ":" in rest and "." not in key
        yield indent + rest if is_key and not rest[0].isupper() else line


def test_init_refuses_a_key_that_is_none_with_the_nearest_one(lorad, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    done = lorad("init", "--base-model", "tiny", "--set", "training.max_step=3")

    assert done.code == 2
    assert "did you mean max_steps?" in done.stderr
    assert not (tmp_path / "job.yaml").exists()


def test_a_preview_takes_a_job_file_and_overrides(api, lorad, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "job.yaml").write_text(
        "base_model: tiny\ndataset: {path: rows.jsonl, max_length: 64, format: text}\n"
    )
    api.on("GET /datasets", listing())
    api.on("POST /datasets", Answer(make_dataset(), status=201))
    api.on(f"GET /datasets/{DATASET_ID}/preview", Answer(PREVIEW))

    assert lorad("preview", "job.yaml", "--set", "dataset.max_length=32", "--json").code == 0
    of_file = parse_qs(api.requests[-1].query)
    lorad("preview", DATASET_ID, "--base-model", "other", "--set", "dataset.format=chat")
    of_id = parse_qs(api.requests[-1].query)

    assert (of_file["base_model"], of_file["max_length"]) == (["tiny"], ["32"])
    assert of_file["format"] == ["text"]
    assert (of_id["base_model"], of_id["format"]) == (["other"], ["chat"])
    assert lorad("preview", DATASET_ID).code == 2
    wrong = lorad("preview", DATASET_ID, "--base-model", "m", "--set", "dataset.max_lenth=3")
    assert "did you mean max_length?" in wrong.stderr


def offered(monkeypatch, lorad, line: str) -> list[str]:
    """Return what bash is offered behind a line."""
    words = line.split(" ")
    monkeypatch.setenv("_LORAD_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    done = lorad()
    assert (done.code, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.fixture
def offers(monkeypatch, lorad):
    return lambda line: offered(monkeypatch, lorad, line)


def checkpoint(step: int, **values):
    return {"id": f"c{step}", "step": step, "status": "committed", "loss": 1.0, **values}


def test_shells_are_offered_live_jobs_and_their_checkpoints(api, offers):
    api.on("GET /jobs", listing(make_job(name="$(x)"), make_job(id=OTHER)))
    rows = [checkpoint(10), checkpoint(20), checkpoint(30, superseded=True)]
    api.on(f"GET /jobs/{JOB_ID}/checkpoints", listing(*rows))

    assert offers("lorad show job-0") == [JOB_ID]
    assert offers("lorad open ") == [JOB_ID, OTHER]
    assert offers(f"lorad diff {JOB_ID} job-f") == [OTHER]
    steps = ["10", "20", "latest", "best", "final"]
    assert offers(f"lorad chat {JOB_ID}:") == [f"{JOB_ID}:{step}" for step in steps]
    assert offers(f"lorad resume {JOB_ID} --from ") == steps
    assert offers(f"lorad download {JOB_ID} 1") == ["10"]


def test_shells_are_offered_states_presets_models_data_sets_and_keys(api, offers):
    models = [{"id": "tiny", "usable": True}, {"id": "torn", "usable": False}]
    api.on("GET /models", listing(*models))
    api.on("GET /datasets", listing(make_dataset()))

    assert offers("lorad ls --state su") == ["succeeded"]
    assert offers("lorad init --preset m") == ["minimal", "mlp"]
    assert offers("lorad init --base-model t") == ["tiny"]
    assert offers("lorad datasets show ds") == [DATASET_ID]
    assert offers("lorad plan --set training.max_st") == ["training.max_steps="]


@pytest.mark.parametrize("answer", [problem(500, "x"), Answer("<html>"), Answer({"data": [1]})])
def test_completion_is_silent_about_an_api_that_is_none(api, offers, answer):
    api.on("GET /jobs", answer)

    assert offers("lorad show job-") == []


def test_completion_does_not_wait_for_an_api_that_never_answers(api):
    api.on("GET /jobs", Answer(""))
    api.routes["GET /jobs"] = lambda _request: time.sleep(3) or listing(make_job())
    environment = {
        "LORAD_API_URL": api.url,
        "_LORAD_COMPLETE": "complete_bash",
        "COMP_WORDS": "lorad show j",
        "COMP_CWORD": "2",
    }
    began = time.monotonic()

    done = subprocess.run(
        [sys.executable, "-c", "from app.cli.main import main; main()"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.stdout.strip(), done.stderr) == ("", "")
    assert time.monotonic() - began < 3
