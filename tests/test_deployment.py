"""Dockerfile and docker-compose.yml name only what exists; their commands run without Docker.

There is no Docker engine in these tests: the images are not built.
"""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from app.db import migrate
from app.db.engine import Database
from app.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
LORAD = Path(sys.executable).with_name("lorad")
VARIABLE = re.compile(r"\$\{(\w+)(:?[?-])?")
START_SECONDS = 30.0


@dataclass(frozen=True)
class Stage:
    """One FROM of a Dockerfile with the instructions up to the next."""

    name: str
    base: str
    instructions: tuple[tuple[str, str], ...]

    def values(self, keyword: str) -> list[str]:
        return [value for name, value in self.instructions if name == keyword]


def parse_dockerfile(text: str) -> dict[str, Stage]:
    """Return the stages by name; every logical line is an instruction, comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    logical = "\n".join(lines).replace("\\\n", " ").splitlines()
    stages: dict[str, Stage] = {}
    for line in filter(str.strip, logical):
        keyword, _, value = line.strip().partition(" ")
        if keyword == "FROM":
            base, _, name = value.partition(" AS ")
            stages[name] = Stage(name, base, ())
        else:
            name, last = list(stages.items())[-1]
            instructions = (*last.instructions, (keyword, " ".join(value.split())))
            stages[name] = Stage(name, last.base, instructions)
    return stages


STAGES = parse_dockerfile((ROOT / "Dockerfile").read_text("utf-8"))
COMPOSE_TEXT = (ROOT / "docker-compose.yml").read_text("utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}


def commands() -> list[list[str]]:
    """Return every command of ours that the files start or tell the reader to start."""
    in_images = [json.loads(value) for stage in STAGES.values() for value in stage.values("CMD")]
    in_services = [service["command"] for service in OURS.values()]
    told = re.findall(r"docker compose run --rm \w+ (lorad [^#\n]*?)(?:  |\n)", COMPOSE_TEXT)
    assert told, "the first-run command is documented"
    found = [*in_images, *in_services, *map(shlex.split, told)]
    return [shlex.split(text) for text in sorted(set(map(shlex.join, found)))]


def all_instructions(target: str) -> list[tuple[str, str]]:
    """Return what makes up an image, from the stages it is built on to its own."""
    stage = STAGES[target]
    inherited = all_instructions(stage.base) if stage.base in STAGES else []
    return [*inherited, *stage.instructions]


def final_user(target: str) -> str:
    return [value for keyword, value in all_instructions(target) if keyword == "USER"][-1]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of a container, with a home of its own and no database server."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    return {**kept, "HOME": str(tmp_path), "LORAD_HOME": str(tmp_path / "data")}


def run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command of ours as a container would."""
    assert command[0] == "lorad"
    return subprocess.run(
        [str(LORAD), *command[1:]],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# The Dockerfile


def test_the_dockerfile_builds_an_image_for_the_api_and_one_for_the_worker():
    assert {"api", "worker"} <= set(STAGES)
    assert {service["build"]["target"] for service in OURS.values()} == {"api", "worker"}


def test_every_file_that_an_image_copies_exists_and_is_sent_to_the_build():
    sent = (ROOT / ".dockerignore").read_text("utf-8").splitlines()

    for stage in STAGES.values():
        for value in stage.values("COPY"):
            for source in value.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in sent, source


@pytest.mark.parametrize("target", ["api", "worker"])
def test_no_image_runs_as_root(target: str):
    user = final_user(target)
    created = [value for keyword, value in all_instructions(target) if keyword == "RUN"]

    assert user not in ("root", "0", "")
    assert any("useradd" in value and user in value for value in created)


def test_every_base_image_is_pinned_to_a_version():
    bases = {stage.base for stage in STAGES.values()} - set(STAGES)

    assert bases
    assert all(re.search(r":\d+\.\d+\.\d+-", base) for base in bases)


@pytest.mark.parametrize(("target", "installed"), [("api", "."), ("worker", ".[worker]")])
def test_only_the_worker_installs_the_torch_stack(target: str, installed: str):
    runs = [value for keyword, value in all_instructions(target) if keyword == "RUN"]
    installs = [value for value in runs if "pip install" in value]

    assert len(installs) == 1
    assert shlex.split(installs[0])[-2:] == ["-e", installed]
    assert "-c constraints.txt" in installs[0]


def test_the_home_is_the_volume_in_both_images_and_in_all_services():
    assert STAGES["base"].values("VOLUME") == ["/data"]
    assert "LORAD_HOME=/data" in STAGES["base"].values("ENV")[0]
    for service in OURS.values():
        assert service["environment"]["LORAD_HOME"] == "/data"
        assert "home:/data" in service["volumes"]


# docker-compose.yml


def test_every_service_waits_only_for_services_that_can_answer():
    for service in SERVICES.values():
        for other, wanted in service.get("depends_on", {}).items():
            assert other in SERVICES
            if wanted["condition"] == "service_healthy":
                assert "test" in SERVICES[other]["healthcheck"]


@pytest.mark.parametrize("name", ["api", "worker"])
def test_api_and_worker_start_after_the_migration(name: str):
    needed = SERVICES[name]["depends_on"]

    assert needed["migrate"] == {"condition": "service_completed_successfully"}
    assert SERVICES["migrate"]["restart"] == "no"
    assert {"postgres", "valkey"} <= set(needed)


def test_every_image_is_pinned():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]

    for service in SERVICES.values():
        tag = service["image"].partition(":")[2]
        assert tag == version if "build" in service else re.match(r"\d+\.\d+", tag)


