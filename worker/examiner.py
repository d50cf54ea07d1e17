"""The examiner: a process, forked before the model is loaded, that looks at the saved adapter."""

import os
import select
import signal
import sys
import traceback
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from worker.forkserver import die_with_parent

if TYPE_CHECKING:
    from worker.training.examine import Findings, Question

_SECONDS = 1800.0


class Examiner:
    """Asks the forked process; it answers once."""

    def __init__(self, pid: int, question_fd: int, answer_fd: int) -> None:
        self.pid = pid
        self._question_fd = question_fd
        self._answer_fd = answer_fd

    def __call__(self, question: "Question") -> "Findings":
        """Let the process examine an adapter.

        Raises:
            RuntimeError: It died, or it took longer than half an hour; trying again may help.
        """
        from worker.training.examine import Findings

        with os.fdopen(self._question_fd, "wb", closefd=False) as pipe:
            pipe.write(question.model_dump_json().encode() + b"\n")
        answer = bytearray()
        poll = select.poll()
        poll.register(self._answer_fd, select.POLLIN | select.POLLHUP)
        while poll.poll(_SECONDS * 1000):
            part = os.read(self._answer_fd, 65_536)
            if not part:
                break
            answer += part
        if not answer.endswith(b"\n"):
            raise RuntimeError("the process that examines the adapter gave no answer")
        return Findings.model_validate_json(bytes(answer))

    def end(self) -> None:
        """End the process, whatever it is doing, and reap it."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._question_fd)
        os.close(self._answer_fd)


@contextmanager
def forked() -> Generator[Examiner]:
    """Fork an examiner that ends with the block, or with this process.

    To be called when everything is imported and nothing has been done: such a child shares all its
    memory with its parent, starts in milliseconds, and has never seen the model that is trained.
    """
    question_read, question_write = os.pipe()
    answer_read, answer_write = os.pipe()
    parent_pid = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        # numpy's idle threads are no reason not to fork: the child never meets them.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        _close_all_but(question_read, answer_write)
        _answer_one(parent_pid, question_read, answer_write)
    os.close(question_read)
    os.close(answer_write)
    examiner = Examiner(pid, question_write, answer_read)
    try:
        yield examiner
    finally:
        examiner.end()


def _close_all_but(*kept: int) -> None:
    """Close what was inherited: a lock or a pipe that stays open here is held for ever."""
    begin = 3  # behind standard error, the trainer's log
    for descriptor in sorted(kept):
        os.closerange(begin, descriptor)
        begin = descriptor + 1
    os.closerange(begin, os.sysconf("SC_OPEN_MAX"))


def _answer_one(parent_pid: int, question_fd: int, answer_fd: int) -> NoReturn:
    """Wait for a question, answer it, and end this process; end of file ends it too."""
    status = 1
    try:
        die_with_parent(parent_pid)
        with os.fdopen(question_fd, "rb") as pipe:
            line = pipe.readline()
        if line.endswith(b"\n"):
            answer = _examine(line)
            with os.fdopen(answer_fd, "wb") as pipe:
                pipe.write(answer + b"\n")
        status = 0
    except BaseException:  # noqa: BLE001 (nothing may return into the trainer's code)
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(status)


def _examine(line: bytes) -> bytes:
    from worker.training.examine import Question, examine

    return examine(Question.model_validate_json(line)).model_dump_json().encode()
