"""The examples in the docs are accepted by the code that they are written for."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from app.api import errors
from app.cli import specs
from app.domain import consistency, records, rows
from app.domain.jobs import RESUMABLE_STATES, JobState, allowed_requests
from app.domain.options import DatasetSpec, LoraSpec
from app.domain.rows import REQUIRED, RowFormat
from app.domain.spec import JobSpec
from app.services.resume import CHANGEABLE, ResumeRequest
from app.settings import Settings
from tests.markdown import DOCS, ROOT, Page, pages
from tests.markdown import rows as table_rows

# Transcripts of the command line are made by running it; they have a test of their own.
ALL = [page for page in pages("README.md") if page.name != "docs/cli.md"]
FORMATS = Page(DOCS / "data-formats.md")
RESUME = Page(DOCS / "resume.md")
PRODUCTION = Page(DOCS / "production.md")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
BODIES: dict[str, type[BaseModel]] = {"/jobs": JobSpec, "/resume": ResumeRequest}


def titled(page: Page, number: int) -> str:
    return f"{page.path.stem}-{number}"


def numbered(kind: str) -> list[Any]:
    """Return the fenced blocks of a kind as parameters of a test."""
    found = [(page, number, text) for page in ALL for number, text in enumerate(page.blocks(kind))]
    assert found
    return [pytest.param(text, id=titled(page, number)) for page, number, text in found]


# Jobs


@pytest.mark.parametrize("text", numbered("yaml"))
def test_a_job_file_is_valid_and_its_data_are_there(text: str, tmp_path: Path):
    (tmp_path / "job.yaml").write_text(text)
    (tmp_path / "examples").symlink_to(ROOT / "examples")

    given = specs.read(str(tmp_path / "job.yaml"))
    path = specs.dataset_path(given)
    spec = specs.validate(specs.with_dataset(given, specs.PLACEHOLDER_DATASET))

    assert path is not None
    consistency.require(spec)


@pytest.mark.parametrize("text", numbered("json"))
def test_a_body_is_what_its_route_takes(text: str):
    body = json.loads(text)

    match body:
        case {"error": found}:
            errors.ErrorEnvelope.model_validate(body)
            assert found == refusal_of({"training": {"learnig_rate": 1e-4}})
        case {"messages": _}:
            rows.parse_record(body)
        case {"dataset": dataset}:
            DatasetSpec.model_validate(dataset)
        case _:
            ResumeRequest.model_validate(body)


def refusal_of(changes: dict[str, Any]) -> dict[str, Any]:
    """Return what the API says of a job with these changes."""
    body = {"base_model": "m", "dataset": {"id": specs.PLACEHOLDER_DATASET}, **changes}
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(body)
    [error] = caught.value.errors()
    problem = errors.problem_of({**error, "loc": ("body", *error["loc"])})
    answer = errors.response(422, problem.message, param=problem.param, code=problem.code)
    return json.loads(bytes(answer.body))["error"]


def curls() -> list[tuple[str, str]]:
    """Return route and body of every call of curl that sends JSON."""
    text = "\n".join(block for page in ALL for block in page.blocks())
    found = re.findall(r"curl [^\n]*?(/jobs\S*)[^\n]* -d '(\{.*?\})'(?:$|[ )|])", text, re.S | re.M)
    return [(path.strip('"'), body) for path, body in found]


@pytest.mark.parametrize(("path", "body"), curls())
def test_the_body_of_a_call_is_what_its_route_takes(path: str, body: str):
    takes = next(model for end, model in BODIES.items() if path.endswith(end))
    # A shell puts the id of the data set in its place.
    body = re.sub(r"'\$\w+'", specs.PLACEHOLDER_DATASET, body)

    takes.model_validate_json(body)


def test_calls_of_every_kind_are_looked_at():
    assert {path.rpartition("/")[2] for path, _ in curls()} == {"jobs", "resume"}
    assert len(curls()) >= 4


@pytest.mark.parametrize("text", numbered("python"))
def test_a_python_example_is_python(text: str):
    ast.parse(text)


# Rows


@pytest.mark.parametrize("name", REQUIRED)
def test_the_rows_of_a_format_are_of_that_format(name: RowFormat):
    section = FORMATS.section(f"## {name}")
    lines = [line for line in section.splitlines() if line.startswith("{")]
    special = section.partition("```jsonl as chat\n")[2].partition("```")[0].splitlines()

    assert lines
    for line in lines:
        record = rows.decode(line.encode())
        assert rows.detect(record) == ("chat" if line in special else name)
        rows.parse_record(record)
        assert rows.ignored_keys(record, name) == set()


def test_the_example_of_a_csv_file_is_one(tmp_path: Path):
    [text] = FORMATS.blocks("csv")
    path = tmp_path / "rows.csv"
    path.write_text(text)

    container, compression = records.recognise(path, path.name)
    found = [record for _, record in records.read(path, container=container, compression=None)]

    assert (container, compression) == ("csv", None)
    assert [rows.parse_record(each) for each in found if isinstance(each, dict)] == [
        rows.PromptCompletionRow("Who keeps the light?", " I do.")
    ]


# What pages say in words


def test_what_a_resume_may_change_is_told():
    [sentence] = re.findall(r"`training` may change (.*?)\. Anything", RESUME.text, re.S)

    assert tuple(re.findall(r"`(\w+)`", sentence)) == CHANGEABLE


def test_every_state_says_whether_it_can_be_resumed():
    told: dict[str, bool] = {}
    for names, answer in table_rows(RESUME.section("## What can be resumed")):
        can = not answer.startswith(("pause it", "wait"))
        told |= dict.fromkeys(re.findall(r"`(\w+)`", names), can)

    assert told == {str(state): state in RESUMABLE_STATES for state in JobState}
    assert all("resume" in allowed_requests(state) for state in RESUMABLE_STATES)


def test_every_reason_of_a_state_that_is_explained_is_given_somewhere():
    folders = (ROOT / "app", ROOT / "worker")
    sources = "".join(path.read_text() for each in folders for path in each.rglob("*.py"))
    told = [row[0] for row in table_rows(RESUME.section("## Why a job is where it is"))]
    reasons = {name for cell in told for name in re.findall(r"`(\w+)`", cell)}

    assert {"pause", "drain", "worker_lost", "disk_full"} <= reasons
    assert {name for name in reasons if f'"{name}"' not in sources} == set()


def test_the_defaults_that_pages_mention_are_the_defaults():
    said = " ".join((RESUME.text + Page(DOCS / "moving.md").text).split())
    fields = Settings.model_fields

    assert "`save_total_limit` (3)" in said
    assert JobSpec.model_fields["training"].default.save_total_limit == 3
    assert "(15 minutes)" in said
    assert fields["database_outage_seconds"].default == 15 * 60
    assert "after the lease (15 s)" in said
    assert fields["lease_seconds"].default == 15
    assert "three crashes" in said
    assert fields["max_crashes"].default == 3
    assert "ours 32" in said
    assert LoraSpec().lora_alpha == 32


# Production


def test_the_commands_for_compose_are_those_of_its_file():
    first = PRODUCTION.section("## With compose, on one machine").split("```")[1]
    comments = (ROOT / "docker-compose.yml").read_text("utf-8").partition("\nname:")[0]
    wanted = [line.partition(" #")[0].split() for line in first.strip().splitlines()]
    given = [line.removeprefix("#").partition(" #")[0].split() for line in comments.splitlines()]

    assert all(words in given for words in wanted)
    assert len(wanted) == 3


def test_the_secrets_and_services_of_compose_are_named_as_they_are():
    lines = (ROOT / ".env.example").read_text("utf-8").splitlines()
    variables = {line.partition("=")[0] for line in lines if line and not line.startswith("#")}
    secrets = set(re.findall(r"`((?:POSTGRES|VALKEY)_\w+|LORAD_SECRET)`", PRODUCTION.prose))
    run = re.findall(r"docker compose run --rm (?:-v \S+ )?(\w+) lorad", PRODUCTION.text)

    assert secrets == {"POSTGRES_PASSWORD", "VALKEY_PASSWORD", "LORAD_SECRET"}
    assert secrets <= variables
    assert set(run) <= set(COMPOSE["services"])
    assert "deploy" in COMPOSE["services"]["worker"]
    assert COMPOSE["networks"]["inside"]["internal"]


def test_compose_waits_for_a_worker_longer_than_the_worker_for_its_jobs():
    minutes = int(COMPOSE["services"]["worker"]["stop_grace_period"].removesuffix("m"))

    assert "`stop_grace_period`" in PRODUCTION.text
    assert minutes * 60 > Settings.model_fields["stop_grace_seconds"].default