def test_every_named_volume_and_network_is_declared():
    for service in SERVICES.values():
        volumes = {volume.partition(":")[0] for volume in service.get("volumes", [])}
        assert volumes <= set(COMPOSE["volumes"])
        assert set(service["networks"]) <= set(COMPOSE["networks"])


def test_only_the_api_is_published_and_only_on_this_machine():
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}

    assert list(published) == ["api"]
    assert all(port.startswith("127.0.0.1:") for port in published["api"])


def test_the_worker_reaches_no_network_but_the_inside_one():
    assert SERVICES["worker"]["networks"] == ["inside"]
    assert COMPOSE["networks"]["inside"] == {"internal": True}


def test_valkey_keeps_what_it_was_told():
    command = SERVICES["valkey"]["command"]

    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"
    assert command[command.index("--appendonly") + 1] == "yes"


def test_the_worker_asks_for_a_gpu():
    [device] = SERVICES["worker"]["deploy"]["resources"]["reservations"]["devices"]

    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]


def test_a_worker_gets_the_time_to_save_before_it_is_killed():
    minutes = int(SERVICES["worker"]["stop_grace_period"].removesuffix("m"))

    assert minutes * 60 > Settings.model_fields["stop_grace_seconds"].default


def test_every_variable_that_a_container_gets_is_a_setting():
    given = {name for service in OURS.values() for name in service["environment"]}
    given |= {word.partition("=")[0] for word in STAGES["base"].values("ENV")[0].split()}
    ours = {name for name in given if name.startswith("LORAD_")}

    assert {name.removeprefix("LORAD_").lower() for name in ours} <= set(Settings.model_fields)


def test_the_example_environment_lists_every_variable_and_no_other():
    asked = {name for name, _ in VARIABLE.findall(COMPOSE_TEXT)}
    lines = (ROOT / ".env.example").read_text("utf-8").splitlines()
    listed = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))

    assert set(listed) == asked


def test_every_secret_must_be_given_and_has_no_default():
    secrets = [
        (name, rule)
        for name, rule in VARIABLE.findall(COMPOSE_TEXT)
        if "PASSWORD" in name or "SECRET" in name
    ]

    assert {name for name, _ in secrets} == {"POSTGRES_PASSWORD", "VALKEY_PASSWORD", "LORAD_SECRET"}
    assert all(rule == ":?" for _, rule in secrets)


# The commands, outside of Docker


@pytest.mark.services
@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_a_command_exists_and_takes_its_options(command: list[str], environment: dict[str, str]):
    options = [word for word in command if word.startswith("--")]
    before = command[: command.index(options[0])] if options else command

    done = run([*before, "--help"], environment)

    assert done.returncode == 0, done.stderr
    assert set(options) <= set(re.findall(r"--[a-z][a-z-]*", done.stdout))


@pytest.mark.services
def test_the_migration_makes_the_tables(environment: dict[str, str]):
    for _ in range(2):
        done = run(SERVICES["migrate"]["command"], environment)
        assert done.returncode == 0, done.stderr

    database = Database(f"sqlite:///{environment['LORAD_HOME']}/lorad.db")
    try:
        assert migrate.is_current(database)
    finally:
        database.engine.dispose()


@pytest.mark.services
def test_the_api_does_not_start_on_all_addresses_before_there_is_a_key(
    environment: dict[str, str],
):
    run(SERVICES["migrate"]["command"], environment)

    done = run(_on_port(SERVICES["api"]["command"], _free_port()), environment)

    assert done.returncode != 0
    assert "lorad keys create" in done.stderr


@pytest.mark.services
def test_the_api_starts_as_its_container_does_and_is_healthy(environment: dict[str, str]):
    run(SERVICES["migrate"]["command"], environment)
    assert run(["lorad", "keys", "create", "--name", "me"], environment).returncode == 0
    port = _free_port()

    with _running(_on_port(SERVICES["api"]["command"], port), environment) as api:
        answer = _ask(f"http://127.0.0.1:{port}/healthz", api)
        checked = subprocess.run(_health_check(port), timeout=10, check=False)
        refused = httpx2.get(f"http://127.0.0.1:{port}/jobs")

    assert answer.status_code == 200
    assert checked.returncode == 0
    assert refused.status_code == 401


@pytest.mark.services
def test_the_health_check_fails_where_nothing_answers():
    checked = subprocess.run(_health_check(_free_port()), capture_output=True, check=False)

    assert checked.returncode == 1


def _health_check(port: int) -> list[str]:
    [check] = STAGES["api"].values("HEALTHCHECK")
    command = json.loads(check.partition("CMD ")[2])
    assert command[0] == "python"
    return [sys.executable, *(word.replace(":8000'", f":{port}'") for word in command[1:])]


def _on_port(command: list[str], port: int) -> list[str]:
    return [word if word != "8000" else str(port) for word in command]


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def _running(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command until the block ends; it has to end by itself when told to."""
    process = subprocess.Popen([str(LORAD), *command[1:]], env=environment)
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()


def _ask(url: str, server: subprocess.Popen[bytes]) -> httpx2.Response:
    """Return the first answer of a server that is starting."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return httpx2.get(url)
        except httpx2.TransportError:
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.05)
