"""The warm fork server: imports the training stack once, then forks trainers in milliseconds.

The launcher starts it with one socket. A request is a JSON line with two file descriptors (control
pipe or socket, log); the answers are JSON lines. End of file on the socket means that the worker
has died: the server kills what it forked and ends. It is single-threaded, because only then is a
fork safe and does the parent-death signal of a child follow this process.
"""

import argparse
import array
import contextlib
import ctypes
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

PR_SET_PDEATHSIG = 1
ENTRIES = {
    "trainer": "worker.trainer",
    "tool": "worker.tool_process",
    "host": "worker.host_process",
}
_MAX_REQUEST_BYTES = 65_536


def main() -> None:
    parser = argparse.ArgumentParser(prog="worker.forkserver")
    parser.add_argument("--socket-fd", type=int, required=True)
    channel = socket.socket(fileno=parser.parse_args().socket_fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _preload()
    except Exception as error:  # an edge: whoever waits for trainers must hear of it
        traceback.print_exc()
        _answer(channel, {"ready": False, "problem": f"{type(error).__name__}: {error}"})
        raise SystemExit(1) from error
    _answer(channel, {"ready": True})
    _serve(channel)


def run_entry(name: str, folder: Path, control_fd: int) -> NoReturn:
    """Run a trainer, a tool or a model host in this process and end it with its exit status."""
    status = 2
    try:
        status = importlib.import_module(ENTRIES[name]).main(folder, control_fd)
    except BaseException:  # noqa: BLE001 (nothing may return into the server's loop)
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel to kill this process with its parent; the control pipe is the second net."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(70)


def _preload() -> None:
    for module in ENTRIES.values():
        importlib.import_module(module)
    importlib.import_module(ENTRIES["trainer"]).preload()
    # What is loaded now is never collected, so that the children keep sharing these pages.
    gc.collect()
    gc.freeze()


def _serve(channel: socket.socket) -> None:
    children: set[int] = set()
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, _only_wake)
    with selectors.DefaultSelector() as selector:
        selector.register(channel, selectors.EVENT_READ)
        selector.register(wake_read, selectors.EVENT_READ)
        while True:
            ready = {key.fd for key, _ in selector.select()}
            if wake_read in ready:
                os.read(wake_read, 4096)
                _reap(channel, children)
            if channel.fileno() in ready and not _take_request(channel, children):
                break
    for pid in children:
        _kill_group(pid)
    os._exit(0)


def _only_wake(_number: int, _frame: FrameType | None) -> None:
    """Let the signal reach the wake-up descriptor; a default disposition would not."""


def _take_request(channel: socket.socket, children: set[int]) -> bool:
    """Fork for one request; False at the end of the connection."""
    descriptors = array.array("i")
    data, ancillary, _, _ = channel.recvmsg(
        _MAX_REQUEST_BYTES, socket.CMSG_LEN(2 * descriptors.itemsize)
    )
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(payload)
    if not data:
        return False
    request = json.loads(data)
    control_fd, log_fd = descriptors
    pid = _fork(channel, request, control_fd, log_fd)
    children.add(pid)
    os.close(control_fd)
    os.close(log_fd)
    _answer(channel, {"id": request["id"], "pid": pid})
    return True


def _fork(channel: socket.socket, request: dict[str, Any], control_fd: int, log_fd: int) -> int:
    server_pid = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    os.setsid()
    die_with_parent(server_pid)
    channel.close()
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    os.close(log_fd)
    run_entry(str(request["entry"]), Path(request["folder"]), control_fd)


def _reap(channel: socket.socket, children: set[int]) -> None:
    while children:
        try:
            # Look before reaping: while the leader is a zombie, the group id is still its own.
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        except ChildProcessError:
            return
        if ended is None:
            return
        _kill_group(ended.si_pid)
        _, status = os.waitpid(ended.si_pid, 0)
        children.discard(ended.si_pid)
        _answer(channel, {"pid": ended.si_pid, "exit": os.waitstatus_to_exitcode(status)})


def _kill_group(pid: int) -> None:
    # The group may be gone, or not made yet when the child dies before its setsid.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _answer(channel: socket.socket, message: dict[str, Any]) -> None:
    # A worker that died is noticed by the read that follows.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        channel.sendall(json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()
