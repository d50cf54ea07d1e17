"""`lorad chat` against the real API: streaming, history, the base model beside it, and its ends."""

import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import pytest

from app.cli import main
from app.domain.inference import Failed, InferenceRequest, Piece
from app.domain.jobs import JobState
from tests.chat import host as hosts
from tests.chat.conftest import Place
from tests.chat.host import FakeHost

pytestmark = pytest.mark.services

SAID = "".join(hosts.WORDS)
CUT = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass
class Outcome:
    code: int
    stdout: str
    stderr: str


Chat = Callable[..., Outcome]


@pytest.fixture
def chat(place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Chat:
    """Run `lorad chat` in this process."""
    for name, value in environment(place).items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str, typed: str = "") -> Outcome:
        monkeypatch.setattr("sys.argv", ["lorad", "chat", *arguments])
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        with pytest.raises(SystemExit) as ended:
            main.main()
        captured = capsys.readouterr()
        return Outcome(int(ended.value.code or 0), captured.out, captured.err)

    return run


def environment(place: Place) -> dict[str, str]:
    return {
        "LORAD_API_URL": f"http://127.0.0.1:{place.stack.port}",
        "LORAD_API_KEY": place.api_key,
    }


def echo(host: FakeHost, request: InferenceRequest) -> None:
    """Say who is asked, and what."""
    name = "base" if request.adapter is None else "tuned"
    hosts.answer((f"{name}: ", hosts.last_words(request)))(host, request)


def test_a_prompt_is_asked_once_with_its_options(chat: Chat, place: Place):
    done = chat(
        *("tiny", "--prompt", "Why?", "--system", "Be short"),
        *("--max-tokens", "9", "--temperature", "0", "--seed", "3"),
    )

    (request,) = place.host.requests
    assert (done.code, done.stdout, done.stderr) == (0, f"{SAID}\n", "")
    assert request.prompt.model_dump()["messages"] == (
        {"role": "system", "content": "Be short"},
        {"role": "user", "content": "Why?"},
    )
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.seed) == (9, 0, 3)


def test_later_questions_carry_what_was_said_before(chat: Chat, place: Place):
    place.host.script = echo

    done = chat("tiny", typed="one\n\ntwo\n")

    assert (done.code, done.stdout) == (0, "base: one\nbase: two\n")
    assert place.host.requests[1].prompt.model_dump()["messages"] == (
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "base: one"},
        {"role": "user", "content": "two"},
    )


def test_the_base_answers_after_the_adapter_in_plain_output(chat: Chat, place: Place):
    job_id, _ = place.driver.in_state(JobState.SUCCEEDED)
    place.host.script = echo

    done = chat(f"{job_id}:5", "--base", typed="one\ntwo\n")

    tuned, base = f"--- {job_id}:5\n", f"--- {job_id}:base\n"
    assert done.stdout == (
        f"{tuned}tuned: one\n{base}base: one\n{tuned}tuned: two\n{base}base: two\n"
    )
    histories = [request.prompt.model_dump()["messages"][1] for request in place.host.requests[2:]]
    assert [each["content"] for each in histories] == ["tuned: one", "base: one"]


def test_terminal_commands_of_a_model_stay_text(chat: Chat, place: Place):
    place.host.script = hosts.answer(("a\x1b[2J", "b\nc"))

    assert chat("tiny", "--prompt", "x").stdout == "a?[2Jb\nc\n"


def test_failures_end_with_the_codes_of_all_commands(chat: Chat, place: Place):
    unknown = chat("none", "--prompt", "x")
    base_of_base = chat("tiny", "--base", "--prompt", "x")
    refused = chat("bare", "--prompt", "x")
    failed = Failed(code="worker_failed", message="the host died")
    first = (*hosts.beginning(), Piece(index=0, text="Well"))
    place.host.script = hosts.fail(failed, after=first)
    broken = chat("tiny", "--prompt", "x")
    place.leave()
    alone = chat("tiny", "--prompt", "x")

    assert (unknown.code, unknown.stdout.strip()) == (3, "")
    assert (base_of_base.code, refused.code) == (2, 2)
    assert "leave out --base" in base_of_base.stderr
    assert (broken.code, broken.stdout) == (5, "Well\n")
    assert "the host died" in broken.stderr
    assert alone.code == 5
    assert "`lorad worker`" in alone.stderr


class Terminal:
    """`lorad chat` on a terminal of its own."""

    def __init__(self, place: Place, *arguments: str, columns: int) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        left_out = ("COLUMNS", "LINES", "NO_COLOR")
        own = {name: value for name, value in os.environ.items() if name not in left_out}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "app.cli.main", "chat", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**own, **environment(place), "TERM": "xterm"},
            start_new_session=True,
            # Whoever runs the tests in the background may have had Ctrl-C ignored for all of them.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        os.close(slave)
        self.shown = ""
        self._seen = 0

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, text: str, *, seconds: float = 20.0) -> None:
        """Read until a text is shown behind the one that was waited for before."""
        deadline = time.monotonic() + seconds
        while text not in self.shown[self._seen :]:
            assert time.monotonic() < deadline, self.shown
            if select.select([self._master], [], [], 0.1)[0]:
                self.shown += CUT.sub("", os.read(self._master, 65_536).decode())
        self._seen = self.shown.index(text, self._seen) + len(text)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        with suppress(OSError):
            os.close(self._master)


@pytest.fixture
def open_terminal(place: Place) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open_one(*arguments: str, columns: int = 100) -> Terminal:
        opened.append(Terminal(place, *arguments, columns=columns))
        return opened[-1]

    yield open_one
    for terminal in opened:
        terminal.close()


def test_ctrl_c_ends_an_answer_and_then_the_chat(
    open_terminal: Callable[..., Terminal], place: Place
):
    place.host.script = hosts.begin_and_wait
    terminal = open_terminal("tiny")
    terminal.wait_for("> ")
    terminal.type("Why?\n")
    terminal.wait_for("Well")

    terminal.process.send_signal(signal.SIGINT)
    terminal.wait_for("> ")
    (request,) = place.host.requests
    place.host.script = echo
    terminal.type("again\n")
    terminal.wait_for("base: again")
    terminal.wait_for("> ")
    terminal.process.send_signal(signal.SIGINT)

    assert terminal.process.wait(10) == 130
    assert request.id in place.host.cancelled
    assert place.host.requests[1].prompt.model_dump()["messages"][1]["content"] == "Well"


def test_on_a_wide_terminal_the_answers_stand_side_by_side(
    open_terminal: Callable[..., Terminal], place: Place
):
    job_id, _ = place.driver.in_state(JobState.SUCCEEDED)
    place.host.script = echo
    terminal = open_terminal(job_id, "--base", "--prompt", "hello")

    # Both answer at once; either may come first.
    terminal.wait_for("tuned: hello")
    terminal.wait_for("base: hello")

    assert re.search(r"tuned: hello +base: hello", terminal.shown)
    assert terminal.process.wait(10) == 0
