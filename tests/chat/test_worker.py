"""Real workers answer: base, final, steps, best and latest, also while they train."""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from app.db.engine import Database
from app.domain import model_names
from app.services import keys
from app.settings import Settings
from tests.e2e.rows import ROWS, spec
from tests.fixtures.stack import SLOW_STEPS, Stack, link_model

pytestmark = pytest.mark.services

ASK: Any = [{"role": "user", "content": "What is 1 and one?"}]
LEASE_SECONDS = 3.0
SLACK_SECONDS = 3.0
NUM_STEPS = 20
BASE = "tiny-llama"


class Service:
    """One stack for all tests of this module, with a job that has trained alone."""

    def __init__(self, stack: Stack, api_key: str) -> None:
        self.stack = stack
        self.api_key = api_key
        self.dataset = stack.upload(ROWS)
        self.client = OpenAI(
            base_url=f"http://127.0.0.1:{stack.port}/v1",
            api_key=api_key,
            max_retries=0,
            timeout=60,
        )
        self.alone = self.submit()
        stack.wait_for_state(self.alone, "succeeded", seconds=120)

    def submit(self) -> str:
        job = spec(self.stack, self.dataset, max_steps=NUM_STEPS, save_steps=5, eval_steps=5)
        return self.stack.submit({**job, "dataset": {"id": self.dataset, "val_size": 4}})

    def ask(self, model: str, **more: Any) -> Any:
        asked = {"messages": ASK, "max_tokens": 6, "temperature": 0, **more}
        return self.client.chat.completions.create(model=model, **asked)

    def numbers(self, model: str) -> list[float]:
        """Return the logprobs of a greedy answer, which tell models apart."""
        done = self.ask(model, logprobs=True)
        return [each.logprob for each in done.choices[0].logprobs.content]


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, tiny_llama: Path
) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("w")
    shutil.copyfile(sqlite_template, home / "lorad.db")
    stack = Stack(home, f"sqlite:///{home / 'lorad.db'}", **SLOW_STEPS)
    link_model(home, tiny_llama)
    key = _new_key(home)
    stack.http.headers["Authorization"] = f"Bearer {key}"
    for name in ("valkey", "api", "worker"):
        stack.start(name)
    yield Service(stack, key)
    stack.close()


def _new_key(home: Path) -> str:
    """Make a key: the client always sends one."""
    settings = Settings.model_validate({"home": home})
    db = Database(settings.sqlalchemy_url)
    try:
        return keys.create(db, settings, name="tests").secret
    finally:
        db.close()


def test_every_name_of_a_job_answers_as_itself(service: Service):
    tuned = model_names.tuned(BASE, None, service.alone)
    names = {
        "base": BASE,
        "base of the job": f"{service.alone}:base",
        "early": model_names.at_step(tuned, 5),
        "last": model_names.at_step(tuned, NUM_STEPS),
        "final": tuned,
        "job": service.alone,
        "latest": f"{tuned}:latest",
        "best": f"{tuned}:best",
    }

    found = {which: service.numbers(name) for which, name in names.items()}

    steps = [service.numbers(model_names.at_step(tuned, step)) for step in (5, 10, 15, 20)]
    assert found["base"] == found["base of the job"]
    assert found["final"] == found["job"] == found["latest"] == found["last"] == steps[-1]
    assert found["best"] in steps
    assert found["early"] == steps[0]
    assert len({tuple(found[which]) for which in ("base", "early", "final")}) == 3


def test_checkpoints_answer_while_their_job_trains_and_the_adapter_stays_the_same(service: Service):
    job_id = service.submit()
    service.stack.wait_for_step(job_id, 6)

    answered = 0
    while service.stack.job(job_id)["state"] == "running":
        assert service.ask(f"{job_id}:latest").choices[0].finish_reason in ("stop", "length")
        assert service.ask(f"{job_id}:5", n=2).usage.completion_tokens > 0
        answered += 2
    service.stack.wait_for_state(job_id, "succeeded", seconds=60)

    assert answered >= 4
    beside, alone = (service.stack.adapter(each) for each in (job_id, service.alone))
    assert hashlib.sha256(beside).hexdigest() == hashlib.sha256(alone).hexdigest()


def test_seeds_repeat_stops_end_and_streams_say_the_same(service: Service):
    job_id = service.alone
    whole = service.ask(job_id, max_tokens=12).choices[0].message.content
    streamed = "".join(
        chunk.choices[0].delta.content or ""
        for chunk in service.ask(job_id, max_tokens=12, stream=True)
    )
    stop = whole[len(whole) // 2 :][:3]
    stopped = service.ask(job_id, max_tokens=12, stop=stop).choices[0]
    seeded = [
        service.ask(job_id, temperature=1, seed=seed).choices[0].message.content
        for seed in (5, 5, 6)
    ]

    assert streamed == whole
    assert (stopped.message.content, stopped.finish_reason) == (whole[: whole.index(stop)], "stop")
    assert seeded[0] == seeded[1] != seeded[2]


def test_a_prompt_over_the_context_is_refused_with_both_numbers(service: Service):
    words = " ".join(["word"] * 3000)

    with pytest.raises(openai.BadRequestError) as caught:
        service.ask(BASE, messages=[{"role": "user", "content": words}])
    with pytest.raises(openai.BadRequestError) as of_text:
        service.client.completions.create(model=BASE, prompt=words)

    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    assert "2048" in caught.value.message
    assert of_text.value.param == "prompt"


def test_the_command_line_shows_the_adapter_and_its_base(service: Service):
    url = f"http://127.0.0.1:{service.stack.port}"

    done = subprocess.run(
        [
            *(sys.executable, "-m", "app.cli.main", "chat", f"{service.alone}:10", "--base"),
            *("--prompt", ASK[0]["content"], "--max-tokens", "6", "--temperature", "0"),
        ],
        env={**os.environ, "LORAD_API_URL": url, "LORAD_API_KEY": service.api_key},
        capture_output=True,
        text=True,
        check=False,
    )

    said = [service.ask(f"{service.alone}:{which}") for which in (10, "base")]
    texts = [each.choices[0].message.content for each in said]
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        f"--- {service.alone}:10\n{texts[0]}\n--- {service.alone}:base\n{texts[1]}\n"
    )


def test_a_worker_killed_mid_answer_is_an_error_within_the_lease_and_the_next_answers(
    service: Service,
):
    stream = service.ask(service.alone, max_tokens=1900, n=4, temperature=1, stream=True)
    said = ""
    for chunk in stream:
        said += chunk.choices[0].delta.content or ""
        if said:
            break

    service.stack.kill_tree("worker")
    began = time.monotonic()
    with pytest.raises(openai.APIError) as caught:
        list(stream)
    seconds = time.monotonic() - began
    service.stack.start("worker")

    assert caught.value.code == "worker_lost"
    assert seconds < LEASE_SECONDS + SLACK_SECONDS
    assert service.ask(service.alone).choices[0].message.content
