"""`lorad doctor` finds what keeps jobs from running, says what to do, and never hangs."""

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from app.cli import checks, doctor, local
from app.cli.checks import Check, Context, Finding


@pytest.fixture
def context(tmp_path, monkeypatch):
    """Return what checks look at: a home that is not there, a port that is free."""
    for name in ("LORAD_DATABASE_URL", "LORAD_REDIS_URL", "LORAD_HOST", "LORAD_HOME"):
        monkeypatch.delenv(name, raising=False)

    def make(**options):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        for name, value in {"home": tmp_path / "home", "port": port, **options}.items():
            monkeypatch.setenv(f"LORAD_{name.upper()}", str(value))
        return Context(local.settings())

    return make


def found_by(name: str, context: Context) -> dict[str, Finding]:
    check = next(each for each in checks.ALL if each.name == name)
    return {finding.name: finding for finding in check.run(context)}


def test_a_fresh_machine_is_well_enough_to_start(lorad, tmp_path, monkeypatch, context):
    context()
    quick = tuple(each for each in checks.ALL if each.name != "torch")
    monkeypatch.setattr(checks, "ALL", quick)

    done = lorad("doctor", "--home", str(tmp_path / "absent"), "--json")

    said = json.loads(done.stdout)
    assert (done.code, said["is_well"]) == (0, True)
    statuses = {each["name"]: each["status"] for each in said["checks"]}
    assert statuses["python"] == statuses["port"] == statuses["clock"] == "ok"
    assert statuses["home"] == statuses["database"] == statuses["models"] == "warn"
    assert all(each["remedy"] for each in said["checks"] if each["status"] != "ok")
    assert not (tmp_path / "absent").exists()


def test_a_failure_is_exit_code_1_with_its_remedy_and_so_is_a_check_that_breaks(
    lorad, tmp_path, monkeypatch
):
    def broken(_: Context) -> list[Finding]:
        raise ValueError("no idea")

    failing = Check("disk", lambda _: [Finding("disk", "fail", "0 GB free", "make room")])
    monkeypatch.setattr(checks, "ALL", (failing, Check("odd", broken)))

    done = lorad("doctor", "--home", str(tmp_path))

    assert done.code == 1
    assert [line.split() for line in done.stdout.splitlines()][:2] == [
        ["fail", "disk", "0", "GB", "free"],
        ["->", "make", "room"],
    ]
    assert "ValueError: no idea" in done.stdout


def test_a_check_that_never_answers_is_given_up(lorad, tmp_path, monkeypatch):
    never = threading.Event()
    monkeypatch.setattr(doctor, "_MOST_SECONDS", 0.1)

    def wait(_: Context) -> list[Finding]:
        never.wait()
        return []

    monkeypatch.setattr(checks, "ALL", (Check("db", wait),))
    began = time.monotonic()

    done = lorad("doctor", "--home", str(tmp_path))

    never.set()
    assert done.code == 1
    assert "no answer within" in done.stdout
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("facts", "name", "status", "words"),
    [
        ({"torch_error": "x", "transformers_error": "y", "peft_error": "z"}, "torch", "warn", "x"),
        ({"torch": "2", "transformers": "5", "peft_error": "broken"}, "torch", "fail", "broken"),
        ({"cuda": "13.0", "devices": [["H200", 150e9]]}, "cuda", "ok", "H200 (150 GB)"),
        ({"bitsandbytes_error": "no library"}, "bitsandbytes", "warn", "no library"),
    ],
)
def test_what_the_other_process_finds_is_judged(facts, name, status, words):
    look = {"torch": checks._torch, "cuda": checks._cuda, "bitsandbytes": checks._bitsandbytes}

    finding = look[name](facts)

    assert (finding.status, finding.name) == (status, name)
    assert words in finding.detail
    assert bool(finding.remedy) == (status != "ok")


def test_a_home_that_others_can_read_the_secret_of_fails(context):
    subject = context()
    home = subject.settings.home
    home.mkdir()
    (home / "secret.key").write_bytes(b"x")
    (home / "secret.key").chmod(0o644)

    open_secret = found_by("home", subject)["home"]
    (home / "secret.key").chmod(0o600)

    assert (open_secret.status, open_secret.remedy) == (
        "fail",
        f"chmod 600 {home / 'secret.key'}",
    )
    assert found_by("home", subject)["home"].status == "ok"
    home.chmod(0o777)
    assert found_by("home", subject)["home"].status == "fail"


def test_a_port_that_somebody_else_has_fails_and_one_of_lorads_is_fine(context):
    class Other(BaseHTTPRequestHandler):
        ready = b"<html>"

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.ready)

        def log_message(self, format: str, *args: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        subject = context(port=server.server_port)
        taken = found_by("port", subject)["port"]
        Other.ready = b'{"status": "ok"}'
        ours = found_by("port", subject)["port"]
        server.shutdown()
        thread.join()

    assert taken.status == "fail"
    assert "--port" in taken.remedy
    assert (ours.status, "lorad answers" in ours.detail) == ("ok", True)
    assert found_by("port", context())["port"].detail.endswith("is free")


def test_a_database_and_a_broker_that_are_away_fail_by_name(context):
    subject = context(
        database_url="postgresql+psycopg://u:secret@127.0.0.1:9/x", redis_url="redis://127.0.0.1:9"
    )

    database = found_by("database", subject)["database"]
    broker = found_by("redis", subject)["redis"]

    assert (database.status, broker.status) == ("fail", "fail")
    assert "LORAD_DATABASE_URL" in database.remedy
    assert "LORAD_REDIS_URL" in broker.remedy
    assert "secret" not in database.detail


@pytest.mark.parametrize("url", ["nonsense", "mysql://user:secret@host/name"])
def test_urls_that_are_none_fail_by_name(context, url):
    subject = context(database_url=url, redis_url="redis://host:port")

    database = found_by("database", subject)["database"]

    assert (database.status, "LORAD_DATABASE_URL" in database.detail) == ("fail", True)
    assert "secret" not in database.detail
    assert found_by("redis", subject)["redis"].status == "fail"


def test_a_database_of_another_version_fails_and_a_current_one_names_its_workers(lorad, context):
    subject = context()
    subject.settings.home.mkdir()
    (subject.settings.home / "lorad.db").touch()

    old = found_by("database", subject)
    assert lorad("migrate", "--home", str(subject.settings.home)).code == 0
    new = found_by("database", subject)

    assert (old["database"].status, old["database"].remedy) == ("fail", "lorad migrate")
    assert new["database"].status == "ok"
    assert new["worker"].status == "warn"


@pytest.mark.parametrize(
    ("ahead", "status"), [(0.5, "ok"), (-1.9, "ok"), (2.5, "fail"), (-60.0, "fail")]
)
def test_clocks_that_differ_fail(ahead, status):
    assert checks._clock("clock (db)", ahead).status == status
